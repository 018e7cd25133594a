//! Route: where a request goes, from what is known without waiting for anything.

use std::time::Instant;

use http::Method;
use litefs::{DbName, Txid};

use crate::config::ProxyConfig;
use crate::node::{Cluster, Positions};
use crate::request::Received;
use crate::token::Token;

/// The health check's path (COMPAT §8).
const HEALTH: &str = "/litefs/health";

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// Straight to the application, untouched by tracking.
    Passthrough,
    /// We answer.
    Health,
    /// To the application: this node is the primary, the authority for every read and write.
    Primary,
    /// To the application: a read that needs nothing newer than what is here.
    Fresh,
    /// To the application once the token's position is reached here; else to the primary.
    Wait,
    /// To the primary, wherever it is.
    NeedsPrimary,
}

/// Decides. The order is LiteFS's: a passthrough glob also wins over the health check.
pub(crate) fn route(
    config: &ProxyConfig,
    request: &Received,
    is_primary: bool,
    positions: &dyn Positions,
    cluster: &dyn Cluster,
) -> Route {
    let path = request.target.path();
    if config.passthrough.matches(path) {
        return Route::Passthrough;
    }
    if path == HEALTH && request.method == Method::GET {
        return Route::Health;
    }
    if is_primary {
        // A node that has lost its lease and does not know yet: what the client has seen may come from its successor.
        // Under a valid lease nobody else has written, and this node is the authority also for what it never reached.
        let overtaken = request.is_read()
            && may_lack(config, &request.token, positions, cluster)
            && !cluster.lease_covers(Instant::now());
        return if overtaken { Route::Wait } else { Route::Primary };
    }
    if !request.is_read() || config.always_forward.matches(path) {
        return Route::NeedsPrimary;
    }
    if may_lack(config, &request.token, positions, cluster) { Route::Wait } else { Route::Fresh }
}

/// Whether the client may have seen what is not here.
fn may_lack(config: &ProxyConfig, token: &Token, positions: &dyn Positions, cluster: &dyn Cluster) -> bool {
    !token.is_empty() && (!cluster.has_shared_history() || first_missing(config, token, positions).is_some())
}

/// The first tracked database of which the client has seen more than is here, and what it has seen.
pub(crate) fn first_missing<'a>(
    config: &'a ProxyConfig,
    token: &Token,
    positions: &dyn Positions,
) -> Option<(&'a DbName, Txid)> {
    if token.is_empty() {
        return None;
    }
    let seen = |index: usize, db: &DbName| match index {
        0 => token.first,
        _ => token.named.iter().find(|(name, _)| name == db.as_str()).map_or(Txid::ZERO, |(_, txid)| *txid),
    };
    let wanted = config.databases.iter().enumerate().map(|(index, db)| (db, seen(index, db)));
    wanted.into_iter().find(|(db, txid)| !txid.is_zero() && positions.txid(db).unwrap_or(Txid::ZERO) < *txid)
}
