//! The reference model: applying every record of the log to nothing gives the database, byte by byte, at every TXID.

use std::collections::BTreeMap;

use crate::database::{Database, RecordBody};
use crate::ltx::Decoder;
use crate::sqlite::page::{lock_page, page_checksum};
use crate::{Checksum, Pos, Txid};

/// A database made of records alone.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) pos: Pos,
    page_size: u32,
    commit: u32,
    pages: BTreeMap<u32, Vec<u8>>,
    /// Rolled along.
    sum: Checksum,
}

impl Model {
    /// Applies what the log has beyond; checks each record against the model.
    pub(super) fn follow(&mut self, database: &Database) {
        loop {
            let Some(record) = database.log.read(self.pos.txid.next()).expect("reads") else { return };
            let bytes = match &record.body {
                RecordBody::Memory(bytes) => bytes.to_vec(),
                RecordBody::File { file, offset, len } => {
                    let mut bytes = vec![0; usize::try_from(*len).expect("length")];
                    std::os::unix::fs::FileExt::read_exact_at(&**file, &mut bytes, *offset).expect("reads");
                    bytes
                }
            };
            self.apply(&bytes);
            assert_eq!(self.pos, record.post);
        }
    }

    fn apply(&mut self, bytes: &[u8]) {
        let mut decoder = Decoder::new(bytes).expect("an LTX file");
        let header = *decoder.header();
        if header.is_snapshot() {
            self.pages.clear();
            self.sum = Checksum::EMPTY;
        } else {
            assert_eq!(header.pre(), self.pos, "follows what is there");
        }
        (self.page_size, self.commit) = (header.page_size, header.commit);
        let mut page = vec![0; header.page_size as usize];
        while let Some(pgno) = decoder.next_page(&mut page).expect("page") {
            self.sum = self.sum ^ page_checksum(pgno, &page);
            if let Some(old) = self.pages.insert(pgno, page.clone()) {
                self.sum = self.sum ^ page_checksum(pgno, &old);
            }
        }
        let (trailer, _) = decoder.finish().expect("valid");
        for (pgno, cut) in self.pages.split_off(&(header.commit + 1)) {
            self.sum = self.sum ^ page_checksum(pgno, &cut);
        }
        self.pos = Pos::new(header.max_txid, trailer.post_apply);
        assert_eq!(self.sum, self.pos.checksum, "checksum of {}", self.pos.txid);
        let skipped = u32::from(lock_page(self.page_size) <= self.commit);
        assert_eq!(self.pages.len(), (self.commit - skipped) as usize, "every page is there at {}", self.pos.txid);
    }

    pub(super) fn image(&self) -> Vec<u8> {
        (1..=self.commit).flat_map(|pgno| self.pages[&pgno].clone()).collect()
    }

    pub(super) const fn txid(&self) -> Txid {
        self.pos.txid
    }
}
