//! Dropping hours: those before the retention cutoff, and those that a client deletes.
//!
//! Days and thirty days may be kept longer than hours: [`thin`](super::tiers) removes the finer rows, and an hour is
//! dropped here once no tier keeps it.
//!
//! An hour is dropped as a whole: its rows and its ledger entry in one atomic ingest, and its files are deleted
//! without being read. Its unflushed flows would bring it back, so the tallies are flushed first, and the journal is
//! trimmed with them, so that no replay brings it back either.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::codec;
use super::error::{StoreError, with_context};
use super::staging::WRITING;
use super::tiers::{FinestRows, Tier};
use super::{Inner, Step, Store, StoreOptions};
use flow::{Batch, Hour, HourRange, HourUnit, Totals};

/// Maximum wait of a deletion for the preceding flush.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(60);

/// The hours that are kept, as of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Retention {
    periods: RetentionPeriods,
    /// The newest hour that has flows.
    newest: Option<Hour>,
    /// The hour that age is counted from if the newest hour is later: the clock's, if hours count from the epoch.
    latest: Hour,
    /// What is gone already, perhaps because other periods were set before.
    thinned: FinestRows,
}

/// How long rows are kept: the number of hours before the newest one that has flows. `None` keeps all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionPeriods {
    /// Rows of hours.
    pub hours: Option<u32>,
    /// Sums of days; at least as long.
    pub days: Option<u32>,
    /// Sums of thirty days; at least as long.
    pub thirty_days: Option<u32>,
}

impl RetentionPeriods {
    /// Keeps everything for as many hours.
    pub fn of_hours(hours: Option<u32>) -> RetentionPeriods {
        RetentionPeriods {
            hours,
            days: hours,
            thirty_days: hours,
        }
    }
}

/// The first hours that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cutoffs {
    /// Rows before these hours are not kept by hour, or by day.
    pub(super) finest: FinestRows,
    /// The retention cutoff: flows of earlier hours are too old.
    pub(super) all: Hour,
    /// The hour after the newest that has flows.
    pub(super) end: u32,
}

impl Cutoffs {
    /// The hours that a reader of `hours` sees: without those that are too old. If it ends after the newest hour that has flows,
    /// it is extended to the last one, so that it ends with a whole span.
    pub(super) fn clipped(&self, hours: HourRange) -> HourRange {
        let end = match hours.end() >= self.end {
            true => HourRange::ALL.end(),
            false => hours.end(),
        };
        HourRange::from(hours.start()..end.max(hours.start())).since(self.all)
    }
}

impl Retention {
    /// A single wrong hour (seconds instead of hours, or a sender's clock) does not make other hours too old: if the
    /// newest hour is later than the clock's, age counts from the clock's.
    fn cutoffs(&self) -> Cutoffs {
        let kept_from = |period: Option<u32>| match (period, self.newest) {
            (Some(hours), Some(newest)) => newest.min(self.latest).minus(hours),
            _ => Hour::FIRST,
        };
        // A span that is kept longer than what it consists of is kept as a whole.
        let spans_from = |tier: Tier, period, finer_period, finer_from: Hour| match period {
            same if same == finer_period => finer_from,
            longer => finer_from.min(tier.span_of(kept_from(longer)).first_hour()),
        };
        let RetentionPeriods {
            hours,
            days,
            thirty_days,
        } = self.periods;
        let hours_from = kept_from(hours);
        let days_from = spans_from(Tier::Day, days, hours, hours_from);
        let all = spans_from(Tier::ThirtyDays, thirty_days, days, days_from);
        // Where rows are only in spans, whole spans are dropped.
        let rounded = |hour: Hour| {
            let tier = self.thinned.tier_of(hour);
            tier.map_or(hour, |tier| tier.span_of(hour).first_hour())
        };
        Cutoffs {
            finest: FinestRows {
                hours_from,
                days_from: rounded(days_from),
            },
            all: rounded(all),
            end: self.newest.map_or(0, |newest| newest.get() + 1),
        }
    }

