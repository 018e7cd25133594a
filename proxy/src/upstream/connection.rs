//! One HTTP/1.1 connection to an upstream: bytes that were read and not used, and bytes that are to be sent.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::io::poll_read_buf;

use crate::seldom::Seldom;
use crate::socket::poll_send;

/// Room for one read at first; doubled as long as reads fill it.
const READ_BYTES_MIN: usize = 8 << 10;
const READ_BYTES_MAX: usize = 256 << 10;

/// An open connection.
pub(super) struct Connection {
    stream: TcpStream,
    /// What has been read and not been used.
    pub input: BytesMut,
    read_bytes: usize,
    /// What is to be sent.
    pub output: Output,
    /// Of one of the requests on this connection; moved only when it fires. `None`: no request was limited.
    timer: Option<Seldom<Sleep>>,
}

/// What is to be sent: bytes of our own, then a piece of a body, then the end of that piece.
#[derive(Default)]
pub(super) struct Output {
    /// Headers and the beginnings of chunks are appended here.
    pub head: Vec<u8>,
    pub data: Bytes,
    pub tail: &'static [u8],
    /// So much of `head` has been sent.
    head_sent: usize,
    /// Something has been sent since the last [`Output::begin`].
    begun: bool,
}

impl Output {
    /// A new request follows: nothing of it has been sent.
    pub fn begin(&mut self) {
        self.clear();
        self.begun = false;
    }

    fn clear(&mut self) {
        self.head.clear();
        self.head_sent = 0;
        self.data = Bytes::new();
        self.tail = b"";
    }

    /// Whether a byte of the request may have left.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Whether another piece of a body can be taken.
    pub fn has_room(&self) -> bool {
        self.data.is_empty() && self.tail.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.head_sent == self.head.len() && self.has_room()
    }

    fn advance(&mut self, mut count: usize) {
        let of_head = count.min(self.head.len() - self.head_sent);
        self.head_sent += of_head;
        count -= of_head;
        let of_data = count.min(self.data.len());
        self.data.advance(of_data);
        self.tail = self.tail.get(count - of_data..).unwrap_or_default();
    }
}

impl Connection {
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, input: BytesMut::new(), read_bytes: READ_BYTES_MIN, output: Output::default(), timer: None }
    }

    /// Reads more. Ready with zero when the peer has ended its side.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.capacity() - self.input.len() < self.read_bytes / 2 {
            self.input.reserve(self.read_bytes);
        }
        let room = self.input.capacity() - self.input.len();
        let count = ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.input))?;
        if count == room {
            self.read_bytes = (self.read_bytes * 2).min(READ_BYTES_MAX);
        }
        Poll::Ready(Ok(count))
    }

    /// Sends what is to be sent.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let Output { head, data, tail, head_sent, .. } = &self.output;
            let head = head.get(*head_sent..).unwrap_or_default();
            let stream = Pin::new(&mut self.stream);
            let count = match (head, &data[..], *tail) {
                (head, [], []) => ready!(poll_send(stream, cx, &[IoSlice::new(head)])),
                (head, data, tail) => {
                    ready!(poll_send(stream, cx, &[IoSlice::new(head), IoSlice::new(data), IoSlice::new(tail)]))
                }
            }?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.begun = true;
            self.output.advance(count);
        }
        self.output.clear();
        Poll::Ready(Ok(()))
    }

    /// Ready when `deadline` has passed.
    pub fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Seldom::new(sleep_until(deadline)));
        while Pin::new(&mut *timer).poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            // It was set for an earlier request.
            timer.change().reset(deadline);
        }
        Poll::Pending
    }

    #[cfg(test)]
    pub async fn readable(&self) {
        self.stream.readable().await.expect("a socket");
    }

    /// Whether another request can follow on this connection: nothing is under way in either direction.
    pub fn is_at_rest(&self) -> bool {
        self.input.is_empty() && self.output.is_empty()
    }

    /// Gives back memory that one large message took.
    pub fn shrink(&mut self) {
        if self.read_bytes > READ_BYTES_MIN {
            self.read_bytes = READ_BYTES_MIN;
            self.input = BytesMut::new();
        }
        if self.output.head.capacity() > READ_BYTES_MIN {
            self.output.head = Vec::new();
        }
    }

    /// The connection after a change of protocol.
    pub fn into_switched(self) -> Switched {
        let rest = if self.input.is_empty() { Bytes::new() } else { self.input.freeze() };
        Switched { rest, stream: self.stream }
    }
}

/// A connection that speaks another protocol from here on.
pub(crate) struct Switched {
    /// What came together with the answer's header.
    rest: Bytes,
    stream: TcpStream,
}

impl AsyncRead for Switched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest.split_to(count));
        if self.rest.is_empty() {
            // A tunnel may live long: the memory goes.
            self.rest = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Switched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use futures_util::future::poll_immediate;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let stream = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connect");
        (Connection::new(stream), listener.accept().await.expect("accept").0)
    }

    #[tokio::test]
    async fn a_timer_left_by_one_request_serves_the_next() {
        let (mut connection, _peer) = pair().await;
        let (soon, far) = (Duration::from_millis(20), Duration::from_secs(1000));
        for _ in 0..3 {
            // Left behind by a task that has gone, and it fires when nobody waits.
            let first = Instant::now() + soon;
            connection = tokio::spawn(async move {
                poll_immediate(poll_fn(|cx| connection.poll_deadline(cx, first))).await;
                connection
            })
            .await
            .expect("task");
            tokio::time::sleep_until(first + soon).await;
            let second = Instant::now() + soon;
            poll_fn(|cx| connection.poll_deadline(cx, second)).await;
            assert!(Instant::now() >= second, "too early");
            // (Only then: a request that was late takes its connection along.)
            connection.timer = None;
        }
        let third = Instant::now() + far;
        assert!(poll_immediate(poll_fn(|cx| connection.poll_deadline(cx, third))).await.is_none());
    }

    #[tokio::test]
    async fn pieces_are_sent_in_their_order_whatever_the_socket_takes_at_once() {
        let (mut connection, mut peer) = pair().await;
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).await.expect("read");
            all
        });
        let mut expected = Vec::new();
        for size in [0, 1, 3000, 5_000_000] {
            connection.output.begin();
            assert!(!connection.output.has_begun());
            let head = vec![b'h'; 700];
            let data = Bytes::from_iter((0..size).map(|n: u32| n as u8));
            let tail: &[u8] = if size == 1 { b"" } else { b"\r\n" };
            expected.extend([&head[..], &data, tail].concat());
            connection.output.head.extend_from_slice(&head);
            (connection.output.data, connection.output.tail) = (data, tail);
            poll_fn(|cx| connection.poll_flush(cx)).await.expect("send");
            assert!(connection.is_at_rest() && connection.output.has_begun());
        }
        drop(connection);
        assert!(reading.await.expect("read") == expected);
    }
}
