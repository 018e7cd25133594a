//! The proxy in front of an application on two nodes: nobody reads older data than it has written.

use std::path::Path;

use litefs_lease::testing::ConsulServer;
use litefs_tests::http::{Answer, request};
use litefs_tests::node::free_port;
use litefs_tests::sqlite::cli;
use litefs_tests::{Node, NodeConfig, eventually, wait_until};

/// A node with an application behind its proxy.
struct Site {
    node: Node,
    proxy: u16,
}

impl Site {
    fn start(name: &str, lease: String) -> Self {
        let (proxy, app) = (free_port(), free_port());
        let extra = format!(
            "proxy:\n  addr: 127.0.0.1:{proxy}\n  target: 127.0.0.1:{app}\n  db: a.db\n  passthrough: ['/raw/*']\n"
        );
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/app.py");
        let program = program.to_str().expect("path");
        let args = ["--", "python3", program, "mnt/a.db", &app.to_string(), name].map(str::to_owned).to_vec();
        let lease = if lease.is_empty() { "  type: static\n  hostname: 127.0.0.1\n".into() } else { lease };
        let node = Node::start(NodeConfig { lease, extra, args, ..NodeConfig::default() });
        Self { node, proxy }
    }

    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answer, String> {
        request(method, &format!("http://127.0.0.1:{}{path}", self.proxy), headers, b"")
    }

    /// Waits until the application behind the proxy answers.
    fn wait_up(&self) {
        eventually("the application answers", || {
            self.request("GET", "/", &[]).ok().filter(|answer| answer.status == 200)
        });
    }
}

fn cookie(answer: &Answer) -> String {
    let cookie = answer.header("set-cookie");
    let cookie = cookie.split(';').next().expect("cookie");
    assert!(cookie.starts_with("__txid=") && cookie.len() == 23, "{cookie:?}");
    cookie.to_owned()
}

#[test]
fn every_client_reads_its_own_writes_on_every_node() {
    let primary = Site::start("primary", String::new());
    cli(&primary.node.db("a.db"), "PRAGMA journal_mode=WAL; CREATE TABLE t(x)").expect("create");
    let replica = Site::start("replica", primary.node.replica_lease());
    replica.node.wait_same_pos(&primary.node, "a.db");
    primary.wait_up();
    replica.wait_up();
    let sites = [&primary, &replica];
    for round in 1..=100_usize {
        let (write, read) = (sites[round % 2], sites[(round / 2) % 2]);
        let wrote = write.request("POST", "/row", &[]).expect("write");
        assert_eq!((wrote.status, wrote.header("app-node")), (200, "primary"), "{}", wrote.text());
        let read = read.request("GET", "/", &[("cookie", &cookie(&wrote))]).expect("read");
        assert_eq!((read.status, read.text()), (200, round.to_string()));
    }
    let read = replica.request("GET", "/", &[]).expect("read");
    assert_eq!(read.header("app-node"), "replica", "reads stay local");
    assert_eq!(replica.request("GET", "/litefs/health", &[]).expect("health").text(), "OK");
    let raw = replica.request("POST", "/raw/x", &[]).expect("raw");
    assert_eq!(raw.header("app-node"), "replica", "passthrough paths are not forwarded");
    assert_eq!(raw.header("set-cookie"), "");
}

#[test]
fn a_write_without_a_primary_waits_and_then_fails_with_503() {
    let mut primary = Site::start("primary", String::new());
    cli(&primary.node.db("a.db"), "PRAGMA journal_mode=WAL; CREATE TABLE t(x)").expect("create");
    let replica = Site::start("replica", primary.node.replica_lease());
    replica.node.wait_same_pos(&primary.node, "a.db");
    replica.wait_up();
    primary.node.kill();
    let answer = replica.request("POST", "/row", &[]).expect("an answer");
    assert!([502, 503].contains(&answer.status), "{answer:?}");
    let read = replica.request("GET", "/", &[]).expect("read");
    assert_eq!((read.status, read.text().as_str()), (200, "0"), "reads go on");
    primary.node.launch();
    primary.node.wait_ready();
    primary.wait_up();
    eventually("writes go on", || replica.request("POST", "/row", &[]).ok().filter(|answer| answer.status == 200));
}

#[test]
fn a_write_in_flight_ends_before_a_stopping_primary_closes_its_fence() {
    let consul = ConsulServer::start().expect("consul");
    let lease =
        format!("  type: consul\n  hostname: 127.0.0.1\n  consul:\n    url: {}\n    key: e2e/stop\n", consul.url());
    let mut site = Site::start("node", lease);
    cli(&site.node.db("a.db"), "PRAGMA journal_mode=WAL; CREATE TABLE t(x)").expect("create");
    let begun = site.node.folder().join("node-slow");
    // It has half a second for that: one attempt is enough unless the machine stands still.
    let written = (0..5).any(|_| {
        site.wait_up();
        let url = format!("http://127.0.0.1:{}/slow", site.proxy);
        let write = std::thread::spawn(move || request("POST", &url, &[], b""));
        wait_until("the application has the request", &true, || begun.exists());
        site.node.stop();
        std::fs::remove_file(&begun).expect("remove");
        let answer = write.join().expect("the client");
        site.node.launch();
        site.node.wait_ready();
        answer.is_ok_and(|answer| answer.status == 200)
    });
    assert!(written, "every attempt was refused");
}
