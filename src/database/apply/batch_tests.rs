//! Applying records that wait together.

use bytes::Bytes;
use rusqlite::Connection;

use std::sync::atomic::{AtomicBool, Ordering};

use super::tests::{Node, bytes, count, image, integrity, node, random_write, reader, records_after, ship, writer};
use super::{ApplyError, Incoming};
use crate::ltx::{Decoder, Header, ImageBuilder, Unpacker};
use crate::store::Mode;
use crate::{Checksum, Pos, fault};

/// A primary and a replica with the same database, with connections.
fn pair() -> (Node, Connection, Node, Connection) {
    let (primary, replica) = (node(Mode::Primary), node(Mode::Replica));
    let write = writer(&primary, 4096);
    ship(&primary, &replica);
    let read = reader(&replica);
    assert_eq!(count(&read), 1);
    (primary, write, replica, read)
}

fn insert(write: &Connection, rows: usize) {
    for _ in 0..rows {
        write.execute("INSERT INTO t(x) VALUES(randomblob(300))", []).unwrap();
    }
}

/// The records after this position, verified, as they come to a replica.
pub(super) fn incoming(primary: &Node, after: Pos) -> Vec<Incoming> {
    let mut unpacker = Unpacker::new();
    let records = records_after(&primary.db, after);
    records.iter().map(|record| Incoming::in_memory(&Bytes::from(bytes(record)), &mut unpacker).unwrap()).collect()
}

/// Every record of the replica is the primary's.
fn assert_same_history(primary: &Node, replica: &Node, after: Pos) {
    let images = |node: &Node| -> Vec<_> {
        let records = node.db.log.after(after).unwrap().expect("it reaches back").map(Result::unwrap);
        records.map(|record| (record.post, bytes(&record))).collect()
    };
    assert!(images(primary) == images(replica));
}

#[test]
fn few_and_many_records_at_once_lead_to_the_same_database_and_history() {
    let (primary, write, replica, read) = pair();
    let start = replica.db.pos();
    for (round, rows) in [1, 2, 15, 16, 17, 100, 3].into_iter().enumerate() {
        read.execute_batch("BEGIN").unwrap();
        let before = count(&read);
        insert(&write, rows);
        if round % 2 == 1 {
            // Shrinks, grows again, and pages are cut off that a record before had changed.
            write.execute_batch("DELETE FROM t WHERE id % 2 = 0; PRAGMA incremental_vacuum").unwrap();
            insert(&write, rows);
            write.execute_batch("DELETE FROM t WHERE id > 20; PRAGMA incremental_vacuum").unwrap();
        }
        let mut events = replica.store.events();
        let mut records = incoming(&primary, replica.db.pos());
        let (applied, result) = replica.db.apply_all(&mut records);
        result.unwrap();
        assert_eq!(applied, records.len());
        for record in &records {
            let crate::store::Event::Tx { pos, .. } = events.try_recv().expect("an event for each");
            assert_eq!(pos, record.post());
        }
        assert_eq!(replica.db.pos(), primary.db.pos());
        assert_eq!(count(&read), before, "round {round}: the snapshot changed");
        read.execute_batch("COMMIT").unwrap();
        assert_eq!(count(&read), count(&write), "round {round}");
        // The same once more is no error, and changes nothing.
        if let Some(last) = records.last_mut() {
            let again = replica.db.apply_all(std::slice::from_mut(last));
            assert!(again.0 == 1 && again.1.is_ok());
        }
    }
    assert_same_history(&primary, &replica, start);
    assert_eq!(integrity(&read), "ok");
    assert!(image(&primary) == image(&replica));
}

