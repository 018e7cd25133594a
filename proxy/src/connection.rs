//! One client connection: protocol detection, time limits, and what is known of the client for all its requests.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderValue;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::config::ProxySettings;
use crate::handler;
use crate::metrics::{Held, ProxyMetrics};
use crate::server::Worker;

/// Most header fields of a request.
pub(crate) const HEADERS_MAX: usize = 128;
/// Most bytes of a request's header.
pub(crate) const HEADER_BYTES_MAX: usize = 64 << 10;
/// What an HTTP/2 client without TLS sends first (RFC 9113 §3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const H2_STREAMS_MAX: u32 = 200;
/// A silent client is asked whether it is still there, so that its streams and tunnels do not stay for ever.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Between telling an idle HTTP/2 client to go and closing.
const FAREWELL: Duration = Duration::from_millis(500);

/// Milliseconds on a clock that only this module reads.
fn now_ms() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// What is known of a client, shared by its connection and its requests.
#[derive(Debug)]
pub(crate) struct ClientState {
    pub peer: SocketAddr,
    /// Whether its `X-Forwarded-*` are believed.
    pub trusted: bool,
    /// The peer's address as a header value.
    pub peer_value: HeaderValue,
    /// The last `Forwarded` element: host it was made for, and element.
    pub forwarded: Mutex<Option<(HeaderValue, HeaderValue)>>,
    multiplexed: AtomicBool,
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
}

impl ClientState {
    fn new(peer: SocketAddr, trusted: bool) -> Self {
        let ip = peer.ip().to_canonical().to_string();
        Self {
            peer,
            trusted,
            peer_value: HeaderValue::try_from(ip).unwrap_or(HeaderValue::from_static("unknown")),
            forwarded: Mutex::new(None),
            multiplexed: AtomicBool::new(false),
            active: AtomicUsize::new(0),
            phase_since_ms: AtomicU64::new(now_ms()),
            header_begun: AtomicBool::new(false),
            body_pending: AtomicBool::new(false),
            reset: AtomicBool::new(false),
            header: Mutex::new(Vec::new()),
        }
    }

    fn enter_phase(&self) {
        self.phase_since_ms.store(now_ms(), Ordering::Relaxed);
    }

