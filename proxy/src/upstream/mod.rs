//! Connections to the application and to the primary's proxy.
//!
//! HTTP/1.1 connections have no task of their own: whoever waits for an answer or reads its body drives the connection
//! inside the client's task, so a request crosses no queue between threads and wakes nobody. Idle connections
//! lie in a pool per address and worker thread.

mod exchange;
mod multiplexed;
mod pool;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

pub(crate) use exchange::DrivenBody;
use exchange::H1Connection;
use multiplexed::Multiplexed;
use pool::Pool;

use crate::body::{RequestBody, UpstreamBody};
use crate::config::HostPort;
use crate::socket::Socket;

/// For one attempt at a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no answer.
pub(crate) enum SendFailure {
    /// Nothing was sent: the request has been given back and may be sent again.
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
        Self::Lost { why: "the request is gone".into(), crossed: false }
    }
}

/// A request that has not been sent. It is taken from here when it is.
pub(crate) type Unsent = Option<Request<RequestBody>>;

/// One address that requests are sent to.
pub(crate) struct Upstream {
    address: HostPort,
    pool: Pool,
    multiplexed: Multiplexed,
}

/// How a request is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SendOptions {
    /// For the header of the answer; zero = unlimited.
    pub response_timeout: Duration,
    /// Whether the peer must be spoken to in HTTP/2 (gRPC).
    pub h2: bool,
}

impl Upstream {
    pub fn new(address: HostPort) -> Self {
        Self { address, pool: Pool::default(), multiplexed: Multiplexed::default() }
    }

    /// Drops connections nobody used for a while.
    pub fn close_idle(&self) {
        self.pool.close_idle();
    }

    /// Sends a request and returns the answer as soon as its header is there. The request stays where it is, or is put
    /// back, as long as it is unsent.
    pub async fn send(
        self: &Arc<Self>,
        request: &mut Unsent,
        options: SendOptions,
    ) -> Result<Response<UpstreamBody>, SendFailure> {
        if options.h2 {
            let exchange = Box::pin(self.multiplexed.send(&self.address, request));
            return within(options.response_timeout, exchange).await.unwrap_or(Err(SendFailure::Timeout));
        }
        let Some(connection) = self.pool.check_out() else {
            return Box::pin(self.send_fresh(request, options.response_timeout)).await;
        };
        match exchange::run(self, connection, request, options.response_timeout, true).await {
            // The connection had died in the pool. Only a fresh one tells whether the peer lives.
            Err(SendFailure::Unsent(_)) => Box::pin(self.send_fresh(request, options.response_timeout)).await,
            other => other,
        }
    }

    async fn send_fresh(
        self: &Arc<Self>,
        request: &mut Unsent,
        response_timeout: Duration,
    ) -> Result<Response<UpstreamBody>, SendFailure> {
        let connection = connect(&self.address).await.map_err(SendFailure::Unsent)?;
        exchange::run(self, connection, request, response_timeout, false).await
    }

    /// Sends a request that asks for another protocol, on a connection of its own.
    pub async fn send_upgrade(
        &self,
        request: &mut Unsent,
        response_timeout: Duration,
    ) -> Result<Response<Incoming>, SendFailure> {
        let connected = async {
            let stream = open(&self.address).await?;
            http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)
        };
        let (mut sender, driver) = connected.await.map_err(SendFailure::Unsent)?;
        let request = request.take().ok_or_else(SendFailure::gone)?;
        tokio::spawn(async move {
            if let Err(error) = driver.with_upgrades().await {
                tracing::debug!(%error, "upgraded connection ended with an error");
            }
        });
        let answer = within(response_timeout, sender.send_request(request)).await.ok_or(SendFailure::Timeout)?;
        answer.map_err(|error| SendFailure::lost(&error))
    }
}

/// `None`: not within the limit. Zero is no limit.
async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    if limit.is_zero() {
        return Some(work.await);
    }
    tokio::time::timeout(limit, work).await.ok()
}

async fn open(address: &HostPort) -> io::Result<Socket> {
    let connecting = TcpStream::connect((address.host.as_str(), address.port));
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await??;
    crate::connection::prepare(&stream);
    Ok(Socket(stream))
}

async fn connect(address: &HostPort) -> io::Result<Box<H1Connection>> {
    let stream = open(address).await?;
    let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    Ok(Box::new(H1Connection::new(sender, driver)))
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
