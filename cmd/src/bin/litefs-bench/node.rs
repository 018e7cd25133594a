//! The litefs node under test: started, watched, measured and stopped.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::report::{Row, Usage};
use crate::side::Side;
use crate::workloads::fill;

const START_WAIT_MAX: Duration = Duration::from_secs(60);

/// What the node is, by a static lease.
#[derive(Debug, Clone)]
pub enum Role {
    Primary,
    /// Of the node with this URL.
    ReplicaOf(String),
}

/// A running `litefs mount` in a scratch directory.
#[derive(Debug)]
pub struct Node {
    child: Child,
    binary: PathBuf,
    mount: PathBuf,
    scratch: PathBuf,
    port: u16,
    started: Instant,
}

impl Node {
    pub fn start(binary: &Path, scratch: &Path, role: Role) -> Result<Self> {
        let (data, mount) = (scratch.join("data"), scratch.join("mount"));
        std::fs::create_dir_all(&data)?;
        std::fs::create_dir_all(&mount)?;
        // The port is free now; nobody else takes ports on a machine that is being measured.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let (candidate, url) = match &role {
            Role::Primary => (true, format!("http://127.0.0.1:{port}")),
            Role::ReplicaOf(url) => (false, url.clone()),
        };
        let config = scratch.join("litefs.yml");
        std::fs::write(
            &config,
            format!(
                "data:\n  dir: {}\nfuse:\n  dir: {}\nhttp:\n  addr: 127.0.0.1:{port}\nlease:\n  type: static\n  \
                 candidate: {candidate}\n  advertise-url: {url}\ntracing:\n  enabled: false\n",
                data.display(),
                mount.display()
            ),
        )?;
        let log = std::fs::File::create(scratch.join("litefs.log"))?;
        let child = Command::new(binary)
            .args(["mount", "-config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        let node = Self {
            child,
            binary: binary.to_path_buf(),
            mount,
            scratch: scratch.to_path_buf(),
            port,
            started: Instant::now(),
        };
        let is_primary = matches!(role, Role::Primary);
        node.wait_ready(is_primary)?;
        Ok(node)
    }

