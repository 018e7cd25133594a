//! `POST /halt`, `DELETE /halt`, `POST /tx`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use litefs::DbName;
use serde::Deserialize;

use super::error::{ApiError, database_name};
use super::spool::spool;
use crate::halt::HaltAnswer;
use crate::halt::table::TableError;
use crate::node::Shared;

#[derive(Debug, Deserialize)]
pub(super) struct HaltQuery {
    #[serde(default)]
    name: String,
    /// LiteFS calls it `id` at `/halt` and `lockID` at `/tx`.
    #[serde(default, alias = "lockID")]
    id: String,
}

impl HaltQuery {
    fn parse(&self) -> Result<(DbName, u64), ApiError> {
        let id = self.id.parse().map_err(|_| ApiError::bad_request("id must be a whole number"))?;
        Ok((database_name(&self.name)?, id))
    }
}

impl From<TableError> for ApiError {
    fn from(error: TableError) -> Self {
        let status = match &error {
            TableError::UnknownDatabase => StatusCode::NOT_FOUND,
            TableError::HeldByAnother | TableError::NotHeld => StatusCode::CONFLICT,
            TableError::Halt(cause) => return Self::io("halt writes", cause),
            TableError::Apply(cause) => return Self::apply(cause),
        };
        Self::new(status, error.to_string())
    }
}

pub(super) async fn acquire(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<HaltQuery>,
) -> Result<Json<HaltAnswer>, ApiError> {
    let (name, id) = query.parse()?;
    if !shared.role.is_primary() {
        return Err(ApiError::not_primary());
    }
    // In a task of its own: a client that gives up must not leave the lock half taken.
    let (table, taken_name) = (shared.clone(), name.clone());
    let granted = shared.tasks.spawn(async move { table.halts.acquire(&taken_name, id).await });
    let granted =
        granted.await.map_err(|panic| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, panic.to_string()))??;
    if !shared.role.is_primary() {
        let _ = shared.halts.release(&name, id).await;
        return Err(ApiError::not_primary());
    }
    let expires = humantime::format_rfc3339_millis(granted.expires).to_string();
    Ok(Json(HaltAnswer { id, pos: granted.pos.into(), expires }))
}

pub(super) async fn release(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<HaltQuery>,
) -> Result<StatusCode, ApiError> {
    let (name, id) = query.parse()?;
    match shared.halts.release(&name, id).await {
        Ok(()) => Ok(StatusCode::OK),
        // Nothing there to release.
        Err(TableError::NotHeld) => Err(ApiError::new(StatusCode::NOT_FOUND, TableError::NotHeld.to_string())),
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn commit(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<HaltQuery>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let (name, id) = query.parse()?;
    if !shared.role.is_primary() {
        return Err(ApiError::not_primary());
    }
    let file = spool(&shared.spool_dir, body).await?;
    let pos = shared.halts.commit(&name, id, &file.path).await?;
    if !shared.fence.is_open() {
        return Err(ApiError::unconfirmed());
    }
    tracing::debug!(db = %name, %pos, "committed a transaction of the HALT lock's holder");
    Ok(StatusCode::OK)
}
