//! Three nodes and a real Consul, clients that write and read at every node all the time, and harm. In the end: no acknowledged
//! row that another node had is lost, no node accepted a row without knowing what had been acknowledged elsewhere before, and
//! all nodes hold the same bytes.

use std::path::PathBuf;
use std::sync::Arc;

use litefs_lease::testing::ConsulServer;
use litefs_tests::history::{self, Clients, Outcome};
use litefs_tests::network::{Host, Network};
use litefs_tests::{Node, NodeConfig, eventually, wait_until};
use rustix::process::Signal;

const DB: &str = "a.db";
/// Rows that must be accepted to believe that writes go on.
const SOME: u64 = 20;

/// The nodes under test; the order is that of [`Clients`].
struct Cluster {
    nodes: Vec<Node>,
}

impl Cluster {
    /// Starts a node per host (`None`: here), the first one as primary with the table.
    fn start(consul: &ConsulServer, hosts: &[Option<Arc<Host>>]) -> Self {
        let mut nodes: Vec<Node> = Vec::new();
        for (number, host) in hosts.iter().enumerate() {
            let mut node = Node::new(NodeConfig { host: host.clone(), ..NodeConfig::default() });
            let (url, consul) = (node.url(), consul.url());
            node.config_mut().lease = format!(
                "  type: consul\n  hostname: node{number}\n  advertise-url: {url}\n  consul:\n    url: {consul}\n    key: litefs/primary\n"
            );
            node.guard_mount_dir();
            node.launch();
            node.wait_ready();
            if number == 0 {
                wait_until("the first node is primary", &true, || node.is_primary());
                let create = || rusqlite::Connection::open(node.db(DB))?.execute_batch(history::CREATE);
                eventually("a table", || create().ok());
            } else {
                node.wait_same_pos(&nodes[0], DB);
            }
            nodes.push(node);
        }
        Self { nodes }
    }

    fn clients(&self, synchronous: &'static str) -> Clients {
        let paths: Vec<PathBuf> = self.nodes.iter().map(|node| node.db(DB)).collect();
        Clients::start(&paths, synchronous)
    }

    /// All nodes have the same position, bytes and rows, and these are sound.
    fn at_rest(&self, clients: Clients) -> Outcome {
        let mut outcome = clients.finish();
        let nodes = &self.nodes;
        eventually("one primary, and all nodes at the same position", || {
            let positions: Vec<_> = nodes.iter().map(|node| node.pos(DB)).collect();
            let primaries = nodes.iter().filter(|node| node.is_primary()).count();
            let equal = positions.iter().all(|pos| pos.is_some() && *pos == positions[0]);
            (primaries == 1 && equal).then_some(())
        });
        let export = |node: &Node| node.get(&format!("/export?name={DB}")).expect("export").body;
        let first = export(&nodes[0]);
        assert!(nodes.iter().all(|node| export(node) == first), "the nodes hold different bytes");
        outcome.last = history::rows(&nodes[0].db(DB)).expect("rows");
        let check = litefs_tests::sqlite::cli(&nodes[0].db(DB), "PRAGMA integrity_check");
        assert_eq!(check.as_deref(), Ok("ok"));
        outcome
    }
}

/// Which node accepts rows now.
fn writing(clients: &Clients, nodes: usize) -> usize {
    let before: Vec<u64> = (0..nodes).map(|node| clients.accepted(node)).collect();
    eventually("a node accepts rows", || (0..nodes).find(|node| clients.accepted(*node) > before[*node] + SOME))
}

/// Waits until another node than `old` accepts rows.
fn replaced(clients: &Clients, nodes: usize, old: usize) -> usize {
    let before: Vec<u64> = (0..nodes).map(|node| clients.accepted(node)).collect();
    eventually("another node accepts rows", || {
        (0..nodes).find(|node| *node != old && clients.accepted(*node) > before[*node] + SOME)
    })
}

/// Waits until rows are accepted that were not before.
fn goes_on(clients: &Clients) {
    let before = clients.accepted_by_all();
    eventually("rows are accepted", || (clients.accepted_by_all() > before + SOME).then_some(()));
}

fn judge(outcome: &Outcome) {
    let violations = outcome.violations();
    let lost = outcome.lost().len();
    println!("{} rows acknowledged, {} replicated, {lost} lost", outcome.told.len(), outcome.replicated.len());
    assert!(violations.is_empty(), "{} violations: {:#?}", violations.len(), &violations[..violations.len().min(5)]);
}

