//! Applying with real SQLite writers on the primary and real SQLite readers on the replica.
//!
//! Clients live in this process, and closing any descriptor of a file drops a process's POSIX locks on it: so files that
//! clients have open are read through the engine's own descriptors only.

mod rejoin;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rusqlite::Connection;

use crate::database::{ApplyError, Database, Record, RecordBody};
use crate::fault::moment;
use crate::kernel::FileKind;
use crate::store::{Mode, Store, StoreConfig};
use crate::{Checksum, DbName, Layout, PlainDirectory, Pos, Txid};

/// More than anything here takes on a loaded machine.
const WAIT: Duration = Duration::from_secs(60);

pub(super) struct Node {
    dir: tempfile::TempDir,
    pub(super) store: Arc<Store>,
    pub(super) db: Arc<Database>,
    path: PathBuf,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.store.close();
    }
}

pub(super) fn node(mode: Mode) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        data_dir: dir.path().to_owned(),
        compress: mode == Mode::Primary,
        retention: Duration::from_secs(600),
        retention_interval: Duration::from_secs(60),
        strict_verify: false,
        lost_and_found_bytes_max: 1 << 30,
    };
    let store = Store::open_with_layout(config, Layout::Sqlite).unwrap();
    store.attach_kernel(Arc::new(PlainDirectory { dbs: dir.path().join("dbs"), layout: Layout::Sqlite }));
    store.set_mode(mode, WAIT).unwrap();
    let db = store.create(&"app.db".parse::<DbName>().unwrap()).unwrap();
    let path = db.files.path(FileKind::Database);
    Node { dir, store, db, path }
}

/// A primary's connection in WAL mode, with the engine attached.
pub(super) fn writer(node: &Node, page_size: u32) -> Connection {
    let connection = Connection::open(&node.path).unwrap();
    connection
        .execute_batch(&format!(
            "PRAGMA page_size={page_size}; PRAGMA auto_vacuum=incremental; PRAGMA journal_mode=wal;
             CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t VALUES(1, 'one');"
        ))
        .unwrap();
    node.db.db_opened().unwrap();
    node.db.shm_opened().unwrap();
    node.db.position_now().unwrap();
    connection
}

pub(super) fn reader(node: &Node) -> Connection {
    let connection = Connection::open(&node.path).unwrap();
    connection.busy_timeout(WAIT).unwrap();
    connection
}

pub(super) fn count(connection: &Connection) -> i64 {
    connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
}

pub(super) fn integrity(connection: &Connection) -> String {
    connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap()
}

pub(super) fn bytes(record: &Record) -> Vec<u8> {
    match &record.body {
        RecordBody::Memory(bytes) => bytes.to_vec(),
        RecordBody::File { file, offset, len } => {
            use std::os::unix::fs::FileExt;
            let mut bytes = vec![0; usize::try_from(*len).unwrap()];
            file.read_exact_at(&mut bytes, *offset).unwrap();
            bytes
        }
    }
}

pub(super) fn records_after(primary: &Database, pos: Pos) -> Vec<Record> {
    primary.position_now().unwrap();
    primary.log.after(pos).unwrap().expect("the log reaches back").map(Result::unwrap).collect()
}

pub(super) fn ship(primary: &Node, replica: &Node) {
    for record in records_after(&primary.db, replica.db.pos()) {
        let pos = replica.db.apply(&mut bytes(&record).as_slice()).unwrap();
        assert_eq!(pos, record.post);
    }
    assert_eq!(replica.db.pos(), primary.db.pos());
}

/// The database as its file and WAL say, through a copy that SQLite recovers.
pub(super) fn image(node: &Node) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let copy = tempfile::tempdir().unwrap();
    // A checkpoint in the background may not cut the file meanwhile.
    let action = node.db.action.lock();
    let read = |file: &std::fs::File| {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    std::fs::write(copy.path().join("db"), read(&node.db.files.database().unwrap())).unwrap();
    if let Some(wal) = node.db.files.wal().unwrap() {
        std::fs::write(copy.path().join("db-wal"), read(&wal)).unwrap();
    }
    drop(action);
    let connection = Connection::open(copy.path().join("db")).unwrap();
    assert_eq!(integrity(&connection), "ok");
    let _ = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    drop(connection);
    std::fs::read(copy.path().join("db")).unwrap()
}

