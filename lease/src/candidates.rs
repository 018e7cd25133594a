//! Which candidate should be the next primary.
//!
//! Replicas and the primary record what they have under the lease key ([`NodeRecord`]). Before a candidate takes the lease by
//! itself, [`decide`] compares:
//!
//! - It belongs to another cluster than the one recorded there, or to none while one is recorded: **never**.
//! - It misses a database that any node is known to have (so it is new, was emptied, or replicates a part): **never** by itself.
//! - Another candidate has transactions that it lacks: it **yields**, so that one goes first. Records of nodes that are silent count, too: the last
//!   primary may be restarting. Yielding is bounded by the caller ([`YIELD_AT_MOST`]), because a cluster without
//!   primary helps nobody; what is lost then is logged, and set aside on the other node when it comes back.
//! - Otherwise it **takes** the lease.
//!
//! An operator's force passes over the last two. LiteFS nodes record nothing and are not considered.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use litefs::{Pos, Txid};
use serde::{Deserialize, Serialize};

use crate::clock::BootInstant;
use crate::leaser::ClusterView;

/// How often a node writes its record although nothing has changed.
pub const RECORD_EVERY: Duration = Duration::from_secs(3);
/// A node whose record has not changed for this long is taken to be gone.
pub const ALIVE_FOR: Duration = Duration::from_secs(10);
/// How long a candidate lets another one go first.
pub const YIELD_AT_MOST: Duration = Duration::from_secs(5);

/// What a node records of itself under the lease key, for candidates to see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NodeRecord {
    /// `lease.hostname`; names the record.
    pub hostname: String,
    /// `lease.advertise-url`.
    pub advertise_url: String,
    /// Node ID of this run, 16 upper-case hex digits.
    pub node_id: String,
    /// The cluster the node's data belongs to.
    #[serde(default)]
    pub cluster_id: Option<String>,
    /// Whether the node may become primary.
    pub candidate: bool,
    /// Whether it was the primary when it wrote this.
    #[serde(default)]
    pub primary: bool,
    /// Whether it has stopped cleanly.
    #[serde(default)]
    pub stopped: bool,
    /// Counts up, so that every record of a run differs from the one before.
    #[serde(default)]
    pub beat: u64,
    /// The node's databases; dropped ones too.
    pub positions: BTreeMap<String, Pos>,
}

/// What a candidate should do about a lease that is free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Take it.
    Take,
    /// Let another candidate go first; the text says which and why.
    Yield(String),
    /// Do not take it; the text says why and what to do.
    Never(String),
}

/// Which nodes are alive, judged by when their records were seen to change on our own clock.
#[derive(Debug, Default)]
pub struct Roster {
    seen: HashMap<String, (u64, BootInstant)>,
}

impl Roster {
    /// Takes note of the records in a view that has just arrived.
    pub fn observe(&mut self, view: &ClusterView, now: BootInstant) {
        self.seen.retain(|hostname, _| view.nodes.iter().any(|(record, _)| record.hostname == *hostname));
        for (record, index) in &view.nodes {
            let entry = self.seen.entry(record.hostname.clone()).or_insert((*index, now));
            if entry.0 != *index {
                *entry = (*index, now);
            }
        }
    }

    /// Whether a node has shown itself lately. One that was never seen to change counts as alive for as long.
    #[must_use]
    pub fn is_alive(&self, record: &NodeRecord, now: BootInstant) -> bool {
        let changed = self.seen.get(&record.hostname).map(|(_, at)| *at);
        !record.stopped && changed.is_some_and(|at| now.since(at) < ALIVE_FOR)
    }
}

/// What the node `me` should do about a free lease. `now`: to tell living nodes from dead ones in what is said.
#[must_use]
pub fn decide(me: &NodeRecord, view: &ClusterView, roster: &Roster, now: BootInstant) -> Decision {
    if let Some(refusal) = other_cluster(me, view) {
        return Decision::Never(refusal);
    }
    let others = || view.nodes.iter().map(|(record, _)| record).filter(|record| same_cluster(me, record));
    for other in others() {
        if let Some(missing) = missing_database(me, other) {
            return Decision::Never(format!(
                "this node has no copy of database `{missing}`, which node `{}` is known to have: it does not become primary by \
                 itself. It may once it has replicated; if that data is gone for good, `POST /promote?force=true` to this node overrides",
                other.hostname
            ));
        }
    }
    let first = others().filter(|other| goes_first(other, me)).max_by(|a, b| rank(a, b));
    let Some(first) = first else {
        return Decision::Take;
    };
    let state = if roster.is_alive(first, now) { "alive" } else { "not seen lately" };
    Decision::Yield(format!(
        "node `{}` ({state}) has transactions that this node lacks: {}",
        first.hostname,
        lacks(me, first)
    ))
}

