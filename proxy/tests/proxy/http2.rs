//! HTTP/2 without TLS on the listening side, and towards applications that need it (gRPC).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use litefs_proxy::{ProxySettings, Role};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn curl_speaks_http2_with_prior_knowledge() {
    let node = Node::new(Role::Primary);
    let app = App::writing(&node, "hello").await;
    let proxy = start(&node, settings(app.addr));
    let h2 = "--http2-prior-knowledge";
    let got = curl(&[h2, &proxy.url("/read?x")]).await;
    assert_eq!((got.status, got.body.as_str()), (200, "hello"));
    assert!(got.head.starts_with("HTTP/2 200"), "{}", got.head);
    assert_eq!(app.last().header("host"), Some(proxy.addr.to_string().as_str()));
    let got = curl(&[h2, "-d", "x=1", "-b", "a=b; __txid=0000000000000000", &proxy.url("/")]).await;
    assert_eq!((got.status, got.header("litefs-txid")), (200, Some("0000000000000001")));
    assert_eq!(
        (app.last().body, app.last().header("cookie").map(str::to_owned)),
        (b"x=1".to_vec(), Some("a=b".into()))
    );
    // And on a replica, which forwards.
    let replica_node = Node::new(proxy.as_primary());
    let replica = start(&replica_node, settings(app.addr));
    let got = curl(&[h2, "-d", "x=2", &replica.url("/")]).await;
    assert_eq!((got.status, got.header("litefs-txid")), (200, Some("0000000000000002")));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_wait_on_one_connection() {
    let (node, app) = (Node::new(replica_of("http://127.0.0.1:1")), App::saying("hello").await);
    let proxy = start(&node, ProxySettings { workers: 1, ..settings(app.addr) });
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().expect("client");
    let reads: Vec<_> = (0..100)
        .map(|_| tokio::spawn(client.get(proxy.url("/")).header("Litefs-Txid", format!("{:016x}", 7)).send()))
        .collect();
    eventually("all wait", || proxy.metrics.waiting_now() == 100).await;
    node.advance("app.db", 7);
    for read in reads {
        assert_eq!(within(read).await.expect("task").expect("answer").status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_answer_resets_its_stream_only() {
    let node = Node::new(Role::Primary);
    let app = App::start(|request| match request.target.as_str() {
        "/lies" => {
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\nnonsense".to_vec()
        }
        _ => ok("fine"),
    })
    .await;
    let proxy = start(&node, settings(app.addr));
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().expect("client");
    // The reset may overtake the head.
    if let Ok(lies) = within(client.get(proxy.url("/lies")).send()).await {
        assert!(within(lies.bytes()).await.is_err());
    }
    let fine = within(client.get(proxy.url("/")).send()).await.expect("answer");
    assert_eq!(within(fine.text()).await.expect("body"), "fine");
}

/// A gRPC-like application: HTTP/2 only, answers with what it got, and trailers.
async fn grpc_app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("addr");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = service_fn(|request: Request<Incoming>| async {
                let te = request.headers().get("te").cloned();
                let sent = request.into_body().collect().await.expect("body");
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().expect("value"));
                trailers.insert("te-was", te.expect("te"));
                if let Some(value) = sent.trailers().and_then(|t| t.get("client-trailer")) {
                    trailers.insert("client-trailer-was", value.clone());
                }
                let frames = [Frame::data(sent.to_bytes()), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
                Ok::<_, Infallible>(Response::new(StreamBody::new(futures_util::stream::iter(frames))))
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), answer),
            );
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_calls_keep_their_trailers_also_through_a_replica() {
    let node = Node::new(Role::Primary);
    let app = grpc_app().await;
    let primary = start(&node, settings(app));
    let replica_node = Node::new(primary.as_primary());
    let replica = start(&replica_node, settings(app));
    for proxy in [&primary, &replica] {
        let stream = tokio::net::TcpStream::connect(proxy.addr).await.expect("connect");
        let (mut sender, driver) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("handshake");
        tokio::spawn(driver);
        let mut trailers = HeaderMap::new();
        trailers.insert("client-trailer", "ct".parse().expect("value"));
        let frames = [Frame::data(Bytes::from("call")), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
        let call = Request::post("http://svc.example/Svc/Call")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(StreamBody::new(futures_util::stream::iter(frames)))
            .expect("request");
        let answer = within(sender.send_request(call)).await.expect("answer");
        assert_eq!(answer.status(), 200);
        let body = within(answer.into_body().collect()).await.expect("body");
        let trailers = body.trailers().expect("trailers").clone();
        assert_eq!(body.to_bytes(), "call");
        assert_eq!(trailers.get("grpc-status").expect("status"), "0");
        assert_eq!(trailers.get("te-was").expect("te"), "trailers");
        assert_eq!(trailers.get("client-trailer-was").expect("client's trailer"), "ct");
    }
}

type AnyBody = BoxBody<Bytes, Infallible>;

/// One HTTP/2 connection whose streams may get `window` bytes before the client has read them.
async fn connect(proxy: &Running, window: u32) -> SendRequest<AnyBody> {
    let stream = tokio::net::TcpStream::connect(proxy.addr).await.expect("connect");
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let builder = builder.initial_stream_window_size(window).initial_connection_window_size(1 << 20);
    let (sender, driver) = builder.handshake(TokioIo::new(stream)).await.expect("handshake");
    tokio::spawn(driver);
    sender
}

fn get(path: &str) -> Request<AnyBody> {
    Request::get(format!("http://a.example{path}")).body(Empty::new().boxed()).expect("request")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_body_costs_its_stream_only() {
    let (node, app) = (Node::new(Role::Primary), App::saying("fine").await);
    let limits = ProxySettings { read_timeout: Duration::from_millis(50), ..settings(app.addr) };
    let proxy = start(&node, limits);
    let mut client = connect(&proxy, 1 << 16).await;
    let never = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>());
    let slow = Request::post("http://a.example/slow").body(never.boxed()).expect("request");
    let answer = within(client.send_request(slow)).await.expect("answer");
    assert_eq!(answer.status(), 408);
    let whole = Request::post("http://a.example/").body(Full::from("x=1").boxed()).expect("request");
    assert_eq!(within(client.send_request(whole)).await.expect("answer").status(), 200);
    assert_eq!(within(client.send_request(get("/"))).await.expect("answer").status(), 200);
}

/// A body that has these bytes, and whose stream stays open behind them.
fn open_end(bytes: &'static str) -> AnyBody {
    let frames = futures_util::stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from(bytes)))]);
    StreamBody::new(futures_util::StreamExt::chain(frames, futures_util::stream::pending())).boxed()
}

