//! Refuses hours that are too far ahead of the clock.
//!
//! Where hours are retained, age counts from the newest hour that has flows. One sender that sends
//! seconds as hours, or whose clock is wrong, would make the flows of all others too old. So a batch
//! with an hour that is later than the clock's, and `ahead_max` more, is refused when it is taken. What
//! is stored already is never judged again: not at a replay, not when Kafka is read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::telemetry::Metrics;
use flow::{Batch, Hour, HourLimit, TooFarAhead};

/// Judges batches as they are taken.
#[derive(Clone, Debug)]
pub struct HourGuard {
    ahead_max: Option<u32>,
    metrics: Metrics,
    /// The clock cannot be trusted.
    is_disabled: Arc<AtomicBool>,
}

impl HourGuard {
    /// With `None`, every hour is taken.
    pub fn new(ahead_max: Option<u32>, metrics: Metrics) -> HourGuard {
        HourGuard {
            ahead_max,
            metrics,
            is_disabled: Arc::default(),
        }
    }

    /// # Errors
    /// A flow whose hour is too far ahead of the clock. Unless [`HourGuard::trusts_clock`], it is taken all
    /// the same.
    pub fn validate(&self, batch: &Batch) -> Result<(), TooFarAhead> {
        self.limit().map_or(Ok(()), |limit| limit.validate(batch))
    }

    /// Whether the clock can be right, given the newest stored hour: not where that is too far ahead itself.
    /// For the metric and the log as well.
    pub fn trusts_clock(&self, newest_stored: Option<Hour>) -> bool {
        self.limit()
            .is_none_or(|limit| self.update(limit, newest_stored))
    }

    fn limit(&self) -> Option<HourLimit> {
        self.ahead_max.map(HourLimit::now)
    }

    /// Logs when it changes whether the clock can be right.
    fn update(&self, limit: HourLimit, newest_stored: Option<Hour>) -> bool {
        let beyond = newest_stored.filter(|newest| !limit.allows(*newest));
        let was_disabled = self.is_disabled.swap(beyond.is_some(), Ordering::Relaxed);
        let metric = &self.metrics.ingest().hour_guard_off;
        metric.set(i64::from(beyond.is_some()));
        let (clock_hour, ahead_max) = (limit.now, limit.ahead_max);
        match beyond {
            Some(newest) if !was_disabled => tracing::warn!(
                clock_hour,
                newest_hour = newest.get(),
                ahead_max,
                "the clock is behind the newest stored hour, so every hour is taken; set the clock, or delete \
                 that hour if its flows are wrong"
            ),
            None if was_disabled => tracing::info!(
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
    use flow::Counters;
    use flow::{BatchBuilder, HourUnit};

    fn batch(hours: &[u32]) -> Batch {
        let mut batch = BatchBuilder::with_capacity(0);
        for hour in hours {
            let hour = Hour::new(u64::from(*hour)).unwrap();
            batch.push(hour, [b"s", b"d", b"v"], Counters::default());
        }
        batch.finish()
    }

    #[test]
    fn a_clock_that_is_behind_what_is_stored_refuses_nothing() {
        let now = HourUnit::clock_hour();
        let guard = HourGuard::new(Some(48), Metrics::default());
        let trusts = |newest| guard.trusts_clock(Hour::new(u64::from(newest)));
        let far = batch(&[now + 100]);
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
