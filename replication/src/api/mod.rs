//! The node API (COMPAT §4): axum routes on a hyper server that speaks HTTP/1.1 and HTTP/2 in clear text.

mod body;
mod cluster;
mod databases;
mod debug;
mod error;
mod events;
mod halt;
mod lost_found;
mod resync;
pub(crate) mod server;
pub(crate) mod spool;
mod stream;

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use tokio::net::TcpListener;

use crate::node::Shared;
use error::ApiError;

/// Binds `http.addr`: `:20202` (all addresses, IPv6 and IPv4) or `host:port`.
///
/// # Errors
/// When the address is none, or taken.
pub async fn listen(addr: &str) -> io::Result<TcpListener> {
    let bound = match addr.strip_prefix(':') {
        Some(port) => match TcpListener::bind(format!("[::]:{port}")).await {
            // No IPv6 on this machine.
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                TcpListener::bind(format!("0.0.0.0:{port}")).await
            }
            bound => bound,
        },
        None => TcpListener::bind(addr).await,
    };
    bound.map_err(|error| io::Error::new(error.kind(), format!("listen on http.addr {addr}: {error}")))
}

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/stream", post(stream::stream))
        .route("/resync", post(resync::resync))
        .route("/import", post(databases::import))
        .route("/export", get(databases::export))
        .route("/info", get(cluster::info))
        .route("/promote", post(cluster::promote))
        .route("/handoff", post(cluster::handoff))
        .route("/halt", post(halt::acquire).merge(delete(halt::release)))
        .route("/tx", post(halt::commit))
        .route("/events", get(events::events))
        .route("/metrics", get(debug::metrics))
        .route("/lost-and-found", get(lost_found::list))
        .route("/lost-and-found/{*path}", get(lost_found::download))
        .route("/debug/vars", get(debug::vars))
        .route("/debug/rand", get(debug::rand))
        .route("/debug/pprof/", get(debug::index))
        .route("/debug/pprof/cmdline", get(debug::cmdline))
        .route("/debug/pprof/profile", get(debug::profile))
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "no such route") })
        .method_not_allowed_fallback(|| async { ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed") })
        // Bodies are bounded where they are read: some are databases.
        .layer(DefaultBodyLimit::disable())
        .with_state(shared)
}
