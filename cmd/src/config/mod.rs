//! `litefs.yml` (COMPAT §6): found, expanded, read strictly, checked whole before anything is mounted.

mod address;
mod check;
mod expand;
mod file;
mod values;

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use address::ListenAddr;
pub use file::ExecStep;
use file::File;
use litefs_lease::Timing;
use litefs_proxy::ProxyConfig;
use thiserror::Error;

/// Why a configuration is refused. One line for people, with file and line number where there is one. Exit code 2.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file that was asked for cannot be read.
    #[error("{path}: {error}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// Something is wrong in it.
    #[error("{place}: {message}")]
    Invalid {
        /// `<file>: line <n>`, or only the file (or "flags").
        place: String,
        /// Key and reason.
        message: String,
    },
}

/// Which lease decides about the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseType {
    /// The configuration names the primary for ever.
    Static,
    /// A key in Consul.
    Consul,
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Everything a node is told. See docs/configuration.md for every key.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it came from; `None`: no file, defaults and flags only.
    pub source: Option<PathBuf>,
    pub exit_on_error: bool,
    pub skip_sync: bool,
    pub strict_verify: bool,
    pub exec: Vec<ExecStep>,
    pub data: Data,
    pub fuse: Fuse,
    pub http: Http,
    /// `None`: no `proxy.target`, so no proxy.
    pub proxy: Option<ProxyConfig>,
    pub lease: Lease,
    pub backup_type: Option<String>,
    pub log: Log,
    pub tracing: Tracing,
}

/// `data`.
#[derive(Debug, Clone)]
pub struct Data {
    pub dir: PathBuf,
    pub compress: bool,
    pub retention: Duration,
    pub retention_monitor_interval: Duration,
    pub lost_and_found_bytes_max: u64,
}

/// `fuse`.
#[derive(Debug, Clone)]
pub struct Fuse {
    pub dir: PathBuf,
    pub allow_other: bool,
    pub debug: bool,
    /// `auto` (true) or `off`.
    pub passthrough: bool,
}

/// `http`.
#[derive(Debug, Clone)]
pub struct Http {
    pub addr: ListenAddr,
    pub snapshot_timeout: Duration,
}

/// `lease`.
#[derive(Debug, Clone)]
pub struct Lease {
    pub kind: LeaseType,
    pub hostname: String,
    /// `None`: `http://<hostname>:<port>`, with the port the API really listens on.
    pub advertise_url: Option<String>,
    pub candidate: bool,
    pub promote: bool,
    pub reconnect_delay: Duration,
    pub demote_delay: Duration,
    pub databases: Vec<String>,
    pub consul: Consul,
}

impl Lease {
    /// Who holds the lease if it is this configuration's: under a static lease of a replica that is the host of
    /// `advertise-url`, because `hostname` is this node's own.
    pub fn primary_hostname(&self) -> String {
        let primary = self.advertise_url.as_ref().filter(|_| self.kind == LeaseType::Static && !self.candidate);
        let host = primary.and_then(|url| Some(reqwest::Url::parse(url).ok()?.host_str()?.to_owned()));
        host.unwrap_or_else(|| self.hostname.clone())
    }
}

/// `lease.consul`.
#[derive(Debug, Clone)]
pub struct Consul {
    pub url: String,
    pub key: String,
    pub ttl: Duration,
    pub lock_delay: Duration,
    /// The fast take-over; `None`: only the session's TTL decides.
    pub timing: Option<Timing>,
}

/// `log`.
#[derive(Debug, Clone)]
pub struct Log {
    pub format: LogFormat,
    pub timestamp: bool,
    pub debug: bool,
}

/// `tracing`: the rolling trace log.
#[derive(Debug, Clone)]
pub struct Tracing {
    pub enabled: bool,
    /// `None`: no trace file.
    pub path: Option<PathBuf>,
    pub max_size_mb: u64,
    pub max_count: usize,
    pub compress: bool,
}

/// Flags of `litefs mount` that stand above the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `-config`.
    pub path: Option<PathBuf>,
    /// `-no-expand-env`.
    pub no_expand_env: bool,
    /// `-data.dir`.
    pub data_dir: Option<String>,
    /// `-fuse.dir`.
    pub fuse_dir: Option<String>,
    /// `-http.addr`.
    pub http_addr: Option<String>,
    /// `-fuse.debug`.
    pub fuse_debug: bool,
    /// `-debug`.
    pub debug: bool,
    /// `-- CMD ARG…`, quoted as a shell would.
    pub exec: Option<String>,
}

