//! The log LiteFS left: `ltx/<min>-<max>.ltx`, one file per transaction (COMPAT §2). Read, dropped by retention, never written.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::{Entry, Segment};
use crate::Txid;
use crate::ltx::{HEADER_BYTES, Header, TRAILER_BYTES, Trailer, verify};
use crate::os;

/// The parsed name of a file of LiteFS.
fn range_of(path: &Path) -> Option<(Txid, Txid)> {
    let (min, max) = path.file_name()?.to_str()?.strip_suffix(".ltx")?.split_once('-')?;
    Some((min.parse().ok()?, max.parse().ok()?))
}

/// Header and place of the only record of a file; `None` when the file is not what its name says.
pub(super) fn read_entry(path: &Path) -> io::Result<Option<(Header, Entry)>> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    if len < (HEADER_BYTES + TRAILER_BYTES) as u64 {
        return Ok(None);
    }
    let (mut header, mut trailer) = ([0; HEADER_BYTES], [0; TRAILER_BYTES]);
    os::read_or_zero_at(&file, &mut header, 0)?;
    os::read_or_zero_at(&file, &mut trailer, len - TRAILER_BYTES as u64)?;
    let (Ok(header), trailer) = (Header::parse(&header), Trailer::parse(&trailer)) else { return Ok(None) };
    if range_of(path) != Some((header.min_txid, header.max_txid)) || !trailer.post_apply.is_valid() {
        return Ok(None);
    }
    let (min, max) = (header.min_txid, header.max_txid);
    let entry = Entry { min, max, pre: header.pre_apply, post: trailer.post_apply, offset: 0, len, crc: None };
    Ok(Some((header, entry)))
}

/// The longest run of connected files that ends with the newest whole one, oldest first, and how many were left out.
pub(super) fn read_dir(dir: &Path) -> io::Result<(Vec<(Segment, Entry)>, usize)> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(error) => return Err(error),
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    paths.retain(|path| range_of(path).is_some());
    // Newest first; of files with the same end the one that reaches furthest back.
    paths.sort_by_key(|path| range_of(path).map(|(min, max)| (std::cmp::Reverse(max), min)));
    let found = paths.len();
    let mut run: Vec<(Segment, Entry)> = Vec::new();
    for path in paths {
        let Some((header, entry)) = read_entry(&path)? else { continue };
        let connects = match run.last() {
            Some((_, after)) => after.pre() == entry.post(),
            None => verify(io::BufReader::new(File::open(&path)?)).is_ok(),
        };
        if connects {
            run.push((Segment { path, sequence: 0, first: header, len: entry.len }, entry));
            if header.is_snapshot() {
                break;
            }
        }
    }
    run.reverse();
    let left_out = found - run.len();
    Ok((run, left_out))
}