pub(super) fn random_write(connection: &Connection, random: &mut fastrand::Rng) {
    match random.u32(..6) {
        0 => connection.execute("DELETE FROM t WHERE id % 3 = 0", []).map(drop).unwrap(),
        1 => connection.execute_batch("PRAGMA incremental_vacuum; UPDATE t SET x = x || 'y'").unwrap(),
        2 => connection.execute_batch("VACUUM").unwrap(),
        _ => connection.execute("INSERT INTO t(x) VALUES(randomblob(?1))", [random.u32(1..90_000)]).map(drop).unwrap(),
    }
}

#[test]
fn a_replica_is_equal_byte_for_byte_and_readers_keep_their_snapshot() {
    for page_size in [512, 1024, 4096, 65_536] {
        let (primary, replica) = (node(Mode::Primary), node(Mode::Replica));
        let write = writer(&primary, page_size);
        ship(&primary, &replica);
        let read = reader(&replica);
        assert_eq!(count(&read), 1);
        let mut random = fastrand::Rng::with_seed(u64::from(page_size) + 1);
        for round in 0..25 {
            let before = count(&read);
            read.execute_batch("BEGIN").unwrap();
            assert_eq!(count(&read), before);
            random_write(&write, &mut random);
            ship(&primary, &replica);
            assert_eq!(count(&read), before, "round {round}: the snapshot changed");
            read.execute_batch("COMMIT").unwrap();
            assert_eq!(count(&read), count(&write), "round {round}");
            if round % 8 == 7 {
                replica.db.checkpoint().unwrap();
            }
        }
        assert_eq!(integrity(&read), "ok");
        assert!(image(&primary) == image(&replica), "page size {page_size}");
        read.busy_timeout(Duration::ZERO).unwrap();
        assert!(read.execute("DELETE FROM t", []).is_err(), "a replica is read-only");
    }
}

#[test]
fn wrong_positions_and_damage_change_nothing_and_repeats_are_fine() {
    let (primary, replica) = (node(Mode::Primary), node(Mode::Replica));
    let write = writer(&primary, 4096);
    ship(&primary, &replica);
    let before = replica.db.pos();
    write.execute_batch("INSERT INTO t VALUES(2, 'two')").unwrap();
    write.execute_batch("INSERT INTO t VALUES(3, 'three')").unwrap();
    let records = records_after(&primary.db, before);
    assert_eq!(records.len(), 2);
    let error = replica.db.apply(&mut bytes(&records[1]).as_slice()).unwrap_err();
    assert!(matches!(error, ApplyError::WrongPosition { .. }), "{error}");
    for at in [3, 50, 120, bytes(&records[0]).len() - 1] {
        let mut damaged = bytes(&records[0]);
        damaged[at] ^= 0x10;
        assert!(replica.db.apply(&mut damaged.as_slice()).is_err(), "byte {at}");
    }
    let mut short = bytes(&records[0]);
    short.truncate(150);
    assert!(matches!(replica.db.apply(&mut short.as_slice()), Err(ApplyError::Damaged(_))));
    assert_eq!(replica.db.pos(), before);
    assert_eq!(replica.db.log.last_pos(), before);
    for record in [&records[0], &records[0], &records[1]] {
        assert_eq!(replica.db.apply(&mut bytes(record).as_slice()).unwrap(), record.post);
    }
    assert_eq!(count(&reader(&replica)), 3);
}

