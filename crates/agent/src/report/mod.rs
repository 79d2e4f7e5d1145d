//! Reports of commands that count traffic themselves: sums by applications and hour, with the names of a table, sent
//! through a spool.

mod metrics;
mod names;
mod sums;

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

pub(crate) use metrics::{MetricsError, MetricsText};
pub(crate) use names::Names;
pub(crate) use sums::Sums;

use crate::arguments::{Credentials, ServiceUrl};
use crate::command::{batches, connect, eprint_line, print_result, send};
use crate::delivery::{DeadLetters, Rejected, SendError, Sender, SenderOptions};

/// A report is made early when there are so many pairs of applications.
pub(crate) const PAIRS_OF_A_REPORT: usize = 20_000;
pub(crate) const SPOOL_IS_FULL: &str =
    "flowtally: the spool or its disk is full; sums are kept in memory until there is room";
pub(crate) const SECONDS_PER_HOUR: u64 = 3600;
/// How long a service that is there gets for the last report, when the command ends.
const LAST_SEND_MAX: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Starts a sender whose batches are reports, which wait in `spool`.
pub(crate) fn start_sender(
    service: &ServiceUrl,
    credentials: &Credentials,
    spool: &Path,
    spool_max_mib: u32,
) -> Result<Sender, SendError> {
    let server = connect::server(&service.url, credentials).map_err(SendError::Options)?;
    let options = SenderOptions {
        server,
        batch_flows: usize::MAX,
        batch_bytes: usize::MAX,
        // Flows that arrive, and cannot be read again: a service that refuses them is asked again.
        batch_age: Some(Duration::from_secs(1)),
        compress: true,
        spool: Some(spool.to_owned()),
        spool_bytes_max: u64::from(spool_max_mib) << 20,
        refused: DeadLetters::SetAside(send::command_to(service, credentials)),
        retry_for: Duration::ZERO,
    };
    let on_rejected = |rejected| {
        if let Rejected::File { path, why, .. } = rejected {
            let path = path.display();
            eprint_line(&format!(
                "flowtally: the service refuses a report, which is in {path} now: {why}"
            ));
        }
        Ok(())
    };
    let on_notice = |text: &str| eprint_line(&format!("flowtally: {text}"));
    Sender::start(options, on_rejected, on_notice)
}

/// Gives the service a moment to take what is in the spool, at the end of the command.
pub(crate) fn send_last(sender: &Sender) {
    let until = Instant::now() + LAST_SEND_MAX;
    let may_wait = || Instant::now() < until && sender.last_error().is_none();
    while sender.report().waiting > 0 && may_wait() {
        std::thread::sleep(POLL_INTERVAL);
    }
    let waiting = sender.report().waiting;
    if waiting > 0 {
        print_result(&format!(
            "stopped; in the spool: {}, which the next start sends",
            batches(waiting)
        ));
    }
}

pub(crate) fn since_epoch() -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default()
}

/// The current hour, since the epoch.
pub(crate) fn hour_now() -> u32 {
    u32::try_from(since_epoch().as_secs() / SECONDS_PER_HOUR).unwrap_or(u32::MAX)
}

/// A random part of `interval`, from `least` (0 to 1) of it on.
pub(crate) fn jittered(interval: Duration, least: f64) -> Duration {
    let random = RandomState::new().hash_one(0_u8) >> 32;
    let fraction = random as f64 / f64::from(u32::MAX);
    interval.mul_f64(least + (1.0 - least) * fraction)
}
