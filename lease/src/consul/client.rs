//! Consul's HTTP API, as much of it as a lease needs: sessions, keys, transactions, blocking queries.

use std::time::Duration;

use reqwest::{Method, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::model::{KeyValue, Operation, SessionCreated, SessionSpec, TxnAnswer};
use crate::leaser::{LeaseError, LeaseId};

/// The largest answer that is read: far more than a lease's keys hold.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// How much later than its `wait` a blocking query may answer: Consul adds up to a sixteenth, the rest is the network.
const WATCH_GRACE: Duration = Duration::from_secs(3);

/// A connection to one Consul agent. Every request has a timeout.
#[derive(Debug, Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<String>,
    timeout: Duration,
}

/// An answer with a status that the caller understands.
struct Answer {
    status: StatusCode,
    index: u64,
    body: Vec<u8>,
}

/// What a transaction came to.
#[derive(Debug)]
pub(super) enum Committed {
    /// All operations were applied; what `get` and `lock` returned, in order.
    Yes(Vec<KeyValue>),
    /// None was; Consul's reasons.
    No(String),
}

impl Client {
    /// `base`: scheme, host and port. `timeout`: of every request that is not a blocking query.
    pub(super) fn new(base: Url, token: Option<String>, timeout: Duration) -> Result<Self, LeaseError> {
        let http = reqwest::Client::builder()
            .no_proxy() // Consul is reached directly: what decides over the lease must not depend on the application's proxy.
            .connect_timeout(timeout)
            .pool_idle_timeout(Duration::from_secs(30))
            .tcp_keepalive(Duration::from_secs(10))
            .build()
            .map_err(|error| LeaseError::Config(format!("prepare requests to Consul: {}", chain(&error))))?;
        Ok(Self { http, base, token, timeout })
    }

    fn url(&self, path: &str, key: &str, query: &[(&str, &str)]) -> Result<Url, LeaseError> {
        let mut url = self.base.clone();
        {
            let mut segments = url
                .path_segments_mut()
                .map_err(|()| LeaseError::Config("`lease.consul.url` must be an http(s) URL".to_owned()))?;
            segments.clear().push("v1").extend(path.split('/'));
            if !key.is_empty() {
                segments.extend(key.split('/'));
            }
        }
        for (name, value) in query {
            url.query_pairs_mut().append_pair(name, value);
        }
        Ok(url)
    }