#[test]
fn however_records_are_split_the_replica_is_equal_byte_for_byte() {
    for page_size in [512, 4096, 65_536] {
        let (primary, replica) = (node(Mode::Primary), node(Mode::Replica));
        let write = writer(&primary, page_size);
        ship(&primary, &replica);
        let (start, read) = (replica.db.pos(), reader(&replica));
        let mut random = fastrand::Rng::with_seed(u64::from(page_size) + 7);
        for round in 0..6 {
            for _ in 0..random.usize(1..40) {
                random_write(&write, &mut random);
            }
            let mut records = incoming(&primary, replica.db.pos());
            let mut rest = records.as_mut_slice();
            while !rest.is_empty() {
                let (now, later) = rest.split_at_mut(random.usize(1..=rest.len()));
                let (applied, result) = replica.db.apply_all(now);
                result.unwrap();
                assert_eq!(applied, now.len());
                assert_eq!(replica.db.pos(), now[applied - 1].post());
                rest = later;
            }
            assert_eq!(count(&read), count(&write), "round {round}");
            if round % 3 == 2 {
                replica.db.checkpoint().unwrap();
            }
        }
        assert_same_history(&primary, &replica, start);
        assert_eq!(integrity(&read), "ok");
        assert!(image(&primary) == image(&replica), "page size {page_size}");
    }
}

/// Reads begun after a position is published see what it names: with checkpoints, restarts of the WAL, and clients that come and go.
#[test]
fn nobody_reads_less_than_the_position_promises() {
    let (primary, write, replica, read) = pair();
    let start = replica.db.pos().txid.0;
    let stop = AtomicBool::new(false);
    let until_the_end = |step: &dyn Fn()| {
        let _stop = StopAtEnd(&stop);
        while !stop.load(Ordering::Acquire) {
            step();
        }
    };
    let check = |read: &Connection| {
        let promised = i64::try_from(replica.db.pos().txid.0 - start).unwrap();
        let found = count(read) - 1;
        assert!(found >= promised, "{found} rows of {promised}");
    };
    std::thread::scope(|scope| {
        let (until_the_end, check, replica) = (&until_the_end, &check, &replica);
        scope.spawn(move || until_the_end(&|| check(&read)));
        scope.spawn(move || until_the_end(&|| check(&reader(replica))));
        scope.spawn(move || until_the_end(&|| _ = replica.db.checkpoint().unwrap()));
        let _stop = StopAtEnd(&stop);
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..60 {
            insert(&write, random.usize(1..60));
            replica.db.apply_all(&mut incoming(&primary, replica.db.pos())).1.unwrap();
        }
    });
    assert!(image(&primary) == image(&replica));
}

/// However a thread ends, the others end, too.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn many_records_write_every_page_once() {
    let (primary, write, replica, _read) = pair();
    let frames = || replica.db.shm().unwrap().index.read_header().unwrap().unwrap().mx_frame;
    let before = frames();
    for _ in 0..200 {
        write.execute("UPDATE t SET x = randomblob(10) WHERE id = 1", []).unwrap();
    }
    let mut records = incoming(&primary, replica.db.pos());
    let (applied, result) = replica.db.apply_all(&mut records);
    result.unwrap();
    assert!(applied >= 200);
    assert!(frames() - before < 10, "{} frames", frames() - before);
    assert!(image(&primary) == image(&replica));
}

/// The same pages, well-formed, with a post-apply checksum that they do not lead to.
fn forged(record: &[u8]) -> Incoming {
    let mut decoder = Decoder::new(record).unwrap();
    let mut builder = ImageBuilder::new();
    builder.begin(decoder.header(), 1).unwrap();
    let mut page = vec![0; 4096];
    while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
        builder.push_page(pgno, &page).unwrap();
    }
    let image = builder.finish(Checksum(Checksum::FLAG | 1)).unwrap();
    Incoming::in_memory(&image.bytes, &mut Unpacker::new()).unwrap()
}

