//! The listener: connections, their limits, and a graceful end.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Request, Response};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use crate::node::Shared;

/// Connections at once; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 1024;
/// How long a client may take to send a request's head (also the longest idle time of an HTTP/1.1 connection).
const HEAD_MAX: Duration = Duration::from_secs(10);
/// The largest request head.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// A peer that acknowledges nothing for so long is gone.
const UNACKNOWLEDGED_MS_MAX: u32 = 60_000;
/// How often an HTTP/2 connection is probed, and how long the answer may take.
const PING_EVERY: Duration = Duration::from_secs(20);
const UPLOAD_WINDOW_BYTES: u32 = 1 << 20;

/// Who sent a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RemoteAddress(pub(crate) SocketAddr);

/// Serves until `shared.closing`; requests in progress end by themselves, or when `cut` comes.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>, cut: CancellationToken) {
    let router = super::router(shared.clone());
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.closing.cancelled() => return,
        };
        let (socket, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept a connection to the node API");
                // Out of descriptors, most likely: others must end first.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        prepare(&socket);
        let (shared, router, cut) = (shared.clone(), router.clone(), cut.clone());
        let tasks = shared.tasks.clone();
        tasks.spawn(async move {
            let closing = shared.closing.clone();
            let service = service_fn(move |request| answer(shared.clone(), router.clone(), address, request));
            let builder = builder();
            let connection = builder.serve_connection(TokioIo::new(socket), service);
            tokio::pin!(connection);
            let result = tokio::select! {
                result = connection.as_mut() => result,
                () = closing.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        result = connection => result,
                        () = cut.cancelled() => Ok(()),
                    }
                }
            };
            if let Err(error) = result {
                tracing::debug!(%address, %error, "connection to the node API");
            }
            drop(permit);
        });
    }
}

fn prepare(socket: &TcpStream) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "set TCP_NODELAY");
    }
    if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(socket.as_fd(), UNACKNOWLEDGED_MS_MAX) {
        tracing::debug!(%error, "set TCP_USER_TIMEOUT");
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .max_concurrent_streams(128)
        .initial_stream_window_size(UPLOAD_WINDOW_BYTES)
        .initial_connection_window_size(4 * UPLOAD_WINDOW_BYTES)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY);
    builder
}

async fn answer(
    shared: Arc<Shared>,
    mut router: axum::Router,
    address: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::convert::Infallible> {
    shared.metrics.request();
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(RemoteAddress(address));
    let mut response = match router.call(request).await {
        Ok(response) => response.into_response(),
        Err(never) => match never {},
    };
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&format!("{:016X}", shared.store.node_id())) {
        headers.insert("litefs-id", value);
    }
    if let Some(Ok(value)) = shared.store.cluster_id().map(|id| HeaderValue::from_str(&id)) {
        headers.insert("litefs-cluster-id", value);
    }
    Ok(response)
}
