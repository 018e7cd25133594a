//! WALs with frames that only the wal-index vouches for.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use proptest::prelude::*;

use super::clean;
use super::tests::{Node, insert, with_three_commits_in_the_wal};
use crate::Txid;
use crate::database::wal_capture::Generation;
use crate::kernel::FileKind;
use crate::sqlite::wal::{FRAME_HEADER_LEN, FrameHeader, WalHeader, frame_offset};

const BOTH_HEADERS: usize = 96;
/// Where the page number of frame 1 stands in the wal-index.
const PAGES_AT: usize = 136;

fn open(node: &Node, kind: FileKind) -> File {
    File::options().read(true).write(true).open(node.path(kind)).expect("open")
}

/// The frames that end a transaction.
fn commits(wal: &File) -> Vec<u32> {
    let page_size = WalHeader::read(wal).expect("read").expect("header").page_size;
    let mut bytes = [0; FRAME_HEADER_LEN];
    let mut frames = 1..;
    let mut commits = Vec::new();
    while let Some(frame) =
        frames.next().filter(|frame| wal.read_exact_at(&mut bytes, frame_offset(*frame, page_size)).is_ok())
    {
        if FrameHeader::parse(&bytes).commit != 0 {
            commits.push(frame);
        }
    }
    commits
}

/// Takes salts and checksums away, as SQLite before 3.51 forgets to write them.
fn strip(node: &Node, frames: impl IntoIterator<Item = u32>) {
    let wal = open(node, FileKind::Wal);
    for frame in frames {
        wal.write_all_at(&[0; 16], frame_offset(frame, 4096) + 8).expect("write");
    }
}

/// A copy whose second commit begins with a frame without salts and checksums.
pub(super) fn without_checksums(crashed: &Node) -> Node {
    let node = crashed.crash();
    let first = commits(&open(&node, FileKind::Wal))[0];
    strip(&node, [first + 1]);
    node
}

fn another_boot(node: &Node) {
    fs::write(node.dir.path().join("bootid"), "7e6a1c1e-7b0b-4a8e-8b1e-0123456789ab\n").expect("write");
}

/// Position and rows after a start.
fn after_start(node: &Node) -> (u64, i64) {
    let started = node.start();
    let found = (started.database.pos().txid.0, started.rows());
    assert!(!node.path(FileKind::Wal).exists() && !node.path(FileKind::Shm).exists());
    found
}

#[test]
fn what_only_the_wal_index_vouches_for_is_not_lost() {
    let (_, crashed) = with_three_commits_in_the_wal();
    let whole = crashed.crash().restart();
    let node = without_checksums(&crashed);
    assert_eq!(node.restart(), whole);
    assert_eq!(node.restart(), whole, "and not recorded twice");

    // All of them.
    let node = crashed.crash();
    let last = *commits(&open(&node, FileKind::Wal)).last().expect("commits");
    strip(&node, 1..=last);
    assert_eq!(node.restart(), whole);
}

#[test]
fn after_another_boot_the_checksums_alone_count() {
    let (_, crashed) = with_three_commits_in_the_wal();
    let node = without_checksums(&crashed);
    another_boot(&node);
    assert_eq!(after_start(&node), (2, 11));
    let node = without_checksums(&crashed);
    fs::remove_file(node.dir.path().join("bootid")).expect("remove");
    assert_eq!(after_start(&node), (2, 11));
    assert!(node.dir.path().join("bootid").exists(), "from here on it is this boot");
}

#[test]
fn a_wal_that_sqlite_3_40_wrote_is_read_to_its_end() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/sqlite-3.40-rollback-to");
    for (same_boot, rows) in [(true, 4), (false, 3)] {
        let node = Node::new("wal");
        fs::remove_file(node.path(FileKind::Database)).expect("remove");
        node.start();
        for (name, kind) in [("database", FileKind::Database), ("wal", FileKind::Wal), ("shm", FileKind::Shm)] {
            fs::copy(golden.join(name), node.path(kind)).expect("copy");
        }
        if !same_boot {
            another_boot(&node);
        }
        assert_eq!(after_start(&node), (1, rows));
    }
}

#[test]
fn a_commit_that_its_writer_had_not_entered_yet_is_kept_as_well() {
    let node = Node::new("wal");
    node.restart();
    let client = node.client();
    insert(&client, 2);
    let before = node.crash();
    insert(&client, 1);
    let crashed = without_checksums(&node);
    fs::copy(before.path(FileKind::Shm), crashed.path(FileKind::Shm)).expect("copy");
    assert_eq!(after_start(&crashed), (4, 13));
}

