//! One client connection: protocol detection and time limits.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::client::{ClientIo, ClientState};
use crate::config::ProxySettings;
use crate::handler;
use crate::metrics::{Held, ProxyMetrics};
use crate::seldom::Seldom;
use crate::server::{Shared, Worker};

/// Most header fields that hyper reads unless told otherwise (another limit costs an allocation per message).
pub(crate) const HEADERS_READ_MAX: usize = 100;
/// Most header fields of a request, and of the application's answer: the other node must be able to read them together
/// with what this one adds (a request: `X-Forwarded-*`, `Forwarded`, `Via`, `Host`, `TE`, framing, hop, replay's source).
pub(crate) const HEADERS_MAX: usize = HEADERS_READ_MAX - 10;
/// Most bytes of a request's header.
pub(crate) const HEADER_BYTES_MAX: usize = 64 << 10;
/// What an HTTP/2 client without TLS sends first (RFC 9113 §3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const H2_STREAMS_MAX: u32 = 200;
/// A silent client is asked whether it is still there, so that its streams and tunnels do not stay for ever.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Between telling an idle HTTP/2 client to go and closing.
const FAREWELL: Duration = Duration::from_millis(500);

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
    let client = Arc::new(ClientState::new(&worker, peer, h2));
    let io = TokioIo::new(ClientIo { stream, prefix, client: Arc::clone(&client) });
    let service = {
        let client = Arc::clone(&client);
        service_fn(move |request| handler::handle(Arc::clone(&client), request).map(Ok::<_, Infallible>))
    };
    let result = if h2 {
        let streams = StreamExecutor { limit: limits.write_timeout, metrics: Arc::clone(&metrics) };
        let connection = http2::Builder::new(streams)
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE)
            .max_concurrent_streams(H2_STREAMS_MAX)
            .max_header_list_size(HEADER_BYTES_MAX as u32)
            .serve_connection(io, service);
        drive(&client, connection, http2::Connection::graceful_shutdown).await
    } else {
        let connection = http1::Builder::new()
            .max_header_size(HEADER_BYTES_MAX)
            .header_read_timeout(None)
            .serve_connection(io, service)
            .with_upgrades();
        drive(&client, connection, http1::UpgradeableConnection::graceful_shutdown).await
    };
    if let Err(error) = result {
        metrics.connection_errors.inc();
        tracing::debug!(%peer, %error, "client connection ended with an error");
    }
}

/// Runs the streams of an HTTP/2 connection, each at most for `proxy.write-timeout`: one whose client takes no bytes is
/// reset, the others go on. (HTTP/1.1 has its connection's timer.)
#[derive(Clone)]
struct StreamExecutor {
    /// Zero: none.
    limit: Duration,
    metrics: Arc<ProxyMetrics>,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for StreamExecutor {
    fn execute(&self, stream: F) {
        if self.limit.is_zero() {
            tokio::spawn(stream);
            return;
        }
        let (limit, metrics) = (self.limit, Arc::clone(&self.metrics));
        tokio::spawn(async move {
            if tokio::time::timeout(limit, stream).await.is_err() {
                metrics.timeouts.inc();
            }
        });
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
async fn drive<C>(client: &ClientState, connection: C, graceful_shutdown: fn(Pin<&mut C>)) -> Result<(), hyper::Error>
where
    C: Future<Output = Result<(), hyper::Error>>,
{
    let Shared { config, metrics, drain, .. } = &*client.worker.shared;
    let limits = &config.settings;
    let mut connection = std::pin::pin!(connection);
    let look_again = shortest_limit(limits);
    let mut timer = Seldom::new(tokio::time::sleep(client.time_left(limits).min(look_again)));
    let mut drain = Seldom::new(drain.cancelled());
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            result = &mut connection => return result,
            () = &mut timer => {
                let left = client.time_left(limits);
                if left.is_zero() {
                    metrics.timeouts.inc();
                    if draining || !client.multiplexed {
                        return Ok(());
                    }
                    // HTTP/2 can say that no more requests are taken; a client that is there hears it by then.
                    draining = true;
                    graceful_shutdown(connection.as_mut());
                }
                let next = if left.is_zero() { FAREWELL } else { left.min(look_again) };
                timer.change().reset(tokio::time::Instant::now() + next);
            }
            () = &mut drain, if !draining => {
                draining = true;
                graceful_shutdown(connection.as_mut());
            }
        }
    }
}