    /// The URL of its API.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Where a database is; `None` while there is none.
    pub fn position(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.mount.join(format!("{name}-pos"))).ok()
    }

    pub fn mount(&self) -> &Path {
        &self.mount
    }

    fn wait_ready(&self, is_primary: bool) -> Result<()> {
        let wanted = format!("\"isPrimary\":{is_primary}");
        while self.started.elapsed() < START_WAIT_MAX {
            if self.get("/info").is_ok_and(|body| body.replace(' ', "").contains(&wanted)) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let log = std::fs::read_to_string(self.scratch.join("litefs.log")).unwrap_or_default();
        bail!("the node is not ready after {START_WAIT_MAX:?}; its log:\n{log}")
    }

    /// The body of a short answer of the node API.
    fn get(&self, path: &str) -> Result<String> {
        let mut stream = self.request(path)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Sends a GET and leaves the answer to the caller.
    pub fn request(&self, path: &str) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_nodelay(true)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
        Ok(stream)
    }

    /// Processes of the node: the supervisor and what it started.
    fn processes(&self) -> Vec<u32> {
        let mut all = vec![self.child.id()];
        let mut next = 0;
        while let Some(&pid) = all.get(next) {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
            next += 1;
        }
        all
    }

    /// CPU seconds used so far and resident bytes now.
    fn totals(&self) -> (f64, f64) {
        let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
        let page_bytes = rustix::param::page_size() as f64;
        let (mut cpu, mut rss) = (0.0, 0.0);
        for pid in self.processes() {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields: Vec<f64> = stat
                .rsplit_once(')')
                .map_or("", |(_, rest)| rest)
                .split_whitespace()
                .map(|field| field.parse().unwrap_or(0.0))
                .collect();
            // proc(5): utime and stime are fields 14 and 15, rss is 24; the first two were split off.
            cpu += (fields.get(11).unwrap_or(&0.0) + fields.get(12).unwrap_or(&0.0)) / ticks_per_second;
            rss += fields.get(21).unwrap_or(&0.0) * page_bytes;
        }
        (cpu, rss)
    }

    /// CPU and memory while nothing happens for `time`.
    pub fn usage_over(&self, time: Duration) -> Result<Usage> {
        let (before, _) = self.totals();
        std::thread::sleep(time);
        let (after, rss) = self.totals();
        Ok(Usage { cpu_percent: (after - before) / time.as_secs_f64() * 100.0, rss_mb: rss / 1e6 })
    }

    /// CPU since the start, and memory now.
    pub fn usage(&self) -> Result<Usage> {
        let (cpu, rss) = self.totals();
        Ok(Usage { cpu_percent: cpu / self.started.elapsed().as_secs_f64() * 100.0, rss_mb: rss / 1e6 })
    }

    /// Import and export of a database, against copying the file and syncing it.
    pub fn transfer_rows(&self, sides: &[Side; 2], rounds: usize, quick: bool) -> Result<Vec<Row>> {
        let source = sides[0].path("source.db");
        fill_file(&sides[0], if quick { 20_000 } else { 200_000 })?;
        let megabytes = std::fs::metadata(&source)?.len() as f64 / 1e6;
        let copy = sides[0].path("copy.db");
        let url = self.url();
        let (mut copies, mut imports, mut exports) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let start = Instant::now();
            std::fs::copy(&source, &copy)?;
            std::fs::File::open(&copy)?.sync_all()?;
            copies.push(megabytes / start.elapsed().as_secs_f64());
            imports.push(megabytes / self.transfer("import", &url, &source)?);
            exports.push(megabytes / self.transfer("export", &url, &copy)?);
        }
        sides[0].remove("copy.db")?;
        sides[0].remove("source.db")?;
        Ok(vec![
            Row::new("import 200 MB, against cp and fsync".into(), "MB/s", 0.6, copies.clone(), imports),
            Row::new("export 200 MB, against cp and fsync".into(), "MB/s", 0.6, copies, exports),
        ])
    }

    /// Imports a database with that many rows of 1000 bytes under a new name; returns its size in MB.
    pub fn import_new(&self, name: &str, side: &Side, rows: i64) -> Result<f64> {
        let source = Side::new("source", &self.scratch);
        fill_file(&source, rows)?;
        let path = source.path("source.db");
        let megabytes = std::fs::metadata(&path)?.len() as f64 / 1e6;
        self.run(&["import", "-url", &self.url(), "-name", name], &path)?;
        source.remove("source.db")?;
        anyhow::ensure!(side.path(name).exists(), "{name} is not there after its import");
        Ok(megabytes)
    }

    fn run(&self, arguments: &[&str], path: &Path) -> Result<()> {
        let output = Command::new(&self.binary).args(arguments).arg(path).output()?;
        if !output.status.success() {
            bail!("litefs {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Seconds that `litefs import` or `litefs export` took.
    fn transfer(&self, command: &str, url: &str, path: &Path) -> Result<f64> {
        let start = Instant::now();
        self.run(&[command, "-url", url, "-name", "transfer.db"], path)?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Stops the node with SIGTERM and waits for it.
    pub fn stop(mut self) -> Result<()> {
        terminate(&self.child)?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the node ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // After `stop` the process is gone already and this finds nothing to do.
        if matches!(self.child.try_wait(), Ok(None)) && terminate(&self.child).is_ok() {
            let _ = self.child.wait();
        }
    }
}

fn terminate(child: &Child) -> Result<()> {
    let pid = rustix::process::Pid::from_child(child);
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::TERM)?)
}

fn fill_file(side: &Side, rows: i64) -> Result<()> {
    let mut db = side.open("source.db", "DELETE", "OFF")?;
    db.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, data BLOB)")?;
    fill(&mut db, rows, 1000)
}
