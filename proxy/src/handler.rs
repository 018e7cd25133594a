//! One request through its phases.

use std::sync::Arc;
use std::time::Instant;

use http::{Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;

use crate::answer::Answer;
use crate::body::AnswerBody;
use crate::client::{ClientState, RequestGuard};
use crate::metrics::Decision;
use crate::outgoing::Outgoing;
use crate::request::{self, Received};
use crate::route::{Route, route};
use crate::server::{Shared, Worker};
use crate::wait::{self, Reached};
use crate::{forward, local};

/// Serves one request. There is always an answer; only a client that leaves ends this earlier (the future is dropped,
/// and with it the request upstream).
pub(crate) async fn handle(client: Arc<ClientState>, request: Request<Incoming>) -> Response<AnswerBody> {
    let guard = RequestGuard::new(client);
    let client = &guard.client;
    let worker = &client.worker;
    let shared = &worker.shared;
    let line = LogLine::begin(shared, &request);
    let answer = match request::receive(request, client, &shared.name) {
        Ok(received) if received.body_complete.is_some() && !shared.config.settings.read_timeout.is_zero() => {
            Box::pin(serve_in_time(worker, client, received)).await
        }
        Ok(received) => serve(worker, client, received).await,
        Err(rejected) => *rejected,
    };
    shared.metrics.count(answer.decision);
    if let Some(line) = line {
        line.write(shared, client, &answer);
    }
    answer.response.map(|body| AnswerBody::new(body, guard))
}

/// An HTTP/2 stream under `proxy.read-timeout`: its body must be complete by then, or the answer have begun.
/// (HTTP/1.1 has its connection's timer.)
async fn serve_in_time(worker: &Arc<Worker>, client: &Arc<ClientState>, request: Box<Received>) -> Answer {
    let complete = request.body_complete.clone().unwrap_or_default();
    let limit = worker.shared.config.settings.read_timeout;
    let too_slow = async {
        if tokio::time::timeout(limit, complete.cancelled()).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        answer = serve(worker, client, request) => answer,
        () = too_slow => {
            worker.shared.metrics.timeouts.inc();
            Answer::bad_request(StatusCode::REQUEST_TIMEOUT, "the request's body takes too long")
        }
    }
}

async fn serve(worker: &Arc<Worker>, client: &Arc<ClientState>, request: Box<Received>) -> Answer {
    let shared = &worker.shared;
    let (positions, cluster) = (shared.positions.as_ref(), shared.cluster.as_ref());
    let route = route(&shared.config, &request, shared.is_primary(), positions, cluster);
    let to_application = |request, keep_body| Outgoing::new(worker, client, request, keep_body);
    match route {
        Route::Passthrough => {
            let request = to_application(request, shared.performs_replays());
            local::as_replica(worker, request, Decision::Passthrough, "matches a passthrough glob").await
        }
        Route::Health => health(shared),
        Route::Primary => local::as_primary(worker, to_application(request, false), "this node is the primary").await,
        Route::Fresh => {
            let request = to_application(request, shared.performs_replays());
            local::as_replica(worker, request, Decision::Local, "nothing newer is needed").await
        }
        // Boxed: the future of every request would be as large as these, and is moved once.
        Route::Wait => Box::pin(wait_and_serve(worker, client, request)).await,
        Route::NeedsPrimary => Box::pin(forward::to_primary(worker, client, request, "needs the primary")).await,
    }
}

async fn wait_and_serve(worker: &Worker, client: &Arc<ClientState>, request: Box<Received>) -> Answer {
    let shared = &worker.shared;
    let (decision, reason) = match wait::for_position(shared, &request.token).await {
        Reached::Here => (Decision::Waited, "waited for the client's position"),
        Reached::WePrimary => {
            let request = Outgoing::new(worker, client, request, false);
            return local::as_primary(worker, request, "became the primary").await;
        }
        Reached::AskPrimary => {
            let answer = forward::to_primary(worker, client, request, "behind the client's position").await;
            return match answer.decision {
                Decision::NoPrimary => Answer::timeout("behind the client's position, and no primary answers"),
                _ => answer,
            };
        }
        Reached::Nobody if !tracks_anything(shared) => (Decision::Local, "no tracked database here"),
        Reached::Nobody => return Answer::timeout("behind the client's position, and no primary to ask"),
    };
    let request = Outgoing::new(worker, client, request, shared.performs_replays());
    local::as_replica(worker, request, decision, reason).await
}

/// COMPAT §8: without the database there is nothing to wait for.
fn tracks_anything(shared: &Shared) -> bool {
    shared.config.databases.iter().any(|db| shared.positions.txid(db).is_some())
}

fn health(shared: &Shared) -> Answer {
    if let Some(why) = shared.cluster.unhealthy() {
        return Answer::unhealthy(why);
    }
    if shared.is_primary() {
        return Answer::healthy();
    }
    let max_lag = shared.config.settings.max_lag;
    match shared.cluster.lag() {
        None => Answer::unhealthy("this replica has not been in sync with a primary yet".into()),
        Some(lag) if lag > max_lag => Answer::unhealthy(format!("replication lag {lag:?} exceeds {max_lag:?}")),
        Some(_) => Answer::healthy(),
    }
}

/// What the debug line says of the request; remembered only when somebody wants the line.
struct LogLine {
    method: Method,
    uri: Uri,
    begun: Instant,
}

impl LogLine {
    fn begin(shared: &Shared, request: &Request<Incoming>) -> Option<Box<Self>> {
        let wanted = shared.config.settings.debug || tracing::enabled!(tracing::Level::DEBUG);
        let (method, uri) = (request.method(), request.uri());
        wanted.then(|| Box::new(Self { method: method.clone(), uri: uri.clone(), begun: Instant::now() }))
    }

    fn write(&self, shared: &Shared, client: &ClientState, answer: &Answer) {
        macro_rules! line {
            ($level:expr) => {
                tracing::event!(
                    $level,
                    method = %self.method,
                    path = self.uri.path(),
                    client = %client.peer,
                    decision = answer.decision.name(),
                    reason = answer.reason,
                    status = answer.response.status().as_u16(),
                    elapsed_us = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX),
                    "proxy"
                )
            };
        }
        // `proxy.debug` asks for these lines whatever the log's level is.
        if shared.config.settings.debug { line!(tracing::Level::INFO) } else { line!(tracing::Level::DEBUG) }
    }
}
