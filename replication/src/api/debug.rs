//! `GET /metrics` and `/debug/*`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use pprof::ProfilerGuardBuilder;
use pprof::protos::Message;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use crate::metrics::prometheus_text;
use crate::node::Shared;

/// Samples per second of processor time.
const PROFILE_HZ: i32 = 100;
/// The longest profile.
const PROFILE_SECONDS_MAX: u64 = 300;

pub(super) async fn metrics(State(shared): State<Arc<Shared>>) -> Result<Response, ApiError> {
    // Collecting asks the store, which may wait for a moment.
    let text = tokio::task::spawn_blocking(move || prometheus_text(&shared.registry)).await;
    match text {
        Ok(Ok(text)) => {
            Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
        }
        _ => Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "encode the metrics")),
    }
}

pub(super) async fn vars(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let status = tokio::fs::read_to_string("/proc/self/status").await.unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|value| value.trim().to_owned())
    };
    let positions: serde_json::Map<_, _> =
        shared.store.positions().into_iter().map(|(name, pos)| (name.to_string(), json!(pos))).collect();
    Json(json!({
        "cmdline": std::env::args().collect::<Vec<_>>(),
        "pid": std::process::id(),
        "uptimeSeconds": shared.started.elapsed().as_secs(),
        "memory": { "rss": field("VmRSS"), "peak": field("VmHWM") },
        "threads": field("Threads"),
        "isPrimary": shared.role.is_primary(),
        "positions": positions,
        "streams": shared.subscribers.count(),
    }))
}

/// A random number, as the original answers; good for telling whether answers are cached on the way.
pub(super) async fn rand() -> String {
    format!("{:016x}\n", fastrand::u64(..))
}

pub(super) async fn index() -> Html<&'static str> {
    Html(
        "<html><head><title>/debug/pprof/</title></head><body><ul>\
         <li><a href=\"profile?seconds=10\">profile</a>: processor time, for <code>go tool pprof</code></li>\
         <li><a href=\"cmdline\">cmdline</a></li></ul></body></html>\n",
    )
}

pub(super) async fn cmdline() -> String {
    std::env::args().collect::<Vec<_>>().join("\0")
}

#[derive(Debug, Deserialize)]
pub(super) struct ProfileQuery {
    seconds: Option<u64>,
}

/// One profile at a time: there is one timer per process.
struct Profiling;

static PROFILING: AtomicBool = AtomicBool::new(false);

impl Profiling {
    fn start() -> Option<Self> {
        (!PROFILING.swap(true, Ordering::AcqRel)).then_some(Self)
    }
}

impl Drop for Profiling {
    fn drop(&mut self) {
        PROFILING.store(false, Ordering::Release);
    }
}

pub(super) async fn profile(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<ProfileQuery>,
) -> Result<Response, ApiError> {
    let seconds = query.seconds.unwrap_or(30).clamp(1, PROFILE_SECONDS_MAX);
    let running =
        Profiling::start().ok_or_else(|| ApiError::new(StatusCode::CONFLICT, "another profile is being taken"))?;
    let failed = |error: pprof::Error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("profile: {error}"));
    let guard = ProfilerGuardBuilder::default().frequency(PROFILE_HZ).build().map_err(failed)?;
    tokio::select! {
        () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
        () = shared.closing.cancelled() => {}
    }
    let profile = tokio::task::spawn_blocking(move || {
        let profile = guard.report().build().and_then(|report| report.pprof());
        drop((guard, running));
        profile.map(|profile| profile.encode_to_vec())
    });
    let bytes = profile
        .await
        .map_err(|panic| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, panic.to_string()))?
        .map_err(failed)?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}
