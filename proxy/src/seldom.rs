//! Futures that a busy task waits for beside its real work: timers, the end of the proxy.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

/// A future that is polled only when it asked for it, not whenever its task runs for another reason: a task that runs
/// twice for each request would otherwise look at its timers as often. Once it was ready it must not be waited for again
/// before a [`Seldom::change`]: nobody wakes it.
pub(crate) struct Seldom<F> {
    future: Pin<Box<F>>,
    bell: Arc<Bell>,
    waker: Waker,
    /// The task that polled last, as the bell knows it.
    task: Option<Waker>,
}

/// The waker of the future: remembers that it was rung.
struct Bell {
    rung: AtomicBool,
    /// Who is woken, every time: the task does not register itself again after each.
    task: Mutex<Option<Waker>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        if let Some(task) = &*self.task.lock() {
            task.wake_by_ref();
        }
    }
}

impl<F: Future> Seldom<F> {
    pub fn new(future: F) -> Self {
        // Rung: the first poll looks at the future.
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), task: Mutex::new(None) });
        Self { future: Box::pin(future), waker: Waker::from(Arc::clone(&bell)), bell, task: None }
    }

    /// The future, to change what it waits for. It is polled next time.
    pub fn change(&mut self) -> Pin<&mut F> {
        self.bell.rung.store(true, Ordering::Release);
        self.future.as_mut()
    }
}

impl<F: Future> Future for Seldom<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if !this.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            this.task = Some(cx.waker().clone());
            this.bell.task.lock().clone_from(&this.task);
        }
        // Registered before this look: a bell that is rung from now on wakes the task.
        if !this.bell.rung.load(Ordering::Relaxed) || !this.bell.rung.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        this.future.as_mut().poll(&mut Context::from_waker(&this.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;

    use futures_util::future::{join, poll_immediate};
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn it_is_polled_only_when_it_was_woken_and_wakes_whoever_waits() {
        let (sender, mut queue) = mpsc::channel::<u8>(1);
        let polls = AtomicUsize::new(0);
        let mut seldom = Seldom::new(poll_fn(|cx| {
            polls.fetch_add(1, Ordering::Relaxed);
            queue.poll_recv(cx)
        }));
        for round in 0..3 {
            for _ in 0..3 {
                assert!(poll_immediate(&mut seldom).await.is_none());
            }
            let ring = async {
                tokio::task::yield_now().await;
                sender.send(round).await
            };
            let (received, sent) = join(&mut seldom, ring).await;
            assert_eq!((received, sent), (Some(round), Ok(())));
            // Once to find nothing, once more because of the bell.
            assert_eq!(polls.swap(0, Ordering::Relaxed), 2);
            seldom.change();
        }
    }

    #[tokio::test]
    async fn a_changed_future_is_looked_at_again() {
        let mut seldom = Seldom::new(tokio::time::sleep(std::time::Duration::from_secs(1000)));
        assert!(poll_immediate(&mut seldom).await.is_none());
        seldom.change().reset(tokio::time::Instant::now());
        seldom.await;
    }
}