/// Its last byte ends a body of known length, not the frame that says so, which may come later.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_known_length_is_complete_with_its_last_byte() {
    const LIMIT: Duration = Duration::from_secs(1);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("addr");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let request = read_request(&mut stream, &mut Vec::new()).await.expect("request");
                assert_eq!(request.header("transfer-encoding"), None);
                // (Longer than the client may take for its body.)
                tokio::time::sleep(LIMIT * 3 / 2).await;
                stream.write_all(&ok(std::str::from_utf8(&request.body).expect("text"))).await.expect("answer");
            });
        }
    });
    let proxy = start(&Node::new(Role::Primary), ProxySettings { read_timeout: LIMIT, ..settings(addr) });
    for bytes in ["four", ""] {
        let mut client = connect(&proxy, 1 << 16).await;
        let request = Request::post("http://a.example/").header("content-length", bytes.len()).body(open_end(bytes));
        let answer = within(client.send_request(request.expect("request"))).await.expect("answer");
        assert_eq!(answer.status(), 200, "{bytes:?}");
        assert_eq!(within(answer.into_body().collect()).await.expect("body").to_bytes(), bytes);
    }
}

/// … also when it is sent a second time.
#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_body_is_complete_with_its_last_byte() {
    let primary_app = App::start(|request| ok(std::str::from_utf8(&request.body).expect("text"))).await;
    let primary = start(&Node::new(Role::Primary), settings(primary_app.addr));
    let app = App::start(|_| answer("200 OK", "fly-replay: instance=primary-host\r\n", "")).await;
    let node = Node::new(primary.as_primary());
    let proxy = start(&node, ProxySettings { passthrough: vec!["/x*".into()], ..settings(app.addr) });
    let mut client = connect(&proxy, 1 << 16).await;
    let request = Request::post("http://a.example/x").header("content-length", "4").body(open_end("four"));
    let answer = within(client.send_request(request.expect("request"))).await.expect("answer");
    assert_eq!(within(answer.into_body().collect()).await.expect("body").to_bytes(), "four");
    assert_eq!(app.count(), 1);
}

