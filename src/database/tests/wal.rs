//! Capture in WAL mode.

use super::model::Model;
use super::*;
use crate::kernel::FileKind;
use crate::sqlite::locks::{self, LockKind};
use crate::sqlite::wal::{FrameHeader, frame_len, frame_offset};

pub(super) const WAL: &str = "PRAGMA journal_mode=wal; CREATE TABLE t(id INTEGER PRIMARY KEY, x);";

/// What the client sees is what the log says.
pub(super) fn check(database: &Database, model: &mut Model, client: &Client) {
    let pos = database.position_now().expect("captures");
    model.follow(database);
    assert_eq!(model.pos, pos);
    assert!(model.image() == client.image(), "not equal byte for byte at {pos}");
}

#[test]
fn every_commit_is_one_record() {
    let node = Node::start(Mode::Primary);
    let (database, client) = node.database("db", WAL);
    let mut model = Model::default();
    check(&database, &mut model, &client);
    for round in 2..10 {
        client.run(&format!("INSERT INTO t VALUES({round}, 'x')")).expect("writes");
        check(&database, &mut model, &client);
        assert_eq!(model.txid().0, round, "one TXID per commit");
    }
    client.run("BEGIN; INSERT INTO t VALUES(100, 'x'); ROLLBACK").expect("rolls back");
    check(&database, &mut model, &client);
    assert_eq!(model.txid().0, 9, "a rollback is no transaction");
}

#[test]
fn commits_are_captured_without_being_asked_for() {
    let node = Node::start(Mode::Primary);
    let (database, client) = node.database("db", WAL);
    client.run("INSERT INTO t VALUES(1, 'x')").expect("writes");
    wait_until("the commit is captured", || database.pos().txid.0 == 2);
}

#[test]
fn the_position_that_needs_no_waiting_is_never_an_old_one() {
    let node = Node::start(Mode::Primary);
    let (database, client) = node.database("db", WAL);
    for id in 0..200 {
        let before = database.position_now().expect("captures");
        client.run(&format!("INSERT INTO t VALUES({id}, 'x')")).expect("writes");
        if let Some(current) = database.position_if_current() {
            assert_eq!(current.txid, before.txid.next(), "commit {id} is in it");
        }
    }
    let pos = database.position_now().expect("captures");
    wait_until("nobody holds the capture", || database.position_if_current() == Some(pos));
}

