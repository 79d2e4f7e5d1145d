//! Refuses hours that are too far ahead of the clock.
//!
//! Where hours are retained, age counts from the newest hour that has flows. One sender that sends
//! seconds as hours, or whose clock is wrong, would make the flows of all others too old. So a batch
//! with an hour that is later than the clock's, and `ahead_max` more, is refused when it is taken. What
//! is stored already is never judged again: not at a replay, not when Kafka is read.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::domain::{Hour, HourUnit};
use crate::store::Batch;
use crate::telemetry::Metrics;

/// The latest hour that is taken, as of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HourLimit {
    /// The clock's hour since the epoch.
    now: u32,
    ahead_max: u32,
}

/// A flow whose hour is too far ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{hour} is more than {} hours after this machine's clock, which is in hour {} since the epoch \
     (--hour-ahead-max){}",
    limit.ahead_max,
    limit.now,
    HourUnit::hint(u128::from(hour.get()), limit.now)
)]
pub struct TooFarAhead {
    /// The first such flow of the batch, counted from 0.
    pub index: usize,
    hour: Hour,
    limit: HourLimit,
}

impl HourLimit {
    /// By the clock as it is now.
    pub fn now(ahead_max: u32) -> HourLimit {
        HourLimit {
            now: HourUnit::clock_hour(),
            ahead_max,
        }
    }

    /// Whether `hour` is taken.
    pub fn has(&self, hour: Hour) -> bool {
        hour.get() <= self.now.saturating_add(self.ahead_max)
    }

    /// # Errors
    /// The first flow of `batch` whose hour is too far ahead.
    pub fn check(&self, batch: &Batch) -> Result<(), TooFarAhead> {
        if batch.hours().all(|hour| self.has(hour)) {
            return Ok(());
        }
        match batch.position(|hour| !self.has(hour)) {
            None => Ok(()), // never: its ledger has the hours of its flows
            Some((index, hour)) => Err(TooFarAhead {
                index,
                hour,
                limit: *self,
            }),
        }
    }
}

/// Judges batches as they are taken.
#[derive(Debug)]
pub struct HourGuard {
    ahead_max: Option<u32>,
    metrics: Metrics,
    /// The clock cannot be trusted.
    is_off: AtomicBool,
}

impl HourGuard {
    /// With `None`, every hour is taken.
    pub fn new(ahead_max: Option<u32>, metrics: Metrics) -> HourGuard {
        HourGuard {
            ahead_max,
            metrics,
            is_off: AtomicBool::new(false),
        }
    }

    /// `newest_stored` is asked only where the batch would be refused.
    ///
    /// # Errors
    /// A flow whose hour is too far ahead of the clock, unless the newest stored hour is too: then it is
    /// the clock that is wrong.
    pub fn check(
        &self,
        batch: &Batch,
        newest_stored: impl FnOnce() -> Option<Hour>,
    ) -> Result<(), TooFarAhead> {
        let Some(ahead_max) = self.ahead_max else {
            return Ok(());
        };
        let limit = HourLimit::now(ahead_max);
        limit.check(batch).or_else(|too_far| {
            let trusts_clock = self.trust_clock(limit, newest_stored());
            if trusts_clock { Err(too_far) } else { Ok(()) }
        })
    }

    /// Holds the clock against the newest stored hour: for the metric and the log.
    pub fn observe(&self, newest_stored: Option<Hour>) {
        if let Some(ahead_max) = self.ahead_max {
            self.trust_clock(HourLimit::now(ahead_max), newest_stored);
        }
    }

    /// Whether the clock can be right, given the newest stored hour. Logs when that changes.
    fn trust_clock(&self, limit: HourLimit, newest_stored: Option<Hour>) -> bool {
        let beyond = newest_stored.filter(|newest| !limit.has(*newest));
        let was_off = self.is_off.swap(beyond.is_some(), Ordering::Relaxed);
        let metric = &self.metrics.ingest().hour_guard_off;
        metric.set(i64::from(beyond.is_some()));
        let (clock_hour, ahead_max) = (limit.now, limit.ahead_max);
        match beyond {
            Some(newest) if !was_off => tracing::warn!(
                clock_hour,
                newest_hour = newest.get(),
                ahead_max,
                "the clock is behind the newest stored hour, so every hour is taken; set the clock, or delete \
                 that hour if its flows are wrong"
            ),
            None if was_off => tracing::info!(
                clock_hour,
                ahead_max,
                "the clock is no longer behind the newest stored hour; hours too far ahead are refused again"
            ),
            _ => {}
        }
        beyond.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Counters;
    use crate::store::BatchBuilder;

    fn batch(hours: &[u32]) -> Batch {
        let mut batch = BatchBuilder::with_capacity(0);
        for hour in hours {
            let hour = Hour::new(u64::from(*hour)).unwrap();
            batch.push(hour, [b"s", b"d", b"v"], Counters::default());
        }
        batch.finish()
    }

    #[test]
    fn the_first_flow_beyond_the_limit_is_named() {
        let now = HourUnit::clock_hour();
        let limit = HourLimit::now(48);
        assert_eq!(limit.check(&batch(&[0, 23, now, now + 48])), Ok(()));
        assert_eq!(limit.check(&batch(&[])), Ok(()));
        let too_far = limit.check(&batch(&[0, now, now + 50, now + 60, 1]));
        assert_eq!(too_far.unwrap_err().index, 2);
        // The last hours that there are.
        assert!(HourLimit::now(u32::MAX).has(Hour::new(u64::from(Hour::MAX)).unwrap()));
    }

    #[test]
    fn a_clock_that_is_behind_what_is_stored_refuses_nothing() {
        let now = HourUnit::clock_hour();
        let guard = HourGuard::new(Some(48), Metrics::default());
        let (newest, far) = (
            |hour| move || Hour::new(u64::from(hour)),
            batch(&[now + 100]),
        );
        assert!(guard.check(&far, newest(now + 48)).is_err());
        assert!(guard.check(&far, newest(now + 49)).is_ok());
        assert_eq!(guard.metrics.ingest().hour_guard_off.get(), 1);
        guard.observe(Hour::new(u64::from(now)));
        assert_eq!(guard.metrics.ingest().hour_guard_off.get(), 0);
        assert!(guard.check(&far, || None).is_err());
        let none = HourGuard::new(None, Metrics::default());
        assert!(none.check(&far, || panic!("asked")).is_ok());
    }
}
