//! The cluster's ID: set once, checked before a node becomes primary.

use litefs_lease::LeaserKind;

use super::machine::Machine;

impl Machine {
    /// Makes sure that this node and the lease belong to the same cluster; the first primary founds it.
    pub(super) async fn join_cluster(&self) -> Result<(), String> {
        let ours = self.engine.cluster_id();
        let id = ours.clone().unwrap_or_else(|| format!("LFSC{:016X}", fastrand::u64(..)));
        let recorded = if self.leaser.kind() == LeaserKind::Static {
            id
        } else {
            self.leaser.set_cluster_id(&id).await.map_err(|error| format!("record the cluster ID: {error}"))?
        };
        if let Some(ours) = ours {
            if ours == recorded {
                return Ok(());
            }
            return Err(format!(
                "cluster ID {recorded} is recorded under the lease key, but this node belongs to {ours}: two clusters share \
                 a key; give them different `lease.consul.key`s, or remove the data directory of the wrong node"
            ));
        }
        // Without an ID of our own we are the first (the rules have been checked), or were forced: then we join.
        let engine = self.engine.clone();
        let written = tokio::task::spawn_blocking(move || engine.set_cluster_id(&recorded)).await;
        written.map_err(|panic| panic.to_string())?.map_err(|error| format!("write the cluster ID: {error}"))
    }
}
