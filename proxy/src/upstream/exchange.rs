//! One request and its answer on an HTTP/1.1 connection, driven by whoever waits for it.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::connection::Connection;
use super::{SendFailure, SendOptions, Upstream};
use crate::body::{BodyError, RequestBody, UpstreamBody};
use crate::client::ClientState;
use crate::h1::{self, AnswerHead, BadAnswer, BodyDecoder, BodyFraming, Part, RequestHead};

/// Why an exchange does not go on.
enum Broken {
    /// The connection failed.
    Io(io::Error),
    /// The upstream ended the connection.
    Ended,
    BadAnswer(BadAnswer),
    /// The client did not send the body that it announced.
    Request(String),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<BadAnswer> for Broken {
    fn from(bad: BadAnswer) -> Self {
        Self::BadAnswer(bad)
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "the connection broke: {error}"),
            Self::Ended => f.write_str("the connection ended before there was an answer"),
            Self::BadAnswer(bad) => bad.fmt(f),
            Self::Request(why) => write!(f, "the request's body: {why}"),
        }
    }
}

/// A request's body on its way.
struct Sending {
    body: RequestBody,
    framing: BodyFraming,
}

/// A connection in use.
struct Exchange {
    connection: Box<Connection>,
    /// The connection has served before.
    pooled: bool,
    /// `None`: everything has been handed to the connection's output.
    sending: Option<Sending>,
    /// Some of the body has been taken from the client.
    body_touched: bool,
    /// The upstream takes no more of the request. (It may have answered already.)
    refused: Option<io::Error>,
    /// So many bytes of the input are known to hold no complete header.
    seen: usize,
}

impl Exchange {
    fn new(mut connection: Box<Connection>, pooled: bool, head: &RequestHead, body: RequestBody) -> Self {
        let output = &mut connection.output;
        output.begin();
        let framing = h1::encode_request(&mut output.head, head, !body.is_end_stream());
        let has_body = !matches!(framing, BodyFraming::Nothing | BodyFraming::Length(0));
        if !has_body {
            body.end();
        }
        let sending = has_body.then_some(Sending { body, framing });
        Self { connection, pooled, sending, body_touched: false, refused: None, seen: 0 }
    }

