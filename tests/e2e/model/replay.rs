//! The copy: every record of a node's log applied to an empty file, and looked at after each.

use std::fs::{self, File};
use std::io::BufReader;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crc_fast::{CrcAlgorithm, Digest};
use litefs::database::Record;
use litefs::database::log::Log;
use litefs::ltx::Decoder;
use litefs::sqlite::page::{lock_page, page_checksum, page_offset};
use litefs::{Checksum, Pos, Txid};
use litefs_tests::eventually;
use rusqlite::{Connection, OpenFlags};

/// Between two looks at the log.
const POLL: Duration = Duration::from_millis(20);
/// After so many records SQLite checks the copy's whole structure.
const INTEGRITY_EVERY: u64 = 16;

/// What is known of the copy, beside its bytes.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    pos: Pos,
    /// The last one of `state` (see `client.py`).
    serial: u64,
    /// The node, by its ID of one run, that made the last record.
    node_id: u64,
    records: u64,
}

/// Follows a log in a thread of its own until told to stop, and checks every record on its way.
pub struct Replay {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    /// Several transactions may have become one record (journal modes whose commits leave no trace).
    merges: Arc<AtomicBool>,
    reached: Arc<Mutex<Pos>>,
    thread: JoinHandle<Seen>,
}

impl Replay {
    /// Starts to follow the log of the database in `dir`; the copy is made in `folder`.
    ///
    /// A record beyond the position that `pos` tells (a file of the mount) may still be taken back.
    pub fn start(dir: PathBuf, pos: PathBuf, folder: &Path) -> Self {
        let path = folder.join("copy.db");
        let (stop, merges) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let reached = Arc::new(Mutex::new(Pos::ZERO));
        let copy = Copy {
            dir,
            pos,
            path: path.clone(),
            merges: merges.clone(),
            reached: reached.clone(),
            seen: Seen::default(),
        };
        let told = stop.clone();
        let thread = std::thread::spawn(move || copy.follow(&told));
        Self { path, stop, merges, reached, thread }
    }

    /// Waits until the copy is at this position (as `<db>-pos` tells it).
    pub fn wait(&self, pos: &str) {
        eventually("the copy follows", || {
            assert!(!self.thread.is_finished(), "a record is not what a writer saw");
            (self.reached.lock().expect("lock").to_string() == pos).then_some(())
        });
    }

    /// From now on several transactions may (or may not) become one record.
    pub fn allow_merges(&self, allowed: bool) {
        self.merges.store(allowed, Ordering::Relaxed);
    }

    /// Applies the rest; the copy's position, its bytes, and how many records were checked.
    ///
    /// # Panics
    /// When a record was wrong.
    pub fn finish(self) -> (Pos, Vec<u8>, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.thread.join().expect("every record is what a writer saw");
        (seen.pos, fs::read(self.path).expect("read the copy"), seen.records)
    }
}

struct Copy {
    dir: PathBuf,
    /// Where the node tells its position.
    pos: PathBuf,
    path: PathBuf,
    merges: Arc<AtomicBool>,
    reached: Arc<Mutex<Pos>>,
    seen: Seen,
}

impl Copy {
    fn follow(mut self, stop: &AtomicBool) -> Seen {
        loop {
            let last = stop.load(Ordering::Relaxed);
            // While the node cuts or drops segments a look may fail; at the end it may not.
            let applied = self.apply_new();
            assert!(!last || applied.is_ok(), "read the log: {applied:?}");
            if last {
                return self.seen;
            }
            std::thread::sleep(POLL);
        }
    }

    fn apply_new(&mut self) -> std::io::Result<()> {
        let told = fs::read_to_string(&self.pos)?;
        let Ok(published) = told.trim_end().parse::<Pos>() else { return Ok(()) };
        let log = Arc::new(Log::open_read_only(&self.dir)?.0);
        let records = match log.after(self.seen.pos)? {
            Some(records) => records,
            // History begins again: another page size.
            None => match log.read(log.last_pos().txid)? {
                Some(last) if last.min_txid == Txid(1) => return self.apply(&last),
                _ => match log.first_pos() {
                    Some(first) if first.is_zero() => return self.apply_from_snapshot(&log, published.txid),
                    first => panic!("{} is no longer in the log, which begins at {first:?}", self.seen.pos),
                },
            },
        };
        for record in records.until(published.txid) {
            self.apply(&record?)?;
        }
        Ok(())
    }

