//! The lease in Consul (COMPAT §5): a session holds a key.
//!
//! | key | value |
//! |---|---|
//! | `<key>` | [`PrimaryInfo`] as JSON; held by the primary's session |
//! | `<key>/clusterid` | the cluster's ID; set once |
//! | `<key>/heartbeat` | the holder's heartbeat ([`crate::takeover`]); LiteFS ignores it |
//! | `<key>/nodes/<hostname>` | [`NodeRecord`] as JSON; LiteFS ignores it |
//!
//! A path in the URL is put before all of them. The session belongs to a catalog node `<prefix>/litefs` and has no health
//! checks, behaviour `delete`, the configured TTL and lock-delay: so nodes of LiteFS and of ours exclude each other.
//! Whatever must not be torn apart is one Consul transaction.

mod client;
mod keys;
mod lease;
mod model;

use std::time::Duration;

use reqwest::Url;
use tokio::sync::OnceCell;

use self::client::{Client, Committed};
use self::keys::Keys;
use self::lease::ConsulLease;
use self::model::{Operation, SessionSpec};
use crate::candidates::NodeRecord;
use crate::clock::BootInstant;
use crate::leaser::{
    Acquire, BoxFuture, ClusterView, Lease, LeaseError, LeaseId, Leaser, LeaserKind, PrimaryInfo, Version,
};
use crate::takeover::{TakeOver, Timing};

/// How long a blocking query waits for a change.
const WATCH_WAIT: Duration = Duration::from_secs(10);
/// Consul refuses larger values.
const VALUE_BYTES_MAX: usize = 512 * 1024;
/// Consul's own bounds of a session's TTL.
const TTL_RANGE: std::ops::RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(86_400);

/// `lease.consul` of `litefs.yml`.
#[derive(Clone)]
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

impl std::fmt::Debug for ConsulConfig {
    /// Without the URL's token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsulConfig").field("key", &self.key).field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

/// Competes for a lease in Consul. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ConsulLeaser {
    shared: std::sync::Arc<Shared>,
}

/// What a leaser and its leases use.
#[derive(Debug)]
struct Shared {
    client: Client,
    keys: Keys,
    me: PrimaryInfo,
    /// `me` as the lease key's value.
    value: Vec<u8>,
    ttl: Duration,
    lock_delay: Duration,
    timing: Option<Timing>,
    registered: OnceCell<()>,
}

impl ConsulLeaser {
    /// Prepares a leaser; Consul itself is not asked yet.
    ///
    /// # Errors
    /// [`LeaseError::Config`] for an unusable URL, key or time.
    pub fn new(config: ConsulConfig, me: PrimaryInfo) -> Result<Self, LeaseError> {
        let mut base = Url::parse(&config.url)
            .map_err(|error| LeaseError::Config(format!("`lease.consul.url` is not a URL: {error}")))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(LeaseError::Config("`lease.consul.url` must be http://host:port or https://…".to_owned()));
        }
        if !TTL_RANGE.contains(&config.ttl) {
            return Err(LeaseError::Config("`lease.consul.ttl` must be between 10s and 24h (Consul's bounds)".into()));
        }
        if let Some(timing) = &config.timing {
            timing.check(config.ttl).map_err(LeaseError::Config)?;
        }
        let token = base.password().filter(|token| !token.is_empty()).map(percent_decoded);
        let keys = Keys::new(base.path(), &config.key)?;
        // The token goes into a header; the path and the rest are no part of Consul's own URLs.
        let cleared = base.set_password(None).and_then(|()| base.set_username(""));
        cleared.map_err(|()| LeaseError::Config("`lease.consul.url` must be http://host:port".to_owned()))?;
        base.set_query(None);
        base.set_fragment(None);
        let value = serde_json::to_vec(&me).map_err(|error| LeaseError::Config(error.to_string()))?;
        let client = Client::new(base, token, request_timeout(&config))?;
        let shared = Shared {
            client,
            keys,
            me,
            value,
            ttl: config.ttl,
            lock_delay: config.lock_delay,
            timing: config.timing,
            registered: OnceCell::new(),
        };
        Ok(Self { shared: std::sync::Arc::new(shared) })
    }
}

