//! Applying into the database file: rollback mode, a new database, another page size.
//!
//! Nobody may read meanwhile. In rollback mode that takes PENDING (so that new readers wait for us and not we for them) and EXCLUSIVE
//! on the database file. When clients have it open in WAL mode, which they never give SHARED up in, it takes all READ
//! locks; that way only a page size can change, as everything else goes through the WAL.
//!
//! The log is the redo: it is durable before the first page is written. When writing fails half-way the locks are kept, so
//! that clients see BUSY rather than half a transaction, until a later call completes it.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Logged;
use super::incoming::Incoming;
use crate::Pos;
use crate::database::links::{Link, ShmLink};
use crate::database::wal_capture::WalProgress;
use crate::database::{ApplyError, Database};
use crate::kernel::{FileKind, Kernel};
use crate::os;
use crate::sqlite::locks::{self, LockBytes, LockKind};
use crate::sqlite::page::page_offset;
use crate::sqlite::wal::WalHeader;
use crate::sqlite::wal_index::header::IndexHeader;

/// How long readers may keep a record waiting; then the stream tries again, and new readers get in meanwhile.
const READERS_WAIT: Duration = Duration::from_secs(5);
/// Pages written (and pushed to the kernel's cache) in one go, in bytes.
const RUN_BYTES_MAX: usize = 256 << 10;
/// A record with more bytes of pages is not pushed to the kernel's cache; what that holds of the file is dropped instead.
const PUSHED_BYTES_MAX: usize = 8 << 20;
/// READ0…READ4.
const ALL_READERS: LockBytes = LockBytes { start: 123, len: 5 };

/// The database to ourselves.
struct Alone {
    database: Option<Arc<Link>>,
    shm: Option<Arc<ShmLink>>,
}

impl Database {
    /// Applies a verified record into the file. The caller holds [`Self::action`].
    pub(super) fn apply_to_file(&self, record: &mut Incoming, logged: Logged) -> Result<Pos, ApplyError> {
        if self.is_fence_closing() {
            // Since applying waited for it. It takes SHARED by the descriptor that is to hold EXCLUSIVE, which would let readers in.
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the fence is being closed; it is tried again").into());
        }
        let alone = self.be_alone()?;
        let begun = self.begin_in_file(&alone, record, logged);
        let written = match begun {
            Ok(()) => {
                if let Some(kernel) = self.shared.kernel() {
                    // A client must not find what the kernel remembers of a journal that is cut.
                    kernel.invalidate(&self.name, FileKind::Journal, 0);
                }
                self.write_into_file(record)
            }
            Err(error) => {
                self.unlog(&self.capture.lock(), logged);
                self.not_alone(&alone)?;
                return Err(error);
            }
        };
        if let Err(error) = written {
            self.capture.lock().applied.half_written = true;
            tracing::error!(
                database = %self.name, %error,
                "write a transaction into the database file; clients are kept out until it succeeds"
            );
            return Err(error.into());
        }
        let pos = {
            let mut state = self.capture.lock();
            self.rollback_reset(&mut state);
            state.applied.half_written = false;
            self.records_applied(&mut state, std::slice::from_ref(record))
        };
        self.not_alone(&alone)?;
        Ok(pos)
    }

    /// Keeps everybody out; `TimedOut` when readers stay for too long.
    fn be_alone(&self) -> io::Result<Alone> {
        if self.shared.kernel().is_none() {
            // Without a mount there are no clients.
            return Ok(Alone { database: None, shm: None });
        }
        let database = self.database_link()?;
        let shm = self.shm();
        let start = Instant::now();
        let wait = |file: &File, bytes| {
            locks::lock_within(file, bytes, LockKind::Exclusive, READERS_WAIT.saturating_sub(start.elapsed()))
        };
        let alone = match &shm {
            Some(shm) => wait(&shm.link.fence, locks::WRITE)? && wait(&shm.link.action, ALL_READERS)?,
            None => {
                wait(&database.fence, locks::RESERVED)?
                    && wait(&database.fence, locks::PENDING)?
                    && wait(&database.fence, locks::SHARED)?
            }
        };
        let held = Alone { database: Some(database), shm };
        if alone {
            return Ok(held);
        }
        self.not_alone(&held)?;
        Err(io::Error::new(io::ErrorKind::TimedOut, "readers are in the way of a record; it is tried again"))
    }

    /// Lets clients in again; what the fence holds stays held.
    fn not_alone(&self, alone: &Alone) -> io::Result<()> {
        if let Some(shm) = &alone.shm {
            return locks::unlock(&shm.link.action, ALL_READERS);
        }
        let Some(database) = &alone.database else { return Ok(()) };
        if self.is_fenced() {
            locks::try_lock(&database.fence, locks::SHARED, LockKind::Shared)?;
        } else {
            locks::unlock(&database.fence, locks::SHARED)?;
            locks::unlock(&database.fence, locks::RESERVED)?;
        }
        locks::unlock(&database.fence, locks::PENDING)
    }