    fn apply_from_snapshot(&mut self, log: &Arc<Log>, until: Txid) -> std::io::Result<()> {
        let Some(records) = log.after(Pos::ZERO)? else { return Ok(()) };
        for record in records.until(until) {
            self.apply(&record?)?;
        }
        Ok(())
    }

    fn apply(&mut self, record: &Record) -> std::io::Result<()> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&self.path)?;
        let mut decoder = Decoder::new(BufReader::new(record.body.reader())).expect("an LTX file");
        let header = *decoder.header();
        assert!(header.is_snapshot() || header.pre() == self.seen.pos, "{header:?} follows {}", self.seen.pos);
        let mut page = vec![0; header.page_size as usize];
        while let Some(pgno) = decoder.next_page(&mut page).expect("a page") {
            file.write_all_at(&page, page_offset(pgno, header.page_size))?;
        }
        let (trailer, _) = decoder.finish().expect("a whole record");
        file.set_len(u64::from(header.commit) * u64::from(header.page_size))?;
        assert_eq!(Pos::new(header.max_txid, trailer.post_apply), record.post);
        assert_eq!(
            checksum(&fs::read(&self.path)?, header.page_size),
            trailer.post_apply,
            "checksum at {}",
            record.post
        );
        self.look(record, header.is_snapshot());
        self.seen.pos = record.post;
        self.seen.node_id = record.node_id;
        self.seen.records += 1;
        *self.reached.lock().expect("lock") = record.post;
        Ok(())
    }

    /// The copy holds what a writer saw in its transaction, and no transaction is missing.
    fn look(&mut self, record: &Record, is_snapshot: bool) {
        let uri = format!("file:{}?immutable=1", self.path.display());
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let copy = Connection::open_with_flags(uri, flags).expect("open the copy");
        let one = |sql: &str| copy.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("a number");
        if one("SELECT count(*) FROM sqlite_schema WHERE name = 'state'") == 0 || one("SELECT count(*) FROM state") == 0
        {
            return;
        }
        let at = record.post;
        let serial = one("SELECT serial FROM state").unsigned_abs();
        assert_eq!(one("SELECT digest FROM state"), digest(&copy), "{at}, serial {serial}: no writer saw this");
        let before = self.seen.serial;
        // What recovery makes of several commits may be one record.
        let may_jump = is_snapshot || self.merges.load(Ordering::Relaxed) || record.node_id != self.seen.node_id;
        assert!(serial >= before, "{at}: serial {serial} after {before}");
        assert!(serial <= before + 1 || may_jump, "{at}: serial {serial} after {before}: a transaction is missing");
        self.seen.serial = serial;
        if self.seen.records.is_multiple_of(INTEGRITY_EVERY) {
            let check: String = copy.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("check");
            assert_eq!(check, "ok", "{at}");
        }
    }
}

/// As `client.py` computes it.
fn digest(copy: &Connection) -> i64 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32IsoHdlc);
    let mut rows = copy.prepare("SELECT id, x FROM t ORDER BY id").expect("prepare");
    let mut rows = rows.query([]).expect("query");
    while let Some(row) = rows.next().expect("a row") {
        digest.update(format!("{}:", row.get::<_, i64>(0).expect("id")).as_bytes());
        digest.update(row.get_ref(1).expect("x").as_blob().expect("a blob"));
        digest.update(b";");
    }
    let mut rows = copy.prepare("SELECT writer, number FROM acked ORDER BY writer").expect("prepare");
    let mut rows = rows.query([]).expect("query");
    while let Some(row) = rows.next().expect("a row") {
        let (writer, number): (i64, i64) = (row.get(0).expect("writer"), row.get(1).expect("number"));
        digest.update(format!("{writer}={number};").as_bytes());
    }
    i64::try_from(digest.finalize()).expect("32 bits")
}

/// Of all pages, each read anew.
fn checksum(image: &[u8], page_size: u32) -> Checksum {
    let skipped = lock_page(page_size);
    (1..)
        .zip(image.chunks(page_size as usize))
        .filter(|(pgno, _)| *pgno != skipped)
        .fold(Checksum::EMPTY, |sum, (pgno, page)| sum ^ page_checksum(pgno, page))
}
