//! A request on its way to the application or to the primary's proxy, and whether it can be sent once more.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use litefs::Txid;

use crate::body::{ReplayableBody, RequestBody, UpstreamBody};
use crate::client::ClientState;
use crate::forwarded;
use crate::h1::RequestHead;
use crate::headers::{self, HOP, Present, TXID};
use crate::request::Received;
use crate::server::Worker;
use crate::tunnel;
use crate::upstream::{SendFailure, SendOptions, Upstream};

/// What is left of the body for the next attempt.
enum Source {
    Empty,
    /// For one attempt; `None` while that attempt has it, and for ever when it was sent.
    Once(Option<RequestBody>),
    Kept(ReplayableBody),
}

/// A request as it leaves this proxy.
pub(crate) struct Outgoing {
    pub head: RequestHead,
    /// What the client sent in its header.
    present: Present,
    /// The client came over TLS.
    pub secure: bool,
    /// The TXID of the first database that the client has seen.
    pub seen: Txid,
    body: Source,
    response_timeout: Duration,
    /// gRPC: must be HTTP/2 all the way.
    h2: bool,
    /// To whom interim answers go; `None`: the client does not understand them.
    interim: Option<Arc<ClientState>>,
    upgrade: Option<(HeaderValue, OnUpgrade)>,
}

/// Why a request has no answer, and whether another attempt makes sense.
pub(crate) enum Failure {
    /// Nothing was sent.
    Unsent(std::io::Error),
    /// It may have been executed.
    Lost(String),
    Timeout,
}

