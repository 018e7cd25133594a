//! From a replica to the primary, by each mode, and what happens when the primary changes underneath.

use std::sync::Arc;
use std::time::Duration;

use litefs_proxy::{Primary, ProxySettings, Role};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use crate::support::*;

/// A primary and a replica of it, each with its application.
struct Pair {
    primary_node: Arc<Node>,
    primary_app: App,
    primary: Running,
    node: Arc<Node>,
    app: App,
    replica: Running,
}

async fn pair(change: impl FnOnce(ProxySettings) -> ProxySettings) -> Pair {
    let primary_node = Node::new(Role::Primary);
    let primary_app = App::writing(&primary_node, "from the primary").await;
    let primary = start(&primary_node, settings(primary_app.addr));
    let node = Node::new(primary.as_primary());
    let app = App::saying("from the replica").await;
    let replica = start(&node, change(settings(app.addr)));
    Pair { primary_node, primary_app, primary, node, app, replica }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_on_a_replica_is_answered_by_the_primary() {
    let pair = pair(|s| s).await;
    let args = ["-d", "x=1", "-H", "X-Custom: kept", "-b", "a=b; __txid=0000000000000000"];
    let got = curl(&[&args[..], &[&pair.replica.url("/p?q=1")]].concat()).await;
    assert_eq!((got.status, got.body.as_str()), (200, "from the primary"));
    assert_eq!(got.header("litefs-txid"), Some("0000000000000001"));
    assert_eq!(got.headers("set-cookie").len(), 1);
    let seen = pair.primary_app.last();
    assert_eq!((seen.target.as_str(), seen.body.as_slice()), ("/p?q=1", &b"x=1"[..]));
    assert_eq!((seen.header("x-custom"), seen.header("cookie")), (Some("kept"), Some("a=b")));
    assert_eq!(seen.header("host"), Some(pair.replica.addr.to_string().as_str()));
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1, 127.0.0.1"));
    assert_eq!(seen.header("via").map(|via| via.split(", ").count()), Some(2));
    assert_eq!((seen.header("litefs-hop"), seen.header("litefs-txid")), (None, None));
    assert_eq!(pair.app.count(), 0);
    assert_eq!(pair.replica.metrics.decided("forwarded"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_any_size_are_streamed_both_ways() {
    let primary_node = Node::new(Role::Primary);
    let size: usize = 5 << 20;
    let app = App::start(move |request| answer("200 OK", "", &"y".repeat(request.body.len()))).await;
    let primary = start(&primary_node, settings(app.addr));
    let node = Node::new(primary.as_primary());
    let replica = start(&node, ProxySettings { replay_buffer: 1024, ..settings(app.addr) });
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let answer = within(client.post(replica.url("/")).body(vec![b'x'; size]).send()).await.expect("answer");
    assert_eq!(within(answer.bytes()).await.expect("body").len(), size);
    let chunks = futures_util::stream::iter((0..80).map(move |_| Ok::<_, std::io::Error>(vec![b'x'; size / 80])));
    let chunked = client.post(replica.url("/")).body(reqwest::Body::wrap_stream(chunks));
    let answer = within(chunked.send()).await.expect("answer");
    assert_eq!(within(answer.bytes()).await.expect("body").len(), size);
    assert_eq!(replica.metrics.decided("forwarded"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_is_behind_for_too_long_is_answered_by_the_primary() {
    let pair = pair(|s| ProxySettings { replica_wait: Duration::from_millis(20), ..s }).await;
    pair.primary_node.advance("app.db", 10);
    let got = curl(&["-b", "__txid=000000000000000a", &pair.replica.url("/")]).await;
    assert_eq!((got.status, got.body.as_str()), (200, "from the primary"));
    pair.node.advance("app.db", 10);
    let got = curl(&["-b", "__txid=000000000000000a", &pair.replica.url("/")]).await;
    assert_eq!(got.body, "from the replica");
}

#[tokio::test(flavor = "multi_thread")]
async fn always_forward_treats_reads_as_writes() {
    let pair = pair(|s| ProxySettings { always_forward: vec!["/write*".into()], ..s }).await;
    let got = curl(&[&pair.replica.url("/write")]).await;
    assert_eq!((got.body.as_str(), got.header("litefs-txid")), ("from the primary", Some("0000000000000001")));
    assert_eq!(curl(&[&pair.replica.url("/read")]).await.body, "from the replica");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirect_mode_sends_the_client_to_the_primary() {
    let pair = pair(|s| ProxySettings { forward_mode: "redirect".into(), ..s }).await;
    let got = curl(&["-d", "x", &pair.replica.url("/a?b=c")]).await;
    assert_eq!((got.status, got.header("location")), (307, Some(pair.primary.url("/a?b=c").as_str())));
    let followed = curl(&["-L", "-d", "x=1", &pair.replica.url("/a?b=c")]).await;
    assert!(followed.body.ends_with("from the primary"), "{followed:?}");
    assert_eq!(pair.primary_app.last().body, b"x=1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_is_impossible() {
    let app = App::saying("never").await;
    let short = || ProxySettings { primary_redirect_timeout: Duration::from_millis(200), ..settings(app.addr) };
    let (one, other) = (Node::new(Role::NoPrimary), Node::new(Role::NoPrimary));
    let (first, second) = (start(&one, short()), start(&other, short()));
    one.set_role(second.as_primary());
    other.set_role(first.as_primary());
    let got = curl(&["-d", "x", &first.url("/")]).await;
    assert_eq!((got.status, got.header("retry-after"), got.header("litefs-hop")), (503, Some("1"), None));
    assert!(second.metrics.decided("refused") >= 1);
    assert_eq!((first.metrics.decided("refused"), app.count()), (0, 0));
    // The same request coming back to the very proxy is recognised by its name.
    let echo = App::start(|request| answer("200 OK", "", request.header("via").expect("via"))).await;
    let node = Node::new(Role::Primary);
    let proxy = start(&node, settings(echo.addr));
    let via = curl(&[&proxy.url("/")]).await.body;
    assert_eq!(curl(&["-H", &format!("Via: {via}"), &proxy.url("/")]).await.status, 508);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_the_primary_any_more_makes_the_sender_look_again() {
    let pair = pair(|s| s).await;
    let deposed = Node::new(Role::NoPrimary);
    let old = start(&deposed, settings(pair.app.addr));
    pair.node.set_role(old.as_primary());
    let url = pair.replica.url("/");
    let write = tokio::spawn(async move { curl(&["-d", "x=1", &url]).await });
    eventually("the old primary refuses", || old.metrics.decided("refused") == 1).await;
    pair.node.set_role(pair.primary.as_primary());
    let got = write.await.expect("curl");
    assert_eq!((got.status, got.body.as_str()), (200, "from the primary"));
    assert_eq!(pair.primary_app.last().body, b"x=1");
    assert_eq!(pair.primary_app.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_cannot_be_reached_is_replaced_by_the_next() {
    let pair = pair(|s| s).await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("addr");
    pair.node.set_role(replica_of(&format!("http://{nobody}")));
    let url = pair.replica.url("/");
    let write = tokio::spawn(async move { curl(&["-d", "x=1", &url]).await });
    eventually("the write is in flight", || pair.replica.metrics.in_flight_now() == 1).await;
    pair.node.set_role(pair.primary.as_primary());
    assert_eq!(write.await.expect("curl").body, "from the primary");
    assert_eq!(pair.primary_app.last().body, b"x=1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_becomes_the_primary_answers_itself() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("addr");
    let node = Node::new(replica_of(&format!("http://{nobody}")));
    let app = App::writing(&node, "mine").await;
    let proxy = start(&node, settings(app.addr));
    let url = proxy.url("/");
    let write = tokio::spawn(async move { curl(&["-d", "x=1", &url]).await });
    eventually("the write is in flight", || proxy.metrics.in_flight_now() == 1).await;
    node.set_role(Role::Primary);
    let got = write.await.expect("curl");
    assert_eq!((got.body.as_str(), got.header("litefs-txid")), ("mine", Some("0000000000000001")));
    assert_eq!((app.last().body.as_slice(), app.last().header("litefs-hop")), (&b"x=1"[..], None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_may_have_been_executed_is_never_sent_twice() {
    let vanishing = App::start(|_| Vec::new()).await;
    let node = Node::new(replica_of(&format!("http://{}", vanishing.addr)));
    let proxy = start(&node, settings(vanishing.addr));
    let got = curl(&["-d", "x", &proxy.url("/")]).await;
    assert_eq!((got.status, got.header("litefs-outcome")), (502, Some("unconfirmed")));
    assert_eq!(vanishing.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_is_sent_again_when_its_pooled_connection_had_died() {
    // Answers the first request of a connection and closes on the second without an answer.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("addr");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = Vec::new();
                let _ = read_request(&mut stream, &mut buffer).await;
                let _ = stream.write_all(&ok("fresh")).await;
                let _ = read_request(&mut stream, &mut buffer).await;
            });
        }
    });
    let node = Node::new(replica_of("http://127.0.0.1:1"));
    let proxy = start(&node, ProxySettings { workers: 1, ..settings(addr) });
    for _ in 0..6 {
        let got = curl(&[&proxy.url("/")]).await;
        assert_eq!((got.status, got.body.as_str()), (200, "fresh"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_litefs_primary_is_taken_to_listen_on_the_same_port() {
    let node = Node::new(Role::Primary);
    let app = App::saying("primary").await;
    // Two addresses of the loopback network, one port: as two machines would have. Clients on this machine may be given
    // a port that is free on the other address.
    let replica_node = Node::new(Role::Replica(Primary { hostname: "127.0.0.2".into(), proxy_url: None }));
    let (primary, replica) = loop {
        let primary = start(&node, ProxySettings { addr: "127.0.0.2:0".into(), ..settings(app.addr) });
        let same_port = format!("127.0.0.1:{}", primary.addr.port());
        if let Some(replica) = try_start(&replica_node, ProxySettings { addr: same_port, ..settings(app.addr) }) {
            break (primary, replica);
        }
    };
    assert_eq!(curl(&["-d", "x", &replica.url("/")]).await.body, "primary");
    assert_eq!(primary.metrics.decided("local"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_the_application_asks_for_is_performed() {
    let primary_node = Node::new(Role::Primary);
    let primary_app = App::writing(&primary_node, "from the primary").await;
    let primary = start(&primary_node, settings(primary_app.addr));
    let node = Node::new(primary.as_primary());
    for (value, status) in [("instance=primary-host;state=s1", 200), ("region=primary", 200), ("app=other", 409)] {
        let app = App::start(move |_| answer("409 Conflict", &format!("fly-replay: {value}\r\n"), "")).await;
        let changed = ProxySettings { passthrough: vec!["/raw*".into()], replay_buffer: 64, ..settings(app.addr) };
        let proxy = start(&node, changed);
        let got = curl(&[&proxy.url("/write")]).await;
        assert_eq!(got.status, status, "{value}");
        if status != 200 {
            continue;
        }
        assert_eq!((got.body.as_str(), got.header("fly-replay")), ("from the primary", None));
        assert!(primary_app.last().header("fly-replay-src").expect("source").starts_with("instance="));
        let got = curl(&["-d", "x=1", &proxy.url("/raw")]).await;
        assert_eq!((got.status, primary_app.last().body), (200, b"x=1".to_vec()));
        let got = curl(&["-d", &"x".repeat(65), &proxy.url("/raw")]).await;
        assert_eq!(got.status, 413);
        assert_eq!(proxy.metrics.decided("app_replayed"), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_fly_the_applications_replay_is_left_to_the_platform() {
    let (node, app) = (
        Node::new(replica_of("http://127.0.0.1:1")),
        App::start(|_| answer("200 OK", "fly-replay: region=x\r\n", "")).await,
    );
    let proxy = start(&node, ProxySettings { on_fly: true, ..settings(app.addr) });
    assert_eq!(curl(&[&proxy.url("/")]).await.header("fly-replay"), Some("region=x"));
}

/// What one node accepts, the other accepts from it, though fields were added on the way.
#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_header_fields_is_the_same_on_every_node() {
    let node = Node::new(Role::Primary);
    let app = App::start(|request| {
        let fields = request.target.trim_start_matches('/').parse().unwrap_or(0);
        answer("200 OK", &"X-A: 1\r\n".repeat(fields), "fine")
    })
    .await;
    let primary = start(&node, settings(app.addr));
    let replica = start(&Node::new(primary.as_primary()), settings(app.addr));
    for fields in 80..=100 {
        // With Host, Content-Length and Connection.
        let many = "X-A: 1\r\n".repeat(fields - 3);
        let asked = format!("POST / HTTP/1.1\r\nHost: a\r\n{many}Content-Length: 0\r\nConnection: close\r\n\r\n");
        let answered = format!("POST /{} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", fields - 1);
        for request in [asked, answered] {
            let (here, _) = raw(primary.addr, request.as_bytes()).await;
            let (there, _) = raw(replica.addr, request.as_bytes()).await;
            assert_eq!(here.contains(" 200 "), fields <= 90, "{fields}: {here}");
            assert_eq!(here.get(..13), there.get(..13), "{fields}: {there}");
        }
    }
}