#[test]
fn those_before_a_false_record_stand_and_it_is_refused() {
    for false_one in [0, 1, 5, 30, 39] {
        let (primary, write, replica, read) = pair();
        let start = replica.db.pos();
        insert(&write, 40);
        let sound = records_after(&primary.db, start);
        let mut records = incoming(&primary, start);
        records[false_one] = forged(&bytes(&sound[false_one]));
        let (applied, result) = replica.db.apply_all(&mut records);
        assert_eq!(applied, false_one);
        let error = result.unwrap_err();
        assert!(matches!(&error, ApplyError::Damaged(text) if text.contains("instead of")), "{error}");
        let reached = false_one.checked_sub(1).map_or(start, |last| sound[last].post);
        assert_eq!((replica.db.pos(), replica.db.log.last_pos()), (reached, reached));
        assert_eq!(count(&read), 1 + false_one as i64);
        // The right ones go on from there.
        let (applied, result) = replica.db.apply_all(&mut incoming(&primary, reached));
        result.unwrap();
        assert_eq!(applied, 40 - false_one);
        assert!(image(&primary) == image(&replica));
    }
}

#[test]
fn of_a_few_records_those_before_a_failing_write_stand() {
    for (rows, stand) in [(5, 0), (5, 3), (15, 14)] {
        let (primary, write, replica, read) = pair();
        let start = replica.db.pos();
        insert(&write, rows);
        let mut records = incoming(&primary, start);
        {
            let _fault = fault::on_this_thread_after("wal.append", libc::EIO, stand);
            let (applied, result) = replica.db.apply_all(&mut records);
            assert_eq!(applied as u64, stand);
            assert!(matches!(result, Err(ApplyError::Io(_))), "{result:?}");
        }
        let reached = records[..stand as usize].last().map_or(start, Incoming::post);
        assert_eq!((replica.db.pos(), replica.db.log.last_pos()), (reached, reached));
        assert_eq!(count(&read), 1 + stand as i64);
        replica.db.apply_all(&mut incoming(&primary, reached)).1.unwrap();
        assert_same_history(&primary, &replica, start);
        assert!(image(&primary) == image(&replica));
    }
}

#[test]
fn a_record_that_cuts_much_off_goes_alone() {
    let (primary, write, replica, read) = pair();
    write.execute("INSERT INTO t(x) VALUES(zeroblob(70000000))", []).unwrap();
    ship(&primary, &replica);
    let start = replica.db.pos();
    insert(&write, 20);
    write.execute_batch("DELETE FROM t WHERE id = 2; VACUUM").unwrap();
    insert(&write, 20);
    let mut records = incoming(&primary, start);
    let cuts = records.iter().position(|record| record.header().commit < 1000).unwrap();
    assert_eq!(super::incoming::count_fitting(&replica.db.capture.lock(), &records), cuts);
    replica.db.apply_all(&mut records).1.unwrap();
    assert_same_history(&primary, &replica, start);
    assert_eq!(count(&read), 41);
    assert!(image(&primary) == image(&replica));
}

#[test]
fn a_record_that_does_not_follow_is_refused_where_it_is() {
    let (primary, write, replica, read) = pair();
    insert(&write, 30);
    let mut records = incoming(&primary, replica.db.pos());
    records.remove(20);
    let (applied, result) = replica.db.apply_all(&mut records);
    assert_eq!(applied, 20);
    assert!(matches!(result, Err(ApplyError::WrongPosition { .. })), "{result:?}");
    assert_eq!(count(&read), 21);
    assert_eq!(integrity(&read), "ok");
}

#[test]
fn when_the_disk_fails_nothing_of_the_batch_is_left_but_what_the_position_says() {
    for (rows, label) in
        [(40, "log.append"), (40, "log.sync"), (40, "wal.append"), (10, "log.append"), (10, "wal.append")]
    {
        let (primary, write, replica, read) = pair();
        let start = replica.db.pos();
        insert(&write, rows);
        let mut records = incoming(&primary, start);
        {
            let _fault = fault::on_this_thread(label, libc::ENOSPC, 1);
            let (applied, result) = replica.db.apply_all(&mut records);
            assert_eq!(applied, 0, "{label}");
            assert!(matches!(result, Err(ApplyError::Io(_))), "{label}: {result:?}");
        }
        assert_eq!((replica.db.pos(), replica.db.log.last_pos()), (start, start), "{label}");
        assert_eq!(count(&read), 1, "{label}");
        let (applied, result) = replica.db.apply_all(&mut incoming(&primary, start));
        result.unwrap();
        assert_eq!(applied, rows, "{label}");
        assert_same_history(&primary, &replica, start);
        assert!(image(&primary) == image(&replica), "{label}");
    }
}

