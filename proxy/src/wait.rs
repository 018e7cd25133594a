//! Wait: for a position to be applied here, or for a primary to be known. Nothing polls.

use std::time::Duration;

use tokio::sync::{SemaphorePermit, watch};
use tokio::time::{Instant, timeout_at};

use crate::metrics::Held;
use crate::node::{Primary, Role};
use crate::route::first_missing;
use crate::server::Shared;
use crate::token::Token;

/// Between two looks whether a lease that had run out is valid again.
const RENEWAL_LOOK: Duration = Duration::from_millis(100);

/// A place among the waiting requests, of which there are at most `proxy.max-waiting`.
struct Place<'a> {
    _permit: SemaphorePermit<'a>,
    _gauge: Held,
    since: std::time::Instant,
    shared: &'a Shared,
}

impl<'a> Place<'a> {
    /// `None`: too many wait already; one more would only make it worse for all.
    fn take(shared: &'a Shared) -> Option<Self> {
        let permit = shared.places.try_acquire().ok()?;
        Some(Self {
            _permit: permit,
            _gauge: Held::new(&shared.metrics.waiting),
            since: std::time::Instant::now(),
            shared,
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.shared.metrics.waits.observe(self.since.elapsed().as_secs_f64());
    }
}

/// How a wait for a position ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reached {
    /// Everything the client has seen is here.
    Here,
    /// This node has become the primary.
    WePrimary,
    /// Too long; the primary can be asked.
    AskPrimary,
    /// Too long, and there is nobody to ask.
    Nobody,
}

/// Waits for what the client has seen: `proxy.replica-wait`, and longer only while there is no primary to ask instead.
pub(crate) async fn for_position(shared: &Shared, token: &Token) -> Reached {
    let Some(_place) = Place::take(shared) else { return ask(shared, &shared.role()) };
    let settings = &shared.config.settings;
    let mut role = shared.role.clone();
    let reached = async {
        loop {
            // First: what the positions mean may change with it.
            shared.cluster.shared_history().await;
            match first_missing(&shared.config, token, shared.positions.as_ref()) {
                Some((db, txid)) => shared.positions.wait(db, txid).await,
                None if shared.cluster.has_shared_history() => return,
                None => {}
            }
        }
    };
    let mut reached = std::pin::pin!(reached);
    let begin = Instant::now();
    tokio::select! {
        biased;
        () = &mut reached => return Reached::Here,
        () = until_primary(shared, &mut role) => return Reached::WePrimary,
        () = tokio::time::sleep_until(begin + settings.replica_wait) => {}
    }
    let patience = settings.primary_redirect_timeout.max(settings.replica_wait);
    tokio::select! {
        biased;
        () = &mut reached => Reached::Here,
        asked = until_somebody(shared, &mut role) => asked,
        () = shared.drain.cancelled() => Reached::Nobody,
        () = tokio::time::sleep_until(begin + patience) => Reached::Nobody,
    }
}

/// Who can be asked, now that this is the role.
fn ask(shared: &Shared, role: &Role) -> Reached {
    match role {
        Role::Primary if shared.cluster.lease_covers(std::time::Instant::now()) => Reached::WePrimary,
        Role::Replica(_) => Reached::AskPrimary,
        Role::Primary | Role::NoPrimary => Reached::Nobody,
    }
}

/// The role from now on, and the next call of [`changed`] waits for another one. Cloned: nothing is called while the
/// channel is locked.
fn look(role: &mut watch::Receiver<Role>) -> Role {
    role.borrow_and_update().clone()
}

/// The role is another one than at the last [`look`].
async fn changed(role: &mut watch::Receiver<Role>) {
    if role.changed().await.is_err() {
        // The node has gone; the wait's own bound ends it.
        std::future::pending::<()>().await;
    }
}

/// Sleeps until this node becomes the primary under a lease.
async fn until_primary(shared: &Shared, role: &mut watch::Receiver<Role>) {
    while ask(shared, &look(role)) != Reached::WePrimary {
        changed(role).await;
    }
}

/// Sleeps until the role is one that answers. A node that takes itself for the primary without a lease learns better,
/// or renews the lease: the one shows as a change of the role, the other is looked for.
async fn until_somebody(shared: &Shared, role: &mut watch::Receiver<Role>) -> Reached {
    loop {
        let now = look(role);
        match ask(shared, &now) {
            Reached::Nobody if now == Role::Primary => {
                let _ = tokio::time::timeout(RENEWAL_LOOK, changed(role)).await;
            }
            Reached::Nobody => changed(role).await,
            found => return found,
        }
    }
}

/// The primary, when one is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    We,
    Other(Primary),
}

/// Waits until there is a primary, at most until `deadline`. `None`: there is none, or too many wait already, or the
/// node is stopping: it has given its role up and learns of no primary any more.
pub(crate) async fn for_primary(shared: &Shared, deadline: Instant) -> Option<Found> {
    let found = |role: &Role| match role {
        Role::Primary => Some(Found::We),
        Role::Replica(primary) => Some(Found::Other(primary.clone())),
        Role::NoPrimary => None,
    };
    if let Some(found) = found(&shared.role.borrow()) {
        return Some(found);
    }
    let _place = Place::take(shared)?;
    let mut role = shared.role.clone();
    tokio::select! {
        biased;
        known = timeout_at(deadline, role.wait_for(|role| *role != Role::NoPrimary)) => found(&*known.ok()?.ok()?),
        () = shared.drain.cancelled() => None,
    }
}

/// Waits for the role to become another one than `known`, at most `patience`. `false`: too many wait already.
pub(crate) async fn for_change(shared: &Shared, known: &Primary, patience: Duration) -> bool {
    let Some(_place) = Place::take(shared) else { return false };
    let mut role = shared.role.clone();
    let another = async {
        while matches!(look(&mut role), Role::Replica(primary) if primary == *known) {
            changed(&mut role).await;
        }
    };
    // Not changed: the caller tries the same primary again.
    let _ = tokio::time::timeout(patience, another).await;
    true
}
