//! Recovery: what a start makes of the files a clean stop, a `kill -9` or a power loss left (DESIGN §7).
//!
//! Nobody else has the files open yet. In this order:
//! 0. Committed frames that only the wal-index vouches for get their checksums ([`seal`]).
//! 1. The log is open, its torn tail cut ([`super::log`]). Its last position is the target.
//! 2. A hot journal is rolled back ([`journal`]), as SQLite would.
//! 3. The page checksums of the database file are computed ([`base`]), and for every commit in the WAL the database
//!    checksum that it leads to ([`wal`]). The commit whose checksum is the target's is where the log ends; the commits
//!    after it are acknowledged transactions without a record: recovery goes *forward* and records them.
//! 4. When no commit fits, the log is ahead (a lost tail of the WAL, a transaction captured before its journal ended), or
//!    a page is damaged: the log is applied to the files as redo ([`redo`]), and its result must have the target's checksum.
//!    Pages that are neither new nor old are somebody else's: before they are overwritten the files are kept under
//!    `lost+found/`; and a file that SQLite itself has committed to (its change counter is ahead) is recorded instead.
//! 5. The WAL goes into the database file and away: no later start can take its frames for new ones.
//!
//! Where this cannot reach the target the files stay as they are and the database is [`Health::Broken`](super::Health).
//! After a clean stop step 3 is spared: the checksums were kept ([`clean`]).

mod base;
mod clean;
mod forward;
mod inspect;
mod journal;
mod redo;
mod repair;
mod seal;
mod wal;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod format_tests;
#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod late_tests;
#[cfg(test)]
mod seal_tests;
#[cfg(test)]
mod tests;

pub use inspect::{Inspection, inspect};

use std::io;
use std::sync::atomic::Ordering;

use self::base::Base;
use self::redo::Redo;
use self::wal::{Commit, Wal};
use super::apply::Rejoining;
use super::log::Opened;
use super::rollback::FilePages;
use super::wal_capture::{Generation, Lookup};
use super::{CaptureState, Database, Health, PageChecksums, TxHead};
use crate::kernel::FileKind;
use crate::ltx::Header;
use crate::sqlite::page::lock_page;
use crate::{Checksum, Pos};

/// The files as recovery finds them, and where the log ends.
struct Found {
    base: Base,
    wal: Option<Wal>,
    /// The database file alone, then every commit of the WAL.
    commits: Vec<Commit>,
}

impl Found {
    fn last(&self) -> usize {
        self.commits.len() - 1
    }

    /// The commit that shows `pos`: the one whose frame the record names if it does, else the latest with its checksum.
    fn commit_at(&self, pos: Pos, named: Option<usize>) -> Option<usize> {
        let fits = |at: &usize| self.commits.get(*at).is_some_and(|commit| commit.checksum == pos.checksum);
        named.filter(fits).or_else(|| (0..self.commits.len()).rev().find(fits))
    }

    /// The commit that the record with this header made, by salts and frame.
    fn named(&self, header: &Header) -> Option<usize> {
        let wal = self.wal.as_ref().filter(|wal| wal.header.salt == header.wal_salts)?;
        let frame = wal.frame_before(header.wal_offset.checked_add(header.wal_size)?)?;
        self.commits.iter().position(|commit| commit.frame == frame)
    }
}

impl Database {
    /// Recovers the database before it is used for the first time. `opened` is what opening its log found.
    ///
    /// What cannot be recovered becomes broken; a full disk degrades it and is retried by capture.
    ///
    /// # Errors
    /// The files cannot be read.
    pub(crate) fn recover(&self, opened: &Opened) -> io::Result<()> {
        let mut state = self.capture.lock();
        self.say_what_was_found(opened);
        if self.shared.same_boot {
            self.seal_wal()?;
        }
        // Nobody has it open, and the first client recovers it from the WAL anyway.
        self.files.remove(FileKind::Shm)?;
        let Some(header) = self.log.last_header() else { return self.recover_without_log(&mut state) };
        let target = self.log.last_pos();
        if header.commit == 0 {
            return self.recover_deleted(&mut state, &header, target);
        }
        self.live.store(true, Ordering::Release);
        if let Some(checksums) = clean::take(&self.files, target)? {
            tracing::debug!(database = %self.name, pos = %target, "page checksums kept at the clean stop");
            let commit = Commit::of_file(&checksums);
            let wal = self.open_wal(header.page_size)?;
            let mut found = Found { base: Base { page_size: header.page_size, checksums }, wal, commits: vec![commit] };
            // The kept checksums are those of file and WAL together, all of it captured.
            if let Some(wal) = &found.wal {
                found.commits.push(Commit { checksum: target.checksum, ..wal.last_commit()? });
            }
            let checksums = found.base.checksums.clone();
            self.settle(&mut state, &found, target, checksums, found.last());
            self.finish_wal(&mut state, &found, 0);
            return self.forget_rejoin();
        }
        let rolled_back = journal::roll_back(self)?;
        let found = self.examine(Some(&header))?;
        if rolled_back == journal::RolledBack::WithSuperJournal {
            self.forget_uncommitted(&found, &header)?;
            journal::finish(self)?;
            let Some(header) = self.log.last_header() else { return self.recover_without_log(&mut state) };
            return self.reach(&mut state, &found, &header, self.log.last_pos(), opened);
        }
        self.reach(&mut state, &found, &header, target, opened)
    }

