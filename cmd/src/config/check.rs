//! Defaults (COMPAT §6) and every rule a configuration must obey.

use std::path::{Path, PathBuf};
use std::time::Duration;

use litefs_lease::{Timing, takeover::takeover_after};
use litefs_proxy::{ProxyConfig, ProxySettings};

use super::file::{self, File};
use super::values::GoDuration;
use super::{Config, Consul, Data, Fuse, Http, Lease, LeaseType, ListenAddr, Log, LogFormat, Tracing};

/// A key (dotted) and what is wrong with it.
#[derive(Debug)]
pub struct Problem {
    pub key: &'static str,
    pub message: String,
}

type Checked<T> = Result<T, Problem>;

fn problem<T>(key: &'static str, message: impl Into<String>) -> Checked<T> {
    Err(Problem { key, message: message.into() })
}

const SECOND: Duration = Duration::from_secs(1);

/// Fills in the defaults and checks everything.
pub fn resolve(file: File, source: Option<&Path>) -> Checked<Config> {
    let data = data(file.data.unwrap_or_default())?;
    let fuse = fuse(file.fuse.unwrap_or_default())?;
    if fuse.dir == data.dir {
        return problem("fuse.dir", "must be another directory than data.dir");
    }
    if data.dir.starts_with(&fuse.dir) {
        return problem("data.dir", "must not lie under fuse.dir");
    }
    let http = http(file.http.unwrap_or_default(), data.retention)?;
    let lease = lease(file.lease.unwrap_or_default())?;
    let backup = file.backup.unwrap_or_default();
    if let Some(kind) = backup.r#type.as_deref().filter(|kind| !matches!(*kind, "" | "file" | "litefs-cloud")) {
        return problem("backup.type", format!("{kind:?} is neither file nor litefs-cloud"));
    }
    Ok(Config {
        source: source.map(Path::to_path_buf),
        exit_on_error: file.exit_on_error.unwrap_or(true),
        skip_sync: file.skip_sync.unwrap_or(false),
        strict_verify: file.strict_verify.unwrap_or(false),
        exec: exec(file.exec)?,
        proxy: proxy(file.proxy.unwrap_or_default(), &lease)?,
        backup_type: backup.r#type.filter(|kind| !kind.is_empty()),
        log: log(file.log.unwrap_or_default())?,
        tracing: tracing(file.tracing.unwrap_or_default())?,
        data,
        fuse,
        http,
        lease,
    })
}

fn duration(value: Option<GoDuration>, default: Duration) -> Duration {
    value.map_or(default, |value| value.0)
}

fn positive(key: &'static str, value: Option<GoDuration>, default: Duration) -> Checked<Duration> {
    match duration(value, default) {
        Duration::ZERO => problem(key, "must be greater than 0"),
        value => Ok(value),
    }
}

/// An absolute, plain path, so that two spellings of one directory compare equal.
fn directory(key: &'static str, value: Option<String>, default: &str) -> Checked<PathBuf> {
    let text = value.unwrap_or_else(|| default.to_owned());
    if text.is_empty() {
        return problem(key, "is required");
    }
    let path = std::path::absolute(&text).map_err(|error| Problem { key, message: format!("{text:?}: {error}") })?;
    Ok(path.components().collect())
}

fn exec(exec: Option<file::Exec>) -> Checked<Vec<file::ExecStep>> {
    let steps = exec.map(|exec| exec.0).unwrap_or_default();
    for step in &steps {
        match shell_words::split(&step.cmd) {
            Ok(words) if words.is_empty() && steps.len() > 1 => return problem("exec", "has an empty command"),
            Ok(_) => {}
            Err(error) => return problem("exec", format!("{:?}: {error}", step.cmd)),
        }
    }
    Ok(steps.into_iter().filter(|step| !step.cmd.trim().is_empty()).collect())
}

