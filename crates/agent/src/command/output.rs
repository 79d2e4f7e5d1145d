//! Output of commands: results and rows go to standard output, everything else to standard error.

use std::error::Error as _;
use std::io::{self, IsTerminal, Write};

use crate::durable::OutOfSpace;
use crate::terminal::{Lines, Style, printable, printable_lines};

/// Prints the error of a failed command.
pub fn fail(error: &str) {
    let shortage = error_number(error).and_then(OutOfSpace::from_number);
    let remedy = shortage.map(OutOfSpace::remedy);
    match remedy.filter(|remedy| !error.contains(remedy)) {
        Some(remedy) => eprint_line(&format!("flowtally: {error}; {remedy}")),
        None => eprint_line(&format!("flowtally: {error}")),
    }
}

/// The number of the system's error in `error`. The number and not the message, which a file may have as its name.
fn error_number(error: &str) -> Option<i32> {
    let (_, number) = error.rsplit_once("(os error ")?;
    number.split_once(')')?.0.parse().ok()
}

/// Prints clap's message (an argument error, or the help that was requested) and exits.
pub fn exit(error: &clap::Error) -> ! {
    let text = error.render().to_string();
    let shown = printable_lines(&text);
    let is_safe = |text: &str| printable_lines(text) == text;
    // Use the text without colours, since colours in it may come from an argument's value.
    let has_safe_values = match error.use_stderr() {
        true => error
            .source()
            .is_none_or(|source| is_safe(&source.to_string())),
        // Help shows the values of environment variables.
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

/// Prints one line to standard error; ignores a closed terminal.
pub fn eprint_line(line: &str) {
    let _best_effort = writeln!(io::stderr(), "{}", printable(line));
}

/// Prints the result line of a command. A failure to print is ignored, since the exit status has the result
/// too.
pub fn print_result(line: &str) {
    let _best_effort = writeln!(io::stdout(), "{}", printable(line));
}

/// Writes the output that a command was run for to standard output.
pub fn write_stdout(text: &[u8]) -> Result<(), String> {
    let mut out = stdout(Style::Text);
    stdout_result(out.write_all(text).and_then(|()| out.flush()))
}

/// Standard output: exact, except that text for a terminal is escaped.
pub fn stdout(style: Style) -> Box<dyn Write> {
    let out = io::stdout().lock();
    match out.is_terminal() {
        true => Box::new(Lines::new(out, style)),
        false => Box::new(out),
    }
}

/// Refuses to write bytes to a terminal; `what` is the argument that asks for them.
///
/// # Errors
/// If standard output is a terminal, with what to do.
pub fn refuse_terminal(what: &str) -> Result<(), String> {
    match io::stdout().is_terminal() {
        true => Err(format!(
            "{what} is not text, and standard output is a terminal: redirect it to a file or a pipe"
        )),
        false => Ok(()),
    }
}

/// Converts the result of writing to standard output into the result of the command.
pub fn stdout_result(result: io::Result<()>) -> Result<(), String> {
    match result {
        // The reader closed the pipe: it has read enough.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_an_error_is_read_and_not_the_name_of_a_file() {
        let full = OutOfSpace::Space.system_error();
        let error = format!("a (os error 2): {full}; the rest is in the spool");
        assert_eq!(error_number(&error), full.raw_os_error());
        for other in [
            "File too large: no such flow",
            "(os error x)",
            "(os error 1",
        ] {
            assert_eq!(error_number(other), None);
        }
    }
}
