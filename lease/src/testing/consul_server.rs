//! A real Consul agent for one test.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Ports that are neither ephemeral nor well known.
const PORTS: std::ops::Range<u16> = 12_000..32_000;
/// HTTP, server RPC, and the two gossip ports.
const PORT_COUNT: u16 = 4;
const STARTS_AT_MOST: usize = 10;
const READY_WITHIN: Duration = Duration::from_secs(60);

/// A Consul agent on free ports of one address. Killed on drop.
#[derive(Debug)]
pub struct ConsulServer {
    child: Child,
    address: Ipv4Addr,
    port: u16,
    /// Where its state is; `None`: in memory (development mode).
    folder: Option<tempfile::TempDir>,
}

impl ConsulServer {
    /// Starts an agent on 127.0.0.1 and waits until it has elected itself; its state is in memory. `tests/consul.sh` fetches the
    /// executable, once per machine.
    ///
    /// # Errors
    /// When Consul cannot be fetched or does not start.
    pub fn start() -> io::Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST)
    }

    /// As [`Self::start`], on another address of this machine.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_at(address: Ipv4Addr) -> io::Result<Self> {
        Self::try_start(address, || Ok(None))
    }

    /// As [`Self::start`], with its state on disk: it survives [`Self::kill`].
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_durable() -> io::Result<Self> {
        Self::try_start(Ipv4Addr::LOCALHOST, || tempfile::tempdir().map(Some))
    }

    fn try_start(address: Ipv4Addr, folder: impl Fn() -> io::Result<Option<tempfile::TempDir>>) -> io::Result<Self> {
        let program = executable()?;
        let mut last = None;
        for _ in 0..STARTS_AT_MOST {
            let port = free_ports(address)?;
            let folder = folder()?;
            let child = spawn(&program, address, port, folder.as_ref().map(tempfile::TempDir::path))?;
            let mut server = Self { child, address, port, folder };
            match server.wait_until_ready() {
                Ok(()) => return Ok(server),
                // Most likely another process took a port in between.
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| io::Error::other("no attempt was made")))
    }

    /// kill -9.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Starts it again after [`Self::kill`], with what it had on disk, and waits until it has elected itself.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> io::Result<()> {
        let folder = self.folder.as_ref().map(tempfile::TempDir::path);
        self.child = spawn(&executable()?, self.address, self.port, folder)?;
        self.wait_until_ready()
    }

    fn wait_until_ready(&mut self) -> io::Result<()> {
        let ready = self.wait_for_leader();
        let log = log_path(self.port);
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let _ = std::fs::remove_file(&log); // The agent goes on writing to it unseen.
        ready.map_err(|error| io::Error::new(error.kind(), format!("{error}; Consul said: {text}")))
    }

    fn wait_for_leader(&mut self) -> io::Result<()> {
        let start = Instant::now();
        while start.elapsed() < READY_WITHIN {
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("Consul ended: {status}")));
            }
            if self.request("GET", "/v1/status/leader", "").is_ok_and(|body| body.contains(':')) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "Consul has no leader"))
    }
    /// `http://<address>:<port>`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Where the HTTP API answers.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((self.address, self.port))
    }

    /// The agent's process ID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed()).ok_or_else(|| io::Error::other("no process"))?;
        Ok(kill_process(pid, signal)?)
    }

    /// SIGSTOP: connections are accepted, nothing is answered. Returns when no thread runs any more.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn pause(&self) -> io::Result<()> {
        self.signal(Signal::STOP)?;
        let start = Instant::now();
        while start.elapsed() < READY_WITHIN {
            if self.is_stopped()? {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "Consul does not stop"))
    }

    /// Whether every thread is stopped: the signal reaches them one after another.
    fn is_stopped(&self) -> io::Result<bool> {
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let status = std::fs::read_to_string(task?.path().join("status")).unwrap_or_default();
            if !status.is_empty() && !status.contains("State:\tT") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn resume(&self) -> io::Result<()> {
        self.signal(Signal::CONT)
    }

    /// One plain request, for tests that look at Consul's state or spoil it; returns the body.
    ///
    /// # Errors
    /// When the connection fails or the status is not 200.
    pub fn request(&self, method: &str, path: &str, body: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.address(), Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(stream, "{method} {path} HTTP/1.0\r\nHost: consul\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        if head.split(' ').nth(1) == Some("200") {
            return Ok(body.trim().to_owned());
        }
        Err(io::Error::other(format!("{method} {path}: {} {}", head.lines().next().unwrap_or(""), body.trim())))
    }
}

impl Drop for ConsulServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(program: &Path, address: Ipv4Addr, port: u16, folder: Option<&Path>) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.args(["agent", "-log-level=warn", &format!("-bind={address}"), &format!("-client={address}")]);
    match folder {
        Some(folder) => command.args(["-server", "-bootstrap-expect=1", "-data-dir"]).arg(folder),
        None => command.arg("-dev"),
    };
    command.args(["-dns-port=-1", "-grpc-port=-1", "-https-port=-1"]);
    for (i, name) in ["http", "server", "serf-lan", "serf-wan"].into_iter().enumerate() {
        command.arg(format!("-{name}-port={}", usize::from(port) + i));
    }
    command.args(["-hcl=disable_update_check = true", "-hcl=performance { raft_multiplier = 1 }"]);
    let output = File::create(log_path(port))?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn()
}

fn log_path(port: u16) -> PathBuf {
    format!("/tmp/litefs-consul-{}-{port}.log", std::process::id()).into()
}

/// The first of [`PORT_COUNT`] adjacent ports that are free at the moment.
fn free_ports(address: Ipv4Addr) -> io::Result<u16> {
    for _ in 0..1000 {
        let first = fastrand::u16(PORTS.start..PORTS.end - PORT_COUNT);
        let bound: io::Result<Vec<TcpListener>> =
            (first..first + PORT_COUNT).map(|port| TcpListener::bind((address, port))).collect();
        if bound.is_ok() {
            return Ok(first);
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "no free ports between 12000 and 32000"))
}

fn executable() -> io::Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/consul.sh");
    let output = Command::new(&script).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(io::Error::other(format!("{}: {text}", script.display())));
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}
