//! Bodies on their way through: never collected, except where a bound says so.

use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::client::{ClientState, RequestGuard};
use crate::upstream::{AnswerStream, Switched};

/// Why a body ended before its end.
pub(crate) type BodyError = Box<dyn StdError + Send + Sync>;

/// Who is told that a request's body has been read to its end (`proxy.read-timeout`).
#[derive(Clone)]
pub(crate) enum ReadClock {
    /// The connection: HTTP/1.1 reads one body at a time.
    Connection(Arc<ClientState>),
    /// The request alone, of an HTTP/2 stream.
    Stream(CancellationToken),
}

impl ReadClock {
    fn stop(&self) {
        match self {
            Self::Connection(client) => client.body_ended(),
            Self::Stream(complete) => complete.cancel(),
        }
    }
}

/// The next piece of a client's body. A stream that its client resets without calling that an error (RFC 9113 §8.1) has
/// not been ended: what came of the body must not pass for all of it.
fn poll_client(
    body: &mut Incoming,
    clock: &ReadClock,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    match ready!(Pin::new(&mut *body).poll_frame(cx)) {
        None if matches!(clock, ReadClock::Stream(_)) && !body.is_end_stream() => {
            Poll::Ready(Some(Err("the client has reset the stream".into())))
        }
        frame => Poll::Ready(frame.map(|frame| frame.map_err(Into::into))),
    }
}

/// A request's body, as it goes to the application or to the primary.
pub(crate) enum RequestBody {
    Empty,
    /// Straight from the client.
    Client(Incoming, ReadClock),
    /// One attempt at sending a [`ReplayableBody`].
    Replayable(ReplayCursor),
}

impl RequestBody {
    /// The client's body; [`RequestBody::Empty`] when there is none.
    pub fn from_client(body: Incoming, client: &Arc<ClientState>, complete: Option<CancellationToken>) -> Self {
        if body.is_end_stream() {
            return Self::Empty;
        }
        client.body_started();
        let connection = || ReadClock::Connection(Arc::clone(client));
        Self::Client(body, complete.map_or_else(connection, ReadClock::Stream))
    }

    /// Everything that was announced has been read: the client is not waited for any more.
    pub fn end(&self) {
        match self {
            Self::Empty => {}
            Self::Client(_, clock) => clock.stop(),
            Self::Replayable(cursor) => cursor.kept.lock().clock.stop(),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Client(body, clock) => {
                let frame = ready!(poll_client(body, clock, cx));
                if frame.is_none() || body.is_end_stream() {
                    clock.stop();
                }
                Poll::Ready(frame)
            }
            Self::Replayable(cursor) => cursor.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client(body, _) => body.is_end_stream(),
            Self::Replayable(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Client(body, _) => body.size_hint(),
            Self::Replayable(_) => SizeHint::default(),
        }
    }
}

/// A client's body of which the beginning is kept, so that the request can be sent a second time. Once more than the
/// bound has passed, nothing is kept and there is no second time.
#[derive(Clone)]
pub(crate) struct ReplayableBody(Arc<Mutex<Kept>>);

struct Kept {
    incoming: Incoming,
    clock: ReadClock,
    chunks: Vec<Bytes>,
    bytes: usize,
    bytes_max: usize,
    trailers: Option<HeaderMap>,
    complete: bool,
    lost: bool,
}

impl ReplayableBody {
    pub fn new(incoming: Incoming, clock: ReadClock, bytes_max: usize) -> Self {
        Self(Arc::new(Mutex::new(Kept {
            incoming,
            clock,
            chunks: Vec::new(),
            bytes: 0,
            bytes_max,
            trailers: None,
            complete: false,
            lost: false,
        })))
    }

    /// The body from its beginning, for one attempt. The attempt before must have been dropped.
    pub fn attempt(&self) -> RequestBody {
        RequestBody::Replayable(ReplayCursor { kept: Arc::clone(&self.0), next: 0, trailers_sent: false })
    }

    /// Whether everything that was read is still there.
    pub fn can_be_sent_again(&self) -> bool {
        !self.0.lock().lost
    }