    async fn send(
        &self,
        method: Method,
        url: Url,
        body: Option<Vec<u8>>,
        timeout: Duration,
    ) -> Result<Answer, LeaseError> {
        let mut request = self.http.request(method, url).timeout(timeout);
        if let Some(token) = &self.token {
            request = request.header("X-Consul-Token", token);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        let mut response = request.send().await.map_err(unavailable)?;
        let status = response.status();
        let index = response.headers().get("X-Consul-Index").and_then(|value| value.to_str().ok()?.parse().ok());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unavailable)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(LeaseError::BadAnswer(format!("more than {ANSWER_BYTES_MAX} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        match status.as_u16() {
            401 | 403 => Err(LeaseError::Denied(one_line(&body))),
            429 | 500.. => Err(LeaseError::Unavailable(format!("{status}: {}", one_line(&body)))),
            _ => Ok(Answer { status, index: index.unwrap_or(0), body }),
        }
    }

    async fn put(&self, path: &str, key: &str, body: Option<Vec<u8>>) -> Result<Answer, LeaseError> {
        let url = self.url(path, key, &[])?;
        self.send(Method::PUT, url, body, self.timeout).await
    }

    /// Registers the catalog node that the sessions belong to.
    pub(super) async fn register_node(&self, node: &str) -> Result<(), LeaseError> {
        let body = encode(&serde_json::json!({ "Node": node, "Address": "localhost", "SkipNodeUpdate": true }))?;
        self.put("catalog/register", "", Some(body)).await?.expect_ok().map(drop)
    }

    /// Creates a session without health checks: only its TTL ends it.
    pub(super) async fn create_session(&self, spec: &SessionSpec<'_>) -> Result<LeaseId, LeaseError> {
        let answer = self.put("session/create", "", Some(encode(spec)?)).await?.expect_ok()?;
        Ok(LeaseId(answer.decode::<SessionCreated>()?.id))
    }

    /// Renews a session; [`LeaseError::Lost`] when it is gone.
    pub(super) async fn renew_session(&self, id: &LeaseId) -> Result<(), LeaseError> {
        let answer = self.put("session/renew", &id.0, None).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Err(LeaseError::Lost(one_line(&answer.body)));
        }
        answer.expect_ok().map(drop)
    }

    /// Ends a session. One that is gone already is no error.
    pub(super) async fn destroy_session(&self, id: &LeaseId) -> Result<(), LeaseError> {
        self.put("session/destroy", &id.0, None).await?.expect_ok().map(drop)
    }

    /// All keys that start with `prefix`, with the index to wait on. `after`: as soon as something is newer, or after `wait`.
    pub(super) async fn list(
        &self,
        prefix: &str,
        after: Option<u64>,
        wait: Duration,
    ) -> Result<(u64, Vec<KeyValue>), LeaseError> {
        let (index, seconds) = (after.unwrap_or(0).to_string(), format!("{}s", wait.as_secs().max(1)));
        let mut query = vec![("recurse", "true")];
        let mut timeout = self.timeout;
        if after.is_some() {
            query.extend([("index", index.as_str()), ("wait", seconds.as_str())]);
            timeout = wait + wait / 16 + WATCH_GRACE;
        }
        let answer = self.send(Method::GET, self.url("kv", prefix, &query)?, None, timeout).await?;
        let keys = if answer.status == StatusCode::NOT_FOUND {
            Vec::new()
        } else {
            answer.expect_ok_ref()?;
            answer.decode::<Vec<KeyValue>>()?
        };
        Ok((answer.index, keys))
    }

    /// Runs `operations` in one transaction.
    pub(super) async fn transact(&self, operations: &[Operation<'_>]) -> Result<Committed, LeaseError> {
        let answer = self.put("txn", "", Some(encode(operations)?)).await?;
        if answer.status != StatusCode::OK && answer.status != StatusCode::CONFLICT {
            answer.expect_ok_ref()?;
        }
        let decoded: TxnAnswer = answer.decode()?;
        if answer.status == StatusCode::OK {
            let results = decoded.results.unwrap_or_default();
            return Ok(Committed::Yes(results.into_iter().filter_map(|result| result.kv).collect()));
        }
        let reasons: Vec<String> = decoded.errors.unwrap_or_default().into_iter().map(|error| error.what).collect();
        Ok(Committed::No(reasons.join("; ")))
    }
}

impl Answer {
    fn expect_ok_ref(&self) -> Result<(), LeaseError> {
        if self.status == StatusCode::OK {
            return Ok(());
        }
        Err(LeaseError::BadAnswer(format!("{}: {}", self.status, one_line(&self.body))))
    }

    fn expect_ok(self) -> Result<Self, LeaseError> {
        self.expect_ok_ref().map(|()| self)
    }

    fn decode<T: DeserializeOwned>(&self) -> Result<T, LeaseError> {
        serde_json::from_slice(&self.body)
            .map_err(|error| LeaseError::BadAnswer(format!("{error} in {:?}", one_line(&self.body))))
    }
}

fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, LeaseError> {
    serde_json::to_vec(value).map_err(|error| LeaseError::Config(format!("encode a request to Consul: {error}")))
}

fn unavailable(error: reqwest::Error) -> LeaseError {
    LeaseError::Unavailable(chain(&error.without_url()))
}

/// An error with its causes, which reqwest leaves out of its own text.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn one_line(body: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(&body[..body.len().min(400)]).chars().take(200).collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_escaped_segment_by_segment() {
        let base = Url::parse("http://127.0.0.1:8500/ignored").unwrap();
        let client = Client::new(base, None, Duration::from_secs(1)).unwrap();
        let url = client.url("kv", "pre fix/a?b/k", &[("recurse", "true")]).unwrap();
        assert_eq!(url.as_str(), "http://127.0.0.1:8500/v1/kv/pre%20fix/a%3Fb/k?recurse=true");
    }

    #[test]
    fn an_error_page_becomes_one_short_line() {
        assert_eq!(one_line(b"rpc error:\n  No cluster   leader\n"), "rpc error: No cluster leader");
        assert_eq!(one_line(&[b'x'; 5000]).len(), 200);
    }
}
