//! `litefs import` and `litefs export`.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use litefs::DbName;
use litefs::sqlite::header::{DatabaseHeader, HEADER_LEN};
use tokio::sync::mpsc;

use crate::cli::TransferArgs;
use crate::client::NodeClient;

/// Read and sent at a time, in bytes.
const CHUNK_BYTES: usize = 256 << 10;
/// Pieces that wait to be sent, or to be written.
const PIECES_MAX: usize = 16;
/// So many bytes of an export are given to the disk together, while the next are received.
const WRITE_BACK_BYTES: u64 = 4 << 20;

/// Sends a SQLite file to the node, which replaces the database by it in one transaction.
///
/// # Errors
/// When the file is no complete SQLite database, or the node refuses; the database is as before then.
pub async fn import(args: TransferArgs) -> anyhow::Result<u8> {
    let name: DbName = args.name.parse().with_context(|| format!("-name {:?}", args.name))?;
    let node = NodeClient::new(&args.url)?;
    let path = &args.path;
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let size = file.metadata()?.len();
    let mut header = vec![0; HEADER_LEN.min(usize::try_from(size).unwrap_or(HEADER_LEN))];
    file.read_exact(&mut header)?;
    check_complete(&header, size).with_context(|| format!("{}", path.display()))?;
    let wal = sibling(path, "-wal");
    if wal.metadata().is_ok_and(|wal| wal.len() > 0) {
        bail!(
            "{} holds transactions that are not in {} yet: close the application, or run \
             `sqlite3 {} 'PRAGMA wal_checkpoint(TRUNCATE)'`, then import",
            wal.display(),
            path.display(),
            path.display()
        );
    }
    file.rewind()?;
    let progress = progress(Some(size));
    let sent = progress.clone();
    let (pieces, read) = mpsc::channel(PIECES_MAX);
    tokio::task::spawn_blocking(move || read_pieces(file.take(size), &pieces));
    let stream = futures_util::stream::unfold(read, |mut read| async { read.recv().await.map(|piece| (piece, read)) })
        .inspect_ok(move |piece: &Bytes| sent.inc(piece.len() as u64));
    let body = reqwest::Body::wrap_stream(stream);
    node.post("/import", &[("name", name.as_str())], body).await?;
    progress.finish_and_clear();
    println!("imported {} as {name} ({size} bytes)", path.display());
    Ok(0)
}

/// Writes a consistent copy of a database: beside the destination first, renamed when it is complete.
///
/// # Errors
/// When the node does not have it, or the copy is not complete; the destination is as before then.
pub async fn export(args: TransferArgs) -> anyhow::Result<u8> {
    let name: DbName = args.name.parse().with_context(|| format!("-name {:?}", args.name))?;
    let node = NodeClient::new(&args.url)?;
    let path = &args.path;
    let response = node.get("/export", &[("name", name.as_str())]).await?;
    let progress = progress(response.content_length());
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let temporary = tempfile::Builder::new()
        .prefix(".litefs-export-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder)
        .with_context(|| format!("create a file in {}", folder.display()))?;
    let (pieces, received) = mpsc::channel(PIECES_MAX);
    let file = temporary.as_file().try_clone()?;
    let written = tokio::task::spawn_blocking(move || write_pieces(received, &file));
    let mut stream = response.bytes_stream();
    let mut header = Vec::with_capacity(HEADER_LEN);
    let mut size = 0;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.context("the node broke off")?;
        header.extend_from_slice(&chunk[..chunk.len().min(HEADER_LEN - header.len())]);
        size += chunk.len() as u64;
        progress.inc(chunk.len() as u64);
        if pieces.send(chunk).await.is_err() {
            // Writing failed; the thread says why.
            break;
        }
    }
    drop(pieces);
    written.await?.context("write the copy")?;
    check_complete(&header, size).context("the node sent something else than a complete database")?;
    temporary.persist(path).with_context(|| format!("rename to {}", path.display()))?;
    std::fs::File::open(folder)?.sync_all()?;
    progress.finish_and_clear();
    println!("exported {name} to {} ({size} bytes)", path.display());
    Ok(0)
}

/// Sends what the file holds, until the receiver is dropped.
fn read_pieces(mut file: impl Read, pieces: &mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let mut piece = vec![0; CHUNK_BYTES];
        let read = match file.read(&mut piece) {
            Ok(0) => break,
            Ok(len) => {
                piece.truncate(len);
                Ok(piece.into())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let failed = read.is_err();
        if pieces.blocking_send(read).is_err() || failed {
            break;
        }
    }
}

/// Writes what comes, in order, until the sender is dropped, and makes it durable.
fn write_pieces(mut pieces: mpsc::Receiver<Bytes>, mut file: &File) -> io::Result<()> {
    let (mut len, mut begun) = (0, 0);
    while let Some(piece) = pieces.blocking_recv() {
        file.write_all(&piece)?;
        len += piece.len() as u64;
        if len - begun >= WRITE_BACK_BYTES {
            litefs::start_writing_back(file, begun, len - begun);
            begun = len;
        }
    }
    file.sync_all()
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// A database file holds at least the pages its header speaks of. An empty file is an empty database.
fn check_complete(header: &[u8], size: u64) -> anyhow::Result<()> {
    if size == 0 {
        return Ok(());
    }
    ensure!(header.len() >= HEADER_LEN, "not a SQLite database (only {size} bytes)");
    let header = DatabaseHeader::parse(header).context("not a SQLite database")?;
    let page_size = u64::from(header.page_size);
    ensure!(size.is_multiple_of(page_size), "cut off: {size} bytes are not whole pages of {page_size} bytes");
    let pages = u64::from(header.page_count(size));
    ensure!(pages <= size / page_size, "cut off: {pages} pages by its header, {} in the file", size / page_size);
    Ok(())
}

/// A bar on a terminal, nothing elsewhere.
fn progress(size: Option<u64>) -> ProgressBar {
    let style = match size {
        Some(_) => "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        None => "{spinner} {bytes} {bytes_per_sec}",
    };
    let bar = ProgressBar::with_draw_target(size, ProgressDrawTarget::stderr());
    match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Writes to standard output; a reader that went away (`| head`) is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(Into::into),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_off_database_is_not_complete() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.db");
        let db = rusqlite::Connection::open(&path).expect("open");
        db.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES(zeroblob(20000))").expect("fill");
        drop(db);
        let bytes = std::fs::read(&path).expect("read");
        let size = bytes.len() as u64;
        assert!(check_complete(&bytes[..HEADER_LEN], size).is_ok());
        assert!(check_complete(&bytes[..HEADER_LEN], size - 4096).is_err());
        assert!(check_complete(&bytes[..HEADER_LEN], size - 1).is_err());
        assert!(check_complete(&bytes[..50], 50).is_err());
        assert!(check_complete(b"", 0).is_ok());
    }
}
