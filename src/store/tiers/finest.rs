//! From which hour on the rows of hours, and those of days, can be read.
//!
//! Longer spans may be kept longer than shorter ones. A query for hours whose rows are gone is answered from the spans
//! that contain them if it has whole spans of them, and is refused otherwise.

use std::fmt;

use super::Tier;
use crate::store::error::StoreError;
use flow::{Hour, HourRange};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FinestRows {
    /// Earlier hours are only in days, or in thirty days.
    pub hours_from: Hour,
    /// Earlier days are only in thirty days. Not after `hours_from`.
    pub days_from: Hour,
}

impl Default for FinestRows {
    fn default() -> FinestRows {
        FinestRows {
            hours_from: Hour::FIRST,
            days_from: Hour::FIRST,
        }
    }
}

/// As nodes tell each other: the two hours, as in `2969,1536`.
impl fmt::Display for FinestRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.hours_from, self.days_from)
    }
}

impl FinestRows {
    /// Reads what [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<FinestRows> {
        let (hours_from, days_from) = text.split_once(',')?;
        let hour = |text: &str| Hour::new(text.parse().ok()?);
        let finest = FinestRows {
            hours_from: hour(hours_from)?,
            days_from: hour(days_from)?,
        };
        (finest.days_from <= finest.hours_from).then_some(finest)
    }

    /// The hours that satisfy both.
    #[must_use]
    pub fn and(self, other: FinestRows) -> FinestRows {
        FinestRows {
            hours_from: self.hours_from.max(other.hours_from),
            days_from: self.days_from.max(other.days_from),
        }
    }

    /// The shortest spans in which the rows of `hour` can be read; `None` if they can be read by hour.
    pub fn tier_of(self, hour: Hour) -> Option<Tier> {
        if hour < self.days_from {
            Some(Tier::ThirtyDays)
        } else {
            (hour < self.hours_from).then_some(Tier::Day)
        }
    }

    /// The smallest step in which the rows of `hour` can be queried.
    pub fn step_of(self, hour: Hour) -> u32 {
        self.tier_of(hour).map_or(1, Tier::hours)
    }

    /// Rows of these hours can be read from hours and from spans of at most `largest`.
    ///
    /// # Errors
    /// [`StoreError::TooCoarse`] if they cannot.
    pub fn validate(self, hours: HourRange, largest: Option<Tier>) -> Result<(), StoreError> {
        if hours.is_empty() {
            return Ok(());
        }
        for (tier, finer_from) in [
            (Tier::ThirtyDays, self.days_from),
            (Tier::Day, self.hours_from),
        ] {
            if hours.start() >= finer_from.get() {
                continue;
            }
            // From the end of the span with the last hour whose rows are gone, all spans are read from finer rows.
            let span_hours = u64::from(tier.hours());
            let all_finer_from = u64::from(finer_from.get()).next_multiple_of(span_hours);
            let fits = |at: u32| u64::from(at) >= all_finer_from || at.is_multiple_of(tier.hours());
            if largest < Some(tier) || !fits(hours.start()) || !fits(hours.end()) {
                return Err(StoreError::TooCoarse { tier, finer_from });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finest(hours_from: u32, days_from: u32) -> FinestRows {
        let hour = |hour: u32| Hour::new(hour.into()).unwrap();
        FinestRows {
            hours_from: hour(hours_from),
            days_from: hour(days_from),
        }
    }

    #[test]
    fn whole_spans_can_be_read_where_hours_are_gone() {
        let finest = finest(2000, 1440);
        let day = Some(Tier::Day);
        let thirty_days = Some(Tier::ThirtyDays);
        for (hours, largest, expected) in [
            (2000..2001, None, None),
            (1999..2001, None, day),
            (1999..2001, day, day),
            // Hour 2000 is in the middle of the day from 1992 to 2016.
            (1992..2001, day, day),
            (1992..2016, day, None),
            (1992..2017, day, None),
            (1440..2500, day, None),
            (1416..2500, day, thirty_days),
            (1416..2500, thirty_days, thirty_days),
            (720..2500, thirty_days, None),
            (720..1440, thirty_days, None),
            (720..1464, thirty_days, None),
            (720..1450, thirty_days, day),
            (0..1439, thirty_days, thirty_days),
            (7..7, None, None),
            (3000..u32::MAX, None, None),
            (720..u32::MAX, thirty_days, None),
        ] {
            let refused = match finest.validate(hours.clone().into(), largest) {
                Ok(()) => None,
                Err(StoreError::TooCoarse { tier, .. }) => Some(tier),
                Err(error) => panic!("{error}"),
            };
            assert_eq!(refused, expected, "{hours:?} {largest:?}");
        }
        let tiers = [1439, 1440, 1999, 2000].map(|hour| finest.tier_of(Hour::new(hour).unwrap()));
        assert_eq!(tiers, [thirty_days, day, day, None]);
        let steps = [1439, 1440, 2000].map(|hour| finest.step_of(Hour::new(hour).unwrap()));
        assert_eq!(steps, [720, 24, 1]);
    }

    #[test]
    fn nodes_read_what_others_write() {
        for finest in [FinestRows::default(), finest(2969, 1536)] {
            assert_eq!(FinestRows::parse(&finest.to_string()), Some(finest));
        }
        for wrong in ["", "1", "1,", "1,2", "4294967295,0", "2,1,0", "-1,0"] {
            assert_eq!(FinestRows::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn all_hours_can_be_read_by_default() {
        let all = FinestRows::default();
        assert!(all.validate(HourRange::ALL, None).is_ok());
        assert_eq!(finest(48, 24).and(finest(24, 0)), finest(48, 24));
    }
}