/// Why the cluster's recorded ID forbids this node to take the lease.
fn other_cluster(me: &NodeRecord, view: &ClusterView) -> Option<String> {
    let recorded = view.cluster_id.as_ref()?;
    match &me.cluster_id {
        Some(ours) if ours == recorded => None,
        Some(ours) => Some(format!(
            "cluster ID {recorded} is recorded under the lease key, but this node belongs to {ours}: two clusters share a key"
        )),
        None => Some(format!(
            "this node has no data of cluster {recorded} yet: it does not become primary before it has replicated once"
        )),
    }
}

fn same_cluster(me: &NodeRecord, other: &NodeRecord) -> bool {
    let known = me.cluster_id.as_ref().zip(other.cluster_id.as_ref());
    other.hostname != me.hostname && known.is_none_or(|(ours, theirs)| ours == theirs)
}

fn missing_database<'a>(me: &NodeRecord, other: &'a NodeRecord) -> Option<&'a String> {
    other.positions.iter().find(|(name, pos)| !pos.is_zero() && !me.positions.contains_key(*name)).map(|(name, _)| name)
}

fn txid(record: &NodeRecord, name: &str) -> Txid {
    record.positions.get(name).map_or(Txid::ZERO, |pos| pos.txid)
}

/// Whether `me` lacks a transaction that `other` has.
fn is_behind(me: &NodeRecord, other: &NodeRecord) -> bool {
    other.positions.iter().any(|(name, pos)| pos.txid > txid(me, name))
}

/// Whether `other` may be primary and should be rather than `me`. Never true in both directions.
fn goes_first(other: &NodeRecord, me: &NodeRecord) -> bool {
    other.candidate && is_behind(me, other) && (!is_behind(other, me) || rank(other, me) == Ordering::Greater)
}

/// Which of two nodes that each lack something has more; a total order.
fn rank(a: &NodeRecord, b: &NodeRecord) -> Ordering {
    let sum = |record: &NodeRecord| record.positions.values().map(|pos| u128::from(pos.txid.0)).sum::<u128>();
    sum(a).cmp(&sum(b)).then_with(|| b.hostname.cmp(&a.hostname))
}

/// What `me` lacks of `other`, for people; the first few databases.
fn lacks(me: &NodeRecord, other: &NodeRecord) -> String {
    let behind = other.positions.iter().filter(|(name, pos)| pos.txid > txid(me, name));
    let mut text: Vec<String> =
        behind.map(|(name, pos)| format!("`{name}` {} after {}", pos.txid, txid(me, name))).take(4).collect();
    if text.len() == 4 {
        text[3] = "…".to_owned();
    }
    text.join(", ")
}

#[cfg(test)]
mod tests {
    use litefs::Checksum;
    use proptest::prelude::*;

    use super::*;

    fn record(hostname: &str, positions: &[(&str, u64)]) -> NodeRecord {
        let pos = |txid| Pos::new(Txid(txid), Checksum(Checksum::FLAG | txid));
        NodeRecord {
            hostname: hostname.to_owned(),
            advertise_url: format!("http://{hostname}"),
            node_id: "0000000000000001".to_owned(),
            cluster_id: Some("LFSC1".to_owned()),
            candidate: true,
            primary: false,
            stopped: false,
            beat: 0,
            positions: positions.iter().map(|(name, txid)| ((*name).to_owned(), pos(*txid))).collect(),
        }
    }

    fn view(nodes: &[NodeRecord]) -> ClusterView {
        ClusterView {
            cluster_id: Some("LFSC1".to_owned()),
            nodes: nodes.iter().cloned().map(|node| (node, 1)).collect(),
            ..ClusterView::default()
        }
    }

