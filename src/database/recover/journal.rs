//! Rolling back a hot journal, as the next SQLite client would.

use std::fs::File;
use std::io;

use crate::database::Database;
use crate::database::rollback::counter::is_counter;
use crate::kernel::FileKind;
use crate::os;
use crate::sqlite::journal::{Journal, is_hot};
use crate::sqlite::page::page_offset;

/// What became of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RolledBack {
    /// There was none, or none that counts, or it was that of a single database.
    Done,
    /// The transaction's super-journal is still there: it was not committed, in none of its databases. The journal is kept until
    /// [`finish`], as the log may hold a record of it.
    WithSuperJournal,
}

/// Removes the journal.
pub(super) fn finish(database: &Database) -> io::Result<()> {
    database.files.remove(FileKind::Journal)
}

/// Rolls the database back when its journal is hot, and removes the journal. A transaction whose super-journal is gone was
/// committed: its journal is removed as well.
pub(super) fn roll_back(database: &Database) -> io::Result<RolledBack> {
    let path = database.files.path(FileKind::Journal);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(RolledBack::Done),
        Err(error) => return Err(error),
    };
    let target = database.files.database()?;
    // Super-journals are files of the mount that are not replicated; the journal names them by their path in it.
    let files = database.shared.config.data_dir.join("files");
    let exists = |name: &str| name.rsplit('/').next().is_some_and(|name| files.join(name).exists());
    if is_hot(&file, target.metadata()?.len(), false, exists)?
        && let Some(journal) = Journal::open(&file)?
    {
        let (page_size, pages) = (journal.header().page_size, journal.header().initial_pages);
        if undoes_anything(&journal, &target)? {
            // The transaction's writes reached us, so what was committed before it is recorded, and perhaps it as well.
            database.forget_late_commits()?;
        }
        let mut count = 0_u32;
        journal.play_back(|pgno, page| {
            count += 1;
            os::write_all_at("recover.rollback", &target, page, page_offset(pgno, page_size))
        })?;
        os::set_len("recover.rollback", &target, u64::from(pages) * u64::from(page_size))?;
        os::sync_data("recover.rollback", &target)?;
        tracing::info!(database = %database.name, pages = count, "rolled back an unfinished transaction");
        if journal.super_journal()?.is_some() {
            return Ok(RolledBack::WithSuperJournal);
        }
    }
    finish(database)?;
    Ok(RolledBack::Done)
}

/// Whether the file is not what the journal says it was. (Counters do not count: an EXCLUSIVE client's are its own,
/// see `rollback::counter`.)
fn undoes_anything(journal: &Journal<'_>, file: &File) -> io::Result<bool> {
    let (page_size, pages) = (journal.header().page_size, journal.header().initial_pages);
    if file.metadata()?.len() != u64::from(pages) * u64::from(page_size) {
        return Ok(true);
    }
    let mut differs = false;
    let mut now = vec![0; page_size as usize];
    journal.play_back(|pgno, page| {
        os::read_or_zero_at(file, &mut now, page_offset(pgno, page_size))?;
        let bytes = page.iter().zip(&now).enumerate();
        differs |= bytes.filter(|(at, _)| pgno != 1 || !is_counter(*at)).any(|(_, (before, now))| before != now);
        Ok(())
    })?;
    Ok(differs)
}
