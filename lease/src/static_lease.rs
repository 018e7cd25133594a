//! `lease.type: static`: the configuration names the primary, and nothing ever changes that (COMPAT §5).

use std::time::Duration;

use crate::candidates::NodeRecord;
use crate::clock::BootInstant;
use crate::leaser::{
    Acquire, BoxFuture, ClusterView, HandOver, Holder, Lease, LeaseError, LeaseId, Leaser, LeaserKind, PrimaryInfo,
    Version,
};
use crate::takeover::Timing;

/// How long a watch waits for a change that never comes.
const WATCH_AT_MOST: Duration = Duration::from_secs(60);

/// A lease that the configuration has given away for ever.
#[derive(Debug, Clone)]
pub struct StaticLeaser {
    primary: PrimaryInfo,
    candidate: bool,
}

impl StaticLeaser {
    /// `candidate`: this node is the primary. Else `primary` (`lease.hostname`, `lease.advertise-url`) is another node.
    #[must_use]
    pub const fn new(primary: PrimaryInfo, candidate: bool) -> Self {
        Self { primary, candidate }
    }
}

fn unsupported<T>() -> Result<T, LeaseError> {
    Err(LeaseError::Unsupported("static"))
}

impl Leaser for StaticLeaser {
    fn kind(&self) -> LeaserKind {
        LeaserKind::Static
    }

    fn me(&self) -> &PrimaryInfo {
        &self.primary
    }

    fn timing(&self) -> Option<Timing> {
        None
    }

    fn watch(&self, after: Option<Version>) -> BoxFuture<'_, Result<ClusterView, LeaseError>> {
        Box::pin(async move {
            if after.is_some() {
                tokio::time::sleep(WATCH_AT_MOST).await;
            }
            let holder = Holder { info: self.primary.clone(), lease: LeaseId(String::new()), index: 1 };
            Ok(ClusterView { version: Version(1), holder: Some(holder), ..ClusterView::default() })
        })
    }

    fn acquire(&self, how: Acquire) -> BoxFuture<'_, Result<Box<dyn Lease>, LeaseError>> {
        Box::pin(async move {
            match how {
                Acquire::Free if self.candidate => {
                    Ok(Box::new(StaticLease { id: LeaseId(String::new()) }) as Box<dyn Lease>)
                }
                Acquire::Free => Err(LeaseError::Held),
                Acquire::Existing(_) | Acquire::TakeOver(_) => unsupported(),
            }
        })
    }

    fn set_cluster_id<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<String, LeaseError>> {
        Box::pin(async move { Ok(id.to_owned()) })
    }

    fn record<'a>(&'a self, _record: &'a NodeRecord) -> BoxFuture<'a, Result<(), LeaseError>> {
        Box::pin(async { Ok(()) })
    }
}

/// The lease of the configured primary: never ends, cannot be given away.
#[derive(Debug)]
struct StaticLease {
    id: LeaseId,
}

impl Lease for StaticLease {
    fn id(&self) -> &LeaseId {
        &self.id
    }

    fn deadline(&self) -> BootInstant {
        BootInstant::NEVER
    }

    fn renew_every(&self) -> Option<Duration> {
        None
    }

    fn renew(&mut self) -> BoxFuture<'_, Result<BootInstant, LeaseError>> {
        Box::pin(async { Ok(BootInstant::NEVER) })
    }

    fn hand_over(&mut self) -> BoxFuture<'_, Result<HandOver, LeaseError>> {
        Box::pin(async { unsupported() })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, Result<(), LeaseError>> {
        Box::pin(async { Ok(()) })
    }
}