/// Finds, reads and checks the configuration. Without a file: one static primary.
///
/// # Errors
/// [`ConfigError`]; nothing has been touched then.
pub fn load(overrides: &Overrides) -> Result<Config, ConfigError> {
    let Some(path) = overrides.path.clone().or_else(search) else {
        let text = "lease:\n  type: static\n";
        return parse(text, None, overrides);
    };
    let text = std::fs::read_to_string(&path)
        .map_err(|error| ConfigError::Unreadable { path: path.display().to_string(), error })?;
    let text = if overrides.no_expand_env { text } else { expand::expand(&text, environment) };
    parse(&text, Some(&path), overrides)
}

/// The environment, with `HOSTNAME` always known.
fn environment(name: &str) -> Option<String> {
    env::var(name).ok().or_else(|| (name == "HOSTNAME").then(os_hostname))
}

/// The machine's own name.
fn os_hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// `./litefs.yml`, `~/litefs.yml`, `/etc/litefs.yml`: the first that exists.
fn search() -> Option<PathBuf> {
    let home = env::var_os("HOME").map(|home| Path::new(&home).join("litefs.yml"));
    [Some(PathBuf::from("litefs.yml")), home, Some(PathBuf::from("/etc/litefs.yml"))]
        .into_iter()
        .flatten()
        .find(|path| path.exists())
}

fn parse(text: &str, source: Option<&Path>, overrides: &Overrides) -> Result<Config, ConfigError> {
    let name = source.map_or_else(|| "flags".to_owned(), |path| path.display().to_string());
    let mut file = match serde_path_to_error::deserialize::<_, Option<File>>(serde_yaml::Deserializer::from_str(text)) {
        Ok(file) => file.unwrap_or_default(),
        Err(error) => {
            let path = error.path().to_string();
            return Err(unreadable_yaml(&name, text, &path, error.inner()));
        }
    };
    apply_overrides(&mut file, overrides);
    check::resolve(file, source).map_err(|problem| {
        let line = source.and_then(|_| file::line_of(text, problem.key)).map(|line| format!(": line {line}"));
        ConfigError::Invalid {
            place: format!("{name}{}", line.unwrap_or_default()),
            message: format!("{}: {}", problem.key, problem.message),
        }
    })
}

/// Serde's message starts with the section and ends with "at line L column C"; here the line comes first, with the key.
/// `path` is the key of the wrong value; of an unknown key it is the section, and the key the one that stands on the line.
fn unreadable_yaml(name: &str, text: &str, path: &str, error: &serde_yaml::Error) -> ConfigError {
    let message = error.to_string().replace('\n', " ");
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(before, _)| before);
    let Some(line) = error.location().map(|location| location.line()) else {
        return ConfigError::Invalid { place: name.to_owned(), message: message.to_owned() };
    };
    let on_line = file::key_at(text, line).unwrap_or_default();
    let (key, line) = match file::line_of(text, path) {
        Some(line_of_path) if !on_line.starts_with(&format!("{path}.")) => (path.to_owned(), line_of_path),
        _ => (on_line, line),
    };
    let section = key.rsplit_once('.').map_or("", |(section, _)| section);
    let message = message.strip_prefix(section).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(message);
    let key = if key.is_empty() { key } else { format!("{key}: ") };
    ConfigError::Invalid { place: format!("{name}: line {line}"), message: format!("{key}{message}") }
}

fn apply_overrides(file: &mut File, overrides: &Overrides) {
    if let Some(dir) = &overrides.data_dir {
        file.data.get_or_insert_default().dir = Some(dir.clone());
    }
    if let Some(dir) = &overrides.fuse_dir {
        file.fuse.get_or_insert_default().dir = Some(dir.clone());
    }
    if let Some(addr) = &overrides.http_addr {
        file.http.get_or_insert_default().addr = Some(addr.clone());
    }
    if overrides.fuse_debug {
        file.fuse.get_or_insert_default().debug = Some(true);
    }
    if overrides.debug {
        file.log.get_or_insert_default().debug = Some(true);
    }
    if let Some(command) = &overrides.exec {
        file.exec = Some(file::Exec(vec![ExecStep { cmd: command.clone(), if_candidate: false }]));
    }
}

#[cfg(test)]
mod tests;
