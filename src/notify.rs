//! Tells systemd how far the service is (`Type=notify`). Where nobody asked for it by NOTIFY_SOCKET,
//! nothing happens.
//!
//! There is no watchdog. A thread that ends by a panic takes the process down by itself, a journal that
//! refuses writes does after a while, and where the disk hangs, a kill would help nobody.

use sd_notify::NotifyState;

/// The store is being opened, and its journal replayed.
pub fn opening() {
    notify(&[NotifyState::Status("opening the data directory")]);
}

/// Flows are accepted from now on.
pub fn ready() {
    notify(&[NotifyState::Ready, NotifyState::Status(ACCEPTING)]);
}

/// Files of secrets are being read again.
pub fn reloading() {
    // Since version 253, systemd wants to know when that began.
    let now = NotifyState::monotonic_usec_now().ok();
    let mut states = vec![NotifyState::Reloading];
    states.extend(now);
    notify(&states);
}

/// They have been read, or `failure` says why those from before stay in use.
pub fn reloaded(failure: Option<&str>) {
    let status = match failure {
        // A status has one line.
        Some(failure) => format!("{ACCEPTING}; reload failed: {}", failure.replace('\n', " ")),
        None => ACCEPTING.to_owned(),
    };
    notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// Nothing is accepted any more.
pub fn stopping() {
    notify(&[
        NotifyState::Stopping,
        NotifyState::Status("finishing requests and moving sums to their files"),
    ]);
}

const ACCEPTING: &str = "accepting flows";

fn notify(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd cannot be told how far the service is");
    }
}
