//! Starting, stopping, signals, exit codes, and what a crash leaves behind.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use litefs_tests::node::{Start, free_port};
use litefs_tests::sqlite::cli;
use litefs_tests::{Node, NodeConfig, eventually, wait_until};
use rustix::process::Signal;

fn with_app(script: &str) -> Node {
    let args = ["--", "sh", "-c", script].map(str::to_owned).to_vec();
    Node::new(NodeConfig { args, ..NodeConfig::default() })
}

fn is_mounted(dir: &Path) -> bool {
    fs::read_to_string("/proc/mounts").expect("mounts").contains(&format!(" {} ", dir.display()))
}

#[test]
fn the_code_of_the_application_becomes_ours() {
    let mut node = with_app("sqlite3 mnt/a.db 'CREATE TABLE t(x)' && exit 7");
    node.launch();
    assert_eq!(node.wait_exit().code(), Some(7));
    assert!(!is_mounted(&node.mount()));
    let mut node = with_app("kill -KILL $$");
    node.launch();
    assert_eq!(node.wait_exit().code(), Some(137));
}

#[test]
fn the_application_gets_the_signals_and_may_still_use_the_mount() {
    let mut node = with_app(
        "trap 'sqlite3 mnt/a.db \"SELECT count(*) FROM t\" > last; exit 3' TERM; trap 'echo hup > hup' HUP; \
         sqlite3 mnt/a.db 'CREATE TABLE t(x); INSERT INTO t VALUES(1)'; echo up > up; while :; do sleep 0.05; done",
    );
    node.launch();
    let folder = node.folder().to_owned();
    eventually("the application is up", || folder.join("up").exists().then_some(()));
    node.signal(Signal::HUP);
    eventually("SIGHUP arrived", || folder.join("hup").exists().then_some(()));
    assert_eq!(node.stop(), Some(3));
    assert_eq!(fs::read_to_string(folder.join("last")).expect("read").trim(), "1");
    assert!(!is_mounted(&node.mount()));
}

