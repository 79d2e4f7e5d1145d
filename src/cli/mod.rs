//! One file a subcommand.

mod backup;
mod compact;
mod connect;
mod export;
mod manual;
mod restore;
mod send;
mod serve;
mod stats;
mod verify;

use crate::config::{Cli, Command, Settings};

/// Runs the command that was asked for; an error is text for the user.
pub fn run(cli: Cli, settings: &Settings) -> Result<(), String> {
    match cli.command {
        Command::Serve(arguments) => serve::run(arguments, settings),
        Command::Send(arguments) => send::run(&arguments),
        Command::Compact(arguments) => compact::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Backup(arguments) => backup::run(&arguments),
        Command::Restore(arguments) => restore::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::Stats(arguments) => stats::run(&arguments),
        Command::Completions(arguments) => manual::completions(&arguments),
        Command::Man(arguments) => manual::pages(&arguments),
    }
}
