//! `litefs import` and `litefs export`.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use futures_util::{StreamExt, TryStreamExt};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use litefs::DbName;
use litefs::sqlite::header::{DatabaseHeader, HEADER_LEN};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use crate::cli::TransferArgs;
use crate::client::NodeClient;

/// Read and sent at a time, in bytes.
const CHUNK_BYTES: usize = 256 << 10;

/// Sends a SQLite file to the node, which replaces the database by it in one transaction.
///
/// # Errors
/// When the file is no complete SQLite database, or the node refuses; the database is as before then.
pub async fn import(args: TransferArgs) -> anyhow::Result<u8> {
    let name: DbName = args.name.parse().with_context(|| format!("-name {:?}", args.name))?;
    let node = NodeClient::new(&args.url)?;
    let path = &args.path;
    let mut file = tokio::fs::File::open(path).await.with_context(|| format!("open {}", path.display()))?;
    let size = file.metadata().await?.len();
    let mut header = vec![0; HEADER_LEN.min(usize::try_from(size).unwrap_or(HEADER_LEN))];
    file.read_exact(&mut header).await?;
    check_complete(&header, size).with_context(|| format!("{}", path.display()))?;
    let wal = sibling(path, "-wal");
    if tokio::fs::metadata(&wal).await.is_ok_and(|wal| wal.len() > 0) {
        bail!(
            "{} holds transactions that are not in {} yet: close the application, or run \
             `sqlite3 {} 'PRAGMA wal_checkpoint(TRUNCATE)'`, then import",
            wal.display(),
            path.display(),
            path.display()
        );
    }
    file.rewind().await?;
    let progress = progress(Some(size));
    let sent = progress.clone();
    let stream =
        ReaderStream::with_capacity(file.take(size), CHUNK_BYTES).inspect_ok(move |chunk| sent.inc(chunk.len() as u64));
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
    let mut file = tokio::fs::File::from_std(temporary.as_file().try_clone()?);
    let mut stream = response.bytes_stream();
    let mut header = Vec::with_capacity(HEADER_LEN);
    let mut size = 0;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.context("the node broke off")?;
        header.extend_from_slice(&chunk[..chunk.len().min(HEADER_LEN - header.len())]);
        file.write_all(&chunk).await.context("write the copy")?;
        size += chunk.len() as u64;
        progress.inc(chunk.len() as u64);
    }
    file.flush().await?;
    file.sync_all().await.context("sync the copy")?;
    check_complete(&header, size).context("the node sent something else than a complete database")?;
    temporary.persist(path).with_context(|| format!("rename to {}", path.display()))?;
    std::fs::File::open(folder)?.sync_all()?;
    progress.finish_and_clear();
    println!("exported {name} to {} ({size} bytes)", path.display());
    Ok(0)
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
