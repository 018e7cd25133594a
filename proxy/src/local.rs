//! Send to the application on this node, and, on the primary, say which transaction the answer stands for.

use std::time::{Duration, Instant};

use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderValue, Response};
use litefs::Txid;

use crate::answer::Answer;
use crate::body::UpstreamBody;
use crate::config::ForwardMode;
use crate::connection::HEADERS_MAX;
use crate::fly_replay::{self, FlyReplay};
use crate::forward;
use crate::headers::{FLY_REPLAY, TXID};
use crate::metrics::Decision;
use crate::outgoing::{Failure, Outgoing, finish};
use crate::server::{Shared, Worker};
use crate::token::Token;

/// Between two attempts at an application that refuses connections (it is starting).
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// A request that this node's copy of the data can answer, or that is not tracked at all.
pub(crate) async fn as_replica(
    worker: &Worker,
    request: Box<Outgoing>,
    decision: Decision,
    reason: &'static str,
) -> Answer {
    let mut request = request.for_application();
    match send(worker, &mut request).await {
        Err(answer) => *answer,
        Ok(response) => match wanted_replay(worker, &response) {
            Some(replay) => Box::pin(forward::for_application(worker, request, &replay)).await,
            None => Answer::new(finish(worker, response, false), decision, reason),
        },
    }
}

/// A request on the primary: the answer carries the token of what it did, and leaves only if the lease covers that.
pub(crate) async fn as_primary(worker: &Worker, request: Box<Outgoing>, reason: &'static str) -> Answer {
    let shared = &worker.shared;
    let mut request = request.for_application();
    let before = Tracked::published(shared);
    let mut response = match send(worker, &mut request).await {
        Ok(response) => response,
        Err(answer) => return *answer,
    };
    if wanted_replay(worker, &response).is_some() {
        // The application took another node for the primary. It knows better by now, if it can be asked again.
        if !request.can_be_sent_again() {
            return Answer::retry_elsewhere("the application asks for a replay on the primary itself");
        }
        response = match send(worker, &mut request).await {
            Ok(second) if wanted_replay(worker, &second).is_none() => second,
            Ok(_) => return Answer::retry_elsewhere("the application keeps asking for a replay on the primary itself"),
            Err(answer) => return *answer,
        };
    }
    let response = finish(worker, response, false);
    match Tracked::captured(shared).await {
        Err(()) => Answer::unconfirmed("what the request wrote could not be captured"),
        Ok((after, captured_at)) => {
            let wrote = after != before;
            let covered = shared.cluster.lease_covers(captured_at);
            if wrote && !covered {
                return Answer::unconfirmed("the lease did not cover the moment of the write");
            }
            // A client that has seen what this cluster never will (a lost tail, a forged value) is told the truth.
            let ahead = covered && after.first().is_some_and(|txid| request.seen > txid);
            let tell = after.exists() && (wrote || ahead || !request.is_read());
            Answer::new(
                if tell { with_token(response, &after.token(shared), request.secure) } else { response },
                Decision::Local,
                reason,
            )
        }
    }
}

/// Sends to the application; one that refuses connections is tried again for `proxy.target-timeout` (COMPAT §8).
async fn send(worker: &Worker, request: &mut Outgoing) -> Result<Response<UpstreamBody>, Box<Answer>> {
    let settings = &worker.shared.config.settings;
    let begun = Instant::now();
    loop {
        let answer = match request.send(worker, &worker.target).await {
            Ok(response) if response.headers().len() <= HEADERS_MAX => return Ok(response),
            Ok(_) => Answer::lost("too many header fields", Decision::TargetFailed, !request.is_read()),
            Err(Failure::Unsent(error)) if begun.elapsed() < settings.target_timeout => {
                tracing::debug!(%error, "application takes no connections, trying again");
                tokio::time::sleep(RETRY_INTERVAL).await;
                continue;
            }
            Err(Failure::Unsent(error)) => {
                Answer::bad_gateway(&error.to_string(), Decision::TargetDown, "the application takes no connections")
            }
            Err(Failure::Lost(why)) => Answer::lost(&why, Decision::TargetFailed, !request.is_read()),
            Err(Failure::Timeout) => Answer::silent("the application does not answer", !request.is_read()),
        };
        return Err(Box::new(answer));
    }
}

/// Whether the application asks for what the platform does on Fly.io, and we have to do it instead.
fn wanted_replay(worker: &Worker, response: &Response<UpstreamBody>) -> Option<FlyReplay> {
    if worker.shared.config.mode == ForwardMode::FlyReplay {
        return None;
    }
    let value = response.headers().get(FLY_REPLAY)?;
    fly_replay::parse(value.as_bytes()).filter(FlyReplay::is_for_this_cluster)
}

/// Positions of the tracked databases, in their configured order.
#[derive(Debug, PartialEq, Eq)]
struct Tracked(Vec<Option<Txid>>);

impl Tracked {
    fn published(shared: &Shared) -> Self {
        Self(shared.config.databases.iter().map(|db| shared.positions.txid(db)).collect())
    }

    /// Everything committed so far, and the last moment at which one of them was captured.
    async fn captured(shared: &Shared) -> Result<(Self, Instant), ()> {
        let mut positions = Vec::with_capacity(shared.config.databases.len());
        let mut captured_at = Instant::now();
        for db in &shared.config.databases {
            let (txid, at) = shared.capture.position_now(db).await?;
            positions.push(txid);
            captured_at = at;
        }
        Ok((Self(positions), captured_at))
    }

    fn first(&self) -> Option<Txid> {
        self.0.first().copied().flatten()
    }

    fn exists(&self) -> bool {
        self.0.iter().any(Option::is_some)
    }

    fn token(&self, shared: &Shared) -> Token {
        let others = shared.config.databases.iter().zip(&self.0).skip(1);
        Token {
            first: self.first().unwrap_or(Txid::ZERO),
            named: others.filter_map(|(db, txid)| Some((db.as_str().to_owned(), (*txid)?))).collect(),
        }
    }
}

fn with_token(mut response: Response<UpstreamBody>, token: &Token, secure: bool) -> Response<UpstreamBody> {
    let headers: &mut HeaderMap = response.headers_mut();
    for cookie in token.set_cookies(std::time::SystemTime::now(), secure) {
        headers.append(SET_COOKIE, cookie);
    }
    if let Ok(value) = HeaderValue::try_from(token.to_text()) {
        headers.insert(TXID, value);
    }
    response
}
