//! Commits: batches become durable, and then visible.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::error::StoreError;
use super::journal::Journal;
use super::{Batch, Inner, Step, Store, Tallies, Tally};

impl Store {
    /// Makes a group of batches durable and visible, all of them at once. One commit runs at a
    /// time; larger groups share the cost of its fsync.
    ///
    /// # Errors
    /// [`StoreError::Behind`] after waiting [`StoreOptions::stall_max`] for a flush, and
    /// [`StoreError::Gone`] where the data directory is. After any error, none of the batches counts.
    pub fn commit(&self, group: &[Batch]) -> Result<(), StoreError> {
        let inner = &*self.inner;
        let mut revoked = inner.commit.lock().map_err(|_| StoreError::Closed)?;
        inner.look_for_dir()?;
        let first = self.make_room(hours_bytes(group.iter()))?;
        let durability = inner.options.durability;
        let start = Instant::now();
        let written = Journal::new(&inner.db)?.append(first, group, &revoked, durability);
        inner
            .options
            .metrics
            .store()
            .journal_write_seconds
            .observe(start.elapsed().as_secs_f64());
        inner.note_write(&written);
        if written.is_err() {
            revoked.extend(group.iter().flat_map(Batch::stored_keys));
        } else {
            revoked.clear();
        }
        written?;
        inner.step(Step::Journaled);
        let mut tallies = inner.tallies()?;
        debug_assert_eq!(tallies.active.last() + 1, first);
        let mut stopped = 0;
        for batch in group {
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
        Ok(())
    }

    /// Waits until the active tally has room for a group whose hours take `hours_bytes`, if all of them are new.
    /// One that by itself is larger than a tally waits until there is no other. Returns the next journal
    /// position.
    pub(super) fn make_room(&self, hours_bytes: usize) -> Result<u64, StoreError> {
        let inner = &*self.inner;
        let start = Instant::now();
        let give_up = start + inner.options.stall_max;
        let mut tallies = inner.tallies()?;
        let mut waited = false;
        while !inner.has_room(&tallies, hours_bytes) {
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
        .map(|batch| batch.cost_bytes() - batch.bytes().len())
        .sum()
}

impl Inner {
    fn has_room(&self, tallies: &Tallies, hours_bytes: usize) -> bool {
        let max = self.options.tally_bytes_max;
        let of_active = tallies.active.memory_bytes();
        let of_frozen = tallies.frozen.as_deref().map_or(0, Tally::memory_bytes);
        // The few hours that most groups have are no reason to flush.
        let are_few = hours_bytes <= max / 8;
        let fit = of_active + hours_bytes <= max && of_frozen <= max;
        let are_alone = tallies.active.since().is_none() && tallies.frozen.is_none();
        are_alone || !self.is_full(&tallies.active) && (are_few || fit)
    }

    fn note_stall(&self, since: Instant) {
        let seconds = since.elapsed().as_secs_f64();
        self.options.metrics.store().stall_seconds.inc_by(seconds);
    }
}
