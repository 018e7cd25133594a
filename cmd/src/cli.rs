//! The command line (COMPAT §7). Long flags work with one dash (as Go's) and with two.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Where a node's API is unless told otherwise.
pub const DEFAULT_URL: &str = "http://localhost:20202";

/// Replicates SQLite databases between nodes, transaction by transaction.
#[derive(Debug, Parser)]
#[command(name = "litefs", disable_version_flag = true, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node: mount the directory, replicate, supervise the application.
    Mount(MountArgs),
    /// The part of a node that does the work; started by `mount`.
    #[command(hide = true)]
    Worker(WorkerArgs),
    /// Run a command here with a node's help: only on candidates, as the primary, or with the HALT lock.
    Run(RunArgs),
    /// Replace a database by a SQLite file, in one transaction.
    Import(TransferArgs),
    /// Write a consistent copy of a database to a file.
    Export(TransferArgs),
    /// List, print, verify and apply LTX files.
    Ltx(LtxArgs),
    /// Check the databases of a stopped node's data directory.
    Verify(VerifyArgs),
    /// Make a broken database of a stopped node usable again.
    Repair(RepairArgs),
    /// Print the version.
    Version,
}

/// A switch that may also be written as `-flag=false`, as Go allows.
#[derive(Debug, Clone, Args)]
pub struct MountArgs {
    /// Configuration file [default: ./litefs.yml, ~/litefs.yml or /etc/litefs.yml; none: a single primary].
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// Do not expand environment variables in the configuration.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false)]
    pub no_expand_env: bool,
    /// Do not unmount a mount that a crash left behind.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false)]
    pub skip_unmount: bool,
    /// Log every file system request.
    #[arg(long = "fuse.debug", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false)]
    pub fuse_debug: bool,
    /// Log debug lines.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false)]
    pub debug: bool,
    /// Print the trace log to standard output.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false)]
    pub tracing: bool,
    /// Instead of data.dir.
    #[arg(long = "data.dir", value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Instead of fuse.dir.
    #[arg(long = "fuse.dir", value_name = "DIR")]
    pub fuse_dir: Option<String>,
    /// Instead of http.addr.
    #[arg(long = "http.addr", value_name = "ADDR")]
    pub http_addr: Option<String>,
    /// The application, instead of exec.
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub struct WorkerArgs {
    /// Descriptor of the channel to the supervisor.
    #[arg(long)]
    pub channel_fd: i32,
    /// Descriptor of the fence cell.
    #[arg(long)]
    pub fence_fd: i32,
    #[command(flatten)]
    pub mount: MountArgs,
}

#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// The node's API.
    #[arg(long, default_value = DEFAULT_URL)]
    pub url: String,
    /// Make the node the primary first.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false)]
    pub promote: bool,
    /// Do nothing (exit 0) unless the node is a candidate.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false)]
    pub if_candidate: bool,
    /// Hold the HALT lock of this database (its path in the mount) while the command runs.
    #[arg(long, value_name = "PATH")]
    pub with_halt_lock_on: Option<PathBuf>,
    /// Say what happens.
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false)]
    pub verbose: bool,
    /// The command.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub struct TransferArgs {
    /// The node's API.
    #[arg(long, default_value = DEFAULT_URL)]
    pub url: String,
    /// The database.
    #[arg(long)]
    pub name: String,
    /// The SQLite file.
    pub path: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub struct LtxArgs {
    #[command(subcommand)]
    pub command: LtxCommand,
}