/// RFC 9113 §8.1: a reset that is called no error; the body before it is not a whole one.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_its_client_resets_never_looks_complete_to_the_application() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("addr");
    let (saw, mut seen) = tokio::sync::mpsc::channel(2);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut all = Vec::new();
        while !all.ends_with(b"\r\n4\r\npart\r\n") {
            assert!(stream.read_buf(&mut all).await.expect("read") > 0, "ended before its part");
        }
        saw.send(String::new()).await.expect("the test waits");
        let _ = stream.read_to_end(&mut all).await;
        saw.send(String::from_utf8(all).expect("text")).await.expect("the test waits");
    });
    let proxy = start(&Node::new(Role::Primary), settings(addr));
    let fields = b"\x83\x86\x84\x01\x09a.example";
    let begun = [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        &[0, 0, 0, 4, 0, 0, 0, 0, 0],
        &[0, 0, fields.len() as u8, 1, 4, 0, 0, 0, 1],
        fields,
        &[0, 0, 4, 0, 0, 0, 0, 0, 1],
        b"part",
    ];
    let mut client = tokio::net::TcpStream::connect(proxy.addr).await.expect("connect");
    client.write_all(&begun.concat()).await.expect("send");
    within(seen.recv()).await.expect("the part");
    client.write_all(&[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 0]).await.expect("reset");
    let seen = within(seen.recv()).await.expect("the end");
    assert!(seen.ends_with("\r\n4\r\npart\r\n"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_its_client_does_not_take_is_reset_after_the_write_timeout() {
    let node = Node::new(Role::Primary);
    let app = App::start(|request| ok(&"x".repeat(if request.target == "/large" { 1 << 20 } else { 1 }))).await;
    let proxy = start(&node, ProxySettings { write_timeout: Duration::from_millis(300), ..settings(app.addr) });
    let mut client = connect(&proxy, 1000).await;
    let large = within(client.send_request(get("/large"))).await.expect("answer");
    eventually("the stream is given up", || proxy.metrics.in_flight_now() == 0).await;
    assert!(within(large.into_body().collect()).await.is_err(), "the end is no end");
    let small = within(client.send_request(get("/"))).await.expect("answer");
    assert_eq!(within(small.into_body().collect()).await.expect("body").to_bytes(), "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_limited_in_number_and_size() {
    let (node, app) = (Node::new(Role::Primary), App::saying("fine").await);
    let proxy = start(&node, settings(app.addr));
    let mut client = connect(&proxy, 1 << 16).await;
    let mut many = get("/");
    for index in 0..200 {
        let name = hyper::header::HeaderName::try_from(format!("x-{index}")).expect("name");
        many.headers_mut().insert(name, "1".parse().expect("value"));
    }
    assert_eq!(within(client.send_request(many)).await.expect("answer").status(), 431);
    let target = format!("/{}", "a".repeat(17 << 10));
    assert_eq!(within(client.send_request(get(&target))).await.expect("answer").status(), 414);
    let mut long = get("/");
    for index in 0..20 {
        let name = hyper::header::HeaderName::try_from(format!("x-{index}")).expect("name");
        long.headers_mut().insert(name, "v".repeat(8 << 10).parse().expect("value"));
    }
    // Refused by an answer, or by the end of the connection when it goes on and on.
    assert!(within(client.send_request(long)).await.is_ok_and(|answer| answer.status() == 431) || app.count() == 0);
    assert_eq!(app.count(), 0);
    let mut again = connect(&proxy, 1 << 16).await;
    assert_eq!(within(again.send_request(get("/"))).await.expect("answer").status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_or_nonsensical_connection_is_closed() {
    let (node, app) = (Node::new(Role::Primary), App::saying("fine").await);
    let proxy = start(&node, ProxySettings { idle_timeout: Duration::from_millis(50), ..settings(app.addr) });
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // A settings frame, then a header block that never ends; a frame longer than allowed; nothing at all.
    let begun = [&preface[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0], &[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82]].concat();
    let huge = [&preface[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0], &[0xff; 64]].concat();
    for bytes in [begun, huge, preface.to_vec()] {
        // It ends: `raw` reads until then.
        raw(proxy.addr, &bytes).await;
    }
    assert_eq!(curl(&[&proxy.url("/litefs/health")]).await.status, 200);
}
