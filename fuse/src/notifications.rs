//! What the kernel has yet to be told about names and cached pages, in order and bounded.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

/// Most messages that wait as they were given.
const MESSAGES_MAX: usize = 4096;
/// Most bytes of pages that wait.
const BYTES_MAX: usize = 32 << 20;

/// A message to the kernel that nobody waits for, sent by the notifier thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notification {
    /// Look this name of the root directory up again.
    Entry(String),
    /// Drop cached pages and attributes of an inode from an offset on.
    Inode(u64, u64),
    /// Put these bytes into the cache of an inode.
    Store(u64, u64, Vec<u8>),
}

impl Notification {
    fn ino(&self) -> Option<u64> {
        match self {
            Self::Inode(ino, _) | Self::Store(ino, _, _) => Some(*ino),
            Self::Entry(_) => None,
        }
    }

    /// Of pages.
    fn bytes(&self) -> usize {
        if let Self::Store(_, _, data) = self { data.len() } else { 0 }
    }
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Notification>,
    /// In all [`Notification::Store`] of `waiting`.
    bytes: usize,
    stopped: bool,
}

/// The queue between handlers, which never wait, and the notifier thread, which the kernel may keep waiting. When it is full,
/// an inode's messages become one (drop its pages from the lowest offset on) behind its end, and so do those of a name: what waits is bounded by
/// the number of files then.
#[derive(Debug, Default)]
pub struct Notifications {
    state: Mutex<State>,
    changed: Condvar,
    /// Messages that were merged with others.
    merged: AtomicU64,
}

impl State {
    /// One message instead of all those of the inode, with `added`. The last byte of those that store is still stored: only by that
    /// does the kernel learn of a new end (ENGINE "Kernel cache of the db").
    fn merge_inode(&mut self, ino: u64, added: Notification) -> u64 {
        let before = self.waiting.len();
        let (mut from, mut last) = (u64::MAX, None);
        let bytes = &mut self.bytes;
        let mut merge = |message: &Notification| match message {
            Notification::Inode(_, offset) => from = from.min(*offset),
            Notification::Store(_, offset, data) => {
                from = from.min(*offset);
                let end = data.last().map(|byte| (*offset + data.len() as u64 - 1, *byte));
                last = last.max(end);
            }
            Notification::Entry(_) => {}
        };
        self.waiting.retain(|other| {
            let merged = other.ino() == Some(ino);
            if merged {
                *bytes -= other.bytes();
                merge(other);
            }
            !merged
        });
        merge(&added);
        if let Some((offset, byte)) = last {
            self.bytes += 1;
            self.waiting.push_back(Notification::Store(ino, offset, vec![byte]));
        }
        self.waiting.push_back(Notification::Inode(ino, from));
        (before + 1).saturating_sub(self.waiting.len()) as u64
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
        let bytes = notification.bytes();
        if state.waiting.len() < MESSAGES_MAX && state.bytes + bytes <= BYTES_MAX {
            state.bytes += bytes;
            state.waiting.push_back(notification);
        } else {
            let merged = match notification {
                Notification::Entry(name) => state.merge_name(name),
                Notification::Inode(ino, _) | Notification::Store(ino, _, _) => state.merge_inode(ino, notification),
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
                state.bytes -= notification.bytes();
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
        let messages =
            [Notification::Store(7, 0, vec![1]), Notification::Inode(7, 4096), Notification::Entry("a.db".to_owned())];
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
            queue.send(Notification::Store(round % 3, 4096 * (round + 1), vec![0; 8192]));
            queue.send(Notification::Entry(format!("{}.db", round % 5)));
        }
        let (waiting, merged) = queue.counts();
        assert!(waiting <= MESSAGES_MAX && merged > 0);
        let state = queue.state.lock();
        assert!(state.bytes <= BYTES_MAX);
        for ino in 0..3 {
            // The first page that changed is among those that are dropped, or put in.
            let covered = state.waiting.iter().any(|message| match message {
                Notification::Inode(same, from) | Notification::Store(same, from, _) => {
                    *same == ino && *from <= 4096 * (ino + 1)
                }
                Notification::Entry(_) => false,
            });
            assert!(covered, "{ino}");
            // And what the last one stored last makes the file as long as it is.
            let round = 10 * MESSAGES_MAX as u64 - 1 - (10 * MESSAGES_MAX as u64 - 1 - ino) % 3;
            let end = 4096 * (round + 1) + 8192;
            let ends = state.waiting.iter().any(|message| {
                matches!(message, Notification::Store(same, at, data) if *same == ino && at + data.len() as u64 == end)
            });
            assert!(ends, "{ino}");
        }
        for name in 0..5 {
            assert!(state.waiting.contains(&Notification::Entry(format!("{name}.db"))));
        }
    }
}
