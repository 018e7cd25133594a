//! Requests per second, latency and CPU per request: the backend alone, nginx in front of it, and this proxy.
//!
//! `cargo bench -p litefs-proxy --bench throughput [-- --rounds 5 --seconds 2]`
//!
//! Every contender is a process of its own (this program again, in another role); the rounds alternate between them, and
//! the table shows medians. nginx is left out when it is not installed.

#![allow(missing_docs, clippy::expect_used, clippy::unwrap_used, clippy::panic)]

use std::io;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use litefs::{DbName, Txid};
use litefs_proxy::{Cluster, Positions, Proxy, ProxyConfig, ProxySettings, Role, WaitFuture};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const CONNECTIONS: [usize; 3] = [1, 16, 64];
const BODY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const HEADERS: &str = "Host: bench.example\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\nAccept-Encoding: gzip\r\n";

fn main() {
    let (flag, args): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|arg| arg == "--bench");
    let number = |name: &str, default: u64| {
        let value = args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
        value.map_or(default, |value| value.parse().expect("a number"))
    };
    match args.first().map(String::as_str) {
        Some("backend") => backend(args[1].parse().expect("an address")),
        Some("proxy") => proxy(&args[1], &args[2], args[3] == "primary"),
        // `cargo test --all-targets` runs this, too, but means no benchmark.
        _ if flag.is_empty() => println!("run it with cargo bench"),
        _ => compare(number("--rounds", 5) as usize, Duration::from_secs(number("--seconds", 2))),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

/// The application: answers as fast as it can.
fn backend(addr: SocketAddr) {
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{BODY}", BODY.len());
    let answer: Arc<[u8]> = answer.into_bytes().into();
    runtime().block_on(async {
        let listener = TcpListener::bind(addr).await.expect("bind");
        loop {
            let (mut stream, _) = listener.accept().await.expect("accept");
            stream.set_nodelay(true).expect("nodelay");
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                let mut buffer = Vec::with_capacity(8192);
                // Every request here, body included, comes in one piece or ends its header with the body's 4 bytes.
                while read_message(&mut stream, &mut buffer).await.is_ok() {
                    if stream.write_all(&answer).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
}

/// Reads one message with an optional Content-Length; returns its status line's beginning.
async fn read_message(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<()> {
    loop {
        if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            let length = content_length(&buffer[..end]);
            if buffer.len() >= end + 4 + length {
                buffer.drain(..end + 4 + length);
                return Ok(());
            }
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn content_length(head: &[u8]) -> usize {
    let mut lines = head.split(|&b| b == b'\n');
    let value = lines.find(|line| line.len() > 15 && line[..15].eq_ignore_ascii_case(b"content-length:"));
    value.map_or(0, |line| String::from_utf8_lossy(&line[15..]).trim().parse().expect("a length"))
}

/// A node at TXID 100 whose every answer is immediate.
struct Node {
    role: watch::Sender<Role>,
    txid: AtomicU64,
}

impl Positions for Node {
    fn txid(&self, _db: &DbName) -> Option<Txid> {
        Some(Txid(self.txid.load(Ordering::Relaxed)))
    }

    fn wait<'a>(&'a self, _db: &'a DbName, _txid: Txid) -> WaitFuture<'a> {
        Box::pin(std::future::pending())
    }

    fn position_if_current(&self, db: &DbName) -> Option<Txid> {
        self.txid(db)
    }

    fn position_now(&self, db: &DbName) -> io::Result<Option<Txid>> {
        Ok(self.txid(db))
    }
}

impl Cluster for Node {
    fn role(&self) -> watch::Receiver<Role> {
        self.role.subscribe()
    }

    fn lag(&self) -> Option<Duration> {
        Some(Duration::ZERO)
    }

    fn lease_covers(&self, _moment: Instant) -> bool {
        true
    }
}

fn proxy(addr: &str, target: &str, primary: bool) {
    let role = if primary { Role::Primary } else { Role::NoPrimary };
    let node = Arc::new(Node { role: watch::Sender::new(role), txid: AtomicU64::new(100) });
    let workers = std::env::var("BENCH_WORKERS").ok().and_then(|count| count.parse().ok()).unwrap_or(1);
    let settings = ProxySettings {
        addr: addr.to_owned(),
        target: target.to_owned(),
        db: vec!["app.db".into()],
        hostname: "127.0.0.1".into(),
        workers,
        ..Default::default()
    };
    let config = ProxyConfig::new(settings).expect("settings");
    let proxy = Proxy::bind(config, Arc::clone(&node) as _, node as _).expect("bind");
    runtime().block_on(proxy.serve(std::future::pending())).expect("serve");
}

/// Something to measure.
struct Contender {
    name: &'static str,
    addr: SocketAddr,
    request: String,
    /// Whose CPU time counts.
    pids: Vec<u32>,
}

struct Processes(Vec<Child>);

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Not by SIGKILL: nginx's master must take its worker along.
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let _ = child.wait();
        }
    }
}

fn free_addr() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port")
}

fn again(args: &[&str]) -> Child {
    let program = std::env::current_exe().expect("own path");
    Command::new(program).args(args).stdin(Stdio::null()).spawn().expect("start a role")
}

fn nginx(addr: SocketAddr, backend: SocketAddr, folder: &std::path::Path) -> Option<(Child, Vec<u32>)> {
    let folder = folder.display();
    let config = format!(
        "worker_processes 1; daemon off; error_log stderr crit; pid {folder}/pid;
         events {{ worker_connections 1024; }}
         http {{ access_log off; keepalive_requests 1000000; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
           fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
           upstream app {{ server {backend}; keepalive 64; keepalive_requests 1000000; }}
           server {{ listen {addr}; location / {{ proxy_pass http://app; proxy_http_version 1.1;
             proxy_set_header Connection \"\"; proxy_set_header Host $host;
             proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme; }} }} }}"
    );
    let path = format!("{folder}/nginx.conf");
    std::fs::write(&path, config).expect("write nginx.conf");
    let child = Command::new("nginx").args(["-c", &path]).stdin(Stdio::null()).spawn().ok()?;
    wait_for(addr);
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap_or_default();
    let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    Some((child, pids))
}

fn wait_for(addr: SocketAddr) {
    let begin = Instant::now();
    while std::net::TcpStream::connect(addr).is_err() {
        assert!(begin.elapsed() < Duration::from_secs(30), "{addr} never listens");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn cpu_seconds(pids: &[u32]) -> f64 {
    let ticks = pids.iter().map(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let field =
            |at: usize| after_name.split_whitespace().nth(at).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
        field(11) + field(12)
    });
    ticks.sum::<f64>() / 100.0
}

#[derive(Clone, Copy, Default)]
struct Measured {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: f64,
}

fn measure(contender: &Contender, connections: usize, duration: Duration) -> Measured {
    let cpu_before = cpu_seconds(&contender.pids);
    let begin = Instant::now();
    let mut latencies: Vec<u32> = runtime().block_on(async {
        let clients: Vec<_> = (0..connections)
            .map(|_| {
                let (addr, request) = (contender.addr, contender.request.clone());
                tokio::spawn(async move {
                    let mut stream = TcpStream::connect(addr).await.expect("connect");
                    stream.set_nodelay(true).expect("nodelay");
                    let (mut buffer, mut latencies) = (Vec::with_capacity(8192), Vec::with_capacity(1 << 16));
                    while begin.elapsed() < duration {
                        let sent = Instant::now();
                        stream.write_all(request.as_bytes()).await.expect("send");
                        read_message(&mut stream, &mut buffer).await.expect("an answer");
                        latencies.push(sent.elapsed().as_nanos() as u32);
                    }
                    latencies
                })
            })
            .collect();
        let mut all = Vec::new();
        for client in clients {
            all.extend(client.await.expect("client"));
        }
        all
    });
    let elapsed = begin.elapsed().as_secs_f64();
    let cpu = cpu_seconds(&contender.pids) - cpu_before;
    latencies.sort_unstable();
    let at = |part: f64| f64::from(latencies[((latencies.len() - 1) as f64 * part) as usize]) / 1000.0;
    let count = latencies.len() as f64;
    Measured { per_second: count / elapsed, p50_us: at(0.5), p99_us: at(0.99), cpu_us: cpu / count * 1e6 }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn compare(rounds: usize, duration: Duration) {
    let folder = tempfile::tempdir().expect("folder");
    let backend = free_addr();
    let mut processes = Processes(vec![again(&["backend", &backend.to_string()])]);
    let mut start_proxy = |role| {
        let addr = free_addr();
        let child = again(&["proxy", &addr.to_string(), &backend.to_string(), role]);
        let pid = child.id();
        processes.0.push(child);
        wait_for(addr);
        (addr, vec![pid])
    };
    let get = |more: &str| format!("GET /some/path?query=1 HTTP/1.1\r\n{HEADERS}{more}\r\n");
    let post = format!("POST /some/path HTTP/1.1\r\n{HEADERS}Content-Length: 4\r\n\r\nbody");
    let (replica, replica_pids) = start_proxy("replica");
    let (primary, primary_pids) = start_proxy("primary");
    let cookie = get("Cookie: session=abcdef; __txid=0000000000000064\r\n");
    let backend_pid = vec![processes.0[0].id()];
    let mut contenders = vec![
        Contender { name: "direct", addr: backend, request: get(""), pids: backend_pid },
        Contender { name: "ours, no cookie", addr: replica, request: get(""), pids: replica_pids.clone() },
        Contender { name: "ours, cookie satisfied", addr: replica, request: cookie, pids: replica_pids },
        Contender { name: "ours, GET on the primary", addr: primary, request: get(""), pids: primary_pids.clone() },
        Contender { name: "ours, POST", addr: primary, request: post.clone(), pids: primary_pids },
    ];
    let nginx_addr = free_addr();
    if let Some((child, pids)) = nginx(nginx_addr, backend, folder.path()) {
        processes.0.push(child);
        contenders.insert(1, Contender { name: "nginx", addr: nginx_addr, request: get(""), pids: pids.clone() });
        contenders.insert(2, Contender { name: "nginx, POST", addr: nginx_addr, request: post, pids });
    }
    wait_for(backend);
    println!("| connections | contender | requests/s | p50 µs | p99 µs | CPU µs/request |\n|---|---|---|---|---|---|");
    for connections in CONNECTIONS {
        let mut results = vec![Vec::new(); contenders.len()];
        for _ in 0..rounds {
            for (contender, results) in contenders.iter().zip(&mut results) {
                results.push(measure(contender, connections, duration));
            }
        }
        for (contender, results) in contenders.iter().zip(results) {
            let of = |field: fn(&Measured) -> f64| median(results.iter().map(field).collect());
            println!(
                "| {connections} | {} | {:.0} | {:.0} | {:.0} | {:.1} |",
                contender.name,
                of(|m| m.per_second),
                of(|m| m.p50_us),
                of(|m| m.p99_us),
                of(|m| m.cpu_us)
            );
        }
    }
}
