//! The lease in Consul (COMPAT §5). (Skeleton.)

use std::time::Duration;

use crate::candidates::NodeRecord;
use crate::leaser::{Acquire, BoxFuture, ClusterView, Lease, LeaseError, Leaser, LeaserKind, PrimaryInfo, Version};
use crate::takeover::Timing;

/// `lease.consul` of `litefs.yml`.
#[derive(Debug, Clone)]
pub struct ConsulConfig {
    /// `url`: `http://[:token@]host:port[/prefix]`.
    pub url: String,
    /// `key`.
    pub key: String,
    /// `ttl` of the session (Consul accepts 10 s to 1 day).
    pub ttl: Duration,
    /// `lock-delay`.
    pub lock_delay: Duration,
    /// The fast take-over; `None`: only the session's TTL decides.
    pub timing: Option<Timing>,
}

/// Competes for a lease in Consul.
#[derive(Debug)]
pub struct ConsulLeaser {
    me: PrimaryInfo,
}

impl ConsulLeaser {
    /// # Errors
    /// [`LeaseError::Config`] for an unusable URL, key or time. Consul itself is not asked yet.
    pub fn new(_config: ConsulConfig, me: PrimaryInfo) -> Result<Self, LeaseError> {
        Ok(Self { me })
    }
}

fn skeleton<T>() -> Result<T, LeaseError> {
    Err(LeaseError::Unavailable("not written yet".to_owned()))
}

impl Leaser for ConsulLeaser {
    fn kind(&self) -> LeaserKind {
        LeaserKind::Consul
    }

    fn me(&self) -> &PrimaryInfo {
        &self.me
    }

    fn watch(&self, _after: Option<Version>) -> BoxFuture<'_, Result<ClusterView, LeaseError>> {
        Box::pin(async { skeleton() })
    }

    fn acquire(&self, _how: Acquire) -> BoxFuture<'_, Result<Box<dyn Lease>, LeaseError>> {
        Box::pin(async { skeleton() })
    }

    fn set_cluster_id<'a>(&'a self, _id: &'a str) -> BoxFuture<'a, Result<String, LeaseError>> {
        Box::pin(async { skeleton() })
    }

    fn record<'a>(&'a self, _record: &'a NodeRecord) -> BoxFuture<'a, Result<(), LeaseError>> {
        Box::pin(async { skeleton() })
    }
}
