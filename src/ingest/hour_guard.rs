//! Refuses hours that are too far ahead of the clock.
//!
//! With retention, age counts from the newest hour that has flows. A single sender that sends seconds as hours, or
//! whose clock is wrong, would make all other flows too old. So a batch with an hour more than `ahead_max` after the
//! clock's is refused when it arrives. Stored batches are not validated again, neither at replay nor when Kafka is
//! read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::telemetry::Metrics;
use flow::{Batch, Hour, HourLimit, TooFarAhead};

/// Validates the hours of incoming batches.
#[derive(Clone, Debug)]
pub struct HourGuard {
    ahead_max: Option<u32>,
    metrics: Metrics,
    /// Whether the guard is off because the clock is implausible.
    is_disabled: Arc<AtomicBool>,
}

impl HourGuard {
    /// `None` accepts every hour.
    pub fn new(ahead_max: Option<u32>, metrics: Metrics) -> HourGuard {
        HourGuard {
            ahead_max,
            metrics,
            is_disabled: Arc::default(),
        }
    }

    /// # Errors
    /// If a flow's hour is too far ahead of the clock. The caller accepts the batch nevertheless unless
    /// [`HourGuard::trusts_clock`].
    pub fn validate(&self, batch: &Batch) -> Result<(), TooFarAhead> {
        self.limit().map_or(Ok(()), |limit| limit.validate(batch))
    }

    /// Whether the clock is plausible: it is not if the newest stored hour is itself too far ahead. Updates the
    /// metric and the log.
    pub fn trusts_clock(&self, newest_stored: Option<Hour>) -> bool {
        self.limit()
            .is_none_or(|limit| self.update(limit, newest_stored))
    }

    fn limit(&self) -> Option<HourLimit> {
        self.ahead_max.map(HourLimit::now)
    }

    /// Updates the state, and logs changes.
    fn update(&self, limit: HourLimit, newest_stored: Option<Hour>) -> bool {
        let clock = limit.validate_clock(newest_stored);
        let was_disabled = self.is_disabled.swap(clock.is_err(), Ordering::Relaxed);
        let metric = &self.metrics.ingest().hour_guard_off;
        metric.set(i64::from(clock.is_err()));
        let (clock_hour, ahead_max) = (limit.now, limit.ahead_max);
        match clock {
            Err(behind) if !was_disabled => tracing::warn!(
                clock_hour,
                newest_hour = behind.newest.get(),
                ahead_max,
                "{behind}"
            ),
            Ok(()) if was_disabled => tracing::info!(
                clock_hour,
                ahead_max,
                "the clock is no longer behind the newest stored hour; hours too far ahead are refused again"
            ),
            _ => {}
        }
        clock.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow::{BatchBuilder, Counters, HourUnit};

    #[test]
    fn a_clock_behind_the_stored_hours_refuses_nothing() {
        let now = HourUnit::clock_hour();
        let guard = HourGuard::new(Some(48), Metrics::default());
        let trusts = |newest| guard.trusts_clock(Hour::new(u64::from(newest)));
        let mut far = BatchBuilder::with_capacity(0);
        let hour = Hour::new(u64::from(now + 100)).unwrap();
        far.push(hour, [b"s", b"d", b"v"], Counters::default());
        let far = far.finish();
        assert!(guard.validate(&far).is_err());
        assert!(trusts(now + 48));
        assert!(!trusts(now + 49));
        assert_eq!(guard.metrics.ingest().hour_guard_off.get(), 1);
        assert!(trusts(now) && guard.trusts_clock(None));
        assert_eq!(guard.metrics.ingest().hour_guard_off.get(), 0);
        let none = HourGuard::new(None, Metrics::default());
        assert!(none.validate(&far).is_ok());
        assert!(none.trusts_clock(Hour::new(u64::from(now + 100))));
    }
}