    /// Reads the rest, within the bound. `false`: too large, or the client broke off.
    pub async fn complete(&self) -> bool {
        let mut rest = self.attempt();
        while self.can_be_sent_again() {
            if self.0.lock().has_all_data() {
                return true;
            }
            match rest.frame().await {
                None => return true,
                Some(Ok(_)) => {}
                Some(Err(_)) => return false,
            }
        }
        false
    }
}

/// Where one attempt is in the body.
pub(crate) struct ReplayCursor {
    kept: Arc<Mutex<Kept>>,
    next: usize,
    trailers_sent: bool,
}

impl ReplayCursor {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut kept = self.kept.lock();
        if let Some(chunk) = kept.chunks.get(self.next).filter(|_| !kept.lost) {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        if kept.complete {
            let trailers = kept.trailers.clone().filter(|_| !self.trailers_sent);
            self.trailers_sent = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let Kept { incoming, clock, .. } = &mut *kept;
        let frame = ready!(poll_client(incoming, clock, cx));
        let frame = kept.keep(frame);
        self.next = kept.chunks.len();
        self.trailers_sent |= frame.is_none();
        Poll::Ready(frame)
    }
}

impl Kept {
    /// Whether nothing is missing but perhaps the word that nothing is.
    fn has_all_data(&self) -> bool {
        self.complete || self.incoming.size_hint().exact() == Some(0)
    }

    fn keep(&mut self, frame: Option<Result<Frame<Bytes>, BodyError>>) -> Option<Result<Frame<Bytes>, BodyError>> {
        let frame = match frame {
            None => {
                self.complete = true;
                self.clock.stop();
                return None;
            }
            Some(Err(error)) => {
                self.lose();
                return Some(Err(error));
            }
            Some(Ok(frame)) => frame,
        };
        if let Some(data) = frame.data_ref() {
            self.bytes = self.bytes.saturating_add(data.len());
            if self.bytes > self.bytes_max {
                self.lose();
            } else if !self.lost && !data.is_empty() {
                self.chunks.push(data.clone());
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
        }
        Some(Ok(frame))
    }

    fn lose(&mut self) {
        self.lost = true;
        self.chunks = Vec::new();
    }
}

/// An answer's body before it is tied to the client's request.
pub(crate) enum UpstreamBody {
    Empty,
    /// All of it.
    Full(Bytes),
    /// Streamed over an HTTP/1.1 connection that goes back to its pool at the end.
    Stream(Box<AnswerStream>),
    /// Streamed over an HTTP/2 connection.
    Incoming(Incoming),
    /// None: the connection has changed its protocol.
    Switched(Box<Switched>),
}

/// An answer's body; the request is in flight as long as this lives.
pub(crate) struct AnswerBody {
    body: UpstreamBody,
    request: RequestGuard,
}

impl AnswerBody {
    pub fn new(body: UpstreamBody, request: RequestGuard) -> Self {
        Self { body, request }
    }
}

impl fmt::Debug for AnswerBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnswerBody").finish_non_exhaustive()
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = match &mut this.body {
            UpstreamBody::Empty | UpstreamBody::Switched(_) => return Poll::Ready(None),
            UpstreamBody::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.body = UpstreamBody::Empty;
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            UpstreamBody::Stream(body) => ready!(body.poll_frame(cx)),
            UpstreamBody::Incoming(body) => {
                ready!(Pin::new(body).poll_frame(cx)).map(|frame| frame.map_err(Into::into))
            }
        };
        if let Some(Err(error)) = &frame {
            tracing::debug!(error = &**error as &dyn StdError, "upstream broke off in the middle of an answer");
            this.request.broken_off();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            UpstreamBody::Empty | UpstreamBody::Switched(_) => true,
            UpstreamBody::Full(bytes) => bytes.is_empty(),
            UpstreamBody::Stream(body) => body.is_end_stream(),
            UpstreamBody::Incoming(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            UpstreamBody::Empty | UpstreamBody::Switched(_) => SizeHint::with_exact(0),
            UpstreamBody::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            UpstreamBody::Stream(body) => body.size_hint(),
            UpstreamBody::Incoming(body) => body.size_hint(),
        }
    }
}
