//! Tiers: sums of longer spans besides those of hours, so that a query over a year does not read 8,760 hours.
//!
//! A span is summed once all of its hours are settled, or all of its days summed. Its rows are in `settled`, next to
//! those of the hours, and one ingest stores all of them with the span's record. From then on, a settlement of late rows
//! adds them to the hour and to each summed span that contains it, again in one ingest. So in `settled`, **the rows of
//! a summed span are always the sum of the rows of its hours**. Rows in `flows` and in the tallies belong to their hours
//! only; a reader adds them to the spans.

mod build;
mod finest;
mod layout;
mod merge;
mod plan;
mod summed;
mod thin;
mod verify;

pub use finest::FinestRows;
pub(super) use layout::KeyLayout;
pub(super) use merge::SpanMerge;
pub(super) use plan::{Layer, Segment, cover, layers};
pub(super) use summed::Summed;
pub(super) use verify::compare_span;

use std::fmt;

use flow::{Hour, HourRange};

/// A number of hours for which sums are kept. Spans begin at multiples of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    Day,
    ThirtyDays,
}

impl Tier {
    /// Ascending.
    pub const ALL: [Tier; 2] = [Tier::Day, Tier::ThirtyDays];

    pub const fn hours(self) -> u32 {
        match self {
            Tier::Day => 24,
            Tier::ThirtyDays => 30 * 24,
        }
    }

    pub(super) const fn last_number(self) -> u32 {
        Hour::MAX / self.hours()
    }

    /// The span with this number.
    pub(super) fn span(self, number: u32) -> Span {
        Span { tier: self, number }
    }

    /// The span that contains `hour`.
    pub(super) fn span_of(self, hour: Hour) -> Span {
        Span {
            tier: self,
            number: hour.get() / self.hours(),
        }
    }
}

/// The hours from `number` × [`Tier::hours`] on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    pub tier: Tier,
    pub number: u32,
}

impl Span {
    pub(super) fn first_hour(self) -> Hour {
        Hour::new(u64::from(self.number) * u64::from(self.tier.hours())).unwrap_or(Hour::LAST)
    }

    /// Whether it has some of these hours.
    pub(super) fn overlaps(self, hours: HourRange) -> bool {
        let own = self.hours();
        own.start() < hours.end() && hours.start() < own.end()
    }

    pub fn hours(self) -> HourRange {
        let hours = self.tier.hours();
        let start = self.number * hours;
        // The last span ends with the last hour.
        (start..start.saturating_add(hours).min(HourRange::ALL.end())).into()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hours, what) = (
            self.hours(),
            match self.tier {
                Tier::Day => "the day",
                Tier::ThirtyDays => "the thirty days",
            },
        );
        write!(
            f,
            "{what} of hours {} to {}",
            hours.start(),
            hours.end() - 1
        )
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod thin_tests;
