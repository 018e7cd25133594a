//! Generated histories, restarts, power losses and damage against a model: a list of images.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tempfile::TempDir;

use super::tests::{History, PAGE, images_after, open, segment_paths};
use super::{Log, SEGMENT_BYTES};
use crate::ltx::Encoder;
use crate::{Checksum, Pos, Txid};

#[derive(Debug, Clone)]
enum Step {
    Append(u32),
    Snapshot,
    Spool(u32),
    Sync,
    /// Takes back that many records.
    TakeBack(usize),
    /// Drops what is older than the record at this place.
    Retain(prop::sample::Index),
    Restart,
    /// The end of the last segment is lost from here on, or reads as zeros, as far as it was not synced.
    PowerLoss {
        keep: prop::sample::Index,
        zeros: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1_u32..30).prop_map(Step::Append),
        1 => Just(Step::Snapshot),
        1 => (1_u32..100).prop_map(Step::Spool),
        2 => Just(Step::Sync),
        1 => (0_usize..6).prop_map(Step::TakeBack),
        1 => any::<prop::sample::Index>().prop_map(Step::Retain),
        1 => Just(Step::Restart),
        2 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(keep, zeros)| Step::PowerLoss { keep, zeros }),
    ]
}

/// What the log must hold: each record's positions and image.
#[derive(Default)]
struct Model {
    records: Vec<(Pos, Pos, Vec<u8>)>,
}

struct World {
    dir: TempDir,
    log: Arc<Log>,
    history: History,
    model: Model,
    /// Length of the last segment when it was last synced, and its name.
    synced: Option<(std::path::PathBuf, u64)>,
}

impl World {
    fn new() -> Self {
        let dir = TempDir::new().expect("dir");
        let log = open(dir.path()).0;
        Self { dir, log, history: History::new(), model: Model::default(), synced: None }
    }

    fn push(&mut self, pre: Pos, snapshot: bool, bytes: Vec<u8>) {
        if snapshot {
            self.model.records.clear();
        }
        self.model.records.push((pre, self.history.pos, bytes));
    }

    fn spool(&mut self, pages: u32) {
        let pre = self.history.pos;
        let mut image = Vec::new();
        let mut encoder = Encoder::new(&mut image, &self.history.header(pages)).expect("header");
        for pgno in 1..=pages {
            encoder.write_page(pgno, &[pgno as u8; PAGE]).expect("page");
        }
        encoder.finish(Checksum(Checksum::FLAG | u64::from(pages))).expect("trailer");
        let mut spool = self.log.spool().expect("spool");
        std::io::Write::write_all(&mut spool, &image).expect("write");
        self.history.pos = self.log.adopt(spool).expect("adopt");
        self.push(pre, false, image);
    }

    fn note_synced(&mut self) {
        self.synced = segment_paths(self.dir.path()).pop().map(|path| {
            let len = fs::metadata(&path).expect("metadata").len();
            (path, len)
        });
    }

    fn restart(&mut self) {
        self.log = open(self.dir.path()).0;
    }

    fn power_loss(&mut self, keep: &prop::sample::Index, zeros: bool) {
        let Some(path) = segment_paths(self.dir.path()).pop() else { return };
        let len = fs::metadata(&path).expect("metadata").len();
        let safe = match &self.synced {
            Some((synced, len)) if *synced == path => *len,
            _ => 0,
        };
        let kept = safe + keep.index(usize::try_from(len - safe).expect("fits") + 1) as u64;
        let synced = self.log.synced();
        let file = File::options().write(true).open(&path).expect("open");
        if zeros {
            file.write_all_at(&vec![0; usize::try_from(len - kept).expect("fits")], kept).expect("write");
        } else {
            file.set_len(kept).expect("cut");
        }
        self.restart();
        let last = self.log.last_pos();
        assert!(last.txid >= synced, "a synced record is lost: {last} after {synced}");
        let at = self.model.records.iter().position(|(_, post, _)| *post == last);
        self.model.records.truncate(at.map_or(0, |at| at + 1));
        self.history.pos = match self.model.records.last() {
            Some((_, post, _)) => *post,
            None => History::new().pos,
        };
        self.note_synced();
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Append(pages) => {
                let pre = self.history.pos;
                let image = self.history.next(*pages);
                self.log.append(&image).expect("append");
                self.push(pre, false, image.bytes.to_vec());
            }
            Step::Snapshot => {
                let image = self.history.snapshot();
                self.log.append(&image).expect("append");
                self.log.drop_superseded();
                self.push(Pos::ZERO, true, image.bytes.to_vec());
            }
            Step::Spool(pages) => self.spool(*pages),
            Step::Sync => {
                self.log.sync().expect("sync");
            }
            Step::TakeBack(count) => {
                let kept = self.model.records.len().saturating_sub(*count);
                self.model.records.truncate(kept);
                let pos = self.model.records.last().map_or(Pos::ZERO, |(_, post, _)| *post);
                assert_eq!(self.log.truncate_after(pos.txid).expect("truncate"), pos);
                self.history.pos = if pos.is_zero() { History::new().pos } else { pos };
            }
            Step::Retain(at) => {
                if self.model.records.is_empty() {
                    return;
                }
                let record = &self.model.records[at.index(self.model.records.len())];
                self.log.retain(record.1.txid.0 * 1000).expect("retain");
                // Whole segments go; every record from the given one on stays.
                let first = self.log.first_pos().expect("not empty");
                let from = self.model.records.iter().position(|(pre, ..)| *pre == first).expect("a boundary");
                assert!(from <= self.model.records.iter().position(|(_, post, _)| *post == record.1).expect("there"));
                self.model.records.drain(..from);
            }
            Step::Restart => self.restart(),
            Step::PowerLoss { keep, zeros } => self.power_loss(keep, *zeros),
        }
    }

    fn check(&self, at: &prop::sample::Index) {
        let records = &self.model.records;
        assert_eq!(self.log.last_pos(), records.last().map_or(Pos::ZERO, |(_, post, _)| *post));
        assert_eq!(self.log.first_pos(), records.first().map(|(pre, ..)| *pre));
        if records.is_empty() {
            return;
        }
        let at = at.index(records.len());
        let expected: Vec<Vec<u8>> = records[at..].iter().map(|(_, _, bytes)| bytes.clone()).collect();
        assert!(images_after(&self.log, records[at].0) == expected, "records from {at} on");
    }
}

