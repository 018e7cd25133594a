//! Replacing a database by a file: one transaction, made here and applied as a record from a primary would be.
//!
//! The file is read once; what differs becomes a record in a spool of the log, and that is written into the database file
//! under the fence, when readers let go of it for a moment; else through the WAL. Nothing but the spool is written before the
//! record is whole, and the room in the database file is reserved before the record is logged, so that a full disk leaves
//! everything as it was.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};

use super::incoming::{Incoming, PlainPages};
use super::{ApplyError, Logged};
use crate::database::rollback::FilePages;
use crate::database::{Database, PageSource, now_ms};
use crate::kernel::FileKind;
use crate::ltx::{Encoder, Header};
use crate::sqlite::header::{DatabaseHeader, HEADER_LEN, VERSION_WAL, set_change_counter, set_schema_cookie, set_wal};
use crate::sqlite::page::{lock_page, page_checksum};
use crate::{Checksum, Pos, Txid, os};

/// How long an import waits for a running transaction.
const WRITERS_WAIT: Duration = Duration::from_secs(30);

/// A file to import.
struct Source {
    file: File,
    header: DatabaseHeader,
    page_count: u32,
}

fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

impl Source {
    /// Opens the file and checks that it can be a database.
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let mut bytes = [0; HEADER_LEN];
        os::read_or_zero_at(&file, &mut bytes, 0)?;
        let header = DatabaseHeader::parse(&bytes).map_err(|error| invalid(error.to_string()))?;
        if header.read_version > VERSION_WAL || header.write_version > VERSION_WAL {
            return Err(invalid(format!("its format version {} is unknown", header.read_version)));
        }
        let page_count = header.page_count(len);
        let needed = u64::from(page_count) * u64::from(header.page_size);
        if len < needed {
            return Err(invalid(format!("it is cut short: {len} bytes of {needed}")));
        }
        Ok(Self { file, header, page_count })
    }
}

/// What page 1 of the imported file has to take over from the database it replaces.
struct Page1 {
    wal: bool,
    change_counter: u32,
    schema_cookie: u32,
}

impl Page1 {
    /// Keeps the journal mode, and makes every client drop its cached pages and schema.
    fn edit(&self, page: &mut [u8], source: &Source) {
        set_wal(page, self.wal);
        set_change_counter(
            page,
            self.change_counter.max(source.header.change_counter).wrapping_add(1),
            source.page_count,
        );
        if source.header.schema_cookie <= self.schema_cookie {
            set_schema_cookie(page, self.schema_cookie.wrapping_add(1));
        }
    }
}

impl Database {
    /// Replaces the whole database by this file, in one transaction that open clients see as any other; keeps the journal
    /// mode. On the primary only. Waits for running transactions; clients write again when it returns.
    ///
    /// # Errors
    /// `InvalidData`: not a whole SQLite database; `ReadOnlyFilesystem` on a replica; `ResourceBusy` while a remote node
    /// holds the HALT lock; `TimedOut`; reading, writing. Nothing has changed then.
    pub fn import(self: &Arc<Self>, file: &Path) -> io::Result<Pos> {
        self.check_may_import()?;
        let source = Source::open(file)?;
        let created = !self.is_live();
        self.bring_into_being()?;
        let result = self.import_fenced(&source);
        if result.is_err() && created {
            self.take_back()?;
        }
        result
    }

