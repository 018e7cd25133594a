//! Consumers, disks and Consuls that misbehave: said, survived, and back to work when the cause is gone.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use litefs_lease::testing::ConsulServer;
use litefs_tests::sqlite::cli;
use litefs_tests::{Node, NodeConfig, eventually, wait_until};

#[test]
fn a_consumer_of_events_that_reads_nothing_is_disconnected() {
    const COMMITS: usize = 60_000;
    let node = Node::primary();
    let db = rusqlite::Connection::open(node.db("a.db")).expect("open");
    db.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; CREATE TABLE t(x)").expect("create");
    let address = node.url().trim_start_matches("http://").to_owned();
    let mut consumer = TcpStream::connect(address).expect("connect");
    rustix::net::sockopt::set_socket_recv_buffer_size(&consumer, 64 << 10).expect("a small window");
    consumer.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("ask");
    consumer.set_read_timeout(Some(Duration::from_secs(60))).expect("timeout");
    let mut first = [0; 64];
    let got = consumer.read(&mut first).expect("it answers");
    assert!(got > 0);
    for n in 0..COMMITS {
        db.execute("INSERT INTO t VALUES(?)", [n as i64]).expect("the primary does not wait for it");
    }
    // Reading the position captures everything: all events have happened before the consumer reads on.
    node.pos("a.db").expect("a position");
    rustix::net::sockopt::set_socket_recv_buffer_size(&consumer, 4 << 20).expect("a large window");
    let mut rest = Vec::new();
    consumer.read_to_end(&mut rest).expect("the end of the stream");
    let told = String::from_utf8_lossy(&rest).matches("\"type\":\"tx\"").count();
    assert!(told < COMMITS, "everything was kept for it");
    assert_eq!(node.get("/info").expect("info").json()["health"], "ok");
}

