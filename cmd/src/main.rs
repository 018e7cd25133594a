//! The litefs command.

mod channel;
mod cli;
mod client;
mod config;
mod dying;
mod logging;
mod ltx;
mod maintenance;
mod mount;
mod run;
mod trace_file;
mod transfer;
mod version;
mod worker;

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
        Command::Worker(args) => worker::run(&args),
        Command::Version => {
            println!("{}", version::text());
            ExitCode::SUCCESS
        }
        Command::Import(args) => client::run(transfer::import(args)),
        Command::Export(args) => client::run(transfer::export(args)),
        Command::Run(args) => client::run(run::run(args)),
        Command::Ltx(args) => client::run(async move { ltx::run(&args.command) }),
        Command::Verify(args) => client::run(async move { maintenance::verify(&args) }),
        Command::Repair(args) => client::run(async move { maintenance::repair(&args) }),
    }
}
