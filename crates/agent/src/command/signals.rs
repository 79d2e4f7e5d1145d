//! Signals that end a command.

use std::sync::Arc;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};

/// Makes a write beyond `ulimit -f` fail with an error instead of killing the process. (Registering a handler
/// replaces the default action of SIGXFSZ; its flag is never read.)
///
/// # Errors
/// If the process cannot register another signal handler.
pub fn ignore_file_size_limit() -> Result<(), String> {
    let ignored = signal_hook::flag::register(SIGXFSZ, Arc::default());
    ignored.map(drop).map_err(|e| format!("cannot start: {e}"))
}

/// The signals that end a command: those of a supervisor and of a terminal, including a hangup, unless the
/// parent ignores hangups, as `nohup` does.
pub fn ending() -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored(&status);
    let all = [SIGHUP, SIGINT, SIGTERM];
    let wanted = all.into_iter().filter(|signal| {
        // Shells set SIGINT to ignored for background jobs, but it may still be sent on purpose.
        *signal != SIGHUP || ignored & (1 << (signal - 1)) == 0
    });
    wanted.collect()
}

/// Parses the mask of ignored signals in `/proc/self/status`.
fn ignored(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks() {
        assert_eq!(
            ignored("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"),
            0x1001
        );
        assert_eq!(ignored(""), 0);
    }
}