fn data(file: file::Data) -> Checked<Data> {
    Ok(Data {
        dir: directory("data.dir", file.dir, "/var/lib/litefs")?,
        compress: file.compress.unwrap_or(true),
        retention: positive("data.retention", file.retention, 600 * SECOND)?,
        retention_monitor_interval: positive(
            "data.retention-monitor-interval",
            file.retention_monitor_interval,
            60 * SECOND,
        )?,
        lost_and_found_bytes_max: file.lost_and_found_max.map_or(1 << 30, |size| size.0),
    })
}

fn fuse(file: file::Fuse) -> Checked<Fuse> {
    let passthrough = match file.passthrough.as_deref() {
        None | Some("" | "auto") => true,
        // YAML 1.1 readers take a bare `off` for false; both spellings mean the same.
        Some("off" | "false") => false,
        Some(other) => return problem("fuse.passthrough", format!("{other:?} is neither auto nor off")),
    };
    Ok(Fuse {
        dir: directory("fuse.dir", file.dir, "/litefs")?,
        allow_other: file.allow_other.unwrap_or(false),
        debug: file.debug.unwrap_or(false),
        passthrough,
    })
}

fn http(file: file::Http, retention: Duration) -> Checked<Http> {
    Ok(Http {
        addr: address("http.addr", file.addr.as_deref().unwrap_or(":20202"))?,
        snapshot_timeout: positive("http.snapshot-timeout", file.snapshot_timeout, retention)?,
    })
}

fn address(key: &'static str, text: &str) -> Checked<ListenAddr> {
    text.parse().map_err(|message| Problem { key, message })
}

fn url(key: &'static str, text: &str) -> Checked<()> {
    match reqwest::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(()),
        _ => problem(key, format!("{text:?} is not a URL such as http://host:20202")),
    }
}

fn lease(file: file::Lease) -> Checked<Lease> {
    let kind = match file.r#type.as_deref() {
        Some("static") => LeaseType::Static,
        Some("consul") => LeaseType::Consul,
        None | Some("") => return problem("lease.type", "is required: consul or static"),
        Some(other) => return problem("lease.type", format!("{other:?} is neither consul nor static")),
    };
    let candidate = file.candidate.unwrap_or(true);
    let databases = file.databases.unwrap_or_default();
    if candidate && !databases.is_empty() {
        return problem("lease.databases", "is only possible with candidate: false");
    }
    for name in &databases {
        if let Err(error) = name.parse::<litefs::DbName>() {
            return problem("lease.databases", format!("{name:?}: {error}"));
        }
    }
    let hostname = file.hostname.filter(|name| !name.is_empty()).unwrap_or_else(super::os_hostname);
    if hostname.contains(|c: char| c.is_control() || c.is_whitespace() || c == '/') {
        return problem("lease.hostname", format!("{hostname:?} is not a host name"));
    }
    let advertise_url = match file.advertise_url.filter(|url| !url.is_empty()) {
        Some(text) => {
            url("lease.advertise-url", &text)?;
            Some(text.trim_end_matches('/').to_owned())
        }
        None if kind == LeaseType::Static && !candidate => {
            return problem("lease.advertise-url", "is required on a static replica: the primary's URL");
        }
        None => None,
    };
    Ok(Lease {
        consul: consul(file.consul.unwrap_or_default(), kind)?,
        kind,
        hostname,
        advertise_url,
        candidate,
        promote: file.promote.unwrap_or(false),
        reconnect_delay: positive("lease.reconnect-delay", file.reconnect_delay, SECOND)?,
        demote_delay: duration(file.demote_delay, 10 * SECOND),
        databases,
    })
}

