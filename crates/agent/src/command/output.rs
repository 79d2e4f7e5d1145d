//! What commands write: results and rows to standard output, all else to standard error.

use std::error::Error as _;
use std::io::{self, IsTerminal, Write};

use crate::durable::Lack;
use crate::terminal::{Lines, Style, printable, printable_lines};

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
pub fn say(line: &str) {
    let _best_effort = writeln!(io::stderr(), "{}", printable(line));
}

/// As a line on a command's result, which the exit status says too.
pub fn print(line: &str) {
    let _best_effort = writeln!(io::stdout(), "{}", printable(line));
}

/// To standard output, as what a command is for.
pub fn write(text: &[u8]) -> Result<(), String> {
    let mut out = output(Style::Text);
    written(out.write_all(text).and_then(|()| out.flush()))
}

/// Standard output: exact, unless it is a terminal, which would obey some of it.
pub fn output(style: Style) -> Box<dyn Write> {
    let out = io::stdout().lock();
    match out.is_terminal() {
        true => Box::new(Lines::new(out, style)),
        false => Box::new(out),
    }
}

/// How a command ends that has written to standard output.
pub fn written(result: io::Result<()>) -> Result<(), String> {
    match result {
        // Whoever reads it has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|e| format!("cannot write to standard output: {e}")),
    }
}

pub fn batches(n: u64) -> String {
    match n {
        1 => "1 batch".into(),
        n => format!("{n} batches"),
    }
}