/// Short enough that two attempts at a renewal fit before the deadline.
fn request_timeout(config: &ConsulConfig) -> Duration {
    let session = config.ttl / 4;
    config.timing.map_or(session, |timing| session.min(timing.fence_after / 3))
}

fn percent_decoded(text: &str) -> String {
    // `Url` keeps the password escaped; a query pair is the one place where it decodes.
    let plain = text.replace('+', "%2B");
    Url::parse(&format!("http://x/?t={plain}"))
        .ok()
        .and_then(|url| url.query_pairs().next().map(|(_, value)| value.into_owned()))
        .unwrap_or_else(|| text.to_owned())
}

impl Shared {
    async fn create_session(&self) -> Result<LeaseId, LeaseError> {
        let node = self.keys.node.as_str();
        self.registered.get_or_try_init(|| self.client.register_node(node)).await?;
        let spec = SessionSpec {
            name: &self.keys.lease,
            node,
            lock_delay: go_duration(self.lock_delay),
            ttl: go_duration(self.ttl),
            behavior: "delete",
            node_checks: [],
            checks: [],
        };
        match self.client.create_session(&spec).await {
            // The catalog may have been emptied since.
            Err(LeaseError::Unavailable(text)) if text.contains("Missing node registration") => {
                self.client.register_node(node).await?;
                self.client.create_session(&spec).await
            }
            other => other,
        }
    }

    /// Gets the lease with a new session, after the conditions and removals of `before`.
    async fn acquire_new(self: std::sync::Arc<Self>, before: Vec<Operation<'_>>) -> Result<ConsulLease, LeaseError> {
        let session_start = BootInstant::now();
        let id = self.create_session().await?;
        let proof_start = BootInstant::now();
        let mut operations = before;
        operations.push(Operation::lock(&self.keys.lease, &self.value, &id));
        operations.push(Operation::delete(&self.keys.heartbeat)); // The first renewal starts ours.
        let acquired = self.client.transact(&operations).await.and_then(|committed| match committed {
            Committed::Yes(results) => self.keys.lease_index(&results),
            Committed::No(reasons) => Err(refusal(&reasons)),
        });
        let error = match acquired {
            Ok(index) => return Ok(ConsulLease::new(self.clone(), id, index, session_start, proof_start)),
            Err(error) => error,
        };
        // Also when the answer was lost: the session, and the key if it got it, must not stay behind.
        if let Err(error) = self.client.destroy_session(&id).await {
            tracing::debug!(session = %id, %error, "an unused session stays behind until its TTL ends it");
        }
        Err(error)
    }

    async fn take_over(self: std::sync::Arc<Self>, from: &TakeOver) -> Result<ConsulLease, LeaseError> {
        let shared = self.clone();
        let silent = match from.heartbeat_index {
            Some(index) => Operation::check_unchanged(&shared.keys.heartbeat, index),
            None => Operation::check_absent(&shared.keys.heartbeat),
        };
        let before = vec![silent, Operation::delete_unchanged(&shared.keys.lease, from.key_index)];
        let lease = self.acquire_new(before).await.map_err(|error| match error {
            LeaseError::Held | LeaseError::LockDelay => LeaseError::Changed,
            other => other,
        })?;
        // The old session holds nothing any more; ending it makes its owner notice at the next renewal of it, too.
        if let Err(error) = shared.client.destroy_session(&from.lease).await {
            tracing::debug!(session = %from.lease, %error, "the silent primary's session stays until its TTL ends it");
        }
        Ok(lease)
    }

