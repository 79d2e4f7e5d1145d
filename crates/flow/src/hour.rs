//! The hour that a flow belongs to.

use std::fmt;
use std::ops::Range;

/// The hour that a flow belongs to: `0 ..= Hour::MAX`. Senders decide whether it counts from midnight or from the
/// epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hour(u32);

impl Hour {
    /// The largest hour. `u32::MAX` is reserved as the prefix of keys that are not flow keys.
    pub const MAX: u32 = u32::MAX - 1;
    pub const FIRST: Hour = Hour(0);
    pub const LAST: Hour = Hour(Hour::MAX);

    /// `None` if `hour` is larger than [`Hour::MAX`].
    pub fn new(hour: u64) -> Option<Hour> {
        match u32::try_from(hour) {
            Ok(hour) if hour <= Hour::MAX => Some(Hour(hour)),
            _ => None,
        }
    }

    #[inline]
    pub fn get(self) -> u32 {
        self.0
    }

    /// The hour after it; `None` after the last.
    pub fn next(self) -> Option<Hour> {
        Hour::new(u64::from(self.0) + 1)
    }

    /// The hour that is `hours` earlier, or the first.
    pub fn minus(self, hours: u32) -> Hour {
        Hour(self.0.saturating_sub(hours))
    }
}

impl fmt::Display for Hour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The hours from a first one to an end, which is exclusive and may be [`Hour::MAX`] + 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HourRange {
    start: u32,
    end: u32,
}

impl HourRange {
    /// The same hours as `ranges`, in ascending order, without overlaps and empty ranges.
    pub fn disjoint(mut ranges: Vec<HourRange>) -> Vec<HourRange> {
        ranges.retain(|range| !range.is_empty());
        ranges.sort_unstable_by_key(|range| range.start());
        ranges.dedup_by(|next, range| {
            let is_adjacent = next.start() <= range.end();
            if is_adjacent {
                *range = (range.start()..range.end().max(next.end())).into();
            }
            is_adjacent
        });
        ranges
    }

    pub const ALL: HourRange = HourRange {
        start: 0,
        end: Hour::MAX + 1,
    };

    /// The hours before `end`.
    pub fn before(end: Hour) -> HourRange {
        HourRange {
            start: 0,
            end: end.0,
        }
    }

    /// The first hour, if the range is not empty.
    pub fn start(self) -> u32 {
        self.start
    }

    /// Exclusive.
    pub fn end(self) -> u32 {
        self.end
    }

    /// The only hour of a range of one.
    pub fn only(self) -> Option<Hour> {
        (self.len() == 1).then_some(Hour(self.start))
    }

    /// The hours, ascending.
    pub fn hours(self) -> impl Iterator<Item = Hour> {
        (self.start..self.end).map(Hour)
    }

    /// Number of hours.
    pub fn len(self) -> u32 {
        self.end.saturating_sub(self.start)
    }

    pub fn is_empty(self) -> bool {
        self.start >= self.end
    }

    #[inline]
    pub fn contains(self, hour: Hour) -> bool {
        self.start <= hour.0 && hour.0 < self.end
    }

    /// The hours up to `last`, which is after them, included.
    #[must_use]
    pub fn until(self, last: Hour) -> HourRange {
        HourRange {
            end: last.0 + 1,
            ..self
        }
    }

    /// Without the hours before `first`.
    #[must_use]
    pub fn since(self, first: Hour) -> HourRange {
        HourRange {
            start: self.start.max(first.0).min(self.end),
            end: self.end,
        }
    }
}

/// One hour.
impl From<Hour> for HourRange {
    fn from(hour: Hour) -> HourRange {
        HourRange {
            start: hour.0,
            end: hour.0 + 1,
        }
    }
}

impl From<Range<u32>> for HourRange {
    fn from(hours: Range<u32>) -> HourRange {
        HourRange {
            start: hours.start,
            end: hours.end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_stop_one_short_of_u32() {
        assert_eq!(Hour::new(4_294_967_294).map(Hour::get), Some(4_294_967_294));
        assert_eq!(Hour::new(4_294_967_295), None);
        assert_eq!(Hour::new(u64::MAX), None);
        assert_eq!(
            (Hour::LAST.next(), Hour::FIRST.minus(1)),
            (None, Hour::FIRST)
        );
    }

    #[test]
    fn a_range_has_its_first_hour_and_not_its_end() {
        let hour = |hour| Hour::new(hour).unwrap();
        let range = HourRange::from(3..9);
        assert!(range.contains(hour(3)) && range.contains(hour(8)) && !range.contains(hour(9)));
        assert_eq!(range.since(hour(5)), (5..9).into());
        assert_eq!(range.since(hour(2)), range);
        assert!(range.since(hour(20)).is_empty() && HourRange::before(Hour::FIRST).is_empty());
        assert!(HourRange::ALL.contains(Hour::LAST));
        assert_eq!(HourRange::from(Hour::LAST).only(), Some(Hour::LAST));
        assert_eq!(range.only(), None);
    }
}
