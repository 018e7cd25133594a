//! The replicas connected to this node, and what the role machine asks of their streams.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

/// Most streams at once; the next is answered 503.
const STREAMS_MAX: usize = 256;

/// A connected replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaInfo {
    /// The replica's node ID (`Litefs-Id`).
    pub node_id: u64,
    /// Its address, as the connection shows it.
    pub address: String,
}

/// Why a stream could not be given an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SubscriberError {
    /// No replica with this ID is connected.
    #[error("no replica with this node ID is connected")]
    NotConnected,
    /// The stream ended, or did not get to it in time.
    #[error("the replica's stream did not take the order in time")]
    Lost,
    /// Too many streams.
    #[error("too many replicas are connected")]
    Full,
}

/// An order to the task of one stream.
#[derive(Debug)]
pub(crate) enum Order {
    /// Send everything committed, then the handoff frame.
    Handoff { lease_id: String, done: oneshot::Sender<()> },
    /// Send everything committed, then say so.
    Drain { done: oneshot::Sender<()> },
}

#[derive(Debug, Default)]
struct Table {
    next_key: u64,
    streams: BTreeMap<u64, (ReplicaInfo, mpsc::Sender<Order>)>,
}

/// The table of connected replicas. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Subscribers {
    table: Arc<Mutex<Table>>,
}

/// A stream's entry in the table; leaving is dropping it.
#[derive(Debug)]
pub(crate) struct Subscription {
    key: u64,
    table: Arc<Mutex<Table>>,
    pub(crate) orders: mpsc::Receiver<Order>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.table.lock().streams.remove(&self.key);
    }
}

impl Subscribers {
    /// The replicas connected now.
    #[must_use]
    pub fn replicas(&self) -> Vec<ReplicaInfo> {
        self.table.lock().streams.values().map(|(info, _)| info.clone()).collect()
    }

    /// How many streams there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.table.lock().streams.len()
    }

    pub(crate) fn join(&self, info: ReplicaInfo) -> Result<Subscription, SubscriberError> {
        let mut table = self.table.lock();
        if table.streams.len() >= STREAMS_MAX {
            return Err(SubscriberError::Full);
        }
        let (sender, orders) = mpsc::channel(4);
        let key = table.next_key;
        table.next_key += 1;
        table.streams.insert(key, (info, sender));
        Ok(Subscription { key, table: self.table.clone(), orders })
    }

    /// Whether a replica with this ID is connected.
    #[must_use]
    pub fn is_connected(&self, node_id: u64) -> bool {
        self.stream_of(node_id).is_some()
    }

    /// A replica that reconnected may still have its old stream in the table: the newest is the live one.
    fn stream_of(&self, node_id: u64) -> Option<mpsc::Sender<Order>> {
        let table = self.table.lock();
        table.streams.values().rev().find(|(info, _)| info.node_id == node_id).map(|(_, orders)| orders.clone())
    }

    /// Sends a replica everything committed so far, and then the lease. Call it with the fence closed, so that there is
    /// nothing after it. The stream ends with it.
    ///
    /// # Errors
    /// When the replica is not connected, or its stream did not take it within `wait`.
    pub async fn handoff(&self, node_id: u64, lease_id: &str, wait: Duration) -> Result<(), SubscriberError> {
        let lease_id = lease_id.to_owned();
        self.order(node_id, |done| Order::Handoff { lease_id, done }, wait).await
    }

    /// Sends a replica everything committed so far.
    ///
    /// # Errors
    /// When the replica is not connected, or its stream did not take it within `wait`.
    pub async fn send_tail(&self, node_id: u64, wait: Duration) -> Result<(), SubscriberError> {
        self.order(node_id, |done| Order::Drain { done }, wait).await
    }

    async fn order(
        &self,
        node_id: u64,
        order: impl FnOnce(oneshot::Sender<()>) -> Order,
        wait: Duration,
    ) -> Result<(), SubscriberError> {
        let orders = self.stream_of(node_id).ok_or(SubscriberError::NotConnected)?;
        let (done, answer) = oneshot::channel();
        let order = order(done);
        let sent = async { orders.send(order).await.is_ok() && answer.await.is_ok() };
        match tokio::time::timeout(wait, sent).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(SubscriberError::Lost),
        }
    }

    /// Waits until everything committed so far has been sent to all replicas, but no longer than `wait`. Returns how
    /// many did not get it.
    pub async fn drain(&self, wait: Duration) -> usize {
        let streams: Vec<_> = self.table.lock().streams.values().map(|(_, orders)| orders.clone()).collect();
        let drained = streams.into_iter().map(|orders| async move {
            let (done, answer) = oneshot::channel();
            let sent = async { orders.send(Order::Drain { done }).await.is_ok() && answer.await.is_ok() };
            matches!(tokio::time::timeout(wait, sent).await, Ok(true))
        });
        futures_util::future::join_all(drained).await.into_iter().filter(|drained| !drained).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(node_id: u64) -> ReplicaInfo {
        ReplicaInfo { node_id, address: "127.0.0.1:1".into() }
    }

    #[tokio::test]
    async fn a_handoff_reaches_the_newest_stream_of_the_node() {
        let subscribers = Subscribers::default();
        let _old = subscribers.join(info(1)).expect("room");
        let mut new = subscribers.join(info(1)).expect("room");
        let taken = tokio::spawn(async move {
            let Some(Order::Handoff { lease_id, done }) = new.orders.recv().await else { panic!("no order") };
            done.send(()).expect("someone waits");
            lease_id
        });
        assert_eq!(subscribers.handoff(1, "lease", Duration::from_secs(60)).await, Ok(()));
        assert_eq!(taken.await.expect("taken"), "lease");
        let error = subscribers.handoff(2, "lease", Duration::from_secs(60)).await;
        assert_eq!(error, Err(SubscriberError::NotConnected));
    }

    #[tokio::test]
    async fn streams_leave_the_table_and_their_number_is_bounded() {
        let subscribers = Subscribers::default();
        let mut all: Vec<_> = (0..STREAMS_MAX as u64).map(|id| subscribers.join(info(id)).expect("room")).collect();
        assert_eq!(subscribers.join(info(999)).err(), Some(SubscriberError::Full));
        all.pop();
        assert_eq!(subscribers.count(), STREAMS_MAX - 1);
        assert!(subscribers.join(info(999)).is_ok());
    }

    #[tokio::test]
    async fn draining_counts_streams_that_ended() {
        let subscribers = Subscribers::default();
        let mut good = subscribers.join(info(1)).expect("room");
        let mut bad = subscribers.join(info(2)).expect("room");
        tokio::spawn(async move {
            let Some(Order::Drain { done }) = good.orders.recv().await else { panic!("no order") };
            done.send(()).expect("someone waits");
        });
        tokio::spawn(async move {
            bad.orders.recv().await;
        });
        assert_eq!(subscribers.drain(Duration::from_secs(60)).await, 1);
    }
}
