//! `litefs run`: a command on the candidate, on the primary, or under the HALT lock.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use litefs::sqlite::locks::{self, LockBytes, LockKind};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::RunArgs;
use crate::client::NodeClient;

/// The byte of `<db>-lock` that is the HALT lock (COMPAT §3).
const HALT: LockBytes = LockBytes { start: 72, len: 1 };

/// Runs the command; its exit code becomes ours, unless its transactions were refused by the primary (1).
///
/// # Errors
/// When a condition cannot be met, or the HALT lock could not be released cleanly.
pub async fn run(args: RunArgs) -> anyhow::Result<u8> {
    let node = NodeClient::new(&args.url)?;
    let say = |text: &str| {
        if args.verbose {
            eprintln!("litefs: {text}");
        }
    };
    if args.if_candidate {
        let info: serde_json::Value = node.get("/info", &[]).await?.json().await.context("read /info")?;
        if info.get("candidate").and_then(serde_json::Value::as_bool) != Some(true) {
            eprintln!("litefs: this node is not a candidate: command not run");
            return Ok(0);
        }
    }
    if args.promote {
        say("asking to become the primary");
        node.post("/promote", &[], reqwest::Body::default()).await.context("promote this node")?;
    }
    let lock = match &args.with_halt_lock_on {
        Some(path) => {
            say("waiting for the HALT lock");
            Some(HaltLock::acquire(path).await?)
        }
        None => None,
    };
    say("running the command");
    let code = spawn_and_wait(&args.command).await;
    if let Some(lock) = lock {
        lock.release().await?;
    }
    code
}

/// Holds the HALT lock of one database.
#[derive(Debug)]
struct HaltLock {
    file: File,
    path: PathBuf,
}

impl HaltLock {
    async fn acquire(db: &Path) -> anyhow::Result<Self> {
        let mut name = db.as_os_str().to_owned();
        name.push("-lock");
        let path = PathBuf::from(name);
        let opened = path.clone();
        let file = tokio::task::spawn_blocking(move || -> std::io::Result<File> {
            let file = File::options().read(true).write(true).open(&opened)?;
            locks::lock_blocking(&file, HALT, LockKind::Exclusive)?;
            Ok(file)
        })
        .await?
        .with_context(|| format!("take the HALT lock {} (is it a database of this mount?)", path.display()))?;
        Ok(Self { file, path })
    }

    /// Returns when the primary has committed everything written under the lock.
    async fn release(self) -> anyhow::Result<()> {
        let Self { file, path } = self;
        let released = tokio::task::spawn_blocking(move || locks::unlock(&file, HALT)).await?;
        released.with_context(|| {
            format!(
                "release the HALT lock {}: the primary did not take everything that was written under it; what it \
                 refused is set aside under lost+found of the data directory",
                path.display()
            )
        })
    }
}

/// Passes termination signals on. 128 + signal when one ended it, 127 when it cannot be started.
async fn spawn_and_wait(words: &[String]) -> anyhow::Result<u8> {
    let Some((program, args)) = words.split_first() else { bail!("no command") };
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut child = Command::new(program).args(args).spawn().with_context(|| format!("start {program}"))?;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            // A terminal's Ctrl-C reaches the command by itself; the lock must outlive it.
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {
                if let Some(pid) = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                }
            }
        }
    };
    let signal_code = std::os::unix::process::ExitStatusExt::signal(&status).map(|signal| 128 + signal);
    Ok(u8::try_from(status.code().or(signal_code).unwrap_or(1)).unwrap_or(1))
}
