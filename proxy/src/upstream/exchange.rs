//! One request and its answer on an HTTP/1.1 connection, driven by whoever waits for it.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{SendFailure, Upstream, describe};
use crate::body::{RequestBody, UpstreamBody};

/// A connection and the state machine that must be polled for anything to happen on it.
pub(super) struct H1Connection {
    sender: http1::SendRequest<RequestBody>,
    /// `None` once it has ended.
    driver: Option<http1::Connection<TokioIo<TcpStream>, RequestBody>>,
}

impl H1Connection {
    pub fn new(
        sender: http1::SendRequest<RequestBody>,
        driver: http1::Connection<TokioIo<TcpStream>, RequestBody>,
    ) -> Self {
        Self { sender, driver: Some(driver) }
    }

    /// Lets the connection read and write what it can. What comes of it shows in the answer or its body.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && Pin::new(driver).poll(cx).is_ready()
        {
            self.driver = None;
        }
    }

    /// Whether another request may be sent, after having noticed everything the peer did meanwhile.
    pub fn is_reusable(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        self.driver.is_some() && self.sender.is_ready()
    }
}

/// Sends the request and waits for the answer's header; takes a short body along if it is there already.
pub(super) async fn run(
    upstream: &Arc<Upstream>,
    mut connection: Box<H1Connection>,
    request: Request<RequestBody>,
) -> Result<Response<UpstreamBody>, SendFailure> {
    let mut answer = std::pin::pin!(connection.sender.try_send_request(request));
    let answer = poll_fn(|cx| {
        connection.drive(cx);
        answer.as_mut().poll(cx)
    })
    .await;
    let (head, body) = match answer {
        Ok(answer) => answer.into_parts(),
        Err(mut failed) => {
            let unsent = failed.take_message();
            let error = failed.into_error();
            return Err(match unsent {
                Some(request) => {
                    SendFailure::Unsent { error: io::Error::other(describe(&error)), request: Box::new(request) }
                }
                None => SendFailure::lost(&error),
            });
        }
    };
    let mut body = DrivenBody { body, connection: Some(connection), upstream: Arc::clone(upstream), first: None };
    let at_hand = poll_fn(|cx| Poll::Ready(body.take_at_hand(cx))).await;
    Ok(Response::from_parts(head, at_hand.unwrap_or_else(|| UpstreamBody::Driven(Box::new(body)))))
}

/// A body that drives the connection it comes from, and gives it back to the pool at its end. Dropped earlier, it closes
/// the connection: that cancels the request.
pub(crate) struct DrivenBody {
    body: Incoming,
    connection: Option<Box<H1Connection>>,
    upstream: Arc<Upstream>,
    /// Read ahead.
    first: Option<Option<Result<Frame<Bytes>, hyper::Error>>>,
}

impl DrivenBody {
    /// The whole body, if it has arrived together with the header: then header and body leave in one write.
    fn take_at_hand(&mut self, cx: &mut Context<'_>) -> Option<UpstreamBody> {
        if self.body.is_end_stream() {
            self.release(cx);
            return Some(UpstreamBody::Empty);
        }
        let Poll::Ready(frame) = self.poll_body(cx) else { return None };
        match frame {
            None => Some(UpstreamBody::Empty),
            Some(Ok(frame)) if frame.is_data() && self.body.is_end_stream() => {
                Some(frame.into_data().map_or(UpstreamBody::Empty, UpstreamBody::Full))
            }
            frame => {
                self.first = Some(frame);
                None
            }
        }
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.first.take() {
            Some(frame) => Poll::Ready(frame),
            None => self.poll_body(cx),
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_pending() {
            // The poll has told the connection that somebody wants data.
            if let Some(connection) = &mut self.connection {
                connection.drive(cx);
            }
            frame = Pin::new(&mut self.body).poll_frame(cx);
        }
        match &frame {
            Poll::Ready(None) => self.release(cx),
            Poll::Ready(Some(Ok(_))) if self.body.is_end_stream() => self.release(cx),
            Poll::Ready(Some(Err(_))) => self.connection = None,
            _ => {}
        }
        frame
    }

    /// The answer is complete: others may use the connection, if the request is complete as well.
    fn release(&mut self, cx: &mut Context<'_>) {
        if let Some(mut connection) = self.connection.take()
            && connection.is_reusable(cx)
        {
            self.upstream.pool.check_in(connection);
        }
    }

    pub fn is_end_stream(&self) -> bool {
        match &self.first {
            Some(None) => true,
            Some(Some(_)) => false,
            None => self.body.is_end_stream(),
        }
    }

    pub fn size_hint(&self) -> SizeHint {
        match &self.first {
            Some(_) => SizeHint::default(),
            None => self.body.size_hint(),
        }
    }
}
