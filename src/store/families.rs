//! Keeps `flows` and `settled`, the two column families of rows, consistent.
//!
//! RocksDB ingests files into one family atomically, but not into two. So a step that changes both has a number and
//! two ingests. The first one decides: it stores the number together with the hours in its family. The second one
//! stores only the number in the other family. As long as the numbers differ, readers ignore the rows that the second
//! ingest will delete, and it is done before anything else changes these families: at the latest, at the next open.
//!
//! | step | first | second |
//! |---|---|---|
//! | [settlement](super::settle) | `settled` gets the rows | `flows` loses them |
//! | [drop](super::retention) | `flows` loses rows and ledger entries | `settled` loses the rows, and those of spans that contain them |

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rocksdb::{ColumnFamily, DB, DBRawIteratorWithThreadMode, ReadOptions, SstFileWriter};

use super::error::{StoreError, with_context};
use super::staging::WRITING;
use super::tiers::{Span, Summed, Tier};
use super::{Inner, Step, codec, flows_family};
use flow::HourRange;

/// Value of a cached number while an ingest may be changing it. No store reaches this number.
const NUMBER_UNKNOWN: u64 = u64::MAX;

/// Ranges of hours whose rows readers ignore; almost always empty.
pub(super) type HiddenHours = Arc<[HourRange]>;

/// What readers ignore in each family.
#[derive(Clone, Debug, Default)]
pub(super) struct Hidden {
    pub(super) in_flows: HiddenHours,
    pub(super) in_settled: HiddenHours,
}

/// With a longer interval, a settlement does not wait for a flush.
const FLUSH_NEAR: Duration = Duration::from_secs(30);

/// A numbered step.
#[derive(Clone, Debug, Default)]
pub(super) struct NumberedHours {
    number: u64,
    hours: HiddenHours,
}

impl NumberedHours {
    fn read(db: &DB, family: &ColumnFamily, key: &[u8]) -> Result<NumberedHours, StoreError> {
        let Some(value) = db.get_cf(family, key).map_err(with_context(READING))? else {
            return Ok(NumberedHours::default());
        };
        let (number, hours) = codec::decode_numbered_hours(&value)?;
        Ok(NumberedHours {
            number,
            hours: hours.into(),
        })
    }
}

const READING: &str = "reading the number of a step";

/// The last steps that changed both families.
#[derive(Debug, Default)]
pub(super) struct Families {
    /// Number of the last settlement that `settled` contains, or [`NUMBER_UNKNOWN`].
    in_settled: AtomicU64,
    /// Number of the last settlement that `flows` contains, or [`NUMBER_UNKNOWN`].
    in_flows: AtomicU64,
    /// The settlement that `settled` contains, or will contain next.
    settlement: Mutex<NumberedHours>,
    /// Changes only within [`Visibility::during_change`](super::visibility::Visibility::during_change).
    drops: Mutex<Drops>,
    /// The spans that have rows in `settled`. Changes as `drops` does. `None` after an error: they have to be read again.
    summed: Mutex<Option<Arc<Summed>>>,
}

#[derive(Clone, Debug, Default)]
struct Drops {
    /// The last drop that `flows` contains.
    last: NumberedHours,
    /// Number of the last drop that `settled` contains.
    in_settled: u64,
    /// After an error: `flows` may contain a later drop than `last`.
    is_unknown: bool,
}

impl Drops {
    fn is_finished(&self) -> bool {
        self.last.number == self.in_settled
    }
}

/// The family of settled rows. A directory of an older format, opened read-only, has none.
pub(super) fn settled_family(db: &DB) -> Option<&ColumnFamily> {
    db.cf_handle(codec::SETTLED)
}

/// An iterator for a pass over the keys from `lower` to `upper` (exclusive), at the first of them.
pub(super) fn iterate<'a>(
    db: &'a DB,
    family: &ColumnFamily,
    lower: &[u8],
    upper: &[u8],
) -> DBRawIteratorWithThreadMode<'a, DB> {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(lower);
    options.set_iterate_upper_bound(upper);
    options.fill_cache(false);
    let mut iterator = db.raw_iterator_cf_opt(family, options);
    iterator.seek_to_first();
    iterator
}

