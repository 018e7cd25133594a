//! What is known of one client, and its socket.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, HeaderValue, StatusCode};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::clock::coarse_ms;
use crate::config::ProxySettings;
use crate::connection::HEADER_BYTES_MAX;
use crate::forwarded::LastFields;
use crate::headers;
use crate::server::Worker;
use crate::socket::poll_send;

/// What is known of a client, shared by its connection and its requests.
pub(crate) struct ClientState {
    /// Who serves it.
    pub worker: Arc<Worker>,
    pub peer: SocketAddr,
    /// Whether its `X-Forwarded-*` are believed.
    pub trusted: bool,
    /// The peer's address as a header value.
    pub peer_value: HeaderValue,
    /// What its last request was given to say who it is.
    pub forwarded: LastFields,
    /// HTTP/2: many requests at once.
    pub multiplexed: bool,
    /// Requests in flight.
    active: AtomicUsize,
    /// When the present phase (idle, reading a header, in flight) began.
    phase_since_ms: AtomicU64,
    header_begun: AtomicBool,
    body_pending: AtomicBool,
    /// The client must see a reset, not an end.
    reset: AtomicBool,
    /// Raw bytes of the header being read, to see what the parser smooths over.
    header: Mutex<Vec<u8>>,
    /// Interim answers (1xx) on their way; hyper's server cannot send them.
    interim: Mutex<Vec<u8>>,
    interim_pending: AtomicBool,
    /// Everything hyper wanted to send so far has been sent: an interim answer would not land in the middle of another.
    all_sent: AtomicBool,
}

impl ClientState {
    pub fn new(worker: &Arc<Worker>, peer: SocketAddr, multiplexed: bool) -> Self {
        let ip = peer.ip().to_canonical().to_string();
        Self {
            trusted: worker.shared.config.trusted.contains(peer.ip()),
            worker: Arc::clone(worker),
            peer,
            peer_value: HeaderValue::try_from(ip).unwrap_or(HeaderValue::from_static("unknown")),
            forwarded: LastFields::default(),
            multiplexed,
            active: AtomicUsize::new(0),
            phase_since_ms: AtomicU64::new(coarse_ms()),
            header_begun: AtomicBool::new(false),
            body_pending: AtomicBool::new(false),
            reset: AtomicBool::new(false),
            header: Mutex::new(Vec::new()),
            interim: Mutex::new(Vec::new()),
            interim_pending: AtomicBool::new(false),
            all_sent: AtomicBool::new(true),
        }
    }

