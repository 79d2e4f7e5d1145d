//! One file a subcommand.

mod backup;
mod compact;
mod connect;
mod drain;
mod export;
mod identity;
mod import;
mod manual;
mod rejects;
mod restore;
mod send;
mod serve;
mod signals;
mod source;
mod stats;
mod top;
mod verify;

use std::error::Error as _;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use signal_hook::consts::SIGXFSZ;

use crate::config::{Cli, Command, Settings};
use crate::durable::Lack;
use crate::terminal::{Lines, Style, printable, printable_lines};

/// Runs the command that was asked for; an error is text for the user.
pub fn run(cli: Cli, settings: &Settings) -> Result<(), String> {
    // A file that passes `ulimit -f` is a failed write, with an error that says so, instead of the end of
    // the process. (What is registered takes the place of the signal's default; nobody reads the flag.)
    let ignored = signal_hook::flag::register(SIGXFSZ, Arc::default());
    ignored.map_err(|e| format!("cannot start: {e}"))?;
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

/// What a command ends with that failed, as text of [`run`].
pub fn fail(error: &str) {
    let remedy = Lack::in_text(error).map(Lack::remedy);
    match remedy.filter(|remedy| !error.contains(remedy)) {
        Some(remedy) => say(&format!("flowtally: {error}; {remedy}")),
        None => say(&format!("flowtally: {error}")),
    }
}

/// Ends the process with what clap says: of the arguments, or what was asked for.
pub fn exit(error: &clap::Error) -> ! {
    let text = error.render().to_string();
    let shown = printable_lines(&text);
    let is_safe = |text: &str| printable_lines(text) == text;
    // That text is without colours, and what a value has of them.
    let has_safe_values = match error.use_stderr() {
        true => error
            .source()
            .is_none_or(|source| is_safe(&source.to_string())),
        // Help has the values of variables.
        false => std::env::vars_os().all(|(name, value)| {
            !name.to_string_lossy().starts_with("FLOWTALLY_") || is_safe(&value.to_string_lossy())
        }),
    };
    if shown == text && has_safe_values {
        error.exit();
    }
    let _best_effort = match error.use_stderr() {
        true => write!(io::stderr(), "{shown}"),
        false => write!(io::stdout(), "{shown}"),
    };
    std::process::exit(error.exit_code());
}

/// One line to the terminal, if it is still there.
fn say(line: &str) {
    let _best_effort = writeln!(io::stderr(), "{}", printable(line));
}

/// As a line on a command's result, which the exit status says too.
fn print(line: &str) {
    let _best_effort = writeln!(io::stdout(), "{}", printable(line));
}

/// To standard output, as what a command is for.
fn write(text: &[u8]) -> Result<(), String> {
    let mut out = output(Style::Text);
    written(out.write_all(text).and_then(|()| out.flush()))
}

/// Standard output: exact, unless it is a terminal, which would obey some of it.
fn output(style: Style) -> Box<dyn Write> {
    let out = io::stdout().lock();
    match out.is_terminal() {
        true => Box::new(Lines::new(out, style)),
        false => Box::new(out),
    }
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
