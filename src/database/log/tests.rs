//! The log on a plain directory: appends, restarts, torn tails, damage, retention, LiteFS's own files.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use super::{Log, MEMORY_RECORD_BYTES_MAX, Opened, SEGMENT_BYTES};
use crate::database::RecordBody;
use crate::ltx::{Encoder, Header, Image, ImageBuilder, verify};
use crate::{Checksum, Pos, Txid, fault};

pub(super) const PAGE: usize = 4096;

/// Makes a history whose every record continues the one before.
pub(super) struct History {
    builder: ImageBuilder,
    random: fastrand::Rng,
    pub(super) pos: Pos,
}

impl History {
    pub(super) fn new() -> Self {
        let pos = Pos::new(Txid(9), Checksum(Checksum::FLAG | 9));
        Self { builder: ImageBuilder::new(), random: fastrand::Rng::with_seed(1), pos }
    }

    pub(super) fn header(&self, commit: u32) -> Header {
        let txid = self.pos.txid.next();
        Header {
            page_size: 4096,
            commit,
            min_txid: txid,
            max_txid: txid,
            pre_apply: self.pos.checksum,
            timestamp_ms: txid.0 * 1000,
            ..Header::default()
        }
    }

    /// A transaction of `pages` incompressible pages.
    pub(super) fn next(&mut self, pages: u32) -> Image {
        let header = self.header(pages);
        self.builder.begin(&header, pages as usize).expect("header");
        let mut page = vec![0; PAGE];
        for pgno in 1..=pages {
            self.random.fill(&mut page);
            self.builder.push_page(pgno, &page).expect("page");
        }
        let post = Checksum(self.random.u64(..) | Checksum::FLAG);
        let image = self.builder.finish(post).expect("image");
        self.pos = image.post();
        image
    }

    /// The whole database as a record 1…next.
    pub(super) fn snapshot(&mut self) -> Image {
        let header = Header { min_txid: Txid(1), pre_apply: Checksum::NONE, ..self.header(1) };
        self.builder.begin(&header, 1).expect("header");
        self.builder.push_page(1, &[7; PAGE]).expect("page");
        let image = self.builder.finish(self.builder.pages_checksum()).expect("image");
        self.pos = image.post();
        image
    }
}

pub(super) fn open(dir: &Path) -> (Arc<Log>, Opened) {
    let (log, opened) = Log::open(dir).expect("open");
    (Arc::new(log), opened)
}

fn bytes_of(body: &RecordBody) -> Vec<u8> {
    match body {
        RecordBody::Memory(bytes) => bytes.to_vec(),
        RecordBody::File { file, offset, len } => {
            let mut bytes = vec![0; usize::try_from(*len).expect("fits")];
            file.read_exact_at(&mut bytes, *offset).expect("read");
            bytes
        }
    }
}

/// The images after `pos`.
pub(super) fn images_after(log: &Arc<Log>, pos: Pos) -> Vec<Vec<u8>> {
    let records = log.after(pos).expect("read").expect("the position is in the log");
    records.map(|record| bytes_of(&record.expect("record").body)).collect()
}

pub(super) fn segment_paths(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir.join("log")).expect("log").map(|entry| entry.expect("entry").path()).collect();
    paths.sort();
    paths
}

fn grow_to_segments(log: &Log, history: &mut History, count: usize, dir: &Path) -> Vec<Image> {
    let mut images = Vec::new();
    while segment_paths(dir).len() < count {
        let image = history.next(60);
        log.append(&image).expect("append");
        images.push(image);
    }
    images
}

#[test]
fn what_is_appended_is_read_before_and_after_a_restart() {
    let dir = TempDir::new().expect("dir");
    let mut history = History::new();
    let start = history.pos;
    let (log, opened) = open(dir.path());
    assert_eq!((opened, log.last_pos(), log.first_pos()), (Opened::default(), Pos::ZERO, None));
    let images: Vec<Image> = (0..50).map(|i| history.next(i % 5 + 1)).collect();
    for image in &images {
        log.append(image).expect("append");
    }
    let expected: Vec<Vec<u8>> = images.iter().map(|image| image.bytes.to_vec()).collect();
    for round in 0..2 {
        let (log, opened) = if round == 0 { (log.clone(), Opened::default()) } else { open(dir.path()) };
        assert_eq!(opened, Opened::default());
        assert_eq!((log.last_pos(), log.first_pos()), (history.pos, Some(start)));
        assert!(images_after(&log, start) == expected, "round {round}");
        assert!(images_after(&log, images[30].post()) == expected[31..], "round {round}");
        assert!(images_after(&log, history.pos).is_empty());
        assert!(log.after(Pos::new(Txid(20), Checksum::EMPTY)).expect("read").is_none(), "a fork is not ours");
        assert!(log.after(Pos::new(Txid(90), Checksum::EMPTY)).expect("read").is_none(), "ahead of us");
        assert_eq!(log.size().transactions, 50);
    }
}

