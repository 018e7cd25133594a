//! What is particular to the lease in Consul: what LiteFS sees of it, expiry, take-over, faults.

use std::sync::Arc;
use std::time::Duration;

use litefs_lease::testing::ConsulServer;
use litefs_lease::{
    Acquire, BootInstant, ConsulConfig, ConsulLeaser, FenceCell, Lease, LeaseError, Leaser, Observer, Timing,
};

use crate::conformance::{consul_config, info};

const PATIENCE: Duration = Duration::from_secs(60);

fn node(config: &ConsulConfig, hostname: &str) -> Arc<dyn Leaser> {
    Arc::new(ConsulLeaser::new(config.clone(), info(hostname)).unwrap())
}

/// Short times, for tests in which a primary is silent on purpose.
fn short(server: &ConsulServer) -> ConsulConfig {
    let timing = Timing {
        heartbeat: Duration::from_millis(500),
        fence_after: Duration::from_millis(3000),
        takeover_after: Duration::from_millis(4000),
    };
    ConsulConfig { timing: Some(timing), ..consul_config(server) }
}

/// Gets the free lease, however loaded the machine is: a request may need longer than its timeout.
async fn acquired(node: &Arc<dyn Leaser>) -> Box<dyn Lease> {
    let start = BootInstant::now();
    loop {
        match node.acquire(Acquire::Free).await {
            Ok(lease) => return lease,
            Err(error) => assert!(error.is_transient() && BootInstant::now().since(start) < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Renews, however loaded the machine is.
async fn renewed(lease: &mut Box<dyn Lease>) -> BootInstant {
    let start = BootInstant::now();
    loop {
        match lease.renew().await {
            Ok(deadline) => return deadline,
            Err(error) => assert!(error.is_transient() && BootInstant::now().since(start) < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A session made as LiteFS makes it.
fn foreign_session(server: &ConsulServer) -> String {
    server.request("PUT", "/v1/catalog/register", r#"{"Node":"litefs","Address":"localhost"}"#).unwrap();
    let spec = r#"{"Node":"litefs","Behavior":"delete","TTL":"10s","LockDelay":"1s","NodeChecks":[]}"#;
    let answer = server.request("PUT", "/v1/session/create", spec).unwrap();
    answer.split('"').find(|part| part.len() == 36).unwrap().to_owned()
}

#[tokio::test]
async fn the_key_and_session_are_what_litefs_expects() {
    let server = ConsulServer::start().unwrap();
    let lease = node(&consul_config(&server), "a").acquire(Acquire::Free).await.unwrap();
    let value = server.request("GET", "/v1/kv/some/prefix/litefs/primary?raw", "").unwrap();
    assert_eq!(value, r#"{"hostname":"a","advertise-url":"http://a:20202","proxy-url":"http://a:8080"}"#);
    let session = server.request("GET", &format!("/v1/session/info/{}", lease.id()), "").unwrap();
    for part in [
        r#""TTL": "10000ms""#,
        r#""LockDelay": 1000000000"#,
        r#""Behavior": "delete""#,
        r#""Node": "some/prefix/litefs""#,
    ] {
        assert!(session.contains(part), "{part} in {session}");
    }
}

#[tokio::test]
async fn a_litefs_node_with_the_key_is_respected_and_never_taken_over() {
    let server = ConsulServer::start().unwrap();
    let config = short(&server);
    let ours = node(&config, "ours");
    // A heartbeat of an earlier primary of ours is left behind.
    let mut lease = acquired(&ours).await;
    renewed(&mut lease).await;
    let heartbeat = server.request("GET", "/v1/kv/some/prefix/litefs/primary/heartbeat?raw", "").unwrap();
    let earlier = lease.id().clone();
    lease.close().await.unwrap();
    server.request("PUT", "/v1/kv/some/prefix/litefs/primary/heartbeat", &heartbeat).unwrap();

    let session = foreign_session(&server);
    let path = format!("/v1/kv/some/prefix/litefs/primary?acquire={session}");
    let value = r#"{"hostname":"litefs","advertise-url":"http://litefs:20202"}"#;
    assert_eq!(server.request("PUT", &path, value).unwrap(), "true");
    let view = ours.watch(None).await.unwrap();
    let mut observer = Observer::new(config.timing);
    observer.observe(&view, BootInstant::now());
    assert_eq!(observer.due(), None);
    let holder = view.holder.unwrap();
    assert_eq!((holder.info.hostname.as_str(), holder.info.proxy_url), ("litefs", None));
    assert!(matches!(ours.acquire(Acquire::Free).await, Err(LeaseError::Held)));

    // Even if the heartbeat named its session: it does not name its acquisition.
    let late = heartbeat.replace(&earlier.0, &session);
    server.request("PUT", "/v1/kv/some/prefix/litefs/primary/heartbeat", &late).unwrap();
    observer.observe(&ours.watch(None).await.unwrap(), BootInstant::now());
    assert_eq!(observer.due(), None);

    // Its handoff: we continue its session.
    let mut lease = ours.acquire(Acquire::Existing(litefs_lease::LeaseId(session))).await.unwrap();
    lease.renew().await.unwrap();
    assert_eq!(ours.watch(None).await.unwrap().holder.unwrap().info.hostname, "ours");
}

#[tokio::test]
async fn a_lease_whose_session_is_ended_is_lost_and_the_lock_delay_is_said() {
    let server = ConsulServer::start().unwrap();
    let config = ConsulConfig { lock_delay: Duration::from_secs(60), ..consul_config(&server) };
    let (a, b) = (node(&config, "a"), node(&config, "b"));
    let mut lease = a.acquire(Acquire::Free).await.unwrap();
    server.request("PUT", &format!("/v1/session/destroy/{}", lease.id()), "").unwrap();
    let lost = lease.renew().await.unwrap_err();
    assert!(matches!(lost, LeaseError::Lost(_)) && !lost.is_transient(), "{lost}");
    assert!(matches!(b.acquire(Acquire::Free).await, Err(LeaseError::LockDelay)));
    lease.close().await.expect("closing what is lost is no error");
}

#[tokio::test]
async fn a_lease_whose_key_was_removed_is_lost_although_its_session_lives() {
    let server = ConsulServer::start().unwrap();
    for config in [consul_config(&server), ConsulConfig { timing: None, ..consul_config(&server) }] {
        let mut lease = node(&config, "a").acquire(Acquire::Free).await.unwrap();
        server.request("DELETE", "/v1/kv/some/prefix/litefs/primary", "").unwrap();
        assert!(matches!(lease.renew().await, Err(LeaseError::Lost(_))));
        lease.close().await.unwrap();
    }
}

/// Watches as a candidate does until the take-over is due, then tries it.
async fn take_over_when_due(candidate: &Arc<dyn Leaser>, timing: Timing) -> Result<Box<dyn Lease>, LeaseError> {
    let mut observer = Observer::new(Some(timing));
    let mut version = None;
    loop {
        let due = observer.due();
        let wait = due.as_ref().map_or(Duration::from_secs(60), |(at, _)| at.since(BootInstant::now()));
        match tokio::time::timeout(wait, candidate.watch(version)).await {
            Ok(Ok(view)) => {
                observer.observe(&view, BootInstant::now());
                version = Some(view.version);
            }
            Ok(Err(error)) => assert!(error.is_transient(), "{error}"),
            Err(_) => match candidate.acquire(Acquire::TakeOver(due.unwrap().1)).await {
                Err(LeaseError::Unavailable(_)) => {}
                other => return other,
            },
        }
    }
}

#[tokio::test]
async fn a_silent_primary_is_replaced_only_after_its_fence_has_closed() {
    let server = ConsulServer::start().unwrap();
    let config = short(&server);
    let (a, b) = (node(&config, "a"), node(&config, "b"));
    let mut lease = acquired(&a).await;
    let fence = FenceCell::create().unwrap();
    for _ in 0..3 {
        fence.set_deadline(renewed(&mut lease).await);
    }
    // Now it is silent.
    let taken = take_over_when_due(&b, config.timing.unwrap()).await.unwrap();
    assert!(!fence.is_open(), "two nodes could write");
    assert_eq!(a.watch(None).await.unwrap().holder.unwrap().info.hostname, "b");
    assert!(matches!(lease.renew().await, Err(LeaseError::Lost(_))));
    lease.close().await.unwrap();
    assert_eq!(a.watch(None).await.unwrap().holder.unwrap().lease, *taken.id(), "the old one takes nothing with it");
}

#[tokio::test]
async fn a_take_over_fails_when_the_primary_beats_at_the_last_moment() {
    let server = ConsulServer::start().unwrap();
    let config = short(&server);
    let (a, b) = (node(&config, "a"), node(&config, "b"));
    let mut lease = acquired(&a).await;
    renewed(&mut lease).await;
    let mut observer = Observer::new(config.timing);
    observer.observe(&b.watch(None).await.unwrap(), BootInstant::now());
    let (_, from) = observer.due().unwrap();
    renewed(&mut lease).await;
    let refused = b.acquire(Acquire::TakeOver(from)).await.unwrap_err();
    assert!(matches!(refused, LeaseError::Changed), "{refused}");
    renewed(&mut lease).await; // The failed take-over has harmed nobody.
    let sessions = server.request("GET", "/v1/session/list", "").unwrap();
    assert_eq!(sessions.matches("\"ID\"").count(), 1, "no session is left behind: {sessions}");
}

#[tokio::test]
async fn while_consul_does_not_answer_the_deadline_stands_and_afterwards_the_lease_goes_on() {
    let server = ConsulServer::start().unwrap();
    let a = node(&short(&server), "a");
    let mut lease = acquired(&a).await;
    let deadline = renewed(&mut lease).await;
    server.pause().unwrap();
    let error = lease.renew().await.unwrap_err();
    assert!(matches!(error, LeaseError::Unavailable(_)) && error.is_transient(), "{error}");
    assert_eq!(lease.deadline(), deadline, "a renewal without an answer proves nothing");
    server.resume().unwrap();
    assert!(renewed(&mut lease).await > deadline);
}

#[tokio::test]
async fn an_unreachable_consul_is_a_clear_error() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = ConsulConfig {
        url: format!("http://:secret@{unused}"),
        key: "k".to_owned(),
        ttl: Duration::from_secs(10),
        lock_delay: Duration::from_secs(1),
        timing: None,
    };
    let leaser = ConsulLeaser::new(config.clone(), info("a")).unwrap();
    let error = leaser.watch(None).await.unwrap_err();
    assert!(matches!(error, LeaseError::Unavailable(_)), "{error}");
    assert!(!format!("{error} {error:?} {config:?}").contains("secret"), "the token must not be logged");
}

#[test]
fn unusable_settings_are_refused_with_the_name_of_the_key() {
    let config = |url: &str, key: &str, ttl| ConsulConfig {
        url: url.to_owned(),
        key: key.to_owned(),
        ttl: Duration::from_secs(ttl),
        lock_delay: Duration::from_secs(1),
        timing: None,
    };
    for (config, named) in [
        (config("127.0.0.1:8500", "k", 10), "lease.consul.url"),
        (config("ftp://x", "k", 10), "lease.consul.url"),
        (config("http://x", "", 10), "lease.consul.key"),
        (config("http://x", "k", 5), "lease.consul.ttl"),
    ] {
        let error = ConsulLeaser::new(config, info("a")).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}
