//! The primary's side: which node holds which lock, until when.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use litefs::database::ApplyError;
use litefs::ltx::Header;
use litefs::{Database, DbName, Pos, Store};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{HALT_ACQUIRE_MAX, HALT_TTL};
use crate::metrics::Metrics;

/// Why a lock is not granted, or its holder's transaction not taken.
#[derive(Debug, Error)]
pub(crate) enum TableError {
    #[error("unknown database")]
    UnknownDatabase,
    #[error("another node holds the HALT lock")]
    HeldByAnother,
    #[error("the HALT lock is not held with this id; it may have expired")]
    NotHeld,
    #[error("halt writes: {0}")]
    Halt(io::Error),
    #[error("{0}")]
    Apply(#[from] ApplyError),
}

#[derive(Debug)]
struct Held {
    id: u64,
    expires: Instant,
    /// Granted; before that it only reserves the place.
    granted: bool,
    /// Transactions being applied: the lock does not expire under them.
    busy: u32,
}

/// The table of locks other nodes hold here.
pub(crate) struct HaltTable {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    /// [`HALT_TTL`] and [`HALT_ACQUIRE_MAX`], outside of tests.
    ttl: Duration,
    acquire_max: Duration,
    /// A leaf: nothing is called while it is held.
    locks: Mutex<BTreeMap<DbName, Held>>,
    /// Told when a lock becomes free or is granted.
    changed: Notify,
}

/// A granted lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Granted {
    pub(crate) pos: Pos,
    pub(crate) expires: SystemTime,
}

impl HaltTable {
    pub(crate) fn new(store: Arc<Store>, metrics: Arc<Metrics>) -> Self {
        Self::with_times(store, metrics, HALT_TTL, HALT_ACQUIRE_MAX)
    }

    pub(super) fn with_times(store: Arc<Store>, metrics: Arc<Metrics>, ttl: Duration, acquire_max: Duration) -> Self {
        Self { store, metrics, ttl, acquire_max, locks: Mutex::default(), changed: Notify::new() }
    }

    fn database(&self, name: &DbName) -> Result<Arc<Database>, TableError> {
        self.store.database(name.as_str()).ok_or(TableError::UnknownDatabase)
    }

