//! The `flowtally-agent` command.

use std::process::ExitCode;

use agent::arguments::Send;
use agent::command;
use clap::{Parser, Subcommand};

/// Sends network flows to a flowtally service: each counts once.
#[derive(Debug, Parser)]
#[command(name = "flowtally-agent", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send flows to a service: each counts once, however often it has to be tried.
    ///
    /// Reads a JSON array, NDJSON, CSV or AWS VPC Flow Logs, also as gzip or zstd, from a file or a
    /// pipe. The same as flowtally send. Exit status: 0 when the service has everything, 1 with a line
    /// that says what not.
    Send(Box<Send>),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => command::exit(&error),
    };
    let Command::Send(arguments) = cli.command;
    let result =
        command::signals::ignore_file_size_limit().and_then(|()| command::send::run(&arguments));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            command::fail(&error);
            ExitCode::FAILURE
        }
    }
}
