//! The clock by which sockets and addresses are observed: it never steps, and restarts of the agent share it.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Milliseconds since the system started, suspensions included.
pub(super) fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let millis = u64::try_from(now.tv_nsec).unwrap_or_default() / 1_000_000;
    seconds * 1000 + millis
}

/// A moment that is known to be in this span of time: from one to the other, both included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Span {
    pub(super) from: u64,
    pub(super) to: u64,
}

impl Span {
    /// The moment `ago` milliseconds before one in this span. The kernel counts in ticks of up to 10 ms, of now and then.
    pub(super) fn before(self, ago: u64) -> Span {
        const TICK_MS: u64 = 10;
        Span {
            from: self.from.saturating_sub(ago + TICK_MS),
            to: self.to.saturating_sub(ago.saturating_sub(TICK_MS)),
        }
    }

    /// From the start of one to the end of the other, whichever is first.
    pub(super) fn union(self, other: Span) -> Span {
        Span {
            from: self.from.min(other.from),
            to: self.to.max(other.to),
        }
    }
}
