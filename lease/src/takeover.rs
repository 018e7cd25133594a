//! When a candidate may take the lease from a primary that went silent, before Consul ends the silent one's session.
//!
//! # Protocol
//! The primary writes a heartbeat about every [`Timing::heartbeat`], in a Consul transaction that fails unless its session still
//! holds the lease key. The first one follows right after the acquisition. When it has not succeeded for T1 ([`Timing::fence_after`]), counted from the *start* of its
//! last successful heartbeat (or of the acquisition), its fence is closed ([`FenceCell`](crate::FenceCell)). The heartbeat names the lease, the acquisition (the lease key's `ModifyIndex`) and T1.
//! A candidate that has seen the same heartbeat (by Consul's `ModifyIndex`) for T2 > T1 on its own clock runs *one* transaction: the heartbeat
//! is still the one it saw, and the lease key is still the one it saw, and the key is replaced by its own.
//!
//! # Why two nodes never may write at the same time
//! Let `s` be the instant the primary started its last successful heartbeat, `a` the instant Consul applied it, `c` the
//! instant the candidate had the answer in which it first saw the heartbeat that it later finds unchanged, `t` the instant
//! Consul applies the candidate's transaction.
//! 1. `s ≤ a`: a request is applied after it was sent.
//! 2. No heartbeat of this lease is applied between the candidate's reading and `t`, or the transaction would have failed. Hence the last successful
//!    one was applied before the reading was answered: `a ≤ c`. (A stale read only makes `c` later than it need be.)
//! 3. The candidate sends its transaction at least T2 after `c` on its clock, so `t ≥ c + T2/(1+ρ)` if its clock runs at most ρ too fast.
//! 4. The primary's fence closes no later than T1 after `s` on its clock: at most `s + T1/(1−ρ)` in true time.
//! 5. After `t` no heartbeat of the old primary can succeed: each requires the key to be its own.
//!
//! So with `T2/(1+ρ) ≥ T1/(1−ρ) + margin` the fence has been closed for `margin` before another node holds the lease. No bound on message delay,
//! on pauses of either process, on Consul's elections, or on stale reads is assumed; only that clocks run at the right rate within ρ.
//! `CLOCK_BOOTTIME` counts suspended time, too. The candidate computes with the T1 that the primary has *published* ([`takeover_after`]):
//! nodes with different settings are safe together.
//!
//! The session's own TTL bounds the deadline as well (the smaller one counts), for candidates that know nothing of heartbeats.
//!
//! # LiteFS in the cluster
//! A LiteFS primary writes no heartbeat, so nobody takes over from it before its session ends. A handoff ends the heartbeat before the lease
//! is sent away, and a late one names another acquisition, so the receiver may be a LiteFS node, too. A LiteFS candidate waits for the end of the session.

use std::time::Duration;

use crate::clock::BootInstant;
use crate::leaser::{ClusterView, Heartbeat, Holder, LeaseId};

/// ρ: by how much a clock may run too fast or too slow. Crystals are off by 0.01 %, `adjtimex` by at most 0.05 %.
const CLOCK_RATE_ERROR: f64 = 0.01;
/// How much longer than T1 a candidate waits at least (true time): in it the old primary's engine takes its locks.
const MARGIN: Duration = Duration::from_millis(250);

/// The times of the fast take-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How often the primary beats.
    pub heartbeat: Duration,
    /// T1: so long after the start of its last successful heartbeat the primary accepts no writes.
    pub fence_after: Duration,
    /// T2: so long without a change of the heartbeat a candidate waits.
    pub takeover_after: Duration,
}

impl Default for Timing {
    /// Heartbeat 1 s, T1 = 3 s, T2 = 4 s.
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            fence_after: Duration::from_secs(3),
            takeover_after: Duration::from_secs(4),
        }
    }
}