    fn check_may_import(&self) -> io::Result<()> {
        if self.shared.is_replica() {
            return Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "only the primary imports"));
        }
        if self.is_halted() {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another node holds the HALT lock"));
        }
        Ok(())
    }

    fn import_fenced(self: &Arc<Self>, source: &Source) -> io::Result<Pos> {
        if self.shared.kernel().is_some() {
            self.fence_for_import(WRITERS_WAIT)?;
        }
        let result = self.capture_before_another_writes().map_err(ApplyError::from).and_then(|()| {
            let _own_commit = self.own_commit.lock();
            // Again, where it can no longer change: see `wait_fenced`.
            self.check_may_import()?;
            let _action = self.action.lock();
            self.complete_from_log()?;
            let mut record = self.record_of(source)?;
            self.reserve(source)?;
            self.apply_import(&mut record)
        });
        if self.shared.kernel().is_some() {
            self.import_done();
        }
        result.map_err(|error| match error {
            ApplyError::Io(error) => error,
            other => io::Error::other(other.to_string()),
        })
    }

    fn apply_import(&self, record: &mut Incoming) -> Result<Pos, ApplyError> {
        match self.apply_to_file(record, Logged::No) {
            Err(ApplyError::Io(error)) if error.kind() == io::ErrorKind::TimedOut => {
                // Readers stay: beside them it goes through the WAL, if there is one.
                match self.wal_to_use(record)? {
                    Some(shm) => self.apply_to_wal(&shm, std::slice::from_mut(record), Logged::No),
                    None => Err(error.into()),
                }
            }
            other => other,
        }
    }

    /// Makes the record. The caller holds [`Self::action`], and nobody writes.
    fn record_of(&self, source: &Source) -> io::Result<Incoming> {
        let page1 = self.page1_to_keep(source)?;
        let (pos, old) = {
            let state = self.capture.lock();
            let same_size = state.page_size == source.header.page_size;
            (state.pos, same_size.then(|| state.checksums.clone()))
        };
        // A broken database has no position; its history goes on all the same, or replicas would be ahead of it.
        let (unknown, pos) = (pos.is_zero(), if pos.is_zero() { self.log.last_pos() } else { pos });
        // History starts again with another page size.
        let replaces_all = unknown || (old.is_none() && pos.checksum != Checksum::EMPTY);
        let old = if replaces_all { None } else { old };
        let header = Header {
            compressed: self.shared.config.compress,
            page_size: source.header.page_size,
            commit: source.page_count,
            min_txid: if replaces_all { Txid(1) } else { pos.txid.next() },
            max_txid: pos.txid.next(),
            timestamp_ms: now_ms(),
            pre_apply: if replaces_all { Checksum::NONE } else { pos.checksum },
            node_id: self.shared.node_id,
            ..Header::default()
        };
        let skipped = lock_page(header.page_size);
        let numbers = (1..=source.page_count).filter(|pgno| *pgno != skipped);
        let mut pages = FilePages::new(&source.file, header.page_size, numbers);
        let mut encoder = Encoder::new(self.log.spool()?, &header)?;
        let (mut sum, mut changed, mut edited) = (Checksum::EMPTY, Vec::new(), Vec::new());
        while let Some((pgno, mut page)) = pages.next_page()? {
            if pgno == 1 {
                edited.extend_from_slice(page);
                page1.edit(&mut edited, source);
                page = &edited;
            }
            let checksum = page_checksum(pgno, page);
            sum = sum ^ checksum;
            if old.as_ref().is_some_and(|old| old.get(pgno) == checksum) {
                continue;
            }
            encoder.write_page(pgno, page)?;
            changed.push((pgno, checksum));
        }
        let (trailer, spool) = encoder.finish(sum)?;
        let plain = PlainPages { file: source.file.try_clone()?, page1: edited };
        Incoming::made(header, trailer, changed, spool, plain)
    }

    /// Journal mode, change counter and schema cookie as clients know them.
    fn page1_to_keep(&self, source: &Source) -> io::Result<Page1> {
        let page = match self.shm() {
            Some(shm) => self.page1_through(&shm)?,
            None => {
                let mut page = vec![0; HEADER_LEN];
                os::read_or_zero_at(&*self.files.database()?, &mut page, 0)?;
                page
            }
        };
        let wal = self.shm().is_some();
        Ok(match DatabaseHeader::parse(&page) {
            Ok(header) => Page1 {
                wal: wal || header.is_wal(),
                change_counter: header.change_counter,
                schema_cookie: header.schema_cookie,
            },
            Err(_) => Page1 { wal: wal || source.header.is_wal(), change_counter: 0, schema_cookie: 0 },
        })
    }

    /// Reserves the room that the database file will need, without changing its length.
    fn reserve(&self, source: &Source) -> io::Result<()> {
        let len = u64::from(source.page_count) * u64::from(source.header.page_size);
        crate::fault::check("import.reserve")?;
        match fallocate(&*self.files.database()?, FallocateFlags::KEEP_SIZE, 0, len) {
            // Where a file system cannot, a full disk shows only while writing.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the empty database that a failed import created.
    fn take_back(&self) -> io::Result<()> {
        let _action = self.action.lock();
        let mut state = self.capture.lock();
        if self.files.database()?.metadata()?.len() == 0 {
            self.remove_files(&mut state)?;
            self.shared.notify(crate::store::Notice::Entry(self.name.clone(), FileKind::Database));
        }
        Ok(())
    }
}