    /// Takes the hours of `batch` into account, and returns the retention cutoff for its flows.
    pub(super) fn advance(&mut self, batch: &Batch) -> Hour {
        if self.periods.thirty_days.is_some() {
            self.newest = batch.hours().chain(self.newest).max();
        }
        self.cutoffs().all
    }
}

/// The cutoffs that readers apply, and the clock.
#[derive(Debug)]
pub(super) struct RetentionState {
    periods: RetentionPeriods,
    clock_bounds_age: bool,
    current: Mutex<Current>,
    /// The latest hour that the clock has reached.
    clock_hour: AtomicU32,
}

#[derive(Debug)]
struct Current {
    cutoffs: Cutoffs,
    /// See [`Retention::thinned`].
    thinned: FinestRows,
}

impl RetentionState {
    pub(super) fn new(options: &StoreOptions) -> RetentionState {
        let current = Current {
            cutoffs: Cutoffs {
                finest: FinestRows::default(),
                all: Hour::FIRST,
                end: 0,
            },
            thinned: FinestRows::default(),
        };
        RetentionState {
            periods: options.retention,
            clock_bounds_age: options.clock_bounds_age,
            current: Mutex::new(current),
            clock_hour: AtomicU32::new(0),
        }
    }

    /// Sets from which hour on rows are stored by hour and by day.
    pub(super) fn note_thinned(&self, finest: FinestRows) {
        self.current.lock().thinned = finest;
    }

    /// The retention cutoff.
    pub(super) fn cutoff(&self) -> Hour {
        self.cutoffs().all
    }

    pub(super) fn cutoffs(&self) -> Cutoffs {
        self.current.lock().cutoffs
    }

    /// Moves the cutoffs, so that readers no longer see rows that are too old. Call this with the tallies locked.
    pub(super) fn update(&self, newest: Option<Hour>) {
        let cutoffs = self.as_of(newest).cutoffs();
        self.current.lock().cutoffs = cutoffs;
    }

    /// The hours that are kept if `newest` is the newest hour that has flows. Uses the clock's hour, or the latest one
    /// that it has reached: if the clock is set back, hours that were too old are still too old.
    pub(super) fn as_of(&self, newest: Option<Hour>) -> Retention {
        let latest = if self.clock_bounds_age {
            let now = HourUnit::clock_hour();
            hour(self.clock_hour.fetch_max(now, Ordering::Relaxed).max(now))
        } else {
            Hour::LAST
        };
        Retention {
            periods: self.periods,
            newest,
            latest,
            thinned: self.current.lock().thinned,
        }
    }
}

/// The hour with this number; the last one if there is none.
fn hour(number: u32) -> Hour {
    Hour::new(number.into()).unwrap_or(Hour::LAST)
}

impl Store {
    /// Removes the flows of `batch` that are too old already. [`Store::commit`] and [`Store::apply`] remove those that
    /// become too old meanwhile. Call this on a thread of the request, or on a blocking thread for a large batch:
    /// copying it takes milliseconds, which the only thread that commits should not spend. Does not wait for it.
    pub fn remove_too_old(&self, batch: Batch) -> Batch {
        match self.cutoff_within(&batch) {
            Some(cutoff) => batch.without_hours_before(cutoff),
            None => batch,
        }
    }

    /// Whether [`Store::remove_too_old`] would copy `batch`.
    pub fn has_too_old(&self, batch: &Batch) -> bool {
        self.cutoff_within(batch).is_some()
    }

    /// The retention cutoff if `batch` has flows before it, counting its own hours.
    fn cutoff_within(&self, batch: &Batch) -> Option<Hour> {
        let inner = &*self.inner;
        inner.options.retention.thirty_days?;
        let of_batch = inner.retention.as_of(batch.hours().max()).cutoffs().all;
        let cutoff = of_batch.max(inner.retention.cutoff());
        (batch.hours().any(|hour| hour < cutoff)).then_some(cutoff)
    }

    /// The newest hour that has flows; `None` if there is none, or if the store is closed after an error.
    pub fn newest_hour(&self) -> Option<Hour> {
        self.inner.tallies().ok()?.newest()
    }