    /// A transaction over several databases is captured, in one after the other, before its super-journal is unlinked, which
    /// commits it. It was not: so if the log's last record is of it, that did not happen.
    fn forget_uncommitted(&self, found: &Found, last: &Header) -> io::Result<()> {
        let is_first = last.is_snapshot() && found.base.page_size == 0;
        let is_of_it = last.wal_size == 0
            && last.min_txid == last.max_txid
            && (is_first || last.pre_apply == found.commits[found.last()].checksum);
        if is_of_it {
            let pos = self.log.truncate_after(last.min_txid.prev())?;
            tracing::warn!(database = %self.name, %pos, "took a transaction over several databases back that was not committed");
        }
        Ok(())
    }

    fn say_what_was_found(&self, opened: &Opened) {
        if opened.torn_bytes > 0 {
            tracing::warn!(database = %self.name, bytes = opened.torn_bytes, "cut a torn record off the log");
        }
        if let Some(pos) = opened.gap_after {
            tracing::warn!(database = %self.name, %pos, "a record after this position is damaged; history starts behind it");
        }
        if opened.ignored_files > 0 {
            tracing::warn!(
                database = %self.name, files = opened.ignored_files,
                "files of the log do not connect to its newest record and are left out"
            );
        }
    }

    fn open_wal(&self, page_size: u32) -> io::Result<Option<Wal>> {
        let Some(file) = self.files.wal()? else { return Ok(None) };
        Ok(Wal::open(file)?.filter(|wal| wal.header.page_size == page_size))
    }

    /// Reads the checksums of the database file and of every commit in the WAL.
    fn examine(&self, header: Option<&Header>) -> io::Result<Found> {
        let file = self.files.database()?;
        let base = base::read(&file, header)?;
        // SQLite deletes a WAL beside an empty database.
        let wal = if base.page_size == 0 { None } else { self.open_wal(base.page_size)? };
        let mut commits = vec![Commit::of_file(&base.checksums)];
        if let Some(wal) = &wal {
            wal.overlay(&file, &mut base.checksums.clone(), u32::MAX, &mut |commit| commits.push(commit))?;
        }
        Ok(Found { base, wal, commits })
    }

    /// The page checksums at a commit.
    fn checksums_at(&self, found: &Found, at: usize) -> io::Result<PageChecksums> {
        let mut checksums = found.base.checksums.clone();
        if let (Some(wal), Some(commit)) = (&found.wal, found.commits.get(at)) {
            wal.overlay(&*self.files.database()?, &mut checksums, commit.frame, &mut |_| ())?;
        }
        Ok(checksums)
    }

    /// Brings files and log together, the log ending at `target`.
    fn reach(
        &self,
        state: &mut CaptureState,
        found: &Found,
        header: &Header,
        target: Pos,
        opened: &Opened,
    ) -> io::Result<()> {
        let named = found.named(header);
        if let Some(at) = found.commit_at(target, named).filter(|_| found.base.page_size == header.page_size) {
            let checksums = self.checksums_at(found, at)?;
            self.settle(state, found, target, checksums, at);
            self.go_forward(state, found, at);
            self.finish_wal(state, found, 0);
            return self.forget_rejoin();
        }
        match self.rejoining() {
            // What the mark tells of was over when a snapshot came.
            _ if header.is_snapshot() => {}
            Rejoining::To(pos) if pos == target => return self.finish_rejoin(state, found, header, target),
            Rejoining::Unknown(why) => {
                self.set_broken(format!(
                    "a resync may have been interrupted: its mark `rejoining` cannot be read ({why}), and the files are not at the \
                     log's end, {target}; let a primary replace it, or run `litefs repair` to go on with what its files hold"
                ));
                return Ok(());
            }
            Rejoining::No | Rejoining::To(_) => {}
        }
        if !self.log_is_ahead(found, named)? && self.record_rest_of_wal(state, found, target)? {
            return Ok(());
        }
        if let Some(redo) = self.plan_redo(found, header, target, named)? {
            return self.go_by_log(state, found, header, target, redo);
        }
        if let Some(pos) = opened.gap_after
            && let Some(at) = found.commit_at(pos, None)
        {
            tracing::warn!(database = %self.name, %pos, "records behind the damaged one do not fit the files; cut");
            let pos = self.log.truncate_after(pos.txid)?;
            let checksums = self.checksums_at(found, at)?;
            self.settle(state, found, pos, checksums, at);
            self.go_forward(state, found, at);
            self.finish_wal(state, found, 0);
            return Ok(());
        }
        let actual = found.commits[found.last()].checksum;
        self.set_broken(format!(
            "its checksum is {actual}, its log ends at {target} and cannot bring it there; let a primary replace it, or run \
             `litefs repair`"
        ));
        Ok(())
    }

