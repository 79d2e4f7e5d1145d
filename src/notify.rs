//! Notifies systemd of the service's state (`Type=notify`). Does nothing if `NOTIFY_SOCKET` is not set.
//!
//! There is no watchdog. The process aborts by itself when a thread panics, and exits when the journal refuses writes
//! for too long; if the disk hangs, killing the process would not help.

use sd_notify::NotifyState;

/// The store is being opened, and its journal replayed.
pub fn opening() {
    notify(&[NotifyState::Status("opening the data directory")]);
}

/// The service accepts flows.
pub fn ready() {
    notify(&[NotifyState::Ready, NotifyState::Status(ACCEPTING)]);
}

/// Files of secrets are being read again.
pub fn reloading() {
    // Since version 253, systemd requires the time when the reload started.
    let now = NotifyState::monotonic_usec_now().ok();
    let mut states = vec![NotifyState::Reloading];
    states.extend(now);
    notify(&states);
}

/// The files have been read; or `failure` is the reason why the previous secrets remain in use.
pub fn reloaded(failure: Option<&str>) {
    let status = match failure {
        // A status is one line.
        Some(failure) => format!("{ACCEPTING}; reload failed: {}", failure.replace('\n', " ")),
        None => ACCEPTING.to_owned(),
    };
    notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// The service accepts no more requests.
pub fn stopping() {
    notify(&[
        NotifyState::Stopping,
        NotifyState::Status("finishing requests and flushing sums"),
    ]);
}

const ACCEPTING: &str = "accepting flows";

fn notify(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd cannot be notified");
    }
}
