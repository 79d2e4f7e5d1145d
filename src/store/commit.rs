//! Commits: make batches durable, then visible.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::dedupe::{Arrival, CommitGroup, Outcome};
use super::error::StoreError;
use super::journal::Journal;
use super::position::Position;
use super::tallies::Tallies;
use super::tally::HOUR_MEMORY_BYTES;
use super::{Inner, Step, Store};
use flow::Batch;

impl Store {
    /// Makes a group of batches durable and visible together, and returns the outcome of each, in order. A batch that
    /// was counted before is not counted again. Commits run one at a time; a larger group amortizes the fsync.
    ///
    /// # Errors
    /// [`StoreError::WriteStalled`] after waiting [`StoreOptions::stall_max`] for a flush; [`StoreError::Gone`] if
    /// the data directory was removed. After any error, none of the batches is visible. If writing the journal failed,
    /// they may be in the log nevertheless, and count after a restart.
    pub fn commit(&self, batches: Vec<Batch>) -> Result<Vec<Outcome>, StoreError> {
        let inner = &*self.inner;
        let mut orphaned = inner.commit.lock().map_err(|_| StoreError::Closed)?;
        // Before any response: a replay gets a 200, too.
        inner.require_dir()?;
        let mut classifier = CommitGroup::new(self, &*inner.tallies()?);
        let now = Arrival::now();
        let classified = batches
            .into_iter()
            .map(|batch| classifier.classify(batch, now));
        let (outcomes, counting): (_, Vec<Option<Batch>>) = classified.unzip();
        let group: Vec<Batch> = counting.into_iter().flatten().collect();
        if group.is_empty() {
            return Ok(outcomes);
        }
        let group_bytes: usize = group.iter().map(|batch| batch.bytes().len()).sum();
        let mut growth = hours_bytes(group.iter());
        // The memory budget has room for the growth of a small group beyond the tally's bound. In a large group, every
        // key may be new.
        if group_bytes > inner.tally_bytes_max() / 4 {
            growth += group_bytes;
        }
        let begun = Instant::now();
        let first = self.make_room(growth)?;
        inner.journal_memtable.grow(&inner.db, group_bytes);
        let durability = inner.options.durability;
        let start = Instant::now();
        let written = Journal::new(&inner.db)?.append(first, &group, &orphaned, durability);
        inner
            .options
            .metrics
            .store()
            .journal_write_seconds
            .observe(start.elapsed().as_secs_f64());
        inner.record_write(&written);
        inner.count_sync(&written);
        if written.is_err() {
            orphaned.extend(group.iter().flat_map(super::journal::stored_keys));
        } else {
            orphaned.clear();
        }
        written?;
        inner.step(Step::Journaled);
        let mut tallies = inner.tallies()?;
        debug_assert_eq!(tallies.active().last().next(), first);
        let mut saturated = 0;
        for batch in &group {
            saturated += tallies.add(batch);
        }
        inner.retention.update(tallies.newest());
        if saturated > 0 {
            inner.saturated.fetch_add(saturated, Ordering::Relaxed);
        }
        if inner.is_full(tallies.active()) {
            inner.flusher.wake();
        }
        drop(tallies);
        inner.pace(begun);
        Ok(outcomes)
    }

    /// Waits until the active tally has room for `growth_bytes`, the worst case if all hours and keys of a group are
    /// new. A group that exceeds the bound of a tally waits until both tallies are empty. Returns the next journal
    /// position.
    pub(super) fn make_room(&self, growth_bytes: usize) -> Result<Position, StoreError> {
        let inner = &*self.inner;
        let start = Instant::now();
        let give_up = start + inner.options.stall_max;
        let mut tallies = inner.tallies()?;
        let mut waited = false;
        while !inner.has_room(&tallies, growth_bytes) {
            if tallies.frozen().is_none() {
                tallies.freeze(inner.tally_bytes_max());
                inner.flusher.wake();
                continue;
            }
            waited = true;
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                inner.record_stall(start);
                return Err(StoreError::WriteStalled);
            }
            tallies = inner.flusher.wait_until_ended(tallies, left)?;
        }
        if waited {
            inner.record_stall(start);
        }
        Ok(tallies.active().last().next())
    }
}

/// Memory that the hours of a group may add to a tally.
pub(super) fn hours_bytes<'a>(group: impl Iterator<Item = &'a Batch>) -> usize {
    group
        .map(|batch| batch.hour_count() * HOUR_MEMORY_BYTES)
        .sum()
}

impl Inner {
    fn has_room(&self, tallies: &Tallies, growth_bytes: usize) -> bool {
        let max = self.tally_bytes_max();
        let active_bytes = tallies.active().memory_bytes();
        let frozen_bytes = tallies.frozen().map_or(0, |tally| tally.memory_bytes());
        // Groups of the usual size do not trigger a flush by themselves.
        let is_small = growth_bytes <= max / 8;
        let fits = active_bytes + growth_bytes <= max && frozen_bytes <= max;
        tallies.are_empty() || !self.is_full(tallies.active()) && (is_small || fits)
    }

    /// Waits a little if compaction is behind, after a commit that began at `begun`.
    pub(super) fn pace(&self, begun: Instant) {
        let delay = self.pacer.delay(begun.elapsed());
        if !delay.is_zero() {
            std::thread::sleep(delay);
            let seconds = &self.options.metrics.store().pacing_seconds;
            seconds.inc_by(delay.as_secs_f64());
        }
    }

    fn record_stall(&self, since: Instant) {
        let seconds = since.elapsed().as_secs_f64();
        self.options.metrics.store().stall_seconds.inc_by(seconds);
    }
}

#[cfg(test)]
mod tests {
    use rocksdb::statistics::Ticker;

    use super::*;
    use crate::store::{Durability, StoreOptions};
    use flow::{BatchBuilder, Counters, Hour};

    /// A kill of the process never loses data in the page cache, so only a count of syncs distinguishes the two.
    #[test]
    fn each_commit_is_synced_unless_configured_otherwise() {
        for (durability, syncs) in [(Durability::Fsync, 10), (Durability::Os, 0)] {
            let dir = tempfile::tempdir().unwrap();
            let options = StoreOptions {
                durability,
                ..StoreOptions::default()
            };
            let (store, _) = Store::open(dir.path(), options).unwrap();
            let database = &store.inner.database_options;
            let log_syncs = || database.get_ticker_count(Ticker::WalFileSynced);
            let before = log_syncs();
            for _ in 0..10 {
                let mut batch = BatchBuilder::with_capacity(0);
                let hour = Hour::new(1).unwrap();
                batch.push(hour, [b"a", b"b", b"c"], Counters { tx: 1, rx: 1 });
                store.commit(vec![batch.finish()]).unwrap();
            }
            assert_eq!(log_syncs() - before, syncs);
        }
    }
}