#[test]
fn a_record_with_a_false_checksum_is_refused_before_anything_changes() {
    let (primary, replica) = (node(Mode::Primary), node(Mode::Replica));
    let write = writer(&primary, 4096);
    ship(&primary, &replica);
    let before = replica.db.pos();
    write.execute_batch("INSERT INTO t VALUES(2, 'two')").unwrap();
    let record = bytes(&records_after(&primary.db, before)[0]);
    // The same pages, well-formed, with another post-apply checksum.
    let mut decoder = crate::ltx::Decoder::new(record.as_slice()).unwrap();
    let mut builder = crate::ltx::ImageBuilder::new();
    builder.begin(decoder.header(), 1).unwrap();
    let mut page = vec![0; 4096];
    while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
        builder.push_page(pgno, &page).unwrap();
    }
    let forged = builder.finish(Checksum(Checksum::FLAG | 1)).unwrap();
    let error = replica.db.apply(&mut &forged.bytes[..]).unwrap_err();
    assert!(matches!(error, ApplyError::Damaged(_)), "{error}");
    assert_eq!((replica.db.pos(), replica.db.log.last_pos()), (before, before));
    assert_eq!(count(&reader(&replica)), 1);
}

/// A client opens a wal-index that nobody has filled yet, on a replica, while a record is applied: both see that there is none.
#[test]
fn an_index_that_is_rebuilt_for_a_client_takes_no_applied_record_back() {
    for rows in [1, 40] {
        index_rebuilt_meanwhile(rows);
    }
}

fn index_rebuilt_meanwhile(rows: i64) {
    let (primary, replica) = (node(Mode::Primary), node(Mode::Replica));
    let write = writer(&primary, 4096);
    ship(&primary, &replica);
    let read = reader(&replica);
    assert_eq!(count(&read), 1);
    for _ in 0..rows {
        write.execute_batch("INSERT INTO t(x) VALUES('more')").unwrap();
    }
    let mut records = super::batch_tests::incoming(&primary, replica.db.pos());
    let shm = replica.db.shm().unwrap();
    shm.index.invalidate().unwrap();
    let (has_read, is_applied) = (mpsc::channel(), mpsc::channel::<()>());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            moment::at("wal_index.publish", move || {
                has_read.0.send(()).unwrap();
                // It waits for us, or else it would end within this time.
                let _ = is_applied.1.recv_timeout(Duration::from_millis(500));
            });
            replica.db.fence_new_shm(&shm).unwrap();
        });
        has_read.1.recv_timeout(WAIT).unwrap();
        replica.db.apply_all(&mut records).1.unwrap();
        let _ = is_applied.0.send(());
    });
    assert_eq!(count(&read), 1 + rows, "what was applied can be read");
    write.execute_batch("INSERT INTO t(x) VALUES('and on')").unwrap();
    ship(&primary, &replica);
    assert_eq!(count(&read), 2 + rows);
    assert_eq!(integrity(&read), "ok");
    assert!(image(&primary) == image(&replica));
}

#[test]
fn a_damaged_wal_index_header_is_written_again() {
    use std::os::unix::fs::FileExt;
    let (primary, replica) = (node(Mode::Primary), node(Mode::Replica));
    let write = writer(&primary, 4096);
    ship(&primary, &replica);
    let read = reader(&replica);
    write.execute_batch("INSERT INTO t VALUES(2, 'two')").unwrap();
    ship(&primary, &replica);
    replica.db.shm().unwrap().index.file().write_all_at(&[0xee; 8], 12).unwrap();
    write.execute_batch("INSERT INTO t VALUES(3, 'three')").unwrap();
    ship(&primary, &replica);
    assert_eq!(count(&read), 3);
    assert_eq!(integrity(&read), "ok");
}

#[test]
fn a_snapshot_with_another_page_size_replaces_everything_under_open_connections() {
    let (first, second, replica) = (node(Mode::Primary), node(Mode::Primary), node(Mode::Replica));
    let write = writer(&first, 4096);
    ship(&first, &replica);
    let read = reader(&replica);
    assert_eq!(count(&read), 1);
    write.execute_batch("INSERT INTO t VALUES(2, 'two')").unwrap();
    ship(&first, &replica);
    let other = writer(&second, 1024);
    for id in 10..20 {
        other.execute("INSERT INTO t VALUES(?1, zeroblob(5000))", [id]).unwrap();
    }
    // A whole database as one record, as a primary sends it to who is too far behind.
    let snapshot = snapshot_of(&second);
    read.execute_batch("BEGIN").unwrap();
    assert_eq!(count(&read), 2);
    let applying = std::thread::spawn({
        let (db, snapshot) = (Arc::clone(&replica.db), snapshot.clone());
        move || db.apply(&mut snapshot.as_slice())
    });
    assert_eq!(count(&read), 2, "a reader keeps its snapshot");
    read.execute_batch("COMMIT").unwrap();
    assert_eq!(applying.join().unwrap().unwrap(), second.db.pos());
    assert_eq!(count(&read), 11);
    assert_eq!(integrity(&read), "ok");
    other.execute("INSERT INTO t VALUES(30, 'on')", []).unwrap();
    ship(&second, &replica);
    assert_eq!(count(&read), 12);
    assert!(image(&second) == image(&replica));
}

