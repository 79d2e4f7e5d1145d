//! One file a subcommand.

mod backup;
mod compact;
mod connect;
mod export;
mod identity;
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

use crate::config::{Cli, Command, Settings};

/// Runs the command that was asked for; an error is text for the user.
pub fn run(cli: Cli, settings: &Settings) -> Result<(), String> {
    match cli.command {
        Command::Serve(arguments) => serve::run(*arguments, settings),
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

/// To the terminal, if it is still there.
fn say(line: &str) {
    let _best_effort = writeln!(io::stderr(), "{line}");
}

/// As a line on a command's result, which the exit status says too.
fn print(line: &str) {
    let _best_effort = writeln!(io::stdout(), "{line}");
}

/// To standard output, as what a command is for.
fn write(text: &[u8]) -> Result<(), String> {
    let mut out = io::stdout().lock();
    written(out.write_all(text).and_then(|()| out.flush()))
}

/// How a command ends that has written to standard output.
fn written(result: io::Result<()>) -> Result<(), String> {
    match result {
        // Whoever reads it has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|e| format!("cannot write to standard output: {e}")),
    }
}

fn batches(n: u64) -> String {
    match n {
        1 => "1 batch".into(),
        n => format!("{n} batches"),
    }
}
