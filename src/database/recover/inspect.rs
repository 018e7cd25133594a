//! Looking at a database's files while no node runs, without changing them: `litefs verify`.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;
use std::sync::Arc;

use super::base;
use super::wal::{Commit, Wal};
use crate::Pos;
use crate::database::apply::Rejoining;
use crate::database::log::Log;
use crate::kernel::{FileKind, Layout};
use crate::ltx::verify;
use crate::sqlite::journal::Journal;

/// What was found in the files of one database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Where the log ends.
    pub pos: Pos,
    /// Records of the log that were read and are whole.
    pub records: u64,
    /// Commits in the WAL that are not in the log yet; the next start records them.
    pub commits_without_record: usize,
    /// What the next start sets right by itself.
    pub notes: Vec<String>,
    /// What it may not be able to.
    pub problems: Vec<String>,
}

/// Reads the whole log, database file and WAL below `dir` (`<data>/dbs/<name>`). No node may be running.
///
/// # Errors
/// Reading. What is damaged is in the result.
pub fn inspect(dir: &Path, layout: Layout) -> io::Result<Inspection> {
    let (log, opened) = Log::open_read_only(dir)?;
    let log = Arc::new(log);
    let mut found = Inspection { pos: log.last_pos(), ..Inspection::default() };
    if opened.torn_bytes > 0 {
        found.notes.push(format!("{} bytes of a torn record at the end of the log", opened.torn_bytes));
    }
    if let Some(pos) = opened.gap_after {
        found.problems.push(format!("the record after {pos} is damaged; history starts behind it"));
    }
    if opened.ignored_files > 0 {
        found.problems.push(format!("{} files do not connect to the newest record", opened.ignored_files));
    }
    inspect_records(&log, &mut found)?;
    inspect_files(dir, layout, &log, &mut found)?;
    Ok(found)
}

fn inspect_records(log: &Arc<Log>, found: &mut Inspection) -> io::Result<()> {
    let Some(first) = log.first_pos() else { return Ok(()) };
    for record in log.after(first)?.into_iter().flatten() {
        let checked = record.and_then(|record| {
            let reader = BufReader::with_capacity(256 << 10, record.body.reader());
            verify(reader).map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("record {}: {error}", record.max_txid))
            })
        });
        match checked {
            Ok(_) => found.records += 1,
            Err(error) if super::redo::is_damage(&error) => found.problems.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn open(dir: &Path, layout: Layout, kind: FileKind) -> io::Result<Option<File>> {
    match File::open(dir.join(layout.file_name(kind))) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn inspect_files(dir: &Path, layout: Layout, log: &Log, found: &mut Inspection) -> io::Result<()> {
    let header = log.last_header();
    let Some(database) = open(dir, layout, FileKind::Database)? else {
        if header.is_some_and(|header| header.commit > 0) {
            found.problems.push("the database file is missing".into());
        }
        return Ok(());
    };
    if let Some(journal) = open(dir, layout, FileKind::Journal)?
        && Journal::open(&journal)?.is_some()
    {
        found.notes.push("an unfinished transaction; the next start rolls it back".into());
        return Ok(());
    }
    let base = base::read(&database, header.as_ref())?;
    let mut commits = vec![Commit::of_file(&base.checksums)];
    if let Some(wal) = open(dir, layout, FileKind::Wal)?.map(|file| Wal::open(Arc::new(file))).transpose()?.flatten() {
        let mut checksums = base.checksums.clone();
        wal.overlay(&database, &mut checksums, u32::MAX, &mut |commit| commits.push(commit))?;
    }
    let (Some(header), Some(last)) = (header, commits.last()) else {
        if base.page_size == 0 && database.metadata()?.len() > 0 {
            found.problems.push("the file is not a SQLite database".into());
        }
        return Ok(());
    };
    if header.commit == 0 {
        found.notes.push("a deletion that is not finished, or a new database without a record".into());
        return Ok(());
    }
    if last.checksum != found.pos.checksum && !header.is_snapshot() {
        match Rejoining::read(dir) {
            Rejoining::To(pos) if pos == found.pos => {
                found.notes.push(format!("a resync to {pos} was interrupted; the next start completes it"));
                return Ok(());
            }
            Rejoining::Unknown(why) => found.problems.push(format!(
                "a resync may have been interrupted, but its mark `rejoining` cannot be read ({why}); the next start leaves the database \
                 broken until a primary replaces it"
            )),
            Rejoining::No | Rejoining::To(_) => {}
        }
    }
    if let Some(at) = commits.iter().rposition(|commit| commit.checksum == found.pos.checksum) {
        found.commits_without_record = commits.len() - 1 - at;
    } else if let Some(pos) = log.find_checksum(last.checksum)? {
        found.notes.push(format!("the files are at {pos}, behind the log; the next start brings them forward"));
    } else {
        found.problems.push(format!(
            "the files have checksum {}, which is no position of the log; the next start restores them from the log if it \
             reaches back far enough",
            last.checksum
        ));
    }
    Ok(())
}
