//! Thinning removes the rows of hours that are kept only as days, and the sums of days that are kept only as thirty days.
//!
//! Rows are removed by whole spans, and only once those are summed, so a span can be summed again from its hours for as
//! long as one of them is kept. It changes no response: a query that needs the removed rows is refused already, because
//! they are before the cutoff. The first hour and the first day whose rows remain are recorded in the same ingest.
//!
//! Late rows of an hour whose rows are gone are in `flows`, like others, and a settlement adds them to the spans alone.

use super::{FinestRows, Span, Tier};
use crate::store::codec;
use crate::store::error::{StoreError, with_context};
use crate::store::families::iterate;
use crate::store::staging::WRITING;
use crate::store::{Inner, Step};
use flow::{Hour, HourRange};

impl Inner {
    /// Removes rows that are before the cutoffs of their tier. Returns whether there were any.
    pub(in crate::store) fn thin(&self) -> Result<bool, StoreError> {
        let _one_at_a_time = self.settler.lock_running();
        let _write_lock = self.flusher.lock_writes();
        self.finish_steps()?;
        let Some(settled) = self.settled() else {
            return Ok(false);
        };
        let summed = self.summed()?;
        let before = summed.finest;
        let cutoffs = self.retention.cutoffs();
        let due = |tier: Tier, from: Hour, longer_from: Hour| match longer_from < from {
            true => tier.span_of(from).first_hour(),
            // The next tier keeps nothing longer, so rows are dropped with their ledger entries.
            false => Hour::FIRST,
        };
        let hours_due = due(
            Tier::Day,
            cutoffs.finest.hours_from,
            cutoffs.finest.days_from.min(cutoffs.all),
        );
        let hours_from = self.first_not_summed(Tier::Day, before.hours_from, hours_due)?;
        let days_due = due(Tier::ThirtyDays, cutoffs.finest.days_from, cutoffs.all);
        let days_due = days_due.min(Tier::ThirtyDays.span_of(hours_from).first_hour());
        let days_from = self.first_not_summed(Tier::ThirtyDays, before.days_from, days_due)?;
        let finest = FinestRows {
            hours_from,
            days_from,
        };
        if finest == before {
            return Ok(false);
        }
        let hours = HourRange::from(before.hours_from.get()..hours_from.get());
        let days = HourRange::from(before.days_from.get()..days_from.get());
        let days: Vec<Span> = summed.overlapping(Tier::Day, days).collect();
        // Otherwise the change would copy it.
        drop(summed);
        let mut files = Vec::new();
        if !hours.is_empty() {
            files.push(self.staged(&self.settled_options, "thinned-hours", |file| {
                let (from, to) = codec::range_bounds(hours);
                file.delete_range(from, to).map_err(with_context(WRITING))
            })?);
        }
        if let (Some(first), Some(last)) = (days.first(), days.last()) {
            files.push(self.staged(&self.settled_options, "thinned-days", |file| {
                let (from, to) = codec::span_bounds(Tier::Day, first.number..last.number + 1);
                file.delete_range(from, to).map_err(with_context(WRITING))
            })?);
        }
        // A file of its own: one with rows would span all others, and compaction would rewrite those with it.
        files.push(self.staged(&self.settled_options, "thinned", |file| {
            file.put(codec::FINEST_ROWS_KEY, codec::encode_finest_rows(finest))
                .map_err(with_context(WRITING))?;
            days.iter().try_for_each(|day| {
                let key = codec::span_record_key(*day);
                file.delete(key).map_err(with_context(WRITING))
            })
        })?);
        self.step(Step::ThinWritten);
        let ingest = || self.ingest(settled, &files, "removing rows that are kept in spans");
        self.change_spans(ingest, |summed| summed.thin(finest, &days))?;
        self.step(Step::Thinned);
        self.delete_files_of(settled, hours);
        tracing::info!(
            hours_from = finest.hours_from.get(),
            days_from = finest.days_from.get(),
            "rows thinned"
        );
        Ok(true)
    }

    /// The start of the first span of `tier`, at or after `from`, that is not summed but has rows; `due` if there is none.
    fn first_not_summed(&self, tier: Tier, from: Hour, due: Hour) -> Result<Hour, StoreError> {
        let summed = self.summed()?;
        let parts = HourRange::from(from.get()..due.max(from).get());
        if let Tier::ThirtyDays = tier {
            let mut days = summed.overlapping(Tier::Day, parts);
            let not_summed = days.find_map(|day| {
                let thirty_days = tier.span_of(day.first_hour());
                (!summed.contains(thirty_days)).then(|| thirty_days.first_hour())
            });
            return Ok(not_summed.unwrap_or(due).max(from));
        }
        let settled = self.settled().ok_or(StoreError::Closed)?;
        let (lower, upper) = codec::range_bounds(parts);
        let mut rows = iterate(&self.db, settled, &lower, &upper);
        while let Some(key) = rows.key() {
            let day = tier.span_of(codec::split_hour(key)?.0);
            if !summed.contains(day) {
                return Ok(day.first_hour().max(from));
            }
            rows.seek(day.hours().end().to_be_bytes());
        }
        rows.status()
            .map_err(with_context("looking for days that are not summed"))?;
        Ok(due.max(from))
    }
}