    /// Passes an interim answer on (RFC 9110 §15.2). Left out where that is not possible: it is a hint.
    pub fn send_interim(&self, status: StatusCode, fields: &HeaderMap) {
        if self.multiplexed || !self.all_sent.load(Ordering::Relaxed) {
            return;
        }
        let mut interim = self.interim.lock();
        if interim.len() > HEADER_BYTES_MAX {
            return;
        }
        let reason = status.canonical_reason().unwrap_or_default();
        interim.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).as_bytes());
        for (name, value) in fields.iter().filter(|(name, _)| !headers::is_hop_by_hop(name)) {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                interim.extend_from_slice(part);
            }
        }
        interim.extend_from_slice(b"\r\n");
        self.interim_pending.store(true, Ordering::Relaxed);
    }

    fn enter_phase(&self) {
        self.phase_since_ms.store(coarse_ms(), Ordering::Relaxed);
    }

    fn on_read(&self, bytes: &[u8]) {
        if bytes.is_empty() || self.active.load(Ordering::Relaxed) > 0 || self.multiplexed {
            return;
        }
        let mut header = self.header.lock();
        if !self.header_begun.swap(true, Ordering::Relaxed) {
            header.clear();
            self.enter_phase();
        }
        if header.len() + bytes.len() <= 2 * HEADER_BYTES_MAX {
            header.extend_from_slice(bytes);
        }
    }

    /// Whether the raw header of the request that just began names `Content-Length`. The parser drops that field when
    /// `Transfer-Encoding` is there too, which is safe for us, but such a request is an attempt at smuggling.
    pub fn raw_header_has_content_length(&self) -> bool {
        let header = self.header.lock();
        let field = b"content-length";
        header
            .split(|&b| b == b'\n')
            .skip(1)
            .take_while(|line| !line.trim_ascii().is_empty())
            .any(|line| line.get(..field.len()).is_some_and(|name| name.eq_ignore_ascii_case(field)))
    }

    pub fn body_started(&self) {
        self.body_pending.store(true, Ordering::Relaxed);
    }

    pub fn body_ended(&self) {
        self.body_pending.store(false, Ordering::Relaxed);
    }

    /// How long the present phase may still last.
    pub fn time_left(&self, limits: &ProxySettings) -> Duration {
        let limit = if self.active.load(Ordering::Relaxed) > 0 {
            let reading = self.body_pending.load(Ordering::Relaxed) && !limits.read_timeout.is_zero();
            let single = !self.multiplexed;
            match (single && reading, single && !limits.write_timeout.is_zero()) {
                (true, true) => limits.read_timeout.min(limits.write_timeout),
                (true, false) => limits.read_timeout,
                (false, true) => limits.write_timeout,
                // Not limited: only look again when a limit may have begun to count.
                (false, false) => return limits.idle_timeout,
            }
        } else if self.header_begun.load(Ordering::Relaxed) {
            limits.read_header_timeout
        } else {
            limits.idle_timeout
        };
        let passed_ms = coarse_ms().saturating_sub(self.phase_since_ms.load(Ordering::Relaxed));
        limit.saturating_sub(Duration::from_millis(passed_ms))
    }
}

/// A request in flight, from its header to the end of its answer.
pub(crate) struct RequestGuard {
    pub client: Arc<ClientState>,
}

impl RequestGuard {
    pub fn new(client: Arc<ClientState>) -> Self {
        client.worker.shared.metrics.in_flight.inc();
        client.active.fetch_add(1, Ordering::Relaxed);
        client.header_begun.store(false, Ordering::Relaxed);
        client.body_ended();
        client.enter_phase();
        Self { client }
    }

    /// The answer cannot be finished: the client must notice. (HTTP/2 resets the one stream by itself.)
    pub fn broken_off(&self) {
        self.client.worker.shared.metrics.truncated.inc();
        if !self.client.multiplexed {
            self.client.reset.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.client.enter_phase();
        self.client.active.fetch_sub(1, Ordering::Relaxed);
        self.client.worker.shared.metrics.in_flight.dec();
    }
}

/// The client's socket: hands out what was read to detect the protocol, and resets instead of closing where asked.
pub(crate) struct ClientIo {
    pub stream: TcpStream,
    pub prefix: Bytes,
    pub client: Arc<ClientState>,
}

impl ClientIo {
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.client.interim_pending.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let mut interim = self.client.interim.lock();
        while !interim.is_empty() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &interim))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            interim.drain(..count);
        }
        self.client.interim_pending.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if self.prefix.is_empty() {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        } else {
            let count = self.prefix.len().min(buf.remaining());
            buf.put_slice(self.prefix.get(..count).unwrap_or_default());
            self.prefix.advance(count);
        }
        self.client.on_read(buf.filled().get(before..).unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(cx))?;
        self.client.all_sent.store(false, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(cx))?;
        self.client.all_sent.store(false, Ordering::Relaxed);
        poll_send(Pin::new(&mut self.stream), cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes the socket when its own buffers are empty.
        self.client.all_sent.store(true, Ordering::Relaxed);
        ready!(self.poll_interim(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.client.reset.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for ClientIo {
    fn drop(&mut self) {
        if self.client.reset.load(Ordering::Relaxed) {
            // Failing leaves an ordinary close, which most framings show as truncated, too.
            let _ = self.stream.set_zero_linger();
        }
    }
}