#[derive(Debug, Clone, Subcommand)]
pub enum LtxCommand {
    /// One line per record of these files or folders.
    List {
        /// LTX files, segments of a log (.seg), or folders: of them, or of a database in the data directory.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// Header, pages and trailer of one file.
    Dump {
        /// The file.
        path: PathBuf,
    },
    /// Check every image: structure, checksums, and that neighbours fit together.
    Verify {
        /// Files or folders.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// Apply records in order to a plain database file (created when it does not exist).
    Apply {
        /// The database file.
        #[arg(long)]
        db: PathBuf,
        /// Files or folders of records.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
}

#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// The data directory.
    #[arg(long = "data.dir", value_name = "DIR", default_value = "/var/lib/litefs")]
    pub data_dir: PathBuf,
    /// Only these databases.
    pub names: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub struct RepairArgs {
    /// The data directory.
    #[arg(long = "data.dir", value_name = "DIR", default_value = "/var/lib/litefs")]
    pub data_dir: PathBuf,
    /// The database.
    #[arg(long)]
    pub name: String,
}

/// Gives long flags with one dash their second one. What follows `--` stays as it is.
pub fn normalize(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut ours = true;
    args.into_iter()
        .map(|arg| {
            if arg == "--" {
                ours = false;
            }
            match arg.to_str() {
                Some(text) if ours && is_long_with_one_dash(text) => format!("-{text}").into(),
                _ => arg,
            }
        })
        .collect()
}

fn is_long_with_one_dash(text: &str) -> bool {
    let Some(name) = text.strip_prefix('-') else { return false };
    let name = name.split('=').next().unwrap_or_default();
    name.len() > 1 && name.starts_with(|c: char| c.is_ascii_alphabetic())
}

impl MountArgs {
    /// The same flags as words, for the worker's command line.
    pub fn to_words(&self) -> Vec<OsString> {
        let mut words = Vec::new();
        for (name, set) in [
            ("--no-expand-env", self.no_expand_env),
            ("--skip-unmount", self.skip_unmount),
            ("--fuse.debug", self.fuse_debug),
            ("--debug", self.debug),
            ("--tracing", self.tracing),
        ] {
            if set {
                words.push(name.into());
            }
        }
        let config = self.config.as_ref().map(|path| path.as_os_str().to_owned());
        for (name, value) in [
            ("--config", config),
            ("--data.dir", self.data_dir.as_ref().map(OsString::from)),
            ("--fuse.dir", self.fuse_dir.as_ref().map(OsString::from)),
            ("--http.addr", self.http_addr.as_ref().map(OsString::from)),
        ] {
            if let Some(value) = value {
                words.extend([name.into(), value]);
            }
        }
        words
    }

    /// What stands above the configuration file.
    pub fn overrides(&self) -> crate::config::Overrides {
        crate::config::Overrides {
            path: self.config.clone(),
            no_expand_env: self.no_expand_env,
            data_dir: self.data_dir.clone(),
            fuse_dir: self.fuse_dir.clone(),
            http_addr: self.http_addr.clone(),
            fuse_debug: self.fuse_debug,
            debug: self.debug,
            exec: (!self.command.is_empty()).then(|| shell_words::join(&self.command)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(normalize(line.split_whitespace().map(OsString::from)))
    }

    #[test]
    fn flags_work_with_one_dash_and_with_two() {
        for line in
            ["litefs mount -config /x -fuse.debug -- app -flag", "litefs mount --config=/x --fuse.debug -- app -flag"]
        {
            let Ok(Cli { command: Command::Mount(args) }) = parse(line) else { panic!("{line}") };
            assert_eq!(args.config.as_deref(), Some(std::path::Path::new("/x")));
            assert!(args.fuse_debug && !args.debug);
            assert_eq!(args.command, ["app", "-flag"]);
        }
        let Ok(Cli { command: Command::Mount(args) }) = parse("litefs mount -debug=false -skip-unmount=true") else {
            panic!()
        };
        assert!(!args.debug && args.skip_unmount);
    }

    #[test]
    fn run_takes_what_the_original_takes() {
        let line =
            "litefs run -promote -if-candidate -with-halt-lock-on /litefs/db -url http://a:1 -v -- sqlite3 -box x";
        let Ok(Cli { command: Command::Run(args) }) = parse(line) else { panic!() };
        assert!(args.promote && args.if_candidate && args.verbose);
        assert_eq!(args.command, ["sqlite3", "-box", "x"]);
        assert!(parse("litefs run -promote").is_err(), "a command is required");
    }

    #[test]
    fn usage_errors_have_exit_code_2() {
        for line in ["litefs", "litefs mount -nonsense", "litefs import x", "litefs import -name"] {
            assert_eq!(parse(line).expect_err(line).exit_code(), 2, "{line}");
        }
    }
}
