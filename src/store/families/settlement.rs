//! The two ingests of a settlement.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rocksdb::SstFileWriter;

use super::{NUMBER_UNKNOWN, NumberedHours, number_in, number_of_settlement};
use crate::store::error::{StoreError, with_context};
use crate::store::staging::WRITING;
use crate::store::tiers::Span;
use crate::store::{Inner, Step, codec};
use flow::HourRange;

/// With a longer interval, a settlement does not wait for a flush.
const FLUSH_NEAR: Duration = Duration::from_secs(30);

/// All methods that change something require the write lock.
impl Inner {
    /// Moves the rows of `hours` from `flows` to `settled`. `files` have the rows that `flows` has of them, and
    /// those of `new_spans`, which had none before.
    pub(in crate::store) fn settle(
        &self,
        hours: Vec<HourRange>,
        mut files: Vec<PathBuf>,
        new_spans: &[Span],
    ) -> Result<(), StoreError> {
        let families = &self.families;
        let settled = self.settled().ok_or(StoreError::Closed)?;
        let number = families.in_settled(&self.db)? + 1;
        // A file of its own: one with rows would span the keys of all hours, and compaction would rewrite those with it.
        files.push(self.staged(&self.settled_options, "settlement", |file| {
            let value = codec::encode_numbered_hours(number, &hours);
            file.put(codec::SETTLEMENT_KEY, value)
                .map_err(with_context(WRITING))
        })?);
        *families.settlement.lock() = NumberedHours {
            number,
            hours: hours.into(),
        };
        let ingest = || {
            families.in_settled.store(NUMBER_UNKNOWN, Ordering::SeqCst);
            let ingested = self.ingest(settled, &files, "ingesting settled rows");
            let number = number_of_settlement(&self.db)?;
            families.in_settled.store(number, Ordering::SeqCst);
            ingested
        };
        match new_spans.is_empty() {
            true => ingest()?,
            false => self.change_spans(ingest, |summed| summed.insert(new_spans))?,
        }
        self.step(Step::Settled);
        match self.is_flush_near()? {
            // It deletes the rows in `flows`. A file for that alone would be a run of its own, which compaction does not
            // merge with others, since it is small, and which keeps newer runs in level 0.
            true => Ok(()),
            false => self.finish_settlement(),
        }
    }

    /// Whether a settlement is to be finished by the next flush.
    pub(in crate::store) fn awaits_flush(&self) -> Result<bool, StoreError> {
        Ok(self.unfinished_settlement()?.is_some() && self.is_flush_near()?)
    }

    fn is_flush_near(&self) -> Result<bool, StoreError> {
        Ok(self.options.flush_interval <= FLUSH_NEAR && !self.tallies()?.are_empty())
    }

    /// The last settlement, if its rows are in `settled`, but still in `flows` too.
    pub(in crate::store) fn unfinished_settlement(
        &self,
    ) -> Result<Option<NumberedHours>, StoreError> {
        let families = &self.families;
        let last = families.settlement.lock().clone();
        let is_in_settled = families.in_settled(&self.db)? == last.number;
        let is_unfinished = is_in_settled && families.in_flows(&self.db)? != last.number;
        Ok(is_unfinished.then_some(last))
    }

    /// Deletes the rows of the last settlement in `flows`, if they are still there.
    pub(super) fn finish_settlement(&self) -> Result<(), StoreError> {
        let Some(settlement) = self.unfinished_settlement()? else {
            return Ok(());
        };
        let file = self.staged(&self.flows_options, "settled-rows", |file| {
            write_settled_hours(file, &settlement)
        })?;
        self.finish_settlement_by(&settlement, || {
            let doing = "ingesting the deletion of settled rows";
            self.ingest(self.flows()?, &[file], doing)
        })
    }

    /// The same by an ingest of a file that has [`write_settled_hours`].
    pub(in crate::store) fn finish_settlement_by(
        &self,
        settlement: &NumberedHours,
        ingest: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let in_flows = &self.families.in_flows;
        in_flows.store(NUMBER_UNKNOWN, Ordering::SeqCst);
        let ingested = ingest();
        let number = number_in(&self.db, self.flows()?, &codec::SETTLEMENT_KEY)?;
        in_flows.store(number, Ordering::SeqCst);
        ingested?;
        self.step(Step::Moved);
        let mut known_keys = self.known_keys.lock();
        for hour in settlement.hours.iter().flat_map(|range| range.hours()) {
            known_keys.forget(hour);
        }
        drop(known_keys);
        for range in settlement.hours.iter() {
            self.delete_files_of(self.flows()?, *range);
        }
        self.compaction_requests.request_dead(&settlement.hours);
        Ok(())
    }
}

/// Writes into a file for `flows` that the rows of a settlement are in `settled` now: they are deleted, and the number tells.
/// Rows in the same file are not deleted. The number's key sorts last.
pub(in crate::store) fn write_settled_hours(
    file: &mut SstFileWriter<'_>,
    settlement: &NumberedHours,
) -> Result<(), StoreError> {
    for range in settlement.hours.iter() {
        let (from, to) = codec::range_bounds(*range);
        file.delete_range(from, to).map_err(with_context(WRITING))?;
    }
    file.put(
        codec::SETTLEMENT_KEY,
        codec::encode_number(settlement.number),
    )
    .map_err(with_context(WRITING))
}
