//! The `flowtally-agent` command.

use std::process::ExitCode;

use agent::arguments::Send;
use agent::command;
use clap::{Parser, Subcommand};

/// Sends network flows to a flowtally service; each flow counts once.
#[derive(Debug, Parser)]
#[command(name = "flowtally-agent", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send flows to a service; each flow counts once, no matter how many attempts it takes.
    ///
    /// Reads a JSON array, NDJSON, CSV or AWS VPC Flow Logs, plain or compressed with gzip or zstd, from a
    /// file or a pipe. Equivalent to flowtally send. Exit status: 0 if the service has every flow; otherwise
    /// 1, and an error line explains what is missing.
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
