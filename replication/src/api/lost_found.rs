//! `GET /lost-and-found`: what was set aside because the cluster's history went another way.

use std::path::{Component, Path as FsPath, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::body::written_by;
use super::error::ApiError;
use crate::node::Shared;

/// Files in one listing.
const LISTED_MAX: usize = 10_000;
/// Folders below lost+found that are looked into.
const DEPTH_MAX: usize = 4;

/// A file that was set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LostFile {
    /// Below `lost+found/`; append it to `/lost-and-found/` to download the file.
    pub(crate) path: String,
    /// Its length.
    pub(crate) bytes: u64,
}

fn root(data_dir: &FsPath) -> PathBuf {
    data_dir.join("lost+found")
}

/// The files below lost+found, by path; at most `max`. Blocking.
pub(crate) fn files(data_dir: &FsPath, max: usize) -> Vec<LostFile> {
    let mut found = Vec::new();
    collect(&root(data_dir), "", DEPTH_MAX, max, &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn collect(dir: &FsPath, prefix: &str, depth: usize, max: usize, found: &mut Vec<LostFile>) {
    // Not there, or not readable: nothing to list.
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if found.len() >= max {
            return;
        }
        let (Ok(name), Ok(metadata)) = (entry.file_name().into_string(), entry.metadata()) else { continue };
        let path = format!("{prefix}{name}");
        if metadata.is_dir() && depth > 1 {
            collect(&entry.path(), &format!("{path}/"), depth - 1, max, found);
        } else if metadata.is_file() {
            found.push(LostFile { path, bytes: metadata.len() });
        }
    }
}

pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Json<Vec<LostFile>> {
    let data_dir = shared.store.config().data_dir.clone();
    let files = tokio::task::spawn_blocking(move || files(&data_dir, LISTED_MAX)).await;
    Json(files.unwrap_or_default())
}

pub(super) async fn download(
    State(shared): State<Arc<Shared>>,
    Path(path): Path<String>,
) -> Result<Response, ApiError> {
    let data_dir = shared.store.config().data_dir.clone();
    let file = tokio::task::spawn_blocking(move || open(&data_dir, &path)).await;
    let (mut file, bytes) =
        file.ok().flatten().ok_or_else(|| ApiError::new(axum::http::StatusCode::NOT_FOUND, "no such file"))?;
    let body: Body = written_by(move |out| std::io::copy(&mut file, out))
        .await
        .map_err(|error| ApiError::io("read the file", &error))?;
    let headers =
        [(header::CONTENT_TYPE, "application/octet-stream".to_owned()), (header::CONTENT_LENGTH, bytes.to_string())];
    Ok((headers, body).into_response())
}

/// Opens a listed file: plain names below lost+found, no links on the way.
fn open(data_dir: &FsPath, path: &str) -> Option<(std::fs::File, u64)> {
    let path = FsPath::new(path);
    if !path.components().all(|part| matches!(part, Component::Normal(_))) {
        return None;
    }
    let mut at = root(data_dir);
    for part in path.components() {
        at.push(part);
        if std::fs::symlink_metadata(&at).ok()?.is_symlink() {
            return None;
        }
    }
    let file = std::fs::File::open(&at).ok()?;
    let metadata = file.metadata().ok()?;
    metadata.is_file().then_some((file, metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_below_lost_and_found_are_listed_and_opened() {
        let data = tempfile::tempdir().expect("a directory");
        assert!(files(data.path(), 10).is_empty());
        let folder = data.path().join("lost+found/a.db/1");
        std::fs::create_dir_all(&folder).expect("made");
        std::fs::write(data.path().join("secret"), "x").expect("written");
        std::fs::write(folder.join("1-2.ltx"), "abc").expect("written");
        std::os::unix::fs::symlink(data.path().join("secret"), folder.join("link")).expect("linked");
        let path = "a.db/1/1-2.ltx".to_owned();
        assert_eq!(files(data.path(), 10), [LostFile { path: path.clone(), bytes: 3 }]);
        assert_eq!(open(data.path(), &path).expect("a file").1, 3);
        for bad in ["../secret", "a.db/../../secret", "/etc/passwd", "a.db/1/link", "a.db", "", "x"] {
            assert!(open(data.path(), bad).is_none(), "{bad:?}");
        }
    }
}
