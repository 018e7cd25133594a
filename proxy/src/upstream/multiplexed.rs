//! HTTP/2 without TLS towards the application and the primary: gRPC needs it (its trailers, and streams in both
//! directions at once).

use std::io;

use http::uri::{Authority, Parts, Scheme};
use http::{Request, Response, Uri, Version, header};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;

use super::{SendFailure, open};
use crate::body::{RequestBody, UpstreamBody};
use crate::config::HostPort;
use crate::h1::RequestHead;
use crate::socket::Socket;

/// The one connection that carries all streams to an address.
#[derive(Default)]
pub(super) struct Multiplexed {
    sender: Mutex<Option<http2::SendRequest<RequestBody>>>,
}

impl Multiplexed {
    pub async fn send(
        &self,
        address: &HostPort,
        head: &RequestHead,
        slot: &mut Option<RequestBody>,
    ) -> Result<Response<UpstreamBody>, SendFailure> {
        let mut sender = self.sender(address).await.map_err(SendFailure::Unsent)?;
        let mut request = Request::new(slot.take().ok_or_else(SendFailure::gone)?);
        *request.version_mut() = Version::HTTP_2;
        *request.method_mut() = head.method.clone();
        *request.headers_mut() = head.headers.clone();
        request.headers_mut().extend(head.added().iter().cloned());
        let named = request.headers_mut().remove(header::HOST);
        let host = named.and_then(|host| Authority::try_from(host.as_bytes()).ok());
        let mut uri = Parts::default();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = host.or_else(|| Authority::try_from(address.authority()).ok());
        uri.path_and_query = Some(head.target.clone());
        *request.uri_mut() = Uri::from_parts(uri).map_err(|error| SendFailure::lost(&error))?;
        let mut failed = match sender.try_send_request(request).await {
            Ok(answer) => return Ok(answer.map(UpstreamBody::Incoming)),
            Err(failed) => failed,
        };
        *slot = failed.take_message().map(Request::into_body);
        let error = failed.into_error();
        Err(if slot.is_some() { SendFailure::Unsent(io::Error::other(error)) } else { SendFailure::lost(&error) })
    }

    async fn sender(&self, address: &HostPort) -> io::Result<http2::SendRequest<RequestBody>> {
        let open_sender = self.sender.lock().as_ref().filter(|sender| !sender.is_closed()).cloned();
        if let Some(sender) = open_sender {
            return Ok(sender);
        }
        let stream = open(address).await?;
        let handshake = http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(Socket(stream)));
        let (sender, driver) = handshake.await.map_err(io::Error::other)?;
        tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "HTTP/2 connection to upstream ended with an error");
            }
        });
        *self.sender.lock() = Some(sender.clone());
        Ok(sender)
    }
}