fn number_in(db: &DB, family: &ColumnFamily, key: &[u8]) -> Result<u64, StoreError> {
    let value = db
        .get_pinned_cf(family, key)
        .map_err(with_context(READING))?;
    Ok(value.map_or(Ok(0), |value| codec::decode_number(&value))?)
}

impl Families {
    /// The last steps in `db`.
    pub(super) fn read(db: &DB) -> Result<Families, StoreError> {
        let Some(settled) = settled_family(db) else {
            return Ok(Families::default());
        };
        let flows = flows_family(db)?;
        let settlement = NumberedHours::read(db, settled, &codec::SETTLEMENT_KEY)?;
        let in_flows = number_in(db, flows, &codec::SETTLEMENT_KEY)?;
        let drops = Drops {
            last: NumberedHours::read(db, flows, &codec::DROP_KEY)?,
            in_settled: number_in(db, settled, &codec::DROP_KEY)?,
            is_unknown: false,
        };
        Ok(Families {
            in_settled: AtomicU64::new(settlement.number),
            in_flows: AtomicU64::new(in_flows),
            settlement: Mutex::new(settlement),
            drops: Mutex::new(drops),
            summed: Mutex::new(Some(Arc::new(Summed::read(db)?))),
        })
    }

    /// Number of the last settlement that `flows` contains. Reads the database only while it may be changing.
    pub(super) fn in_flows(&self, db: &DB) -> Result<u64, StoreError> {
        match self.in_flows.load(Ordering::SeqCst) {
            NUMBER_UNKNOWN => number_in(db, flows_family(db)?, &codec::SETTLEMENT_KEY),
            number => Ok(number),
        }
    }

    /// Number of the last settlement that `settled` contains. Reads the database only while it may be changing.
    pub(super) fn in_settled(&self, db: &DB) -> Result<u64, StoreError> {
        match self.in_settled.load(Ordering::SeqCst) {
            NUMBER_UNKNOWN => number_of_settlement(db),
            number => Ok(number),
        }
    }

    /// What was read at open.
    pub(super) fn summed_at_open(&self) -> Option<Arc<Summed>> {
        self.summed.lock().clone()
    }

    /// Number of the last drop. Call this with the write lock.
    pub(super) fn last_drop(&self) -> u64 {
        self.drops.lock().last.number
    }

    /// Whether no drop since the last one that was `seen` has an hour of these spans; notes that it has seen the last one.
    pub(super) fn still_has(&self, seen: &mut u64, spans: &[Span]) -> bool {
        let drops = self.drops.lock();
        let last = &drops.last;
        let has_hour = |hours: &HourRange| spans.iter().any(|span| span.overlaps(*hours));
        let is_next = last.number == *seen + 1 && !last.hours.iter().any(has_hour);
        if !drops.is_unknown && is_next {
            *seen = last.number;
        }
        !drops.is_unknown && last.number == *seen
    }

    /// What a reader ignores whose view of `flows` contains settlement `in_flows`, and whose view of `settled`, which
    /// is not older, contains `in_settled`. `None` if the two are too far apart: open them again.
    pub(super) fn hidden(&self, in_flows: u64, in_settled: u64) -> Option<Hidden> {
        let in_flows = if in_flows == in_settled {
            HiddenHours::default()
        } else {
            let settlement = self.settlement.lock();
            let is_last = settlement.number == in_settled && in_flows + 1 == in_settled;
            is_last.then(|| settlement.hours.clone())?
        };
        let drops = self.drops.lock();
        let in_settled = match drops.is_finished() {
            true => HiddenHours::default(),
            false => drops.last.hours.clone(),
        };
        Some(Hidden {
            in_flows,
            in_settled,
        })
    }
}