#[test]
fn segments_are_sealed_when_full_and_found_again() {
    let dir = TempDir::new().expect("dir");
    let mut history = History::new();
    let start = history.pos;
    let (log, _) = open(dir.path());
    let images = grow_to_segments(&log, &mut history, 3, dir.path());
    let expected: Vec<Vec<u8>> = images.iter().map(|image| image.bytes.to_vec()).collect();
    assert!(images_after(&log, start) == expected, "through sealed segments");
    let (log, opened) = open(dir.path());
    assert_eq!(opened, Opened::default());
    assert!(images_after(&log, start) == expected, "after a restart");
    assert!(log.size().bytes > 2 * SEGMENT_BYTES);
    log.append(&history.next(1)).expect("append after a restart");
    assert_eq!(open(dir.path()).0.last_pos(), history.pos);
}

#[test]
fn a_torn_record_is_cut_wherever_it_is_torn() {
    let dir = TempDir::new().expect("dir");
    let mut history = History::new();
    let (log, _) = open(dir.path());
    log.append(&history.next(1)).expect("append");
    let whole = history.pos;
    let path = segment_paths(dir.path())[0].clone();
    let before = fs::metadata(&path).expect("metadata").len();
    log.append(&history.next(1)).expect("append");
    let bytes = fs::read(&path).expect("read");
    for cut in (before as usize..bytes.len()).step_by(97) {
        fs::write(&path, &bytes[..cut]).expect("write");
        let (log, opened) = open(dir.path());
        assert_eq!((log.last_pos(), opened.torn_bytes), (whole, cut as u64 - before), "cut at {cut}");
        assert_eq!(fs::metadata(&path).expect("metadata").len(), before);
    }
    // A power loss may leave the length and lose the contents.
    let mut zeros = bytes[..before as usize].to_vec();
    zeros.resize(bytes.len(), 0);
    fs::write(&path, &zeros).expect("write");
    assert_eq!(open(dir.path()).0.last_pos(), whole);
    // Or the start of the page, with the frame.
    let mut half = bytes.clone();
    half[before as usize + 2000..].fill(0);
    fs::write(&path, &half).expect("write");
    assert_eq!(open(dir.path()).0.last_pos(), whole);
}

#[test]
fn room_for_records_is_part_of_no_record() {
    let dir = TempDir::new().expect("dir");
    let mut history = History::new();
    let start = history.pos;
    let (mut log, _) = open(dir.path());
    let mut expected = Vec::new();
    let mut grown = 0;
    for round in 0..80 {
        log.make_room();
        let image = history.next(1 + round % 3);
        let before = segment_paths(dir.path()).last().map(|path| fs::metadata(path).expect("metadata").len());
        log.append(&image).expect("append");
        let after = segment_paths(dir.path()).last().map(|path| fs::metadata(path).expect("metadata").len());
        grown += u32::from(before != after);
        log.sync().expect("sync");
        expected.push(image.bytes.to_vec());
        if round % 7 == 0 {
            log.make_room();
            let (again, opened) = open(dir.path());
            assert_eq!((opened, again.last_pos()), (Opened::default(), history.pos), "round {round}");
            log = again;
        }
    }
    assert!(segment_paths(dir.path()).len() > 1 && grown < 70, "records are written into the room");
    assert!(images_after(&log, start) == expected);
    for path in segment_paths(dir.path()).iter().rev().skip(1) {
        let mut last = [0; 8];
        let file = File::open(path).expect("open");
        file.read_exact_at(&mut last, file.metadata().expect("metadata").len() - 8).expect("read");
        assert_ne!(last, [0; 8], "a sealed segment ends with a record's checksum");
    }
    // A record torn in the room is still found.
    let path = segment_paths(dir.path()).pop().expect("segment");
    let end = log.size();
    log.make_room();
    let whole = history.pos;
    log.append(&history.next(1)).expect("append");
    let file = File::options().write(true).open(&path).expect("open");
    let len: u64 =
        segment_paths(dir.path()).iter().rev().skip(1).map(|path| fs::metadata(path).expect("metadata").len()).sum();
    file.write_all_at(&[0; 8], end.bytes - len + 3000).expect("write");
    let (log, opened) = open(dir.path());
    assert_eq!(log.last_pos(), whole);
    assert!(opened.torn_bytes > 0);
}