    fn on_read(&self, bytes: &[u8]) {
        if bytes.is_empty() || self.active.load(Ordering::Relaxed) > 0 || self.multiplexed.load(Ordering::Relaxed) {
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
    fn time_left(&self, limits: &ProxySettings) -> Duration {
        let limit = if self.active.load(Ordering::Relaxed) > 0 {
            let reading = self.body_pending.load(Ordering::Relaxed) && !limits.read_timeout.is_zero();
            let single = !self.multiplexed.load(Ordering::Relaxed);
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
        let passed_ms = now_ms().saturating_sub(self.phase_since_ms.load(Ordering::Relaxed));
        limit.saturating_sub(Duration::from_millis(passed_ms))
    }
}

/// A request in flight, from its header to the end of its answer.
#[derive(Debug)]
pub(crate) struct RequestGuard {
    client: Arc<ClientState>,
    metrics: ProxyMetricsRef,
}

type ProxyMetricsRef = Arc<ProxyMetrics>;

impl RequestGuard {
    pub fn new(client: &Arc<ClientState>, metrics: &Arc<ProxyMetrics>) -> Self {
        client.active.fetch_add(1, Ordering::Relaxed);
        client.header_begun.store(false, Ordering::Relaxed);
        client.body_ended();
        client.enter_phase();
        Self { client: Arc::clone(client), metrics: Arc::clone(metrics) }
    }

    /// The answer cannot be finished: the client must notice. (HTTP/2 resets the one stream by itself.)
    pub fn broken_off(&self) {
        self.metrics.truncated.inc();
        if !self.client.multiplexed.load(Ordering::Relaxed) {
            self.client.reset.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.client.enter_phase();
        self.client.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The client's socket: hands out what was read to detect the protocol, and resets instead of closing where asked.
struct ClientIo {
    stream: TcpStream,
    prefix: Bytes,
    client: Arc<ClientState>,
}

impl AsyncRead for ClientIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if self.prefix.is_empty() {
            std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
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
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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

/// Small packets at once, and a peer that has vanished is noticed. A socket that refuses serves as well.
pub(crate) fn prepare(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_socket_keepalive(stream, true);
    let _ = rustix::net::sockopt::set_tcp_keepidle(stream, KEEPALIVE);
    let _ = rustix::net::sockopt::set_tcp_keepintvl(stream, KEEPALIVE);
}

/// Serves a client until it leaves, a limit is passed, or the proxy drains.
pub(crate) async fn serve(worker: Arc<Worker>, mut stream: TcpStream, peer: SocketAddr) {
    let metrics = Arc::clone(&worker.shared.metrics);
    let _open = Held::new(&metrics.connections);
    let limits = &worker.shared.config.settings;
    prepare(&stream);
    let detected = tokio::select! {
        detected = tokio::time::timeout(limits.read_header_timeout, detect(&mut stream)) => detected,
        () = worker.shared.drain.cancelled() => return,
    };
    let (prefix, h2) = match detected {
        Ok(Ok(Some(found))) => found,
        Ok(Ok(None) | Err(_)) => return,
        Err(_) => {
            metrics.timeouts.inc();
            return;
        }
    };
    let client = Arc::new(ClientState::new(peer, worker.shared.config.trusted.contains(peer.ip())));
    let io = TokioIo::new(ClientIo { stream, prefix, client: Arc::clone(&client) });
    let service = {
        let (worker, client) = (Arc::clone(&worker), Arc::clone(&client));
        service_fn(move |request| {
            let (worker, client) = (Arc::clone(&worker), Arc::clone(&client));
            async move { Ok::<_, std::convert::Infallible>(handler::handle(&worker, &client, request).await) }
        })
    };
    let result = if h2 {
        client.multiplexed.store(true, Ordering::Relaxed);
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE)
            .max_concurrent_streams(H2_STREAMS_MAX)
            .max_header_list_size(HEADER_BYTES_MAX as u32)
            .serve_connection(io, service);
        drive(&worker, &client, connection, http2::Connection::graceful_shutdown).await
    } else {
        let connection = http1::Builder::new()
            .max_headers(HEADERS_MAX)
            .max_header_size(HEADER_BYTES_MAX)
            .header_read_timeout(None)
            .serve_connection(io, service)
            .with_upgrades();
        drive(&worker, &client, connection, http1::UpgradeableConnection::graceful_shutdown).await
    };
    if let Err(error) = result {
        metrics.connection_errors.inc();
        tracing::debug!(%peer, %error, "client connection ended with an error");
    }
}

/// Reads just enough to tell HTTP/2 from HTTP/1. `None`: the client left without a word.
async fn detect(stream: &mut TcpStream) -> io::Result<Option<(Bytes, bool)>> {
    let mut prefix = BytesMut::with_capacity(H2_PREFACE.len());
    loop {
        let missing = H2_PREFACE.len() - prefix.len();
        if missing == 0 {
            return Ok(Some((prefix.freeze(), true)));
        }
        if (&mut *stream).take(missing as u64).read_buf(&mut prefix).await? == 0 {
            return Ok(if prefix.is_empty() { None } else { Some((prefix.freeze(), false)) });
        }
        if !H2_PREFACE.starts_with(&prefix) {
            return Ok(Some((prefix.freeze(), false)));
        }
    }
}

/// How often the limits are looked at: a phase may begin right after a look, so it ends at most this much too late.
fn shortest_limit(limits: &ProxySettings) -> Duration {
    [limits.read_header_timeout, limits.idle_timeout, limits.read_timeout, limits.write_timeout]
        .into_iter()
        .filter(|limit| !limit.is_zero())
        .min()
        .unwrap_or(Duration::from_secs(1))
}

/// Runs the connection under its time limits. One timer per connection, which is only moved when it fires: a request
/// costs no timer at all.
async fn drive<C>(
    worker: &Worker,
    client: &ClientState,
    connection: C,
    graceful_shutdown: fn(Pin<&mut C>),
) -> Result<(), hyper::Error>
where
    C: Future<Output = Result<(), hyper::Error>>,
{
    let limits = &worker.shared.config.settings;
    let mut connection = std::pin::pin!(connection);
    let look_again = shortest_limit(limits);
    let mut timer = std::pin::pin!(tokio::time::sleep(client.time_left(limits).min(look_again)));
    let mut drain = std::pin::pin!(worker.shared.drain.cancelled());
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            result = &mut connection => return result,
            () = &mut timer => {
                let left = client.time_left(limits);
                if left.is_zero() {
                    worker.shared.metrics.timeouts.inc();
                    if draining || !client.multiplexed.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    // HTTP/2 can say that no more requests are taken; a client that is there hears it by then.
                    draining = true;
                    graceful_shutdown(connection.as_mut());
                }
                let next = if left.is_zero() { FAREWELL } else { left.min(look_again) };
                timer.as_mut().reset(tokio::time::Instant::now() + next);
            }
            () = &mut drain, if !draining => {
                draining = true;
                graceful_shutdown(connection.as_mut());
            }
        }
    }
}
