//! A lease that is held in Consul.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::client::Committed;
use super::model::{HeartbeatValue, KeyValue, Operation};
use crate::clock::BootInstant;
use crate::leaser::{BoxFuture, HandOver, Lease, LeaseError, LeaseId};
use crate::takeover::TakeOver;

/// The lease key, held with a session of ours.
#[derive(Debug)]
pub(super) struct ConsulLease {
    shared: Arc<Shared>,
    id: LeaseId,
    /// `ModifyIndex` of the lease key since we acquired it.
    key_index: u64,
    /// Start of the last successful renewal of the session.
    session_renewed: BootInstant,
    /// Start of the last transaction that found the key held by our session.
    proved: BootInstant,
    beat: u64,
}

impl ConsulLease {
    /// `session_start`, `proof_start`: when the requests were *started* that renewed the session and took the key.
    pub(super) const fn new(
        shared: Arc<Shared>,
        id: LeaseId,
        key_index: u64,
        session_start: BootInstant,
        proof_start: BootInstant,
    ) -> Self {
        Self { shared, id, key_index, session_renewed: session_start, proved: proof_start, beat: 0 }
    }

    /// One transaction that proves the key to be ours and beats the heart, if it beats.
    async fn prove(&self) -> Result<(), LeaseError> {
        let keys = &self.shared.keys;
        let mut operations = vec![Operation::check_session(&keys.lease, &self.id)];
        if let Some(value) = self.heartbeat_value() {
            operations.push(Operation::set(&keys.heartbeat, &value));
        }
        self.transact(&operations).await.map(drop)
    }

    fn heartbeat_value(&self) -> Option<Vec<u8>> {
        let fence_after_ms = u64::try_from(self.shared.timing?.fence_after.as_millis()).unwrap_or(u64::MAX);
        let (lease, key_index, beat) = (self.id.clone(), self.key_index, self.beat);
        serde_json::to_vec(&HeartbeatValue { lease, key_index, beat, fence_after_ms }).ok()
    }

    async fn transact(&self, operations: &[Operation<'_>]) -> Result<Vec<KeyValue>, LeaseError> {
        match self.shared.client.transact(operations).await? {
            Committed::Yes(results) => Ok(results),
            Committed::No(reasons) => Err(LeaseError::Lost(reasons)),
        }
    }

    async fn renew_session(&self, due: bool) -> Result<(), LeaseError> {
        if due { self.shared.client.renew_session(&self.id).await } else { Ok(()) }
    }

    async fn renew_both(&mut self) -> Result<BootInstant, LeaseError> {
        let start = BootInstant::now();
        let session_due = start.since(self.session_renewed) >= self.shared.ttl / 2;
        let session_due = session_due || self.shared.timing.is_none();
        self.beat += 1; // At once: a beat without an answer may have been applied, and its number must not be used again.
        let (proved, session) = tokio::join!(self.prove(), self.renew_session(session_due));
        if proved.is_ok() {
            self.proved = start;
        }
        if session_due && session.is_ok() {
            self.session_renewed = start;
        }
        proved.and(session).map(|()| self.deadline())
    }

    async fn hand_over_now(&mut self) -> Result<HandOver, LeaseError> {
        let start = BootInstant::now();
        self.renew_session(true).await?;
        self.session_renewed = start;
        let keys = &self.shared.keys;
        let operations = [
            Operation::check_session(&keys.lease, &self.id),
            Operation::delete(&keys.heartbeat),
            Operation::get(&keys.lease),
        ];
        let results = self.transact(&operations).await?;
        let key_index = keys.lease_index(&results)?;
        let reclaim = TakeOver { lease: self.id.clone(), key_index, heartbeat_index: None };
        Ok(HandOver { lease: self.id.clone(), reclaim })
    }
}

impl Lease for ConsulLease {
    fn id(&self) -> &LeaseId {
        &self.id
    }

    fn deadline(&self) -> BootInstant {
        let session = self.session_renewed.after(self.shared.ttl);
        match self.shared.timing {
            Some(timing) => session.min(self.proved.after(timing.fence_after)),
            None => session,
        }
    }

    fn renew_every(&self) -> Option<Duration> {
        Some(self.shared.timing.map_or(self.shared.ttl / 2, |timing| timing.heartbeat))
    }

    fn renew(&mut self) -> BoxFuture<'_, Result<BootInstant, LeaseError>> {
        Box::pin(self.renew_both())
    }

    fn hand_over(&mut self) -> BoxFuture<'_, Result<HandOver, LeaseError>> {
        Box::pin(self.hand_over_now())
    }

    /// The key is deleted while it is still ours, and only then the session is ended: a session that ends with a key in its
    /// hand would put the lock-delay on it.
    fn close(self: Box<Self>) -> BoxFuture<'static, Result<(), LeaseError>> {
        Box::pin(async move {
            let keys = &self.shared.keys;
            let operations = [
                Operation::check_session(&keys.lease, &self.id),
                Operation::delete(&keys.lease),
                Operation::delete(&keys.heartbeat),
            ];
            let released = match self.transact(&operations).await {
                Ok(_) | Err(LeaseError::Lost(_)) => Ok(()),
                Err(error) => Err(error),
            };
            let destroyed = self.shared.client.destroy_session(&self.id).await;
            released.and(destroyed)
        })
    }
}