#[test]
fn a_segment_without_a_whole_record_is_removed() {
    let dir = TempDir::new().expect("dir");
    let mut history = History::new();
    let (log, _) = open(dir.path());
    let images = grow_to_segments(&log, &mut history, 2, dir.path());
    let last = segment_paths(dir.path()).pop().expect("segment");
    File::options().write(true).open(&last).expect("open").set_len(100).expect("cut");
    fs::write(dir.path().join("log/7-7.spool"), b"left over").expect("write");
    let (log, opened) = open(dir.path());
    assert_eq!(log.last_pos(), images[images.len() - 2].post());
    assert_eq!((opened.torn_bytes, segment_paths(dir.path()).len()), (76, 1));
}

#[test]
fn records_behind_a_damaged_one_are_kept_and_the_gap_is_said() {
    let dir = TempDir::new().expect("dir");
    let mut history = History::new();
    let (log, _) = open(dir.path());
    let images: Vec<Image> = (0..5).map(|_| history.next(1)).collect();
    for image in &images {
        log.append(image).expect("append");
    }
    let path = segment_paths(dir.path())[0].clone();
    let mut bytes = fs::read(&path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).expect("write");

    let (log, opened) = open(dir.path());
    assert_eq!(opened.gap_after, Some(images[1].post()));
    assert_eq!((log.last_pos(), log.first_pos()), (images[4].post(), Some(images[2].post())));
    assert_eq!(images_after(&log, images[2].post()).len(), 2);
    assert!(log.after(images[0].post()).expect("read").is_none(), "does not lead to the newest");

    assert_eq!(log.truncate_after(images[1].post().txid).expect("truncate"), images[1].post());
    assert_eq!(images_after(&log, images[0].post()).len(), 1);
    assert_eq!(open(dir.path()).1.gap_after, None);
}

#[test]
fn a_damaged_record_is_never_handed_out() {
    let dir = TempDir::new().expect("dir");
    let mut history = History::new();
    let (log, _) = open(dir.path());
    let images = grow_to_segments(&log, &mut history, 2, dir.path());
    let first = segment_paths(dir.path())[0].clone();
    let file = File::options().write(true).open(first).expect("open");
    file.write_all_at(&[0xff; 8], 5000).expect("damage");
    let (log, _) = open(dir.path());
    let error = log.read(images[0].header.min_txid).expect_err("damaged");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    assert!(log.read(images[1].header.min_txid).expect("read").is_some());
}

#[test]
fn a_snapshot_starts_history_over() {
    let dir = TempDir::new().expect("dir");
    let mut history = History::new();
    let (log, _) = open(dir.path());
    grow_to_segments(&log, &mut history, 2, dir.path());
    let before = history.pos;
    // Until it is published it may be taken back.
    let lost = History { builder: ImageBuilder::new(), random: fastrand::Rng::with_seed(2), pos: before }.snapshot();
    log.append(&lost).expect("append");
    assert_eq!(log.read(before.txid).expect("read").map(|record| record.post), Some(lost.post()));
    assert_eq!(log.truncate_after(before.txid).expect("truncate"), before);
    assert!(log.contains(before).expect("read"));
    log.append(&history.snapshot()).expect("append");
    log.drop_superseded();
    log.append(&history.next(1)).expect("append");
    for log in [log, open(dir.path()).0] {
        assert_eq!((log.first_pos(), log.last_pos()), (Some(Pos::ZERO), history.pos));
        assert_eq!(images_after(&log, Pos::ZERO).len(), 2);
        assert!(log.after(before).expect("read").is_none());
        assert_eq!(log.size().transactions, 2);
    }
    assert_eq!(segment_paths(dir.path()).len(), 1);
}

