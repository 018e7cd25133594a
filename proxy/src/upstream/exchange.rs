//! One request and its answer on an HTTP/1.1 connection, driven by whoever waits for it.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{Request, Response};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{SendFailure, Unsent, Upstream, describe};
use crate::body::{RequestBody, UpstreamBody};
use crate::seldom::Seldom;
use crate::socket::Socket;

/// The waker that a connection and its answer are polled with. While the task itself is at it, they wake nobody: what
/// one of them wakes the other for is seen in the same poll. (Otherwise every request would run its task twice as often.)
#[derive(Default)]
struct Quiet {
    task: AtomicWaker,
    polling: AtomicBool,
    woken: AtomicBool,
}

impl Wake for Quiet {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        if !self.polling.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

type Sent = Result<Response<Incoming>, hyper::client::conn::TrySendError<Request<RequestBody>>>;

/// How often a poll goes on by itself before it lets other tasks run.
const ROUNDS_MAX: usize = 8;

/// A connection and the state machine that must be polled for anything to happen on it.
pub(super) struct H1Connection {
    quiet: Arc<Quiet>,
    waker: Waker,
    sender: http1::SendRequest<RequestBody>,
    /// `None` once it has ended.
    driver: Option<http1::Connection<TokioIo<Socket>, RequestBody>>,
    /// Of one of the requests on this connection; moved only when it fires. `None`: no request was limited.
    timer: Option<Seldom<Sleep>>,
}

impl H1Connection {
    pub fn new(
        sender: http1::SendRequest<RequestBody>,
        driver: http1::Connection<TokioIo<Socket>, RequestBody>,
    ) -> Self {
        let quiet = Arc::new(Quiet::default());
        Self { waker: Waker::from(Arc::clone(&quiet)), quiet, sender, driver: Some(driver), timer: None }
    }

    /// Polls something that depends on this connection until it is ready or waits for somebody outside.
    fn poll_quietly<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&mut Self, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let waker = self.waker.clone();
        let mut quiet = Context::from_waker(&waker);
        self.quiet.task.register(cx.waker());
        for _ in 0..ROUNDS_MAX {
            self.quiet.woken.store(false, Ordering::SeqCst);
            self.quiet.polling.store(true, Ordering::SeqCst);
            let polled = poll(self, &mut quiet);
            // From here on a wake reaches the task; one that came before shows in `woken`.
            self.quiet.polling.store(false, Ordering::SeqCst);
            if polled.is_ready() || !self.quiet.woken.load(Ordering::SeqCst) {
                return polled;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Queues a request without waking the task that is about to drive it.
    fn send(&mut self, request: Request<RequestBody>) -> impl Future<Output = Sent> + use<> {
        self.quiet.polling.store(true, Ordering::SeqCst);
        self.sender.try_send_request(request)
    }

    /// Lets the connection read and write what it can. What comes of it shows in the answer or its body.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && Pin::new(driver).poll(cx).is_ready()
        {
            self.driver = None;
        }
    }

    /// Whether another request may be sent.
    fn is_reusable(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.sender.is_ready() {
            // Pending or not: what counts is the state after it.
            let _ = self.poll_quietly(cx, |connection, cx| {
                connection.drive(cx);
                Poll::<()>::Pending
            });
        }
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Ready when `deadline` has passed.
    fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Seldom::new(sleep_until(deadline)));
        while Pin::new(&mut *timer).poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            // It was set for an earlier request.
            timer.change().reset(deadline);
        }
        Poll::Pending
    }
}

/// Sends the request and waits for the answer's header, at most `limit` (zero = unlimited); takes a short body along if
/// it is there already. `pooled`: the connection has served before.
pub(super) async fn run(
    upstream: &Arc<Upstream>,
    mut connection: Box<H1Connection>,
    slot: &mut Unsent,
    limit: Duration,
    pooled: bool,
) -> Result<Response<UpstreamBody>, SendFailure> {
    let deadline = (!limit.is_zero()).then(|| Instant::now() + limit);
    let mut answer = std::pin::pin!(connection.send(slot.take().ok_or_else(SendFailure::gone)?));
    let answer = poll_fn(|cx| {
        let answer = connection.poll_quietly(cx, |connection, cx| {
            connection.drive(cx);
            answer.as_mut().poll(cx)
        });
        match (answer, deadline) {
            (Poll::Pending, Some(deadline)) => connection.poll_deadline(cx, deadline).map(|()| None),
            (answer, _) => answer.map(Some),
        }
    })
    .await;
    let (head, body) = match answer {
        None => return Err(SendFailure::Timeout),
        Some(Ok(answer)) => answer.into_parts(),
        Some(Err(mut failed)) => {
            *slot = failed.take_message();
            let error = failed.into_error();
            return Err(match slot {
                Some(_) => SendFailure::Unsent(io::Error::other(describe(&error))),
                // What cannot be parsed is no end: the peer has received the request.
                None => SendFailure::Lost { why: describe(&error), crossed: pooled && !error.is_parse() },
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
        let body = &mut self.body;
        let frame = match &mut self.connection {
            None => Pin::new(body).poll_frame(cx),
            Some(connection) => connection.poll_quietly(cx, |connection, cx| {
                let frame = Pin::new(&mut *body).poll_frame(cx);
                if frame.is_ready() {
                    return frame;
                }
                // The poll has told the connection that somebody wants data.
                connection.drive(cx);
                Pin::new(&mut *body).poll_frame(cx)
            }),
        };
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

#[cfg(test)]
mod tests {
    use futures_util::future::poll_immediate;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn a_timer_left_by_one_request_serves_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let stream = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connect");
        let (sender, driver) = http1::handshake(TokioIo::new(Socket(stream))).await.expect("handshake");
        let mut connection = H1Connection::new(sender, driver);
        let (soon, far) = (Duration::from_millis(20), Duration::from_secs(1000));
        for _ in 0..3 {
            // Left behind by a task that has gone, and it fires when nobody waits.
            let first = Instant::now() + soon;
            connection = tokio::spawn(async move {
                poll_immediate(poll_fn(|cx| connection.poll_deadline(cx, first))).await;
                connection
            })
            .await
            .expect("task");
            tokio::time::sleep_until(first + soon).await;
            let second = Instant::now() + soon;
            poll_fn(|cx| connection.poll_deadline(cx, second)).await;
            assert!(Instant::now() >= second, "too early");
            // (Only then: a request that was late takes its connection along.)
            connection.timer = None;
        }
        let third = Instant::now() + far;
        assert!(poll_immediate(poll_fn(|cx| connection.poll_deadline(cx, third))).await.is_none());
    }
}
