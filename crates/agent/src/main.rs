//! The `flowtally-agent` command.

use std::process::ExitCode;

use agent::arguments::AgentCommand;
use agent::command;
use clap::Parser;

/// Sends network flows to a flowtally service: those of this host's connections, or of files and pipes. Each flow
/// counts once.
#[derive(Debug, Parser)]
#[command(name = "flowtally-agent", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: AgentCommand,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => command::exit(&error),
    };
    let result =
        command::signals::ignore_file_size_limit().and_then(|()| command::run(&cli.command));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            command::fail(&error);
            ExitCode::FAILURE
        }
    }
}