#[test]
fn a_spool_becomes_a_record_without_a_copy() {
    let dir = TempDir::new().expect("dir");
    let mut history = History::new();
    let (log, _) = open(dir.path());
    log.append(&history.next(1)).expect("append");
    let before = history.pos;

    drop(log.spool().expect("spool"));
    let mut spool = log.spool().expect("spool");
    let header = history.header(200);
    let mut encoder = Encoder::new(&mut spool, &header).expect("header");
    for pgno in 1..=200 {
        encoder.write_page(pgno, &[pgno as u8; PAGE]).expect("page");
    }
    encoder.finish(Checksum::EMPTY).expect("trailer");
    history.pos = log.adopt(spool).expect("adopt");
    log.append(&history.next(1)).expect("append behind it");

    for log in [log, open(dir.path()).0] {
        assert_eq!(log.last_pos(), history.pos);
        let records: Vec<_> =
            log.after(before).expect("read").expect("contained").map(|r| r.expect("record")).collect();
        assert_eq!(records.len(), 2);
        assert!(matches!(&records[0].body, RecordBody::File { len, .. } if *len > MEMORY_RECORD_BYTES_MAX));
        let summary = verify(&bytes_of(&records[0].body)[..]).expect("valid");
        assert_eq!((summary.header, summary.pages), (header, 200));
    }
    assert_eq!(segment_paths(dir.path()).len(), 3);

    let (log, _) = open(dir.path());
    let mut spool = log.spool().expect("spool");
    spool.write_all(b"not an LTX file").expect("write");
    assert_eq!(log.adopt(spool).expect_err("not whole").kind(), std::io::ErrorKind::InvalidInput);
    assert_eq!(segment_paths(dir.path()).len(), 3, "the spool is gone");
}

#[test]
fn a_record_that_does_not_continue_is_refused() {
    let dir = TempDir::new().expect("dir");
    let mut history = History::new();
    let (log, _) = open(dir.path());
    log.append(&history.next(1)).expect("append");
    let lost = history.next(1);
    let error = log.append(&history.next(1)).expect_err("a gap");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    log.append(&lost).expect("the one that follows");
}

#[test]
fn a_failed_append_leaves_the_log_as_it_was() {
    for (label, at_start) in [("log.append", false), ("log.append", true), ("log.create", true)] {
        let dir = TempDir::new().expect("dir");
        let mut history = History::new();
        let (log, _) = open(dir.path());
        if !at_start {
            log.append(&history.next(1)).expect("append");
        }
        let before = log.last_pos();
        let image = history.next(1);
        let injected = fault::on_this_thread(label, libc::ENOSPC, 1);
        assert_eq!(log.append(&image).expect_err("full").raw_os_error(), Some(libc::ENOSPC));
        drop(injected);
        assert_eq!(log.last_pos(), before);
        assert_eq!(open(dir.path()).0.last_pos(), before);
        log.append(&image).expect("there is room again");
        assert_eq!(open(dir.path()).0.last_pos(), history.pos);
    }
}

#[test]
fn sync_says_what_is_durable() {
    let dir = TempDir::new().expect("dir");
    let mut history = History::new();
    let (log, _) = open(dir.path());
    log.append(&history.next(1)).expect("append");
    assert_eq!(log.synced(), Txid::ZERO);
    for label in ["log.sync", "log.sync_dir"] {
        let injected = fault::on_this_thread(label, libc::EIO, 1);
        log.sync().expect_err("fails");
        drop(injected);
        assert_eq!(log.synced(), Txid::ZERO, "{label}");
    }
    log.sync().expect("sync");
    assert_eq!(log.synced(), history.pos.txid);
    let _injected = fault::on_this_thread("log.sync", libc::EIO, 1);
    log.sync().expect("nothing to do");
}