/// A small file system under the data directory of a node.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn under(node: &Node, size: &str) -> Self {
        fs::create_dir_all(node.data()).expect("the folder");
        let data = node.data();
        let options = std::ffi::CString::new(format!("size={size}")).expect("options");
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", &data, "tmpfs", flags, options.as_c_str()).expect("mount");
        Self(data)
    }

    fn fill(&self) {
        let mut filler = File::create(self.0.join("filler")).expect("create");
        while filler.write_all(&[7; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("filler")).expect("remove");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_on_a_replica_harms_nobody_and_heals() {
    let primary = Node::primary();
    cli(&primary.db("a.db"), "PRAGMA journal_mode=WAL; CREATE TABLE t(x)").expect("create");
    let mut replica = Node::new(NodeConfig { lease: primary.replica_lease(), ..NodeConfig::default() });
    let disk = SmallDisk::under(&replica, "32m");
    replica.launch();
    replica.wait_ready();
    replica.wait_same_pos(&primary, "a.db");
    disk.fill();
    let insert = "INSERT INTO t SELECT randomblob(1000) FROM generate_series(1, 2000)";
    cli(&primary.db("a.db"), insert).expect("the primary writes on");
    wait_until("the replica says so", &true, || {
        replica.get("/info").is_ok_and(|info| info.json()["health"] == "degraded")
    });
    cli(&primary.db("a.db"), insert).expect("the primary writes on");
    assert_eq!(cli(&replica.db("a.db"), "SELECT count(*) FROM t").as_deref(), Ok("0"), "readers see what there is");
    disk.make_room();
    replica.wait_same_pos(&primary, "a.db");
    let check = "SELECT count(*) FROM t; PRAGMA integrity_check";
    assert_eq!(cli(&replica.db("a.db"), check).as_deref(), Ok("4000\nok"));
    wait_until("it is healthy again", &true, || replica.get("/info").is_ok_and(|info| info.json()["health"] == "ok"));
    assert_eq!(replica.stop(), Some(0));
}

/// Passes everything on to `target`, late.
fn slow_way_to(target: SocketAddr, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(client), Ok(server)) = (client, TcpStream::connect(target)) else { continue };
            let ways = [(client.try_clone(), server.try_clone()), (Ok(server), Ok(client))];
            for (from, to) in ways {
                let (Ok(mut from), Ok(mut to)) = (from, to) else { continue };
                std::thread::spawn(move || {
                    let mut bytes = [0; 64 << 10];
                    while let Ok(len) = from.read(&mut bytes) {
                        std::thread::sleep(delay);
                        if len == 0 || to.write_all(&bytes[..len]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
    address
}

fn consul_node(consul: &str, hostname: &str, key: &str) -> Node {
    let mut node = Node::new(NodeConfig::default());
    node.config_mut().lease = consul_lease(&node, consul, hostname, key);
    node
}

fn consul_lease(node: &Node, consul: &str, hostname: &str, key: &str) -> String {
    let url = node.url();
    format!(
        "  type: consul\n  hostname: {hostname}\n  advertise-url: {url}\n  consul:\n    url: {consul}\n    key: {key}\n"
    )
}

#[test]
fn a_slow_consul_is_good_enough_and_a_killed_primary_is_replaced() {
    let consul = ConsulServer::start().expect("Consul");
    let slow = format!("http://{}", slow_way_to(consul.address(), Duration::from_millis(150)));
    let mut first = consul_node(&slow, "first", "slow/primary");
    first.launch();
    first.wait_ready();
    wait_until("the first node is primary", &true, || first.is_primary());
    let fill = "PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES(1)";
    eventually("a database", || cli(&first.db("a.db"), fill).ok());
    let mut second = consul_node(&slow, "second", "slow/primary");
    second.launch();
    second.wait_ready();
    second.wait_same_pos(&first, "a.db");
    first.kill();
    eventually("the second node writes", || cli(&second.db("a.db"), "INSERT INTO t VALUES(2)").ok());
    first.launch();
    first.wait_ready();
    first.wait_same_pos(&second, "a.db");
    assert_eq!(cli(&first.db("a.db"), "SELECT count(*) FROM t").as_deref(), Ok("2"));
}

#[test]
fn two_clusters_that_share_a_key_do_not_touch_each_others_data() {
    let consul = ConsulServer::start().expect("Consul");
    let mut stranger = Node::primary();
    cli(&stranger.db("a.db"), "CREATE TABLE theirs(x); INSERT INTO theirs VALUES(1)").expect("create");
    let theirs = stranger.pos("a.db");
    stranger.stop();
    let mut first = consul_node(&consul.url(), "first", "shared/key");
    first.launch();
    first.wait_ready();
    wait_until("the first node is primary", &true, || first.is_primary());
    eventually("a database", || cli(&first.db("a.db"), "CREATE TABLE ours(x); INSERT INTO ours VALUES(1)").ok());
    let ours = first.pos("a.db");

    stranger.config_mut().lease = consul_lease(&stranger, &consul.url(), "stranger", "shared/key");
    stranger.launch();
    stranger.wait_log("belongs to");
    first.stop();
    // Not even while nobody holds the lease.
    stranger.wait_log("not taking the lease");
    assert!(!stranger.is_primary());
    assert_eq!(stranger.pos("a.db"), theirs);
    first.launch();
    first.wait_ready();
    wait_until("the first node is primary again", &true, || first.is_primary());
    assert_eq!(first.pos("a.db"), ours);
    stranger.stop();
    // With a key of its own it is at work at once.
    stranger.config_mut().lease = consul_lease(&stranger, &consul.url(), "stranger", "another/key");
    stranger.launch();
    stranger.wait_ready();
    eventually("it writes", || cli(&stranger.db("a.db"), "INSERT INTO theirs VALUES(2)").ok());
    assert_eq!(cli(&stranger.db("a.db"), "SELECT count(*) FROM theirs").as_deref(), Ok("2"));
}

#[test]
fn nodes_stop_in_every_state_while_consul_hangs() {
    let consul = ConsulServer::start().expect("Consul");
    let mut first = consul_node(&consul.url(), "first", "hung/primary");
    first.launch();
    first.wait_ready();
    wait_until("the first node is primary", &true, || first.is_primary());
    eventually("a database", || cli(&first.db("a.db"), "PRAGMA journal_mode=WAL; CREATE TABLE t(x)").ok());
    let mut second = consul_node(&consul.url(), "second", "hung/primary");
    second.launch();
    second.wait_ready();
    consul.pause().expect("freeze Consul");
    for (what, node) in [("replica", &mut second), ("primary", &mut first)] {
        let begun = std::time::Instant::now();
        assert_eq!(node.stop(), Some(0));
        println!("{what}: stopped in {:?}", begun.elapsed());
    }
    // One that looks for its role.
    first.launch();
    first.wait_log("the node API listens");
    let begun = std::time::Instant::now();
    assert_eq!(first.stop(), Some(0));
    println!("starting: stopped in {:?}", begun.elapsed());
    consul.resume().expect("thaw Consul");
    first.launch();
    first.wait_ready();
    eventually("it writes", || cli(&first.db("a.db"), "INSERT INTO t VALUES(1)").ok());
}
