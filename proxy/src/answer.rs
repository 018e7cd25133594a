//! Answers that the proxy gives itself.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use crate::body::UpstreamBody;
use crate::headers::{FLY_REPLAY, HOP, OUTCOME, REFUSED};
use crate::metrics::Decision;

/// What became of a request: the answer, the decision it is counted under, and the reason for the log.
pub(crate) struct Answer {
    pub response: Response<UpstreamBody>,
    pub decision: Decision,
    pub reason: &'static str,
}

impl Answer {
    pub fn new(response: Response<UpstreamBody>, decision: Decision, reason: &'static str) -> Self {
        Self { response, decision, reason }
    }

    fn text(status: StatusCode, text: impl Into<Bytes>, decision: Decision, reason: &'static str) -> Self {
        let mut response = Response::new(UpstreamBody::Full(text.into()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        Self { response, decision, reason }
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.response.headers_mut().insert(name, value);
        self
    }

    fn retry_after_a_second(self) -> Self {
        self.with(header::RETRY_AFTER, HeaderValue::from_static("1"))
    }

    pub fn healthy() -> Self {
        Self::text(StatusCode::OK, "OK", Decision::Health, "healthy")
    }

    pub fn unhealthy(why: String) -> Self {
        Self::text(StatusCode::SERVICE_UNAVAILABLE, why + "\n", Decision::Health, "unhealthy")
    }

    /// A request that is not understood or not acceptable. The connection is closed: what follows cannot be trusted.
    pub fn bad_request(status: StatusCode, why: &'static str) -> Self {
        Self::text(status, format!("Bad request: {why}\n"), Decision::BadRequest, why)
            .with(header::CONNECTION, HeaderValue::from_static("close"))
    }

    /// The platform is to repeat the request at the primary (COMPAT §8).
    pub fn fly_replay(primary: &str) -> Self {
        let response = Response::new(UpstreamBody::Empty);
        let answer = Self::new(response, Decision::Replayed, "replayed at the primary by Fly.io");
        match HeaderValue::try_from(format!("instance={primary}")) {
            Ok(value) => answer.with(FLY_REPLAY, value),
            Err(_) => Self::no_primary("the primary's hostname cannot be in a header"),
        }
    }

    pub fn redirect(location: String) -> Self {
        let Ok(location) = HeaderValue::try_from(location) else {
            return Self::no_primary("the primary's URL cannot be in a header");
        };
        Self::text(StatusCode::TEMPORARY_REDIRECT, "", Decision::Redirected, "client redirected to the primary")
            .with(header::LOCATION, location)
    }

    pub fn no_primary(reason: &'static str) -> Self {
        let text = "Proxy error: no primary available\n";
        Self::text(StatusCode::SERVICE_UNAVAILABLE, text, Decision::NoPrimary, reason).retry_after_a_second()
    }

    /// Another proxy took us for the primary.
    pub fn refused() -> Self {
        let text = "Proxy error: this node is not the primary\n";
        Self::text(StatusCode::SERVICE_UNAVAILABLE, text, Decision::Refused, "forwarded here, but not the primary")
            .retry_after_a_second()
            .with(HOP, REFUSED)
    }

    pub fn timeout(reason: &'static str) -> Self {
        Self::text(StatusCode::GATEWAY_TIMEOUT, "Proxy timeout\n", Decision::Timeout, reason)
    }

    /// The write may be lost: the lease did not cover it, or it could not be captured.
    pub fn unconfirmed(reason: &'static str) -> Self {
        let text = "Proxy error: the write could not be confirmed; it may or may not be kept\n";
        Self::text(StatusCode::SERVICE_UNAVAILABLE, text, Decision::Unconfirmed, reason)
            .retry_after_a_second()
            .with(OUTCOME, HeaderValue::from_static("unconfirmed"))
    }

    pub fn bad_gateway(why: &str, decision: Decision, reason: &'static str) -> Self {
        Self::text(StatusCode::BAD_GATEWAY, format!("Proxy error: {why}\n"), decision, reason)
    }

    /// Sent, and no answer in time.
    pub fn silent(reason: &'static str, was_write: bool) -> Self {
        Self::timeout(reason).unconfirmed_if(was_write)
    }

    /// Sent, and nothing came back that is an answer.
    pub fn lost(why: &str, decision: Decision, was_write: bool) -> Self {
        let reason = "the connection broke before there was an answer";
        Self::bad_gateway(why, decision, reason).unconfirmed_if(was_write)
    }

    fn unconfirmed_if(self, was_write: bool) -> Self {
        if was_write { self.with(OUTCOME, HeaderValue::from_static("unconfirmed")) } else { self }
    }

    pub fn body_too_large(reason: &'static str) -> Self {
        let text = "Proxy error: the body is too large to be sent a second time (proxy.replay-buffer)\n";
        Self::text(StatusCode::PAYLOAD_TOO_LARGE, text, Decision::AppReplayed, reason)
    }

    /// The application asked for something the cluster cannot do for this request now.
    pub fn retry_elsewhere(reason: &'static str) -> Self {
        let text = "Proxy error: the application asked for a replay that is not possible now\n";
        Self::text(StatusCode::SERVICE_UNAVAILABLE, text, Decision::AppReplayed, reason).retry_after_a_second()
    }
}
