//! The fence of one database: while it is closed the engine holds WRITE (shm), RESERVED and SHARED (database file), and no
//! client can write (DESIGN §2). It is closed on a replica, while halted, and opened for a replica that holds the
//! primary's HALT lock.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::barrier::Ends;
use super::links::{Link, ShmLink, Writing};
use super::rollback::Moment;
use super::{CaptureState, Database, Health};
use crate::kernel::FileKind;
use crate::os;
use crate::sqlite::locks::{self, LockBytes, LockGuard, LockKind};
use crate::{Layout, Pos};

/// How long opening the shm waits for WRITE: nobody else can hold it for long while the fence is closed.
const NEW_SHM_WAIT: Duration = Duration::from_secs(2);
const NEW_SHM_PAUSE: Duration = Duration::from_micros(200);
/// How long ending local writes waits for a running transaction.
const LOCAL_WRITES_WAIT: Duration = Duration::from_secs(10);

/// The fence of one database.
#[derive(Debug, Default)]
pub(crate) struct Fence {
    /// A leaf, apart from `held`. Never held while waiting for a lock.
    reasons: Mutex<Reasons>,
    /// Woken when `closing` ends.
    changed: Condvar,
    /// All locks are held: read by hooks.
    held: AtomicBool,
}

/// Why the fence should be closed.
#[derive(Debug, Default, Clone, Copy)]
struct Reasons {
    /// The node is a replica.
    replica: bool,
    /// A remote node holds the HALT lock.
    halted: bool,
    /// This node holds the primary's HALT lock.
    local_writes: bool,
    /// Imports that are running or about to.
    importing: u32,
    /// A thread is waiting for the locks.
    closing: bool,
}

impl Reasons {
    const fn closed(self) -> bool {
        self.halted || self.importing > 0 || (self.replica && !self.local_writes)
    }
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "a write transaction is still running; the fence closes when it ends")
}

impl Database {
    /// Whether clients are kept from writing at this instant.
    pub(crate) fn is_fenced(&self) -> bool {
        self.fence.held.load(Ordering::Acquire)
    }

    /// Whether a thread is waiting for the fence's locks. None begins to while the caller holds [`Self::action`].
    pub(crate) fn is_fence_closing(&self) -> bool {
        self.fence.reasons.lock().closing
    }

    /// Whether clients write under the primary's HALT lock: then its lease counts, not ours.
    pub(crate) fn writes_under_halt(&self) -> bool {
        let reasons = self.fence.reasons.lock();
        reasons.replica && reasons.local_writes
    }

    /// The node's role changed. Opening is immediate; closing goes on in the background, see [`Self::wait_fenced`].
    ///
    /// # Errors
    /// Opening the inodes, locking.
    pub(crate) fn set_replica(self: &Arc<Self>, replica: bool) -> io::Result<()> {
        self.note_replica(replica);
        self.reconcile_fence()
    }

    /// What [`Self::reconcile_fence`] will act on.
    pub(crate) fn note_replica(&self, replica: bool) {
        self.fence.reasons.lock().replica = replica;
    }

    /// Waits until a fence that should be closed is, and until a commit of our own that was under way (an import, a record of the
    /// HALT lock's holder) is done: they check the role under [`Self::own_commit`], so that none comes after this.
    ///
    /// # Errors
    /// `TimedOut`: it stays wanted and closes as soon as the running transactions end.
    pub(crate) fn wait_fenced(&self, deadline: Instant) -> io::Result<()> {
        let mut reasons = self.fence.reasons.lock();
        while reasons.closed() && reasons.closing {
            if self.fence.changed.wait_until(&mut reasons, deadline).timed_out() {
                return Err(timed_out());
            }
        }
        drop(reasons);
        drop(self.own_commit.try_lock_until(deadline).ok_or_else(timed_out)?);
        self.capture_before_another_writes()
    }

    /// As [`Self::capture_everything`]. Of a broken database nothing is recorded: what is there is kept aside when it is replaced,
    /// and must not keep it from being replaced.
    pub(crate) fn capture_before_another_writes(&self) -> io::Result<()> {
        if matches!(self.health(), Health::Broken(_)) { Ok(()) } else { self.capture_everything().map(drop) }
    }

    /// Closes the fence for an import, until [`Self::import_done`].
    ///
    /// # Errors
    /// `TimedOut` (then it is as before); locking; capture.
    pub(crate) fn fence_for_import(self: &Arc<Self>, wait: Duration) -> io::Result<()> {
        self.fence.reasons.lock().importing += 1;
        let fenced = self.reconcile_fence().and_then(|()| self.wait_fenced(Instant::now() + wait));
        if fenced.is_err() {
            self.import_done();
        }
        fenced
    }

    /// Opens the fence again, unless it is closed for another reason.
    pub(crate) fn import_done(self: &Arc<Self>) {
        self.fence.reasons.lock().importing -= 1;
        let result = self.reconcile_fence();
        self.note_outcome("open the fence", result.as_ref().err());
    }