fn consul(file: file::Consul, kind: LeaseType) -> Checked<Consul> {
    let default = Timing::default();
    let fence_after = duration(file.heartbeat_timeout, default.fence_after);
    let timing = Timing {
        heartbeat: duration(file.heartbeat_interval, default.heartbeat),
        fence_after,
        // Whoever changes T1 only gets a T2 that fits.
        takeover_after: duration(file.takeover_timeout, default.takeover_after.max(takeover_after(fence_after))),
    };
    let consul = Consul {
        url: file.url.unwrap_or_default(),
        key: file.key.unwrap_or_default(),
        ttl: duration(file.ttl, 10 * SECOND),
        lock_delay: duration(file.lock_delay, SECOND),
        timing: file.heartbeat.unwrap_or(true).then_some(timing),
    };
    if kind != LeaseType::Consul {
        return Ok(consul);
    }
    if consul.url.is_empty() {
        return problem("lease.consul.url", "is required");
    }
    url("lease.consul.url", &consul.url)?;
    if consul.key.is_empty() {
        return problem("lease.consul.key", "is required");
    }
    if consul.key.starts_with('/') {
        return problem("lease.consul.key", "must not start with a slash");
    }
    if !(10 * SECOND..=86_400 * SECOND).contains(&consul.ttl) {
        return problem("lease.consul.ttl", "Consul accepts 10s to 24h");
    }
    if let Some(Err(message)) = consul.timing.map(|timing| timing.check(consul.ttl)) {
        return problem("lease.consul.heartbeat-timeout", message);
    }
    Ok(consul)
}

/// The proxy's own rules are in its crate.
fn proxy(file: file::Proxy, lease: &Lease) -> Checked<Option<ProxyConfig>> {
    let Some(target) = file.target.filter(|target| !target.is_empty()) else { return Ok(None) };
    let default = ProxySettings::default();
    let settings = ProxySettings {
        addr: file.addr.unwrap_or_default(),
        target,
        db: file.db.unwrap_or_default().0.into_iter().filter(|name| !name.is_empty()).collect(),
        max_lag: duration(file.max_lag, default.max_lag),
        debug: file.debug.unwrap_or(default.debug),
        passthrough: file.passthrough.unwrap_or_default(),
        always_forward: file.always_forward.unwrap_or_default(),
        primary_redirect_timeout: duration(file.primary_redirect_timeout, default.primary_redirect_timeout),
        read_timeout: duration(file.read_timeout, default.read_timeout),
        read_header_timeout: duration(file.read_header_timeout, default.read_header_timeout),
        write_timeout: duration(file.write_timeout, default.write_timeout),
        idle_timeout: duration(file.idle_timeout, default.idle_timeout),
        forward_mode: file.forward_mode.unwrap_or(default.forward_mode),
        advertise_url: file.advertise_url.filter(|url| !url.is_empty()),
        replica_wait: duration(file.replica_wait, default.replica_wait),
        trusted_proxies: file.trusted_proxies.unwrap_or(default.trusted_proxies),
        replay_buffer: file.replay_buffer.map_or(default.replay_buffer, |size| size.0 as usize),
        max_waiting: file.max_waiting.unwrap_or(default.max_waiting),
        max_connections: file.max_connections.unwrap_or(default.max_connections),
        target_timeout: duration(file.target_timeout, default.target_timeout),
        response_timeout: duration(file.response_timeout, default.response_timeout),
        drain_timeout: duration(file.drain_timeout, default.drain_timeout),
        workers: file.workers.unwrap_or(default.workers),
        hostname: lease.hostname.clone(),
        on_fly: std::env::var_os("FLY_APP_NAME").is_some_and(|name| !name.is_empty()),
    };
    ProxyConfig::new(settings).map(Some).map_err(|error| Problem { key: error.key, message: error.reason })
}

fn log(file: file::Log) -> Checked<Log> {
    let format = match file.format.as_deref() {
        None | Some("" | "text") => LogFormat::Text,
        Some("json") => LogFormat::Json,
        Some(other) => return problem("log.format", format!("{other:?} is neither text nor json")),
    };
    Ok(Log { format, timestamp: file.timestamp.unwrap_or(false), debug: file.debug.unwrap_or(false) })
}

fn tracing(file: file::Tracing) -> Checked<Tracing> {
    let max_size_mb = file.max_size.unwrap_or(64);
    if !(1..=1 << 20).contains(&max_size_mb) {
        return problem("tracing.max-size", "must be 1 to 1048576 (MB)");
    }
    Ok(Tracing {
        enabled: file.enabled.unwrap_or(true),
        path: file.path.filter(|path| !path.is_empty()).map(PathBuf::from),
        max_size_mb,
        max_count: file.max_count.unwrap_or(8),
        compress: file.compress.unwrap_or(true),
    })
}
