//! Hours that are over: by age, where only so many are kept, or because somebody wants one gone.
//!
//! An hour goes as a whole, its rows and its entry in the ledger in one atomic ingest, and its files
//! are deleted without being read. What the tallies hold of it would bring it back, so they are
//! flushed first; and the journal with them, so that no replay does either.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rocksdb::SstFileWriter;

use super::codec::{self, Corrupt, FlowKey, Record, Records};
use super::error::{StoreError, database};
use super::{Inner, Step, Store};
use flow::{Batch, BatchBuilder, Hour, HourUnit, Totals};

/// How long a request to delete an hour waits for the flush that has to come first.
const FLUSH_MAX: Duration = Duration::from_secs(60);
const WRITING: &str = "writing a file to ingest";

/// Which hours are kept, as of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Hours that are kept before the newest; `None` keeps all.
    pub(super) hours: Option<u32>,
    /// The newest hour that has flows.
    pub(super) newest: Option<u32>,
    /// Age counts from no later hour than this: the clock's, where it may bound the age of hours.
    pub(super) latest: u32,
}

impl Retention {
    /// The first hour that is kept.
    ///
    /// One stored hour that is wrong (seconds, or a sender's clock) makes no other hour too old, however it
    /// came in: age counts from the clock's hour where the newest one is later.
    pub fn horizon(&self) -> u32 {
        match (self.hours, self.newest) {
            (Some(hours), Some(newest)) => newest.min(self.latest).saturating_sub(hours),
            _ => 0,
        }
    }

    /// Takes the hours of `batch` into account, and returns what is kept of it.
    ///
    /// # Errors
    /// None for a batch that a [`BatchBuilder`] made.
    pub fn expire(&mut self, batch: Batch) -> Result<Batch, Corrupt> {
        if self.hours.is_none() {
            return Ok(batch);
        }
        let hours = batch.ledger().map(|(hour, _)| hour);
        self.newest = hours.chain(self.newest).max();
        let horizon = self.horizon();
        if batch.ledger().all(|(hour, _)| hour >= horizon) {
            return Ok(batch);
        }
        let mut kept = BatchBuilder::with_capacity(batch.bytes().len());
        for record in Records::new(batch.bytes())? {
            let Record { key, counters, .. } = record?;
            let key = FlowKey::decode(key)?;
            if key.hour.get() >= horizon {
                let names = [&key.src_app, &key.dest_app, &key.vpc_id];
                kept.push(key.hour, names.map(|name| name.as_bytes()), counters);
            }
        }
        Ok(kept.finish().in_place_of(batch))
    }
}

impl Store {
    /// Which hours are kept as of the last commit.
    pub fn retention(&self) -> Result<Retention, StoreError> {
        let newest = self.inner.tallies()?.newest;
        Ok(self.inner.retention(newest))
    }

    /// The newest hour that has flows; `None` where none has, or the store does not work any more.
    pub fn newest_hour(&self) -> Option<Hour> {
        let newest = self.inner.tallies().ok()?.newest?;
        Hour::new(u64::from(newest))
    }

    /// Drops everything that `hour` holds, and returns what that was; `None` where it holds nothing.
    /// Flows that are committed meanwhile may stay. Blocks on the disk.
    ///
    /// # Errors
    /// After one, the hour is there as a whole, or gone as a whole.
    pub fn delete_hour(&self, hour: Hour) -> Result<Option<Totals>, StoreError> {
        let only = hour.get()..hour.get() + 1;
        if self.ledger(only)?.next().transpose()?.is_none() {
            return Ok(None);
        }
        self.flush_tallies(FLUSH_MAX)?;
        // What is too old goes first: without this hour, a restart might not know that it is.
        self.inner.drop_old_hours()?;
        let dropped = self.inner.drop_hours(hour.get(), hour.get() + 1)?;
        self.inner.forget_newest(hour.get())?;
        Ok((dropped.flows > 0).then_some(dropped))
    }
}

impl Inner {
    /// By the clock as it is now, or the latest that it has shown: where it is set back, hours that were
    /// too old stay so.
    pub(super) fn retention(&self, newest: Option<u32>) -> Retention {
        let latest = if self.options.clock_bounds_age {
            let now = HourUnit::clock_hour();
            self.clock_hour.fetch_max(now, Ordering::Relaxed).max(now)
        } else {
            u32::MAX
        };
        Retention {
            hours: self.options.retain_hours,
            newest,
            latest,
        }
    }

