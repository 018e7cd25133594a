//! `strict-verify`: compares the database with its position after every transaction. Reads the whole database, and clients'
//! writes wait meanwhile; for finding faults, not for every day.

use std::io;

use super::wal_capture::{Lookup, WalPages};
use super::{CaptureState, Database, PageSource};
use crate::Checksum;
use crate::sqlite::page::{lock_page, page_checksum};

impl Database {
    /// Reads every page as the last record left it. A database that is not what its position says is broken from then on:
    /// what it would send to others is wrong. Nothing is checked in the middle of a transaction; its end asks again.
    ///
    /// # Errors
    /// The check could not be made: capture, reading.
    pub(crate) fn verify_strictly(&self) -> io::Result<()> {
        if !self.is_live() {
            return Ok(());
        }
        // No checkpoint moves frames, no hook changes the file while these are held.
        let _action = self.action.lock();
        let mut state = self.capture.lock();
        self.capture_pending(&mut state)?;
        let Some(sum) = self.checksum_of_pages(&state)? else { return Ok(()) };
        if sum != state.pos.checksum {
            let remedy = "restore it from another node, or run `litefs repair`";
            self.set_broken(format!("strict-verify: its pages have checksum {sum} at {}; {remedy}", state.pos));
        }
        Ok(())
    }

    /// `None` when the files do not show the last record at this instant.
    fn checksum_of_pages(&self, state: &CaptureState) -> io::Result<Option<Checksum>> {
        if state.page_size == 0 || state.rollback.is_pending() {
            return Ok(None);
        }
        let database = self.files.database()?;
        let skipped = lock_page(state.page_size);
        let count = state.checksums.page_count();
        let mut pages: Vec<_> = (1..=count).filter(|pgno| *pgno != skipped).map(|pgno| (pgno, 0)).collect();
        let wal = self.files.wal()?;
        if let Some(wal) = &wal
            && wal.metadata()?.len() > 0
        {
            let Some(shm) = self.shm() else { return Ok(None) };
            let at = &state.wal.current;
            let Some(header) = shm.index.read_header()?.filter(|now| (now.salt, now.mx_frame) == (at.salt, at.frame))
            else {
                return Ok(None);
            };
            Lookup::Index(&shm).find_all(wal, state.page_size, header.mx_frame, &mut pages)?;
        }
        let frames = wal.as_deref().unwrap_or(&database);
        let mut source = WalPages::new(frames, &database, state.page_size, &pages, None);
        let mut sum = Checksum::EMPTY;
        while let Some((pgno, page)) = source.next_page()? {
            sum = sum ^ page_checksum(pgno, page);
        }
        Ok(Some(sum))
    }
}