#[test]
fn a_start_that_was_killed_while_it_completed_the_checksums_is_repeated() {
    let (_, crashed) = with_three_commits_in_the_wal();
    let whole = crashed.crash().restart();
    let node = crashed.crash();
    let last = *commits(&open(&node, FileKind::Wal)).last().expect("commits");
    for done in 1..last {
        let node = crashed.crash();
        // What was stripped from the first frames has been put back.
        strip(&node, done + 1..=last);
        assert_eq!(node.restart(), whole, "{done} of {last}");
    }
}

#[test]
fn frames_of_a_former_generation_are_not_believed() {
    let (_, crashed) = with_three_commits_in_the_wal();
    let node = without_checksums(&crashed);
    let last = *commits(&open(&node, FileKind::Wal)).last().expect("commits");
    open(&node, FileKind::Wal).write_all_at(&[7; 8], frame_offset(last, 4096) + 8).expect("write");
    assert_eq!(after_start(&node), (2, 11));

    let node = without_checksums(&crashed);
    let wal = open(&node, FileKind::Wal);
    wal.set_len(wal.metadata().expect("metadata").len() - 1).expect("cut");
    assert_eq!(after_start(&node), (2, 11));
}

#[test]
fn page_checksums_are_not_kept_beside_a_wal_that_cannot_be_read_back() {
    let (_, crashed) = with_three_commits_in_the_wal();
    let node = crashed.crash();
    let last = *commits(&open(&node, FileKind::Wal)).last().expect("commits");
    let started = node.start();
    fs::copy(crashed.path(FileKind::Wal), node.path(FileKind::Wal)).expect("copy");
    strip(&node, [1]);
    let salt = WalHeader::read(&open(&node, FileKind::Wal)).expect("read").expect("header").salt;
    let mut state = started.database.capture.lock();
    state.wal.current = Generation { salt, frame: last, ..Generation::default() };
    clean::save(&started.database.files, &state).expect("looks");
    assert!(!node.db_dir().join("checksums").exists());
    // Nothing is wrong with one of which nothing is captured.
    state.wal.current = Generation::default();
    clean::save(&started.database.files, &state).expect("saves");
    assert!(node.db_dir().join("checksums").exists());
    assert_eq!(state.pos.txid, Txid(4));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_damaged_wal_index_is_never_believed(at in any::<prop::sample::Index>(), flip in 1_u8.., cut in 0_u64..16_384) {
        let (_, crashed) = with_three_commits_in_the_wal();
        let node = without_checksums(&crashed);
        let frames = *commits(&open(&node, FileKind::Wal)).last().expect("commits") as usize;
        // Whatever counts: the headers, and the page number of every frame.
        let at = at.index(BOTH_HEADERS + frames * 4);
        let at = if at < BOTH_HEADERS { at } else { at - BOTH_HEADERS + PAGES_AT };
        let shm = open(&node, FileKind::Shm);
        let mut byte = [0];
        shm.read_exact_at(&mut byte, at as u64).expect("read");
        shm.write_all_at(&[byte[0] ^ flip], at as u64).expect("write");
        prop_assert_eq!(after_start(&node), (2, 11));

        let node = without_checksums(&crashed);
        open(&node, FileKind::Shm).set_len(cut).expect("cut");
        prop_assert_eq!(after_start(&node), (2, 11));
    }
}

#[test]
fn where_the_last_client_kept_its_index_the_frames_behind_a_gap_count_by_their_generation() {
    let (_, crashed) = with_three_commits_in_the_wal();
    let whole = crashed.crash().restart();
    for index_left in [false, true] {
        let node = without_checksums(&crashed);
        if index_left {
            // Made invalid when the commits of an exclusive client were captured.
            open(&node, FileKind::Shm).write_all_at(&[0; BOTH_HEADERS], 0).expect("write");
        } else {
            fs::remove_file(node.path(FileKind::Shm)).expect("remove");
        }
        assert_eq!(node.restart(), whole);
        let node = without_checksums(&crashed);
        fs::remove_file(node.path(FileKind::Shm)).expect("remove");
        another_boot(&node);
        assert_eq!(after_start(&node), (2, 11), "after a power loss the chain alone counts");
    }
}
