//! A node with its mounts in a temporary directory, and clients in processes of their own.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use litefs::database::Health;
use litefs::store::{Mode, StoreConfig};
use litefs::{Database, DbName, Store};
use litefs_fuse::{HaltLocks, Mount, MountError, MountOptions, NodeInfo, Passthrough};
use parking_lot::Mutex;

use crate::client::Client;

/// Generous, for loaded machines.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the node says of itself, settable.
#[derive(Default)]
pub struct Info {
    pub primary: Mutex<Option<String>>,
    pub lag_ms: AtomicI64,
}

impl NodeInfo for Info {
    fn primary_hostname(&self) -> Option<String> {
        self.primary.lock().clone()
    }
    fn lag_ms(&self) -> i64 {
        self.lag_ms.load(Ordering::Relaxed)
    }
}

/// Records what reaches the HALT lock.
#[derive(Default)]
pub struct Halts {
    pub calls: Mutex<Vec<String>>,
    pub fail_release: std::sync::atomic::AtomicBool,
}

impl HaltLocks for Halts {
    fn acquire(&self, db: &DbName, _owner: u64, _wait: bool) -> io::Result<()> {
        self.calls.lock().push(format!("acquire {db}"));
        Ok(())
    }
    fn release(&self, db: &DbName, _owner: u64) -> io::Result<()> {
        self.calls.lock().push(format!("release {db}"));
        if self.fail_release.load(Ordering::Relaxed) { Err(io::Error::other("refused")) } else { Ok(()) }
    }
}

pub struct Node {
    pub info: Arc<Info>,
    pub halts: Arc<Halts>,
    pub store: Arc<Store>,
    pub dead: Receiver<String>,
    mount: Option<Mount>,
    dir: tempfile::TempDir,
}

impl Node {
    pub fn start() -> Self {
        Self::start_with(Passthrough::Auto)
    }

    pub fn start_with(passthrough: Passthrough) -> Self {
        Self::start_in(tempfile::tempdir().expect("temporary directory"), passthrough).expect("mount")
    }

    pub fn start_in(dir: tempfile::TempDir, passthrough: Passthrough) -> Result<Self, MountError> {
        // `RUST_LOG=debug` shows what the mount and the engine say.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let config = StoreConfig {
            data_dir: dir.path().join("data"),
            compress: true,
            retention: Duration::from_secs(600),
            retention_interval: Duration::from_secs(60),
            strict_verify: true,
            lost_and_found_bytes_max: 1 << 30,
        };
        std::fs::create_dir_all(&config.data_dir).expect("data directory");
        let store = Store::open(config).expect("open the store");
        store.set_mode(Mode::Primary, PATIENCE).expect("become primary");
        let (info, halts) = (Arc::new(Info::default()), Arc::new(Halts::default()));
        let (sender, dead) = unbounded();
        let options = MountOptions {
            dir: dir.path().join("mnt"),
            control_dir: dir.path().join("control"),
            allow_other: true,
            passthrough,
            on_dead: Arc::new(move |why| drop(sender.send(why))),
        };
        let mount = Mount::start(
            options,
            Arc::clone(&store),
            Arc::clone(&info) as Arc<dyn NodeInfo>,
            Arc::clone(&halts) as Arc<dyn HaltLocks>,
        )?;
        Ok(Self { info, halts, store, dead, mount: Some(mount), dir })
    }

    pub fn mount(&self) -> &Mount {
        self.mount.as_ref().expect("mounted")
    }

    pub fn dir(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    pub fn control_dir(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// A rusqlite client of a database.
    pub fn open(&self, name: &str) -> Client {
        Client::open(&self.path(name))
    }

    pub fn database(&self, name: &str) -> Arc<Database> {
        self.store.database(name).unwrap_or_else(|| panic!("{name} is a database"))
    }

    /// The engine's copy of a database, checked by SQLite, must come to hold what clients see: the same dump. Not at once: the last commit of
    /// a client that was killed before it told the wal-index shows with the next recovery, which may come between the two.
    pub fn verify(&self, name: &str) {
        eventually("the engine's copy holds what clients see", || {
            self.dump_of_copy(name) == sqlite3(&self.path(name), ".dump")
        });
    }

    fn dump_of_copy(&self, name: &str) -> String {
        let database = self.database(name);
        assert_eq!(database.health(), Health::Ok, "{name}");
        let mut copy = tempfile::NamedTempFile::new().expect("temporary file");
        let exported = database.export(&mut copy).expect("export");
        assert!(!exported.is_zero(), "{name}: nothing was captured");
        assert_eq!(sqlite3(copy.path(), "PRAGMA integrity_check"), "ok", "{name}: the export is damaged");
        sqlite3(copy.path(), ".dump")
    }

    /// Stops the node as a clean stop does; the directory stays.
    pub fn stop(mut self) -> tempfile::TempDir {
        self.store.close();
        self.mount.take().expect("mounted").unmount().expect("unmount");
        self.dir
    }
}

/// Runs the system's `sqlite3` and returns what it prints.
pub fn sqlite3(path: &Path, sql: &str) -> String {
    let output = try_sqlite3(path, sql);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "sqlite3 {sql:?}: {err}");
    out.trim_end().to_owned()
}

pub fn try_sqlite3(path: &Path, sql: &str) -> Output {
    run_sqlite3(path, sql, 60_000)
}

/// Without waiting for locks.
pub fn try_sqlite3_now(path: &Path, sql: &str) -> Output {
    run_sqlite3(path, sql, 0)
}

fn run_sqlite3(path: &Path, sql: &str, timeout_ms: u32) -> Output {
    Command::new("sqlite3")
        .args(["-batch", "-cmd", &format!(".timeout {timeout_ms}")])
        .arg(path)
        .arg(sql)
        .stdin(Stdio::null())
        .output()
        .expect("run sqlite3")
}

/// Starts a Python script; its arguments are in `sys.argv[1:]`.
pub fn python(script: &str, arguments: &[&Path]) -> Child {
    Command::new("python3")
        .arg("-c")
        .arg(script)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run python3")
}

/// Waits until a condition holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits for a child's end and wants success.
pub fn succeeds(child: Child) -> String {
    let output = child.wait_with_output().expect("wait");
    assert!(output.status.success(), "a client failed: {}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Reads one line that a child prints.
pub fn read_line(child: &mut Child) -> String {
    use std::io::Read;
    let stdout = child.stdout.as_mut().expect("piped");
    let (mut line, mut byte) = (Vec::new(), [0]);
    while stdout.read(&mut byte).expect("read from a client") == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8_lossy(&line).into_owned()
}
