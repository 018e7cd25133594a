//! Connections to the application and to the primary's proxy.
//!
//! HTTP/1.1 connections have no task of their own: whoever waits for an answer or reads its body drives the connection
//! inside the client's task, so a request crosses no queue between threads and wakes nobody. Idle connections
//! lie in a pool per address and worker thread.

mod connection;
mod exchange;
mod multiplexed;
mod pool;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Response;
use tokio::net::TcpStream;

use connection::Connection;
pub(crate) use connection::Switched;
pub(crate) use exchange::AnswerStream;
use multiplexed::Multiplexed;
use pool::Pool;

use crate::body::{RequestBody, UpstreamBody};
use crate::client::ClientState;
use crate::config::HostPort;
use crate::h1::RequestHead;

/// For one attempt at a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no answer.
pub(crate) enum SendFailure {
    /// Nothing was sent: the body has been given back, and the request may be sent again.
    Unsent(io::Error),
    /// Sent at least in part: it may have been executed. `crossed`: on a connection that had served before, and whose
    /// end may have crossed the request.
    Lost { why: String, crossed: bool },
    /// Sent, and no answer within the limit.
    Timeout,
}

impl SendFailure {
    fn lost(error: &dyn std::error::Error) -> Self {
        Self::Lost { why: describe(error), crossed: false }
    }

    fn gone() -> Self {
        Self::Lost { why: "the body is gone".into(), crossed: false }
    }
}

/// One address that requests are sent to.
pub(crate) struct Upstream {
    address: HostPort,
    pool: Pool,
    multiplexed: Multiplexed,
}

/// How a request is sent.
#[derive(Clone, Copy)]
pub(crate) struct SendOptions<'a> {
    /// For the header of the answer; zero = unlimited.
    pub response_timeout: Duration,
    /// Whether the peer must be spoken to in HTTP/2 (gRPC).
    pub h2: bool,
    /// Whether the request asks for another protocol. It goes on a connection of its own.
    pub upgrade: bool,
    /// To whom interim answers go.
    pub interim: Option<&'a ClientState>,
}

impl Upstream {
    pub fn new(address: HostPort) -> Self {
        Self { address, pool: Pool::default(), multiplexed: Multiplexed::default() }
    }

    /// Drops connections nobody used for a while.
    pub fn close_idle(&self) {
        self.pool.close_idle();
    }

    /// Sends a request and returns the answer as soon as its header is there. The body is taken from its slot; it stays
    /// there, or is put back, as long as the request is unsent.
    pub async fn send(
        self: &Arc<Self>,
        request: &RequestHead,
        body: &mut Option<RequestBody>,
        options: SendOptions<'_>,
    ) -> Result<Response<UpstreamBody>, SendFailure> {
        if options.h2 {
            let exchange = Box::pin(self.multiplexed.send(&self.address, request, body));
            return within(options.response_timeout, exchange).await.unwrap_or(Err(SendFailure::Timeout));
        }
        if !options.upgrade
            && let Some(connection) = self.pool.check_out()
        {
            match exchange::run(self, connection, request, body, options, true).await {
                // The connection had died in the pool. Only a fresh one tells whether the peer lives.
                Err(SendFailure::Unsent(_)) => {}
                other => return other,
            }
        }
        Box::pin(self.send_fresh(request, body, options)).await
    }

    async fn send_fresh(
        self: &Arc<Self>,
        request: &RequestHead,
        body: &mut Option<RequestBody>,
        options: SendOptions<'_>,
    ) -> Result<Response<UpstreamBody>, SendFailure> {
        let stream = open(&self.address).await.map_err(SendFailure::Unsent)?;
        exchange::run(self, Box::new(Connection::new(stream)), request, body, options, false).await
    }
}

/// `None`: not within the limit. Zero is no limit.
async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    if limit.is_zero() {
        return Some(work.await);
    }
    tokio::time::timeout(limit, work).await.ok()
}

async fn open(address: &HostPort) -> io::Result<TcpStream> {
    let connecting = TcpStream::connect((address.host.as_str(), address.port));
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await??;
    crate::connection::prepare(&stream);
    Ok(stream)
}

/// An error with its causes, in one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
