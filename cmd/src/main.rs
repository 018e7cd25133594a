//! The litefs command.

// The wiring that uses the rest follows.
#![allow(dead_code)]

mod cli;
mod config;
mod logging;
mod mount;
mod trace_file;
mod version;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(cli::normalize(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match cli.command {
        Command::Mount(args) => mount::run(&args),
        Command::Worker(args) => mount::worker::run(&args),
        Command::Version => {
            println!("{}", version::text());
            ExitCode::SUCCESS
        }
        _ => ExitCode::FAILURE,
    }
}
