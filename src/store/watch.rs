//! The watcher thread: notices commits in WAL mode, which make no request to us, and captures them (ENGINE "Wake-ups").
//!
//! inotify on the backing WAL files leaves idle; it fires before the wal-index says "committed", so the watcher lingers and
//! looks again, at growing distances. While it does, the database is not watched: an event costs the writer 1–2 µs, and we
//! look anyway. A sweep now and then is for whatever makes no event.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Store;
use crate::database::Database;
use crate::kernel::FileKind;
use crate::store::Notice;

/// How often every database is looked at, events or not.
const SWEEP: Duration = Duration::from_millis(100);
/// The same without inotify (its instances or watches are used up).
const SWEEP_WITHOUT_EVENTS: Duration = Duration::from_millis(2);
/// First distance between two looks at an active database.
const LOOK: Duration = Duration::from_micros(20);
/// The watcher is not woken from a shorter sleep.
const MOMENT: Duration = Duration::from_millis(1);
/// Looks, each twice as far from the one before, until a database counts as idle.
const LOOKS: u32 = 6;
/// How far a database that only ever wakes us for nothing (a transaction that spills for minutes) slows its looks.
const FRUITLESS_MAX: u32 = 6;

/// A database that was written to a moment ago.
struct Active {
    database: Arc<Database>,
    since: Instant,
    /// Looks without a find since the last one.
    looks: u32,
    /// Wake-ups in a row that found nothing at all.
    fruitless: u32,
    /// Whether this wake-up found something.
    found: bool,
}

/// The state of the thread.
pub(super) struct Watcher {
    store: std::sync::Weak<Store>,
    inotify: Option<Inotify>,
    watched: HashMap<WatchDescriptor, Arc<Database>>,
    active: Vec<Active>,
    /// See [`Active::fruitless`], of databases that are idle now.
    fruitless: HashMap<crate::DbName, u32>,
}

impl Watcher {
    pub(super) fn new(store: std::sync::Weak<Store>) -> Self {
        let inotify = Inotify::init()
            .map_err(|error| tracing::warn!(%error, "inotify is not available; looking for commits by polling"))
            .ok();
        Self { store, inotify, watched: HashMap::new(), active: Vec::new(), fruitless: HashMap::new() }
    }

    pub(super) fn run(mut self) {
        let mut swept = Instant::now();
        loop {
            // Upgraded for one round only: the thread must not keep the store alive.
            let Some(store) = self.store.upgrade() else { return };
            if store.shared.signals.is_stopping() {
                return;
            }
            for name in store.shared.signals.take_woken() {
                if let Some(database) = store.database_or_dropped(name.as_str()) {
                    self.activate(database);
                }
            }
            self.read_events();
            let sweep = if self.inotify.is_some() { SWEEP } else { SWEEP_WITHOUT_EVENTS };
            if swept.elapsed() >= sweep {
                swept = Instant::now();
                self.sweep(&store);
            }
            self.look();
            let wait = self.wait().unwrap_or_else(|| sweep.saturating_sub(swept.elapsed()));
            let shared = store.shared.clone();
            drop(store);
            if shared.signals.may_sleep(wait > MOMENT) {
                self.sleep(&shared.signals.wake, wait);
            }
        }
    }

    /// How long until the next look at an active database.
    fn wait(&self) -> Option<Duration> {
        self.active.iter().map(|active| LOOK * (1 << (active.looks + active.fruitless))).min()
    }

    /// Sleeps; events end an idle sleep, while active ones are looked at on time anyway.
    fn sleep(&self, wake: &impl AsFd, wait: Duration) {
        let timeout = Timespec::try_from(wait).ok();
        let mut fds = vec![PollFd::new(wake, PollFlags::IN)];
        if let (Some(inotify), true) = (&self.inotify, self.active.is_empty()) {
            fds.push(PollFd::new(inotify, PollFlags::IN));
        }
        // Interrupted or timed out: the loop looks at everything either way.
        let _ = poll(&mut fds, timeout.as_ref());
    }