#[test]
fn a_crash_between_log_and_wal_is_completed_from_the_log() {
    let (primary, write, replica, read) = pair();
    let start = replica.db.pos();
    insert(&write, 50);
    // As it is after a crash there: all records in the log, none in the WAL.
    Incoming::append_all(&mut incoming(&primary, start), &replica.db.log).unwrap();
    assert_eq!(replica.db.pos(), start);
    insert(&write, 20);
    let reached = replica.db.log.last_pos();
    let (applied, result) = replica.db.apply_all(&mut incoming(&primary, reached));
    result.unwrap();
    assert_eq!(applied, 20);
    assert_eq!(count(&read), 71);
    assert!(image(&primary) == image(&replica));
}

#[test]
fn a_start_finds_many_records_of_which_the_wal_has_none_or_all() {
    for in_wal in [false, true] {
        let (primary, write, replica, read) = pair();
        let start = replica.db.pos();
        insert(&write, 50);
        let mut records = incoming(&primary, start);
        if in_wal {
            replica.db.apply_all(&mut records).1.unwrap();
        } else {
            Incoming::append_all(&mut records, &replica.db.log).unwrap();
        }
        drop(read);
        let end = primary.db.pos();
        assert_eq!(after_crash(&replica), end, "in the WAL: {in_wal}");
    }
}

#[test]
fn a_start_finds_a_few_records_of_which_the_wal_has_the_first_ones() {
    let (primary, write, replica, _read) = pair();
    let start = replica.db.pos();
    insert(&write, 12);
    let mut records = incoming(&primary, start);
    replica.db.apply_all(&mut records[..5]).1.unwrap();
    Incoming::append_all(&mut records[5..], &replica.db.log).unwrap();
    assert_eq!(after_crash(&replica), primary.db.pos());
}

/// A power loss takes un-synced records from the log whose frames it leaves: what was joined is in the log all the same.
#[test]
fn a_start_goes_forward_from_joined_records_when_later_ones_are_lost() {
    let (primary, write, replica, _read) = pair();
    let start = replica.db.pos();
    insert(&write, 40);
    replica.db.apply_all(&mut incoming(&primary, start)).1.unwrap();
    let joined = replica.db.pos();
    insert(&write, 3);
    replica.db.apply_all(&mut incoming(&primary, joined)).1.unwrap();
    replica.db.log.truncate_after(joined.txid).unwrap();
    assert_eq!(after_crash(&replica), primary.db.pos());
}

/// Where a start after a kill -9 of the replica finds the database: from a copy of the files.
fn after_crash(replica: &Node) -> Pos {
    let copy = tempfile::tempdir().unwrap();
    let config = crate::store::StoreConfig { data_dir: copy.path().to_owned(), ..replica.store.config().clone() };
    copy_tree(&replica.store.config().data_dir, copy.path());
    let store = crate::Store::open_with_layout(config, crate::Layout::Sqlite).unwrap();
    let pos = store.database("app.db").unwrap().pos();
    store.close();
    pos
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_tree(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[test]
fn headers_are_told_of_records_in_memory() {
    let (primary, write, replica, _read) = pair();
    insert(&write, 1);
    let records = incoming(&primary, replica.db.pos());
    let header: &Header = records[0].header();
    assert_eq!(header.pre(), replica.db.pos());
    assert_eq!(records[0].contents_len().map(|len| len % 4096), Some(0));
}
