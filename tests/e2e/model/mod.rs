//! The model test, by seed: random writers and readers in processes of their own, killed and restarted nodes, in every journal
//! mode and page size. Nothing acknowledged is lost; every record leads to a database that a writer saw; readers, here and on
//! the replica, see no other; all nodes hold the same bytes in the end.
//!
//! `LITEFS_TEST_SEEDS=a..b` runs other seeds than the default.

mod replay;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use litefs_tests::sqlite::cli;
use litefs_tests::{Node, NodeConfig, eventually};

use replay::Replay;

const ROUNDS: u64 = 3;
const WRITERS_MAX: u64 = 3;
const MODES: [&str; 10] = ["WAL", "WAL", "WAL", "WAL", "DELETE", "DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"];

fn seeds() -> std::ops::Range<u64> {
    let text = std::env::var("LITEFS_TEST_SEEDS").unwrap_or_default();
    let range = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    range.unwrap_or(1..4)
}

/// How a round ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The node is killed, then its clients.
    KillNode,
    /// The clients are killed.
    KillClients,
    /// The clients close their connections.
    Close,
    /// They do, and the node stops and starts again.
    Restart,
    /// They do, and the node is killed.
    CloseAndKillNode,
}

/// What a round does.
#[derive(Debug, Clone, Copy)]
struct Plan {
    mode: &'static str,
    exclusive: bool,
    end: End,
    writers: u64,
    readers: u64,
}

impl Plan {
    fn draw(random: &mut fastrand::Rng) -> Self {
        let mode = MODES[random.usize(..MODES.len())];
        let exclusive = random.u32(..5) == 0;
        let mut end = [
            End::KillNode,
            End::KillNode,
            End::KillClients,
            End::KillClients,
            End::Close,
            End::Restart,
            End::CloseAndKillNode,
        ][random.usize(..7)];
        // A client that dies in mid-transaction leaves a corrupt database on any disk.
        if matches!(mode, "MEMORY" | "OFF") && matches!(end, End::KillNode | End::KillClients) {
            end = End::CloseAndKillNode;
        }
        let (writers, readers) = if exclusive { (1, 0) } else { (1 + random.u64(..WRITERS_MAX), random.u64(..3)) };
        Self { mode, exclusive, end, writers, readers }
    }
}

/// A client process; what it prints goes to a file.
struct Client {
    child: Child,
    output: PathBuf,
}

impl Client {
    fn start(node: &Node, role: &str, who: u64, seed: u64, options: &str, folder: &Path) -> Self {
        let output = folder.join(format!("{role}-{who}"));
        let child = Command::new("python3")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/model/client.py"))
            .arg(role)
            .arg(node.db("a.db"))
            .args([&who.to_string(), &seed.to_string(), options])
            .arg(folder.join("stop"))
            .stdin(Stdio::null())
            .stdout(File::create(&output).expect("create"))
            .stderr(File::create(output.with_extension("err")).expect("create"))
            .spawn()
            .expect("start a client");
        Self { child, output }
    }

    /// The last number a writer was told is committed.
    fn acknowledged(&self) -> u64 {
        let text = fs::read_to_string(&self.output).unwrap_or_default();
        text.lines().rev().find_map(|line| line.parse().ok()).unwrap_or(0)
    }

    /// Waits for its end, after killing it if so wanted; it must not have seen anything wrong.
    fn end(&mut self, kill: bool, node_killed: bool) {
        if kill {
            let _ = self.child.kill();
        }
        let status = eventually("the client ends", || self.child.try_wait().ok().flatten());
        let text = fs::read_to_string(&self.output).unwrap_or_default();
        assert!(!text.contains("VIOLATION"), "{}: {text}", self.output.display());
        let errors = fs::read_to_string(self.output.with_extension("err")).unwrap_or_default();
        assert!(kill || status.success(), "{}: {status}: {errors}", self.output.display());
        assert!(node_killed || !text.contains("ENDED"), "{}: {text}", self.output.display());
    }
}