#[test]
fn truncation_takes_back_records_across_segments() {
    let dir = TempDir::new().expect("dir");
    let mut history = History::new();
    let (log, _) = open(dir.path());
    let images = grow_to_segments(&log, &mut history, 3, dir.path());
    assert_eq!(log.truncate_after(images[1].post().txid).expect("truncate"), images[1].post());
    assert_eq!(segment_paths(dir.path()).len(), 1);
    for log in [log, open(dir.path()).0] {
        assert_eq!((log.last_pos(), log.last_header()), (images[1].post(), Some(images[1].header)));
        assert!(log.read(images[2].header.min_txid).expect("read").is_none());
        assert!(log.read(images[1].header.min_txid).expect("read").is_some());
    }
    let (log, _) = open(dir.path());
    log.append(&images[2]).expect("append again");
    assert_eq!(log.truncate_after(Txid(1)).expect("truncate"), Pos::ZERO);
    assert_eq!((segment_paths(dir.path()).len(), log.first_pos()), (0, None));
    log.append(&images[0]).expect("a new start");
    assert_eq!(open(dir.path()).0.last_pos(), images[0].post());
}

#[test]
fn retention_drops_whole_old_segments_but_never_the_newest() {
    let dir = TempDir::new().expect("dir");
    let mut history = History::new();
    let start = history.pos;
    let (log, _) = open(dir.path());
    let images = grow_to_segments(&log, &mut history, 3, dir.path());
    assert_eq!(log.retain(0).expect("retain").transactions, 0);
    let in_first = log.state.lock().segments[1].first;
    let reaped = log.retain(in_first.timestamp_ms + 1).expect("retain");
    assert_eq!(reaped.transactions, in_first.min_txid.0 - images[0].header.min_txid.0);
    assert!(reaped.bytes >= SEGMENT_BYTES);
    assert_eq!(segment_paths(dir.path()).len(), 2);
    log.retain(u64::MAX).expect("retain");
    assert_eq!((segment_paths(dir.path()).len(), log.last_pos()), (1, history.pos));
    assert!(log.after(start).expect("read").is_none());
    assert!(log.after(images[images.len() - 2].post()).expect("read").is_some());
}

fn golden_copy(name: &str) -> TempDir {
    let dir = TempDir::new().expect("dir");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).join("ltx");
    fs::create_dir(dir.path().join("ltx")).expect("ltx");
    for entry in fs::read_dir(from).expect("golden").map(|entry| entry.expect("entry")) {
        fs::copy(entry.path(), dir.path().join("ltx").join(entry.file_name())).expect("copy");
    }
    dir
}

#[test]
fn the_files_of_litefs_are_the_beginning_of_the_log() {
    let dir = golden_copy("datadir-n1/dbs/wal.db");
    let (log, opened) = open(dir.path());
    assert_eq!(opened, Opened::default());
    let sixth = log.last_pos();
    assert_eq!((sixth.txid, log.first_pos(), log.size().transactions), (Txid(6), Some(Pos::ZERO), 6));
    let images = images_after(&log, Pos::ZERO);
    assert_eq!(images.len(), 6);
    assert_eq!(verify(&images[5][..]).expect("valid").post(), sixth);

    // The next transaction goes into a segment of ours, and both are one history.
    let mut history = History { pos: sixth, ..History::new() };
    log.append(&history.next(1)).expect("append");
    let (log, opened) = open(dir.path());
    assert_eq!((opened, log.last_pos()), (Opened::default(), history.pos));
    assert_eq!(images_after(&log, Pos::ZERO).len(), 7);
    log.retain(u64::MAX).expect("retain");
    assert_eq!(fs::read_dir(dir.path().join("ltx")).expect("ltx").count(), 0);
    assert_eq!(log.first_pos(), Some(sixth));
}

#[test]
fn damaged_or_unconnected_files_of_litefs_are_left_out() {
    let dir = golden_copy("datadir-n1/dbs/wal.db");
    let path = dir.path().join("ltx").join(format!("{}-{}.ltx", Txid(6), Txid(6)));
    let mut bytes = fs::read(&path).expect("read");
    bytes[5000] ^= 1;
    fs::write(&path, &bytes).expect("write");
    fs::remove_file(dir.path().join("ltx").join(format!("{}-{}.ltx", Txid(3), Txid(3)))).expect("remove");
    fs::write(dir.path().join("ltx/notes.txt"), b"hello").expect("write");
    let (log, opened) = open(dir.path());
    assert_eq!((log.last_pos().txid, opened.ignored_files), (Txid(5), 3));
    assert_eq!(log.first_pos().expect("first").txid, Txid(3));
    assert_eq!(log.truncate_after(Txid(4)).expect("truncate").txid, Txid(4));
    assert_eq!(open(dir.path()).0.last_pos().txid, Txid(4));
}