#[test]
fn random_transactions_of_two_clients_follow_the_model() {
    for seed in [1, 2] {
        let node = Node::start(Mode::Primary);
        let page_size = if seed == 1 { 512 } else { 4096 };
        let sql = format!("PRAGMA page_size={page_size}; PRAGMA auto_vacuum=incremental; {WAL}");
        let (database, first) = node.database("db", &sql);
        let second = Client::open(&node.path("db"));
        let mut model = Model::default();
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..120 {
            let client = if random.bool() { &first } else { &second };
            let sql = match random.u32(..8) {
                0 => "DELETE FROM t WHERE id % 3 = 0".to_owned(),
                1 => "DELETE FROM t; PRAGMA incremental_vacuum".to_owned(),
                2 => "UPDATE t SET x = x || 'y'".to_owned(),
                3 => format!("INSERT INTO t(x) VALUES(randomblob({}))", random.u32(..300_000)),
                4 => "BEGIN; INSERT INTO t(x) VALUES(randomblob(30000)); DELETE FROM t WHERE x IS NOT NULL; COMMIT"
                    .into(),
                5 => "BEGIN; INSERT INTO t(x) VALUES(1); SAVEPOINT s; INSERT INTO t(x) VALUES(randomblob(9000)); \
                      ROLLBACK TO s; INSERT INTO t(x) VALUES(2); COMMIT"
                    .into(),
                6 => "VACUUM".to_owned(),
                _ => "INSERT INTO t(x) SELECT randomblob(100) FROM (VALUES(1),(2),(3))".to_owned(),
            };
            client.run(&sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
            if random.u32(..5) == 0 {
                let reader = if random.bool() { &first } else { &second };
                reader.run("SELECT count(*) FROM t").expect("reads");
                database.checkpoint().expect("checkpoints");
            }
            check(&database, &mut model, client);
        }
    }
}

#[test]
fn a_large_transaction_is_captured_whole() {
    let node = Node::start(Mode::Primary);
    let (database, client) = node.database("db", WAL);
    let mut model = Model::default();
    client
        .run(
            "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 4000) \
             INSERT INTO t SELECT i, randomblob(4000) FROM n",
        )
        .expect("writes");
    check(&database, &mut model, &client);
    assert_eq!(model.txid().0, 2);
}

#[test]
fn checkpoints_let_the_wal_start_again_and_nothing_is_missed() {
    let node = Node::start(Mode::Primary);
    let (database, client) = node.database("db", WAL);
    let mut model = Model::default();
    let wal_len = || database.files.wal().expect("wal").expect("exists").metadata().expect("metadata").len();
    client.run("INSERT INTO t VALUES(0, randomblob(400000))").expect("writes");
    let large = wal_len();
    for round in 1..30 {
        wait_until("everything is in the database file", || {
            database.checkpoint().expect("checkpoints") == crate::database::Checkpointed::Complete
        });
        client.run(&format!("INSERT INTO t VALUES({round}, 'x')")).expect("writes");
        check(&database, &mut model, &client);
        assert_eq!(model.txid().0, round + 2);
    }
    assert_eq!(wal_len(), large, "the WAL is overwritten, not appended to");
    let busy = client.run("PRAGMA wal_checkpoint").expect("answers");
    assert_eq!(busy, "1", "the engine owns checkpoints");
}

#[test]
fn a_reader_keeps_its_snapshot_through_checkpoints() {
    let node = Node::start(Mode::Primary);
    let (database, writer) = node.database("db", WAL);
    let reader = Client::open(&node.path("db"));
    reader.run("BEGIN; SELECT count(*) FROM t").expect("reads");
    let before = reader.image();
    for _ in 0..20 {
        writer.run("INSERT INTO t(x) VALUES(randomblob(2000))").expect("writes");
        database.checkpoint().expect("checkpoints");
    }
    assert!(reader.image() == before, "the snapshot changed");
    reader.run("COMMIT").expect("ends");
    let mut model = Model::default();
    check(&database, &mut model, &reader);
}

#[test]
fn a_killed_client_loses_nothing_that_was_committed() {
    let node = Node::start(Mode::Primary);
    let (database, keeper) = node.database("db", WAL);
    let mut model = Model::default();
    for round in 0..5 {
        let writer = Client::open(&node.path("db"));
        writer.run("INSERT INTO t(x) VALUES(randomblob(5000))").expect("writes");
        writer.run("PRAGMA cache_size=5; BEGIN; INSERT INTO t(x) VALUES(randomblob(200000))").expect("spills");
        writer.kill();
        check(&database, &mut model, &keeper);
        assert_eq!(model.txid().0, round + 2);
    }
}

#[test]
fn a_wal_cut_back_by_recovery_is_recorded_as_what_sqlite_shows_then() {
    let node = Node::start(Mode::Primary);
    let (database, client) = node.database("db", WAL);
    let mut model = Model::default();
    for round in 0..4 {
        client.run(&format!("INSERT INTO t VALUES({round}, randomblob(3000))")).expect("writes");
    }
    check(&database, &mut model, &client);
    let before = model.pos;
    // A frame that SQLite's recovery stops at: as if its salts were missing (SQLite before 3.51).
    let shm = database.shm().expect("attached");
    let header = shm.index.read_header().expect("reads").expect("valid");
    let wal = database.files.wal().expect("wal").expect("exists");
    let last = crate::sqlite::wal::frame_offset(header.mx_frame, header.page_size);
    crate::os::write_all_at("wal.append", &wal, &[0; 8], last + 8).expect("damages");
    // And a client that has to recover: the index is gone.
    shm.index.write_header(&crate::sqlite::wal_index::header::IndexHeader { change: 7, ..header }).expect("writes");
    std::os::unix::fs::FileExt::write_all_at(shm.index.file(), &[9; 48], 0).expect("damages the header");
    wait_until("the client recovers", || client.run("SELECT count(*) FROM t").is_ok_and(|count| count == "3"));
    check(&database, &mut model, &client);
    assert!(model.pos.txid > before.txid, "history goes on");
    client.run("INSERT INTO t VALUES(77, 'x')").expect("writes");
    check(&database, &mut model, &client);
}

#[test]
fn a_full_disk_delays_capture_and_loses_nothing() {
    let node = Node::start(Mode::Primary);
    let (database, client) = node.database("db", WAL);
    let mut model = Model::default();
    check(&database, &mut model, &client);
    {
        // The watcher's thread is not this one: it must not come in between.
        let mut state = database.capture.lock();
        client.run("INSERT INTO t VALUES(1, 'x')").expect("a commit does not need us");
        let _full = crate::fault::on_this_thread("log.append", libc::ENOSPC, 1);
        let error = database.capture_barrier(&mut state).expect_err("full");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert!(matches!(database.health(), crate::database::Health::Degraded { .. }));
    }
    check(&database, &mut model, &client);
    assert_eq!(model.txid().0, 2);
    assert_eq!(database.health(), crate::database::Health::Ok);
}

#[test]
fn an_exclusive_client_with_its_index_in_its_heap_is_captured_too() {
    let node = Node::start(Mode::Primary);
    let (database, keeper) = node.database("db", WAL);
    let mut model = Model::default();
    keeper.run("INSERT INTO t VALUES(1, 'x')").expect("writes");
    check(&database, &mut model, &keeper);
    drop(keeper);
    let exclusive = Client::open(&node.path("db"));
    // Whoever wants the database to itself has to wait for a checkpoint that is running.
    exclusive
        .run("PRAGMA busy_timeout=60000; PRAGMA locking_mode=exclusive; INSERT INTO t VALUES(2, 'y')")
        .expect("writes");
    check(&database, &mut model, &exclusive);
    assert_eq!(model.txid().0, 3);
    exclusive.run("INSERT INTO t VALUES(3, 'z')").expect("writes");
    wait_until("the sweep captures it", || database.pos().txid.0 == 4);
    check(&database, &mut model, &exclusive);
}

/// SQLite before 3.51, killed after its commit frame and before it completed the checksums and the wal-index: to SQLite that is no transaction.
#[test]
fn what_a_killed_writer_left_does_not_come_in_when_the_last_client_closes() {
    use std::os::unix::fs::FileExt;

    let node = Node::start(Mode::Primary);
    let (database, client) = node.database("db", WAL);
    client.run("INSERT INTO t VALUES(1, 'x')").expect("writes");
    let pos = database.position_now().expect("captures");
    let shm = database.shm().expect("attached");
    let header = shm.index.read_header().expect("reads").expect("valid");
    client.kill();
    let left = FrameHeader { pgno: 2, commit: header.page_count, salt: [0, 0], checksum: [0, 0] };
    let mut frame = left.encode().to_vec();
    frame.resize(frame_len(header.page_size) as usize, 7);
    let wal = database.files.wal().expect("opens").expect("there is one");
    wal.write_all_at(&frame, frame_offset(header.mx_frame + 1, header.page_size)).expect("writes");
    // A client that has opened database and shm, and is about to remove both: it has the database to itself.
    let open = |kind| std::fs::File::options().read(true).write(true).open(database.files.path(kind)).expect("opens");
    let (file, index) = (open(FileKind::Database), open(FileKind::Shm));
    assert!(locks::try_lock(&index, locks::DMS, LockKind::Shared).expect("asks"));
    assert!(locks::lock_within(&file, locks::SHARED, LockKind::Exclusive, WAIT).expect("asks"));
    database.capture_barrier(&mut database.capture.lock()).expect("captures");
    assert_eq!(database.pos(), pos, "its checkpoint brings it in");
    database.shm_unlink().expect("unlinks");
    drop(index);
    database.wal_unlink().expect("unlinks");
    assert_eq!(database.pos(), pos, "removing the WAL brings it in");
}

#[test]
fn a_writer_that_never_pauses_sees_no_busy_and_its_wal_is_started_again() {
    let node = Node::start(Mode::Primary);
    let (database, client) = node.database("db", WAL);
    let salt = || database.shm().expect("attached").index.read_header().expect("reads").map(|header| header.salt[0]);
    client.run("INSERT INTO t(x) VALUES(1)").expect("writes");
    let first = salt();
    let sql = "INSERT INTO t(x) VALUES(randomblob(3000));".repeat(100);
    let (mut batches, start) = (0, Instant::now());
    while batches < 60 || salt() == first {
        assert!(start.elapsed() < 2 * WAIT, "the WAL was never started again");
        // Without a busy timeout.
        client.run(&sql).expect("never busy");
        batches += 1;
    }
    let mut model = Model::default();
    check(&database, &mut model, &client);
    assert_eq!(model.txid().0, 2 + 100 * batches);
}

#[test]
fn a_writer_asleep_between_the_headers_two_copies_does_not_cost_us_the_checkpoints() {
    use std::os::unix::fs::FileExt;

    let node = Node::start(Mode::Primary);
    let (database, client) = node.database("db", WAL);
    client.run("INSERT INTO t VALUES(1, 'x')").expect("writes");
    let shm = database.shm().expect("attached");
    client.run("BEGIN IMMEDIATE").expect("holds WRITE");
    {
        // The keeper keeps out.
        let _action = database.action.lock();
        assert!(shm.owns_checkpoints());
        assert!(!shm.needs_recovery().expect("asks"), "it is valid");
        let header = shm.index.read_header().expect("reads").expect("valid");
        let next = crate::sqlite::wal_index::header::IndexHeader { change: header.change + 1, ..header };
        let second: Vec<u8> = next.encode().into_iter().flat_map(u32::to_ne_bytes).collect();
        shm.index.file().write_all_at(&second, second.len() as u64).expect("writes the second copy");
        assert_eq!(shm.index.read_header().expect("reads"), None);
        assert!(!shm.needs_recovery().expect("asks"), "it is being written");
    }
    client.kill();
    wait_until("a client can recover", || !shm.owns_checkpoints());
    let again = Client::open(&node.path("db"));
    assert_eq!(again.run("SELECT count(*) FROM t").expect("recovers"), "1");
    wait_until("checkpoints are ours again", || shm.owns_checkpoints());
    check(&database, &mut Model::default(), &again);
}

#[test]
fn strict_verify_finds_a_page_that_changed_behind_our_back() {
    let node = Node::start(Mode::Primary);
    let (database, client) = node.database("db", WAL);
    client.run("INSERT INTO t VALUES(1, 'x')").expect("writes");
    database.position_now().expect("captures");
    database.verify_strictly().expect("reads");
    assert_eq!(database.health(), crate::database::Health::Ok);
    wait_until("everything is in the database file", || {
        database.checkpoint().expect("checkpoints") == crate::database::Checkpointed::Complete
    });
    let file = database.files.database().expect("opens");
    crate::os::write_all_at("database.write", &file, b"damage", 4096 + 2000).expect("damages");
    database.verify_strictly().expect("reads");
    assert!(matches!(database.health(), crate::database::Health::Broken(_)));
}

#[test]
fn a_killed_writers_last_frames_are_entered_without_a_recovery() {
    use crate::sqlite::wal::{FRAME_HEADER_LEN, FrameHeader, WalHeader, encode_frame, frame_len, frame_offset};
    use std::os::unix::fs::FileExt;

    let node = Node::start(Mode::Primary);
    let (database, client) = node.database("db", WAL);
    let mut model = Model::default();
    for round in 0..5 {
        client.run(&format!("INSERT INTO t VALUES({round}, 'x')")).expect("writes");
    }
    check(&database, &mut model, &client);
    client.kill();
    let wal = database.files.wal().expect("wal").expect("exists");
    let header = WalHeader::read(&wal).expect("reads").expect("a header");
    let index = database.shm().expect("attached").index.read_header().expect("reads").expect("valid");
    // What SQLite before 3.51 leaves behind: a recovery would stop here.
    wal.write_all_at(&[0; 8], frame_offset(1, header.page_size) + 8).expect("writes");
    // A whole transaction, but its writer was killed before it entered it.
    let mut last = vec![0; frame_len(header.page_size) as usize];
    wal.read_exact_at(&mut last, frame_offset(index.mx_frame, header.page_size)).expect("reads");
    let (head, page) = last.split_first_chunk::<FRAME_HEADER_LEN>().expect("a frame");
    let mut frame = Vec::new();
    encode_frame(&mut frame, &header, FrameHeader::parse(head).pgno, index.page_count, page, index.frame_checksum);
    wal.write_all_at(&frame, frame_offset(index.mx_frame + 1, header.page_size)).expect("writes");

    database.shm_opened().expect("looks at the index");
    let again = Client::open(&node.path("db"));
    assert_eq!(again.run("SELECT count(*) FROM t").expect("reads"), "5", "no commit is lost");
    let now = database.shm().expect("attached").index.read_header().expect("reads").expect("valid");
    assert_eq!(now.mx_frame, index.mx_frame + 1);
    again.run("INSERT INTO t VALUES(5, 'x')").expect("writes");
    check(&database, &mut model, &again);
}

#[test]
fn what_a_sleeping_writer_has_committed_is_captured_from_the_copy_it_wrote_first() {
    use std::os::unix::fs::FileExt;
    let node = Node::start(Mode::Primary);
    let (database, client) = node.database("db", WAL);
    let mut model = Model::default();
    check(&database, &mut model, &client);
    let shm = database.shm().expect("attached");
    let mut before = [0; 48];
    shm.index.file().read_exact_at(&mut before, 0).expect("reads");
    client.run("INSERT INTO t VALUES(1, 'x')").expect("writes");
    // Its writer fell asleep before it wrote the first copy.
    let mut after = [0; 48];
    shm.index.file().read_exact_at(&mut after, 0).expect("reads");
    shm.index.file().write_all_at(&before, 0).expect("writes");
    let pos = database.position_now().expect("captures, though no header is readable");
    assert_eq!(pos.txid.0, 2);
    shm.index.file().write_all_at(&after, 0).expect("writes");
    check(&database, &mut model, &client);
    assert_eq!(database.pos(), pos);
}
