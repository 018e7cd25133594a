//! How long after a commit its transaction is captured, seen from outside: the event of `GET /events`.

use std::io::{BufRead, BufReader};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::node::Node;
use crate::report::{Latency, percentile};
use crate::side::Side;

const EVENT_WAIT_MAX: Duration = Duration::from_secs(10);

/// Commits one row at a time at light load (500 a second) and waits for each one's event.
pub fn measure(node: &Node, commits: usize) -> Result<Latency> {
    let side = Side::new("litefs", node.mount());
    let db = side.open("latency.db", "WAL", "NORMAL")?;
    db.execute_batch("CREATE TABLE t (n INTEGER)")?;
    let (sender, events) = mpsc::channel();
    let stream = node.request("/events")?;
    let shutdown = stream.try_clone()?;
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            if line.contains("\"tx\"") && line.contains("latency.db") && sender.send(Instant::now()).is_err() {
                return;
            }
        }
    });
    let mut insert = db.prepare("INSERT INTO t VALUES (1)")?;
    // The first event shows that the subscription stands.
    loop {
        insert.execute([])?;
        if events.recv_timeout(Duration::from_millis(100)).is_ok() {
            break;
        }
    }
    while events.recv_timeout(Duration::from_millis(100)).is_ok() {}
    let mut micros = Vec::with_capacity(commits);
    for _ in 0..commits {
        insert.execute([])?;
        let committed = Instant::now();
        let seen = events.recv_timeout(EVENT_WAIT_MAX).context("no event for a commit within 10 s")?;
        micros.push(seen.saturating_duration_since(committed).as_secs_f64() * 1e6);
        std::thread::sleep(Duration::from_millis(2));
    }
    let _ = shutdown.shutdown(std::net::Shutdown::Both);
    let _ = reader.join();
    Ok(Latency { p50_us: percentile(&micros, 50.0), p99_us: percentile(&micros, 99.0), samples: commits })
}
