//! The application's processes: the `exec` list, and what waiting for them means as process 1.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

/// Splits a command line as a shell would and starts it. Its exit is seen by [`reap`], not through the standard library.
///
/// # Errors
/// When there is no such program, or it cannot be started.
pub fn start(command_line: &str) -> io::Result<Pid> {
    let words = shell_words::split(command_line).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let (program, args) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(args);
    // SAFETY: the hook makes one system call, which is safe between fork and exec.
    unsafe {
        command.pre_exec(|| {
            // If the supervisor dies the application must not run on beside that of a new start.
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM)).map_err(Into::into)
        });
    }
    let child = command.spawn()?;
    pid_of(&child)
}

/// The process ID of a child that [`reap`] will wait for.
pub fn pid_of(child: &std::process::Child) -> io::Result<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("a process ID of 0"))
}

/// Collects every child that has ended, also orphans that were left to process 1. Exit codes as a shell gives them.
pub fn reap() -> Vec<(Pid, u8)> {
    let mut ended = Vec::new();
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                if let Some(code) = exit_code(status) {
                    ended.push((pid, code));
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Ok(None) | Err(_) => return ended,
        }
    }
}

/// The code of a process that ended; 128 + signal if one killed it.
fn exit_code(status: WaitStatus) -> Option<u8> {
    if let Some(code) = status.exit_status() {
        return Some(u8::try_from(code & 0xff).unwrap_or(1));
    }
    status.terminating_signal().map(|signal| u8::try_from(128 + signal).unwrap_or(255))
}

/// Sends a signal; a process that is gone already is none of our concern.
pub fn signal(pid: Pid, signal: Signal) {
    if let Err(error) = rustix::process::kill_process(pid, signal)
        && error != rustix::io::Errno::SRCH
    {
        tracing::warn!(pid = pid.as_raw_nonzero().get(), ?signal, %error, "send a signal");
    }
}
