//! Dropping hours: those before the retention cutoff, and those that a client deletes.
//!
//! An hour is dropped as a whole: its rows and its ledger entry in one atomic ingest, and its files are deleted
//! without being read. Its unflushed flows would bring it back, so the tallies are flushed first, and the journal is
//! trimmed with them, so that no replay brings it back either.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::codec;
use super::error::{StoreError, with_context};
use super::staging::WRITING;
use super::{Inner, Step, Store, StoreOptions};
use flow::{Batch, Hour, HourRange, HourUnit, Totals};

/// Maximum wait of a deletion for the preceding flush.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(60);

/// The hours that are kept, as of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Retention {
    /// Number of hours kept before the newest; `None` keeps all.
    hours: Option<u32>,
    /// The newest hour that has flows.
    newest: Option<Hour>,
    /// The hour that age is counted from if the newest hour is later: the clock's, if hours count from the epoch.
    latest: Hour,
}

impl Retention {
    /// The retention cutoff: the oldest hour that is kept.
    ///
    /// A single wrong hour (seconds instead of hours, or a sender's clock) does not make other hours too old: if the
    /// newest hour is later than the clock's, age counts from the clock's.
    fn cutoff(&self) -> Hour {
        match (self.hours, self.newest) {
            (Some(hours), Some(newest)) => newest.min(self.latest).minus(hours),
            _ => Hour::FIRST,
        }
    }

    /// Takes the hours of `batch` into account, and returns the cutoff for its flows.
    pub(super) fn advance(&mut self, batch: &Batch) -> Hour {
        if self.hours.is_some() {
            self.newest = batch.hours().chain(self.newest).max();
        }
        self.cutoff()
    }
}

/// The retention cutoff that readers apply, and the clock.
#[derive(Debug)]
pub(super) struct RetentionState {
    hours: Option<u32>,
    clock_bounds_age: bool,
    /// Readers do not see earlier hours.
    cutoff: AtomicU32,
    /// The latest hour that the clock has reached.
    clock_hour: AtomicU32,
}

impl RetentionState {
    pub(super) fn new(options: &StoreOptions) -> RetentionState {
        RetentionState {
            hours: options.retain_hours,
            clock_bounds_age: options.clock_bounds_age,
            cutoff: AtomicU32::new(0),
            clock_hour: AtomicU32::new(0),
        }
    }

    pub(super) fn cutoff(&self) -> Hour {
        hour(self.cutoff.load(Ordering::SeqCst))
    }

    /// Moves the cutoff, so that readers no longer see hours that are too old. Call this with the tallies locked.
    pub(super) fn update(&self, newest: Option<Hour>) {
        let cutoff = self.as_of(newest).cutoff();
        self.cutoff.store(cutoff.get(), Ordering::SeqCst);
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
            hours: self.hours,
            newest,
            latest,
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
    /// copying it takes milliseconds, which the only thread that commits should not spend. Locks nothing.
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
        inner.options.retain_hours?;
        let of_batch = inner.retention.as_of(batch.hours().max()).cutoff();
        let cutoff = of_batch.max(inner.retention.cutoff());
        (batch.hours().any(|hour| hour < cutoff)).then_some(cutoff)
    }

    /// The newest hour that has flows; `None` if there is none, or if the store is closed after an error.
    pub fn newest_hour(&self) -> Option<Hour> {
        self.inner.tallies().ok()?.newest()
    }

    /// Drops `hour` and returns its totals; `None` if it has no flows. Flows that are committed meanwhile may remain.
    /// Blocks on the disk.
    ///
    /// # Errors
    /// After an error, the hour either exists unchanged or is dropped.
    pub fn delete_hour(&self, hour: Hour) -> Result<Option<Totals>, StoreError> {
        if self.ledger(hour.into())?.next().transpose()?.is_none() {
            return Ok(None);
        }
        self.flush_tallies(FLUSH_TIME_MAX)?;
        // Drop old hours first: without this hour, a restart might not know that they are too old.
        self.inner.drop_old_hours()?;
        let dropped = self.inner.drop_hours(hour.into())?;
        self.inner.forget_newest(hour)?;
        Ok((dropped.flows > 0).then_some(dropped))
    }
}

impl Inner {
    /// Drops the hours before the cutoff. Called by the flusher after a flush.
    pub(super) fn drop_old_hours(&self) -> Result<(), StoreError> {
        let too_old = HourRange::before(self.retention.cutoff());
        if too_old.is_empty() {
            return Ok(());
        }
        match self.ledger_on_disk(too_old)?.next().transpose()? {
            None => Ok(()),
            Some((first, _)) => self.drop_hours(too_old.since(first)).map(drop),
        }
    }

    /// Finds the new newest hour after `hour` was deleted, since age counts from it.
    fn forget_newest(&self, hour: Hour) -> Result<(), StoreError> {
        let _write_lock = self.flusher.lock_writes();
        let on_disk = self.ledger_on_disk(HourRange::ALL)?.last_hour()?;
        let mut tallies = self.tallies()?;
        if tallies.newest() != Some(hour) {
            return Ok(());
        }
        let in_memory = tallies.both().flat_map(|tally| tally.ledger());
        let newest = in_memory.map(|(hour, _)| hour).chain(on_disk).max();
        tallies.set_newest(newest);
        self.retention.update(newest);
        Ok(())
    }

    /// Drops a range of hours, and returns their totals on disk.
    fn drop_hours(&self, range: HourRange) -> Result<Totals, StoreError> {
        const DOING: &str = "dropping hours";
        let _write_lock = self.flusher.lock_writes();
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
        self.step(Step::DropWritten);
        self.ingest_drop(range, on_disk, || {
            let ingested = self.ingest(self.flows()?, &[&rows, &ledger], DOING);
            self.note_drop(number, range, &ingested);
            ingested?;
            self.step(Step::Dropped);
            if let Err(error) = self.finish_drop() {
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
        self.visibility.during_drop(|| {
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
            retain_hours: Some(10),
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
