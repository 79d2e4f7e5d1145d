//! One file a subcommand.

mod backup;
mod compact;
mod connect;
mod export;
mod import;
mod manual;
mod rejects;
mod restore;
mod send;
mod serve;
mod source;
mod stats;
mod top;
mod verify;

use std::io::{self, Write};
use std::path::Path;

use crate::config::{Cli, Command, Settings};
use crate::store::{DataDir, Store, StoreOptions};

/// Runs the command that was asked for; an error is text for the user.
pub fn run(cli: Cli, settings: &Settings) -> Result<(), String> {
    match cli.command {
        Command::Serve(arguments) => serve::run(arguments, settings),
        Command::Send(arguments) => send::run(&arguments),
        Command::Import(arguments) => import::run(&arguments),
        Command::Compact(arguments) => compact::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Backup(arguments) => backup::run(&arguments),
        Command::Restore(arguments) => restore::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::Stats(arguments) => stats::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Completions(arguments) => manual::completions(&arguments),
        Command::Man(arguments) => manual::pages(&arguments),
    }
}

/// Opens the directory of a service that is stopped, for a command that asks about it.
fn open_stopped(dir: &Path) -> Result<Store, String> {
    if !dir.exists() {
        return Err(format!("there is no data directory {}", dir.display()));
    }
    // Opening to write would make one of an empty directory.
    let checked = DataDir::open_to_read(dir).map(drop);
    let opened = checked.and_then(|()| Store::open(dir, StoreOptions::in_between()));
    opened.map(|(store, _)| store).map_err(|e| e.to_string())
}

/// To the terminal, if it is still there.
fn say(line: &str) {
    let _best_effort = writeln!(io::stderr(), "{line}");
}

/// As a command's result. Whoever does not read it has closed it.
fn print(line: &str) {
    let _best_effort = writeln!(io::stdout(), "{line}");
}

fn batches(n: u64) -> String {
    match n {
        1 => "1 batch".into(),
        n => format!("{n} batches"),
    }
}
