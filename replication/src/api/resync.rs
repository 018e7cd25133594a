//! `POST /resync`: for replicas whose history is another one. LiteFS has no such route; its replicas get snapshots.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use litefs::database::Next;
use litefs::{DbName, Pos, Store};

use super::body::written_by;
use super::databases::DatabaseQuery;
use super::error::{ApiError, database_name};
use super::stream::{check_headers, read_positions};
use crate::node::Shared;
use crate::stream::sender::Cover;
use crate::wire::{decode_position_map, decode_tail, encode_position_map};

/// Without a name: the body is a position map; the answer has those databases, at our positions, that need a snapshot. With a
/// name: the body is a tail of records; the answer is the record that takes their place, or 409.
pub(super) async fn resync(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Query(query): Query<DatabaseQuery>,
    body: Body,
) -> Result<Response, ApiError> {
    check_headers(&shared, &headers)?;
    // What only this node has may not come to be when its lease has run out: it is not spread.
    if !shared.role.is_primary() || Cover::of(&shared.fence).is_none() {
        return Err(ApiError::not_primary());
    }
    let body = read_positions(body).await?;
    let bad = |error: crate::wire::WireError| ApiError::bad_request(error.to_string());
    let content = [(header::CONTENT_TYPE, "application/octet-stream")];
    if query.name.is_empty() {
        let (store, theirs) = (shared.store.clone(), decode_position_map(&body).map_err(bad)?);
        let diverged = tokio::task::spawn_blocking(move || diverged(&store, theirs));
        let diverged = diverged
            .await
            .unwrap_or_else(|panic| Err(io::Error::other(panic.to_string())))
            .map_err(|error| ApiError::io("compare positions", &error))?;
        return Ok((content, encode_position_map(&diverged)).into_response());
    }
    let (name, tail) = (database_name(&query.name)?, decode_tail(&body).map_err(bad)?);
    let db = shared.store.database(name.as_str()).ok_or_else(ApiError::unknown_database)?;
    let record = written_by(move |out| db.write_rejoin(&tail, out)).await;
    let record = record.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => ApiError::new(StatusCode::CONFLICT, error.to_string()),
        _ => ApiError::io("make a record", &error),
    })?;
    Ok((content, record).into_response())
}

fn diverged(store: &Store, theirs: BTreeMap<DbName, Pos>) -> io::Result<BTreeMap<DbName, Pos>> {
    let mut diverged = BTreeMap::new();
    for (name, pos) in theirs {
        let Some(db) = store.database(name.as_str()) else { continue };
        if matches!(db.next_after(pos)?, Next::SnapshotNeeded) {
            diverged.insert(name, db.pos());
        }
    }
    Ok(diverged)
}
