//! Page checksums kept at a clean stop, so that the next start need not read the database.
//!
//! The file `checksums` in the database's directory; all integers big-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `LFSSUMS1` |
//! | 8 | 8+8 | position: TXID, checksum |
//! | 24 | 4+4 | page size, page count |
//! | 32 | 8×3 | database file: length, mtime in ns, inode |
//! | 56 | 4+4+4 | WAL: salts, captured frame; zeros without one |
//! | 68 | 8 each | checksum of every page |
//! | end | 8 | CRC-64/GO-ISO of everything before |
//!
//! It is removed before it is believed: what a crash leaves afterwards is never taken for this state.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::database::{CaptureState, Files, PageChecksums};
use crate::kernel::FileKind;
use crate::ltx::Digest;
use crate::sqlite::wal::WalWalk;
use crate::{Checksum, Pos, os};

const MAGIC: &[u8; 8] = b"LFSSUMS1";
const HEADER_LEN: usize = 68;

fn path(files: &Files) -> PathBuf {
    files.dir().join("checksums")
}

/// Position, sizes and identity of the files that the checksums belong to.
fn header(files: &Files, pos: Pos, page_size: u32, page_count: u32, wal: ([u32; 2], u32)) -> io::Result<Vec<u8>> {
    let metadata = fs::metadata(files.path(FileKind::Database))?;
    let mtime = metadata.mtime().wrapping_mul(1_000_000_000).wrapping_add(metadata.mtime_nsec());
    let mut bytes = Vec::with_capacity(HEADER_LEN + page_count as usize * 8 + 8);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&pos.txid.0.to_be_bytes());
    bytes.extend_from_slice(&pos.checksum.0.to_be_bytes());
    bytes.extend_from_slice(&page_size.to_be_bytes());
    bytes.extend_from_slice(&page_count.to_be_bytes());
    bytes.extend_from_slice(&metadata.len().to_be_bytes());
    bytes.extend_from_slice(&mtime.to_be_bytes());
    bytes.extend_from_slice(&metadata.ino().to_be_bytes());
    for word in [wal.0[0], wal.0[1], wal.1] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    Ok(bytes)
}

/// Salts and last committed frame of the WAL as it lies there; zeros when it has none.
fn wal_end(files: &Files) -> io::Result<([u32; 2], u32)> {
    let Some(wal) = files.wal()? else { return Ok(([0, 0], 0)) };
    let Some(walk) = WalWalk::start(&wal)? else { return Ok(([0, 0], 0)) };
    let prefix = walk.valid_prefix()?;
    Ok(if prefix.mx_frame == 0 { ([0, 0], 0) } else { (prefix.header.salt, prefix.mx_frame) })
}

/// Writes the file. Nothing is kept when the WAL holds anything else than what is captured.
pub(super) fn save(files: &Files, state: &CaptureState) -> io::Result<()> {
    let wal = wal_end(files)?;
    let captured = state.wal.current;
    let all_captured = if wal.1 != 0 {
        wal == (captured.salt, captured.frame)
    } else {
        // No WAL; or one whose first frame has no checksum, so that the next start would not find what was captured from it.
        captured.frame == 0 || files.wal()?.map_or(Ok(0), |wal| wal.metadata().map(|metadata| metadata.len()))? == 0
    };
    if !all_captured {
        return Ok(());
    }
    let mut bytes = header(files, state.pos, state.page_size, state.checksums.page_count(), wal)?;
    for checksum in state.checksums.as_slice() {
        bytes.extend_from_slice(&checksum.to_be_bytes());
    }
    let mut digest = Digest::new();
    digest.update(&bytes);
    bytes.extend_from_slice(&digest.value().to_be_bytes());
    let temporary = files.dir().join("checksums.tmp");
    let file = os::open_or_create("checksums.create", &temporary)?;
    os::set_len("checksums.write", &file, 0)?;
    os::write_all_at("checksums.write", &file, &bytes, 0)?;
    os::sync_data("checksums.sync", &file)?;
    os::rename("checksums.rename", &temporary, &path(files))
}

/// Takes the checksums when they belong to the files as they are and to the log's last position.
pub(super) fn take(files: &Files, target: Pos) -> io::Result<Option<PageChecksums>> {
    let bytes = match fs::read(path(files)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let removed =
        os::remove_file("checksums.remove", &path(files)).and_then(|()| os::sync_dir("checksums.remove", files.dir()));
    if let Err(error) = removed {
        tracing::warn!(dir = %files.dir().display(), %error, "remove the kept page checksums; reading the database instead");
        return Ok(None);
    }
    let journal = File::open(files.path(FileKind::Journal)).and_then(|file| file.metadata());
    if !files.exists(FileKind::Database) || journal.is_ok_and(|metadata| metadata.len() > 0) {
        return Ok(None);
    }
    let Some((contents, crc)) = bytes.split_last_chunk::<8>() else { return Ok(None) };
    let mut digest = Digest::new();
    digest.update(contents);
    if contents.len() < HEADER_LEN || digest.value().to_be_bytes() != *crc {
        return Ok(None);
    }
    let word = |at: usize| u32::from_be_bytes([contents[at], contents[at + 1], contents[at + 2], contents[at + 3]]);
    let (page_size, page_count) = (word(24), word(28));
    let pages = &contents[HEADER_LEN..];
    if pages.len() != page_count as usize * 8
        || contents[..HEADER_LEN] != header(files, target, page_size, page_count, wal_end(files)?)?[..HEADER_LEN]
    {
        return Ok(None);
    }
    let checksums: PageChecksums = pages.as_chunks::<8>().0.iter().map(|bytes| u64::from_be_bytes(*bytes)).collect();
    Ok((checksums.database() == target.checksum && target.checksum != Checksum::NONE).then_some(checksums))
}
