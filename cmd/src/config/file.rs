//! The text of `litefs.yml`: which keys there are. Every one may be absent or empty; [`super::Config`] has the defaults.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::values::{ByteSize, GoDuration, OneOrMany};

/// Declares sections of the file: unknown keys are errors, every key is optional.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$attr:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
        pub struct $name { $($(#[$attr])* pub $field: Option<$type>,)* }
    };
}

section!(
    /// The whole file.
    File {
        exit_on_error: bool,
        skip_sync: bool,
        strict_verify: bool,
        exec: Exec,
        data: Data,
        fuse: Fuse,
        http: Http,
        proxy: Proxy,
        lease: Lease,
        backup: Backup,
        log: Log,
        tracing: Tracing,
    }
);

/// `exec`: a command line, or a list of commands of which the last is supervised.
#[derive(Debug, Clone)]
pub struct Exec(pub Vec<ExecStep>);

impl<'de> Deserialize<'de> for Exec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Steps;
        impl<'de> Visitor<'de> for Steps {
            type Value = Exec;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a command line or a list of `cmd`")
            }

            fn visit_str<E: de::Error>(self, cmd: &str) -> Result<Exec, E> {
                Ok(Exec(vec![ExecStep { cmd: cmd.to_owned(), if_candidate: false }]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Exec, A::Error> {
                let mut steps = Vec::new();
                while let Some(step) = list.next_element()? {
                    steps.push(step);
                }
                Ok(Exec(steps))
            }
        }
        deserializer.deserialize_any(Steps)
    }
}

/// One command of the `exec` list.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ExecStep {
    /// The command line, split as a shell would.
    pub cmd: String,
    /// Run only where `lease.candidate` is true.
    #[serde(default)]
    pub if_candidate: bool,
}

section!(
    /// `data`.
    Data {
        dir: String,
        compress: bool,
        retention: GoDuration,
        retention_monitor_interval: GoDuration,
        lost_and_found_max: ByteSize,
    }
);

section!(
    /// `fuse`.
    Fuse {
        dir: String,
        allow_other: bool,
        debug: bool,
        passthrough: String,
    }
);

section!(
    /// `http`.
    Http {
        addr: String,
        snapshot_timeout: GoDuration,
    }
);

section!(
    /// `proxy`.
    Proxy {
        addr: String,
        target: String,
        db: OneOrMany,
        max_lag: GoDuration,
        debug: bool,
        passthrough: Vec<String>,
        always_forward: Vec<String>,
        primary_redirect_timeout: GoDuration,
        read_timeout: GoDuration,
        read_header_timeout: GoDuration,
        write_timeout: GoDuration,
        idle_timeout: GoDuration,
        forward_mode: String,
        advertise_url: String,
        replica_wait: GoDuration,
        trusted_proxies: Vec<String>,
        replay_buffer: ByteSize,
        max_waiting: usize,
        max_connections: usize,
        target_timeout: GoDuration,
        response_timeout: GoDuration,
        drain_timeout: GoDuration,
        workers: usize,
    }
);

section!(
    /// `lease`.
    Lease {
        r#type: String,
        hostname: String,
        advertise_url: String,
        candidate: bool,
        promote: bool,
        reconnect_delay: GoDuration,
        demote_delay: GoDuration,
        databases: Vec<String>,
        consul: Consul,
    }
);

section!(
    /// `lease.consul`.
    Consul {
        url: String,
        key: String,
        ttl: GoDuration,
        lock_delay: GoDuration,
        heartbeat: bool,
        heartbeat_interval: GoDuration,
        heartbeat_timeout: GoDuration,
        takeover_timeout: GoDuration,
    }
);

section!(
    /// `backup`.
    Backup {
        r#type: String,
        path: String,
        url: String,
        cluster: String,
        auth_token: String,
    }
);

section!(
    /// `log`.
    Log {
        format: String,
        timestamp: bool,
        debug: bool,
    }
);

section!(
    /// `tracing`.
    Tracing {
        enabled: bool,
        path: String,
        max_size: u64,
        max_count: usize,
        compress: bool,
    }
);

/// Every key with its line (from 1) and dotted path, such as `lease.consul.url`, by indentation.
fn keys(text: &str) -> Vec<(usize, String)> {
    let mut open: Vec<(usize, &str)> = Vec::new();
    let mut keys = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let content = line.trim_start();
        let indent = line.len() - content.len();
        let Some((key, _)) = content.split_once(':') else { continue };
        if content.starts_with(['#', '-']) {
            continue;
        }
        open.retain(|(depth, _)| *depth < indent);
        open.push((indent, key.trim().trim_matches(['"', '\''])));
        let path: Vec<&str> = open.iter().map(|(_, key)| *key).collect();
        keys.push((index + 1, path.join(".")));
    }
    keys
}

/// The line on which the dotted key stands.
pub fn line_of(text: &str, key: &str) -> Option<usize> {
    keys(text).into_iter().find(|(_, path)| path == key).map(|(line, _)| line)
}

/// The dotted key on this line.
pub fn key_at(text: &str, line: usize) -> Option<String> {
    keys(text).into_iter().find(|(at, _)| *at == line).map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_by_their_line() {
        let text = "# c\nlog:\n  debug: true\nlease:\n  type: x\n  consul:\n    url: u\ndebug: 1\n";
        assert_eq!(line_of(text, "lease.consul.url"), Some(7));
        assert_eq!(line_of(text, "lease.type"), Some(5));
        assert_eq!(line_of(text, "debug"), Some(8));
        assert_eq!(line_of(text, "lease.debug"), None);
        assert_eq!(key_at(text, 7).as_deref(), Some("lease.consul.url"));
    }
}