    /// Whether the log's end is a record from a primary that has not reached the files, all of which are at a position before
    /// it. (A record of a commit in this WAL names it.)
    fn log_is_ahead(&self, found: &Found, named: Option<usize>) -> io::Result<bool> {
        Ok(named.is_none() && self.log.find_checksum(found.commits[found.last()].checksum)?.is_some())
    }

    /// Our own transactions were being given up for the log's last record: the files have those (which are set aside), or half of
    /// the record. Both end by applying it; nothing that is found may be recorded.
    fn finish_rejoin(&self, state: &mut CaptureState, found: &Found, header: &Header, target: Pos) -> io::Result<()> {
        let planned = self.plan_redo_from(header.pre(), found, header, target, None)?;
        let Some(redo) = planned.filter(|redo| redo.at == found.last()) else {
            self.set_broken(format!(
                "a resync to {target} was interrupted and its record does not fit the files; let a primary replace it"
            ));
            return Ok(());
        };
        self.redo(found, header, &redo)?;
        self.forget_late_commits()?;
        tracing::warn!(database = %self.name, pos = %target, "finished a resync that was interrupted");
        let at = redo.at;
        self.settle(state, found, target, redo.checksums, at);
        self.finish_wal(state, found, found.commits[at].frame);
        self.forget_rejoin()
    }

    /// The files do not show the log's end, but the log can bring them there.
    fn go_by_log(
        &self,
        state: &mut CaptureState,
        found: &Found,
        header: &Header,
        target: Pos,
        redo: Redo,
    ) -> io::Result<()> {
        let unexplained = self.unexplained_pages(found, &redo)?;
        let late = self.has_late_commits() && self.shared.same_boot;
        if (unexplained > 0 || late) && self.file_is_newer(found, &redo, late)? {
            if late {
                tracing::info!(database = %self.name, %target, "recording a commit with synchronous=OFF that the log lacked");
            } else {
                tracing::warn!(database = %self.name, %target, "the file was written while no node ran; recording that");
            }
            self.settle(state, found, target, redo.checksums, 0);
            self.record_file(state, found.base.page_size, true)?;
            if state.pos == target {
                // Capture would not know which pages to look at.
                self.set_broken(
                    "what was written while no node ran could not be recorded; free disk space and start again".into(),
                );
                return Ok(());
            }
            self.files.remove(FileKind::Wal)?;
            return self.forget_late_commits();
        }
        self.forget_late_commits()?;
        if unexplained > 0 {
            let folder = match self.keep_files_aside() {
                Ok(folder) => folder,
                Err(error) => {
                    self.set_broken(format!(
                        "{unexplained} pages are damaged; keep the files before repairing them: {error}"
                    ));
                    return Ok(());
                }
            };
            tracing::error!(
                database = %self.name, pages = unexplained, folder = %folder.display(),
                "pages were damaged, or written by somebody else; restored from the log, the files were kept aside"
            );
        }
        self.redo(found, header, &redo)?;
        tracing::warn!(database = %self.name, pos = %target, "brought the files to the log's end");
        let at = redo.at;
        self.settle(state, found, target, redo.checksums, at);
        self.go_forward(state, found, at);
        self.finish_wal(state, found, found.commits[at].frame);
        Ok(())
    }

    /// Takes over the state at a commit.
    fn settle(&self, state: &mut CaptureState, found: &Found, pos: Pos, checksums: PageChecksums, at: usize) {
        debug_assert_eq!(checksums.database(), pos.checksum, "the invariant of the capture state");
        state.pos = pos;
        state.page_size = self.log.last_header().map_or(found.base.page_size, |header| header.page_size);
        state.checksums = checksums;
        state.wal.current = match (&found.wal, found.commits.get(at)) {
            (Some(wal), Some(commit)) => Generation {
                salt: wal.header.salt,
                frame: commit.frame,
                chain: Some(commit.chain),
                last_header: commit.last_header,
            },
            _ => Generation::default(),
        };
        self.positions.publish(pos);
    }

