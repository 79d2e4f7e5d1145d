//! Commits: batches become durable, and then visible.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::dedupe::{Group, Outcome};
use super::error::StoreError;
use super::journal::Journal;
use super::tally::HOUR_MEMORY_BYTES;
use super::{Inner, Step, Store, Tallies, Tally};
use flow::Batch;

impl Store {
    /// Makes a group of batches durable and visible, all of them at once, and returns what became of each, in
    /// their order: one that was counted before is not counted again. One commit runs at a time; larger groups
    /// share the cost of its fsync.
    ///
    /// # Errors
    /// [`StoreError::Behind`] after waiting [`StoreOptions::stall_max`] for a flush, and
    /// [`StoreError::Gone`] where the data directory is. After any error, none of the batches counts.
    pub fn commit(&self, batches: Vec<Batch>) -> Result<Vec<Outcome>, StoreError> {
        let inner = &*self.inner;
        let mut revoked = inner.commit.lock().map_err(|_| StoreError::Closed)?;
        let mut group = Group::new(self)?;
        let outcomes = batches.into_iter().map(|batch| group.add(batch)).collect();
        let group = group.batches;
        if group.is_empty() {
            return Ok(outcomes);
        }
        inner.look_for_dir()?;
        let group_bytes: usize = group.iter().map(|batch| batch.bytes().len()).sum();
        let mut growth = hours_bytes(group.iter());
        // What a small group adds beyond a tally's bound has its share of the memory; of a large one, each
        // key may be new.
        if group_bytes > inner.options.tally_bytes_max / 4 {
            growth += group_bytes;
        }
        let first = self.make_room(growth)?;
        inner.widen_journal(group_bytes);
        let durability = inner.options.durability;
        let start = Instant::now();
        let written = Journal::new(&inner.db)?.append(first, &group, &revoked, durability);
        inner
            .options
            .metrics
            .store()
            .journal_write_seconds
            .observe(start.elapsed().as_secs_f64());
        inner.note_write(&written);
        if written.is_err() {
            revoked.extend(group.iter().flat_map(super::journal::stored_keys));
        } else {
            revoked.clear();
        }
        written?;
        inner.step(Step::Journaled);
        let mut tallies = inner.tallies()?;
        debug_assert_eq!(tallies.active.last() + 1, first);
        let mut stopped = 0;
        for batch in &group {
            stopped += tallies.active.add(batch)?;
            tallies.note_ledger(batch.ledger());
        }
        inner.set_horizon(&tallies);
        if stopped > 0 {
            inner.stopped.fetch_add(stopped, Ordering::Relaxed);
        }
        if inner.is_full(&tallies.active) {
            inner.flush_due.notify_one();
        }
        Ok(outcomes)
    }

    /// Waits until the active tally has room for a group that may add `growth_bytes` to it, if all of its hours
    /// and keys are new. One that by itself is larger than a tally waits until there is no other. Returns the next journal
    /// position.
    pub(super) fn make_room(&self, growth_bytes: usize) -> Result<u64, StoreError> {
        let inner = &*self.inner;
        let start = Instant::now();
        let give_up = start + inner.options.stall_max;
        let mut tallies = inner.tallies()?;
        let mut waited = false;
        while !inner.has_room(&tallies, growth_bytes) {
            if tallies.frozen.is_none() {
                tallies.freeze();
                inner.flush_due.notify_one();
                continue;
            }
            waited = true;
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                inner.note_stall(start);
                return Err(StoreError::Behind);
            }
            (tallies, _) = inner
                .flush_ended
                .wait_timeout(tallies, left)
                .map_err(|_| StoreError::Closed)?;
        }
        if waited {
            inner.note_stall(start);
        }
        Ok(tallies.active.last() + 1)
    }
}

/// What the hours of a group may add to a tally.
pub(super) fn hours_bytes<'a>(group: impl Iterator<Item = &'a Batch>) -> usize {
    group
        .map(|batch| batch.hour_count() * HOUR_MEMORY_BYTES)
        .sum()
}

impl Inner {
    fn has_room(&self, tallies: &Tallies, growth_bytes: usize) -> bool {
        let max = self.options.tally_bytes_max;
        let of_active = tallies.active.memory_bytes();
        let of_frozen = tallies.frozen.as_deref().map_or(0, Tally::memory_bytes);
        // What most groups have is no reason to flush.
        let is_little = growth_bytes <= max / 8;
        let fits = of_active + growth_bytes <= max && of_frozen <= max;
        let is_alone = tallies.active.since().is_none() && tallies.frozen.is_none();
        is_alone || !self.is_full(&tallies.active) && (is_little || fits)
    }

    fn note_stall(&self, since: Instant) {
        let seconds = since.elapsed().as_secs_f64();
        self.options.metrics.store().stall_seconds.inc_by(seconds);
    }
}
