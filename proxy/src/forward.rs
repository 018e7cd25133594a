//! Send to the primary, wherever it is: by the platform, by ourselves, or by the client.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Response};
use hyper::body::Body as _;
use tokio::time::Instant;

use crate::answer::Answer;
use crate::body::UpstreamBody;
use crate::client::ClientState;
use crate::config::{ForwardMode, HostPort};
use crate::fly_replay::{self, FlyReplay};
use crate::headers::{HOP, REFUSED};
use crate::local;
use crate::metrics::Decision;
use crate::node::Primary;
use crate::outgoing::{Failure, Outgoing, finish};
use crate::request::Received;
use crate::server::Worker;
use crate::wait::{self, Found};

/// Fly.io replays bodies up to this size.
const FLY_REPLAY_BODY_BYTES_MAX: u64 = 1_000_000;
/// Before the second attempt at a primary that takes no connections; doubled for every further one, up to [`AGREEMENT`].
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Between two attempts at a node that says it is not the primary, unless the cluster agrees on another one before.
const AGREEMENT: Duration = Duration::from_secs(1);

/// A request that only the primary may answer.
pub(crate) async fn to_primary(
    worker: &Worker,
    client: &Arc<ClientState>,
    request: Box<Received>,
    reason: &'static str,
) -> Answer {
    if request.from_peer {
        return Answer::refused();
    }
    let deadline = Instant::now() + worker.shared.config.settings.primary_redirect_timeout;
    let primary = match wait::for_primary(&worker.shared, deadline).await {
        None => return Answer::no_primary("no primary known in time"),
        Some(Found::We) => {
            let outgoing = Outgoing::new(worker, client, request, false);
            return local::as_primary(worker, outgoing, "became the primary").await;
        }
        Some(Found::Other(primary)) => primary,
    };
    match worker.shared.config.mode {
        ForwardMode::Redirect => return Answer::redirect(url(worker, &primary) + request.target.as_str()),
        ForwardMode::FlyReplay if fly_can_replay(&request) => return Answer::fly_replay(&primary.hostname),
        ForwardMode::FlyReplay | ForwardMode::Http => {}
    }
    let length = request.body.size_hint().exact();
    let keep_body = length.is_none_or(|bytes| bytes <= worker.shared.config.settings.replay_buffer as u64);
    let outgoing = Outgoing::new(worker, client, request, keep_body).for_peer(worker);
    by_http(worker, outgoing, primary, deadline, Decision::Forwarded, reason).await
}

/// Fly.io cannot replay a body of unknown length, or a large one.
fn fly_can_replay(request: &Received) -> bool {
    request.body.is_end_stream()
        || request.body.size_hint().exact().is_some_and(|bytes| bytes <= FLY_REPLAY_BODY_BYTES_MAX)
}

/// The application on this replica has answered `fly-replay`, and this is not Fly.io: the request is sent to the primary,
/// which is what such an application means by any instance or region.
pub(crate) async fn for_application(worker: &Worker, mut request: Box<Outgoing>, replay: &FlyReplay) -> Answer {
    let shared = &worker.shared;
    if request.head.headers.contains_key(fly_replay::SOURCE_HEADER) {
        return Answer::retry_elsewhere("replayed once already");
    }
    if !request.keep_whole_body().await {
        return Answer::body_too_large("the application asks for a replay, but the body was not kept");
    }
    let deadline = Instant::now() + shared.config.settings.primary_redirect_timeout;
    let primary = match wait::for_primary(shared, deadline).await {
        None => return Answer::no_primary("the application asks for a replay, but there is no primary"),
        Some(Found::We) => return local::as_primary(worker, request, "replayed, and became the primary").await,
        Some(Found::Other(primary)) => primary,
    };
    if shared.config.mode == ForwardMode::Redirect {
        return Answer::redirect(format!("{}{}", url(worker, &primary), request.head.target));
    }
    let state = replay.state.as_deref().map(|state| format!(";state={state}")).unwrap_or_default();
    if let Ok(source) = HeaderValue::try_from(format!("instance={}{state}", shared.config.settings.hostname)) {
        request.head.headers.insert(HeaderName::from_static(fly_replay::SOURCE_HEADER), source);
    }
    let request = request.for_peer(worker);
    by_http(worker, request, primary, deadline, Decision::AppReplayed, "replayed for the application").await
}

/// Sends to the primary's proxy until `deadline`: a primary that cannot be reached, or says that it is none, may be gone, and
/// the next one known in a moment. What may have been executed is never sent again.
async fn by_http(
    worker: &Worker,
    mut request: Box<Outgoing>,
    mut primary: Primary,
    deadline: Instant,
    decision: Decision,
    reason: &'static str,
) -> Answer {
    let shared = &worker.shared;
    let mut pause = RETRY_INTERVAL;
    let left = || deadline.saturating_duration_since(Instant::now());
    loop {
        let Some(address) = address(worker, &primary) else {
            return Answer::bad_gateway("the primary's URL is not usable", Decision::PrimaryFailed, "bad primary URL");
        };
        match request.send(worker, &worker.peer(&address)).await {
            Ok(response) if is_refusal(&response) => {
                let again = !left().is_zero() && request.keep_whole_body().await;
                if !again || !wait::for_change(shared, &primary, left().min(AGREEMENT)).await {
                    return Answer::no_primary("the node taken for the primary is not");
                }
            }
            Ok(response) => return Answer::new(finish(worker, response, true), decision, reason),
            Err(Failure::Unsent(error)) => {
                tracing::debug!(%error, primary = primary.hostname, "primary takes no connections");
                if left().is_zero() || !wait::for_change(shared, &primary, left().min(pause)).await {
                    return Answer::no_primary("the primary takes no connections");
                }
                pause = (pause * 2).min(AGREEMENT);
            }
            Err(Failure::Lost(why)) => return Answer::lost(&why, Decision::PrimaryFailed, !request.is_read()),
            Err(Failure::Timeout) => return Answer::silent("the primary does not answer", !request.is_read()),
        }
        primary = match wait::for_primary(shared, deadline).await {
            None => return Answer::no_primary("the primary is gone, and no other known in time"),
            Some(Found::We) => return local::as_primary(worker, request, "became the primary").await,
            Some(Found::Other(primary)) => primary,
        };
    }
}

fn is_refusal(response: &Response<UpstreamBody>) -> bool {
    response.headers().get(HOP).is_some_and(|value| value == REFUSED)
}

/// Where the primary's proxy is, for requests or for clients. A primary that published nothing runs LiteFS, whose proxy
/// is taken to listen on our port.
fn url(worker: &Worker, primary: &Primary) -> String {
    match &primary.proxy_url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => {
            let authority = HostPort { host: primary.hostname.clone(), port: worker.shared.port }.authority();
            format!("http://{authority}")
        }
    }
}

fn address(worker: &Worker, primary: &Primary) -> Option<HostPort> {
    let url = url(worker, primary);
    let authority = url.strip_prefix("http://")?;
    let with_port = |text: &str| HostPort::parse(text).ok();
    with_port(authority).or_else(|| with_port(&format!("{authority}:80")))
}