    /// Hands the next piece of the request's body to the output, if there is one and there is room for it.
    fn poll_pull(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let Some(Sending { body, framing }) = &mut self.sending else { return Poll::Ready(Ok(())) };
        let output = &mut self.connection.output;
        if !output.has_room() {
            return Poll::Ready(Ok(()));
        }
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        let frame = frame.transpose().map_err(|error| Broken::Request(error.to_string()))?;
        self.body_touched = true;
        let is_last = match (frame.map(Frame::into_data), framing) {
            // An empty chunk would be the last one.
            (Some(Ok(data)), _) if data.is_empty() => false,
            (Some(Ok(data)), BodyFraming::Chunked(_)) => {
                h1::begin_chunk(&mut output.head, data.len());
                (output.data, output.tail) = (data, b"\r\n");
                false
            }
            (Some(Ok(data)), BodyFraming::Length(left)) => {
                let longer = || Broken::Request("longer than it says".into());
                *left = left.checked_sub(data.len() as u64).ok_or_else(longer)?;
                output.data = data;
                *left == 0
            }
            (Some(Err(trailers)), BodyFraming::Chunked(announced)) => {
                h1::end_chunks(&mut output.head, announced, trailers.trailers_ref());
                true
            }
            (None, BodyFraming::Chunked(announced)) => {
                h1::end_chunks(&mut output.head, announced, None);
                true
            }
            (_, BodyFraming::Length(_)) => return Poll::Ready(Err(Broken::Request("shorter than it says".into()))),
            (_, BodyFraming::Nothing) => true,
        };
        if is_last {
            body.end();
            self.sending = None;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what can be sent. Ready when the request has left whole.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if self.refused.is_some() {
            return Poll::Ready(Ok(()));
        }
        loop {
            // First: a short body leaves together with the header.
            let pulled = self.poll_pull(cx)?;
            match ready!(self.connection.poll_flush(cx)) {
                Err(error) if self.connection.output.has_begun() => {
                    self.refused = Some(error);
                    return Poll::Ready(Ok(()));
                }
                sent => sent?,
            }
            ready!(pulled);
            if self.sending.is_none() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Waits for the answer's header, and passes interim ones on.
    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        method: &Method,
        interim: Option<&ClientState>,
    ) -> Poll<Result<AnswerHead, Broken>> {
        if self.pooled && !self.connection.output.has_begun() {
            // Nobody has asked for what can be read now: it says that the connection is of no use.
            match self.connection.poll_fill(cx) {
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Ready(Ok(_)) => return Poll::Ready(Err(Broken::Ended)),
                Poll::Pending => {}
            }
        }
        if let Poll::Ready(Err(broken)) = self.poll_send(cx) {
            return Poll::Ready(Err(broken));
        }
        if !self.connection.output.has_begun() {
            return Poll::Pending;
        }
        loop {
            while h1::may_hold_answer(&self.connection.input, self.seen) {
                let Some(answer) = h1::parse_answer(&mut self.connection.input, method)? else {
                    self.seen = self.connection.input.len();
                    break;
                };
                if !answer.status.is_informational() || answer.status == StatusCode::SWITCHING_PROTOCOLS {
                    return Poll::Ready(Ok(answer));
                }
                self.seen = 0;
                // The expectation of "100 Continue" was met here.
                if let Some(client) = interim.filter(|_| answer.status != StatusCode::CONTINUE) {
                    client.send_interim(answer.status, &answer.headers);
                }
            }
            match ready!(self.connection.poll_fill(cx)) {
                Ok(0) => return Poll::Ready(Err(self.refused.take().map_or(Broken::Ended, Broken::Io))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(self.refused.take().unwrap_or(error).into())),
            }
        }
    }

    /// What the failure means for the request. Its body is put back into `slot` if nothing has happened yet.
    fn fail(self, broken: &Broken, slot: &mut Option<RequestBody>) -> SendFailure {
        let of_connection = matches!(broken, Broken::Io(_) | Broken::Ended);
        if of_connection && !self.connection.output.has_begun() && !self.body_touched {
            *slot = Some(self.sending.map_or(RequestBody::Empty, |sending| sending.body));
            return SendFailure::Unsent(io::Error::other(broken.to_string()));
        }
        SendFailure::Lost { why: broken.to_string(), crossed: self.pooled && of_connection }
    }

    /// Whether the connection is free for another request, now that the answer has been read.
    fn is_complete(&self) -> bool {
        self.sending.is_none() && self.refused.is_none() && self.connection.is_at_rest()
    }
}

/// Sends the request and waits for the answer's header, at most for `options.response_timeout`; takes a short body along
/// if it is there already. `pooled`: the connection has served before.
pub(super) async fn run(
    upstream: &Arc<Upstream>,
    connection: Box<Connection>,
    request: &RequestHead,
    slot: &mut Option<RequestBody>,
    options: SendOptions<'_>,
    pooled: bool,
) -> Result<Response<UpstreamBody>, SendFailure> {
    let limit = options.response_timeout;
    let deadline = (!limit.is_zero()).then(|| Instant::now() + limit);
    let body = slot.take().ok_or_else(SendFailure::gone)?;
    let mut exchange = Exchange::new(connection, pooled, request, body);
    let answer = poll_fn(|cx| match (exchange.poll_answer(cx, &request.method, options.interim), deadline) {
        (Poll::Pending, Some(deadline)) => exchange.connection.poll_deadline(cx, deadline).map(|()| None),
        (answer, _) => answer.map(Some),
    });
    let AnswerHead { status, reason, headers, body, keep_alive } = match answer.await {
        Some(Ok(answer)) => answer,
        Some(Err(broken)) => return Err(exchange.fail(&broken, slot)),
        None => return Err(SendFailure::Timeout),
    };
    let body = match status {
        StatusCode::SWITCHING_PROTOCOLS if options.upgrade => {
            UpstreamBody::Switched(Box::new(exchange.connection.into_switched()))
        }
        StatusCode::SWITCHING_PROTOCOLS => {
            let broken = Broken::BadAnswer(BadAnswer("it changes the protocol, unasked"));
            return Err(exchange.fail(&broken, slot));
        }
        _ => {
            AnswerStream { exchange: Some(exchange), decoder: body, keep_alive, upstream: Arc::clone(upstream) }.begin()
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    if let Some(reason) = reason {
        response.extensions_mut().insert(reason);
    }
    Ok(response)
}

/// A body that drives the connection it comes from, and gives it back to the pool at its end. Dropped earlier, it closes
/// the connection: that cancels the request.
pub(crate) struct AnswerStream {
    /// `None`: nothing more comes.
    exchange: Option<Exchange>,
    decoder: BodyDecoder,
    keep_alive: bool,
    upstream: Arc<Upstream>,
}

impl AnswerStream {
    /// The whole body, if it has arrived together with the header: then header and body leave in one write.
    fn begin(mut self) -> UpstreamBody {
        let Some(exchange) = &mut self.exchange else { return UpstreamBody::Empty };
        let input = &mut exchange.connection.input;
        let at_hand = match self.decoder.bytes_left() {
            Some(0) => UpstreamBody::Empty,
            Some(left) if left <= input.len() as u64 => match self.decoder.next(input) {
                Ok(Part::Data(data)) => UpstreamBody::Full(data),
                _ => return UpstreamBody::Stream(Box::new(self)),
            },
            _ => return UpstreamBody::Stream(Box::new(self)),
        };
        self.release();
        at_hand
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match ready!(self.poll_part(cx)) {
            Ok(Part::Data(data)) => Some(Ok(Frame::data(data))),
            Ok(Part::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Ok(Part::End | Part::More) => None,
            Err(broken) => {
                self.exchange = None;
                Some(Err(broken.to_string().into()))
            }
        };
        if self.decoder.has_ended() {
            self.release();
        }
        Poll::Ready(frame)
    }

    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Part, Broken>> {
        let Some(exchange) = &mut self.exchange else { return Poll::Ready(Ok(Part::End)) };
        // The upstream may answer before it has read the whole request.
        if let Poll::Ready(Err(broken)) = exchange.poll_send(cx) {
            return Poll::Ready(Err(broken));
        }
        loop {
            match self.decoder.next(&mut exchange.connection.input)? {
                Part::More => {}
                part => return Poll::Ready(Ok(part)),
            }
            if ready!(exchange.connection.poll_fill(cx))? == 0 {
                self.decoder.close()?;
                self.keep_alive = false;
            }
        }
    }

    /// The answer is complete: others may use the connection, if the request is complete as well.
    fn release(&mut self) {
        if let Some(exchange) = self.exchange.take()
            && self.keep_alive
            && exchange.is_complete()
        {
            self.upstream.pool.check_in(exchange.connection);
        }
    }

    pub fn is_end_stream(&self) -> bool {
        self.decoder.has_ended()
    }

    pub fn size_hint(&self) -> SizeHint {
        self.decoder.bytes_left().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::poll_immediate;
    use http::HeaderMap;
    use http::uri::PathAndQuery;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    fn head(length: Option<&'static str>) -> RequestHead {
        let length = length.map(|length| (http::header::CONTENT_LENGTH, http::HeaderValue::from_static(length)));
        let headers = HeaderMap::from_iter(length);
        RequestHead { method: Method::POST, target: PathAndQuery::from_static("/"), headers, added: None }
    }

    async fn exchange(length: Option<&'static str>, pooled: bool) -> (Exchange, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let stream = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connect");
        let connection = Box::new(Connection::new(stream));
        let exchange = Exchange::new(connection, pooled, &head(length), RequestBody::Empty);
        (exchange, listener.accept().await.expect("accept").0)
    }

    async fn poll_answer(exchange: &mut Exchange) -> Option<Result<AnswerHead, Broken>> {
        poll_immediate(poll_fn(|cx| exchange.poll_answer(cx, &Method::POST, None))).await
    }

    #[tokio::test]
    async fn only_what_nobody_has_seen_is_unsent() {
        for (begun, touched, pooled) in [(false, false), (false, true), (true, false), (true, true)]
            .into_iter()
            .flat_map(|(begun, touched)| [(begun, touched, false), (begun, touched, true)])
        {
            for broken in [Broken::Ended, Broken::BadAnswer(BadAnswer("x")), Broken::Request("y".into())] {
                let (mut exchange, _peer) = exchange(None, pooled).await;
                if begun {
                    assert!(poll_answer(&mut exchange).await.is_none());
                }
                exchange.body_touched = touched;
                let is_of_connection = matches!(broken, Broken::Ended);
                let mut slot = None;
                match exchange.fail(&broken, &mut slot) {
                    SendFailure::Unsent(_) => assert!(slot.is_some() && !begun && !touched && is_of_connection),
                    SendFailure::Lost { crossed, .. } => {
                        assert!(slot.is_none() && (begun || touched || !is_of_connection));
                        assert_eq!(crossed, pooled && is_of_connection);
                    }
                    SendFailure::Timeout => panic!("there is no limit"),
                }
            }
        }
    }

    #[tokio::test]
    async fn a_body_that_is_shorter_than_announced_is_not_sent_as_if_complete() {
        let (mut exchange, _peer) = exchange(Some("5"), false).await;
        assert!(matches!(poll_answer(&mut exchange).await, Some(Err(Broken::Request(_)))));
    }

    #[tokio::test]
    async fn an_answer_is_read_also_when_the_request_cannot_be_sent_any_more() {
        let (mut exchange, mut peer) = exchange(None, true).await;
        assert!(poll_answer(&mut exchange).await.is_none());
        peer.write_all(b"HTTP/1.1 413 Enough\r\nContent-Length: 0\r\n\r\n").await.expect("answer");
        // What it has not read makes this end a reset.
        peer.readable().await.expect("the request");
        drop(peer);
        exchange.connection.output.data = Bytes::from_static(&[0; 1 << 20]);
        let answer = loop {
            // Until the end has come: what is sent before may still be taken.
            match poll_answer(&mut exchange).await {
                None => tokio::task::yield_now().await,
                Some(answer) => break answer,
            }
        };
        assert_eq!(answer.ok().expect("an answer").status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(exchange.refused.is_some() && !exchange.is_complete());
    }

    #[tokio::test]
    async fn an_idle_connection_that_has_something_to_say_is_of_no_use() {
        let (mut exchange, mut peer) = exchange(None, true).await;
        peer.write_all(b"HTTP/1.1 408 Too Late\r\n\r\n").await.expect("words");
        exchange.connection.readable().await;
        assert!(matches!(poll_answer(&mut exchange).await, Some(Err(Broken::Ended))));
        assert!(!exchange.connection.output.has_begun());
        drop(exchange);
        assert_eq!(peer.read(&mut [0; 1]).await.expect("nothing was sent"), 0);
    }
}