#[test]
fn a_node_without_application_stops_with_code_0_although_a_client_holds_a_file() {
    let mut node = Node::primary();
    cli(&node.db("a.db"), "PRAGMA journal_mode=WAL; CREATE TABLE t(x)").expect("create");
    let mut client = Command::new("sqlite3")
        .arg(node.db("a.db"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start sqlite3");
    let mut input = client.stdin.take().expect("stdin");
    std::io::Write::write_all(&mut input, b"SELECT count(*) FROM t;\n").expect("write");
    let mut answer = [0];
    std::io::Read::read_exact(client.stdout.as_mut().expect("stdout"), &mut answer).expect("read");
    assert_eq!(node.stop(), Some(0));
    assert!(!is_mounted(&node.mount()));
    drop(input);
    let _ = client.wait();
}

#[test]
fn the_exec_list_runs_in_order_and_a_failure_ends_it() {
    let exec = |list: &str, lease: &str| NodeConfig {
        extra: format!("exec:\n{list}"),
        lease: lease.to_owned(),
        ..NodeConfig::default()
    };
    let list =
        "  - cmd: sh -c 'echo migrate >> order'\n    if-candidate: true\n  - cmd: sh -c 'echo app >> order; exit 4'\n";
    let mut node = Node::new(exec(list, ""));
    node.launch();
    assert_eq!(node.wait_exit().code(), Some(4));
    assert_eq!(fs::read_to_string(node.folder().join("order")).expect("read"), "migrate\napp\n");
    let list = "  - cmd: sh -c 'exit 5'\n  - cmd: touch started\n";
    let mut node = Node::new(exec(list, ""));
    node.launch();
    assert_eq!(node.wait_exit().code(), Some(5));
    assert!(!node.folder().join("started").exists());
}

#[test]
fn a_killed_node_starts_again_with_every_acknowledged_row() {
    for mode in ["WAL", "DELETE"] {
        let mut node = Node::primary();
        let sql = format!("PRAGMA journal_mode={mode}; CREATE TABLE t(x); INSERT INTO t VALUES(1);");
        cli(&node.db("a.db"), &sql).expect("fill");
        for round in 2..5 {
            cli(&node.db("a.db"), &format!("INSERT INTO t VALUES({round})")).expect("insert");
            node.kill();
            node.launch();
            node.wait_ready();
            let seen = cli(&node.db("a.db"), "SELECT count(*), max(x) FROM t; PRAGMA integrity_check");
            assert_eq!(seen, Ok(format!("{round}|{round}\nok")), "{mode}");
        }
    }
}

#[test]
fn a_dead_worker_ends_the_node_with_code_1_and_no_mount_stays() {
    let mut node = with_app("trap 'exit 0' TERM; echo up > up; while :; do sleep 0.05; done");
    node.launch();
    let folder = node.folder().to_owned();
    eventually("the application is up", || folder.join("up").exists().then_some(()));
    cli(&node.db("a.db"), "PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES(1)").expect("fill");
    let worker = node.worker_pid().expect("worker");
    rustix::process::kill_process(worker, Signal::KILL).expect("kill");
    assert_eq!(node.wait_exit().code(), Some(1));
    assert!(!is_mounted(&node.mount()));
    node.config_mut().args.clear();
    node.launch();
    node.wait_ready();
    assert_eq!(cli(&node.db("a.db"), "SELECT count(*) FROM t").as_deref(), Ok("1"));
}

/// Without passthrough the kernel writes what a client changed in the mapped wal-index back through the mount when a mapping goes:
/// also that of a worker that dies, which then waits for itself, its `/dev/fuse` still open.
#[test]
fn a_killed_worker_that_waits_for_its_own_mount_is_let_go() {
    let mut node = Node::start(NodeConfig { fuse: "  passthrough: off\n".to_owned(), ..NodeConfig::default() });
    let mut client = Command::new("sqlite3")
        .arg(node.db("a.db"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sqlite3");
    let mut input = client.stdin.take().expect("its input");
    let written = node.folder().join("written");
    let sql = "PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES(1); INSERT INTO t VALUES(2);";
    writeln!(input, "{sql}\n.shell touch {}", written.display()).expect("type");
    eventually("the client has written", || written.exists().then_some(()));
    let worker = node.worker_pid().expect("worker");
    rustix::process::kill_process(worker, Signal::KILL).expect("kill");
    assert_eq!(node.wait_exit().code(), Some(1));
    assert!(!is_mounted(&node.mount()));
    client.kill().expect("kill");
    client.wait().expect("wait");
    node.launch();
    node.wait_ready();
    assert_eq!(cli(&node.db("a.db"), "SELECT count(*) FROM t").as_deref(), Ok("2"));
}

/// How a node ends in [`a_client_that_outlives_the_node_loses_nothing_it_was_told_succeeded`].
#[derive(Debug, Clone, Copy)]
enum End {
    Term,
    KillWorker,
    KillAll,
}

/// With passthrough such a client reaches the WAL as long as it has it open, whatever becomes of the node.
#[test]
fn a_client_that_outlives_the_node_loses_nothing_it_was_told_succeeded() {
    for end in [End::Term, End::KillWorker, End::KillAll] {
        let mut node = Node::new(NodeConfig::default());
        node.guard_mount_dir();
        node.launch();
        node.wait_ready();
        wait_until("it is primary", &true, || node.is_primary());
        let client = rusqlite::Connection::open(node.db("a.db")).expect("open");
        client
            .execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; CREATE TABLE t(x INTEGER PRIMARY KEY)")
            .expect("create");
        let client = std::sync::Mutex::new(client);
        let stop = std::sync::atomic::AtomicBool::new(false);
        let told = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let client = client.lock().expect("the connection");
                let (mut told, mut x) = (Vec::new(), 0);
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    x += 1;
                    if client.execute("INSERT INTO t VALUES(?)", [x]).is_ok() {
                        told.push(x);
                    }
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                told
            });
            let begun = node.pos("a.db");
            eventually("it writes", || (node.pos("a.db") > begun).then_some(()));
            match end {
                End::Term => drop(node.stop()),
                End::KillWorker => {
                    rustix::process::kill_process(node.worker_pid().expect("worker"), Signal::KILL).expect("kill");
                    node.wait_exit();
                }
                End::KillAll => node.kill(),
            }
            node.launch();
            node.wait_ready();
            let new = rusqlite::Connection::open(node.db("a.db")).expect("open");
            new.busy_timeout(std::time::Duration::from_secs(30)).expect("timeout");
            for x in 1..=20 {
                new.execute("INSERT INTO t VALUES(?)", [1_000_000 + x]).expect("a new client writes");
            }
            stop.store(true, std::sync::atomic::Ordering::SeqCst);
            writer.join().expect("the writer")
        });
        let seen = cli(&node.db("a.db"), "SELECT group_concat(x) FROM t WHERE x < 1000000").expect("read");
        let seen: std::collections::BTreeSet<i64> = seen.split(',').filter_map(|x| x.parse().ok()).collect();
        let lost: Vec<_> = told.iter().filter(|x| !seen.contains(x)).collect();
        // A killed node cannot keep out a transaction that is open across the whole start.
        let lost_max = usize::from(!matches!(end, End::Term));
        assert!(lost.len() <= lost_max, "{end:?}: {} of {} lost: {lost:?}", lost.len(), told.len());
        assert!(!told.is_empty());
        assert_eq!(cli(&node.db("a.db"), "SELECT count(*) FROM t WHERE x > 1000000").as_deref(), Ok("20"));
        assert_eq!(cli(&node.db("a.db"), "PRAGMA integrity_check").as_deref(), Ok("ok"));
    }
}

