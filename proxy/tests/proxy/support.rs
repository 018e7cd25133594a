//! A node without an engine, an application made of raw bytes, and clients.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use litefs::{DbName, Txid};
use litefs_proxy::{Cluster, Positions, Primary, Proxy, ProxyConfig, ProxyMetrics, ProxySettings, Role, WaitFuture};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

/// Nothing here takes this long unless it hangs.
const FOREVER: Duration = Duration::from_secs(60);

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(FOREVER, future).await.expect("it hangs")
}

pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < FOREVER, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Positions and role, moved by the test.
pub struct Node {
    /// Published, and committed but not captured.
    databases: Mutex<HashMap<String, (u64, u64)>>,
    moved: watch::Sender<()>,
    role: watch::Sender<Role>,
    pub lag: Mutex<Option<Duration>>,
    pub lease: AtomicBool,
    pub shared_history: watch::Sender<bool>,
    pub capture_fails: AtomicBool,
}

impl Node {
    pub fn new(role: Role) -> Arc<Self> {
        Arc::new(Self {
            databases: Mutex::new(HashMap::from([("app.db".to_owned(), (0, 0))])),
            moved: watch::Sender::new(()),
            role: watch::Sender::new(role),
            lag: Mutex::new(Some(Duration::ZERO)),
            lease: AtomicBool::new(true),
            shared_history: watch::Sender::new(true),
            capture_fails: AtomicBool::new(false),
        })
    }

    pub fn set_role(&self, role: Role) {
        let _no_commit = self.databases.lock();
        self.role.send_replace(role);
    }

    /// Hangs when the caller holds the role: a node may publish it under the locks that it needs to answer, as
    /// [`Node::set_role`] does.
    fn nobody_holds_the_role(&self) {
        self.role.send_if_modified(|_| false);
    }

    /// A transaction of an application that is allowed to write only on the primary.
    pub fn commit_if_primary(&self) -> Option<u64> {
        let mut databases = self.databases.lock();
        let (_, committed) = databases.get_mut("app.db").filter(|_| *self.role.borrow() == Role::Primary)?;
        *committed += 1;
        Some(*committed)
    }

    /// What the application sees.
    pub fn committed(&self) -> u64 {
        self.databases.lock().get("app.db").map_or(0, |(_, committed)| *committed)
    }

    /// A transaction of the application, not captured yet.
    pub fn commit(&self, db: &str) {
        self.databases.lock().entry(db.to_owned()).or_default().1 += 1;
    }

    /// A transaction is captured or applied.
    pub fn advance(&self, db: &str, txid: u64) {
        self.databases.lock().insert(db.to_owned(), (txid, txid));
        self.moved.send_replace(());
    }

    pub fn forget_databases(&self) {
        self.databases.lock().clear();
    }
}

impl Positions for Node {
    fn txid(&self, db: &DbName) -> Option<Txid> {
        self.nobody_holds_the_role();
        self.databases.lock().get(db.as_str()).map(|(published, _)| Txid(*published))
    }

    fn wait<'a>(&'a self, db: &'a DbName, txid: Txid) -> WaitFuture<'a> {
        let mut moved = self.moved.subscribe();
        Box::pin(async move {
            while self.txid(db).is_none_or(|now| now < txid) {
                moved.changed().await.expect("the node lives");
            }
        })
    }

    fn position_now(&self, db: &DbName) -> io::Result<Option<Txid>> {
        if self.capture_fails.load(Ordering::SeqCst) {
            return Err(io::Error::other("disk full"));
        }
        let now = self.databases.lock().get_mut(db.as_str()).map(|(published, committed)| {
            *published = *committed;
            Txid(*committed)
        });
        self.moved.send_replace(());
        Ok(now)
    }
}

impl Cluster for Node {
    fn role(&self) -> watch::Receiver<Role> {
        self.role.subscribe()
    }

    fn lag(&self) -> Option<Duration> {
        *self.lag.lock()
    }

    fn has_shared_history(&self) -> bool {
        *self.shared_history.borrow()
    }

    fn shared_history(&self) -> WaitFuture<'_> {
        Box::pin(async {
            let _ = self.shared_history.subscribe().wait_for(|shared| *shared).await;
        })
    }

    fn lease_covers(&self, _moment: Instant) -> bool {
        self.nobody_holds_the_role();
        self.lease.load(Ordering::SeqCst)
    }
}

/// A running proxy; stops when dropped.
pub struct Running {
    pub addr: SocketAddr,
    pub metrics: Arc<ProxyMetrics>,
    stop: Option<oneshot::Sender<()>>,
    pub done: Option<tokio::task::JoinHandle<io::Result<()>>>,
}

impl Running {
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    pub fn as_primary(&self) -> Role {
        replica_of(&format!("http://{}", self.addr))
    }

    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}

pub fn replica_of(url: &str) -> Role {
    Role::Replica(Primary { hostname: "primary-host".into(), proxy_url: Some(url.to_owned()) })
}

pub fn settings(target: SocketAddr) -> ProxySettings {
    ProxySettings {
        addr: "127.0.0.1:0".into(),
        target: target.to_string(),
        db: vec!["app.db".into()],
        hostname: "127.0.0.1".into(),
        // Long: a test that depends on one of these sets it.
        primary_redirect_timeout: FOREVER,
        replica_wait: FOREVER,
        read_header_timeout: FOREVER,
        idle_timeout: FOREVER,
        target_timeout: FOREVER,
        drain_timeout: Duration::from_secs(1),
        workers: 2,
        ..Default::default()
    }
}

pub fn start(node: &Arc<Node>, settings: ProxySettings) -> Running {
    try_start(node, settings).expect("bind")
}