/// One seed's state.
struct Run {
    seed: u64,
    random: fastrand::Rng,
    primary: Node,
    replica: Node,
    /// By writer, what it was told last.
    acknowledged: Vec<u64>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut primary = Node::new(NodeConfig::default());
        let mut replica = Node::new(NodeConfig { lease: primary.replica_lease(), ..NodeConfig::default() });
        primary.launch();
        replica.launch();
        primary.wait_ready();
        replica.wait_ready();
        let page_size = 512 << (seed % 8);
        let vacuum = random.u32(..3);
        let schema = format!(
            "PRAGMA page_size={page_size}; PRAGMA auto_vacuum={vacuum}; CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB);
             CREATE INDEX i ON t(length(x), id); CREATE TABLE acked(writer INTEGER PRIMARY KEY, number INTEGER);
             CREATE TABLE state(one INTEGER PRIMARY KEY, serial INTEGER, digest INTEGER); INSERT INTO state VALUES(1, 0, 0)"
        );
        cli(&primary.db("a.db"), &schema).expect("create");
        Self { seed, random, primary, replica, acknowledged: Vec::new() }
    }

    /// Switches the journal mode, now and then the page size.
    fn prepare(&mut self, plan: Plan) {
        let db = self.primary.db("a.db");
        let switch = format!("PRAGMA journal_mode={}", plan.mode);
        // Leaving WAL mode does not wait, neither for a client nor for a checkpoint of the node's.
        eventually("the mode is switched", || {
            cli(&db, &switch).is_ok_and(|mode| mode.eq_ignore_ascii_case(plan.mode)).then_some(())
        });
        if !matches!(plan.mode, "WAL" | "OFF") && self.random.u32(..4) == 0 {
            let page_size = 512 << self.random.u32(..8);
            println!("page size {page_size}");
            cli(&db, &format!("PRAGMA page_size={page_size}; VACUUM")).expect("another page size");
        }
    }

    fn round(&mut self, number: u64, plan: Plan, replay: &Replay) {
        let folder = self.primary.folder().join(format!("round-{number}"));
        fs::create_dir(&folder).expect("create");
        replay.allow_merges(matches!(plan.mode, "MEMORY" | "OFF"));
        self.prepare(plan);
        let mut options = plan.mode.to_owned();
        if plan.exclusive {
            options.push_str(",exclusive");
        }
        if plan.end == End::KillNode {
            options.push_str(",rewinds");
        }
        let first = self.acknowledged.len() as u64;
        let seed = self.seed * 1000 + number * 100;
        let start = |who| Client::start(&self.primary, "write", who, seed + who, &options, &folder);
        let mut writers: Vec<Client> = (first..first + plan.writers).map(start).collect();
        let start = |who| Client::start(&self.primary, "read", who, seed + who, "-", &folder);
        let mut readers: Vec<Client> = (10..10 + plan.readers).map(start).collect();
        let mut remote = Client::start(&self.replica, "read", 20, seed, "-", &folder);
        let enough = 5 + self.random.u64(..30);
        let begun = Instant::now();
        eventually("the writers write", || {
            let slow = begun.elapsed() > Duration::from_secs(2);
            let total: u64 = writers.iter().map(Client::acknowledged).sum();
            (total >= enough || (slow && total > 0)).then_some(())
        });
        let node_killed = plan.end == End::KillNode;
        let killed = node_killed || plan.end == End::KillClients;
        if node_killed {
            self.primary.kill();
        } else if !killed {
            File::create(folder.join("stop")).expect("create");
        }
        for client in writers.iter_mut().chain(&mut readers) {
            client.end(killed, node_killed);
        }
        File::create(folder.join("stop")).expect("create");
        remote.end(false, false);
        self.acknowledged.extend(writers.iter().map(Client::acknowledged));
        match plan.end {
            End::KillClients | End::Close => return,
            End::KillNode => {}
            End::CloseAndKillNode => self.primary.kill(),
            End::Restart => drop(self.primary.stop()),
        }
        self.primary.launch();
        self.primary.wait_ready();
    }

    fn check_acknowledged(&self, plan: Plan) {
        for (writer, told) in self.acknowledged.iter().enumerate() {
            let sql = format!("SELECT coalesce(max(number), 0) FROM acked WHERE writer = {writer}");
            let last: u64 = cli(&self.primary.db("a.db"), &sql).expect("read").parse().expect("a number");
            // One more may have been committed without anybody having been told.
            assert!(last == *told || last == told + 1, "{plan:?}: writer {writer}: {last}, told {told}");
        }
    }

    fn run(mut self) {
        let (log, pos) = (self.primary.data().join("dbs/a.db"), self.primary.db("a.db-pos"));
        let replay = Replay::start(log, pos, self.primary.folder());
        for number in 0..ROUNDS {
            let plan = Plan::draw(&mut self.random);
            println!("seed {} round {number}: {plan:?}", self.seed);
            self.round(number, plan, &replay);
            self.check_acknowledged(plan);
            replay.wait(&self.primary.pos("a.db").unwrap_or_default());
        }
        assert_eq!(cli(&self.primary.db("a.db"), "PRAGMA integrity_check").as_deref(), Ok("ok"));
        self.replica.wait_same_pos(&self.primary, "a.db");
        let export = |node: &Node| node.get("/export?name=a.db").expect("export").body;
        let bytes = export(&self.primary);
        let (pos, copy, records) = replay.finish();
        assert_eq!(self.primary.pos("a.db"), Some(pos.to_string()));
        assert_same(&copy, &bytes, "the primary and the copy made of its records");
        assert_same(&bytes, &export(&self.replica), "the replica and the primary");
        println!("seed {}: {records} records", self.seed);
    }
}

/// Two database files hold the same bytes; otherwise names the pages that differ.
fn assert_same(one: &[u8], other: &[u8], what: &str) {
    let page_size = match u16::from_be_bytes([one[16], one[17]]) {
        1 => 65536,
        size => usize::from(size),
    };
    let pages = one.chunks(page_size).zip(other.chunks(page_size)).enumerate();
    let differ: Vec<usize> = pages.filter(|(_, (one, other))| one != other).map(|(index, _)| index + 1).collect();
    assert!(
        one == other,
        "{what}: {} and {} bytes, pages of {page_size} that differ: {differ:?}",
        one.len(),
        other.len()
    );
}

#[test]
fn nothing_acknowledged_is_lost_and_every_record_is_what_a_writer_saw() {
    for seed in seeds() {
        let begun = Instant::now();
        Run::new(seed).run();
        println!("seed {seed} took {:?}", begun.elapsed());
    }
}
