//! A cluster's lease in memory, with the semantics of the one in Consul.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::candidates::NodeRecord;
use crate::clock::BootInstant;
use crate::leaser::{
    Acquire, BoxFuture, ClusterView, HandOver, Heartbeat, Holder, Lease, LeaseError, LeaseId, Leaser, LeaserKind,
    PrimaryInfo, Version,
};
use crate::takeover::{TakeOver, Timing};

/// How long a lease is valid without renewal when there is no heartbeat.
const TTL: Duration = Duration::from_secs(10);

/// What the nodes share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MemoryCluster {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    timing: Option<Timing>,
    state: Mutex<State>,
    /// The version, for watchers.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    view: ClusterView,
    index: u64,
    leases: u64,
    /// Nodes whose requests fail.
    cut_off: Vec<String>,
}

impl MemoryCluster {
    /// An empty cluster.
    #[must_use]
    pub fn new(timing: Option<Timing>) -> Self {
        let shared = Shared { timing, state: Mutex::default(), changed: watch::Sender::new(0) };
        Self { shared: Arc::new(shared) }
    }

    /// The node that calls itself `hostname` (advertised as `http://<hostname>`).
    #[must_use]
    pub fn node(&self, hostname: &str) -> Arc<dyn Leaser> {
        let me =
            PrimaryInfo { hostname: hostname.to_owned(), advertise_url: format!("http://{hostname}"), proxy_url: None };
        Arc::new(Node { shared: self.shared.clone(), me })
    }

    /// From now on requests of this node fail.
    pub fn cut_off(&self, hostname: &str) {
        self.shared.state.lock().cut_off.push(hostname.to_owned());
    }

    /// Requests of all nodes work again.
    pub fn reconnect(&self) {
        self.shared.state.lock().cut_off.clear();
    }

    /// Changes the recorded state behind everybody's back: an expired session, a LiteFS node, an operator.
    pub fn change(&self, change: impl FnOnce(&mut ClusterView)) {
        let mut state = self.shared.state.lock();
        change(&mut state.view);
        self.shared.touch(&mut state);
    }

    /// What is recorded now.
    #[must_use]
    pub fn view(&self) -> ClusterView {
        self.shared.state.lock().view.clone()
    }
}

impl Shared {
    fn touch(&self, state: &mut State) -> u64 {
        state.index += 1;
        state.view.version = Version(state.index);
        self.changed.send_replace(state.index);
        state.index
    }

    fn beat(&self, state: &mut State, lease: &LeaseId) {
        let index = self.touch(state);
        let key_index = state.view.holder.as_ref().map_or(0, |holder| holder.index);
        state.view.heartbeat = self.timing.map(|timing| Heartbeat {
            lease: lease.clone(),
            key_index,
            fence_after: timing.fence_after,
            index,
        });
    }

    fn reach(&self, hostname: &str) -> Result<(), LeaseError> {
        if self.state.lock().cut_off.iter().any(|cut| cut == hostname) {
            return Err(LeaseError::Unavailable("cut off".to_owned()));
        }
        Ok(())
    }
}

impl State {
    fn is_held_by(&self, lease: &LeaseId) -> bool {
        self.view.holder.as_ref().is_some_and(|holder| holder.lease == *lease)
    }

    fn is_unchanged(&self, from: &TakeOver) -> bool {
        let held = self.view.holder.as_ref().is_some_and(|h| h.lease == from.lease && h.index == from.key_index);
        held && self.view.heartbeat.as_ref().map(|heartbeat| heartbeat.index) == from.heartbeat_index
    }
}

#[derive(Debug)]
struct Node {
    shared: Arc<Shared>,
    me: PrimaryInfo,
}

impl Node {
    fn acquire_now(&self, how: Acquire) -> Result<MemoryLease, LeaseError> {
        let start = BootInstant::now();
        self.shared.reach(&self.me.hostname)?;
        let mut state = self.shared.state.lock();
        let id = match how {
            Acquire::Free if state.view.holder.is_some() => return Err(LeaseError::Held),
            Acquire::TakeOver(from) if !state.is_unchanged(&from) => return Err(LeaseError::Changed),
            Acquire::Existing(id) if state.is_held_by(&id) => id,
            Acquire::Existing(_) => return Err(LeaseError::Changed),
            Acquire::Free | Acquire::TakeOver(_) => {
                state.leases += 1;
                LeaseId(format!("lease-{}", state.leases))
            }
        };
        let index = self.shared.touch(&mut state);
        state.view.holder = Some(Holder { info: self.me.clone(), lease: id.clone(), index });
        state.view.heartbeat = None;
        Ok(MemoryLease { shared: self.shared.clone(), hostname: self.me.hostname.clone(), id, renewed: start })
    }
}