    fn decision(me: &NodeRecord, nodes: &[NodeRecord]) -> Decision {
        decide(me, &view(nodes), &Roster::default(), BootInstant::now())
    }

    #[test]
    fn a_first_node_takes_the_lease_of_a_new_cluster() {
        let me = NodeRecord { cluster_id: None, ..record("a", &[]) };
        let fresh = ClusterView::default();
        assert_eq!(decide(&me, &fresh, &Roster::default(), BootInstant::now()), Decision::Take);
    }

    #[test]
    fn a_node_of_no_or_another_cluster_never_takes_it() {
        for cluster_id in [None, Some("LFSC2".to_owned())] {
            let me = NodeRecord { cluster_id, ..record("a", &[("db", 9)]) };
            assert!(matches!(decision(&me, &[]), Decision::Never(_)));
        }
    }

    #[test]
    fn an_emptied_node_and_one_without_a_known_database_never_take_it() {
        let primary = NodeRecord { stopped: true, ..record("p", &[("db", 5), ("other", 1)]) };
        assert!(matches!(decision(&record("a", &[]), std::slice::from_ref(&primary)), Decision::Never(_)));
        assert!(matches!(decision(&record("a", &[("db", 9)]), std::slice::from_ref(&primary)), Decision::Never(_)));
        assert_eq!(decision(&record("a", &[("db", 5), ("other", 1)]), &[primary]), Decision::Take);
    }

    #[test]
    fn a_candidate_lets_one_with_more_transactions_go_first() {
        let more = record("b", &[("db", 10)]);
        let Decision::Yield(text) = decision(&record("a", &[("db", 9)]), std::slice::from_ref(&more)) else {
            panic!("must yield")
        };
        assert!(text.contains("`b`") && text.contains("000000000000000a"), "{text}");
        assert_eq!(decision(&more, &[record("a", &[("db", 9)])]), Decision::Take);
        let replica_only = NodeRecord { candidate: false, ..more };
        assert_eq!(decision(&record("a", &[("db", 9)]), &[replica_only]), Decision::Take, "it can never be primary");
    }

    #[test]
    fn the_own_old_record_does_not_count() {
        assert_eq!(decision(&record("a", &[("db", 9)]), &[record("a", &[("db", 10)])]), Decision::Take);
    }

    #[test]
    fn a_node_is_alive_while_its_record_changes() {
        let (mut roster, node) = (Roster::default(), record("b", &[]));
        let start = BootInstant::from_nanos(1);
        let mut seen = ClusterView { nodes: vec![(node.clone(), 1)], ..ClusterView::default() };
        assert!(!roster.is_alive(&node, start), "never seen");
        roster.observe(&seen, start);
        let late = start.after(ALIVE_FOR);
        roster.observe(&seen, late);
        assert!(!roster.is_alive(&node, late), "unchanged for too long");
        seen.nodes[0].1 = 2;
        roster.observe(&seen, late);
        assert!(roster.is_alive(&node, late));
        assert!(!roster.is_alive(&NodeRecord { stopped: true, ..node }, late));
    }

    #[test]
    fn records_of_later_and_earlier_versions_are_read() {
        let text = r#"{"hostname":"h","advertise-url":"u","node-id":"1","candidate":true,"positions":{},"later":1}"#;
        let record: NodeRecord = serde_json::from_str(text).unwrap();
        assert!(!record.stopped && record.cluster_id.is_none());
    }

    proptest! {
        /// Among candidates with the same databases somebody always goes: no circle of yielding, and nobody who takes lacks
        /// something that another one, who has everything the taker has, has beyond it.
        #[test]
        fn exactly_the_best_take_it(txids in prop::collection::vec((1u64..5, 1u64..5), 1..6)) {
            let nodes: Vec<NodeRecord> = txids.iter().enumerate()
                .map(|(i, (a, b))| record(&format!("n{i}"), &[("a", *a), ("b", *b)])).collect();
            let takers: Vec<&NodeRecord> = nodes.iter().filter(|node| decision(node, &nodes) == Decision::Take).collect();
            prop_assert!(!takers.is_empty());
            for taker in takers {
                for other in &nodes {
                    prop_assert!(!is_behind(taker, other) || is_behind(other, taker));
                }
            }
        }
    }
}
