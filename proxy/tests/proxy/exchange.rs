//! One request and its answer between the proxy and an application that speaks HTTP/1.1 in every way that is allowed, and
//! in some that are not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use litefs_proxy::{ProxySettings, Role};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::support::*;

/// An application whose connections are served one after the other; counts from 0.
async fn app<F>(serve: impl Fn(usize, TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("addr");
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.expect("accept");
            serve(number, stream).await;
        }
    });
    addr
}

/// Answers the first request of each connection with these bytes, and ends the connection.
async fn app_answering(answer: &'static str) -> SocketAddr {
    app(move |_, mut stream| async move {
        if read_request(&mut stream, &mut Vec::new()).await.is_some() {
            stream.write_all(answer.as_bytes()).await.expect("answer");
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_may_come_byte_by_byte() {
    let addr = app(|_, mut stream| async move {
        read_request(&mut stream, &mut Vec::new()).await.expect("request");
        stream.set_nodelay(true).expect("nodelay");
        let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a-long-name.css>\r\n\r\n";
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let body = "3;x=y\r\nabc\r\n0a\r\n0123456789\r\n0\r\n\r\n";
        for byte in [hint, head, body].concat().bytes() {
            stream.write_all(&[byte]).await.expect("byte");
            tokio::task::yield_now().await;
        }
    })
    .await;
    let proxy = start(&Node::new(Role::Primary), settings(addr));
    let (got, _) = raw(proxy.addr, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(
        got.starts_with("HTTP/1.1 103 Early Hints\r\nlink: </a-long-name.css>\r\n\r\nHTTP/1.1 200 OK\r\n"),
        "{got}"
    );
    // (The pieces of a chunk that comes in pieces are passed on as they come.)
    let body = got.rsplit("\r\n\r\n").nth(1).expect("a body");
    let data: String = body.lines().filter(|line| !line.is_empty()).skip(1).step_by(2).collect();
    assert_eq!((data.as_str(), got.ends_with("\r\n0\r\n\r\n")), ("abc0123456789", true), "{got}");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_applications_end_their_answer_with_the_connection() {
    for answer in [
        "HTTP/1.0 200 OK\r\n\r\nto the end",
        "HTTP/1.1 200 OK\r\n\r\nto the end",
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 10\r\n\r\nto the end",
    ] {
        let proxy = start(&Node::new(Role::Primary), settings(app_answering(answer).await));
        for _ in 0..2 {
            let got = curl(&[&proxy.url("/")]).await;
            assert_eq!((got.status, got.body.as_str(), got.exit), (200, "to the end", 0), "{answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_is_a_bad_gateway_and_harms_nobody_else() {
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: y\r\n folded\r\n\r\n",
        "HTTP/3 200 OK\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "",
    ] {
        let proxy = start(&Node::new(Role::Primary), settings(app_answering(answer).await));
        let got = curl(&["-d", "x", &proxy.url("/")]).await;
        assert_eq!((got.status, got.header("litefs-outcome")), (502, Some("unconfirmed")), "{answer:?}");
    }
}

/// Bytes after an answer belong to nothing: they must not become the next client's answer.
#[tokio::test(flavor = "multi_thread")]
async fn what_follows_an_answer_unasked_is_never_passed_on() {
    for late in [false, true] {
        let (go_on, wanted) = mpsc::channel::<()>(1);
        let (done, mut written) = mpsc::channel::<()>(1);
        let wanted = Arc::new(tokio::sync::Mutex::new(wanted));
        let addr = app(move |number, mut stream| {
            let (wanted, done) = (Arc::clone(&wanted), done.clone());
            async move {
                read_request(&mut stream, &mut Vec::new()).await.expect("request");
                let (answer, more) = (ok(&format!("own {number}")), ok("of somebody else"));
                let together = if late { answer } else { [&answer[..], &more].concat() };
                stream.write_all(&together).await.expect("answer");
                if late {
                    // The client has its answer: the connection lies in the pool.
                    wanted.lock().await.recv().await.expect("the test goes on");
                    stream.write_all(&more).await.expect("more");
                    done.send(()).await.expect("the test waits");
                }
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        })
        .await;
        let proxy = start(&Node::new(Role::Primary), ProxySettings { workers: 1, ..settings(addr) });
        for number in 0..4 {
            assert_eq!(curl(&[&proxy.url("/")]).await.body, format!("own {number}"), "late: {late}");
            if late {
                go_on.send(()).await.expect("the application waits");
                within(written.recv()).await.expect("written");
            }
        }
    }
}

/// A connection on which a part of a request has not been sent is of no use, whatever the answer says.
#[tokio::test(flavor = "multi_thread")]
async fn half_a_request_is_never_followed_by_another() {
    for framing in ["Content-Length: 100\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"] {
        let connections = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&connections);
        let addr = app(move |_, mut stream| {
            count.fetch_add(1, Ordering::SeqCst);
            async move {
                tokio::spawn(async move {
                    let mut buffer = Vec::new();
                    read_head(&mut stream, &mut buffer).await.expect("head");
                    stream.write_all(&ok("enough")).await.expect("answer");
                    // Whatever comes from now on is taken for the body that was announced.
                    let _ = stream.read_to_end(&mut buffer).await;
                });
            }
        })
        .await;
        let proxy = start(&Node::new(Role::Primary), ProxySettings { workers: 1, ..settings(addr) });
        let mut client = TcpStream::connect(proxy.addr).await.expect("connect");
        client.write_all(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}").as_bytes()).await.expect("send");
        read_until(&mut client, "enough").await;
        assert_eq!(curl(&[&proxy.url("/")]).await.body, "enough", "{framing:?}");
        assert_eq!(connections.load(Ordering::SeqCst), 2, "{framing:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_may_have_been_executed_is_not_repeated() {
    let requests = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&requests);
    // Answers the first request of every second connection, and none besides.
    let addr = app(move |number, mut stream| {
        let count = Arc::clone(&count);
        async move {
            let mut buffer = Vec::new();
            if number % 2 == 1 {
                read_request(&mut stream, &mut buffer).await.expect("request");
                stream.write_all(&ok("fine")).await.expect("answer");
            }
            if read_request(&mut stream, &mut buffer).await.is_some() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    })
    .await;
    let proxy = start(&Node::new(Role::Primary), ProxySettings { workers: 1, ..settings(addr) });
    for method in ["POST", "PATCH"] {
        for pooled in [false, true] {
            if pooled {
                assert_eq!(curl(&[&proxy.url("/")]).await.body, "fine");
            }
            let before = requests.load(Ordering::SeqCst);
            let got = curl(&["-X", method, &proxy.url("/")]).await;
            assert_eq!((got.status, got.header("litefs-outcome")), (502, Some("unconfirmed")), "{method} {pooled}");
            assert_eq!(requests.load(Ordering::SeqCst), before + 1, "{method} {pooled}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_may_answer_before_it_has_read_the_request() {
    // It reads no more and closes, or it waits until the client has had enough.
    for closes in [true, false] {
        let addr = app(move |_, mut stream| async move {
            read_head(&mut stream, &mut Vec::new()).await.expect("head");
            stream.write_all(&answer("413 Too Large", "", "no more")).await.expect("answer");
            if closes {
                stream.shutdown().await.expect("end");
                tokio::time::sleep(Duration::from_millis(20)).await;
            } else {
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        })
        .await;
        let proxy = start(&Node::new(Role::Primary), settings(addr));
        let mut client = TcpStream::connect(proxy.addr).await.expect("connect");
        let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n";
        client.write_all(head.as_bytes()).await.expect("head");
        let (mut reading, mut writing) = client.into_split();
        let uploading = tokio::spawn(async move { while writing.write_all(&[b'x'; 1 << 16]).await.is_ok() {} });
        let mut buffer = Vec::new();
        let got = within(read_head(&mut reading, &mut buffer)).await.expect("an answer");
        assert_eq!(got.target, "413", "closes: {closes}");
        drop(reading);
        within(uploading).await.expect("the upload ends");
        eventually("nothing in flight", || proxy.metrics.in_flight_now() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_breaks_off_never_looks_complete_to_the_application() {
    let framings = ["Content-Length: 100\r\n\r\npart", "Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n"];
    for framing in framings {
        let (saw, mut seen) = mpsc::channel(2);
        let addr = app(move |_, mut stream| {
            let saw = saw.clone();
            async move {
                let mut all = Vec::new();
                while !String::from_utf8_lossy(&all).contains("part") {
                    assert!(stream.read_buf(&mut all).await.expect("read") > 0, "ended before its part");
                }
                saw.send(String::new()).await.expect("the test waits");
                let _ = stream.read_to_end(&mut all).await;
                saw.send(String::from_utf8(all).expect("text")).await.expect("the test waits");
            }
        })
        .await;
        let proxy = start(&Node::new(Role::Primary), settings(addr));
        let mut client = TcpStream::connect(proxy.addr).await.expect("connect");
        client.write_all(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}").as_bytes()).await.expect("send");
        within(seen.recv()).await.expect("the part");
        drop(client);
        let seen = within(seen.recv()).await.expect("the end");
        assert!(!seen.ends_with("\r\n0\r\n\r\n"), "{seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_and_announced_trailers_pass_in_both_directions() {
    let addr = app(|_, mut stream| async move {
        let mut all = Vec::new();
        while !all.ends_with(b"x-sum: 7\r\n\r\n") {
            assert!(stream.read_buf(&mut all).await.expect("read") > 0, "{:?}", String::from_utf8_lossy(&all));
        }
        let text = String::from_utf8(all).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("GET / HTTP/1.1\r\n") && head.contains("\r\ntransfer-encoding: chunked"), "{head}");
        assert!(!head.contains("content-length") && head.contains("\r\ntrailer: X-Sum"), "{head}");
        assert_eq!(body, "5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n");
        let head = "HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n";
        let body = "2\r\nhi\r\n0\r\nX-Sum: 8\r\nX-Other: 1\r\n\r\n";
        stream.write_all(format!("{head}{body}").as_bytes()).await.expect("answer");
    })
    .await;
    let proxy = start(&Node::new(Role::Primary), settings(addr));
    let head = "GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\
                Connection: close, TE\r\n\r\n";
    let body = "5\r\nhello\r\n0\r\nX-Sum: 7\r\nX-Secret: 1\r\n\r\n";
    let (got, _) = raw(proxy.addr, format!("{head}{body}").as_bytes()).await;
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{got}");
    assert!(got.ends_with("\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 8\r\n\r\n"), "{got}");
}

/// Both directions at once, more than all buffers hold: nobody waits for the other, and no byte is lost.
#[tokio::test(flavor = "multi_thread")]
async fn an_application_may_stream_its_answer_while_it_reads_the_request() {
    const BYTES: usize = 40_000_000;
    for chunked in [false, true] {
        let addr = app(move |_, mut stream| async move {
            let mut buffer = Vec::new();
            read_head(&mut stream, &mut buffer).await.expect("head");
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.expect("head");
            let (mut reading, mut writing) = stream.into_split();
            if !chunked {
                writing.write_all(&buffer).await.expect("echo");
                let rest = (BYTES - buffer.len()) as u64;
                tokio::io::copy(&mut reading.take(rest), &mut writing).await.expect("echo");
                return;
            }
            // What comes is framed: not compared, but it must be read.
            let sending = tokio::spawn(async move {
                writing.write_all(&pattern(BYTES - 1)).await.expect("send");
                writing
            });
            let mut tail = buffer;
            while !tail.ends_with(b"\r\n0\r\n\r\n") {
                tail.drain(..tail.len().saturating_sub(16));
                assert!(reading.read_buf(&mut tail).await.expect("read") > 0);
            }
            // An answer that is complete ends the exchange.
            let last = pattern(BYTES).pop().expect("a byte");
            sending.await.expect("sent").write_all(&[last]).await.expect("send");
        })
        .await;
        let proxy = start(&Node::new(Role::Primary), settings(addr));
        let client = TcpStream::connect(proxy.addr).await.expect("connect");
        let (mut reading, mut writing) = client.into_split();
        let framing = if chunked { "Transfer-Encoding: chunked".into() } else { format!("Content-Length: {BYTES}") };
        let uploading = tokio::spawn(async move {
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
            writing.write_all(head.as_bytes()).await.expect("head");
            for piece in pattern(BYTES).chunks(if chunked { 100_000 } else { BYTES }) {
                if chunked {
                    writing.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await.expect("chunk");
                }
                writing.write_all(piece).await.expect("body");
                if chunked {
                    writing.write_all(b"\r\n").await.expect("chunk");
                }
            }
            if chunked {
                writing.write_all(b"0\r\n\r\n").await.expect("end");
            }
            writing
        });
        let mut buffer = Vec::new();
        within(read_head(&mut reading, &mut buffer)).await.expect("head");
        while buffer.len() < BYTES {
            assert!(within(reading.read_buf(&mut buffer)).await.expect("read") > 0, "after {}", buffer.len());
        }
        assert!(buffer == pattern(BYTES), "chunked: {chunked}");
        drop(within(uploading).await.expect("sent"));
    }
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8).collect()
}
