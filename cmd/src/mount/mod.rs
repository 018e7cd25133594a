//! `litefs mount`: a supervisor process and a worker process (ENGINE "Never wait on our own mount").
//!
//! The supervisor is process 1 of a container: it owns signals, exit codes and the application, holds the fence of
//! a worker that cannot (DESIGN §9a), and forces a dead worker's mount off. The worker does everything else.

mod application;
mod fence;
mod supervisor;

use std::process::ExitCode;

use crate::cli::MountArgs;
use crate::config;
use crate::logging;

/// Checks the configuration and runs a node until it is told to stop or the application ends.
pub fn run(args: &MountArgs) -> ExitCode {
    let config = match config::load(&args.overrides()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("litefs: {error}");
            return ExitCode::from(2);
        }
    };
    logging::init(&config.log, None, false, false);
    ExitCode::from(supervisor::run(&config, args))
}