fn snapshot_of(node: &Node) -> Vec<u8> {
    let pos = node.db.position_now().unwrap();
    let image = image(node);
    let page_size = node.db.page_size();
    let header = crate::ltx::Header {
        page_size,
        commit: u32::try_from(image.len() / page_size as usize).unwrap(),
        min_txid: Txid(1),
        max_txid: pos.txid,
        ..crate::ltx::Header::default()
    };
    let mut encoder = crate::ltx::Encoder::new(Vec::new(), &header).unwrap();
    for (pgno, page) in (1..).zip(image.chunks(page_size as usize)) {
        encoder.write_page(pgno, page).unwrap();
    }
    encoder.finish(pos.checksum).unwrap().1
}

#[test]
fn a_deletion_removes_the_database_and_it_can_be_created_again() {
    let (primary, replica) = (node(Mode::Primary), node(Mode::Replica));
    let write = writer(&primary, 4096);
    write.execute_batch("PRAGMA wal_checkpoint").unwrap_or_default();
    ship(&primary, &replica);
    assert_eq!(count(&reader(&replica)), 1);
    drop(write);
    primary.db.db_unlink().unwrap();
    ship(&primary, &replica);
    assert!(!replica.db.is_live() && !replica.path.exists());
    assert_eq!(replica.db.pos().checksum, Checksum::EMPTY);
    primary.store.create(primary.db.name()).unwrap();
    let write = writer(&primary, 512);
    write.execute_batch("INSERT INTO t VALUES(2, 'again')").unwrap();
    ship(&primary, &replica);
    assert!(replica.db.is_live());
    assert_eq!(count(&reader(&replica)), 2);
    assert!(image(&primary) == image(&replica));
}

/// A reader whose transaction ends only when another one has begun a later one.
fn overlap(read: &Connection, begun: &AtomicU64, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        read.execute_batch("BEGIN").unwrap();
        count(read);
        let mine = begun.fetch_add(1, Ordering::AcqRel) + 1;
        while begun.load(Ordering::Acquire) == mine && !stop.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(1));
        }
        read.execute_batch("COMMIT").unwrap();
    }
}

#[test]
fn readers_without_end_do_not_keep_the_wal_from_restarting() {
    let (primary, replica) = (node(Mode::Primary), node(Mode::Replica));
    let write = writer(&primary, 512);
    ship(&primary, &replica);
    let (begun, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let readers = [reader(&replica), reader(&replica)];
    let restarted = std::thread::scope(|scope| {
        for read in readers {
            let (begun, stop) = (&begun, &stop);
            scope.spawn(move || overlap(&read, begun, stop));
        }
        let mut before = 0;
        let start = std::time::Instant::now();
        let restarted = std::iter::repeat_with(|| start.elapsed()).take_while(|time| *time < WAIT).any(|_| {
            write.execute("INSERT INTO t(x) VALUES(zeroblob(500000))", []).unwrap();
            write.execute("DELETE FROM t WHERE id > 1", []).unwrap();
            ship(&primary, &replica);
            let frames = replica.db.shm().unwrap().index.read_header().unwrap().unwrap().mx_frame;
            std::mem::replace(&mut before, frames) > frames
        });
        stop.store(true, Ordering::Release);
        restarted
    });
    assert!(restarted, "the WAL only grew");
    assert_eq!(count(&reader(&replica)), 1);
}
