//! Connections to the application that are used again, and end when nobody expects it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use litefs_proxy::{ProxySettings, Role};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

/// Answers with the target, and ends a connection after some answers without a word about it.
async fn app_that_leaves() -> (std::net::SocketAddr, Arc<parking_lot::Mutex<HashMap<String, usize>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("addr");
    let executed = Arc::<parking_lot::Mutex<HashMap<String, usize>>>::default();
    let log = Arc::clone(&executed);
    let connections = AtomicUsize::new(0);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (log, answers) = (Arc::clone(&log), 1 + connections.fetch_add(1, Ordering::Relaxed) % 7);
            tokio::spawn(async move {
                let mut buffer = Vec::new();
                for _ in 0..answers {
                    let Some(request) = read_request(&mut stream, &mut buffer).await else { return };
                    *log.lock().entry(request.target.clone()).or_default() += 1;
                    if stream.write_all(&ok(&request.target)).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (addr, executed)
}

/// Sends all requests at once, and reads the answers' statuses and bodies in their order.
async fn pipelined(addr: std::net::SocketAddr, method: &str, targets: &[String]) -> Vec<(String, String)> {
    let stream = TcpStream::connect(addr).await.expect("connect");
    let (mut reading, mut writing) = stream.into_split();
    let requests: String = targets
        .iter()
        .map(|target| format!("{method} {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab"))
        .collect();
    let sending = tokio::spawn(async move {
        writing.write_all(requests.as_bytes()).await.expect("send");
        writing
    });
    let (mut buffer, mut answers) = (Vec::new(), Vec::new());
    for _ in targets {
        let head = within(read_head(&mut reading, &mut buffer)).await.expect("an answer");
        let length: usize = head.header("content-length").and_then(|l| l.parse().ok()).expect("length");
        while buffer.len() < length {
            assert!(within(reading.read_buf(&mut buffer)).await.expect("read") > 0, "ended");
        }
        let body = String::from_utf8(buffer.drain(..length).collect()).expect("text");
        answers.push((head.target, body));
    }
    drop(sending.await.expect("sent"));
    answers
}

/// Pipelined requests keep a task busy until it has to let others run, at any point of an exchange.
#[tokio::test(flavor = "multi_thread")]
async fn every_request_has_its_own_answer_and_a_write_is_executed_once() {
    let node = Node::new(Role::Primary);
    let (addr, executed) = app_that_leaves().await;
    let proxy = start(&node, ProxySettings { workers: 1, ..settings(addr) });
    let clients = (0..8).map(|client| {
        let (addr, targets) = (proxy.addr, (0..400).map(|n| format!("/{client}/{n}")).collect::<Vec<_>>());
        tokio::spawn(async move {
            let answers = pipelined(addr, "POST", &targets).await;
            (targets, answers)
        })
    });
    let clients: Vec<_> = clients.collect();
    for client in clients {
        let (targets, answers) = within(client).await.expect("client");
        for (target, (status, body)) in targets.iter().zip(answers) {
            match status.as_str() {
                "200" => assert_eq!(body, *target),
                // The connection's end crossed the request.
                _ => assert_eq!(status, "502", "{target}: {body}"),
            }
        }
    }
    let executed = executed.lock();
    assert!(executed.len() > 1000 && executed.values().all(|times| *times == 1), "{executed:?}");
    assert_eq!(proxy.metrics.in_flight_now(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_none_does_not_repeat_the_request() {
    let node = Node::new(Role::Primary);
    let app = App::start(|request| match request.target.as_str() {
        "/many" => answer("200 OK", &"X-A: 1\r\n".repeat(150), "too many fields"),
        "/garbage" => b"this is not HTTP\r\n\r\n".to_vec(),
        _ => ok("fine"),
    })
    .await;
    let proxy = start(&node, ProxySettings { workers: 1, ..settings(app.addr) });
    for (index, target) in ["/many", "/garbage"].into_iter().enumerate() {
        // The connection goes to the pool.
        assert_eq!(curl(&[&proxy.url("/")]).await.status, 200);
        let got = curl(&["-X", "DELETE", &proxy.url(target)]).await;
        assert_eq!((got.status, got.header("litefs-outcome")), (502, Some("unconfirmed")), "{target}");
        assert_eq!(app.count(), 2 * (index + 1), "{target} was sent once");
    }
}

/// A pooled connection that has ended is noticed before anything is sent on it: not even a write is lost by it.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ended_in_the_pool_costs_no_write() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("addr");
    let ended = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&ended);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                if read_request(&mut stream, &mut Vec::new()).await.is_some() {
                    let _ = stream.write_all(&ok("fine")).await;
                }
                // By an end, by a reset, and by words that nobody asked for.
                match count.load(Ordering::SeqCst) % 3 {
                    0 => {}
                    1 => stream.set_zero_linger().expect("linger"),
                    _ => drop(stream.write_all(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n").await),
                }
                drop(stream);
                count.fetch_add(1, Ordering::SeqCst);
            });
        }
    });
    let node = Node::new(Role::Primary);
    let proxy = start(&node, ProxySettings { workers: 1, ..settings(addr) });
    for round in 0..30 {
        let got = curl(&["-d", "x", &proxy.url("/")]).await;
        assert_eq!((got.status, got.body.as_str()), (200, "fine"), "{round}");
        eventually("it ends", || ended.load(Ordering::SeqCst) == round + 1).await;
    }
}
