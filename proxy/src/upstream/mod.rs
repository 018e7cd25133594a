//! Connections to the application and to the primary's proxy.
//!
//! HTTP/1.1 connections have no task of their own: whoever waits for an answer or reads its body drives the connection
//! inside the client's task, so a request crosses no queue between threads and wakes nobody. Idle connections
//! lie in a pool per address and worker thread.

mod exchange;
mod multiplexed;
mod pool;

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
/// Most fields of an answer's header.
const HEADERS_MAX: usize = 256;

/// Why there is no answer.
pub(crate) enum SendFailure {
    /// Nothing was sent: the request is given back and may be sent again.
    Unsent { error: io::Error, request: Box<Request<RequestBody>> },
    /// Sent at least in part: it may have been executed. `pooled`: on a connection that had served before, and whose
    /// end may have crossed the request.
    Lost { why: String, pooled: bool },
    /// Sent, and no answer within the limit.
    Timeout,
}

impl SendFailure {
    fn lost(error: &dyn std::error::Error) -> Self {
        Self::Lost { why: describe(error), pooled: false }
    }
}

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

    /// Sends a request and returns the answer as soon as its header is there.
    pub async fn send(
        self: &Arc<Self>,
        request: Request<RequestBody>,
        options: SendOptions,
    ) -> Result<Response<UpstreamBody>, SendFailure> {
        let exchange = async {
            if options.h2 {
                return Box::pin(self.multiplexed.send(&self.address, request)).await;
            }
            self.send_h1(request).await
        };
        if options.response_timeout.is_zero() {
            return exchange.await;
        }
        tokio::time::timeout(options.response_timeout, exchange).await.unwrap_or(Err(SendFailure::Timeout))
    }

    async fn send_h1(self: &Arc<Self>, request: Request<RequestBody>) -> Result<Response<UpstreamBody>, SendFailure> {
        let Some(connection) = self.pool.check_out().await else {
            return Box::pin(self.send_fresh(request)).await;
        };
        match exchange::run(self, connection, request).await {
            // The connection had died in the pool. Only a fresh one tells whether the peer lives.
            Err(SendFailure::Unsent { request, .. }) => Box::pin(self.send_fresh(*request)).await,
            Err(SendFailure::Lost { why, .. }) => Err(SendFailure::Lost { why, pooled: true }),
            other => other,
        }
    }

    async fn send_fresh(
        self: &Arc<Self>,
        request: Request<RequestBody>,
    ) -> Result<Response<UpstreamBody>, SendFailure> {
        match connect(&self.address).await {
            Ok(connection) => exchange::run(self, connection, request).await,
            Err(error) => Err(SendFailure::Unsent { error, request: Box::new(request) }),
        }
    }

    /// Sends a request that asks for another protocol, on a connection of its own.
    pub async fn send_upgrade(
        &self,
        request: Request<RequestBody>,
        response_timeout: Duration,
    ) -> Result<Response<Incoming>, SendFailure> {
        let connected = async {
            let stream = open(&self.address).await?;
            builder().handshake(TokioIo::new(stream)).await.map_err(io::Error::other)
        };
        let (mut sender, driver) = match connected.await {
            Ok(connected) => connected,
            Err(error) => return Err(SendFailure::Unsent { error, request: Box::new(request) }),
        };
        tokio::spawn(async move {
            if let Err(error) = driver.with_upgrades().await {
                tracing::debug!(%error, "upgraded connection ended with an error");
            }
        });
        let answer = sender.send_request(request);
        if response_timeout.is_zero() {
            return answer.await.map_err(|error| SendFailure::lost(&error));
        }
        let answer = tokio::time::timeout(response_timeout, answer).await.map_err(|_| SendFailure::Timeout)?;
        answer.map_err(|error| SendFailure::lost(&error))
    }
}

fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_headers(HEADERS_MAX);
    builder
}

async fn open(address: &HostPort) -> io::Result<Socket> {
    let connecting = TcpStream::connect((address.host.as_str(), address.port));
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await??;
    crate::connection::prepare(&stream);
    Ok(Socket(stream))
}

async fn connect(address: &HostPort) -> io::Result<Box<H1Connection>> {
    let stream = open(address).await?;
    let (sender, driver) = builder().handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
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