    /// Drops a range of hours and returns their totals; `None` if they have no flows. Flows that are committed meanwhile
    /// may remain. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError::TooCoarse`] if some of the hours are only in spans of which the range has a part. After an error,
    /// the hours either exist unchanged or are dropped.
    pub fn delete_hours(&self, hours: HourRange) -> Result<Option<Totals>, StoreError> {
        if self.ledger(hours)?.next().transpose()?.is_none() {
            return Ok(None);
        }
        self.flush_tallies(FLUSH_TIME_MAX)?;
        // Drop old hours first: without these hours, a restart might not know that they are too old.
        self.inner.drop_old_hours()?;
        let validate = || {
            let kept = self.inner.retention.cutoffs().clipped(hours);
            let finest = self.finest_rows()?;
            finest.validate(kept, Some(Tier::ThirtyDays))
        };
        let dropped = self.inner.drop_hours(hours, validate)?;
        self.inner.forget_newest(hours)?;
        Ok((dropped.flows > 0).then_some(dropped))
    }

    /// From which hour on rows of hours, and of days, can be read.
    pub fn finest_rows(&self) -> Result<FinestRows, StoreError> {
        self.inner.finest_rows()
    }
}

impl Inner {
    /// See [`Store::finest_rows`].
    pub(super) fn finest_rows(&self) -> Result<FinestRows, StoreError> {
        let of_cutoffs = self.retention.cutoffs().finest;
        Ok(of_cutoffs.and(self.summed()?.finest))
    }

    /// Drops the hours before the cutoff. Called by the flusher after a flush.
    pub(super) fn drop_old_hours(&self) -> Result<(), StoreError> {
        let too_old = HourRange::before(self.retention.cutoff());
        if too_old.is_empty() {
            return Ok(());
        }
        match self.ledger_on_disk(too_old)?.next().transpose()? {
            None => Ok(()),
            Some((first, _)) => self.drop_hours(too_old.since(first), || Ok(())).map(drop),
        }
    }

    /// Finds the new newest hour after `hours` were deleted, since age counts from it.
    fn forget_newest(&self, hours: HourRange) -> Result<(), StoreError> {
        let _write_lock = self.flusher.lock_writes();
        let on_disk = self.ledger_on_disk(HourRange::ALL)?.last_hour()?;
        let mut tallies = self.tallies()?;
        if !tallies
            .newest()
            .is_some_and(|newest| hours.contains(newest))
        {
            return Ok(());
        }
        let in_memory = tallies.both().flat_map(|tally| tally.ledger());
        let newest = in_memory.map(|(hour, _)| hour).chain(on_disk).max();
        tallies.set_newest(newest);
        self.retention.update(newest);
        Ok(())
    }