impl Outgoing {
    /// Turns what the client sent into what an intermediary sends on. `keep_body`: the body's beginning is kept, so that
    /// it can be sent again.
    pub fn new(worker: &Worker, client: &Arc<ClientState>, request: Box<Received>, keep_body: bool) -> Box<Self> {
        let request = *request;
        let settings = &worker.shared.config.settings;
        let mut headers = request.headers;
        if request.present.hop_by_hop {
            headers::remove_hop_by_hop(&mut headers);
        }
        if request.present.expect {
            // The expectation is met here: "100 Continue" is sent when somebody wants the body.
            headers.remove(header::EXPECT);
        }
        let added = forwarded::add(&mut headers, client, request.present);
        if !request.present.host {
            // HTTP/1.0 need not name one, the version that we speak must (RFC 9112 §3.2). (HTTP/2 has named it otherwise.)
            headers.entry(header::HOST).or_insert_with(|| worker.shared.target_value.clone());
        }
        if request.trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
        if let Some((protocol, _)) = &request.upgrade {
            headers.insert(header::UPGRADE, protocol.clone());
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        let body = match RequestBody::from_client(request.body, client, request.body_complete) {
            RequestBody::Empty => Source::Empty,
            RequestBody::Client(body, clock) if keep_body => {
                Source::Kept(ReplayableBody::new(body, clock, settings.replay_buffer))
            }
            body => Source::Once(Some(body)),
        };
        Box::new(Self {
            head: RequestHead { method: request.method, target: request.target, headers, added },
            present: request.present,
            secure: request.secure,
            seen: request.token.first,
            body,
            response_timeout: settings.response_timeout,
            h2: request.grpc,
            interim: request.interim.then(|| Arc::clone(client)),
            upgrade: request.upgrade,
        })
    }

    /// The application does not see the tracker's own fields and cookies.
    pub fn for_application(mut self: Box<Self>) -> Box<Self> {
        if self.present.cookie {
            headers::tidy_cookies(&mut self.head.headers, true);
        }
        if self.present.ours {
            self.head.headers.remove(HOP);
            self.head.headers.remove(TXID);
        }
        self
    }

    /// The primary's proxy sees the token, and that it must not send the request on.
    pub fn for_peer(mut self: Box<Self>, worker: &Worker) -> Box<Self> {
        if self.present.cookie {
            headers::tidy_cookies(&mut self.head.headers, false);
        }
        self.present.ours = true;
        self.head.headers.insert(HOP, worker.shared.name_value.clone());
        self
    }

    /// Whether the method promises to change nothing.
    pub fn is_read(&self) -> bool {
        self.head.method == Method::GET || self.head.method == Method::HEAD
    }

    fn is_repeatable(&self) -> bool {
        self.head.method.is_idempotent() && matches!(self.body, Source::Empty) && self.upgrade.is_none()
    }

    /// Whether the request, which was sent but not executed, can be sent again.
    pub fn can_be_sent_again(&self) -> bool {
        match &self.body {
            Source::Empty => true,
            Source::Once(body) => body.is_some(),
            Source::Kept(body) => body.can_be_sent_again(),
        }
    }

    /// Reads the rest of a kept body, so that it survives the attempt whose answer is dropped. `false`: it is too large.
    pub async fn keep_whole_body(&self) -> bool {
        match &self.body {
            Source::Empty => true,
            Source::Once(_) => false,
            Source::Kept(body) => body.complete().await,
        }
    }

    /// The body for the next attempt. `None`: it is gone.
    fn attempt(&mut self) -> Option<RequestBody> {
        match &mut self.body {
            Source::Empty => Some(RequestBody::Empty),
            Source::Once(body) => body.take(),
            Source::Kept(body) => Some(body.attempt()),
        }
    }

    fn give_back(&mut self, unsent: Option<RequestBody>) {
        if let Source::Once(body) = &mut self.body {
            *body = unsent;
        }
    }

    /// Sends it. Once more at once, when a pooled connection had died and executing it twice would do no harm.
    pub async fn send(&mut self, worker: &Worker, to: &Arc<Upstream>) -> Result<Response<UpstreamBody>, Failure> {
        let mut retried = false;
        loop {
            let mut body = self.attempt();
            let begun = std::time::Instant::now();
            let options = SendOptions {
                response_timeout: self.response_timeout,
                h2: self.h2,
                upgrade: self.upgrade.is_some(),
                interim: self.interim.as_deref(),
            };
            let sent = to.send(&self.head, &mut body, options).await;
            match sent {
                Ok(response) => {
                    worker.shared.metrics.upstream.observe(begun.elapsed().as_secs_f64());
                    return Ok(self.tunnelled(worker, response));
                }
                Err(SendFailure::Unsent(error)) => {
                    self.give_back(body);
                    return Err(Failure::Unsent(error));
                }
                Err(SendFailure::Lost { crossed: true, .. }) if !retried && self.is_repeatable() => {
                    retried = true;
                    worker.shared.metrics.retries.inc();
                }
                Err(SendFailure::Lost { why, .. }) => return Err(Failure::Lost(why)),
                Err(SendFailure::Timeout) => return Err(Failure::Timeout),
            }
        }
    }

    /// Connects both sides, if the protocol changes with this answer.
    fn tunnelled(&mut self, worker: &Worker, response: Response<UpstreamBody>) -> Response<UpstreamBody> {
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return response;
        }
        response.map(|body| match (body, self.upgrade.take()) {
            (UpstreamBody::Switched(upstream), Some((_, client))) => {
                tunnel::start(worker, client, *upstream);
                UpstreamBody::Empty
            }
            (body, _) => body,
        })
    }
}

/// What the client gets of an answer: without what concerned the connection it came on, and without fields that only
/// this proxy may set (`from_peer`: the primary's proxy may, too).
pub(crate) fn finish(worker: &Worker, mut response: Response<UpstreamBody>, from_peer: bool) -> Response<UpstreamBody> {
    let present = Present::of(response.headers());
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let upgrade = if switching { response.headers().get(header::UPGRADE).cloned() } else { None };
    let headers = response.headers_mut();
    if present.hop_by_hop {
        headers::remove_hop_by_hop(headers);
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::UPGRADE, protocol);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if present.ours {
        headers.remove(HOP);
        if !from_peer {
            headers.remove(TXID);
            headers.remove(headers::OUTCOME);
        }
    }
    headers::append(headers, header::VIA, &worker.shared.via);
    *response.version_mut() = http::Version::HTTP_11;
    response
}
