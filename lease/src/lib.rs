//! Which litefs node may write: static and Consul leases, and the fencing clock.
//!
//! - [`Leaser`] and [`Lease`]: how a node competes for the right to write; [`StaticLeaser`] and [`ConsulLeaser`] behind them.
//! - [`FenceCell`]: until when this process may write, in memory that the supervisor shares.
//! - [`takeover`]: when a candidate may take the lease from a primary that went silent, with the proof.
//! - [`candidates`]: which candidate should be the next primary.

pub mod candidates;
pub mod clock;
pub mod consul;
pub mod fence;
pub mod leaser;
pub mod static_lease;
pub mod takeover;
#[cfg(feature = "testing")]
pub mod testing;

pub use candidates::{Decision, NodeRecord, Roster};
pub use clock::BootInstant;
pub use consul::{ConsulConfig, ConsulLeaser};
pub use fence::{FenceCell, FenceGate};
pub use leaser::{
    Acquire, BoxFuture, ClusterView, HandOver, Heartbeat, Holder, Lease, LeaseError, LeaseId, Leaser, LeaserKind,
    PrimaryInfo, Version,
};
pub use static_lease::StaticLeaser;
pub use takeover::{Observer, TakeOver, Timing};