    /// Drops a range of hours, and returns their totals on disk. `validate` is called while no rows are thinned.
    fn drop_hours(
        &self,
        range: HourRange,
        validate: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<Totals, StoreError> {
        const DOING: &str = "dropping hours";
        let _write_lock = self.flusher.lock_writes();
        validate()?;
        self.finish_steps()?;
        let on_disk = self.sum_on_disk(range)?;
        let (dropped, hours) = on_disk;
        if hours == 0 {
            return Ok(dropped);
        }
        // Ingest two files in one call, so that rows and ledger change together. A single file would span the keys of all
        // hours, and compaction would have to rewrite them with it.
        let (from, to) = codec::range_bounds(range);
        let rows = self.staged(&self.flows_options, "dropped-rows", |file| {
            // RocksDB would merge a file that has only a range tombstone with everything older at once.
            file.delete(from).map_err(with_context(WRITING))?;
            file.delete_range(from, to).map_err(with_context(WRITING))
        })?;
        let number = self.families.last_drop() + 1;
        let ledger = self.staged(&self.flows_options, "dropped-ledger", |file| {
            let value = codec::encode_numbered_hours(number, &[range]);
            file.put(codec::DROP_KEY, value)
                .map_err(with_context(WRITING))?;
            let mut entries = self.ledger_on_disk(range)?;
            entries.try_for_each(|entry| {
                let key = codec::ledger_key(entry?.0);
                file.delete(key).map_err(with_context(WRITING))
            })
        })?;
        let settled = self.staged_drop_of_settled(number, &[range])?;
        self.step(Step::DropWritten);
        self.ingest_drop(range, on_disk, || {
            let ingested = self.ingest(self.flows()?, &[&rows, &ledger], DOING);
            self.note_drop(number, range, &ingested);
            ingested?;
            self.step(Step::Dropped);
            if let Err(error) = self.finish_drop(&settled) {
                tracing::warn!(%error, "settled rows of dropped hours not deleted yet; they are hidden, and the next flush retries");
            }
            Ok(())
        })?;
        // Free the space of whole files now, before compaction can split the file with the range tombstone. If it
        // fails, it is not retried: the compactor cleans up the rest in any case.
        self.delete_files_of(self.flows()?, range);
        let (first, end) = (range.start(), range.end());
        self.compaction_requests.request_dropped(first, end);
        let metrics = self.options.metrics.store();
        metrics.hours_dropped.inc_by(hours);
        // A warning, because the data cannot be recovered: if a sender sent a wrong hour, this line is the only trace
        // of the damage.
        let (last, Totals { flows, tx, rx }) = (end - 1, dropped);
        tracing::warn!(
            first,
            last,
            hours,
            flows,
            bytes_tx = tx,
            bytes_rx = rx,
            "hours dropped"
        );
        Ok(dropped)
    }

    /// Runs `ingest`, which drops these hours even if it fails after that, and subtracts what is gone from the counters
    /// beside the ledger.
    fn ingest_drop(
        &self,
        hours: HourRange,
        held: (Totals, u64),
        ingest: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.visibility.during_change(|| {
            let ingested = ingest();
            // If it succeeded, nothing is left, since the caller holds the write lock.
            let left = match &ingested {
                Ok(()) => Ok((Totals::default(), 0)),
                Err(_) => self.sum_on_disk(hours),
            };
            let noted = left.and_then(|left| {
                self.tallies()?.drop_on_disk(held, left);
                Ok(())
            });
            ingested.and(noted)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Outcome;
    use flow::{BatchBuilder, Counters, IdempotencyKey};

    fn batch(hours: &[u64]) -> Batch {
        let mut builder = BatchBuilder::with_capacity(0);
        for hour in hours {
            let hour = Hour::new(*hour).unwrap();
            builder.push(hour, [b"s", b"d", b"v"], Counters { tx: 1, rx: 0 });
        }
        builder.finish()
    }

    /// Requests remove old flows before the commit, which must not change what it returns.
    #[test]
    fn removing_old_flows_before_the_commit_has_the_same_outcome() {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            retention: RetentionPeriods::of_hours(Some(10)),
            ..StoreOptions::default()
        };
        let (store, _) = Store::open(dir.path(), options).unwrap();
        assert_eq!(store.cutoff_within(&batch(&[100, 50])), Some(hour(90)));
        store.commit(vec![batch(&[100])]).unwrap();
        assert_eq!(store.cutoff_within(&batch(&[95])), None);
        assert_eq!(store.cutoff_within(&batch(&[50])), Some(hour(90)));
        let keyed = || {
            let key = IdempotencyKey::new(b"key").unwrap();
            batch(&[100, 50, 51, 110, 95]).with_key(key)
        };
        let early = store.remove_too_old(keyed());
        assert_eq!((early.flows(), early.too_old()), (2, 3));
        let outcomes = store.commit(vec![early, keyed()]).unwrap();
        assert!(
            matches!(
                outcomes[0],
                Outcome::Counted {
                    flows: 2,
                    too_old: 3,
                    ..
                }
            ),
            "{outcomes:?}"
        );
        assert!(
            matches!(
                outcomes[1],
                Outcome::Replayed {
                    flows: 2,
                    too_old: 3
                }
            ),
            "{outcomes:?}"
        );
        let again = store.remove_too_old(keyed());
        let outcomes = store.commit(vec![again]).unwrap();
        assert!(
            matches!(
                outcomes[0],
                Outcome::Replayed {
                    flows: 2,
                    too_old: 3
                }
            ),
            "{outcomes:?}"
        );
    }
}
