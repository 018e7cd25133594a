//! Which candidate should be the next primary. (Skeleton: the rule follows.)

use std::collections::BTreeMap;

use litefs::Pos;
use serde::{Deserialize, Serialize};

/// What a node records of itself under the lease key, for candidates to see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// `lease.hostname`; names the record.
    pub hostname: String,
    /// `lease.advertise-url`.
    #[serde(rename = "advertise-url")]
    pub advertise_url: String,
    /// Node ID of this run, 16 upper-case hex digits.
    #[serde(rename = "node-id")]
    pub node_id: String,
    /// Whether the node may become primary.
    pub candidate: bool,
    /// The node's databases; dropped ones too.
    pub positions: BTreeMap<String, Pos>,
}
