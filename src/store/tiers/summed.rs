//! Which spans are summed, and from which hour on the rows of shorter ones are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use rocksdb::DB;

use super::{FinestRows, Span, Tier};
use crate::store::codec;
use crate::store::error::{StoreError, with_context};
use crate::store::families::{iterate, settled_family};
use flow::HourRange;

/// The spans that have rows in `settled`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summed {
    days: Numbers,
    thirty_days: Numbers,
    /// Multiples of a day and of thirty days. Rows of earlier hours, or days, are not in `settled`.
    pub(in crate::store) finest: FinestRows,
}

impl Summed {
    pub(in crate::store) fn read(db: &DB) -> Result<Summed, StoreError> {
        let mut summed = Summed::default();
        let Some(settled) = settled_family(db) else {
            return Ok(summed);
        };
        let (lower, upper) = codec::span_record_bounds();
        let mut records = iterate(db, settled, lower, upper);
        while let Some(key) = records.key() {
            summed.insert(&[codec::decode_span_record_key(key)?]);
            records.next();
        }
        records
            .status()
            .map_err(with_context("reading the records of spans"))?;
        let finest = db
            .get_pinned_cf(settled, codec::FINEST_ROWS_KEY)
            .map_err(with_context("reading the record of the finest rows"))?;
        if let Some(value) = finest {
            summed.finest = codec::decode_finest_rows(&value)?;
        }
        Ok(summed)
    }

    pub(in crate::store) fn insert(&mut self, spans: &[Span]) {
        for span in spans {
            self.of_mut(span.tier).insert(span.number);
        }
    }

    /// Sets what is kept, without `days`, whose rows are gone.
    pub(in crate::store) fn thin(&mut self, finest: FinestRows, days: &[Span]) {
        self.finest = finest;
        for day in days {
            self.of_mut(day.tier).remove(day.number..day.number + 1);
        }
    }

    /// Removes the spans that have some of these hours.
    pub(in crate::store) fn remove_overlapping(&mut self, hours: &[HourRange]) {
        for range in hours {
            for tier in Tier::ALL {
                self.of_mut(tier).remove(numbers_overlapping(tier, *range));
            }
        }
    }

    pub(in crate::store) fn contains(&self, span: Span) -> bool {
        self.of(span.tier).contains(span.number)
    }

    /// The summed spans of `tier` that have some of these hours.
    pub(in crate::store) fn overlapping(
        &self,
        tier: Tier,
        hours: HourRange,
    ) -> impl DoubleEndedIterator<Item = Span> {
        let numbers = self.of(tier).within(numbers_overlapping(tier, hours));
        numbers.map(move |number| tier.span(number))
    }

    /// Whether a summed span has some of these hours.
    pub(in crate::store) fn any_overlapping(&self, hours: HourRange) -> bool {
        let mut tiers = Tier::ALL.into_iter();
        tiers.any(|tier| self.overlapping(tier, hours).next().is_some())
    }

    /// The summed spans that have some of these hours, ascending.
    pub(in crate::store) fn of_hours(&self, hours: &[HourRange]) -> BTreeSet<Span> {
        let of_tier = |tier| {
            let of_range = move |range: &HourRange| self.overlapping(tier, *range);
            hours.iter().flat_map(of_range)
        };
        Tier::ALL.into_iter().flat_map(of_tier).collect()
    }

    fn of(&self, tier: Tier) -> &Numbers {
        match tier {
            Tier::Day => &self.days,
            Tier::ThirtyDays => &self.thirty_days,
        }
    }

    fn of_mut(&mut self, tier: Tier) -> &mut Numbers {
        match tier {
            Tier::Day => &mut self.days,
            Tier::ThirtyDays => &mut self.thirty_days,
        }
    }
}

/// The numbers of the spans of `tier` that have some of these hours.
fn numbers_overlapping(tier: Tier, hours: HourRange) -> Range<u32> {
    match hours.is_empty() {
        true => 0..0,
        false => hours.start() / tier.hours()..hours.end().div_ceil(tier.hours()),
    }
}

/// Numbers of spans, as ranges: most spans follow another one, so there are few ranges, however many spans there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Numbers {
    /// The end of each range (exclusive), by its start. Ranges neither overlap nor touch.
    ends: BTreeMap<u32, u32>,
}

