//! Which spans are summed, and whose shorter parts are gone.

use std::collections::BTreeSet;

use rocksdb::DB;

use super::{FinestRows, Span, Tier};
use crate::store::codec;
use crate::store::error::{StoreError, with_context};
use crate::store::families::{iterate, settled_family};
use flow::HourRange;

/// The spans that have rows in `settled`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summed {
    spans: BTreeSet<Span>,
    /// Multiples of a day and of thirty days. Rows of earlier hours, or days, are not in `settled`.
    pub(in crate::store) finest: FinestRows,
}

impl Summed {
    pub(in crate::store) fn read(db: &DB) -> Result<Summed, StoreError> {
        let Some(settled) = settled_family(db) else {
            return Ok(Summed::default());
        };
        let (lower, upper) = codec::span_record_bounds();
        let mut records = iterate(db, settled, lower, upper);
        let mut spans = BTreeSet::new();
        while let Some(key) = records.key() {
            spans.insert(codec::decode_span_record_key(key)?);
            records.next();
        }
        records
            .status()
            .map_err(with_context("reading the records of spans"))?;
        let finest = db
            .get_pinned_cf(settled, codec::FINEST_ROWS_KEY)
            .map_err(with_context("reading the record of the finest rows"))?;
        let finest = finest.map_or(Ok(FinestRows::default()), |value| {
            codec::decode_finest_rows(&value)
        })?;
        Ok(Summed { spans, finest })
    }

    pub(in crate::store) fn insert(&mut self, spans: &[Span]) {
        self.spans.extend(spans);
    }

    /// Sets what is kept, without `days`, whose rows are gone.
    pub(in crate::store) fn thin(&mut self, finest: FinestRows, days: &[Span]) {
        self.finest = finest;
        for day in days {
            self.spans.remove(day);
        }
    }

    /// Removes the spans that have some of these hours.
    pub(in crate::store) fn remove_overlapping(&mut self, hours: &[HourRange]) {
        for span in self.of_hours(hours) {
            self.spans.remove(&span);
        }
    }

    pub(in crate::store) fn contains(&self, span: Span) -> bool {
        self.spans.contains(&span)
    }

    /// The summed spans of `tier` that have some of these hours.
    pub(in crate::store) fn overlapping(
        &self,
        tier: Tier,
        hours: HourRange,
    ) -> impl DoubleEndedIterator<Item = Span> {
        let (start, end) = (hours.start(), hours.end().max(hours.start()));
        let first = Span {
            tier,
            number: start / tier.hours(),
        };
        let behind = Span {
            tier,
            number: end.div_ceil(tier.hours()).max(first.number),
        };
        self.spans.range(first..behind).copied()
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
}
