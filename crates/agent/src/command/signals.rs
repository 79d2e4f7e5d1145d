//! Signals that end a command in good order.

use std::sync::Arc;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};

/// A file that passes `ulimit -f` is then a failed write, with an error that says so, instead of the end of the
/// process. (What is registered takes the place of the signal's default; nobody reads the flag.)
///
/// # Errors
/// A process without room for another signal handler.
pub fn ignore_file_size_limit() -> Result<(), String> {
    let ignored = signal_hook::flag::register(SIGXFSZ, Arc::default());
    ignored.map(drop).map_err(|e| format!("cannot start: {e}"))
}

/// Of a supervisor and a terminal, also one that goes away; but not one that the parent has set to be ignored,
/// as `nohup` does.
pub fn ending() -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored(&status);
    let all = [SIGHUP, SIGINT, SIGTERM];
    let wanted = all.into_iter().filter(|signal| {
        // Shells ignore SIGINT for what runs in the background, and it can still be sent on purpose.
        *signal != SIGHUP || ignored & (1 << (signal - 1)) == 0
    });
    wanted.collect()
}

/// The mask in `/proc/self/status`.
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
