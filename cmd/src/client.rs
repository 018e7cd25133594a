//! The node API as the commands use it.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::{Response, Url};

/// Talks to one node.
#[derive(Debug, Clone)]
pub struct NodeClient {
    base: Url,
    http: reqwest::Client,
}

impl NodeClient {
    /// A client of the API at `url`.
    ///
    /// # Errors
    /// When that is not a URL.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        let base = Url::parse(url).with_context(|| format!("-url {url}: not a URL"))?;
        if !matches!(base.scheme(), "http" | "https") {
            bail!("-url {url}: must start with http://");
        }
        // No limit on the whole: transfers take as long as they take. A silent peer is not waited for for ever.
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(Duration::from_secs(120))
            .build()?;
        Ok(Self { base, http })
    }

    fn url(&self, path: &str, query: &[(&str, &str)]) -> Url {
        let mut url = self.base.clone();
        url.set_path(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// `GET`.
    ///
    /// # Errors
    /// When the node cannot be reached or refuses; its own words are in the error.
    pub async fn get(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<Response> {
        self.checked(self.http.get(self.url(path, query)).send()).await
    }

    /// `POST` with a body.
    ///
    /// # Errors
    /// As [`NodeClient::get`].
    pub async fn post(&self, path: &str, query: &[(&str, &str)], body: reqwest::Body) -> anyhow::Result<Response> {
        self.checked(self.http.post(self.url(path, query)).body(body).send()).await
    }

    async fn checked(&self, response: impl Future<Output = reqwest::Result<Response>>) -> anyhow::Result<Response> {
        let response = response.await.with_context(|| format!("reach the node at {}", self.base))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        bail!("{} answered {status}: {}", self.base, text.trim());
    }
}

/// Runs a command that talks to a node; returns the process' exit code.
pub fn run(work: impl Future<Output = anyhow::Result<u8>>) -> std::process::ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let result = runtime.block_on(work);
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(code) => std::process::ExitCode::from(code),
        Err(error) => {
            eprintln!("litefs: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
