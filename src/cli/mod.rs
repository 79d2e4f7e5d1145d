//! One file a subcommand.

mod compact;
mod import;
mod rejects;
mod send;
mod serve;
mod source;
mod verify;

use std::io::{self, Write};

use crate::config::{Cli, Command};

/// Runs the command that was asked for; an error is text for the user.
pub fn run(cli: Cli) -> Result<(), String> {
    match cli.command {
        Command::Serve(arguments) => serve::run(arguments),
        Command::Send(arguments) => send::run(&arguments),
        Command::Import(arguments) => import::run(&arguments),
        Command::Compact(arguments) => compact::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
    }
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
