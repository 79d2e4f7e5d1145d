//! The two ingests of a drop, the second of which deletes the hours in `settled`.

use std::path::PathBuf;
use std::sync::Arc;

use super::NumberedHours;
use crate::store::error::{StoreError, with_context};
use crate::store::staging::WRITING;
use crate::store::tiers::{Span, Tier};
use crate::store::{Inner, codec};
use flow::HourRange;

/// All methods that change something require the write lock.
impl Inner {
    /// Notes drop `number` of `hours`, after the ingest into `flows` that decides it.
    pub(in crate::store) fn note_drop(
        &self,
        number: u64,
        hours: HourRange,
        ingested: &Result<(), StoreError>,
    ) {
        let last = match ingested {
            Ok(()) => Ok(NumberedHours {
                number,
                hours: Arc::new([hours]),
            }),
            // It may have succeeded nevertheless.
            Err(_) => self.read_drop(),
        };
        let mut drops = self.families.drops.lock();
        match last {
            Ok(last) => drops.last = last,
            Err(_) => drops.is_unknown = true,
        }
    }

    fn read_drop(&self) -> Result<NumberedHours, StoreError> {
        NumberedHours::read(&self.db, self.flows()?, &codec::DROP_KEY)
    }

    /// Does the second ingest of the last drop, if it is missing.
    pub(in crate::store) fn finish_last_drop(&self) -> Result<(), StoreError> {
        if self.families.drops.lock().is_unknown {
            let last = self.read_drop()?;
            let mut drops = self.families.drops.lock();
            (drops.last, drops.is_unknown) = (last, false);
        }
        if self.families.drops.lock().is_finished() {
            return Ok(());
        }
        let last = self.families.drops.lock().last.clone();
        let files = self.staged_drop_of_settled(last.number, &last.hours)?;
        // A view may have been opened that does not ignore these rows once the numbers agree.
        self.visibility.during_change(|| self.finish_drop(&files))
    }

    /// Files that delete the rows of dropped hours in `settled`, and the spans that have some of them. The other hours of such
    /// a span are summed again, if they are still there.
    pub(in crate::store) fn staged_drop_of_settled(
        &self,
        number: u64,
        hours: &[HourRange],
    ) -> Result<Vec<PathBuf>, StoreError> {
        if self.settled().is_none() {
            return Ok(Vec::new());
        }
        let spans = self.summed()?.of_hours(hours);
        let mut files = Vec::new();
        // A file for each range: one for several would span the rows of those in between.
        for range in hours {
            files.push(self.staged_tombstone(codec::range_bounds(*range), files.len())?);
            for tier in Tier::ALL {
                // All summed spans between two that have hours of the range have some, too.
                let in_range = |span: &&Span| span.tier == tier && span.overlaps(*range);
                let mut of_tier = spans.iter().filter(in_range);
                if let Some(first) = of_tier.next() {
                    let last = of_tier.next_back().unwrap_or(first);
                    let bounds = codec::span_bounds(tier, first.number..last.number + 1);
                    files.push(self.staged_tombstone(bounds, files.len())?);
                }
            }
        }
        files.push(
            self.staged(&self.settled_options, "dropped-settled", |file| {
                file.put(codec::DROP_KEY, codec::encode_number(number))
                    .map_err(with_context(WRITING))?;
                spans.iter().try_for_each(|span| {
                    let key = codec::span_record_key(*span);
                    file.delete(key).map_err(with_context(WRITING))
                })
            })?,
        );
        Ok(files)
    }

    /// A file that deletes a range of keys in `settled`.
    fn staged_tombstone<K: AsRef<[u8]>>(
        &self,
        (from, to): (K, K),
        number: usize,
    ) -> Result<PathBuf, StoreError> {
        let name = format!("dropped-settled-rows-{number}");
        self.staged(&self.settled_options, &name, |file| {
            file.delete_range(from, to).map_err(with_context(WRITING))
        })
    }

    /// The hours of the last drop are gone from `flows`, but still in `settled`: deletes them there, by these files.
    pub(in crate::store) fn finish_drop(&self, files: &[PathBuf]) -> Result<(), StoreError> {
        let drops = self.families.drops.lock().clone();
        let Some(settled) = self.settled() else {
            return Ok(());
        };
        if drops.is_finished() {
            return Ok(());
        }
        let last = drops.last;
        // See `note_spans`.
        self.summed()?;
        let ingested = self.ingest(settled, files, "dropping settled hours");
        self.note_spans(&ingested, |summed| summed.remove_overlapping(&last.hours));
        ingested?;
        self.families.drops.lock().in_settled = last.number;
        for range in last.hours.iter() {
            self.delete_files_of(settled, *range);
        }
        Ok(())
    }
}