    /// Everything before the first page: the record is in the log, durably, and nothing old can be played into the file.
    fn begin_in_file(&self, alone: &Alone, record: &mut Incoming, logged: Logged) -> Result<(), ApplyError> {
        let mut state = self.capture.lock();
        Self::check_position(&state, record, logged)?;
        self.log_records(std::slice::from_mut(record), logged, true)?;
        self.forget_late_commits()?;
        if self.files.exists(FileKind::Journal) {
            os::set_len("journal.truncate", &*self.files.journal(false)?, 0)?;
        }
        let Some(wal) = self.files.wal()? else { return Ok(()) };
        let Some(shm) = &alone.shm else {
            os::set_len("wal.truncate", &wal, 0)?;
            os::sync_data("wal.sync", &wal)?;
            state.wal = WalProgress::default();
            return Ok(());
        };
        // The WAL must stay: without one, new clients would take the database to be in rollback mode while it changes.
        let salt = [fastrand::u32(..), fastrand::u32(..)];
        let header = WalHeader::new(record.header.page_size, 0, salt);
        let change = shm.index.read_header()?.map_or(0, |header| header.change.wrapping_add(1));
        let fresh = IndexHeader {
            change,
            big_endian_checksums: header.big_endian_checksums,
            page_size: record.header.page_size,
            page_count: record.header.commit,
            frame_checksum: header.checksum,
            salt: [salt[0].wrapping_sub(1), salt[1]],
            mx_frame: 0,
        };
        shm.index.restart(&fresh, salt[1])?;
        os::write_all_at("wal.header", &wal, &header.encode(), 0)?;
        os::set_len("wal.truncate", &wal, header.encode().len() as u64)?;
        os::sync_data("wal.sync", &wal)?;
        state.wal = WalProgress::default();
        Ok(())
    }

    /// Writes the pages, the size, page 1 last, and makes them durable.
    fn write_into_file(&self, record: &Incoming) -> io::Result<()> {
        let file = self.files.database()?;
        let before = file.metadata()?.len();
        let is_pushed = record.pages.len().saturating_mul(record.header.page_size as usize) <= PUSHED_BYTES_MAX;
        let kernel = self.shared.kernel();
        let written = self.write_pages_of(record, &file, kernel.as_deref().filter(|_| is_pushed));
        let told = match kernel.as_deref() {
            // After half a record, too: the attempt that completes it may find the length as it shall be.
            Some(kernel) => self.drop_from_cache(kernel, &file, before, is_pushed && written.is_ok()),
            None => Ok(()),
        };
        written.and(told)?;
        os::sync_data("database.sync", &file)
    }

    fn write_pages_of(&self, record: &Incoming, file: &File, kernel: Option<&dyn Kernel>) -> io::Result<()> {
        let page_size = record.header.page_size;
        let mut run = Run { first: 0, bytes: Vec::new(), page_size };
        let mut page1 = None;
        let mut pages = record.pages()?;
        while let Some((pgno, page)) = pages.next_page()? {
            if pgno == 1 {
                page1 = Some(page.to_vec());
                continue;
            }
            if !run.continues_with(pgno) {
                self.write_run(file, kernel, &mut run)?;
                run.first = pgno;
            }
            run.bytes.extend_from_slice(page);
        }
        self.write_run(file, kernel, &mut run)?;
        let len = page_offset(record.header.commit.saturating_add(1), page_size);
        if file.metadata()?.len() != len {
            os::set_len("database.truncate", file, len)?;
        }
        if let Some(page) = page1 {
            run.first = 1;
            run.bytes = page;
            self.write_run(file, kernel, &mut run)?;
        }
        Ok(())
    }

    /// Tells the kernel of another length than `before` and, unless the pages were pushed to its cache, drops all it holds of the file.
    fn drop_from_cache(&self, kernel: &dyn Kernel, file: &File, before: u64, is_pushed: bool) -> io::Result<()> {
        let len = file.metadata()?.len();
        if !is_pushed {
            if let Some(end) = len.checked_sub(1) {
                // The last byte is stored: that way the kernel learns of a new end, and never by invalidating.
                let mut last = [0];
                os::read_or_zero_at(file, &mut last, end)?;
                self.push_to_cache(Some(kernel), end, &last);
            }
            kernel.invalidate(&self.name, FileKind::Database, 0);
        }
        if len < before {
            kernel.cut(&self.name, len);
        } else if len > before {
            kernel.invalidate(&self.name, FileKind::Database, len);
        }
        Ok(())
    }

    fn write_run(&self, file: &File, kernel: Option<&dyn Kernel>, run: &mut Run) -> io::Result<()> {
        if run.bytes.is_empty() {
            return Ok(());
        }
        let offset = page_offset(run.first, run.page_size);
        os::write_all_at("database.write", file, &run.bytes, offset)?;
        os::start_writing_back(file, offset, run.bytes.len() as u64);
        self.push_to_cache(kernel, offset, &run.bytes);
        run.bytes.clear();
        Ok(())
    }
}

/// Neighbouring pages on their way to the file.
struct Run {
    first: u32,
    bytes: Vec<u8>,
    page_size: u32,
}

impl Run {
    fn continues_with(&self, pgno: u32) -> bool {
        let count = self.bytes.len() / self.page_size as usize;
        self.bytes.len() < RUN_BYTES_MAX && u32::try_from(count).is_ok_and(|count| self.first + count == pgno)
    }
}