impl Timing {
    /// Whether the times fit together, and to the session's TTL.
    ///
    /// # Errors
    /// What does not fit, for the operator.
    pub fn check(&self, ttl: Duration) -> Result<(), String> {
        if self.heartbeat < Duration::from_millis(50) {
            return Err("the heartbeat's interval must be at least 50ms".to_owned());
        }
        if self.fence_after < self.heartbeat * 2 {
            return Err("a primary must be given two heartbeats' time before it fences itself".to_owned());
        }
        if self.fence_after > ttl {
            return Err("a primary must fence itself before its session's TTL ends".to_owned());
        }
        let least = takeover_after(self.fence_after);
        if self.takeover_after < least {
            return Err(format!(
                "candidates must wait at least {least:?} for a primary that fences itself after {:?}",
                self.fence_after
            ));
        }
        Ok(())
    }
}

/// The least T2 for a primary with this T1: `(T1/(1−ρ) + margin)·(1+ρ)`.
#[must_use]
pub fn takeover_after(fence_after: Duration) -> Duration {
    let slow_primary = fence_after.div_f64(1.0 - CLOCK_RATE_ERROR);
    (slow_primary + MARGIN).mul_f64(1.0 + CLOCK_RATE_ERROR)
}

/// What a candidate has observed of a silent primary: the take-over succeeds only if all of it is unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakeOver {
    /// The silent holder's lease.
    pub lease: LeaseId,
    /// `ModifyIndex` of the lease key.
    pub key_index: u64,
    /// `ModifyIndex` of the heartbeat key; `None`: it must not exist (reclaiming a lease that was being handed over).
    pub heartbeat_index: Option<u64>,
}

/// A candidate's observation of the primary's heartbeat.
#[derive(Debug)]
pub struct Observer {
    takeover_after: Duration,
    seen: Option<Seen>,
}

#[derive(Debug)]
struct Seen {
    what: TakeOver,
    fence_after: Duration,
    /// When the answer with this heartbeat was here, on our clock.
    since: BootInstant,
}

impl Observer {
    /// `takeover_after`: this node's T2; `None`: it never takes over before the session ends.
    #[must_use]
    pub fn new(timing: Option<Timing>) -> Self {
        Self { takeover_after: timing.map_or(Duration::MAX, |timing| timing.takeover_after), seen: None }
    }

    /// Takes note of a view. `now`: an instant *after* the answer had arrived.
    pub fn observe(&mut self, view: &ClusterView, now: BootInstant) {
        let fresh = view.holder.as_ref().zip(view.heartbeat.as_ref());
        let belongs = |holder: &Holder, beat: &Heartbeat| beat.lease == holder.lease && beat.key_index == holder.index;
        let fresh = fresh.filter(|(holder, heartbeat)| belongs(holder, heartbeat));
        let Some((holder, heartbeat)) = fresh else {
            self.seen = None;
            return;
        };
        let what =
            TakeOver { lease: holder.lease.clone(), key_index: holder.index, heartbeat_index: Some(heartbeat.index) };
        if self.seen.as_ref().is_none_or(|seen| seen.what != what) {
            self.seen = Some(Seen { what, fence_after: heartbeat.fence_after, since: now });
        }
    }

    /// Consul did not answer: the primary could not reach it either, perhaps. It gets its time again from now on. (Not needed
    /// for safety: it avoids a change of primary after every outage of Consul.)
    pub const fn lost_contact(&mut self, now: BootInstant) {
        if let Some(seen) = &mut self.seen {
            seen.since = now;
        }
    }

