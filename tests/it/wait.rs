//! Waiting for conditions, with one deadline for all tests.

use std::fmt::Display;
use std::time::{Duration, Instant};

use crate::support::{Client, Daemon};

/// The factor by which a busy machine may be slower than an idle one. Deadlines and upper bounds of times are
/// multiplied by it.
const SLOWNESS: u32 = 4;
/// A test fails if a condition does not hold after this time.
pub const DEADLINE: Duration = at_most(30);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// An upper bound for an action that takes less than `seconds` on an idle machine.
pub const fn at_most(seconds: u64) -> Duration {
    Duration::from_secs(seconds * SLOWNESS as u64)
}

/// Polls until `holds` returns true. `what` is the condition, for the message of a failure.
#[track_caller]
pub fn until(what: impl Display, mut holds: impl FnMut() -> bool) {
    until_some(what, || holds().then_some(()))
}

/// Polls until there is a value, and returns it.
#[track_caller]
pub fn until_some<T>(what: impl Display, poll: impl FnMut() -> Option<T>) -> T {
    let found = poll_for(DEADLINE, poll);
    found.unwrap_or_else(|| panic!("not after {DEADLINE:?}: {what}"))
}

/// The same for a daemon, whose log is in the message of a failure.
#[track_caller]
pub fn until_daemon(daemon: &mut Daemon, what: &str, mut holds: impl FnMut(&mut Daemon) -> bool) {
    let held = poll_for(DEADLINE, || holds(daemon).then_some(()));
    if held.is_none() {
        panic!("not after {DEADLINE:?}: {what}; its log: {}", daemon.log());
    }
}

/// Waits until the daemon has logged `text`. Events are logged after the response was sent.
#[track_caller]
pub fn until_logged(daemon: &Daemon, text: &str) {
    until_logged_times(daemon, text, 1);
}

#[track_caller]
pub fn until_logged_times(daemon: &Daemon, text: &str, times: usize) {
    let found = poll_for(DEADLINE, || {
        (daemon.log().matches(text).count() >= times).then_some(())
    });
    if found.is_none() {
        panic!(
            "not after {DEADLINE:?}: {text:?} in the log: {}",
            daemon.log()
        );
    }
}

/// Waits until all accepted flows are flushed.
#[track_caller]
pub fn until_flushed(client: &Client) {
    until("a flush", || {
        client.metric("flowtally_unflushed_seconds") == 0.0
    });
}

/// Polls until there is a value, or the time has passed.
pub fn poll_for<T>(time: Duration, mut poll: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + time;
    loop {
        if let Some(found) = poll() {
            return Some(found);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