#[test]
fn a_dead_supervisor_ends_the_worker_and_the_mount() {
    let mut node = Node::primary();
    let worker = node.worker_pid().expect("worker");
    node.signal(Signal::KILL);
    node.wait_exit();
    eventually("the worker ends", || rustix::process::test_kill_process(worker).is_err().then_some(()));
    wait_until("the mount goes", &false, || is_mounted(&node.mount()));
}

#[test]
fn a_mount_taken_away_from_outside_ends_the_node() {
    let mut node = Node::primary();
    let flags = rustix::mount::UnmountFlags::FORCE | rustix::mount::UnmountFlags::DETACH;
    rustix::mount::unmount(node.mount(), flags).expect("unmount");
    assert_eq!(node.wait_exit().code(), Some(1));
}

#[test]
fn a_copy_of_the_mount_in_another_namespace_does_not_hold_the_stop_up() {
    let mut node = Node::primary();
    cli(&node.db("a.db"), "CREATE TABLE t(x)").expect("create");
    let script = format!("touch {}/copied; exec sleep 1000", node.folder().display());
    let mut holder = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .stdin(Stdio::null())
        .spawn()
        .expect("unshare");
    wait_until("the namespace is there", &true, || node.folder().join("copied").exists());
    let code = node.stop();
    let log = node.log();
    node.launch();
    node.wait_ready();
    assert_eq!(cli(&node.db("a.db"), "SELECT count(*) FROM t").expect("read"), "0");
    holder.kill().expect("kill");
    holder.wait().expect("wait");
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn two_nodes_never_share_a_data_directory() {
    let first = Node::primary();
    let mut second = Node::new(NodeConfig::default());
    second.use_data_of(&first);
    second.launch();
    assert_eq!(second.wait_exit().code(), Some(1));
    assert!(second.log().contains("another litefs uses"), "it says why");
    assert!(first.get("/info").is_ok());
}

#[test]
fn a_taken_port_is_said_before_anything_is_mounted() {
    let port = free_port();
    let _taken = TcpListener::bind(("127.0.0.1", port)).expect("bind");
    let mut node = Node::new(NodeConfig::default());
    node.use_port(port);
    node.launch();
    assert_eq!(node.wait_exit().code(), Some(1));
    assert!(node.log().contains(&format!("127.0.0.1:{port}")), "it names the address");
    assert!(!is_mounted(&node.mount()));
}

#[test]
fn the_requests_of_the_file_system_are_logged_when_asked_for() {
    let node = Node::start(NodeConfig { fuse: "  debug: true\n".into(), ..NodeConfig::default() });
    cli(&node.db("a.db"), "CREATE TABLE t(x)").expect("create");
    let log = node.log();
    assert!(log.contains("LOOKUP") && log.contains("a.db-journal"), "{log}");
}

#[test]
fn no_configuration_at_all_is_a_single_primary() {
    let mut node = Node::new(NodeConfig { start: Start::Flags, ..NodeConfig::default() });
    node.launch();
    node.wait_ready();
    assert!(node.is_primary());
    assert!(node.log().contains(node.mount().to_str().expect("path")), "directories are said");
    cli(&node.db("a.db"), "CREATE TABLE t(x)").expect("write");
    assert_eq!(node.stop(), Some(0));
}
