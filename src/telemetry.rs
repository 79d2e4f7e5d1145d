//! Logs: set up once, written to standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging what `filter` lets through.
///
/// # Errors
/// A filter that is not understood, as text for the user.
pub fn start(filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|e| format!("--log {filter:?}: {e}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // Where standard error is gone or full, the service goes on without a log.
        .log_internal_errors(false)
        .try_init()
        .map_err(|e| e.to_string())
}
