//! `POST /import`, `GET /export`.

use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use litefs::{DbName, Pos, Store};
use serde::Deserialize;

use super::body::written_by;
use super::error::{ApiError, database_name};
use super::spool::spool;
use crate::node::Shared;

#[derive(Debug, Deserialize)]
pub(super) struct DatabaseQuery {
    #[serde(default)]
    pub(super) name: String,
}

pub(super) async fn import(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<DatabaseQuery>,
    body: Body,
) -> Result<Response, ApiError> {
    let name = database_name(&query.name)?;
    if !shared.role.is_primary() {
        return Err(ApiError::not_primary());
    }
    let file = spool(&shared.spool_dir, body).await?;
    if !shared.role.is_primary() {
        return Err(ApiError::not_primary());
    }
    let store = shared.store.clone();
    let imported = tokio::task::spawn_blocking(move || import_file(&store, &name, &file.path));
    let pos = imported
        .await
        .unwrap_or_else(|panic| Err(io::Error::other(panic.to_string())))
        .map_err(|error| ApiError::io("import", &error))?;
    if !shared.fence.is_open() {
        return Err(ApiError::unconfirmed());
    }
    Ok((StatusCode::OK, format!("{pos}\n")).into_response())
}

/// A failed import into a new database leaves no database behind.
fn import_file(store: &Store, name: &DbName, file: &std::path::Path) -> io::Result<Pos> {
    let existing = store.database(name.as_str());
    let is_new = existing.is_none();
    let db = match existing {
        Some(db) => db,
        None => store.create(name)?,
    };
    let imported = db.import(file);
    let is_left = imported.is_err() && is_new && db.pos().is_zero();
    if is_left && let Err(error) = db.drop_local() {
        tracing::warn!(db = %name, %error, "remove the new database of a failed import");
    }
    imported
}

pub(super) async fn export(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<DatabaseQuery>,
) -> Result<Response, ApiError> {
    let name = database_name(&query.name)?;
    let db = shared.store.database(name.as_str()).ok_or_else(ApiError::unknown_database)?;
    let body = written_by(move |out| db.export(out)).await.map_err(|error| ApiError::io("export", &error))?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response())
}
