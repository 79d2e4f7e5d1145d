//! Writes the rows of hours that are settled into files for `settled`.

use std::collections::HashSet;

use rocksdb::{ColumnFamily, DB};

use super::{StagedFiles, StagedRows};
use crate::store::error::{StoreError, with_context};
use crate::store::families::iterate;
use crate::store::tiers::{Span, SpanMerge};
use crate::store::{Inner, codec};
use flow::{Hour, HourRange};

/// Rows between checks whether the store is closing.
pub(super) const ROWS_PER_CHECK: u32 = 4096;

impl Inner {
    /// Writes files with all rows that `flows` has of these hours. `None` if the store is closing, or if an hour cannot be
    /// read.
    pub(super) fn rewrite(
        &self,
        ranges: &[HourRange],
        unreadable: &mut HashSet<Hour>,
    ) -> Result<Option<StagedFiles<'_>>, StoreError> {
        let settled = self.settled().ok_or(StoreError::Closed)?;
        let mut staged = StagedRows::new(self, "settled");
        let mut rows_until_check = ROWS_PER_CHECK;
        let mut end: Option<u32> = None;
        let hours_from = self.summed()?.finest.hours_from;
        let by_hour = ranges.iter().map(|range| range.since(hours_from));
        for hour in by_hour.flat_map(HourRange::hours) {
            let (lower, upper) = codec::hour_bounds(hour);
            // A file must not span rows that are settled already: compaction would rewrite those with it.
            if let Some(end) = end.replace(hour.get() + 1)
                && end < hour.get()
            {
                let (from, to) = codec::range_bounds((end..hour.get()).into());
                if has_rows(&self.db, settled, &from, &to)? {
                    staged.end_file()?;
                }
            }
            // Plain values are cheaper to read than operands of a merge.
            let is_new = !has_rows(&self.db, settled, &lower, &upper)?;
            let mut rows = iterate(&self.db, self.flows()?, &lower, &upper);
            while let Some((key, value)) = rows.item() {
                staged.write(key, value, is_new)?;
                rows.next();
                rows_until_check -= 1;
                if rows_until_check == 0 {
                    rows_until_check = ROWS_PER_CHECK;
                    if self.settler.is_closing() {
                        return Ok(None);
                    }
                }
            }
            if let Err(error) = rows.status() {
                tracing::error!(hour = hour.get(), %error, "an hour cannot be read; run flowtally verify");
                unreadable.insert(hour);
                return Ok(None);
            }
        }
        if let Some(span) = self.rewrite_spans(ranges, &mut staged)? {
            let hours = ranges.iter().flat_map(|range| range.hours());
            unreadable.extend(hours.filter(|hour| span.hours().contains(*hour)));
            return Ok(None);
        }
        Ok(Some(staged.finish()?))
    }

    /// Adds the rows that `flows` has of these hours to the spans that are summed already, and to those that are kept
    /// longer than the hours. Returns the first span whose rows cannot be read.
    fn rewrite_spans(
        &self,
        ranges: &[HourRange],
        staged: &mut StagedRows<'_>,
    ) -> Result<Option<Span>, StoreError> {
        let flows = self.flows()?;
        let mut key = Vec::new();
        let summed = self.summed()?;
        let only_in_spans = ranges.iter().flat_map(|range| range.hours());
        let only_in_spans = only_in_spans.take_while(|hour| *hour < summed.finest.hours_from);
        let kept_longer =
            only_in_spans.filter_map(|hour| Some(summed.finest.tier_of(hour)?.span_of(hour)));
        let mut spans = summed.of_hours(ranges);
        spans.extend(kept_longer);
        let mut new = Vec::new();
        for span in spans {
            let of_span = ranges.iter().flat_map(|range| range.hours());
            let of_span = of_span.filter(|hour| span.hours().contains(*hour));
            let parts = of_span.map(|hour| {
                let (lower, upper) = codec::hour_bounds(hour);
                (iterate(&self.db, flows, &lower, &upper), codec::HOUR_BYTES)
            });
            let unreadable = |error: StoreError| {
                tracing::error!(%span, %error, "late rows of a span cannot be read; run flowtally verify");
                Ok(Some(span))
            };
            let mut merged = match SpanMerge::new(parts.collect()) {
                Ok(merged) => merged,
                Err(error) => return unreadable(error),
            };
            // As above, a file must not span other rows.
            staged.end_file()?;
            loop {
                let (suffix, counters) = match merged.next() {
                    Ok(Some(row)) => row,
                    Ok(None) => break,
                    Err(error) => return unreadable(error),
                };
                key.clear();
                key.extend_from_slice(&codec::span_prefix(span));
                key.extend_from_slice(suffix);
                staged.write(&key, &codec::encode_counters(counters), false)?;
            }
            if !summed.contains(span) {
                new.push(span);
            }
        }
        staged.end_file()?;
        for span in new {
            staged.write_record(span)?;
        }
        staged.end_file()?;
        Ok(None)
    }
}

/// Whether there are keys from `lower` to `upper` (exclusive).
pub(in crate::store) fn has_rows(
    db: &DB,
    family: &ColumnFamily,
    lower: &[u8],
    upper: &[u8],
) -> Result<bool, StoreError> {
    let rows = iterate(db, family, lower, upper);
    rows.status()
        .map_err(with_context("reading settled rows"))?;
    Ok(rows.key().is_some())
}
