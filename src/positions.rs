//! Where a database is, published in one place, and waiting for it to get there.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{Pos, Txid};

/// The published position of one database. An advance wakes exactly the waiters it satisfies; nobody polls.
#[derive(Debug, Default)]
pub struct Positions {
    /// A leaf: nothing else is locked, and nothing is called, while it is held.
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    pos: Pos,
    /// Ordered by what they wait for; the number tells equal ones apart.
    waiters: BTreeMap<(Txid, u64), oneshot::Sender<Pos>>,
    next_waiter: u64,
}

/// Takes the waiter out again when its future is dropped before it was woken.
struct Registration<'a> {
    positions: &'a Positions,
    key: (Txid, u64),
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        self.positions.inner.lock().waiters.remove(&self.key);
    }
}

impl Positions {
    /// Starts at `pos`.
    #[must_use]
    pub fn new(pos: Pos) -> Self {
        Self { inner: Mutex::new(Inner { pos, ..Inner::default() }) }
    }

    /// The position last published.
    #[must_use]
    pub fn get(&self) -> Pos {
        self.inner.lock().pos
    }

    /// Publishes a position (which may lie before the old one: a diverged tail was set aside) and wakes who waited for it.
    pub fn publish(&self, pos: Pos) {
        let reached = {
            let mut inner = self.inner.lock();
            inner.pos = pos;
            let later = inner.waiters.split_off(&(pos.txid.next(), 0));
            std::mem::replace(&mut inner.waiters, later)
        };
        for waiter in reached.into_values() {
            // The receiver may have given up in this instant.
            let _ = waiter.send(pos);
        }
    }

    /// Sleeps until the TXID is at least `txid`; answers the position that satisfied it. Cancel-safe.
    pub async fn wait(&self, txid: Txid) -> Pos {
        loop {
            let (receiver, registration) = {
                let mut inner = self.inner.lock();
                if inner.pos.txid >= txid {
                    return inner.pos;
                }
                let key = (txid, inner.next_waiter);
                inner.next_waiter += 1;
                let (sender, receiver) = oneshot::channel();
                inner.waiters.insert(key, sender);
                (receiver, Registration { positions: self, key })
            };
            if let Ok(pos) = receiver.await {
                return pos;
            }
            drop(registration);
        }
    }

    /// How many wait at this moment.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.inner.lock().waiters.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::Checksum;

    fn pos(txid: u64) -> Pos {
        Pos::new(Txid(txid), Checksum::EMPTY)
    }

    #[tokio::test]
    async fn an_advance_wakes_those_it_satisfies_and_no_others() {
        let positions = Arc::new(Positions::new(pos(1)));
        assert_eq!(positions.wait(Txid(1)).await, pos(1));
        let wait = |txid| {
            let positions = positions.clone();
            tokio::spawn(async move { positions.wait(Txid(txid)).await })
        };
        let (second, third) = (wait(2), wait(3));
        while positions.waiting() < 2 {
            tokio::task::yield_now().await;
        }
        positions.publish(pos(2));
        assert_eq!(second.await.expect("woken"), pos(2));
        assert_eq!(positions.waiting(), 1);
        positions.publish(pos(7));
        assert_eq!(third.await.expect("woken"), pos(7));
    }

    #[tokio::test]
    async fn a_cancelled_waiter_leaves_nothing_behind() {
        let positions = Positions::new(Pos::ZERO);
        assert!(tokio::time::timeout(Duration::from_millis(1), positions.wait(Txid(9))).await.is_err());
        assert_eq!(positions.waiting(), 0);
    }
}
