//! A connection to another node's API: HTTP/2 in clear text with prior knowledge, as LiteFS nodes speak among themselves.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::TcpStream;

/// Bound for connecting, and for the answer's head where nothing else is said.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Window of one stream: what may be on the way before the receiver has taken it.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// The longest answer read into memory.
const ANSWER_BYTES_MAX: usize = 64 << 10;

pub(crate) type PeerBody = UnsyncBoxBody<Bytes, io::Error>;

/// Why another node could not be asked.
#[derive(Debug, Error)]
pub enum PeerError {
    /// Not an `http://host:port` address.
    #[error("{0:?} is not an address like http://host:20202")]
    Address(String),
    /// No connection.
    #[error("connect to {0}: {1}")]
    Connect(String, io::Error),
    /// The connection broke.
    #[error("{0}: {1}")]
    Http(String, hyper::Error),
    /// It did not answer in time.
    #[error("{0} did not answer in time")]
    TimedOut(String),
    /// It answered with an error.
    #[error("{0} answers {1}: {2}")]
    Refused(String, StatusCode, String),
}

/// A connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    authority: String,
    requests: SendRequest<PeerBody>,
    node_id: u64,
    cluster_id: Option<String>,
}

/// A body that is in memory.
pub(crate) fn full(bytes: Bytes) -> PeerBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

impl Peer {
    /// Connects to an advertise URL. `node_id` and `cluster_id` are this node's own; they go with every request.
    pub(crate) async fn connect(url: &str, node_id: u64, cluster_id: Option<String>) -> Result<Self, PeerError> {
        let bad = || PeerError::Address(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| bad())?;
        if uri.scheme_str() != Some("http") {
            return Err(bad());
        }
        let host = uri.host().ok_or_else(bad)?;
        let port = uri.port_u16().unwrap_or(80);
        let authority = format!("{host}:{port}");
        // An IPv6 address has brackets in a URL, and none for the resolver.
        let target = (host.trim_start_matches('[').trim_end_matches(']'), port);
        let socket = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(target))
            .await
            .map_err(|_| PeerError::TimedOut(authority.clone()))?
            .map_err(|error| PeerError::Connect(authority.clone(), error))?;
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "set TCP_NODELAY");
        }
        let handshake = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(2 * STREAM_WINDOW_BYTES)
            .handshake(TokioIo::new(socket));
        let (requests, connection) = tokio::time::timeout(CONNECT_MAX, handshake)
            .await
            .map_err(|_| PeerError::TimedOut(authority.clone()))?
            .map_err(|error| PeerError::Http(authority.clone(), error))?;
        // Ends when the last `SendRequest` and the last body are dropped.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to another node");
            }
        });
        Ok(Self { authority, requests, node_id, cluster_id })
    }

    /// Sends a request and waits for the head of a 200 answer.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path_and_query: &str,
        body: PeerBody,
        within: Duration,
    ) -> Result<Response<Incoming>, PeerError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path_and_query}", self.authority))
            .header("litefs-id", format!("{:016X}", self.node_id));
        if let Some(cluster_id) = &self.cluster_id {
            request = request.header("litefs-cluster-id", cluster_id);
        }
        let request = request.body(body).map_err(|_| PeerError::Address(self.authority.clone()))?;
        let response = tokio::time::timeout(within, self.requests.send_request(request))
            .await
            .map_err(|_| PeerError::TimedOut(self.authority.clone()))?
            .map_err(|error| PeerError::Http(self.authority.clone(), error))?;
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response);
        }
        let text = self.read(response, within).await.unwrap_or_default();
        let line = String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned();
        Err(PeerError::Refused(self.authority.clone(), status, line))
    }

    /// The same for a request whose answer is small; returns the answer's body.
    pub(crate) async fn ask(
        &mut self,
        method: Method,
        path_and_query: &str,
        body: PeerBody,
        within: Duration,
    ) -> Result<Bytes, PeerError> {
        let response = self.send(method, path_and_query, body, within).await?;
        self.read(response, within).await
    }

    /// Reads the whole of a small answer.
    pub(crate) async fn read(&self, response: Response<Incoming>, within: Duration) -> Result<Bytes, PeerError> {
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect();
        match tokio::time::timeout(within, body).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) => {
                let error = io::Error::other(error.to_string());
                Err(PeerError::Connect(self.authority.clone(), error))
            }
            Err(_) => Err(PeerError::TimedOut(self.authority.clone())),
        }
    }
}

/// Escapes a value for a query string.
pub(crate) fn query_escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_values_are_escaped() {
        assert_eq!(query_escape("a b&c=ü.db"), "a%20b%26c%3D%C3%BC.db");
    }

    #[tokio::test]
    async fn addresses_that_are_none_are_refused() {
        for url in ["", "host:1", "https://host:1", "http://"] {
            assert!(matches!(Peer::connect(url, 1, None).await, Err(PeerError::Address(_))), "{url:?}");
        }
    }
}