    /// From when on the lease may be taken if nothing changes, and how.
    #[must_use]
    pub fn due(&self) -> Option<(BootInstant, TakeOver)> {
        if self.takeover_after == Duration::MAX {
            return None;
        }
        let seen = self.seen.as_ref()?;
        let wait = self.takeover_after.max(takeover_after(seen.fence_after));
        Some((seen.since.after(wait), seen.what.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leaser::PrimaryInfo;

    fn view(lease: &str, key_index: u64, beat_index: u64, beat_lease: &str) -> ClusterView {
        let info = PrimaryInfo { hostname: "a".into(), advertise_url: "http://a".into(), proxy_url: None };
        ClusterView {
            holder: Some(Holder { info, lease: LeaseId(lease.into()), index: key_index }),
            heartbeat: Some(Heartbeat {
                lease: LeaseId(beat_lease.into()),
                key_index,
                fence_after: Duration::from_secs(3),
                index: beat_index,
            }),
            ..ClusterView::default()
        }
    }

    fn at(seconds: u64) -> BootInstant {
        BootInstant::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn the_default_times_fit_together() {
        Timing::default().check(Duration::from_secs(10)).unwrap();
        let timing = Timing { takeover_after: Duration::from_secs(3), ..Timing::default() };
        assert!(timing.check(Duration::from_secs(10)).is_err(), "T2 = T1 leaves no margin");
        assert!(Timing::default().check(Duration::from_secs(2)).is_err(), "T1 beyond the TTL");
    }

    #[test]
    fn every_change_starts_the_observation_again() {
        let mut observer = Observer::new(Some(Timing::default()));
        observer.observe(&view("s", 1, 10, "s"), at(100));
        observer.observe(&view("s", 1, 10, "s"), at(103));
        assert_eq!(observer.due().unwrap().0, at(104), "the same heartbeat counts from when it was first seen");
        observer.observe(&view("s", 1, 11, "s"), at(103));
        assert_eq!(observer.due().unwrap().0, at(107));
        observer.observe(&view("s", 2, 11, "s"), at(104));
        assert_eq!(observer.due().unwrap().0, at(108), "the key was acquired again");
        observer.lost_contact(at(110));
        assert_eq!(observer.due().unwrap().0, at(114));
    }

    #[test]
    fn nobody_takes_over_from_a_primary_without_its_own_heartbeat() {
        let mut observer = Observer::new(Some(Timing::default()));
        observer.observe(&view("litefs", 1, 10, "earlier"), at(100));
        assert_eq!(observer.due(), None, "the heartbeat of an earlier primary");
        let mut late = view("s", 2, 10, "s");
        late.heartbeat.as_mut().unwrap().key_index = 1;
        observer.observe(&late, at(100));
        assert_eq!(observer.due(), None, "a late heartbeat of the node that handed this lease over");
        observer.observe(&ClusterView { heartbeat: None, ..view("s", 1, 1, "s") }, at(100));
        assert_eq!(observer.due(), None);
        observer.observe(&view("s", 1, 10, "s"), at(100));
        observer.observe(&ClusterView { holder: None, ..view("s", 1, 10, "s") }, at(101));
        assert_eq!(observer.due(), None, "the lease is free: an ordinary acquisition");
        let mut disabled = Observer::new(None);
        disabled.observe(&view("s", 1, 10, "s"), at(100));
        assert_eq!(disabled.due(), None);
    }

    #[test]
    fn the_published_fence_counts_not_the_own_setting() {
        let mut observer = Observer::new(Some(Timing::default()));
        let mut slow = view("s", 1, 10, "s");
        slow.heartbeat.as_mut().unwrap().fence_after = Duration::from_secs(8);
        observer.observe(&slow, at(100));
        assert!(observer.due().unwrap().0 > at(108));
    }

    /// The inequality of the proof, at the worst rates of both clocks.
    #[test]
    fn the_margin_remains_with_the_worst_clocks() {
        for fence_after in [100, 1_000, 3_000, 9_000, 60_000].map(Duration::from_millis) {
            let latest_fence = fence_after.as_secs_f64() / (1.0 - CLOCK_RATE_ERROR);
            let earliest_takeover = takeover_after(fence_after).as_secs_f64() / (1.0 + CLOCK_RATE_ERROR);
            assert!(earliest_takeover >= latest_fence + MARGIN.as_secs_f64() - 1e-6, "{fence_after:?}");
        }
    }
}
