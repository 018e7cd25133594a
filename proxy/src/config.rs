//! `proxy.*` of `litefs.yml`: as written ([`ProxySettings`]) and as checked ([`ProxyConfig`]).

use std::time::Duration;

use http::Uri;
use litefs::DbName;
use thiserror::Error;

use crate::path_globs::PathGlobs;
use crate::trusted::TrustedProxies;

/// The keys of `proxy.*` as they are written. The defaults are LiteFS's (COMPAT §6); those of the new keys are in
/// `docs/proxy.md`. A duration of zero switches that limit off where LiteFS allows it.
#[derive(Debug, Clone)]
pub struct ProxySettings {
    /// `proxy.addr`: where to listen, `[host]:port`.
    pub addr: String,
    /// `proxy.target`: the application, `host:port`.
    pub target: String,
    /// `proxy.db`: the tracked databases; the first is the one of the `__txid` cookie.
    pub db: Vec<String>,
    /// `proxy.max-lag`: `/litefs/health` fails beyond.
    pub max_lag: Duration,
    /// `proxy.debug`: one line in the log per request.
    pub debug: bool,
    /// `proxy.passthrough`: paths that go straight to the application.
    pub passthrough: Vec<String>,
    /// `proxy.always-forward`: paths whose reads are treated as writes.
    pub always_forward: Vec<String>,
    /// `proxy.primary-redirect-timeout`: how long a request waits for a primary.
    pub primary_redirect_timeout: Duration,
    /// `proxy.read-timeout`: for reading a whole request; 0 = none.
    pub read_timeout: Duration,
    /// `proxy.read-header-timeout`: for reading a request's header.
    pub read_header_timeout: Duration,
    /// `proxy.write-timeout`: from a request's header to the end of its answer; 0 = none.
    pub write_timeout: Duration,
    /// `proxy.idle-timeout`: for an open connection between two requests.
    pub idle_timeout: Duration,
    /// `proxy.forward-mode`: `auto`, `fly-replay`, `http` or `redirect`.
    pub forward_mode: String,
    /// `proxy.advertise-url`: this node's proxy as others (or, in mode `redirect`, clients) reach it.
    pub advertise_url: Option<String>,
    /// `proxy.replica-wait`: how long a read waits for its position before the primary is asked instead.
    pub replica_wait: Duration,
    /// `proxy.trusted-proxies`: whose `X-Forwarded-*` are believed: addresses, networks, `loopback`, `private`, `all`.
    pub trusted_proxies: Vec<String>,
    /// `proxy.replay-buffer`: most bytes of a request's body that are kept to send it a second time.
    pub replay_buffer: usize,
    /// `proxy.max-waiting`: most requests that wait at once (for a primary, or for a position).
    pub max_waiting: usize,
    /// `proxy.max-connections`: most client connections at once; further ones wait in the kernel's queue.
    pub max_connections: usize,
    /// `proxy.target-timeout`: how long a refused connection to the application is retried.
    pub target_timeout: Duration,
    /// `proxy.response-timeout`: for the first byte of the application's answer on a connection that is there; 0 = none.
    pub response_timeout: Duration,
    /// `proxy.drain-timeout`: how long requests in flight may go on when the node stops.
    pub drain_timeout: Duration,
    /// `proxy.workers`: threads that serve connections; 0 = one per core, at most 4.
    pub workers: usize,
    /// `lease.hostname`, for the default of `advertise_url`.
    pub hostname: String,
    /// Whether `FLY_APP_NAME` is set: what `auto` means.
    pub on_fly: bool,
}

impl Default for ProxySettings {
    fn default() -> Self {
        Self {
            addr: String::new(),
            target: String::new(),
            db: Vec::new(),
            max_lag: Duration::from_secs(10),
            debug: false,
            passthrough: Vec::new(),
            always_forward: Vec::new(),
            primary_redirect_timeout: Duration::from_secs(5),
            read_timeout: Duration::ZERO,
            read_header_timeout: Duration::from_secs(10),
            write_timeout: Duration::ZERO,
            idle_timeout: Duration::from_secs(30),
            forward_mode: "auto".into(),
            advertise_url: None,
            replica_wait: Duration::from_secs(1),
            trusted_proxies: vec!["private".into()],
            replay_buffer: 1 << 20,
            max_waiting: 10_000,
            max_connections: 10_000,
            target_timeout: Duration::from_secs(30),
            response_timeout: Duration::from_mins(5),
            drain_timeout: Duration::from_secs(10),
            workers: 0,
            hostname: String::new(),
            on_fly: false,
        }
    }
}

