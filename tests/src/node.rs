//! One real node: the `litefs` binary with a configuration in a temporary folder.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::http::{self, Answer};
use crate::network::Host;
use crate::wait::{PATIENCE, eventually};

/// The binary under test: `LITEFS_BIN`, or the one cargo builds beside the tests (built if need be).
///
/// # Panics
/// When it cannot be built.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("LITEFS_BIN") {
            return PathBuf::from(path);
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo).args(["build", "--quiet", "--workspace", "--bin", "litefs"]).status();
        assert!(built.is_ok_and(|status| status.success()), "cargo build of the binary failed");
        let mut path = std::env::current_exe().unwrap_or_default();
        // <target>/debug/deps/e2e-…
        path.pop();
        path.pop();
        path.join("litefs")
    })
}

/// A port nobody listens on, below the range that outgoing connections use. Not given out twice by this process.
///
/// # Panics
/// When none is found.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..1000 {
        let port = fastrand::u16(12_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && given.insert(port) {
            return port;
        }
    }
    panic!("no free port between 12000 and 32000")
}

/// How the node learns its directories.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Start {
    /// A configuration file.
    #[default]
    File,
    /// Flags only, and no file anywhere.
    Flags,
}

/// What a test wants of a node beside the defaults.
#[derive(Debug, Clone, Default)]
pub struct NodeConfig {
    /// Text for the `lease:` section, indented by two; empty: static, primary.
    pub lease: String,
    /// Whole sections, as in `litefs.yml`.
    pub extra: String,
    /// More lines of the `data:` section, indented by two.
    pub data: String,
    /// More lines of the `fuse:` section, indented by two.
    pub fuse: String,
    /// A file, or flags.
    pub start: Start,
    /// Arguments behind `litefs mount -config …`.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// Where it runs; `None`: here, on 127.0.0.1.
    pub host: Option<Arc<Host>>,
}

/// A node and its folder. Killed and unmounted when dropped; its log is printed when the test failed.
#[derive(Debug)]
pub struct Node {
    folder: TempDir,
    config: NodeConfig,
    port: u16,
    data: PathBuf,
    child: Option<Child>,
    starts: u32,
}

impl Node {
    /// Starts a node with `config` and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready.
    #[must_use]
    pub fn start(config: NodeConfig) -> Self {
        let mut node = Self::new(config);
        node.launch();
        node.wait_ready();
        node
    }

    /// The only node of its own: primary by a static lease.
    #[must_use]
    pub fn primary() -> Self {
        Self::start(NodeConfig::default())
    }

    /// A replica of `primary` by a static lease.
    #[must_use]
    pub fn replica_of(primary: &Self) -> Self {
        Self::start(NodeConfig { lease: primary.replica_lease(), ..NodeConfig::default() })
    }

    /// The `lease:` lines of a replica of this node.
    #[must_use]
    pub fn replica_lease(&self) -> String {
        format!("  type: static\n  candidate: false\n  hostname: localhost\n  advertise-url: {}\n", self.url())
    }

    /// A node that is not started yet.
    ///
    /// # Panics
    /// When the machine has no room for its folder.
    #[must_use]
    pub fn new(config: NodeConfig) -> Self {
        let folder = tempfile::Builder::new().prefix("litefs-e2e-").tempdir();
        let folder = folder.expect("create a folder");
        let data = folder.path().join("data");
        Self { folder, data, config, port: free_port(), child: None, starts: 0 }
    }

    /// The folder of this node.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The mount directory.
    #[must_use]
    pub fn mount(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    /// Makes the directory below the mount one in which nothing can be created: a client that has opened the database just before
    /// the mount goes would make a WAL there, and write to it.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn guard_mount_dir(&self) {
        fs::create_dir_all(self.mount()).expect("create the mount directory");
        let flags = rustix::mount::MountFlags::RDONLY;
        rustix::mount::mount("tmpfs", self.mount(), "tmpfs", flags, None).expect("mount a guard");
    }

