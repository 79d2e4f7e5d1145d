//! Commits: batches become durable, and then visible.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::error::StoreError;
use super::journal::Journal;
use super::{Batch, Durability, Inner, Step, Store};

impl Store {
    /// Makes a group of batches durable and visible, all of them at once. One commit runs at a
    /// time; larger groups share the cost of its fsync.
    ///
    /// # Errors
    /// [`StoreError::Behind`] after waiting [`StoreOptions::stall_max`] for a flush. After any
    /// error, none of the batches counts.
    pub fn commit(&self, group: &[Batch]) -> Result<(), StoreError> {
        let inner = &*self.inner;
        let mut revoked = inner.commit.lock().map_err(|_| StoreError::Closed)?;
        let first = self.make_room()?;
        let sync = inner.options.durability == Durability::Fsync;
        let start = Instant::now();
        let written = Journal::new(&inner.db)?.append(first, group, &revoked, sync);
        inner
            .options
            .metrics
            .store()
            .journal_write_seconds
            .observe(start.elapsed().as_secs_f64());
        inner.health.note_write(&written);
        if written.is_err() {
            revoked.extend(group.iter().flat_map(Batch::keys).cloned());
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

    /// Waits until the active tally has room. Returns the next journal position.
    pub(super) fn make_room(&self) -> Result<u64, StoreError> {
        let inner = &*self.inner;
        let start = Instant::now();
        let give_up = start + inner.options.stall_max;
        let mut tallies = inner.tallies()?;
        let mut waited = false;
        while inner.is_full(&tallies.active) {
            if tallies.frozen.is_none() {
                tallies.freeze();
                inner.flush_due.notify_one();
                break;
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

impl Inner {
    fn note_stall(&self, since: Instant) {
        let seconds = since.elapsed().as_secs_f64();
        self.options.metrics.store().stall_seconds.inc_by(seconds);
    }
}