impl Numbers {
    /// The last range that starts at `number` or before it.
    fn last_from(&self, number: u32) -> Option<(u32, u32)> {
        let (start, end) = self.ends.range(..=number).next_back()?;
        Some((*start, *end))
    }

    fn contains(&self, number: u32) -> bool {
        let range = self.last_from(number);
        range.is_some_and(|(_, end)| number < end)
    }

    /// Those of `numbers` that it contains, ascending.
    fn within(&self, numbers: Range<u32>) -> impl DoubleEndedIterator<Item = u32> {
        let Range { start, end } = numbers;
        let first = self.last_from(start).map_or(start, |(first, _)| first);
        let ranges = self.ends.range(first..end.max(first));
        ranges.flat_map(move |(from, to)| (*from).max(start)..(*to).min(end))
    }

    fn insert(&mut self, number: u32) {
        let before = self.last_from(number);
        if before.is_some_and(|(_, end)| number < end) {
            return;
        }
        let before = before.filter(|(_, end)| *end == number);
        let start = before.map_or(number, |(start, _)| start);
        let after = self.ends.remove(&(number + 1));
        self.ends.insert(start, after.unwrap_or(number + 1));
    }

    fn remove(&mut self, numbers: Range<u32>) {
        if numbers.is_empty() {
            return;
        }
        self.cut(numbers.start);
        self.cut(numbers.end);
        let inside: Vec<u32> = self.ends.range(numbers).map(|(start, _)| *start).collect();
        for start in inside {
            self.ends.remove(&start);
        }
    }

    /// Cuts the range that has both `at` and the number before it.
    fn cut(&mut self, at: u32) {
        let before = self.ends.range_mut(..at).next_back();
        if let Some(end) = before.map(|(_, end)| end).filter(|end| **end > at) {
            let rest = std::mem::replace(end, at);
            self.ends.insert(at, rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;
    use crate::store::crash_copy;

    #[test]
    fn numbers_are_those_of_a_set() {
        let mut random = crash_copy::random();
        let (mut numbers, mut model) = (Numbers::default(), BTreeSet::new());
        for _ in 0..20_000 {
            let start = random.random_range(0..60_u32);
            let range = start..start + random.random_range(0..12);
            match random.random_range(0..4) {
                0 => {
                    numbers.remove(range.clone());
                    model.retain(|number| !range.contains(number));
                }
                _ => {
                    numbers.insert(start);
                    model.insert(start);
                }
            }
            assert_eq!(numbers.contains(start), model.contains(&start));
            let expected: Vec<u32> = model.range(range.clone()).copied().collect();
            let found: Vec<u32> = numbers.within(range.clone()).collect();
            assert_eq!(found, expected);
            let backwards: Vec<u32> = numbers.within(range).rev().collect();
            assert!(backwards.iter().eq(expected.iter().rev()));
            // The same numbers are the same ranges, in whatever order they came.
            let mut anew = Numbers::default();
            model.iter().for_each(|number| anew.insert(*number));
            assert_eq!(numbers, anew);
        }
    }

    /// The cost of a change does not grow with the number of spans.
    #[test]
    fn consecutive_spans_are_one_range() {
        let mut summed = Summed::default();
        let days: Vec<Span> = (0..10_000).map(|day| Tier::Day.span(day)).collect();
        summed.insert(&days);
        summed.insert(&[Tier::ThirtyDays.span(3)]);
        assert_eq!(summed.days.ends, BTreeMap::from([(0, 10_000)]));
        // An hour of day 100, which is in the thirty days of number 3.
        summed.remove_overlapping(&[(2400..2401).into()]);
        let ranges = [(0, 100), (101, 10_000)];
        assert_eq!(summed.days.ends, BTreeMap::from(ranges));
        assert_eq!(summed.thirty_days, Numbers::default());
        assert!(summed.any_overlapping((2300..2400).into()));
        assert!(!summed.any_overlapping((2400..2424).into()));
        // A range without hours has no spans.
        assert!(!summed.any_overlapping((30..30).into()));
        let last = Tier::Day.span(Tier::Day.last_number());
        summed.insert(&[last]);
        let all = summed.of_hours(&[HourRange::ALL]);
        assert_eq!((all.len(), all.last()), (10_000, Some(&last)));
    }
}