    async fn acquire_existing(self: std::sync::Arc<Self>, id: LeaseId) -> Result<ConsulLease, LeaseError> {
        let session_start = BootInstant::now();
        self.client.renew_session(&id).await?;
        let proof_start = BootInstant::now();
        let committed = {
            let operations = [
                Operation::check_session(&self.keys.lease, &id),
                Operation::lock(&self.keys.lease, &self.value, &id),
                Operation::delete(&self.keys.heartbeat),
            ];
            self.client.transact(&operations).await?
        };
        match committed {
            Committed::Yes(results) => {
                let index = self.keys.lease_index(&results)?;
                Ok(ConsulLease::new(self, id, index, session_start, proof_start))
            }
            Committed::No(_) => Err(LeaseError::Changed),
        }
    }
}

/// What Consul's reasons for refusing an acquisition mean.
fn refusal(reasons: &str) -> LeaseError {
    if reasons.contains("lock delay") {
        LeaseError::LockDelay
    } else if reasons.contains("already held") {
        LeaseError::Held
    } else if reasons.contains("index") || reasons.contains("exist") {
        LeaseError::Changed
    } else if reasons.contains("session") {
        LeaseError::Lost(reasons.to_owned())
    } else {
        LeaseError::BadAnswer(reasons.to_owned())
    }
}

/// As Go parses it.
fn go_duration(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

impl Leaser for ConsulLeaser {
    fn kind(&self) -> LeaserKind {
        LeaserKind::Consul
    }

    fn me(&self) -> &PrimaryInfo {
        &self.shared.me
    }

    fn timing(&self) -> Option<Timing> {
        self.shared.timing
    }

    fn watch(&self, after: Option<Version>) -> BoxFuture<'_, Result<ClusterView, LeaseError>> {
        Box::pin(async move {
            let keys = &self.shared.keys;
            let after = after.map(|Version(index)| index).filter(|index| *index > 0);
            let (index, found) = self.shared.client.list(&keys.lease, after, WATCH_WAIT).await?;
            // An index that went back means that Consul was restored or reset: start over (Consul's own advice).
            let next = if after.is_some_and(|after| index < after) { 0 } else { index };
            Ok(keys.view(Version(next), &found))
        })
    }

    fn acquire(&self, how: Acquire) -> BoxFuture<'_, Result<Box<dyn Lease>, LeaseError>> {
        let shared = self.shared.clone();
        Box::pin(async move {
            let lease = match how {
                Acquire::Free => shared.acquire_new(Vec::new()).await,
                Acquire::Existing(id) => shared.acquire_existing(id).await,
                Acquire::TakeOver(from) => shared.take_over(&from).await,
            }?;
            Ok(Box::new(lease) as Box<dyn Lease>)
        })
    }

    fn set_cluster_id<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<String, LeaseError>> {
        Box::pin(async move {
            let key = &self.shared.keys.cluster_id;
            let committed = self.shared.client.transact(&[Operation::create(key, id.as_bytes())]).await?;
            if let Committed::Yes(_) = committed {
                return Ok(id.to_owned());
            }
            let view = self.watch(None).await?;
            view.cluster_id.ok_or_else(|| LeaseError::BadAnswer(format!("`{key}` exists and does not exist")))
        })
    }

    fn record<'a>(&'a self, record: &'a NodeRecord) -> BoxFuture<'a, Result<(), LeaseError>> {
        Box::pin(async move {
            let value = serde_json::to_vec(record).map_err(|error| LeaseError::Config(error.to_string()))?;
            if value.len() > VALUE_BYTES_MAX {
                let text = format!("{} databases are more than one Consul value can list", record.positions.len());
                return Err(LeaseError::Config(text));
            }
            let key = self.shared.keys.node_record(&record.hostname);
            match self.shared.client.transact(&[Operation::set(&key, &value)]).await? {
                Committed::Yes(_) => Ok(()),
                Committed::No(reasons) => Err(LeaseError::BadAnswer(reasons)),
            }
        })
    }
}