/// `None`: its address is in use.
pub fn try_start(node: &Arc<Node>, settings: ProxySettings) -> Option<Running> {
    let config = ProxyConfig::new(settings).expect("valid settings");
    let proxy = Proxy::bind(config, Arc::clone(node) as _, Arc::clone(node) as _).ok()?;
    let (addr, metrics) = (proxy.local_addr(), proxy.metrics());
    let (stop, stopped) = oneshot::channel();
    let done = tokio::spawn(proxy.serve(async {
        let _ = stopped.await;
    }));
    Some(Running { addr, metrics, stop: Some(stop), done: Some(done) })
}

/// What the application received.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// An application that answers with raw bytes.
pub struct App {
    pub addr: SocketAddr,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    pub connections: Arc<AtomicUsize>,
}

impl App {
    pub fn count(&self) -> usize {
        self.seen.lock().len()
    }

    pub fn last(&self) -> Seen {
        self.seen.lock().last().cloned().expect("a request")
    }

    /// Answers every request with what `reply` gives; an empty reply closes the connection.
    pub async fn start(reply: impl Fn(&Seen) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        Self::on(listener, reply)
    }

    pub fn on(listener: TcpListener, reply: impl Fn(&Seen) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let addr = listener.local_addr().expect("addr");
        let (seen, connections) = (Arc::<Mutex<Vec<Seen>>>::default(), Arc::<AtomicUsize>::default());
        let (log, count, reply) = (Arc::clone(&seen), Arc::clone(&connections), Arc::new(reply));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (log, reply) = (Arc::clone(&log), Arc::clone(&reply));
                tokio::spawn(async move {
                    let mut buffer = Vec::new();
                    while let Some(request) = read_request(&mut stream, &mut buffer).await {
                        let answer = reply(&request);
                        log.lock().push(request);
                        if answer.is_empty() || stream.write_all(&answer).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { addr, seen, connections }
    }

    /// Answers 200 with this text.
    pub async fn saying(text: &'static str) -> Self {
        Self::start(move |_| ok(text)).await
    }

    /// Commits a transaction on every POST, and on GETs of `/write`.
    pub async fn writing(node: &Arc<Node>, text: &'static str) -> Self {
        let node = Arc::clone(node);
        Self::start(move |request| {
            if request.method == "POST" || request.target.starts_with("/write") {
                node.commit("app.db");
            }
            ok(text)
        })
        .await
    }
}

pub fn ok(text: &str) -> Vec<u8> {
    answer("200 OK", "", text)
}

pub fn answer(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

async fn more(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<()> {
    (stream.read_buf(buffer).await.ok()? > 0).then_some(())
}

/// Reads one request, whatever its framing.
pub async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Seen> {
    let mut seen = read_head(stream, buffer).await?;
    if let Some(length) = seen.header("content-length").and_then(|l| l.parse::<usize>().ok()) {
        while buffer.len() < length {
            more(stream, buffer).await?;
        }
        seen.body = buffer.drain(..length).collect();
    } else if seen.header("transfer-encoding").is_some() {
        loop {
            let line = read_line(stream, buffer).await?;
            let size = usize::from_str_radix(line.trim(), 16).ok()?;
            while buffer.len() < size + 2 {
                more(stream, buffer).await?;
            }
            seen.body.extend(buffer.drain(..size));
            buffer.drain(..2);
            if size == 0 {
                break;
            }
        }
    }
    Some(seen)
}

async fn read_line(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = buffer.windows(2).position(|w| w == b"\r\n") {
            let line = buffer.drain(..end + 2).collect();
            return String::from_utf8(line).ok();
        }
        more(stream, buffer).await?;
    }
}

pub async fn read_head(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<Seen> {
    let first = read_line(stream, buffer).await?;
    let mut words = first.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let line = read_line(stream, buffer).await?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Some(Seen { method, target, headers, body: Vec::new() })
}

/// What curl got.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub head: String,
    pub body: String,
    pub exit: i32,
}

impl Got {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers(name).into_iter().next()
    }

    pub fn headers(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(':'));
        fields.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim()).collect()
    }
}

pub async fn curl(args: &[&str]) -> Got {
    curl_owned(args.iter().map(ToString::to_string).collect()).await
}

pub async fn curl_owned(args: Vec<String>) -> Got {
    let mut command = tokio::process::Command::new("curl");
    command.args(["-s", "-i", "--noproxy", "*", "--max-time", "55"]).args(args).kill_on_drop(true);
    let output = within(command.output()).await.expect("curl runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut rest = text.as_str();
    let mut head = "";
    // Interim answers come first.
    while let Some((first, others)) = rest.split_once("\r\n\r\n").filter(|_| rest.starts_with("HTTP/")) {
        (head, rest) = (first, others);
        if !head.contains(" 100") {
            break;
        }
    }
    let status = head.split_whitespace().nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    Got { status, head: head.to_owned(), body: rest.to_owned(), exit: output.status.code().unwrap_or(-1) }
}

/// Sends raw bytes and returns everything until the connection ends, and whether it ended by a reset.
pub async fn raw(addr: SocketAddr, request: &[u8]) -> (String, bool) {
    let mut stream = TcpStream::connect(addr).await.expect("connect");
    // The other side may have answered and closed before it has read everything.
    let _ = stream.write_all(request).await;
    let mut received = Vec::new();
    let reset = within(stream.read_to_end(&mut received)).await.is_err();
    (String::from_utf8_lossy(&received).into_owned(), reset)
}

pub async fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let mut received = Vec::new();
    within(async {
        while !String::from_utf8_lossy(&received).contains(wanted) {
            if stream.read_buf(&mut received).await.expect("read") == 0 {
                panic!("ended before {wanted:?}: {:?}", String::from_utf8_lossy(&received));
            }
        }
    })
    .await;
    String::from_utf8_lossy(&received).into_owned()
}
