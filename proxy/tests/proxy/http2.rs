//! HTTP/2 without TLS on the listening side, and towards applications that need it (gRPC).

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use litefs_proxy::{ProxySettings, Role};
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
