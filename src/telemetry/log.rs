//! Logging, written to standard error.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

use agent::terminal::{Style, printable};

/// Format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object per line, for programs.
    Json,
}

impl LogFormat {
    /// Text if standard error is a terminal, otherwise JSON.
    pub fn for_stderr() -> LogFormat {
        match std::io::stderr().is_terminal() {
            true => LogFormat::Text,
            false => LogFormat::Json,
        }
    }
}

/// Starts logging the events that `filter` selects.
///
/// # Errors
/// If the filter is invalid, as text for the user.
pub fn start(filter: &str, format: LogFormat) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|e| format!("--log {filter:?}: {e}"))?;
    let coloured = io::stderr().is_terminal();
    let style = match (format, coloured) {
        (LogFormat::Json, _) => Style::Json,
        (LogFormat::Text, true) => Style::Coloured,
        (LogFormat::Text, false) => Style::Text,
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || EventWriter(style))
        .with_ansi(coloured)
        .with_target(false)
        // If standard error is closed or full, the service continues without a log.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => log
            .fmt_fields(debug_fn(write_field).delimited(" "))
            .try_init(),
        LogFormat::Json => log
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .try_init(),
    }
    .map_err(|e| e.to_string())
}

/// Escapes control sequences in fields before adding our own colours.
fn write_field(out: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let text = format!("{value:?}");
    let shown = printable(&text);
    match field.name() {
        "message" => write!(out, "{shown}"),
        name if out.has_ansi_escapes() => {
            write!(out, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m{shown}")
        }
        name => write!(out, "{name}={shown}"),
    }
}

/// Writes each event as one line, and escapes untrusted text.
struct EventWriter(Style);

impl Write for EventWriter {
    /// Writes one event.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = self.0.escape(text.trim_end_matches('\n')).into_owned() + "\n";
        io::stderr().write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