    /// Makes the locks what the reasons ask for. The caller holds no lock.
    ///
    /// # Errors
    /// Opening the inodes, locking.
    pub(crate) fn reconcile_fence(self: &Arc<Self>) -> io::Result<()> {
        {
            let reasons = self.fence.reasons.lock();
            if reasons.closed() == self.is_fenced() || reasons.closing {
                return Ok(());
            }
        }
        if self.shared.kernel().is_none() || !self.is_live() {
            return Ok(());
        }
        let database = self.database_link()?;
        let _action = self.action.lock();
        let mut reasons = self.fence.reasons.lock();
        match (reasons.closed(), self.is_fenced()) {
            (false, true) => self.release_fence(),
            (true, false) if !reasons.closing => {
                if self.try_take_fence(&database)? {
                    self.fence.held.store(true, Ordering::Release);
                    return Ok(());
                }
                reasons.closing = true;
                let this = self.clone();
                let thread = std::thread::Builder::new().name("fence".into()).spawn(move || this.close_fence());
                if let Err(error) = thread {
                    reasons.closing = false;
                    return Err(error);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Takes all locks if they are free now.
    fn try_take_fence(&self, database: &Link) -> io::Result<bool> {
        if !locks::try_lock(&database.fence, locks::RESERVED, LockKind::Exclusive)? {
            return Ok(false);
        }
        let shared = LockGuard::shared_db(&database.fence, Duration::ZERO)?;
        let write = match self.shm() {
            Some(shm) => {
                locks::try_lock(&shm.link.fence, locks::DMS, LockKind::Shared)?
                    && locks::try_lock(&shm.link.fence, locks::WRITE, LockKind::Exclusive)?
            }
            None => true,
        };
        if let (Some(shared), true) = (shared, write) {
            shared.keep();
            return Ok(true);
        }
        self.release_fence()?;
        Ok(false)
    }

    /// The thread that waits for running transactions; woken by the kernel when they end.
    fn close_fence(self: Arc<Self>) {
        let result = self.take_fence_waiting();
        {
            let mut reasons = self.fence.reasons.lock();
            reasons.closing = false;
            if result.is_ok() && reasons.closed() {
                self.fence.held.store(true, Ordering::Release);
            } else if let Err(error) = self.release_fence() {
                tracing::error!(database = %self.name, %error, "give fence locks back");
            }
            self.fence.changed.notify_all();
        }
        if let Err(error) = result {
            tracing::error!(database = %self.name, %error, "close the fence");
            return;
        }
        // What the last transaction wrote, and a shm that appeared while we waited.
        let caught_up = self.capture_everything().and_then(|_| match self.shm() {
            Some(shm) if self.is_fenced() => self.fence_new_shm(&shm),
            _ => Ok(()),
        });
        self.note_outcome("capture behind the fence", caught_up.as_ref().err());
    }

    fn take_fence_waiting(&self) -> io::Result<()> {
        let database = self.database_link()?;
        let wait = |file: &_, bytes: LockBytes, kind| locks::lock_blocking(file, bytes, kind);
        wait(&database.fence, locks::RESERVED, LockKind::Exclusive)?;
        wait(&database.fence, locks::PENDING, LockKind::Shared)?;
        let shared = wait(&database.fence, locks::SHARED, LockKind::Shared);
        locks::unlock(&database.fence, locks::PENDING)?;
        shared?;
        match self.shm() {
            Some(shm) => {
                wait(&shm.link.fence, locks::DMS, LockKind::Shared)?;
                wait(&shm.link.fence, locks::WRITE, LockKind::Exclusive)
            }
            None => Ok(()),
        }
    }

    /// Gives DMS back, unless the engine holds it for long: with the fence closed; and without a mount, as nothing else keeps clients
    /// from truncating the shm under our mapping.
    pub(crate) fn share_if_fenced(&self, shm: &ShmLink) -> io::Result<()> {
        // Held on: whoever closes the fence meanwhile takes DMS by the same descriptor.
        let reasons = self.fence.reasons.lock();
        if self.shared.layout == Layout::Sqlite || reasons.closed() {
            return Ok(());
        }
        shm.share(false)
    }

    /// Gives all fence locks back.
    fn release_fence(&self) -> io::Result<()> {
        self.fence.held.store(false, Ordering::Release);
        let (database, shm) = {
            let links = self.links.lock();
            (links.database.clone(), links.shm.clone())
        };
        if let Some(shm) = shm {
            let _nobody_writes = shm.write_index();
            locks::unlock(&shm.link.fence, locks::WRITE)?;
            if self.shared.layout != Layout::Sqlite {
                shm.share(false)?;
            }
        }
        if let Some(database) = database {
            locks::unlock(&database.fence, locks::SHARED)?;
            locks::unlock(&database.fence, locks::RESERVED)?;
        }
        Ok(())
    }

    /// Ends an action's use of WRITE. What a closed fence, or one that is being closed, holds by the same descriptor stays.
    pub(crate) fn give_write_back(&self, write: LockGuard) {
        let reasons = self.fence.reasons.lock();
        if reasons.closed() {
            write.keep();
        } else {
            drop(write);
        }
    }

    /// The locks went with the inodes: a new file of that name is fenced when it is opened.
    pub(crate) fn fence_lost(&self) {
        self.fence.held.store(false, Ordering::Release);
    }

    /// A shm appeared. With the fence closed its WRITE belongs to us; and as no client can rebuild the index without it, we do.
    ///
    /// # Errors
    /// `TimedOut` when somebody keeps WRITE; rebuilding.
    pub(crate) fn fence_new_shm(&self, shm: &ShmLink) -> io::Result<()> {
        let deadline = Instant::now() + NEW_SHM_WAIT;
        loop {
            {
                // Held on until WRITE is ours: else it could be taken after an opening fence gave it back.
                let reasons = self.fence.reasons.lock();
                if !reasons.closed() {
                    return Ok(());
                }
                // An opening fence waits until the index is written.
                if let Some(writing) = shm.try_write_index()
                    && locks::try_lock(&shm.link.fence, locks::WRITE, LockKind::Exclusive)?
                {
                    drop(reasons);
                    return self.rebuild_if_unreadable(shm, &writing);
                }
            }
            if Instant::now() >= deadline {
                return Err(timed_out());
            }
            std::thread::sleep(NEW_SHM_PAUSE);
        }
    }

    /// Rebuilds an index that is missing or damaged, as a client's recovery would. The caller holds WRITE on the fence.
    ///
    /// # Errors
    /// `WouldBlock` when others hold CKPT or RECOVER; reading the WAL, growing the index.
    pub(crate) fn rebuild_if_unreadable(&self, shm: &ShmLink, _writing: &Writing<'_>) -> io::Result<()> {
        if shm.index.read_header()?.is_some() {
            return Ok(());
        }
        if !shm.take_checkpoints()? {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "a client holds the checkpoint lock"));
        }
        let wal = match self.files.wal()? {
            Some(wal) => wal,
            None => Arc::new(os::open_or_create("wal.create", &self.files.path(FileKind::Wal))?),
        };
        // By the fence's descriptor: what an action holds at the moment must not be given back with it.
        shm.index.recover(&wal, &shm.link.fence)?;
        Ok(())
    }
}

/// HALT, and positions that are up to date.
impl Database {
    /// Captures what is committed already, then answers. Blocking (microseconds when nothing is new).
    ///
    /// # Errors
    /// Capture failed; or this is a primary whose lease does not cover this instant (`PermissionDenied`).
    pub fn position_now(&self) -> io::Result<Pos> {
        if !self.shared.is_replica() && !self.shared.may_commit() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the lease has run out"));
        }
        self.capture_everything()
    }

    /// Captures whatever is committed, in whichever mode.
    ///
    /// # Errors
    /// Reading the WAL or database, writing the log.
    pub(crate) fn capture_everything(&self) -> io::Result<Pos> {
        let mut state = self.capture.lock();
        if self.is_live() {
            self.capture_pending(&mut state)?;
        }
        Ok(state.pos)
    }

    /// As [`Self::capture_everything`], for who holds the capture lock.
    pub(crate) fn capture_pending(&self, state: &mut CaptureState) -> io::Result<()> {
        self.capture_committed(state, Ends::Proven)?;
        self.capture_unjournaled(state, Moment::Sweep)
    }

    /// Primary: nobody writes here until [`Database::unhalt`] (a remote node holds the HALT lock). Waits at most `wait` for
    /// writers.
    ///
    /// # Errors
    /// `TimedOut` (then nothing is halted); locking; capture.
    pub fn halt(self: &Arc<Self>, wait: Duration) -> io::Result<Pos> {
        self.fence.reasons.lock().halted = true;
        let halted = self.reconcile_fence().and_then(|()| self.wait_fenced(Instant::now() + wait));
        if let Err(error) = halted {
            self.unhalt();
            return Err(error);
        }
        Ok(self.pos())
    }

    /// Whether a remote node holds the HALT lock.
    pub(crate) fn is_halted(&self) -> bool {
        self.fence.reasons.lock().halted
    }

    /// Lets clients write again.
    pub fn unhalt(self: &Arc<Self>) {
        self.fence.reasons.lock().halted = false;
        let result = self.reconcile_fence();
        self.note_outcome("open the fence", result.as_ref().err());
    }

    /// Replica holding the primary's HALT lock: lets local clients write although the mode is `Replica`;
    /// `false` closes it again and returns when everything written is captured.
    ///
    /// # Errors
    /// `TimedOut`, after 10 s, when a write transaction goes on; locking; capture.
    pub fn set_local_writes(self: &Arc<Self>, allowed: bool) -> io::Result<Pos> {
        self.fence.reasons.lock().local_writes = allowed;
        self.reconcile_fence()?;
        self.wait_fenced(Instant::now() + LOCAL_WRITES_WAIT)?;
        Ok(self.pos())
    }
}