#[test]
fn kills_of_primary_and_replica_under_load() {
    let consul = ConsulServer::start().expect("Consul");
    let mut cluster = Cluster::start(&consul, &[None, None, None]);
    let mut clients = cluster.clients("FULL");
    let primary = writing(&clients, 3);
    clients.before_harm();
    cluster.nodes[primary].kill();
    let next = replaced(&clients, 3, primary);
    cluster.nodes[primary].launch();
    cluster.nodes[primary].wait_ready();
    goes_on(&clients);
    let replica = (0..3).find(|node| *node != primary && *node != next).expect("a third node");
    clients.before_harm();
    cluster.nodes[replica].kill();
    goes_on(&clients);
    cluster.nodes[replica].launch();
    cluster.nodes[replica].wait_ready();
    goes_on(&clients);
    judge(&cluster.at_rest(clients));
}

#[test]
fn promotions_and_clean_stops_under_load_lose_no_row_at_all() {
    let consul = ConsulServer::start().expect("Consul");
    let mut cluster = Cluster::start(&consul, &[None, None, None]);
    let clients = cluster.clients("NORMAL");
    let primary = writing(&clients, 3);
    let promoted = (primary + 1) % 3;
    eventually("a promotion", || {
        cluster.nodes[promoted].post("/promote", b"").is_ok_and(|answer| answer.status == 200).then_some(())
    });
    assert_eq!(writing(&clients, 3), promoted);
    assert_eq!(cluster.nodes[promoted].stop(), Some(0));
    let next = replaced(&clients, 3, promoted);
    cluster.nodes[promoted].launch();
    cluster.nodes[promoted].wait_ready();
    assert_eq!(cluster.nodes[next].stop(), Some(0));
    replaced(&clients, 3, next);
    cluster.nodes[next].launch();
    cluster.nodes[next].wait_ready();
    goes_on(&clients);
    let outcome = cluster.at_rest(clients);
    judge(&outcome);
    assert_eq!(outcome.lost(), []);
}

#[test]
fn frozen_primary_replica_and_consul_under_load() {
    let mut consul = ConsulServer::start_durable().expect("Consul");
    let cluster = Cluster::start(&consul, &[None, None, None]);
    let mut clients = cluster.clients("FULL");
    let primary = writing(&clients, 3);
    clients.before_harm();
    cluster.nodes[primary].signal_both(Signal::STOP);
    let next = replaced(&clients, 3, primary);
    goes_on(&clients);
    cluster.nodes[primary].signal_both(Signal::CONT);
    goes_on(&clients);
    let replica = (0..3).find(|node| *node != primary && *node != next).expect("a third node");
    clients.before_harm();
    cluster.nodes[replica].signal_both(Signal::STOP);
    goes_on(&clients);
    cluster.nodes[replica].signal_both(Signal::CONT);

    clients.before_harm();
    consul.pause().expect("freeze Consul");
    wait_until("nobody is primary without Consul", &false, || cluster.nodes.iter().any(Node::is_primary));
    consul.resume().expect("thaw Consul");
    goes_on(&clients);
    clients.before_harm();
    consul.kill().expect("kill Consul");
    wait_until("nobody is primary without Consul", &false, || cluster.nodes.iter().any(Node::is_primary));
    consul.restart().expect("start Consul again");
    goes_on(&clients);
    judge(&cluster.at_rest(clients));
}

#[test]
fn network_cuts_of_primary_replica_and_consul_under_load() {
    let network = Network::create();
    let hosts: Vec<_> = (1..=3).map(|number| network.host(number)).collect();
    let consul = ConsulServer::start_at(network.address()).expect("Consul");
    let places: Vec<_> = hosts.iter().cloned().map(Some).collect();
    let cluster = Cluster::start(&consul, &places);
    let mut clients = cluster.clients("FULL");
    let primary = writing(&clients, 3);
    clients.before_harm();
    hosts[primary].cut();
    let next = replaced(&clients, 3, primary);
    goes_on(&clients);
    hosts[primary].mend();
    goes_on(&clients);
    let replica = (0..3).find(|node| *node != primary && *node != next).expect("a third node");
    clients.before_harm();
    hosts[replica].cut();
    goes_on(&clients);
    hosts[replica].mend();
    // Consul is on this side of the uplink.
    clients.before_harm();
    network.cut();
    let before = clients.accepted_by_all();
    eventually("nobody accepts rows without Consul", || {
        let now = clients.accepted_by_all();
        std::thread::sleep(std::time::Duration::from_secs(2));
        (clients.accepted_by_all() == now).then_some(())
    });
    assert!(clients.accepted_by_all() >= before);
    network.mend();
    goes_on(&clients);
    judge(&cluster.at_rest(clients));
}