    /// Records the commits of the WAL after `at`: SQLite has acknowledged them.
    fn go_forward(&self, state: &mut CaptureState, found: &Found, at: usize) {
        let Some(wal) = &found.wal else { return };
        if at == found.last() {
            return;
        }
        let (from, commits) = (state.pos, found.last() - at);
        let index = wal.index_header(&found.commits[found.last()]);
        match self.capture_up_to(state, &index, &Lookup::Frames) {
            Ok(_) => {
                tracing::info!(database = %self.name, %from, to = %state.pos, commits, "recorded commits the log lacked");
            }
            // Said by the capture itself, which is tried again once the database is used.
            Err(error) => tracing::debug!(database = %self.name, %error, "record commits the log lacked"),
        }
    }

    /// Moves the frames behind `from` into the database file and removes the WAL. When that fails (a full disk), the WAL
    /// stays: `state` knows how far it is captured.
    fn finish_wal(&self, state: &mut CaptureState, found: &Found, from: u32) {
        let last = &found.commits[found.last()];
        if found.wal.is_some() && state.wal.current.frame != last.frame {
            // Not all of it is captured.
            return;
        }
        let result = self.checkpoint_and_remove(found, last, from);
        if let Err(error) = &result {
            // The next checkpoint does it.
            self.note_outcome("checkpoint", Some(error));
            return;
        }
        state.wal.current = Generation::default();
    }

    fn checkpoint_and_remove(&self, found: &Found, last: &Commit, from: u32) -> io::Result<()> {
        if !self.files.exists(FileKind::Wal) {
            return Ok(());
        }
        self.log.sync()?;
        if let Some(wal) = &found.wal {
            wal.checkpoint(&*self.files.database()?, from, last)?;
        }
        self.files.remove(FileKind::Wal)
    }

    /// A database without any record: all of it becomes the first one.
    fn recover_without_log(&self, state: &mut CaptureState) -> io::Result<()> {
        if !self.files.exists(FileKind::Database) {
            return Ok(());
        }
        self.live.store(true, Ordering::Release);
        journal::roll_back(self)?;
        journal::finish(self)?;
        let found = self.examine(None)?;
        if found.base.page_size == 0 {
            if self.files.database()?.metadata()?.len() > 0 {
                self.set_broken("it is not a SQLite database; import one, or remove it".into());
            }
            return Ok(());
        }
        self.checkpoint_and_remove(&found, &found.commits[found.last()], 0)?;
        self.record_file(state, found.base.page_size, false)
    }

    /// Records the database file as one transaction: all of it, or where it differs from `state`.
    fn record_file(&self, state: &mut CaptureState, page_size: u32, skip_unchanged: bool) -> io::Result<()> {
        let file = self.files.database()?;
        let commit = base::page_count(&file, page_size)?;
        let page_count_hint = commit as usize;
        let head = TxHead { page_size, commit, page_count_hint, skip_unchanged, durable: true, ..TxHead::default() };
        let skipped = lock_page(page_size);
        let mut pages = FilePages::new(&file, page_size, (1..=commit).filter(|pgno| *pgno != skipped));
        // A failure is noted there, and the next commit of a client records everything.
        if let Some(pos) = self.commit_transaction(state, &head, &mut pages).ok().flatten() {
            tracing::info!(database = %self.name, %pos, "recorded what the database file holds");
        }
        Ok(())
    }

    /// The last record is a deletion. A file that is there is either what was deleted, or a new database.
    fn recover_deleted(&self, state: &mut CaptureState, header: &Header, target: Pos) -> io::Result<()> {
        state.pos = target;
        state.checksums.clear();
        state.page_size = 0;
        self.positions.publish(target);
        if !self.files.exists(FileKind::Database) {
            return FileKind::ALL.iter().try_for_each(|kind| self.files.remove(*kind));
        }
        journal::roll_back(self)?;
        journal::finish(self)?;
        let found = self.examine(None)?;
        let last = &found.commits[found.last()];
        if found.base.page_size == 0 || last.checksum == header.pre_apply {
            tracing::info!(database = %self.name, pos = %target, "finished a deletion");
            return FileKind::ALL.iter().try_for_each(|kind| self.files.remove(*kind));
        }
        debug_assert_eq!(target.checksum, Checksum::EMPTY, "the post-apply checksum of a deletion");
        self.live.store(true, Ordering::Release);
        self.checkpoint_and_remove(&found, last, 0)?;
        self.record_file(state, found.base.page_size, false)
    }

    /// Keeps the page checksums for the next start. At a clean stop, after the last capture, when nobody can write any more.
    ///
    /// # Errors
    /// Writing; the next start then reads the database file.
    pub(crate) fn save_page_checksums(&self) -> io::Result<()> {
        let mut state = self.capture.lock();
        self.withdraw_prepared(&mut state)?;
        // Only what is in order is worth keeping: otherwise the next start must look.
        if state.page_size == 0 || state.rollback.is_pending() || self.health() != Health::Ok {
            return Ok(());
        }
        self.log.sync()?;
        clean::save(&self.files, &state)
    }
}