impl Leaser for Node {
    fn kind(&self) -> LeaserKind {
        LeaserKind::Consul
    }

    fn me(&self) -> &PrimaryInfo {
        &self.me
    }

    fn timing(&self) -> Option<Timing> {
        self.shared.timing
    }

    fn watch(&self, after: Option<Version>) -> BoxFuture<'_, Result<ClusterView, LeaseError>> {
        Box::pin(async move {
            self.shared.reach(&self.me.hostname)?;
            if let Some(Version(after)) = after {
                let mut changed = self.shared.changed.subscribe();
                let _ = tokio::time::timeout(Duration::from_secs(10), changed.wait_for(|index| *index > after)).await;
                self.shared.reach(&self.me.hostname)?;
            }
            Ok(self.shared.state.lock().view.clone())
        })
    }

    fn acquire(&self, how: Acquire) -> BoxFuture<'_, Result<Box<dyn Lease>, LeaseError>> {
        Box::pin(async move { Ok(Box::new(self.acquire_now(how)?) as Box<dyn Lease>) })
    }

    fn set_cluster_id<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<String, LeaseError>> {
        Box::pin(async move {
            self.shared.reach(&self.me.hostname)?;
            let mut state = self.shared.state.lock();
            let recorded = state.view.cluster_id.get_or_insert_with(|| id.to_owned()).clone();
            self.shared.touch(&mut state);
            Ok(recorded)
        })
    }

    fn record<'a>(&'a self, record: &'a NodeRecord) -> BoxFuture<'a, Result<(), LeaseError>> {
        Box::pin(async move {
            self.shared.reach(&self.me.hostname)?;
            let mut state = self.shared.state.lock();
            let index = self.shared.touch(&mut state);
            state.view.nodes.retain(|(other, _)| other.hostname != record.hostname);
            state.view.nodes.push((record.clone(), index));
            Ok(())
        })
    }
}

#[derive(Debug)]
struct MemoryLease {
    shared: Arc<Shared>,
    hostname: String,
    id: LeaseId,
    renewed: BootInstant,
}

impl MemoryLease {
    fn held(&self) -> Result<parking_lot::MutexGuard<'_, State>, LeaseError> {
        self.shared.reach(&self.hostname)?;
        let state = self.shared.state.lock();
        if state.is_held_by(&self.id) { Ok(state) } else { Err(LeaseError::Lost("held by another node".to_owned())) }
    }
}

impl Lease for MemoryLease {
    fn id(&self) -> &LeaseId {
        &self.id
    }

    fn deadline(&self) -> BootInstant {
        self.renewed.after(self.shared.timing.map_or(TTL, |timing| timing.fence_after))
    }

    fn renew_every(&self) -> Option<Duration> {
        Some(self.shared.timing.map_or(TTL / 2, |timing| timing.heartbeat))
    }

    fn renew(&mut self) -> BoxFuture<'_, Result<BootInstant, LeaseError>> {
        Box::pin(async move {
            let start = BootInstant::now();
            {
                let mut state = self.held()?;
                self.shared.beat(&mut state, &self.id);
            }
            self.renewed = start;
            Ok(self.deadline())
        })
    }

    fn hand_over(&mut self) -> BoxFuture<'_, Result<HandOver, LeaseError>> {
        Box::pin(async move {
            let mut state = self.held()?;
            state.view.heartbeat = None;
            self.shared.touch(&mut state);
            let key_index = state.view.holder.as_ref().map_or(0, |holder| holder.index);
            let reclaim = TakeOver { lease: self.id.clone(), key_index, heartbeat_index: None };
            Ok(HandOver { lease: self.id.clone(), reclaim })
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, Result<(), LeaseError>> {
        Box::pin(async move {
            if let Ok(mut state) = self.held() {
                state.view.holder = None;
                state.view.heartbeat = None;
                self.shared.touch(&mut state);
            }
            Ok(())
        })
    }
}
