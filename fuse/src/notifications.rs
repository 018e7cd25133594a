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

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Notification>,
    /// In all [`Notification::Store`] of `waiting`.
    bytes: usize,
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
    /// One message instead of all those of the inode.
    fn merge_inode(&mut self, ino: u64, mut from: u64) -> u64 {
        let before = self.waiting.len();
        let bytes = &mut self.bytes;
        self.waiting.retain(|other| match other {
            Notification::Inode(same, offset) if *same == ino => {
                from = from.min(*offset);
                false
            }
            Notification::Store(same, offset, data) if *same == ino => {
                from = from.min(*offset);
                *bytes -= data.len();
                false
            }
            _ => true,
        });
        self.waiting.push_back(Notification::Inode(ino, from));
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
        let bytes = if let Notification::Store(_, _, data) = &notification { data.len() } else { 0 };
        if state.waiting.len() < MESSAGES_MAX && state.bytes + bytes <= BYTES_MAX {
            state.bytes += bytes;
            state.waiting.push_back(notification);
        } else {
            let merged = match notification {
                Notification::Entry(name) => state.merge_name(name),
                Notification::Inode(ino, from) | Notification::Store(ino, from, _) => state.merge_inode(ino, from),
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
                if let Notification::Store(_, _, data) = &notification {
                    state.bytes -= data.len();
                }
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
        }
        for name in 0..5 {
            assert!(state.waiting.contains(&Notification::Entry(format!("{name}.db"))));
        }
    }
}