    /// Drops the hours that are too old. For the thread that flushes, after it has.
    pub(super) fn drop_old_hours(&self) -> Result<(), StoreError> {
        let horizon = self.horizon.load(Ordering::SeqCst);
        if horizon == 0 {
            return Ok(());
        }
        match self.ledger_on_disk(0, horizon)?.next().transpose()? {
            None => Ok(()),
            Some((first, _)) => self.drop_hours(first, horizon).map(drop),
        }
    }

    /// Age counts from the newest hour that has flows: another one, where that is gone.
    fn forget_newest(&self, hour: u32) -> Result<(), StoreError> {
        let _no_flush_moves_rows = self.writer.lock().map_err(|_| StoreError::Closed)?;
        let on_disk = self.ledger_on_disk(0, u32::MAX)?.last_hour()?;
        let mut tallies = self.tallies()?;
        if tallies.newest != Some(hour) {
            return Ok(());
        }
        let both = tallies
            .frozen
            .as_deref()
            .into_iter()
            .chain([&tallies.active]);
        let in_memory = both.flat_map(|tally| tally.ledger()).map(|(h, _)| h);
        tallies.newest = in_memory.chain(on_disk).max();
        self.set_horizon(&tallies);
        Ok(())
    }

    /// Drops the hours from `first` up to but without `end`, and returns what they held on disk.
    fn drop_hours(&self, first: u32, end: u32) -> Result<Totals, StoreError> {
        const DOING: &str = "dropping hours";
        let _nobody_else_writes = self.writer.lock().map_err(|_| StoreError::Closed)?;
        let (dropped, hours) = self.sum_on_disk(first, end)?;
        if hours == 0 {
            return Ok(dropped);
        }
        // Two files and one ingest: rows and ledger go together. One file would span the keys of all
        // hours, and compaction would have to rewrite them with it.
        let (from, to) = (first.to_be_bytes(), end.to_be_bytes());
        let rows = self.staged("dropped-rows", |file| {
            file.delete_range(from, to).map_err(database(WRITING))
        })?;
        let ledger = self.staged("dropped-ledger", |file| {
            let mut entries = self.ledger_on_disk(first, end)?;
            entries.try_for_each(|entry| {
                let key = codec::ledger_key(entry?.0);
                file.delete(key).map_err(database(WRITING))
            })
        })?;
        self.step(Step::DropWritten);
        self.note_drop(first, end, dropped, || {
            self.ingest(&[&rows, &ledger], DOING)?;
            self.step(Step::Dropped);
            Ok(())
        })?;
        // Frees the space of whole files. From behind the first key, so that the file that says that
        // all of it is deleted stays, as long as there are files with a part of it; and at once, before
        // a compaction can have divided that file. So it is not tried again where it fails: the
        // compactor, which sees to the rest, then sees to all.
        let behind_first = [from.as_slice(), &[0]].concat();
        let freed =
            self.db
                .delete_file_in_range_cf(self.flows()?, behind_first.as_slice(), to.as_slice());
        if let Err(error) = freed {
            tracing::warn!(%error, "files of dropped hours could not be deleted, and are compacted");
        }
        self.compaction_due.note_dropped(first, end);
        let metrics = self.options.metrics.store();
        metrics.hours_dropped.inc_by(hours);
        // A warning, since nothing brings them back: with a wrong hour in what was sent, it is the only
        // trace of what that cost.
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

    /// Runs `ingest`, which drops the hours from `first` to `end`, or fails and may have dropped them or
    /// not, and takes what is gone off the expected sum.
    fn note_drop(
        &self,
        first: u32,
        end: u32,
        held: Totals,
        ingest: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.drops.fetch_add(1, Ordering::SeqCst);
        let ingested = ingest();
        let noted = self.sum_on_disk(first, end).and_then(|(left, _)| {
            let expected = &mut self.tallies()?.expected;
            expected.sub(held);
            expected.add(left);
            Ok(())
        });
        self.drops.fetch_add(1, Ordering::SeqCst);
        ingested.and(noted)
    }

    /// Writes a file to ingest.
    fn staged(
        &self,
        name: &str,
        fill: impl FnOnce(&mut SstFileWriter<'_>) -> Result<(), StoreError>,
    ) -> Result<PathBuf, StoreError> {
        let path = self.dir.staging().join(format!("{name}.sst"));
        self.remove_staged(&path)?;
        let mut file = SstFileWriter::create(&self.flows_options);
        file.open(&path).map_err(database(WRITING))?;
        fill(&mut file)?;
        file.finish().map_err(database(WRITING))?;
        Ok(path)
    }
}
