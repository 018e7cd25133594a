//! The worker process: store, mounts, node, proxy; started and watched by the supervisor.

use std::process::ExitCode;

use crate::cli::WorkerArgs;

/// Runs the worker until the supervisor says stop, or is gone.
pub fn run(_args: &WorkerArgs) -> ExitCode {
    ExitCode::FAILURE
}
