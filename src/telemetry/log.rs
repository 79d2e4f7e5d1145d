//! Logs: set up once, written to standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line, for programs.
    Json,
}

impl LogFormat {
    /// Text where a person looks on, JSON elsewhere.
    pub fn of_stderr() -> LogFormat {
        match std::io::stderr().is_terminal() {
            true => LogFormat::Text,
            false => LogFormat::Json,
        }
    }
}

/// Starts logging what `filter` lets through.
///
/// # Errors
/// A filter that is not understood, as text for the user.
pub fn start(filter: &str, format: LogFormat) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|e| format!("--log {filter:?}: {e}"))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // Where standard error is gone or full, the service goes on without a log.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .try_init(),
    }
    .map_err(|e| e.to_string())
}