/// How a request that needs the primary gets there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardMode {
    /// An empty answer with `fly-replay`: the platform repeats the request there.
    FlyReplay,
    /// This proxy sends it to the primary's proxy.
    Http,
    /// The client is sent there (307).
    Redirect,
}

/// A value of `proxy.*` that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{key}: {reason}")]
pub struct ConfigError {
    /// The key in `litefs.yml`, as `proxy.addr`.
    pub key: &'static str,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl ConfigError {
    pub(crate) fn new(key: &'static str, reason: impl Into<String>) -> Self {
        Self { key, reason: reason.into() }
    }
}

/// A host and a port, not resolved yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct HostPort {
    /// A name or an address (without brackets); empty: every address of this machine.
    pub host: String,
    pub port: u16,
}

impl HostPort {
    /// Parses `host:port`, `:port` or `[v6]:port`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not host:port");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let host = match host.strip_prefix('[') {
            Some(v6) => v6.strip_suffix(']').ok_or_else(wrong)?,
            None if host.contains(':') => return Err(wrong()),
            None => host,
        };
        if host.chars().any(|c| c.is_whitespace() || c.is_control() || c == '/') {
            return Err(wrong());
        }
        Ok(Self { host: host.into(), port: port.parse().map_err(|_| wrong())? })
    }

    /// The form of a URL's authority.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Checked settings: everything the proxy needs to start, or the one line that says why it cannot.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    pub(crate) settings: ProxySettings,
    pub(crate) listen: HostPort,
    pub(crate) target: HostPort,
    pub(crate) databases: Vec<DbName>,
    pub(crate) passthrough: PathGlobs,
    pub(crate) always_forward: PathGlobs,
    pub(crate) trusted: TrustedProxies,
    pub(crate) mode: ForwardMode,
}

impl ProxyConfig {
    /// Checks the settings. Nothing is opened or resolved.
    ///
    /// # Errors
    /// The first key whose value cannot be used.
    pub fn new(settings: ProxySettings) -> Result<Self, ConfigError> {
        if settings.addr.is_empty() {
            return Err(ConfigError::new("proxy.addr", "required when proxy.target is set"));
        }
        let listen = HostPort::parse(&settings.addr).map_err(|reason| ConfigError::new("proxy.addr", reason))?;
        let target = parse_target(&settings.target)?;
        if settings.db.is_empty() {
            return Err(ConfigError::new("proxy.db", "required when proxy.target is set"));
        }
        let mut databases: Vec<DbName> = Vec::with_capacity(settings.db.len());
        for name in &settings.db {
            let name = name.parse().map_err(|e| ConfigError::new("proxy.db", format!("{name:?}: {e}")))?;
            if databases.contains(&name) {
                return Err(ConfigError::new("proxy.db", format!("{:?} is named twice", name.as_str())));
            }
            databases.push(name);
        }
        let mode = parse_mode(&settings)?;
        check_advertise_url(&settings, mode)?;
        for (key, zero) in [
            ("proxy.max-connections", settings.max_connections == 0),
            ("proxy.max-waiting", settings.max_waiting == 0),
            ("proxy.read-header-timeout", settings.read_header_timeout.is_zero()),
            ("proxy.idle-timeout", settings.idle_timeout.is_zero()),
        ] {
            if zero {
                return Err(ConfigError::new(key, "must be more than 0"));
            }
        }
        Ok(Self {
            listen,
            target,
            databases,
            passthrough: PathGlobs::new("proxy.passthrough", &settings.passthrough)?,
            always_forward: PathGlobs::new("proxy.always-forward", &settings.always_forward)?,
            trusted: TrustedProxies::new(&settings.trusted_proxies)?,
            mode,
            settings,
        })
    }

    /// How requests reach the primary, `auto` resolved.
    #[must_use]
    pub fn forward_mode(&self) -> ForwardMode {
        self.mode
    }

    /// The URL to publish for other nodes, given the port that is really listened on.
    #[must_use]
    pub fn advertise_url(&self, port: u16) -> String {
        match &self.settings.advertise_url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => {
                let authority = HostPort { host: self.settings.hostname.clone(), port }.authority();
                format!("http://{authority}")
            }
        }
    }
}

