//! What RFC 9110 and 9112 ask of an intermediary.

use litefs_proxy::{ProxySettings, Role};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn hop_by_hop_fields_stay_on_their_hop() {
    let node = Node::new(Role::Primary);
    let app = App::start(|_| {
        answer("200 OK", "Connection: X-Secret\r\nX-Secret: 1\r\nKeep-Alive: timeout=5\r\nX-Kept: 1\r\n", "ok")
    })
    .await;
    let proxy = start(&node, settings(app.addr));
    let request = "GET / HTTP/1.1\r\nHost: h.example\r\nConnection: close, X-Drop\r\nX-Drop: 1\r\nTE: trailers, gzip\r\n\
                   Proxy-Authorization: basic x\r\nX-Forwarded-For: 203.0.113.7\r\nAccept-Encoding: gzip\r\n\r\n";
    let (got, _) = raw(proxy.addr, request.as_bytes()).await;
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.to_lowercase().contains("x-kept: 1"), "{got}");
    assert!(!got.to_lowercase().contains("x-secret") && !got.to_lowercase().contains("keep-alive"), "{got}");
    assert!(got.to_lowercase().contains("via: 1.1 litefs-"), "{got}");
    let seen = app.last();
    for name in ["connection", "x-drop", "proxy-authorization", "keep-alive"] {
        assert_eq!(seen.header(name), None, "{name}");
    }
    assert_eq!((seen.header("te"), seen.header("host")), (Some("trailers"), Some("h.example")));
    assert_eq!(seen.header("accept-encoding"), Some("gzip"));
    assert_eq!(seen.header("x-forwarded-for"), Some("203.0.113.7, 127.0.0.1"));
    assert_eq!((seen.header("x-forwarded-host"), seen.header("x-forwarded-proto")), (Some("h.example"), Some("http")));
    assert_eq!(seen.header("forwarded"), Some("for=127.0.0.1;host=\"h.example\";proto=http"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_untrusted_client_cannot_claim_to_be_another() {
    let (node, app) = (Node::new(Role::Primary), App::saying("ok").await);
    let proxy = start(&node, ProxySettings { trusted_proxies: vec![], ..settings(app.addr) });
    curl(&[
        "-H",
        "X-Forwarded-For: 1.1.1.1",
        "-H",
        "Forwarded: for=1.1.1.1",
        "-H",
        "X-Forwarded-Host: evil",
        &proxy.url("/"),
    ])
    .await;
    let seen = app.last();
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-host"), Some(proxy.addr.to_string().as_str()));
    assert!(seen.header("forwarded").expect("forwarded").starts_with("for=127.0.0.1;"));
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_and_ambiguous_requests_end_here() {
    let (node, app) = (Node::new(Role::Primary), App::saying("ok").await);
    let proxy = start(&node, settings(app.addr));
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(20_000));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X-A: 1\r\n".repeat(200));
    let big = format!("GET / HTTP/1.1\r\nHost: a\r\nX-A: {}\r\n\r\n", "x".repeat(70_000));
    let cases = [
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", "400"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "400"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", "400"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", "400"),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\r\n\r\n", "400"),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", "405"),
        (long.as_str(), "414"),
        (many.as_str(), "431"),
        (big.as_str(), "431"),
    ];
    for (request, status) in cases {
        let (got, _) = raw(proxy.addr, request.as_bytes()).await;
        let start: String = request.chars().take(90).collect();
        assert!(got.starts_with(&format!("HTTP/1.1 {status}")), "{start:?}: {got:?}");
    }
    assert_eq!(app.count(), 0);
    assert_eq!(curl(&[&proxy.url("/")]).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_a_body_are_as_the_application_gave_them() {
    let node = Node::new(Role::Primary);
    let app = App::start(|request| match request.target.as_str() {
        "/304" => b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n".to_vec(),
        "/204" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        "/no-reason" => b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n".to_vec(),
        "/odd-reason" => "HTTP/1.1 200 Pr\u{ea}t\r\nContent-Length: 0\r\n\r\n".as_bytes().to_vec(),
        _ => b"HTTP/1.1 200 Fine\r\nContent-Length: 1234\r\n\r\n".to_vec(),
    })
    .await;
    let proxy = start(&node, settings(app.addr));
    let head = curl(&["-I", &proxy.url("/")]).await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("1234")));
    assert!(head.head.starts_with("HTTP/1.1 200 Fine"), "{}", head.head);
    let unchanged = curl(&[&proxy.url("/304")]).await;
    assert_eq!(
        (unchanged.status, unchanged.header("etag"), unchanged.header("content-length")),
        (304, Some("\"x\""), None)
    );
    let empty = curl(&[&proxy.url("/204")]).await;
    assert_eq!((empty.status, empty.header("content-length"), empty.header("transfer-encoding")), (204, None, None));
    for path in ["/no-reason", "/odd-reason"] {
        let got = curl(&[&proxy.url(path)]).await;
        assert_eq!((got.status, got.exit), (200, 0), "{path}");
    }
    assert_eq!(app.connections.load(std::sync::atomic::Ordering::SeqCst), 1, "the connection is reused");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_body_is_asked_for_only_when_somebody_wants_it() {
    let (node, app) = (Node::new(Role::Primary), App::saying("ok").await);
    let proxy = start(&node, settings(app.addr));
    let head = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\nConnection: close\r\n\r\n";
    let mut stream = TcpStream::connect(proxy.addr).await.expect("connect");
    stream.write_all(head.as_bytes()).await.expect("send");
    read_until(&mut stream, "HTTP/1.1 100 Continue\r\n\r\n").await;
    stream.write_all(b"body").await.expect("send");
    read_until(&mut stream, "HTTP/1.1 200 OK").await;
    assert_eq!((app.last().body, app.last().header("expect").map(str::to_owned)), (b"body".to_vec(), None));

    let lost = Node::new(Role::NoPrimary);
    let short = ProxySettings { primary_redirect_timeout: std::time::Duration::from_millis(20), ..settings(app.addr) };
    let refusing = start(&lost, short);
    let (got, _) = raw(refusing.addr, head.as_bytes()).await;
    assert!(got.starts_with("HTTP/1.1 503"), "{got}");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_clients_and_full_targets_are_understood() {
    let (node, app) = (
        Node::new(Role::Primary),
        App::start(|_| b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec()).await,
    );
    let proxy = start(&node, settings(app.addr));
    let (got, reset) = raw(proxy.addr, b"GET / HTTP/1.0\r\n\r\n").await;
    assert!(got.ends_with("\r\n\r\nhello") && !got.to_lowercase().contains("chunked") && !reset, "{got}");
    // A health check of an old load balancer names no host; HTTP/1.1 towards the application must.
    assert_eq!(app.last().header("host"), Some(app.addr.to_string().as_str()));
    assert_eq!(
        (app.last().header("x-forwarded-host"), app.last().header("forwarded")),
        (None, Some("for=127.0.0.1;proto=http"))
    );
    let replica_node = Node::new(proxy.as_primary());
    let replica = start(&replica_node, settings(app.addr));
    let (got, _) = raw(replica.addr, b"POST / HTTP/1.0\r\nContent-Length: 1\r\n\r\nx").await;
    assert!(got.starts_with("HTTP/1.0 200") || got.starts_with("HTTP/1.1 200"), "{got}");
    let full = "GET http://other.example/p?q HTTP/1.1\r\nHost: ignored\r\nConnection: close\r\n\r\n";
    let (got, _) = raw(proxy.addr, full.as_bytes()).await;
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
    assert_eq!((app.last().target.as_str(), app.last().header("host")), ("/p?q", Some("other.example")));
    let rootless = b"OPTIONS http://other.example?q HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let (got, _) = raw(replica.addr, rootless).await;
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
    assert_eq!(app.last().target, "/?q");
    let (got, _) = raw(proxy.addr, b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
    assert_eq!(app.last().target, "*");
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order() {
    let (node, app) = (Node::new(Role::Primary), App::start(|request| ok(&request.target)).await);
    let proxy = start(&node, settings(app.addr));
    let requests = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
                    GET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let (got, _) = raw(proxy.addr, requests.as_bytes()).await;
    let order: Vec<_> = ["/1", "/2", "/3"].map(|body| got.find(&format!("\r\n\r\n{body}"))).into_iter().collect();
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{got}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pythons_http_client_reuses_its_connection() {
    let node = Node::new(Role::Primary);
    let app = App::writing(&node, "hello").await;
    let proxy = start(&node, settings(app.addr));
    let script = r#"
import http.client, sys
c = http.client.HTTPConnection(sys.argv[1], timeout=50)
for i in range(5):
    c.request("POST", "/", body=(b"chunk%d" % n for n in range(3)), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    r = c.getresponse()
    assert (r.status, r.read()) == (200, b"hello"), r.status
    assert r.getheader("Litefs-Txid") == "%016x" % (i + 1), r.getheaders()
    assert r.getheader("Set-Cookie").startswith("__txid=%016x; Path=/; " % (i + 1))
c.request("HEAD", "/"); r = c.getresponse(); assert (r.status, r.read(), r.getheader("Content-Length")) == (200, b"", "5")
"#;
    let mut python = tokio::process::Command::new("python3");
    python.args(["-c", script, &proxy.addr.to_string()]).kill_on_drop(true);
    let output = within(python.output()).await.expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(app.seen.lock()[0].body, b"chunk0chunk1chunk2");
}

#[tokio::test(flavor = "multi_thread")]
async fn interim_answers_are_passed_on_at_once_also_through_a_replica() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("addr");
    let (proceed, mut wanted) = tokio::sync::mpsc::channel::<()>(1);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut buffer = Vec::new();
        while read_request(&mut stream, &mut buffer).await.is_some() {
            let hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nConnection: x\r\n\r\n";
            stream.write_all(hint).await.expect("hint");
            wanted.recv().await.expect("the test goes on");
            stream.write_all(&ok("final")).await.expect("answer");
        }
    });
    let node = Node::new(Role::Primary);
    let primary = start(&node, ProxySettings { workers: 1, ..settings(addr) });
    let replica_node = Node::new(primary.as_primary());
    let replica = start(&replica_node, settings(addr));
    for proxy in [&primary, &replica] {
        let mut stream = TcpStream::connect(proxy.addr).await.expect("connect");
        for _ in 0..2 {
            let request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(request).await.expect("send");
            let hint = read_until(&mut stream, "\r\n\r\n").await;
            assert!(hint.starts_with("HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n"), "{hint}");
            assert!(!hint.contains("connection"), "{hint}");
            proceed.send(()).await.expect("app");
            let answer = read_until(&mut stream, "final").await;
            assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        }
    }
}
