//! `duplex-relay`: first all that can be wrong without a network, then the runtime, then one subcommand.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use duplex_relay::config::{Cli, Command, Settings};
use duplex_relay::errors::Error;
use duplex_relay::{commands, logs};

/// How long destroying Kafka clients may hold up the end.
const LAST_WAIT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cli = Cli::parse();
    logs::start(cli.log_format);
    // A service's end is a line of its log; a person's command says it in words.
    let serves = matches!(cli.command, Command::Run);
    match start(cli) {
        Ok(code) => code,
        Err(err) => {
            if serves {
                tracing::error!(error = %format_args!("{err:#}"), "duplex-relay ends");
            } else {
                eprintln!("error: {}", explained(&err));
            }
            ExitCode::FAILURE
        }
    }
}

/// An error of ours holds what is below it, and has advice.
fn explained(err: &anyhow::Error) -> String {
    match err.downcast_ref::<Error>() {
        Some(ours) => format!("{ours}\nhint: {}", ours.treatment().1),
        None => format!("{err:#}"),
    }
}

fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    let (options, command) = (cli.options, cli.command);
    // One thread serves all of it: the work is waiting, and every further thread costs memory and wake-ups.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(16).build()?;
    let result = match command {
        Command::Run => runtime.block_on(commands::run::run(Settings::resolve(options)?)),
        Command::Check => runtime.block_on(commands::check::run(Settings::resolve(options)?)),
        Command::Tail(arguments) => runtime.block_on(commands::tail::run(&options.kafka()?, arguments)),
    };
    runtime.shutdown_timeout(LAST_WAIT);
    result
}