fn parse_target(text: &str) -> Result<HostPort, ConfigError> {
    let error = |reason| ConfigError::new("proxy.target", reason);
    let bare = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let mut target = HostPort::parse(bare).map_err(error)?;
    if target.port == 0 {
        return Err(error(format!("{text:?} has no port")));
    }
    if target.host.is_empty() {
        target.host = "localhost".into();
    }
    Ok(target)
}

fn parse_mode(settings: &ProxySettings) -> Result<ForwardMode, ConfigError> {
    match settings.forward_mode.as_str() {
        "auto" | "" => Ok(if settings.on_fly { ForwardMode::FlyReplay } else { ForwardMode::Http }),
        "fly-replay" => Ok(ForwardMode::FlyReplay),
        "http" => Ok(ForwardMode::Http),
        "redirect" => Ok(ForwardMode::Redirect),
        other => Err(ConfigError::new(
            "proxy.forward-mode",
            format!("{other:?} is not a mode: auto, fly-replay, http or redirect"),
        )),
    }
}

fn check_advertise_url(settings: &ProxySettings, mode: ForwardMode) -> Result<(), ConfigError> {
    let Some(url) = &settings.advertise_url else { return Ok(()) };
    let error = |reason: &str| Err(ConfigError::new("proxy.advertise-url", format!("{url:?} {reason}")));
    let Ok(uri) = url.parse::<Uri>() else { return error("is not a URL") };
    let https_allowed = mode == ForwardMode::Redirect;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") if https_allowed => {}
        Some("https") => {
            return error("must be http: nodes talk to each other without TLS; https only in mode redirect");
        }
        _ => return error("must start with http://"),
    }
    if uri.host().is_none_or(str::is_empty) || uri.path() != "/" || uri.query().is_some() {
        return error("must be scheme, host and port only");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> ProxySettings {
        ProxySettings {
            addr: ":8080".into(),
            target: "localhost:8081".into(),
            db: vec!["app.db".into()],
            hostname: "node-1".into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_litefs_configuration_is_accepted() {
        let config = ProxyConfig::new(settings()).expect("valid");
        assert_eq!(config.forward_mode(), ForwardMode::Http);
        assert_eq!(config.advertise_url(8080), "http://node-1:8080");
        let on_fly = ProxyConfig::new(ProxySettings { on_fly: true, ..settings() }).expect("valid");
        assert_eq!(on_fly.forward_mode(), ForwardMode::FlyReplay);
    }

    #[test]
    fn each_bad_value_names_its_key() {
        type Change = fn(&mut ProxySettings);
        let cases: [(&str, Change); 14] = [
            ("proxy.addr", |s| s.addr = String::new()),
            ("proxy.addr", |s| s.addr = "8080".into()),
            ("proxy.addr", |s| s.addr = ":99999".into()),
            ("proxy.target", |s| s.target = "localhost".into()),
            ("proxy.target", |s| s.target = "https://x:1".into()),
            ("proxy.db", |s| s.db = vec![]),
            ("proxy.db", |s| s.db = vec!["a/b".into()]),
            ("proxy.db", |s| s.db = vec!["a".into(), "a".into()]),
            ("proxy.passthrough", |s| s.passthrough = vec!["static/*".into()]),
            ("proxy.always-forward", |s| s.always_forward = vec![String::new()]),
            ("proxy.forward-mode", |s| s.forward_mode = "ftp".into()),
            ("proxy.advertise-url", |s| s.advertise_url = Some("https://x".into())),
            ("proxy.advertise-url", |s| s.advertise_url = Some("http://x/path".into())),
            ("proxy.trusted-proxies", |s| s.trusted_proxies = vec!["10.0.0.0/33".into()]),
        ];
        for (key, change) in cases {
            let mut settings = settings();
            change(&mut settings);
            let error = ProxyConfig::new(settings).expect_err(key);
            assert_eq!(error.key, key, "{error}");
            assert!(error.to_string().starts_with(key) && !error.to_string().contains('\n'));
        }
    }

    #[test]
    fn addresses_of_every_family_parse() {
        for (text, host, port) in [(":80", "", 80), ("[::1]:8", "::1", 8), ("a.b:1", "a.b", 1)] {
            assert_eq!(HostPort::parse(text), Ok(HostPort { host: host.into(), port }), "{text}");
        }
        assert!(HostPort::parse("::1:80").is_err());
    }
}
