//! WebSockets and other upgrades, and streams that must not be buffered.

use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use litefs_proxy::{ProxySettings, Role};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;

use crate::support::*;

/// A WebSocket application that greets and echoes.
async fn echo(greeting: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("addr");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await.expect("handshake");
                socket.send(Message::text(greeting)).await.expect("greet");
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_text() || message.is_binary() {
                        socket.send(message).await.expect("echo");
                    }
                }
            });
        }
    });
    addr
}

async fn talks(proxy: &Running, path: &str, greeting: &str) {
    let url = format!("ws://{}{path}", proxy.addr);
    let (mut socket, answer) = within(tokio_tungstenite::connect_async(url)).await.expect("connect");
    assert_eq!(answer.status(), 101);
    assert_eq!(within(socket.next()).await.expect("a message").expect("greeting"), Message::text(greeting));
    for size in [1, 70_000, 1 << 20] {
        let sent = Message::binary(vec![7_u8; size]);
        socket.send(sent.clone()).await.expect("send");
        assert_eq!(within(socket.next()).await.expect("a message").expect("echo"), sent);
    }
    assert_eq!(proxy.metrics.upgrades_now(), 1);
    socket.close(None).await.expect("close");
    while within(socket.next()).await.is_some() {}
    drop(socket);
    eventually("the tunnel ends", || proxy.metrics.upgrades_now() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_go_to_the_local_application_or_to_the_primary() {
    let node = Node::new(Role::Primary);
    let primary = start(&node, settings(echo("primary").await));
    talks(&primary, "/chat", "primary").await;
    let replica_node = Node::new(primary.as_primary());
    let forwarding = ProxySettings { always_forward: vec!["/live*".into()], ..settings(echo("replica").await) };
    let replica = start(&replica_node, forwarding);
    talks(&replica, "/chat", "replica").await;
    talks(&replica, "/live", "primary").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_protocol_is_tunnelled_and_each_side_may_end_first() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("addr");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut buffer = Vec::new();
        let head = read_head(&mut stream, &mut buffer).await.expect("head");
        assert_eq!(head.header("upgrade"), Some("shout/1"));
        let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: shout/1\r\n\r\nWELCOME";
        stream.write_all(switch).await.expect("switch");
        // The client ends its side; only then do we answer.
        stream.read_to_end(&mut buffer).await.expect("client's side ends");
        stream.write_all(&buffer.to_ascii_uppercase()).await.expect("answer");
    });
    let node = Node::new(Role::Primary);
    let proxy = start(&node, settings(addr));
    let mut stream = TcpStream::connect(proxy.addr).await.expect("connect");
    let request = "GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: shout/1\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("send");
    let head = read_until(&mut stream, "WELCOME").await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    stream.write_all(b"hello, half-close").await.expect("send");
    stream.shutdown().await.expect("half-close");
    let mut rest = String::new();
    within(stream.read_to_string(&mut rest)).await.expect("answer");
    assert_eq!(rest, "HELLO, HALF-CLOSE");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_the_application_declines_is_an_ordinary_answer() {
    let (node, app) = (Node::new(Role::Primary), App::saying("no sockets here").await);
    let proxy = start(&node, settings(app.addr));
    let declined = curl(&["-H", "Connection: Upgrade", "-H", "Upgrade: websocket", &proxy.url("/")]).await;
    assert_eq!((declined.status, declined.body.as_str()), (200, "no sockets here"));
    // h2c is not offered: the application must not see the wish either.
    let h2c = curl(&["--http2", &proxy.url("/")]).await;
    assert_eq!((h2c.status, app.last().header("upgrade")), (200, None));
    assert_eq!(app.last().header("http2-settings"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_one_by_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("addr");
    let (next, mut wanted) = tokio::sync::mpsc::channel::<()>(1);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let _ = read_request(&mut stream, &mut Vec::new()).await;
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("head");
        for event in 0.. {
            if wanted.recv().await.is_none() {
                break;
            }
            let data = format!("data: {event}\n\n");
            let chunk = format!("{:x}\r\n{data}\r\n", data.len());
            stream.write_all(chunk.as_bytes()).await.expect("event");
        }
        stream.write_all(b"0\r\n\r\n").await.expect("end");
    });
    let node = Node::new(Role::Primary);
    let proxy = start(&node, settings(addr));
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let mut answer = within(client.get(proxy.url("/")).send()).await.expect("the head comes before any event");
    for event in 0..3 {
        next.send(()).await.expect("app");
        let chunk = within(answer.chunk()).await.expect("read").expect("an event");
        assert_eq!(chunk, format!("data: {event}\n\n"));
    }
    drop(next);
    assert_eq!(within(answer.chunk()).await.expect("end"), None);
}
