//! Read your writes on three nodes, also while the primary changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use litefs::DbName;
use litefs_proxy::{Positions as _, ProxySettings, Role};

use crate::support::*;

const CLIENTS: usize = 8;
const PAIRS: usize = 150;

/// An application that writes on the primary and answers with the number of the transaction, and reads what is here.
async fn app(node: &Arc<Node>) -> App {
    let node = Arc::clone(node);
    App::start(move |request| match request.method.as_str() {
        "POST" => match node.commit_if_primary() {
            Some(txid) => ok(&txid.to_string()),
            None => answer("409 Conflict", "", "read-only"),
        },
        _ => ok(&node.committed().to_string()),
    })
    .await
}

/// Passes on what the primary has published, a little late.
async fn replicate(nodes: Arc<Vec<Arc<Node>>>, primary: Arc<AtomicUsize>, stop: Arc<AtomicBool>) {
    let db: DbName = "app.db".parse().expect("name");
    while !stop.load(Ordering::SeqCst) {
        let published = nodes[primary.load(Ordering::SeqCst)].txid(&db).expect("exists");
        tokio::time::sleep(Duration::from_millis(fastrand_ms())).await;
        for (index, node) in nodes.iter().enumerate() {
            if index != primary.load(Ordering::SeqCst) && node.txid(&db).expect("exists") < published {
                node.advance("app.db", published.0);
            }
        }
    }
}

/// 1 to 8, different each time.
fn fastrand_ms() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0) % 8 + 1
}

/// Hands the role to the next node, as a clean handoff does: nothing is lost.
async fn hand_over(nodes: &[Arc<Node>], running: &[Running], primary: &AtomicUsize) {
    let db: DbName = "app.db".parse().expect("name");
    let old = primary.load(Ordering::SeqCst);
    let new = (old + 1) % nodes.len();
    for node in nodes {
        node.set_role(Role::NoPrimary);
    }
    let last = nodes[old].position_now(&db).expect("captured").expect("exists");
    eventually("the successor has everything", || nodes[new].txid(&db).expect("exists") >= last).await;
    primary.store(new, Ordering::SeqCst);
    nodes[new].set_role(Role::Primary);
    for (index, node) in nodes.iter().enumerate() {
        if index != new {
            node.set_role(running[new].as_primary());
        }
    }
}

/// Writes through one node and reads through another, again and again.
async fn client(urls: Vec<String>) {
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let mut token = String::from("0000000000000000");
    let mut done = 0;
    while done < PAIRS {
        let any = || &urls[fastrand_ms() as usize % urls.len()];
        let write = within(client.post(any()).header("Litefs-Txid", &token).send()).await.expect("answer");
        if !write.status().is_success() {
            // The role changed between proxy and application; nothing was written.
            assert_eq!(write.status(), 409);
            continue;
        }
        token = write.headers()["litefs-txid"].to_str().expect("text").to_owned();
        let written: u64 = within(write.text()).await.expect("body").parse().expect("a number");
        assert!(u64::from_str_radix(&token, 16).expect("hex") >= written, "the token covers the write");
        let read = within(client.get(any()).header("Litefs-Txid", &token).send()).await.expect("answer");
        assert_eq!(read.status(), 200);
        let seen: u64 = within(read.text()).await.expect("body").parse().expect("a number");
        assert!(seen >= written, "stale: wrote {written}, read {seen}");
        done += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_read_is_stale_on_any_node_while_the_primary_moves() {
    let (mut nodes, mut apps, mut running) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        let node = Node::new(Role::NoPrimary);
        let app = app(&node).await;
        let short = ProxySettings { replica_wait: Duration::from_millis(4), workers: 1, ..settings(app.addr) };
        running.push(start(&node, short));
        apps.push(app);
        nodes.push(node);
    }
    let (nodes, primary, stop) = (Arc::new(nodes), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let replication = tokio::spawn(replicate(Arc::clone(&nodes), Arc::clone(&primary), Arc::clone(&stop)));
    hand_over(&nodes, &running, &primary).await;
    let urls: Vec<_> = running.iter().map(|proxy| proxy.url("/")).collect();
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(client(urls.clone()))).collect();
    let written = |nodes: &[Arc<Node>]| nodes.iter().map(|node| node.committed()).max().expect("nodes");
    let mut moves = 0;
    while !clients.iter().all(tokio::task::JoinHandle::is_finished) {
        let before = written(&nodes);
        eventually("writes go on", || {
            written(&nodes) > before + 40 || clients.iter().all(tokio::task::JoinHandle::is_finished)
        })
        .await;
        hand_over(&nodes, &running, &primary).await;
        moves += 1;
    }
    for client in clients.drain(..) {
        client.await.expect("no stale read");
    }
    stop.store(true, Ordering::SeqCst);
    replication.await.expect("replication");
    assert!(moves > 5, "the primary moved only {moves} times");
    let decided = |name| running.iter().map(|proxy| proxy.metrics.decided(name)).sum::<u64>();
    assert!(decided("waited") > 0 && decided("forwarded") > 0);
}
