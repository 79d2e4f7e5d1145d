//! The subcommands: one file or directory for each.

mod backup;
mod browser;
mod compact;
mod demo;
mod export;
mod import;
mod query;
mod restore;
mod rows;
mod serve;
mod stats;
mod table;
mod text;
mod top;
mod verify;
mod welcome;

use agent::command::{manual, signals};
use clap::CommandFactory;

use crate::config::{Cli, Command, Settings};

/// Runs the subcommand. An error is text for the user.
pub fn run(cli: Cli, settings: &Settings) -> Result<(), String> {
    signals::ignore_file_size_limit()?;
    match cli.command {
        Command::Serve(arguments) => serve::run(*arguments, settings),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Send(arguments) => agent::command::send::run(&arguments),
        Command::Agent { command } => agent::command::run(&command),
        Command::Import(arguments) => import::run(&arguments),
        Command::Compact(arguments) => compact::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Backup(arguments) => backup::run(&arguments),
        Command::Restore(arguments) => restore::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::Stats(arguments) => stats::run(&arguments),
        Command::Query(arguments) => query::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Completions(arguments) => manual::completions(Cli::command(), &arguments),
        Command::Man(arguments) => manual::pages(Cli::command(), &arguments),
    }
}
