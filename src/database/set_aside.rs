//! Setting diverged transactions aside: kept as LTX files under `<data>/lost+found/<db>/` before a snapshot of the primary
//! replaces them (COMPAT §9).

use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

use super::commit::now_ms;
use super::{CaptureState, Database, Record};
use crate::kernel::FileKind;
use crate::ltx::verify;
use crate::{Pos, os};

/// Bytes read at once from a record.
const READ_BYTES: usize = 64 << 10;

impl Database {
    /// Copies our transactions after `from` to `lost+found/<db>/<time>-<position>/` as LTX files (a snapshot of everything
    /// when our log does not reach back to `from`) and forgets the position: the next stream sends a snapshot. The log
    /// keeps them until that snapshot starts it over. Returns the folder. The caller holds neither the capture lock nor
    /// an exclusive lock on the database file.
    ///
    /// # Errors
    /// `StorageFull` when that would exceed `lost_and_found_bytes_max`; reading and writing. Nothing is forgotten then, and
    /// no half folder is left.
    pub fn set_aside_after(&self, from: Pos) -> io::Result<PathBuf> {
        let folder = self.keep_aside(from)?;
        self.forget_position(&mut self.capture.lock());
        Ok(folder)
    }

    /// The next stream sends a snapshot.
    pub(super) fn forget_position(&self, state: &mut CaptureState) {
        state.pos = Pos::ZERO;
        self.positions.publish(Pos::ZERO);
    }

    /// As [`Self::set_aside_after`], without forgetting the position; once for the same transactions. Where the log reaches back
    /// to `from`, the caller may hold any lock.
    pub(super) fn keep_aside(&self, from: Pos) -> io::Result<PathBuf> {
        let pos = self.pos();
        let root = self.shared.config.data_dir.join("lost+found");
        let parent = root.join(self.name.as_str());
        if let Some(folder) = folder_with(&parent, from, pos) {
            tracing::info!(
                database = %self.name, %from, diverged = %pos, folder = %folder.display(),
                "transactions that the cluster does not have were set aside before"
            );
            return Ok(folder);
        }
        let folder = parent.join(format!("{}-{}", now_ms(), pos.txid));
        let unfinished = parent.join(format!(".{}-{}", now_ms(), pos.txid));
        fs::create_dir_all(&unfinished)?;
        let room = self.shared.config.lost_and_found_bytes_max.saturating_sub(bytes_below(&root)?);
        let result = self.write_aside(from, &unfinished, room).and_then(|()| {
            os::sync_dir("lost_and_found.sync", &unfinished)?;
            os::rename("lost_and_found.rename", &unfinished, &folder)?;
            os::sync_dir("lost_and_found.sync", &parent)
        });
        if let Err(error) = result {
            // Best effort: the error that led here says more.
            let _ = fs::remove_dir_all(&unfinished);
            return Err(error);
        }
        tracing::error!(
            database = %self.name, %from, diverged = %pos, folder = %folder.display(),
            "transactions that the cluster does not have were set aside; look at them with `litefs ltx list`"
        );
        self.shared.metrics.set_aside();
        Ok(folder)
    }

    /// Copies the database's files as they are to a folder under `lost+found/<db>/`: recovery is about to overwrite them.
    pub(super) fn keep_files_aside(&self) -> io::Result<PathBuf> {
        let root = self.shared.config.data_dir.join("lost+found");
        let folder = root.join(self.name.as_str()).join(format!("{}-files", now_ms()));
        fs::create_dir_all(&folder)?;
        let mut room = self.shared.config.lost_and_found_bytes_max.saturating_sub(bytes_below(&root)?);
        for kind in [FileKind::Database, FileKind::Wal] {
            let path = self.files.path(kind);
            if path.exists() {
                room = room.checked_sub(fs::metadata(&path)?.len()).ok_or_else(full)?;
                let copy = os::create_new("lost_and_found.create", &folder.join(kind.data_name()))?;
                os::copy_file("lost_and_found.write", &File::open(path)?, &copy)?;
                os::sync_data("lost_and_found.sync", &copy)?;
            }
        }
        os::sync_dir("lost_and_found.sync", &folder)?;
        Ok(folder)
    }

    fn write_aside(&self, from: Pos, folder: &Path, mut room: u64) -> io::Result<()> {
        let Some(records) = self.log.after(from)? else { return self.snapshot_aside(folder, room) };
        for record in records {
            let record = record?;
            room = room.checked_sub(record.body.len()).ok_or_else(full)?;
            write_record(&record, folder)?;
        }
        Ok(())
    }

    fn snapshot_aside(&self, folder: &Path, room: u64) -> io::Result<()> {
        let path = folder.join("snapshot.ltx");
        let file = os::create_new("lost_and_found.create", &path)?;
        let pos = self.snapshot(&mut Bounded { file: &file, written: 0, room })?;
        os::sync_data("lost_and_found.sync", &file)?;
        os::rename("lost_and_found.rename", &path, &folder.join(format!("{}-{}.ltx", crate::Txid(1), pos.txid)))
    }
}

/// The folder below `parent` that has all that leads from one position to the other, whole. What cannot be read is not counted
/// on.
fn folder_with(parent: &Path, from: Pos, to: Pos) -> Option<PathBuf> {
    let end = format!("-{}", to.txid);
    let is_finished = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| !name.starts_with('.') && name.ends_with(&end))
    };
    let folders = fs::read_dir(parent).ok()?.flatten().map(|entry| entry.path()).filter(is_finished);
    folders.into_iter().find(|folder| leads(folder, from, to).unwrap_or(false))
}

/// Whether the files of a folder are records that lead from one position to the other, each of them whole.
fn leads(folder: &Path, from: Pos, to: Pos) -> io::Result<bool> {
    let mut paths: Vec<_> = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    // By the first TXID.
    paths.sort();
    let mut at = from;
    for path in paths {
        let Ok(record) = verify(BufReader::with_capacity(READ_BYTES, File::open(path)?)) else { return Ok(false) };
        if record.header.pre() != at && !record.header.is_snapshot() {
            return Ok(false);
        }
        at = record.post();
    }
    Ok(at == to)
}

fn full() -> io::Error {
    io::Error::new(
        io::ErrorKind::StorageFull,
        "lost+found has reached its bound: look at what is there, remove what is not needed, or raise the bound",
    )
}

fn write_record(record: &Record, folder: &Path) -> io::Result<()> {
    let path = folder.join(format!("{}-{}.ltx", record.min_txid, record.max_txid));
    let file = os::create_new("lost_and_found.create", &path)?;
    os::copy("lost_and_found.write", &mut record.body.reader(), &file)?;
    os::sync_data("lost_and_found.sync", &file)
}

/// A file that takes so many bytes and no more.
struct Bounded<'a> {
    file: &'a File,
    written: u64,
    room: u64,
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.room = self.room.checked_sub(bytes.len() as u64).ok_or_else(full)?;
        os::write_all_at("lost_and_found.write", self.file, bytes, self.written)?;
        self.written += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The bytes of all files below a directory.
fn bytes_below(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0_u64;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { bytes_below(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}