    /// Acquires the lock, or renews it when `id` holds it already.
    pub(crate) async fn acquire(&self, name: &DbName, id: u64) -> Result<Granted, TableError> {
        let db = self.database(name)?;
        let deadline = Instant::now() + self.acquire_max;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, so that a release in between is not missed.
            changed.as_mut().enable();
            match self.reserve(name, id) {
                Reserved::Renewed => return Ok(self.granted(db.pos())),
                Reserved::New => break,
                Reserved::Taken => {}
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Err(TableError::HeldByAnother);
            }
        }
        let wait = deadline.saturating_duration_since(Instant::now());
        let halted = blocking(move || db.halt(wait)).await;
        let result = {
            let mut locks = self.locks.lock();
            match halted {
                Ok(pos) => {
                    if let Some(held) = locks.get_mut(name) {
                        held.granted = true;
                        held.expires = Instant::now() + self.ttl;
                    }
                    Ok(self.granted(pos))
                }
                Err(error) => {
                    locks.remove(name);
                    Err(TableError::Halt(error))
                }
            }
        };
        self.changed.notify_waiters();
        if result.is_ok() {
            self.metrics.halted();
            tracing::info!(db = %name, id, "another node holds the HALT lock");
        }
        result
    }

    fn granted(&self, pos: Pos) -> Granted {
        Granted { pos, expires: SystemTime::now() + self.ttl }
    }

    fn reserve(&self, name: &DbName, id: u64) -> Reserved {
        let mut locks = self.locks.lock();
        match locks.get_mut(name) {
            None => {
                let expires = Instant::now() + self.acquire_max + self.ttl;
                locks.insert(name.clone(), Held { id, expires, granted: false, busy: 0 });
                Reserved::New
            }
            Some(held) if held.id == id && held.granted => {
                held.expires = Instant::now() + self.ttl;
                Reserved::Renewed
            }
            Some(_) => Reserved::Taken,
        }
    }

    /// Gives the lock back.
    pub(crate) async fn release(&self, name: &DbName, id: u64) -> Result<(), TableError> {
        let db = self.database(name)?;
        {
            let mut locks = self.locks.lock();
            if !locks.get(name).is_some_and(|held| held.id == id && held.granted) {
                return Err(TableError::NotHeld);
            }
            locks.remove(name);
        }
        self.unhalt(db).await;
        tracing::info!(db = %name, id, "the HALT lock was released");
        Ok(())
    }

    async fn unhalt(&self, db: Arc<Database>) {
        let result = blocking(move || {
            db.unhalt();
            Ok(())
        });
        if let Err(error) = result.await {
            tracing::error!(%error, "resume writes after the HALT lock");
        }
        self.changed.notify_waiters();
    }

    /// Commits the LTX file of the lock's holder.
    pub(crate) async fn commit(&self, name: &DbName, id: u64, file: &Path) -> Result<Pos, TableError> {
        let db = self.database(name)?;
        {
            let mut locks = self.locks.lock();
            let held = locks.get_mut(name).filter(|held| held.id == id && held.granted).ok_or(TableError::NotHeld)?;
            held.busy += 1;
        }
        let path = file.to_owned();
        let applied = tokio::task::spawn_blocking(move || apply(&db, &path)).await;
        if let Some(held) = self.locks.lock().get_mut(name).filter(|held| held.id == id) {
            held.busy = held.busy.saturating_sub(1);
            held.expires = Instant::now() + self.ttl;
        }
        Ok(applied.map_err(|panic| ApplyError::Io(io::Error::other(panic.to_string())))??)
    }

    /// Ends locks that were not renewed, until the node stops.
    pub(crate) async fn run_expiry(&self, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = tick.tick() => {}
            }
            let now = Instant::now();
            for (name, id) in self.take(|held| held.granted && held.busy == 0 && held.expires <= now) {
                tracing::warn!(db = %name, id, "the HALT lock expired: its holder did not renew it; writing again");
                if let Ok(db) = self.database(&name) {
                    self.unhalt(db).await;
                }
            }
        }
        self.release_all().await;
    }

    /// Ends all locks: this node is no longer primary.
    pub(crate) async fn release_all(&self) {
        for (name, id) in self.take(|held| held.granted) {
            tracing::warn!(db = %name, id, "the HALT lock ends with this node's being primary");
            if let Ok(db) = self.database(&name) {
                self.unhalt(db).await;
            }
        }
    }

    fn take(&self, which: impl Fn(&Held) -> bool) -> Vec<(DbName, u64)> {
        let mut locks = self.locks.lock();
        let ended: Vec<_> =
            locks.iter().filter(|(_, held)| which(held)).map(|(name, held)| (name.clone(), held.id)).collect();
        for (name, _) in &ended {
            locks.remove(name);
        }
        ended
    }
}

enum Reserved {
    New,
    Renewed,
    Taken,
}

fn apply(db: &Arc<Database>, path: &Path) -> Result<Pos, ApplyError> {
    use std::io::Read;
    let mut file = std::fs::File::open(path)?;
    let mut bytes = [0; litefs::ltx::HEADER_BYTES];
    file.read_exact(&mut bytes).map_err(|_| ApplyError::Damaged("shorter than a header".to_owned()))?;
    let header = Header::parse(&bytes).map_err(|error| ApplyError::Damaged(error.to_string()))?;
    let actual = db.pos();
    if header.max_txid == actual.txid && !header.is_snapshot() {
        // Sent again because our answer was lost: the same file ends with the same checksum.
        let trailer = trailer_checksum(&mut file)?;
        if trailer == actual.checksum {
            return Ok(actual);
        }
    }
    if header.pre() != actual && !(header.is_snapshot() && actual.is_zero()) {
        return Err(ApplyError::WrongPosition { expected: header.pre(), actual });
    }
    db.apply_halted(&mut std::io::Read::chain(&bytes[..], file))
}

/// The post-apply checksum: the first 8 of the last 16 bytes.
fn trailer_checksum(file: &mut std::fs::File) -> io::Result<litefs::Checksum> {
    use std::os::unix::fs::FileExt;
    let len = file.metadata()?.len();
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, len.saturating_sub(litefs::ltx::TRAILER_BYTES as u64))?;
    Ok(litefs::Checksum(u64::from_be_bytes(bytes)))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|panic| io::Error::other(panic.to_string()))?
}
