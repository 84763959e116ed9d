//! `ramkeep`: the command line. One binary is every process of a cluster and every tool around it.
//!
//! # Invariants
//! 1. Standard output carries results only; with `--json` it carries JSON only. Traces and failures
//!    go to standard error, a failure in one line, which with `--json` is a JSON object.
//! 2. The exit code is 0 (done), 1 (failed) or 2 (wrong usage).
#![forbid(unsafe_code)]

mod args;
mod bench;
mod columns;
mod connect;
mod coordinator;
mod coordinators;
mod data;
mod drill;
mod failure;
mod load;
mod output;
mod process;
mod recovery;
mod rescue;
mod runtime;
mod scan;
mod server;
mod settings;
mod status;
mod table;
mod trace;
mod units;
mod up;

use std::process::ExitCode;

use crate::args::{Cli, Command};
use crate::failure::Failure;
use crate::output::Output;

fn main() -> ExitCode {
    let cli = match settings::parse(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(failure) => {
            let json = std::env::args_os().any(|flag| flag == "--json");
            return failure.report(Output::new(json));
        }
    };
    trace::start(cli.global.trace.as_deref(), cli.global.verbose);
    let output = Output::new(cli.global.json);
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(output),
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let output = Output::new(cli.global.json);
    match cli.command {
        Command::Up(args) => up::run(&args, &cli.global),
        Command::Coordinator(args) => coordinator::run(&args, output),
        Command::Server(args) => server::run(&args, output),
        Command::Status(args) => status::run(&args, output),
        Command::Recovery(args) => recovery::run(&args, output),
        Command::Table(args) => table::run(&args, output),
        Command::Put(args) => data::put(&args, output),
        Command::Get(args) => data::get(&args, output),
        Command::Rm(args) => data::rm(&args, output),
        Command::Incr(args) => data::incr(&args, output),
        Command::Scan(args) => scan::scan(&args, output),
        Command::Load(args) => args.run(output),
        Command::Bench(args) => args.run(output),
        Command::Drill(args) => drill::run(&args, &cli.global),
    }
}
