//! `duplex-lab`: the lab as a program, and the demo that stands on it.

mod control;
mod ctl;
mod demo;
mod ending;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Real PostgreSQL servers, a real Kafka and relays in one temporary folder that goes away with this program.
#[derive(Debug, Parser)]
#[command(name = "duplex-lab", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Brings up a lab, prints as JSON what it consists of, and stays until SIGTERM, SIGINT or `duplex-lab ctl quit`.
    Up(up::Arguments),
    /// Stops, kills, pauses, resumes or restarts a part of a lab that is up, or asks how its parts are.
    Ctl(ctl::Arguments),
    /// Shows two chat databases that stay the same through Kafka.
    Demo,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(err) => {
            eprintln!("error: cannot start: {err}");
            return ExitCode::FAILURE;
        }
    };
    let result = match cli.command {
        Command::Up(arguments) => runtime.block_on(up::run(arguments)),
        Command::Ctl(arguments) => runtime.block_on(ctl::run(arguments)),
        Command::Demo => runtime.block_on(demo::run()),
    };
    // A thread that waits for a line from the terminal cannot be told to end.
    runtime.shutdown_background();
    result.unwrap_or_else(|err| {
        eprintln!("error: {err:#}");
        ExitCode::FAILURE
    })
}