/// Writes into a file for `flows` that the rows of a settlement are in `settled` now: they are deleted, and the number tells.
/// Rows in the same file are not deleted. The number's key sorts last.
pub(super) fn write_settled_hours(
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

fn number_of_settlement(db: &DB) -> Result<u64, StoreError> {
    let settled = settled_family(db).ok_or(StoreError::Closed)?;
    Ok(NumberedHours::read(db, settled, &codec::SETTLEMENT_KEY)?.number)
}

/// All methods that change something require the write lock.
impl Inner {
    pub(super) fn settled(&self) -> Option<&ColumnFamily> {
        settled_family(&self.db)
    }

    /// Moves the rows of `hours` from `flows` to `settled`. `files` have the rows that `flows` has of them, and
    /// those of `new_spans`, which had none before.
    pub(super) fn settle(
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
    pub(super) fn awaits_flush(&self) -> Result<bool, StoreError> {
        Ok(self.unfinished_settlement()?.is_some() && self.is_flush_near()?)
    }

    fn is_flush_near(&self) -> Result<bool, StoreError> {
        Ok(self.options.flush_interval <= FLUSH_NEAR && !self.tallies()?.are_empty())
    }

    /// Notes drop `number` of `hours`, after the ingest into `flows` that decides it.
    pub(super) fn note_drop(
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

    /// Does the second ingest of the last steps, if it is missing.
    pub(super) fn finish_steps(&self) -> Result<(), StoreError> {
        self.finish_settlement()?;
        self.finish_last_drop()
    }

    /// Does the second ingest of the last drop, if it is missing.
    pub(super) fn finish_last_drop(&self) -> Result<(), StoreError> {
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

    /// The last settlement, if its rows are in `settled`, but still in `flows` too.
    pub(super) fn unfinished_settlement(&self) -> Result<Option<NumberedHours>, StoreError> {
        let families = &self.families;
        let last = families.settlement.lock().clone();
        let is_in_settled = families.in_settled(&self.db)? == last.number;
        let is_unfinished = is_in_settled && families.in_flows(&self.db)? != last.number;
        Ok(is_unfinished.then_some(last))
    }

    /// Deletes the rows of the last settlement in `flows`, if they are still there.
    fn finish_settlement(&self) -> Result<(), StoreError> {
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
    pub(super) fn finish_settlement_by(
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

    /// Files that delete the rows of dropped hours in `settled`, and the spans that have some of them. The other hours of such
    /// a span are summed again, if they are still there.
    pub(super) fn staged_drop_of_settled(
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
    pub(super) fn finish_drop(&self, files: &[PathBuf]) -> Result<(), StoreError> {
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

    /// The spans that have rows in `settled`.
    pub(super) fn summed(&self) -> Result<Arc<Summed>, StoreError> {
        let mut summed = self.families.summed.lock();
        if let Some(known) = &*summed {
            return Ok(known.clone());
        }
        let read = Arc::new(Summed::read(&self.db)?);
        // Under the lock: an older state must not replace a newer one.
        self.retention.note_thinned(read.finest);
        *summed = Some(read.clone());
        Ok(read)
    }

    /// Runs `ingest`, which makes `change` to the spans in `settled`, so that readers see either state.
    pub(super) fn change_spans(
        &self,
        ingest: impl FnOnce() -> Result<(), StoreError>,
        change: impl FnOnce(&mut Summed),
    ) -> Result<(), StoreError> {
        // See `note_spans`.
        self.summed()?;
        self.visibility.during_change(|| {
            let ingested = ingest();
            self.step(Step::SpansIngested);
            self.note_spans(&ingested, change);
            ingested
        })
    }

    /// Makes `change` to the spans in memory, after the ingest that made it on disk. The ingest may have succeeded even if it
    /// returned an error, so they are read again then. Call [`Inner::summed`] before the ingest, so that they are in memory.
    fn note_spans(&self, ingested: &Result<(), StoreError>, change: impl FnOnce(&mut Summed)) {
        let mut summed = self.families.summed.lock();
        if ingested.is_err() {
            *summed = None;
        } else if let Some(known) = &mut *summed {
            // A reader that has them keeps those from before the change: then this copies them.
            let known = Arc::make_mut(known);
            change(known);
            self.retention.note_thinned(known.finest);
        }
    }

    /// Frees the space of files that contain only these hours, whose rows are deleted. Files in level 0, and those
    /// with other hours too, remain until compaction.
    ///
    /// Starts after the first key, so that a file with nothing but the range tombstone remains while other files
    /// contain a part of the range.
    pub(super) fn delete_files_of(&self, family: &ColumnFamily, hours: HourRange) {
        let (from, to) = codec::range_bounds(hours);
        let from = [from.as_slice(), &[0]].concat();
        let freed = self
            .db
            .delete_file_in_range_cf(family, from.as_slice(), to.as_slice());
        if let Err(error) = freed {
            tracing::warn!(%error, "files of deleted rows not deleted; compaction removes them");
        }
    }
}
