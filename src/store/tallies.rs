//! The tallies of an open store, and the counters beside them. They share one lock, so a thread that holds it
//! sees a state between two commits.

use std::sync::Arc;
use std::time::Instant;

use super::audit::HoursOnDisk;
use super::flush::FlushState;
use super::position::Position;
use super::tally::Tally;
use flow::{Batch, Hour, Totals};

#[derive(Debug)]
pub(super) struct Tallies {
    active: Tally,
    /// The tally that is being flushed.
    frozen: Option<Arc<Tally>>,
    /// Journal position up to which the sums on disk are complete: the marker.
    flushed: Position,
    /// The newest hour that has had flows.
    newest: Option<Hour>,
    /// Expected total of the ledger: its total at start, plus everything that was added since, minus what was dropped.
    expected: Totals,
    hours_on_disk: HoursOnDisk,
    /// When a batch was added; `None` before the first.
    last_added: Option<Instant>,
    pub(super) flush: FlushState,
}

impl Tallies {
    pub(super) fn new() -> Tallies {
        Tallies {
            active: Tally::new(Position::ZERO),
            frozen: None,
            flushed: Position::ZERO,
            newest: None,
            expected: Totals::default(),
            hours_on_disk: HoursOnDisk::default(),
            last_added: None,
            flush: FlushState::default(),
        }
    }

    pub(super) fn active(&self) -> &Tally {
        &self.active
    }

    /// To add batches from an external journal; see [`Tallies::add`].
    pub(super) fn active_mut(&mut self) -> &mut Tally {
        &mut self.active
    }

    pub(super) fn frozen(&self) -> Option<&Arc<Tally>> {
        self.frozen.as_ref()
    }

    /// The frozen tally, if there is one, and the active one.
    pub(super) fn both(&self) -> impl Iterator<Item = &Tally> {
        self.frozen.as_deref().into_iter().chain([&self.active])
    }

    pub(super) fn are_empty(&self) -> bool {
        self.frozen.is_none() && self.active.since().is_none()
    }

    /// See [`Tallies`].
    pub(super) fn flushed(&self) -> Position {
        self.flushed
    }

    /// When a batch was added since the store was opened.
    pub(super) fn last_added(&self) -> Option<Instant> {
        self.last_added
    }

    /// The newest hour that has had flows.
    pub(super) fn newest(&self) -> Option<Hour> {
        self.newest
    }

    /// Replaces it after the hour was deleted.
    pub(super) fn set_newest(&mut self, newest: Option<Hour>) {
        self.newest = newest;
    }

    /// Expected total of the ledger.
    pub(super) fn expected(&self) -> Totals {
        self.expected
    }

    pub(super) fn hours_on_disk(&self) -> HoursOnDisk {
        self.hours_on_disk
    }

    /// Adds a durable batch to the active tally and the counters. Returns how many additions saturated.
    pub(super) fn add(&mut self, batch: &Batch) -> u64 {
        let saturated = self.active.add(batch);
        self.last_added = Some(Instant::now());
        self.count(batch.ledger());
        saturated
    }

    fn count(&mut self, ledger: impl IntoIterator<Item = (Hour, Totals)>) {
        for (hour, totals) in ledger {
            self.expected.add(totals);
            self.newest = self.newest.max(Some(hour));
        }
    }

    /// The state after recovery: `active` was replayed after `marker`, and `on_disk` is the ledger there.
    pub(super) fn recover<E>(
        &mut self,
        active: Tally,
        marker: Position,
        on_disk: impl Iterator<Item = Result<(Hour, Totals), E>>,
    ) -> Result<(), E> {
        let mut hours = 0;
        for entry in on_disk {
            self.count([entry?]);
            hours += 1;
        }
        self.count(active.ledger());
        self.hours_on_disk = HoursOnDisk::new(marker, hours);
        (self.active, self.flushed) = (active, marker);
        Ok(())
    }

    /// Freezes the active tally, so that the flusher takes it. There must be no frozen one. It has at most `bytes_max`
    /// together with the buffers that the next one inherits.
    pub(super) fn freeze(&mut self, bytes_max: usize) {
        debug_assert!(self.frozen.is_none());
        self.frozen = Some(Arc::new(self.active.freeze(bytes_max)));
        self.flush.is_requested = false;
    }

    /// The flush to `marker` adds this many hours to the ledger on disk, and becomes visible there at some later time.
    pub(super) fn start_flush(&mut self, marker: Position, new_hours: u64) {
        self.hours_on_disk.start_flush(marker, new_hours);
    }

    /// Removes the frozen tally: the disk has everything up to `marker`.
    pub(super) fn end_flush(&mut self, marker: Position) {
        self.frozen = None;
        self.flushed = marker;
        self.hours_on_disk.end_flush(marker);
        self.flush.error = None;
    }

    /// See [`Tally::reuse`].
    pub(super) fn reuse(&mut self, flushed: Tally, bytes_max: usize) {
        self.active.reuse(flushed, bytes_max);
    }

    /// Subtracts dropped totals: those on disk before the drop (`held`) minus those after it (`left`), with the numbers
    /// of hours.
    pub(super) fn drop_on_disk(&mut self, held: (Totals, u64), left: (Totals, u64)) {
        self.expected.sub(held.0);
        self.expected.add(left.0);
        self.hours_on_disk.drop_hours(held.1.saturating_sub(left.1));
    }
}