    fn read_events(&mut self) {
        let Some(inotify) = &mut self.inotify else { return };
        let mut buffer = [0; 4096];
        let mut written = Vec::new();
        // An error is "nothing there"; were it another one, the sweep is still there.
        if let Ok(events) = inotify.read_events(&mut buffer) {
            for event in events {
                if event.mask.contains(EventMask::IGNORED) {
                    // The WAL is gone, and its watch with it.
                    self.watched.remove(&event.wd);
                } else if let Some(database) = self.watched.get(&event.wd) {
                    written.push(database.clone());
                }
            }
        }
        for database in written {
            self.activate(database);
        }
    }

    fn activate(&mut self, database: Arc<Database>) {
        if let Some(active) = self.active.iter_mut().find(|active| Arc::ptr_eq(&active.database, &database)) {
            if active.looks > 1 {
                active.looks = 1;
            }
            return;
        }
        self.unwatch(&database);
        let fruitless = self.fruitless.remove(database.name()).unwrap_or(0);
        self.active.push(Active { database, since: Instant::now(), looks: 0, fruitless, found: false });
    }

    /// Looks at the active databases; forgets those where nothing happens.
    fn look(&mut self) {
        for active in &mut self.active {
            if active.database.look_for_commits() {
                active.database.shared.metrics.captured(active.since.elapsed().as_secs_f64());
                active.looks = 0;
                active.fruitless = 0;
                active.found = true;
                if active.database.wants_checkpoint() {
                    active.database.shared.notify(Notice::Checkpoint(active.database.name().clone()));
                }
            } else {
                active.looks += 1;
            }
            active.since = Instant::now();
        }
        let (active, idle) = std::mem::take(&mut self.active).into_iter().partition(|active| active.looks < LOOKS);
        self.active = active;
        for idle in idle {
            self.retire(idle);
        }
    }

    /// From now on events tell. What came before the watch was there is found by one more look.
    fn retire(&mut self, mut idle: Active) {
        self.watch(&idle.database);
        if idle.database.look_for_commits() {
            self.unwatch(&idle.database);
            (idle.looks, idle.fruitless, idle.found) = (0, 0, true);
            self.active.push(idle);
        } else if !idle.found {
            self.fruitless.insert(idle.database.name().clone(), (idle.fruitless + 1).min(FRUITLESS_MAX));
        }
    }

    fn watch(&mut self, database: &Arc<Database>) {
        let Some(inotify) = &mut self.inotify else { return };
        // The WAL alone: in the folder every write to the database or its journal would be an event, too. When the WAL is created
        // the database is woken, and watched afterwards.
        match inotify.watches().add(database.files.path(FileKind::Wal), WatchMask::MODIFY) {
            Ok(watch) => {
                self.watched.insert(watch, database.clone());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(database = %database.name(), %error, "watch its WAL; looking for commits by polling");
                self.inotify = None;
                self.watched.clear();
            }
        }
    }

    fn unwatch(&mut self, database: &Arc<Database>) {
        let Some(inotify) = &mut self.inotify else { return };
        let is_it = |(_, watched): &(&WatchDescriptor, &Arc<Database>)| Arc::ptr_eq(watched, database);
        if let Some(watch) = self.watched.iter().find(is_it).map(|(watch, _)| watch.clone()) {
            self.watched.remove(&watch);
            // The file may be gone, and its watch with it.
            let _ = inotify.watches().remove(watch);
        }
    }

    /// Watches new databases, forgets deleted ones, looks at all.
    fn sweep(&mut self, store: &Store) {
        let databases = store.all_databases();
        for database in &databases {
            let same = |other: &Arc<Database>| Arc::ptr_eq(other, database);
            if !self.watched.values().any(same) && !self.active.iter().any(|active| same(&active.database)) {
                self.watch(database);
            }
        }
        for database in databases {
            if database.look_for_commits() {
                self.activate(database);
            }
        }
    }
}
