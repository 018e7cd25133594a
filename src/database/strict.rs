//! `strict-verify`: compares the database with its position after every transaction. Reads the whole database; for finding
//! faults, not for every day.

use std::io;
use std::time::Duration;

use super::{Database, PageSource};
use crate::Checksum;
use crate::sqlite::page::page_checksum;

/// How long the check waits for writers in rollback mode.
const VIEW_WAIT: Duration = Duration::from_secs(10);

impl Database {
    /// Reads every page as clients see it now. A database that is not what its position says is broken from then on: what it
    /// would send to others is wrong.
    ///
    /// # Errors
    /// The check could not be made: a writer in the way, reading.
    pub(crate) fn verify_strictly(&self) -> io::Result<()> {
        if !self.is_live() || self.pos().is_zero() {
            return Ok(());
        }
        let view = self.view(VIEW_WAIT)?;
        let mut sum = Checksum::EMPTY;
        let mut pages = view.pages();
        while let Some((pgno, page)) = pages.next_page()? {
            sum = sum ^ page_checksum(pgno, page);
        }
        if sum != view.pos.checksum {
            let remedy = "restore it from another node, or run `litefs repair`";
            self.set_broken(format!("strict-verify: its pages have checksum {sum} at {}; {remedy}", view.pos));
        }
        Ok(())
    }
}
