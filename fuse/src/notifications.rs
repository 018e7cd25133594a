//! What the kernel has yet to be told about names and cached pages, in order and bounded.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

/// Most messages that wait as they were given.
const MESSAGES_MAX: usize = 4096;

/// A message to the kernel that nobody waits for, sent by the notifier thread. Only of what is to be looked up or read again:
/// bytes to be put into the cache would be old when they arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notification {
    /// Look this name of the root directory up again.
    Entry(String),
    /// Drop attributes and cached pages of an inode.
    Inode {
        /// The inode's number.
        ino: u64,
        /// From this byte on.
        offset: u64,
        /// So many bytes; 0: to the end.
        len: u64,
    },
}

impl Notification {
    fn ino(&self) -> Option<u64> {
        match self {
            Self::Inode { ino, .. } => Some(*ino),
            Self::Entry(_) => None,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Notification>,
    stopped: bool,
}

/// The queue between handlers, which never wait, and the notifier thread, which the kernel may keep waiting. When it is full,
/// an inode's messages become one (drop its pages from the lowest offset on), and so do those of a name: what waits is bounded by
/// the number of files then.
#[derive(Debug, Default)]
pub struct Notifications {
    state: Mutex<State>,
    changed: Condvar,
    /// Messages that were merged with others.
    merged: AtomicU64,
}

impl State {
    /// One message instead of all those of the inode and one from `offset` on.
    fn merge_inode(&mut self, ino: u64, mut offset: u64) -> u64 {
        let before = self.waiting.len();
        self.waiting.retain(|other| {
            if let Notification::Inode { offset: theirs, .. } = other
                && other.ino() == Some(ino)
            {
                offset = offset.min(*theirs);
                return false;
            }
            true
        });
        self.waiting.push_back(Notification::Inode { ino, offset, len: 0 });
        (before + 1 - self.waiting.len()) as u64
    }

    fn merge_name(&mut self, name: String) -> u64 {
        let before = self.waiting.len();
        self.waiting.retain(|other| !matches!(other, Notification::Entry(same) if *same == name));
        self.waiting.push_back(Notification::Entry(name));
        (before + 1 - self.waiting.len()) as u64
    }
}

impl Notifications {
    /// Adds a message. Never waits.
    pub fn send(&self, notification: Notification) {
        let mut state = self.state.lock();
        if state.waiting.len() < MESSAGES_MAX {
            state.waiting.push_back(notification);
        } else {
            let merged = match notification {
                Notification::Entry(name) => state.merge_name(name),
                Notification::Inode { ino, offset, .. } => state.merge_inode(ino, offset),
            };
            self.merged.fetch_add(merged, Ordering::Relaxed);
        }
        self.changed.notify_one();
    }

    /// The next message; waits for it. `None` after [`Self::stop`].
    pub fn next(&self) -> Option<Notification> {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return None;
            }
            if let Some(notification) = state.waiting.pop_front() {
                return Some(notification);
            }
            self.changed.wait(&mut state);
        }
    }

    /// The mount is going away: nothing more is sent.
    pub fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Messages that wait now, and those that were merged so far.
    pub fn counts(&self) -> (usize, u64) {
        (self.state.lock().waiting.len(), self.merged.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_in_order_until_it_stops() {
        let queue = Notifications::default();
        let messages = [
            Notification::Inode { ino: 7, offset: 0, len: 100 },
            Notification::Inode { ino: 7, offset: 4096, len: 0 },
            Notification::Entry("a.db".to_owned()),
        ];
        for message in &messages {
            queue.send(message.clone());
        }
        assert_eq!(std::array::from_fn(|_| queue.next()), messages.map(Some));
        queue.stop();
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn what_waits_is_bounded_and_nothing_is_forgotten() {
        let queue = Notifications::default();
        for round in 0..10 * MESSAGES_MAX as u64 {
            queue.send(Notification::Inode { ino: round % 3, offset: 4096 * (round + 1), len: 8192 });
            queue.send(Notification::Entry(format!("{}.db", round % 5)));
        }
        let (waiting, merged) = queue.counts();
        assert!(waiting <= MESSAGES_MAX && merged > 0);
        let state = queue.state.lock();
        for ino in 0..3 {
            // From the first page that changed on everything is dropped.
            let covered = Notification::Inode { ino, offset: 4096 * (ino + 1), len: 0 };
            assert!(state.waiting.contains(&covered), "{ino}");
        }
        for name in 0..5 {
            assert!(state.waiting.contains(&Notification::Entry(format!("{name}.db"))));
        }
    }
}
