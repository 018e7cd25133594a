//! When a candidate may take the lease from a primary that went silent. (Skeleton: proof and observer follow.)

use std::time::Duration;

use crate::leaser::LeaseId;

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
