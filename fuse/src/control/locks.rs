//! Who among the local clients holds a database's HALT lock.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use litefs::DbName;
use parking_lot::{Condvar, Mutex};

use super::client::is_interrupted;
use crate::errno::os;
use crate::info::HaltLocks;

/// How often a waiting client is looked at for signals.
const SIGNAL_POLL: Duration = Duration::from_millis(100);

/// Who asks: the lock owner (a process's files, or an open file for OFD locks) through an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// The kernel's lock owner.
    pub owner: u64,
    /// The open file of the control mount.
    pub handle: u64,
    /// The asking thread.
    pub thread: u32,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// One client is on its way to the primary, with or without the lock already taken there.
    Busy,
    Held(Holder),
}

/// At most one local client has a database's lock; the others wait here.
pub struct LockTable {
    halt_locks: Arc<dyn HaltLocks>,
    /// Free databases are not in the map. Never held while [`HaltLocks`] is called.
    states: Mutex<HashMap<DbName, State>>,
    changed: Condvar,
}

impl LockTable {
    /// A table over the node's HALT locks.
    pub fn new(halt_locks: Arc<dyn HaltLocks>) -> Self {
        Self { halt_locks, states: Mutex::default(), changed: Condvar::new() }
    }

    /// Takes the lock. Blocks while another local client has it, if `wait`.
    ///
    /// # Errors
    /// `WouldBlock` without `wait`, `Interrupted` when the waiting client got a signal, or what the node's lock says.
    pub fn acquire(&self, db: &DbName, holder: Holder, wait: bool) -> io::Result<()> {
        if self.enter(db, holder, wait)? {
            return Ok(());
        }
        let acquired = self.halt_locks.acquire(db, holder.owner, wait);
        let interrupted = acquired.is_ok() && is_interrupted(holder.thread);
        if interrupted {
            // The client is dying or gives up; its open file may be gone already, so nobody else would release this.
            let released = self.halt_locks.release(db, holder.owner);
            self.set(db, None);
            released?;
            return Err(ErrorKind::Interrupted.into());
        }
        self.set(db, acquired.is_ok().then_some(State::Held(holder)));
        acquired
    }

    /// Waits for the database to be free and marks it busy. `true`: the holder has it already.
    fn enter(&self, db: &DbName, holder: Holder, wait: bool) -> io::Result<bool> {
        let mut states = self.states.lock();
        loop {
            match states.get(db) {
                None => {
                    states.insert(db.clone(), State::Busy);
                    return Ok(false);
                }
                Some(State::Held(held)) if held.owner == holder.owner => return Ok(true),
                Some(_) if !wait => return Err(ErrorKind::WouldBlock.into()),
                Some(_) => {}
            }
            self.changed.wait_for(&mut states, SIGNAL_POLL);
            if is_interrupted(holder.thread) {
                return Err(os(libc::EINTR));
            }
        }
    }

    fn set(&self, db: &DbName, state: Option<State>) {
        let mut states = self.states.lock();
        match state {
            Some(state) => states.insert(db.clone(), state),
            None => states.remove(db),
        };
        self.changed.notify_all();
    }

    /// Who holds the lock now.
    pub fn holder(&self, db: &DbName) -> Option<Holder> {
        match self.states.lock().get(db) {
            Some(State::Held(holder)) => Some(*holder),
            _ => None,
        }
    }

    /// Gives the lock back if the holder matches; returns when the primary has everything.
    ///
    /// # Errors
    /// What the node's lock says; the lock is gone all the same.
    pub fn release(&self, db: &DbName, matches: impl Fn(&Holder) -> bool) -> io::Result<()> {
        let holder = {
            let mut states = self.states.lock();
            match states.get(db) {
                Some(State::Held(holder)) if matches(holder) => {
                    let holder = *holder;
                    states.insert(db.clone(), State::Busy);
                    holder
                }
                _ => return Ok(()),
            }
        };
        let released = self.halt_locks.release(db, holder.owner);
        self.set(db, None);
        released
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    #[derive(Default)]
    struct Recorder {
        calls: Mutex<Vec<String>>,
        refuse_release: bool,
    }

    impl HaltLocks for Recorder {
        fn acquire(&self, db: &DbName, owner: u64, wait: bool) -> io::Result<()> {
            self.calls.lock().push(format!("acquire {db} {owner} {wait}"));
            Ok(())
        }
        fn release(&self, db: &DbName, owner: u64) -> io::Result<()> {
            self.calls.lock().push(format!("release {db} {owner}"));
            if self.refuse_release { Err(io::Error::other("expired")) } else { Ok(()) }
        }
    }

    fn holder(owner: u64) -> Holder {
        Holder { owner, handle: owner * 10, thread: 0 }
    }

    #[test]
    fn a_waiter_gets_the_lock_when_the_holder_gives_it_back() {
        let recorder = Arc::new(Recorder::default());
        let table = Arc::new(LockTable::new(Arc::clone(&recorder) as Arc<dyn HaltLocks>));
        let db: DbName = "a".parse().expect("name");
        table.acquire(&db, holder(1), true).expect("free");
        table.acquire(&db, holder(1), true).expect("again by the same owner");
        let busy = table.acquire(&db, holder(2), false).expect_err("held");
        assert_eq!(busy.kind(), ErrorKind::WouldBlock);
        let (sender, receiver) = mpsc::channel();
        let waiting = Arc::clone(&table);
        let waiter = thread::spawn(move || {
            waiting.acquire(&"a".parse().expect("name"), holder(2), true).expect("granted");
            sender.send(()).expect("send");
        });
        table.release(&db, |held| held.owner == 3).expect("not the holder: nothing happens");
        assert_eq!(table.holder(&db), Some(holder(1)));
        table.release(&db, |held| held.handle == 10).expect("released");
        receiver.recv_timeout(Duration::from_secs(60)).expect("the waiter got it");
        waiter.join().expect("join");
        let calls = recorder.calls.lock().clone();
        assert_eq!(calls, ["acquire a 1 true", "release a 1", "acquire a 2 true"]);
    }

    #[test]
    fn a_refused_release_is_reported_and_frees_the_lock() {
        let table = LockTable::new(Arc::new(Recorder { refuse_release: true, ..Recorder::default() }));
        let db: DbName = "a".parse().expect("name");
        table.acquire(&db, holder(1), true).expect("free");
        assert!(table.release(&db, |_| true).is_err());
        assert_eq!(table.holder(&db), None);
    }
}
