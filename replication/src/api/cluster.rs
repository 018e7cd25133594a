//! `GET /info`, `POST /promote`, `POST /handoff`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use litefs::database::Health;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::{ApiError, node_id};
use super::lost_found;
use crate::node::Shared;
use crate::roles::{HandoffError, HandoffRefused, PromoteError};

/// Files of lost+found listed in `/info`; all are in `/lost-and-found`.
const LOST_FOUND_MAX: usize = 100;

pub(super) async fn info(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let info = tokio::task::spawn_blocking(move || collect(&shared)).await;
    Json(info.unwrap_or_else(|panic| json!({ "error": panic.to_string() })))
}

fn collect(shared: &Shared) -> Value {
    let state = shared.role.state();
    let hostname = state.primary.map(|primary| primary.hostname);
    let problems = shared.problems.list();
    let mut worst = "ok";
    let mut databases = Map::new();
    for db in shared.store.databases() {
        let (health, cause) = match (db.health(), problems.get(db.name())) {
            (Health::Broken(cause), _) => ("broken", Some(cause)),
            (Health::Degraded { cause, .. }, _) => ("degraded", Some(cause)),
            (Health::Ok, Some(cause)) => ("degraded", Some(cause.clone())),
            (Health::Ok, None) => ("ok", None),
        };
        if health == "broken" || (health == "degraded" && worst == "ok") {
            worst = health;
        }
        let entry = json!({ "pos": db.pos(), "pageSize": db.page_size(), "health": health, "cause": cause });
        databases.insert(db.name().to_string(), entry);
    }
    let replicas: Vec<_> = shared
        .subscribers
        .replicas()
        .into_iter()
        .map(|replica| json!({ "nodeID": format!("{:016X}", replica.node_id), "address": replica.address }))
        .collect();
    let lag_ms = if state.role == crate::roles::Role::Primary { 0 } else { shared.lag.ms() };
    let mut info = json!({
        "clusterID": shared.store.cluster_id().unwrap_or_default(),
        "isPrimary": shared.role.is_primary(),
        "candidate": shared.role.is_candidate(),
        "path": shared.config.mount_dir,
        "primary": { "hostname": hostname.unwrap_or_default() },
        "hostname": shared.config.hostname,
        "nodeID": format!("{:016X}", shared.store.node_id()),
        "version": env!("CARGO_PKG_VERSION"),
        "lagMs": lag_ms,
        "health": worst,
        "databases": databases,
        "replicas": replicas,
        "lostAndFound": lost_found::files(&shared.store.config().data_dir, LOST_FOUND_MAX),
    });
    if let Value::Object(members) = &mut info {
        members.extend((shared.info)());
    }
    info
}

#[derive(Debug, Deserialize)]
pub(super) struct PromoteQuery {
    /// Although other candidates have more.
    #[serde(default)]
    force: bool,
}

pub(super) async fn promote(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<PromoteQuery>,
) -> Result<StatusCode, ApiError> {
    if shared.role.is_primary() {
        return Ok(StatusCode::OK);
    }
    match shared.role.promote(query.force).await {
        Ok(()) => Ok(StatusCode::OK),
        Err(error) => {
            let status = match &error {
                PromoteError::NotCandidate | PromoteError::NotEligible(_) => StatusCode::CONFLICT,
                PromoteError::Failed(_) | PromoteError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            };
            Err(ApiError::new(status, error.to_string()))
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct HandoffQuery {
    #[serde(rename = "nodeID", default)]
    node_id: String,
}

pub(super) async fn handoff(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<HandoffQuery>,
) -> Result<StatusCode, ApiError> {
    let id = node_id(&query.node_id)?;
    match shared.role.handoff(id).await {
        Ok(()) => Ok(StatusCode::OK),
        Err(error) => {
            let status = match &error {
                HandoffRefused::Unsupported => StatusCode::CONFLICT,
                HandoffRefused::Link(HandoffError::NotConnected(_)) => StatusCode::NOT_FOUND,
                HandoffRefused::NotPrimary
                | HandoffRefused::Link(HandoffError::Tail(..))
                | HandoffRefused::Lease(_)
                | HandoffRefused::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            };
            Err(ApiError::new(status, error.to_string()))
        }
    }
}
