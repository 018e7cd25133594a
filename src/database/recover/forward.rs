//! Going forward where the database file has pages of commits that the log lacks: a power loss kept a checkpoint's writes
//! and lost the un-synced end of the log. The WAL still has those commits, so its end is exact; the moments between are not.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, BufReader, Read};

use super::Found;
use super::wal::Wal;
use crate::database::rollback::FilePages;
use crate::database::{CaptureState, Database, PageSource, Record, now_ms};
use crate::kernel::FileKind;
use crate::ltx::{Decoder, Encoder, Header};
use crate::sqlite::page::{lock_page, page_checksum};
use crate::{Checksum, Pos};

/// The newest version of each page in the log, and how far the log goes into the WAL.
#[derive(Default)]
struct Known {
    pages: HashMap<u32, Checksum>,
    /// Index into [`Found::commits`].
    captured: usize,
}

impl Known {
    fn follow(&mut self, record: &Record, found: &Found) -> io::Result<()> {
        let reader: Box<dyn Read> = Box::new(BufReader::with_capacity(256 << 10, record.body.reader()));
        let mut decoder = Decoder::new(reader)?;
        let header = *decoder.header();
        if header.is_snapshot() {
            self.pages.clear();
        }
        let mut page = vec![0; header.page_size as usize];
        while let Some(pgno) = decoder.next_page(&mut page)? {
            self.pages.insert(pgno, page_checksum(pgno, &page));
        }
        decoder.finish()?;
        if let Some(at) = found.named(&header) {
            self.captured = at;
        }
        Ok(())
    }
}

impl Database {
    /// Records the commits of the WAL behind the log's end as one transaction. `false`, and nothing changed: there are
    /// none, or pages that they do not cover are not what the log says.
    pub(super) fn record_rest_of_wal(&self, state: &mut CaptureState, found: &Found, target: Pos) -> io::Result<bool> {
        let (Some(wal), Some(first)) = (&found.wal, self.log.first_pos()) else { return Ok(false) };
        let mut known = Known::default();
        for record in self.log.after(first)?.into_iter().flatten() {
            match record.and_then(|record| known.follow(&record, found)) {
                Ok(()) => {}
                Err(error) if super::redo::is_damage(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        if known.captured == found.last() {
            return Ok(false);
        }
        let covered = wal.pages_after(found.commits[known.captured].frame)?;
        let now = self.checksums_at(found, found.last())?;
        let fits = |(pgno, checksum): (&u32, &Checksum)| {
            *pgno > now.page_count() || covered.contains(pgno) || now.get(*pgno) == *checksum
        };
        if !known.pages.iter().all(fits) {
            return Ok(false);
        }
        let pos = self.record_pages(found, wal, target, &covered)?;
        tracing::warn!(
            database = %self.name, from = %target, to = %pos,
            "recorded commits that the log lacked as one transaction: a checkpoint had begun"
        );
        self.settle(state, found, pos, now, found.last());
        self.checkpoint_and_remove(found, &found.commits[found.last()], 0)?;
        state.wal.current = super::Generation::default();
        Ok(true)
    }

    fn record_pages(&self, found: &Found, wal: &Wal, target: Pos, covered: &BTreeSet<u32>) -> io::Result<Pos> {
        let last = &found.commits[found.last()];
        let file = self.files.database()?;
        // The WAL stays until the record is durable.
        wal.checkpoint(&file, 0, last)?;
        let header = Header {
            compressed: self.shared.config.compress,
            page_size: found.base.page_size,
            commit: last.page_count,
            min_txid: target.txid.next(),
            max_txid: target.txid.next(),
            timestamp_ms: now_ms(),
            pre_apply: target.checksum,
            node_id: self.shared.node_id,
            ..Header::default()
        };
        let old_end = self.log.last_header().map_or(0, |header| header.commit);
        let skipped = lock_page(header.page_size);
        let mut numbers = covered.clone();
        numbers.extend(old_end + 1..=last.page_count);
        let numbers = numbers.into_iter().filter(|pgno| *pgno <= last.page_count && *pgno != skipped);
        let mut encoder = Encoder::new(self.log.spool()?, &header)?;
        let mut pages = FilePages::new(&file, header.page_size, numbers);
        while let Some((pgno, page)) = pages.next_page()? {
            encoder.write_page(pgno, page)?;
        }
        let (_, spool) = encoder.finish(last.checksum)?;
        let pos = self.log.adopt(spool)?;
        self.log.sync()?;
        debug_assert!(self.files.exists(FileKind::Wal));
        Ok(pos)
    }
}
