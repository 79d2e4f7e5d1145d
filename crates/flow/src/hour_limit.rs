//! The latest hour that is accepted, relative to the clock.

use crate::batch::Batch;
use crate::{Hour, HourUnit};

/// The latest hour that is accepted, as of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HourLimit {
    /// The clock's hour since the epoch.
    pub now: u32,
    /// Number of later hours that are accepted.
    pub ahead_max: u32,
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

/// The newest stored hour is itself too far ahead, so the clock cannot be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the clock is behind the newest stored hour, {newest}, so every hour is accepted; set the clock, or delete that hour \
     if its flows are wrong"
)]
pub struct ClockBehind {
    pub newest: Hour,
}

impl HourLimit {
    /// The limit by the current clock.
    pub fn now(ahead_max: u32) -> HourLimit {
        HourLimit {
            now: HourUnit::clock_hour(),
            ahead_max,
        }
    }

    /// Whether `hour` is accepted.
    pub fn allows(&self, hour: Hour) -> bool {
        hour.get() <= self.now.saturating_add(self.ahead_max)
    }

    /// # Errors
    /// If the clock is implausible: every hour is accepted then, or flows of now would be refused.
    pub fn validate_clock(&self, newest_stored: Option<Hour>) -> Result<(), ClockBehind> {
        match newest_stored.filter(|newest| !self.allows(*newest)) {
            Some(newest) => Err(ClockBehind { newest }),
            None => Ok(()),
        }
    }

    /// # Errors
    /// The first flow of `batch` whose hour is too far ahead.
    pub fn validate(&self, batch: &Batch) -> Result<(), TooFarAhead> {
        if batch.hours().all(|hour| self.allows(hour)) {
            return Ok(());
        }
        match batch.find_hour(|hour| !self.allows(hour)) {
            None => Ok(()), // unreachable: the ledger has the hours of the flows
            Some((index, hour)) => Err(TooFarAhead {
                index,
                hour,
                limit: *self,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BatchBuilder, Counters};

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
        assert_eq!(limit.validate(&batch(&[0, 23, now, now + 48])), Ok(()));
        assert_eq!(limit.validate(&batch(&[])), Ok(()));
        let too_far = limit.validate(&batch(&[0, now, now + 50, now + 60, 1]));
        assert_eq!(too_far.unwrap_err().index, 2);
        // The last possible hours.
        assert!(HourLimit::now(u32::MAX).allows(Hour::new(u64::from(Hour::MAX)).unwrap()));
    }
}
