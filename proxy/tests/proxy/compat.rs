//! COMPAT §8, row by row, with curl.

use std::sync::Arc;
use std::time::Duration;

use litefs_proxy::{ProxySettings, Role};
use tokio::net::TcpListener;

use crate::support::*;

const SHORT: Duration = Duration::from_millis(50);

fn cookie(txid: u64) -> String {
    format!("__txid={txid:016x}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_without_cookie_goes_to_the_application() {
    let (node, app) = (Node::new(replica_of("http://127.0.0.1:1")), App::saying("hello").await);
    let proxy = start(&node, settings(app.addr));
    for method in [&["-X", "GET"][..], &["-I"]] {
        let got = curl(&[method, &[&proxy.url("/a?b=c")]].concat()).await;
        assert_eq!((got.status, got.header("set-cookie")), (200, None));
        assert_eq!(app.last().target, "/a?b=c");
    }
    assert_eq!(proxy.metrics.decided("local"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_waits_for_its_position_and_is_woken_by_it() {
    let (node, app) = (Node::new(replica_of("http://127.0.0.1:1")), App::saying("hello").await);
    let proxy = start(&node, settings(app.addr));
    node.advance("app.db", 9);
    let url = proxy.url("/");
    let waiting = tokio::spawn(async move { curl(&["-b", &cookie(10), &url]).await });
    eventually("the read waits", || proxy.metrics.waiting_now() == 1).await;
    assert_eq!(app.count(), 0);
    node.advance("app.db", 10);
    assert_eq!(waiting.await.expect("curl").status, 200);
    assert_eq!(proxy.metrics.decided("waited"), 1);
    assert_eq!(curl(&["-b", &cookie(10), &proxy.url("/")]).await.status, 200);
    assert_eq!(proxy.metrics.decided("local"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_reads_wait_and_all_are_woken() {
    let (node, app) = (Node::new(replica_of("http://127.0.0.1:1")), App::saying("hello").await);
    let proxy = start(&node, settings(app.addr));
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let reads: Vec<_> = (0..1000)
        .map(|_| tokio::spawn(client.get(proxy.url("/")).header("Litefs-Txid", format!("{:016x}", 7)).send()))
        .collect();
    eventually("all wait", || proxy.metrics.waiting_now() == 1000).await;
    node.advance("app.db", 7);
    for read in reads {
        assert_eq!(within(read).await.expect("task").expect("answer").status(), 200);
    }
    assert_eq!(proxy.metrics.waiting_now(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_primary_to_ask_a_late_read_is_a_timeout() {
    let (node, app) = (Node::new(Role::NoPrimary), App::saying("hello").await);
    let short = ProxySettings { replica_wait: SHORT, primary_redirect_timeout: SHORT, ..settings(app.addr) };
    let proxy = start(&node, short);
    let got = curl(&["-b", &cookie(10), &proxy.url("/")]).await;
    assert_eq!((got.status, got.body.as_str()), (504, "Proxy timeout\n"));
    assert_eq!(app.count(), 0);
    // A database that does not exist here cannot be waited for.
    node.forget_databases();
    assert_eq!(curl(&["-b", &cookie(10), &proxy.url("/")]).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_read_whose_primary_does_not_answer_is_a_timeout() {
    let app = App::saying("hello").await;
    let short = || ProxySettings { replica_wait: SHORT, primary_redirect_timeout: SHORT, ..settings(app.addr) };
    let deposed = start(&Node::new(Role::NoPrimary), short());
    for primary in ["http://127.0.0.1:1".to_owned(), deposed.url("")] {
        let proxy = start(&Node::new(replica_of(&primary)), short());
        assert_eq!(curl(&["-b", &cookie(10), &proxy.url("/")]).await.status, 504, "{primary}");
        let write = curl(&["-d", "x", &proxy.url("/")]).await;
        assert_eq!((write.status, write.header("retry-after")), (503, Some("1")), "{primary}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_on_the_primary_gets_the_cookie_in_litefs_form() {
    let node = Node::new(Role::Primary);
    let app = App::writing(&node, "written").await;
    let proxy = start(&node, settings(app.addr));
    let got = curl(&["-d", "x=1", &proxy.url("/")]).await;
    assert_eq!((got.status, got.body.as_str()), (200, "written"));
    let cookie = got.header("set-cookie").expect("a cookie");
    let parts: Vec<&str> = cookie.split("; ").collect();
    assert_eq!(parts[..2], ["__txid=0000000000000001", "Path=/"]);
    assert!(parts[2].starts_with("Expires=") && parts[2].ends_with(" GMT"), "{cookie}");
    assert_eq!(parts[3..], ["HttpOnly", "SameSite=Lax"]);
    assert_eq!(got.header("litefs-txid"), Some("0000000000000001"));
    assert_eq!(app.last().body, b"x=1");
    // LiteFS gives a cookie for every method but GET and HEAD, whether it wrote or not.
    let got = curl(&["-X", "DELETE", &proxy.url("/")]).await;
    assert!(got.header("set-cookie").expect("a cookie").starts_with("__txid=0000000000000001;"));
}

#[tokio::test(flavor = "multi_thread")]
async fn passthrough_paths_go_straight_to_the_application() {
    let (node, app) = (Node::new(replica_of("http://127.0.0.1:1")), App::saying("asset").await);
    let proxy = start(&node, ProxySettings { passthrough: vec!["/assets/*".into()], ..settings(app.addr) });
    let got = curl(&["-d", "x", "-b", &cookie(99), &proxy.url("/assets/a/b")]).await;
    assert_eq!((got.status, got.body.as_str(), got.header("set-cookie")), (200, "asset", None));
    assert_eq!(proxy.metrics.decided("passthrough"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_the_lag() {
    let (node, app) = (Node::new(replica_of("http://127.0.0.1:1")), App::saying("").await);
    let proxy = start(&node, settings(app.addr));
    let got = curl(&[&proxy.url("/litefs/health")]).await;
    assert_eq!((got.status, got.body.as_str()), (200, "OK"));
    for lag in [Some(Duration::from_secs(11)), None] {
        *node.lag.lock() = lag;
        assert_eq!(curl(&[&proxy.url("/litefs/health")]).await.status, 503, "{lag:?}");
    }
    node.set_role(Role::Primary);
    assert_eq!(curl(&[&proxy.url("/litefs/health")]).await.status, 200);
    assert_eq!(app.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_fly_a_replica_asks_the_platform_to_replay_a_write() {
    let (node, app) = (Node::new(replica_of("http://127.0.0.1:1")), App::saying("").await);
    let on_fly = ProxySettings { on_fly: true, always_forward: vec!["/admin*".into()], ..settings(app.addr) };
    let proxy = start(&node, on_fly);
    for args in [&["-d", "x"][..], &["-X", "DELETE"], &["-X", "OPTIONS"]] {
        let got = curl(&[args, &[&proxy.url("/")]].concat()).await;
        assert_eq!((got.status, got.body.as_str()), (200, ""));
        assert_eq!(got.header("fly-replay"), Some("instance=primary-host"));
    }
    let got = curl(&[&proxy.url("/admin/x")]).await;
    assert_eq!(got.header("fly-replay"), Some("instance=primary-host"));
    assert_eq!((app.count(), proxy.metrics.decided("replayed")), (0, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn on_fly_a_body_that_cannot_be_replayed_is_forwarded() {
    let primary_node = Node::new(Role::Primary);
    let primary_app = App::writing(&primary_node, "written").await;
    let primary = start(&primary_node, settings(primary_app.addr));
    let (node, app) = (Node::new(primary.as_primary()), App::saying("").await);
    let proxy = start(&node, ProxySettings { on_fly: true, ..settings(app.addr) });
    let folder = tempfile::tempdir().expect("folder");
    let body = folder.path().join("body");
    std::fs::write(&body, vec![b'x'; 1_000_001]).expect("write");
    let data = format!("@{}", body.display());
    let got = curl(&["--data-binary", &data, &proxy.url("/")]).await;
    assert_eq!((got.status, got.body.as_str(), got.header("fly-replay")), (200, "written", None));
    let chunked = ["-H", "Transfer-Encoding: chunked", "--data-binary", "short"];
    let got = curl(&[&chunked[..], &[&proxy.url("/")]].concat()).await;
    assert_eq!((got.status, got.header("fly-replay")), (200, None));
    assert_eq!(primary_app.last().body, b"short");
    assert_eq!(primary_app.seen.lock()[0].body.len(), 1_000_001);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_primary_a_write_waits_and_then_is_refused() {
    let (node, app) = (Node::new(Role::NoPrimary), App::saying("").await);
    let proxy = start(&node, ProxySettings { primary_redirect_timeout: SHORT, ..settings(app.addr) });
    let got = curl(&["-d", "x", &proxy.url("/")]).await;
    assert_eq!((got.status, got.body.as_str()), (503, "Proxy error: no primary available\n"));
    assert_eq!(got.header("retry-after"), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_write_goes_on_the_moment_a_primary_is_known() {
    let node = Node::new(Role::NoPrimary);
    let app = App::writing(&node, "written").await;
    let proxy = start(&node, settings(app.addr));
    let url = proxy.url("/");
    let waiting = tokio::spawn(async move { curl(&["-d", "x", &url]).await });
    eventually("the write waits", || proxy.metrics.waiting_now() == 1).await;
    node.set_role(Role::Primary);
    let got = waiting.await.expect("curl");
    assert_eq!((got.status, got.header("litefs-txid")), (200, Some("0000000000000001")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_of_waiting_requests_is_bounded() {
    let (node, app) = (Node::new(Role::NoPrimary), App::saying("").await);
    let proxy = start(&node, ProxySettings { max_waiting: 1, ..settings(app.addr) });
    let url = proxy.url("/");
    let waiting = tokio::spawn(async move { curl(&["-d", "x", &url]).await });
    eventually("the write waits", || proxy.metrics.waiting_now() == 1).await;
    assert_eq!(curl(&["-d", "x", &proxy.url("/")]).await.status, 503);
    node.set_role(Role::Primary);
    assert_eq!(waiting.await.expect("curl").status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_before_a_primary_that_cannot_be_reached_is_bounded() {
    let (node, app) = (Node::new(replica_of("http://127.0.0.1:1")), App::saying("hello").await);
    let proxy = start(&node, ProxySettings { max_waiting: 1, ..settings(app.addr) });
    let write = || {
        let url = proxy.url("/");
        tokio::spawn(async move { curl(&["-d", "x", &url]).await })
    };
    let first = write();
    eventually("the first write waits", || proxy.metrics.waiting_now() == 1).await;
    // One of both is refused: between two attempts the first one gives its place up for a moment.
    let got = tokio::select! {
        got = write() => got,
        got = first => got,
    };
    let got = got.expect("curl");
    assert_eq!((got.status, got.header("retry-after")), (503, Some("1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_is_down_is_waited_for() {
    let node = Node::new(Role::Primary);
    // A port that nobody listens on, until somebody does.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("addr");
    drop(listener);
    let gives_up = start(&node, ProxySettings { target_timeout: SHORT, ..settings(addr) });
    let got = curl(&["-d", "x", &gives_up.url("/")]).await;
    assert_eq!(got.status, 502);
    assert!(got.body.starts_with("Proxy error: "), "{}", got.body);
    let patient = Arc::new(start(&node, settings(addr)));
    let url = patient.url("/");
    let waiting = tokio::spawn(async move { curl(&["-d", "x=1", &url]).await });
    eventually("the request is in flight", || patient.metrics.in_flight_now() == 1).await;
    let app = App::on(TcpListener::bind(addr).await.expect("the port is still free"), |_| ok("up"));
    assert_eq!(waiting.await.expect("curl").body, "up");
    assert_eq!(app.last().body, b"x=1");
}
