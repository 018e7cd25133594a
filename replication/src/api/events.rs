//! `GET /events`: newline-delimited JSON.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use litefs::store::Event;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::node::Shared;
use crate::roles::RoleState;

/// Events a consumer may be behind; then it is disconnected.
const BEHIND_MAX: usize = 1024;

pub(super) async fn events(State(shared): State<Arc<Shared>>) -> Response {
    let (lines, receiver) = mpsc::channel(BEHIND_MAX);
    shared.tasks.spawn(feed(shared.clone(), lines));
    let lines = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|line| (Ok::<Bytes, std::convert::Infallible>(line), receiver))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

async fn feed(shared: Arc<Shared>, lines: mpsc::Sender<Bytes>) {
    let (mut transactions, mut role) = (shared.store.events(), shared.role.subscribe());
    let mut told = role_json(&role.borrow_and_update());
    let mut line = json!({ "type": "init", "data": told });
    loop {
        let mut bytes = line.to_string();
        bytes.push('\n');
        if lines.try_send(bytes.into()).is_err() {
            // Gone, or too slow.
            return;
        }
        line = loop {
            tokio::select! {
                event = transactions.recv() => match event {
                    Ok(event) => break event_json(&event),
                    Err(_) => return,
                },
                changed = role.changed() => {
                    let now = role_json(&role.borrow_and_update());
                    if changed.is_err() {
                        return;
                    }
                    if now != told {
                        told = now;
                        break json!({ "type": "primaryChange", "data": told });
                    }
                }
                () = shared.closing.cancelled() => return,
                () = lines.closed() => return,
            }
        };
    }
}

fn role_json(state: &RoleState) -> Value {
    let hostname = state.primary.as_ref().map(|primary| primary.hostname.as_str()).unwrap_or_default();
    json!({ "isPrimary": state.is_primary(), "hostname": hostname })
}

fn event_json(event: &Event) -> Value {
    let Event::Tx { db, pos, page_size, commit, timestamp_ms } = event;
    // Beyond the year 9999 there is no RFC 3339: a damaged clock, not a reason to fail.
    let timestamp = UNIX_EPOCH + Duration::from_millis((*timestamp_ms).min(253_402_300_799_000));
    json!({
        "type": "tx",
        "db": db.as_str(),
        "data": {
            "txID": pos.txid,
            "postApplyChecksum": pos.checksum,
            "pageSize": page_size,
            "commit": commit,
            "timestamp": humantime::format_rfc3339_millis(timestamp).to_string(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use litefs::{Checksum, Pos, Txid};

    #[test]
    fn a_transaction_is_the_originals_json() {
        let event = Event::Tx {
            db: "x".parse().expect("a name"),
            pos: Pos::new(Txid(2), Checksum::EMPTY),
            page_size: 4096,
            commit: 2,
            timestamp_ms: 1_795_411_923_190,
        };
        let expected = json!({"type":"tx","db":"x","data":{"txID":"0000000000000002",
            "postApplyChecksum":"8000000000000000","pageSize":4096,"commit":2,"timestamp":"2026-11-23T05:32:03.190Z"}});
        let json = event_json(&event);
        assert_eq!(json["data"]["txID"], expected["data"]["txID"]);
        assert_eq!(json["data"]["postApplyChecksum"], expected["data"]["postApplyChecksum"]);
        assert_eq!(json["db"], "x");
        assert_eq!(json["data"].as_object().expect("data").len(), 5);
        event_json(&Event::Tx {
            db: "x".parse().expect("a name"),
            pos: Pos::ZERO,
            page_size: 0,
            commit: 0,
            timestamp_ms: u64::MAX,
        });
    }
}
