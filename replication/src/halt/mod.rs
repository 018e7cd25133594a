//! The HALT lock: a replica writes, while the primary holds still (COMPAT §3, §4).
//!
//! ```text
//! replica (RemoteHalts)                        primary (HaltTable)
//!   POST /halt?name&id ───────────────────────► nobody writes there any more
//!   wait for the primary's position, then let local clients write
//!   every captured transaction: POST /tx ─────► applied, streamed to the others
//!   renew: POST /halt with the same id ───────► 30 s more
//!   stop local writes, send the rest,
//!   DELETE /halt ─────────────────────────────► writes again
//! ```

#[cfg(test)]
mod expiry_tests;
pub(crate) mod remote;
mod shipper;
pub(crate) mod table;

use std::time::Duration;

use litefs::Pos;
use serde::{Deserialize, Serialize};

pub use remote::{HaltError, RemoteHalts};

/// How long a lock lasts without renewal.
pub const HALT_TTL: Duration = Duration::from_secs(30);
/// How long acquiring may take on the primary.
pub const HALT_ACQUIRE_MAX: Duration = Duration::from_secs(10);

/// The answer to `POST /halt`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HaltAnswer {
    pub(crate) id: u64,
    pub(crate) pos: PosJson,
    /// RFC 3339.
    pub(crate) expires: String,
}

/// A position as LiteFS writes it in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PosJson {
    #[serde(rename = "TXID")]
    pub(crate) txid: litefs::Txid,
    #[serde(rename = "PostApplyChecksum")]
    pub(crate) checksum: litefs::Checksum,
}

impl From<Pos> for PosJson {
    fn from(pos: Pos) -> Self {
        Self { txid: pos.txid, checksum: pos.checksum }
    }
}

impl From<PosJson> for Pos {
    fn from(pos: PosJson) -> Self {
        Self::new(pos.txid, pos.checksum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use litefs::{Checksum, Txid};

    #[test]
    fn the_answer_is_the_originals_json() {
        let pos = Pos::new(Txid(26), Checksum(0x8000_0000_0000_00ff));
        let answer = HaltAnswer { id: 1234, pos: pos.into(), expires: "2026-11-23T05:33:03Z".into() };
        let text = r#"{"id":1234,"pos":{"TXID":"000000000000001a","PostApplyChecksum":"80000000000000ff"},"expires":"2026-11-23T05:33:03Z"}"#;
        assert_eq!(serde_json::to_string(&answer).expect("json"), text);
        assert_eq!(serde_json::from_str::<HaltAnswer>(text).expect("json"), answer);
    }
}
