//! One file a subcommand.

mod compact;
mod send;
mod serve;
mod verify;

use crate::config::{Cli, Command};

/// Runs the command that was asked for; an error is text for the user.
pub fn run(cli: Cli) -> Result<(), String> {
    match cli.command {
        Command::Serve(arguments) => serve::run(arguments),
        Command::Send(arguments) => send::run(&arguments),
        Command::Compact(arguments) => compact::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
    }
}