    /// Where the node mounts the HALT locks.
    fn control_dir(&self) -> PathBuf {
        let name = self.mount().to_string_lossy().trim_start_matches('/').replace('/', "-");
        Path::new("/run/litefs").join(name)
    }

    /// A file in the mount directory.
    #[must_use]
    pub fn db(&self, name: &str) -> PathBuf {
        self.mount().join(name)
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.data.clone()
    }

    /// Uses the data directory of another node.
    pub fn use_data_of(&mut self, other: &Self) {
        self.data = other.data();
    }

    /// Uses this port for the API.
    pub fn use_port(&mut self, port: u16) {
        self.port = port;
    }

    /// The API's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}:{}", self.address(), self.port)
    }

    fn address(&self) -> String {
        self.config.host.as_ref().map_or_else(|| "127.0.0.1".to_owned(), |host| host.address().to_string())
    }

    /// Changes the configuration for the next start.
    pub fn config_mut(&mut self) -> &mut NodeConfig {
        &mut self.config
    }

    /// Where the node's lines go.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Everything the node has printed in all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.log_path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The lines of the current start.
    #[must_use]
    pub fn log_of_this_start(&self) -> String {
        let log = self.log();
        log.rsplit_once(&start_mark(self.starts)).map_or(String::new(), |(_, rest)| rest.to_owned())
    }

    fn config_text(&self) -> String {
        let NodeConfig { lease, extra, data, fuse, .. } = &self.config;
        let lease = if lease.is_empty() { "  type: static\n  hostname: localhost\n" } else { lease };
        format!(
            "fuse:\n  dir: {}\n{fuse}data:\n  dir: {}\n{data}http:\n  addr: {}:{}\nlog:\n  timestamp: true\n  debug: true\nlease:\n{lease}{extra}",
            self.mount().display(),
            self.data().display(),
            self.address(),
            self.port,
        )
    }

    /// Starts the process and returns at once.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn launch(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        self.child = Some(self.try_launch().expect("start the node"));
    }

    fn try_launch(&mut self) -> std::io::Result<Child> {
        self.starts += 1;
        let mut log = File::options().create(true).append(true).open(self.log_path())?;
        std::io::Write::write_all(&mut log, start_mark(self.starts).as_bytes())?;
        let mut command = Command::new(binary());
        command.arg("mount");
        if self.config.start == Start::File {
            let config = self.folder.path().join("litefs.yml");
            fs::write(&config, self.config_text())?;
            command.arg("-config").arg(config);
        } else {
            command.arg("-fuse.dir").arg(self.mount()).arg("-data.dir").arg(self.data());
            command.arg(format!("-http.addr=127.0.0.1:{}", self.port)).env("HOME", self.folder.path());
        }
        command.args(&self.config.args);
        command.envs(self.config.env.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.folder.path()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if let Some(host) = &self.config.host {
            host.run_here(&mut command);
        }
        // SAFETY: one system call between fork and exec. Under nohup signals are ignored, and children inherit that.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGHUP, libc::SIG_DFL);
                Ok(())
            });
        }
        command.spawn()
    }

    /// Waits until the node says that it is ready.
    ///
    /// # Panics
    /// When it ends before, or takes too long.
    pub fn wait_ready(&mut self) {
        self.wait_log("node is ready");
    }

    /// Waits until the current start has printed `text`.
    ///
    /// # Panics
    /// When the node ends before, or takes too long.
    pub fn wait_log(&mut self, text: &str) {
        let begun = Instant::now();
        while !self.log_of_this_start().contains(text) {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                // It may have said it with its last breath.
                assert!(self.log_of_this_start().contains(text), "the node ended ({status}) before it said {text:?}");
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "the node did not say {text:?} within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops and starts it again.
    pub fn restart(&mut self) {
        self.stop();
        self.launch();
        self.wait_ready();
    }

    /// The supervisor's process ID.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> Pid {
        let pid = self.child.as_ref().and_then(|child| Pid::from_raw(child.id().cast_signed()));
        pid.expect("the node runs")
    }

    /// The worker's process ID, from the kernel's list of the supervisor's children.
    #[must_use]
    pub fn worker_pid(&self) -> Option<Pid> {
        let pid = self.pid().as_raw_nonzero();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_whitespace().filter_map(|child| child.parse().ok()).find_map(|child| {
            let line = fs::read(format!("/proc/{child}/cmdline")).ok()?;
            line.starts_with(b"litefs-worker\0").then(|| Pid::from_raw(child)).flatten()
        })
    }

    /// Sends a signal to the supervisor.
    pub fn signal(&self, signal: Signal) {
        let _ = rustix::process::kill_process(self.pid(), signal);
    }

    /// Waits until the process has ended.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait_exit(&mut self) -> ExitStatus {
        let Some(mut child) = self.child.take() else { return ExitStatus::from_raw(0) };
        eventually("the node ends", || child.try_wait().ok().flatten())
    }

    /// Whether the process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().is_ok_and(|status| status.is_some()))
    }

    /// SIGTERM; its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.wait_exit().code()
    }

    /// Sends a signal to supervisor and worker, as when the whole machine is paused.
    ///
    /// # Panics
    /// When one of them is gone.
    pub fn signal_both(&self, signal: Signal) {
        for pid in [self.worker_pid().expect("the worker runs"), self.pid()] {
            rustix::process::kill_process(pid, signal).expect("send the signal");
        }
    }

    /// kill -9 of both processes at once.
    pub fn kill(&mut self) {
        let worker = self.child.is_some().then(|| self.worker_pid()).flatten();
        if let Some(mut child) = self.child.take() {
            if let Some(worker) = worker {
                let _ = rustix::process::kill_process(worker, Signal::KILL);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// `GET` on the API.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn get(&self, path: &str) -> Result<Answer, String> {
        http::get(&format!("{}{path}", self.url()))
    }

    /// `POST` on the API.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn post(&self, path: &str, body: &[u8]) -> Result<Answer, String> {
        http::post(&format!("{}{path}", self.url()), body)
    }

    /// Whether `/info` says that this node is the primary.
    #[must_use]
    pub fn is_primary(&self) -> bool {
        self.get("/info").is_ok_and(|info| info.json()["isPrimary"] == true)
    }

    /// The position of a database as the mount tells it; `None` before its first transaction.
    #[must_use]
    pub fn pos(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.db(&format!("{name}-pos"))).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// Waits until this node has the very position `of` has of the database.
    ///
    /// # Panics
    /// When it does not get there.
    pub fn wait_same_pos(&self, of: &Self, name: &str) {
        eventually(&format!("{name} reaches the same position"), || {
            let wanted = of.pos(name);
            (wanted.is_some() && wanted == self.pos(name)).then_some(())
        });
    }

    /// Runs a `litefs` command to its end.
    ///
    /// # Errors
    /// Code and standard error, when the code is not 0.
    pub fn litefs(args: &[&str]) -> Result<String, (i32, String)> {
        let output = Command::new(binary()).args(args).stdin(Stdio::null()).output();
        let output = output.map_err(|error| (-1, error.to_string()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

fn start_mark(number: u32) -> String {
    format!("--- start {number}\n")
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        // Twice the mount's directory: see `guard_mount_dir`.
        for dir in [self.control_dir(), self.mount(), self.mount()] {
            let flags = rustix::mount::UnmountFlags::FORCE | rustix::mount::UnmountFlags::DETACH;
            let _ = rustix::mount::unmount(&dir, flags);
        }
        let _ = fs::remove_dir(self.control_dir());
        if std::thread::panicking() {
            let log = self.log();
            let mut text = String::new();
            let skip = log.lines().count().saturating_sub(400);
            let _ = writeln!(text, "=== log of the node in {} (last lines)", self.folder.path().display());
            for line in log.lines().skip(skip) {
                let _ = writeln!(text, "{line}");
            }
            eprintln!("{text}=== end of log");
            // To look at what went wrong.
            self.folder.disable_cleanup(std::env::var_os("LITEFS_TEST_KEEP").is_some());
        }
    }
}