/// The same cases in every run, unless `LITEFS_TEST_SEED` asks for others.
fn seed() -> RngSeed {
    RngSeed::Fixed(std::env::var("LITEFS_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        rng_seed: seed(),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_log_is_what_was_appended(steps in prop::collection::vec((step(), any::<prop::sample::Index>()), 1..40)) {
        let mut world = World::new();
        for (step, at) in &steps {
            world.take(step);
            if world.log.synced() == world.log.last_pos().txid {
                // Also a step that did not ask for it may have synced.
                world.note_synced();
            }
            world.check(at);
        }
        world.restart();
        for (_, at) in &steps {
            world.check(at);
        }
    }

    #[test]
    fn damaged_segments_never_panic_nor_give_a_false_record(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        arbitrary: Vec<u8>,
    ) {
        let mut world = World::new();
        for _ in 0..12 {
            world.take(&Step::Append(8));
        }
        assert!(12 * 8 * PAGE as u64 > SEGMENT_BYTES, "more than one segment");
        for (at, byte) in &damage {
            let paths = segment_paths(world.dir.path());
            let path = at.get(&paths);
            let len = usize::try_from(fs::metadata(path).expect("metadata").len()).expect("fits");
            File::options().write(true).open(path).expect("open").write_all_at(&[*byte], at.index(len) as u64).expect("write");
        }
        fs::write(world.dir.path().join("log/ffffffffffffff00.seg"), &arbitrary).expect("write");
        let log = open(world.dir.path()).0;
        for txid in 1..=30 {
            if let Ok(Some(record)) = log.read(Txid(txid)) {
                let written = world.model.records.iter().find(|(_, post, _)| *post == record.post).expect("a record that was written");
                prop_assert!(body(&record) == written.2);
            }
        }
    }
}

fn body(record: &crate::database::Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut record.body.reader(), &mut bytes).expect("read");
    bytes
}

#[test]
fn a_log_opened_to_look_at_changes_nothing() {
    let mut world = World::new();
    for _ in 0..12 {
        world.take(&Step::Append(8));
    }
    let last = segment_paths(world.dir.path()).pop().expect("segment");
    let len = fs::metadata(&last).expect("metadata").len();
    File::options().write(true).open(&last).expect("open").set_len(len - 7).expect("cut");
    fs::write(world.dir.path().join("log/1-1.spool"), b"x").expect("write");
    let before = snapshot_of(world.dir.path());
    let (log, opened) = Log::open_read_only(world.dir.path()).expect("open");
    assert!(opened.torn_bytes > 0);
    assert_eq!(log.last_pos(), world.model.records[10].1);
    assert_eq!(snapshot_of(world.dir.path()), before);
    let empty = TempDir::new().expect("dir");
    assert_eq!(Log::open_read_only(empty.path()).expect("open").0.last_pos(), Pos::ZERO);
}

fn snapshot_of(dir: &Path) -> Vec<(std::path::PathBuf, u64)> {
    segment_paths(dir).into_iter().map(|path| (path.clone(), fs::metadata(path).expect("metadata").len())).collect()
}
