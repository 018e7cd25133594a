//! Clients and applications that misbehave, and a proxy that stops.

use std::time::Duration;

use litefs_proxy::{ProxySettings, Role};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::support::*;

const SHORT: Duration = Duration::from_millis(50);

/// An application that does this with each connection after it has read a request.
async fn app_that<F>(act: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> std::net::SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("addr");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if read_request(&mut stream, &mut Vec::new()).await.is_some() {
                tokio::spawn(act(stream));
            }
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_cancels_the_request_upstream() {
    let ((came, asked), (gone, cancelled)) = (oneshot::channel(), oneshot::channel());
    let ends = parking_lot::Mutex::new(Some((came, gone)));
    let addr = app_that(move |mut stream| {
        let ends = ends.lock().take();
        async move {
            let (came, gone) = ends.expect("one request");
            let _ = came.send(());
            // The end of the proxy's side is the cancellation.
            let _ = stream.read_to_end(&mut Vec::new()).await;
            let _ = gone.send(());
        }
    })
    .await;
    let node = Node::new(Role::Primary);
    let proxy = start(&node, settings(addr));
    let mut client = TcpStream::connect(proxy.addr).await.expect("connect");
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("send");
    // Not sooner: a request that is in flight need not be on its way to the application yet.
    within(asked).await.expect("asked");
    assert_eq!(proxy.metrics.in_flight_now(), 1);
    drop(client);
    within(cancelled).await.expect("cancelled");
    eventually("nothing in flight", || proxy.metrics.in_flight_now() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_is_never_passed_off_as_complete() {
    let heads = ["Content-Length: 100\r\n\r\npart", "Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n"];
    for head in heads {
        let addr = app_that(move |mut stream| async move {
            let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\n{head}").as_bytes()).await;
        })
        .await;
        let node = Node::new(Role::Primary);
        let proxy = start(&node, settings(addr));
        let got = curl(&[&proxy.url("/")]).await;
        assert!(got.exit != 0, "{head:?}: {got:?}");
        // An old client has only the connection's end to go by.
        let (got, reset) = raw(proxy.addr, b"GET / HTTP/1.0\r\n\r\n").await;
        assert!(reset, "{head:?}: {got:?}");
        assert_eq!(curl(&[&proxy.url("/litefs/health")]).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_silence_from_the_application_are_a_bad_gateway_and_a_timeout() {
    let node = Node::new(Role::Primary);
    let garbage = app_that(|mut stream| async move {
        let _ = stream.write_all(b"this is not HTTP\r\n\r\n").await;
    })
    .await;
    assert_eq!(curl(&[&start(&node, settings(garbage)).url("/")]).await.status, 502);
    let silent = app_that(|stream| async move {
        tokio::time::sleep(Duration::from_secs(600)).await;
        drop(stream);
    })
    .await;
    let proxy = start(&node, ProxySettings { response_timeout: SHORT, ..settings(silent) });
    assert_eq!(curl(&[&proxy.url("/")]).await.status, 504);
    assert_eq!(proxy.metrics.decided("timeout"), 1);
    let write = curl(&["-d", "x", &proxy.url("/")]).await;
    assert_eq!((write.status, write.header("litefs-outcome")), (504, Some("unconfirmed")));
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_idle_clients_are_closed() {
    let (node, app) = (Node::new(Role::Primary), App::saying("ok").await);
    let slow_header = start(&node, ProxySettings { read_header_timeout: SHORT, ..settings(app.addr) });
    for begin in ["", "GET / HT", "GET / HTTP/1.1\r\nHost: a\r\nX-"] {
        let (got, _) = raw(slow_header.addr, begin.as_bytes()).await;
        assert_eq!(got, "", "{begin:?}");
    }
    let idle = start(&node, ProxySettings { idle_timeout: SHORT, ..settings(app.addr) });
    let (got, _) = raw(idle.addr, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 200 OK"), "{got}");
    let slow_body = start(&node, ProxySettings { read_timeout: SHORT, ..settings(app.addr) });
    let (got, _) = raw(slow_body.addr, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nslow").await;
    assert_eq!(got, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_slower_than_the_write_timeout_is_broken_off() {
    let silent = app_that(|stream| async move {
        tokio::time::sleep(Duration::from_secs(600)).await;
        drop(stream);
    })
    .await;
    let node = Node::new(Role::Primary);
    let limits = ProxySettings { write_timeout: SHORT, idle_timeout: SHORT, ..settings(silent) };
    let proxy = start(&node, limits);
    let (got, _) = raw(proxy.addr, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(got, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_holds_up_nobody_else() {
    let addr = app_that(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").await;
        let chunk = vec![b'x'; 1 << 16];
        while stream.write_all(&chunk).await.is_ok() {}
    })
    .await;
    let node = Node::new(Role::Primary);
    let proxy = start(&node, ProxySettings { workers: 1, ..settings(addr) });
    let mut lazy = TcpStream::connect(proxy.addr).await.expect("connect");
    lazy.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("send");
    read_until(&mut lazy, "xxxx").await;
    assert_eq!(curl(&[&proxy.url("/litefs/health")]).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_wait_their_turn() {
    let (node, app) = (Node::new(Role::Primary), App::saying("ok").await);
    let proxy = start(&node, ProxySettings { max_connections: 1, ..settings(app.addr) });
    let mut first = TcpStream::connect(proxy.addr).await.expect("connect");
    first.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("send");
    read_until(&mut first, "ok").await;
    let url = proxy.url("/");
    let second = tokio::spawn(async move { curl(&[&url]).await });
    drop(first);
    assert_eq!(second.await.expect("curl").status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_proxy_finishes_what_it_began() {
    let (finish, wanted) = oneshot::channel::<()>();
    let wanted = parking_lot::Mutex::new(Some(wanted));
    let addr = app_that(move |mut stream| {
        let wanted = wanted.lock().take();
        async move {
            let _ = wanted.expect("one request").await;
            let _ = stream.write_all(&ok("finished")).await;
        }
    })
    .await;
    let node = Node::new(Role::Primary);
    let mut proxy = start(&node, ProxySettings { drain_timeout: Duration::from_secs(60), ..settings(addr) });
    // An idle connection must not hold up the end.
    let mut idle = TcpStream::connect(proxy.addr).await.expect("connect");
    let url = proxy.url("/");
    let in_flight = tokio::spawn(async move { curl(&[&url]).await });
    eventually("in flight", || proxy.metrics.in_flight_now() == 1).await;
    proxy.stop();
    assert_eq!(within(idle.read(&mut [0; 1])).await.expect("closed"), 0);
    within(async {
        while TcpStream::connect(proxy.addr).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    finish.send(()).expect("app waits");
    assert_eq!(in_flight.await.expect("curl").body, "finished");
    within(proxy.done.take().expect("running")).await.expect("task").expect("clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_proxy_does_not_wait_for_ever() {
    let silent = app_that(|stream| async move {
        tokio::time::sleep(Duration::from_secs(600)).await;
        drop(stream);
    })
    .await;
    let node = Node::new(Role::Primary);
    let mut proxy = start(&node, ProxySettings { drain_timeout: SHORT, ..settings(silent) });
    let url = proxy.url("/");
    let in_flight = tokio::spawn(async move { curl(&[&url]).await });
    eventually("in flight", || proxy.metrics.in_flight_now() == 1).await;
    proxy.stop();
    within(proxy.done.take().expect("running")).await.expect("task").expect("end");
    assert_ne!(in_flight.await.expect("curl").exit, 0);
}

/// Clients, their tasks, pooled connections and timers know each other; the end must not need them to let go.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_proxy_is_left_when_it_has_stopped() {
    let app = App::saying("fine").await;
    let silent = app_that(|stream| async move {
        tokio::time::sleep(Duration::from_secs(600)).await;
        drop(stream);
    })
    .await;
    for (target, request) in [
        (app.addr, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (app.addr, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"),
        (silent, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (silent, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx"),
        (silent, "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"),
    ] {
        let node = Node::new(Role::Primary);
        let mut proxy = start(&node, ProxySettings { drain_timeout: SHORT, ..settings(target) });
        let mut client = TcpStream::connect(proxy.addr).await.expect("connect");
        client.write_all(request.as_bytes()).await.expect("send");
        if target == silent {
            eventually("in flight", || proxy.metrics.in_flight_now() == 1).await;
        } else {
            read_until(&mut client, "fine").await;
        }
        proxy.stop();
        within(proxy.done.take().expect("running")).await.expect("task").expect("end");
        assert_eq!(proxy.metrics.in_flight_now(), 0, "{request}");
        // The thread that asks the engine ends a moment later.
        eventually("dropped", || std::sync::Arc::strong_count(&node) == 1).await;
    }
}
