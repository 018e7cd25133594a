//! A plain blocking HTTP client for tests.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

/// An answer, whole.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Headers by lower-case name; several of one name are joined by ", ".
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; `null` when it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A header's value, empty when absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("start a runtime")
    })
}

/// Sends one request; no redirects are followed, nothing is kept between requests.
///
/// # Errors
/// When there is no answer within 30 s.
pub fn request(method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer, String> {
    let work = async {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(30))
            .build()?;
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap_or_default();
        let mut request = client.request(method, url).body(body.to_vec());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let mut headers: BTreeMap<String, String> = BTreeMap::new();
        for (name, value) in response.headers() {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            headers
                .entry(name.as_str().to_owned())
                .and_modify(|before| {
                    before.push_str(", ");
                    before.push_str(&value);
                })
                .or_insert(value);
        }
        Ok(Answer { status, headers, body: response.bytes().await?.to_vec() })
    };
    runtime().block_on(work).map_err(|error: reqwest::Error| format!("{method} {url}: {error:?}"))
}

/// `GET`.
///
/// # Errors
/// As [`request`].
pub fn get(url: &str) -> Result<Answer, String> {
    request("GET", url, &[], b"")
}

/// `POST`.
///
/// # Errors
/// As [`request`].
pub fn post(url: &str, body: &[u8]) -> Result<Answer, String> {
    request("POST", url, &[], body)
}
