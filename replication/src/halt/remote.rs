//! The replica's side: locks of other nodes' databases taken for local clients.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use litefs::{Database, DbName, Pos, Store};
use thiserror::Error;
use tokio::sync::{Mutex, Notify, mpsc, oneshot};

use super::shipper::{Finish, Shipper};
use super::{HALT_ACQUIRE_MAX, HaltAnswer};
use crate::peer::{Peer, PeerError, full, query_escape};
use crate::roles::{Role, RoleHandle};

/// How long a waiting client waits while another node holds the lock.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// How long this node may take to reach the primary's position.
const CATCH_UP_MAX: Duration = Duration::from_secs(10);
/// Bound of one `POST /halt`: what the primary may take, and the way.
pub(super) const ASK_MAX: Duration = HALT_ACQUIRE_MAX.saturating_add(Duration::from_secs(5));

/// Why the lock was not taken, or what was written under it not kept.
#[derive(Debug, Error)]
pub enum HaltError {
    /// Held by another node, and the client does not wait (`EAGAIN`).
    #[error("another node holds the HALT lock")]
    Busy,
    /// Another client of this node holds it (`EAGAIN`).
    #[error("another client of this node holds the HALT lock")]
    BusyHere,
    /// There is no such database.
    #[error("unknown database")]
    UnknownDatabase,
    /// Nobody to ask.
    #[error("no primary is known")]
    NoPrimary,
    /// The primary.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// This node did not reach the primary's position.
    #[error("this node did not reach the primary's position {0} in time")]
    Behind(Pos),
    /// The engine.
    #[error("let local clients write: {0}")]
    Local(#[from] io::Error),
    /// What was written under the lock is not on the primary, but in lost+found.
    #[error("the transactions made under the HALT lock were refused: {0}")]
    Lost(String),
}

/// As the mount answers it: `EAGAIN`, `ENOENT`, else `EIO`.
impl From<HaltError> for io::Error {
    fn from(error: HaltError) -> Self {
        let kind = match &error {
            HaltError::Busy | HaltError::BusyHere => io::ErrorKind::WouldBlock,
            HaltError::UnknownDatabase => io::ErrorKind::NotFound,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

#[derive(Debug)]
enum Lock {
    /// This node was the primary: clients write anyway.
    Local {
        owner: u64,
    },
    /// Being acquired.
    Pending {
        owner: u64,
    },
    Remote {
        owner: u64,
        finish: mpsc::Sender<Finish>,
    },
}

impl Lock {
    const fn owner(&self) -> u64 {
        match self {
            Self::Local { owner } | Self::Pending { owner } | Self::Remote { owner, .. } => *owner,
        }
    }
}

/// The locks that clients of this node hold. Cheap to clone.
#[derive(Clone)]
pub struct RemoteHalts {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    role: RoleHandle,
    resync: Arc<Notify>,
    locks: Mutex<BTreeMap<DbName, Lock>>,
}

impl RemoteHalts {
    pub(crate) fn new(store: Arc<Store>, role: RoleHandle, resync: Arc<Notify>) -> Self {
        Self { inner: Arc::new(Inner { store, role, resync, locks: Mutex::default() }) }
    }

    /// Takes the lock for a local client (`owner` tells clients apart). With `wait` a lock held by another node is waited for,
    /// up to a minute. On the primary there is nothing to take.
    ///
    /// # Errors
    /// When it is held, the primary cannot be asked, or this node does not catch up. Nothing is held then.
    pub async fn acquire(&self, db: &DbName, owner: u64, wait: bool) -> Result<(), HaltError> {
        {
            let mut locks = self.inner.locks.lock().await;
            match locks.get(db) {
                Some(lock) if lock.owner() == owner && !matches!(lock, Lock::Pending { .. }) => return Ok(()),
                Some(_) => return Err(HaltError::BusyHere),
                None => locks.insert(db.clone(), Lock::Pending { owner }),
            };
        }
        // In a task of its own: a client that gives up must not leave the primary halted.
        let (this, name) = (self.clone(), db.clone());
        let taken = tokio::spawn(async move {
            let taken = this.take(&name, owner, wait).await;
            let mut locks = this.inner.locks.lock().await;
            match taken {
                Ok(lock) => {
                    locks.insert(name, lock);
                    Ok(())
                }
                Err(error) => {
                    locks.remove(&name);
                    Err(error)
                }
            }
        });
        taken.await.map_err(|panic| HaltError::Local(io::Error::other(panic.to_string())))?
    }

    async fn take(&self, name: &DbName, owner: u64, wait: bool) -> Result<Lock, HaltError> {
        let state = self.inner.role.state();
        if state.role == Role::Primary {
            return Ok(Lock::Local { owner });
        }
        let primary = state.primary.ok_or(HaltError::NoPrimary)?;
        let db = self.inner.store.database(name.as_str()).ok_or(HaltError::UnknownDatabase)?;
        let store = &self.inner.store;
        let mut peer = Peer::connect(&primary.advertise_url, store.node_id(), store.cluster_id()).await?;
        // LiteFS reads a signed number.
        let id = fastrand::u64(1..i64::MAX as u64);
        let path = format!("/halt?name={}&id={id}", query_escape(name.as_str()));
        let pos = ask(&mut peer, &path, wait).await?;
        match self.open_local(&db, pos).await {
            Ok(()) => {}
            Err(error) => {
                if let Err(error) = peer.ask(Method::DELETE, &path, full(bytes::Bytes::new()), ASK_MAX).await {
                    tracing::warn!(db = %name, %error, "give the HALT lock back; it expires by itself");
                }
                return Err(error);
            }
        }
        let (finish, finished) = mpsc::channel(1);
        let shipper = Shipper {
            events: store.events(),
            db,
            url: primary.advertise_url,
            node_id: store.node_id(),
            cluster_id: store.cluster_id(),
            peer: Some(peer),
            id,
            shipped: pos,
            resync: self.inner.resync.clone(),
            role: self.inner.role.clone(),
        };
        tokio::spawn(shipper.run(finished));
        tracing::info!(db = %name, id, %pos, "took the HALT lock");
        Ok(Lock::Remote { owner, finish })
    }

    /// Waits for the primary's position and opens the database for local clients.
    async fn open_local(&self, db: &Arc<Database>, pos: Pos) -> Result<(), HaltError> {
        let reached = tokio::time::timeout(CATCH_UP_MAX, db.wait(pos.txid)).await;
        if reached != Ok(pos) {
            return Err(HaltError::Behind(pos));
        }
        let opened = db.clone();
        let at = tokio::task::spawn_blocking(move || opened.set_local_writes(true))
            .await
            .map_err(|panic| io::Error::other(panic.to_string()))??;
        if at == pos {
            return Ok(());
        }
        let db = db.clone();
        let _ = tokio::task::spawn_blocking(move || db.set_local_writes(false)).await;
        Err(HaltError::Behind(pos))
    }

    /// Gives the lock back; returns when the primary has everything committed under it. A lock that is not held is fine.
    ///
    /// # Errors
    /// When the primary does not have it: the transactions are in lost+found, and this node gets the primary's state again.
    pub async fn release(&self, db: &DbName, owner: u64) -> Result<(), HaltError> {
        let finish = {
            let mut locks = self.inner.locks.lock().await;
            match locks.get(db) {
                Some(lock) if lock.owner() == owner => {}
                _ => return Ok(()),
            }
            match locks.remove(db) {
                Some(Lock::Remote { finish, .. }) => finish,
                Some(pending @ Lock::Pending { .. }) => {
                    locks.insert(db.clone(), pending);
                    return Ok(());
                }
                Some(Lock::Local { .. }) | None => return Ok(()),
            }
        };
        let (answer, answered) = oneshot::channel();
        let gone = |_| HaltError::Lost("the task that sends them is gone".to_owned());
        finish.send(Finish { answer }).await.map_err(|_| gone(()))?;
        answered.await.map_err(|_| gone(()))?.map_err(HaltError::Lost)
    }

    /// Gives all locks back, when the node stops.
    pub(crate) async fn release_all(&self) {
        let held: Vec<_> =
            self.inner.locks.lock().await.iter().map(|(name, lock)| (name.clone(), lock.owner())).collect();
        for (name, owner) in held {
            if let Err(error) = self.release(&name, owner).await {
                tracing::error!(db = %name, %error, "give the HALT lock back");
            }
        }
    }
}

/// Asks the primary for the lock; returns its position.
async fn ask(peer: &mut Peer, path: &str, wait: bool) -> Result<Pos, HaltError> {
    let deadline = tokio::time::Instant::now() + WAIT_MAX;
    loop {
        match peer.ask(Method::POST, path, full(bytes::Bytes::new()), ASK_MAX).await {
            Ok(answer) => {
                let answer: HaltAnswer = serde_json::from_slice(&answer)
                    .map_err(|error| HaltError::Lost(format!("the primary's answer is not understood: {error}")))?;
                return Ok(answer.pos.into());
            }
            Err(PeerError::Refused(_, StatusCode::NOT_FOUND, _)) => return Err(HaltError::UnknownDatabase),
            Err(PeerError::Refused(_, StatusCode::CONFLICT, _)) => {
                if !wait || tokio::time::Instant::now() >= deadline {
                    return Err(HaltError::Busy);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}
