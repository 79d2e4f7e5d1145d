//! One file a subcommand.

mod compact;
mod serve;

use crate::config::{Cli, Command};

/// Runs the command that was asked for; an error is text for the user.
pub fn run(cli: Cli) -> Result<(), String> {
    match cli.command {
        Command::Serve(arguments) => serve::run(arguments),
        Command::Compact(arguments) => compact::run(&arguments),
    }
}
