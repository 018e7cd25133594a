//! `POST /stream`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Query, State};
use axum::http::{HeaderMap, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use litefs::DbName;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::error::{ApiError, database_name, node_id};
use super::server::RemoteAddress;
use crate::node::Shared;
use crate::stream::ReplicaInfo;
use crate::stream::sender::{BODY_PIECES_MAX, Cover, Sender};
use crate::wire::{POSITION_MAP_BYTES_MAX, decode_position_map};

/// How long a replica may take to send its positions.
const POSITIONS_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Deserialize)]
pub(super) struct StreamQuery {
    #[serde(default)]
    filter: String,
}

pub(super) async fn stream(
    State(shared): State<Arc<Shared>>,
    Extension(RemoteAddress(address)): Extension<RemoteAddress>,
    version: Version,
    headers: HeaderMap,
    Query(query): Query<StreamQuery>,
    body: Body,
) -> Result<Response, ApiError> {
    if version != Version::HTTP_2 {
        let error = ApiError::new(StatusCode::UPGRADE_REQUIRED, "a stream needs HTTP/2 (h2c with prior knowledge)");
        return Ok(([(header::UPGRADE, "h2c")], error).into_response());
    }
    let replica = check_headers(&shared, &headers)?;
    let filter = filter(&query.filter)?;
    if !shared.role.is_primary() {
        return Err(ApiError::not_primary());
    }
    // Asleep for longer than its lease, this node does not know yet that another one is primary.
    let cover = Cover::of(&shared.fence).ok_or_else(ApiError::not_primary)?;
    let sent =
        decode_position_map(&read_positions(body).await?).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let info = ReplicaInfo { node_id: replica, address: address.to_string() };
    let subscription = shared
        .subscribers
        .join(info)
        .map_err(|error| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
    let (pieces, receiver) = mpsc::channel(BODY_PIECES_MAX);
    let sender = Sender {
        events: shared.store.events(),
        store: shared.store.clone(),
        metrics: shared.metrics.clone(),
        role: shared.role.subscribe(),
        cover,
        shutdown: shared.closing.clone(),
        subscription,
        filter,
        sent,
        body: pieces,
        snapshot_timeout: shared.config.snapshot_timeout,
    };
    tracing::info!(replica = %format_args!("{replica:016X}"), %address, "a replica connected");
    shared.tasks.spawn(sender.run(format!("{replica:016X} {address}")));
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (Ok::<_, std::convert::Infallible>(piece), receiver))
    });
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(pieces)).into_response())
}

/// The request's body: a position map, or a tail of records, which is shorter than the longest of those.
pub(super) async fn read_positions(body: Body) -> Result<Bytes, ApiError> {
    let body = tokio::time::timeout(POSITIONS_MAX, Limited::new(body, POSITION_MAP_BYTES_MAX).collect()).await;
    let body = body.map_err(|_| ApiError::bad_request("the positions did not arrive in time"))?;
    let body = body.map_err(|error| ApiError::bad_request(format!("read the positions: {error}")))?;
    Ok(body.to_bytes())
}

/// The replica's node ID, if it may have a stream.
pub(super) fn check_headers(shared: &Shared, headers: &HeaderMap) -> Result<u64, ApiError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let id = node_id(text("litefs-id").ok_or_else(|| ApiError::bad_request("the header Litefs-Id is missing"))?)?;
    if id == shared.store.node_id() {
        return Err(ApiError::bad_request("a node cannot be its own replica: check lease.advertise-url"));
    }
    // Our replicas name their cluster; LiteFS's compare ours themselves.
    match (text("litefs-cluster-id"), shared.store.cluster_id()) {
        (Some(theirs), Some(ours)) if theirs != ours => {
            Err(ApiError::new(StatusCode::CONFLICT, format!("this node belongs to cluster {ours}, not to {theirs}")))
        }
        _ => Ok(id),
    }
}

/// `a,b`: only these databases. Nothing: all.
fn filter(text: &str) -> Result<Option<BTreeSet<DbName>>, ApiError> {
    let names: BTreeSet<_> =
        text.split(',').filter(|name| !name.is_empty()).map(database_name).collect::<Result<_, _>>()?;
    Ok(if names.is_empty() { None } else { Some(names) })
}
