//! The names of the keys, and what is read from them.

use std::time::Duration;

use super::model::{HeartbeatValue, KeyValue};
use crate::leaser::{ClusterView, Heartbeat, Holder, LeaseError, Version};

/// Names under which a cluster's state is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keys {
    /// `<prefix>/<key>`.
    pub(super) lease: String,
    /// `<prefix>/<key>/clusterid`.
    pub(super) cluster_id: String,
    /// `<prefix>/<key>/heartbeat`.
    pub(super) heartbeat: String,
    /// `<prefix>/<key>/nodes/`.
    nodes: String,
    /// `<prefix>/litefs`, in the catalog.
    pub(super) node: String,
}

impl Keys {
    /// `path`: of the Consul URL. `key`: `lease.consul.key`.
    pub(super) fn new(path: &str, key: &str) -> Result<Self, LeaseError> {
        let key = key.trim_matches('/');
        if key.is_empty() || key.split('/').any(|part| matches!(part, "" | "." | "..")) {
            let text = "`lease.consul.key` must be a key such as `litefs/primary`, without empty, `.` or `..` parts";
            return Err(LeaseError::Config(text.to_owned()));
        }
        let prefix = path.trim_matches('/');
        let under = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        let lease = under(key);
        Ok(Self {
            cluster_id: format!("{lease}/clusterid"),
            heartbeat: format!("{lease}/heartbeat"),
            nodes: format!("{lease}/nodes/"),
            node: under("litefs"),
            lease,
        })
    }

    /// The key of a node's record.
    pub(super) fn node_record(&self, hostname: &str) -> String {
        format!("{}{}", self.nodes, hostname.replace(['/', '\\'], "_"))
    }

    /// What the keys that were found say. Values that cannot be understood count as absent, except that a lease key that a
    /// session holds is held, whatever its value.
    pub(super) fn view(&self, version: Version, found: &[KeyValue]) -> ClusterView {
        let mut view = ClusterView { version, ..ClusterView::default() };
        for key in found {
            if key.key == self.lease {
                view.holder = self.holder(key);
            } else if key.key == self.heartbeat {
                view.heartbeat = decode::<HeartbeatValue>(key).map(|value| Heartbeat {
                    lease: value.lease,
                    key_index: value.key_index,
                    fence_after: Duration::from_millis(value.fence_after_ms),
                    index: key.modify_index,
                });
            } else if key.key == self.cluster_id {
                view.cluster_id = key.bytes().and_then(|bytes| String::from_utf8(bytes).ok());
                view.cluster_id = view.cluster_id.map(|id| id.trim().to_owned()).filter(|id| !id.is_empty());
            } else if key.key.starts_with(&self.nodes) {
                view.nodes.extend(decode(key).map(|record| (record, key.modify_index)));
            }
        }
        view
    }

    /// `ModifyIndex` of the lease key in the results of a transaction. They come in the order of its operations: the last one is
    /// the key as the transaction left it.
    pub(super) fn lease_index(&self, results: &[KeyValue]) -> Result<u64, LeaseError> {
        let found = results.iter().rfind(|found| found.key == self.lease && found.modify_index > 0);
        let missing = || LeaseError::BadAnswer("the transaction's results lack the lease key".to_owned());
        found.map(|key| key.modify_index).ok_or_else(missing)
    }

    fn holder(&self, key: &KeyValue) -> Option<Holder> {
        let lease = key.holder()?;
        let info = decode(key).unwrap_or_else(|| {
            tracing::warn!(key = self.lease, "the lease is held, but its value does not name a primary");
            crate::leaser::PrimaryInfo { hostname: String::new(), advertise_url: String::new(), proxy_url: None }
        });
        Some(Holder { info, lease, index: key.modify_index })
    }
}

fn decode<T: serde::de::DeserializeOwned>(key: &KeyValue) -> Option<T> {
    let decoded = key.bytes().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if decoded.is_none() {
        tracing::debug!(key = key.key, "the value of this key is not understood");
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_the_url_is_a_prefix_of_keys_and_node() {
        let keys = Keys::new("/team/a/", "litefs/primary").unwrap();
        assert_eq!(keys.lease, "team/a/litefs/primary");
        assert_eq!(keys.cluster_id, "team/a/litefs/primary/clusterid");
        assert_eq!(keys.node, "team/a/litefs");
        assert_eq!(keys.node_record("a/b"), "team/a/litefs/primary/nodes/a_b");
        assert_eq!(Keys::new("/", "k").unwrap().node, "litefs");
        for key in ["", "/", "a//b", "a/../b"] {
            assert!(Keys::new("", key).is_err(), "{key:?}");
        }
    }

    #[test]
    fn keys_of_other_leases_with_the_same_start_are_not_ours() {
        let keys = Keys::new("", "litefs/primary").unwrap();
        let text = r#"[
            {"Key":"litefs/primary","Value":"eyJob3N0bmFtZSI6ImEiLCJhZHZlcnRpc2UtdXJsIjoiaHR0cDovL2EifQ==","Session":"s1","ModifyIndex":7},
            {"Key":"litefs/primary-b","Value":"e30=","Session":"s2","ModifyIndex":8},
            {"Key":"litefs/primary/clusterid","Value":"TEZTQzAxCg==","ModifyIndex":3},
            {"Key":"litefs/primary/nodes/x","Value":"bm90IGpzb24=","ModifyIndex":9}
        ]"#;
        let found: Vec<KeyValue> = serde_json::from_str(text).unwrap();
        let view = keys.view(Version(9), &found);
        let holder = view.holder.unwrap();
        assert_eq!((holder.info.hostname.as_str(), holder.lease.0.as_str(), holder.index), ("a", "s1", 7));
        assert_eq!(view.cluster_id.as_deref(), Some("LFSC01"));
        assert_eq!(view.nodes, []);
    }

    #[test]
    fn a_key_without_session_is_held_by_nobody() {
        let keys = Keys::new("", "k").unwrap();
        let found: Vec<KeyValue> = serde_json::from_str(r#"[{"Key":"k","Value":null,"ModifyIndex":7}]"#).unwrap();
        assert_eq!(keys.view(Version(7), &found).holder, None);
        let held: Vec<KeyValue> =
            serde_json::from_str(r#"[{"Key":"k","Value":"!","Session":"s","ModifyIndex":7}]"#).unwrap();
        assert!(keys.view(Version(7), &held).holder.is_some(), "an unreadable value does not free the lease");
    }
}
