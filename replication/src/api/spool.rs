//! Request bodies that are files: written beside the databases first, so that a slow or broken upload touches nothing.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::sync::mpsc;

use super::error::ApiError;

/// How long a client may send nothing in the middle of a body.
const STALL_MAX: Duration = Duration::from_secs(60);
/// Pieces of a body that wait to be written.
const PIECES_MAX: usize = 16;

/// The folder for spooled bodies, emptied: what is in it was left by a killed process.
pub(crate) async fn prepare(data_dir: &Path) -> io::Result<PathBuf> {
    let dir = data_dir.join("spool");
    match tokio::fs::remove_dir_all(&dir).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    tokio::fs::create_dir_all(&dir).await?;
    Ok(dir)
}

/// A spooled body; the file goes with it.
#[derive(Debug)]
pub(crate) struct Spool {
    pub(crate) path: PathBuf,
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "remove a spooled body");
        }
    }
}

/// Reads a body into a new file in `dir`.
pub(crate) async fn spool(dir: &Path, body: Body) -> Result<Spool, ApiError> {
    let path = dir.join(format!("{:016x}", fastrand::u64(..)));
    let disk = |error: io::Error| ApiError::io("write the body to the data directory", &error);
    let file = tokio::fs::File::create_new(&path).await.map_err(disk)?.into_std().await;
    let spool = Spool { path };
    let (pieces, received) = mpsc::channel(PIECES_MAX);
    let writing = tokio::task::spawn_blocking(move || write_pieces(received, file));
    let read = read_pieces(body, pieces).await;
    writing.await.unwrap_or_else(|panic| Err(io::Error::other(panic.to_string()))).map_err(disk)?;
    read.map(|()| spool)
}

/// Passes the body on until it ends, or until nobody takes it any more.
async fn read_pieces(mut body: Body, pieces: mpsc::Sender<Bytes>) -> Result<(), ApiError> {
    while !body.is_end_stream() {
        let frame = tokio::time::timeout(STALL_MAX, body.frame()).await;
        let frame = frame.map_err(|_| ApiError::bad_request("the request body stalled"))?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| ApiError::bad_request(format!("read the request body: {error}")))?;
        if let Ok(data) = frame.into_data()
            && pieces.send(data).await.is_err()
        {
            break;
        }
    }
    Ok(())
}

fn write_pieces(mut pieces: mpsc::Receiver<Bytes>, mut file: File) -> io::Result<()> {
    while let Some(piece) = pieces.blocking_recv() {
        file.write_all(&piece)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_spooled_body_is_a_file_as_long_as_it_is_used() {
        let data = tempfile::tempdir().expect("a directory");
        let dir = prepare(data.path()).await.expect("a spool");
        let spooled = spool(&dir, Body::from("hello")).await.expect("spooled");
        let path = spooled.path.clone();
        assert_eq!(std::fs::read(&path).expect("a file"), b"hello");
        drop(spooled);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_broken_upload_and_a_killed_process_leave_nothing() {
        let data = tempfile::tempdir().expect("a directory");
        let dir = prepare(data.path()).await.expect("a spool");
        let broken = futures_util::stream::iter([Ok("half"), Err(io::Error::other("gone"))]);
        assert!(spool(&dir, Body::from_stream(broken)).await.is_err());
        assert_eq!(std::fs::read_dir(&dir).expect("the spool").count(), 0);
        std::fs::write(dir.join("left"), "over").expect("written");
        prepare(data.path()).await.expect("a spool");
        assert_eq!(std::fs::read_dir(&dir).expect("the spool").count(), 0);
    }
}
