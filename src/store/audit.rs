//! Counters beside the ledger, and the audit that compares them with it.
//!
//! The ledger may have millions of entries, so a scrape of the metrics does not read it: the totals are counted as
//! batches are committed and hours are dropped, and the number of hours as tallies are flushed. After a flush, the
//! compactor thread adds up the whole ledger and compares the sum with the counted totals, if its time budget allows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Instant;

use super::error::{StoreError, with_context};
use super::position::Position;
use super::tallies::Tallies;
use super::tally::Tally;
use super::view::{View, ViewSpec};
use super::{Inner, codec};
use flow::{Hour, Totals};

/// The compactor rests from audits this many times as long as the last one took.
const REST: u32 = 99;

/// The result of audits.
#[derive(Debug, Default)]
pub(super) struct Audit {
    /// Flows that the ledger lacks.
    difference: AtomicI64,
    /// Whether they have been compared since the store was opened.
    is_done: AtomicBool,
}

impl Audit {
    /// The result of the last comparison; `None` before the first.
    pub(super) fn difference(&self) -> Option<i64> {
        let is_done = self.is_done.load(Ordering::Acquire);
        is_done.then(|| self.difference.load(Ordering::Relaxed))
    }

    fn set(&self, difference: i64) {
        let before = self.difference.swap(difference, Ordering::Relaxed);
        self.is_done.store(true, Ordering::Release);
        if difference != before && difference != 0 {
            tracing::error!(
                flows = difference,
                "the ledger on disk differs from the accepted flows: this is a fault; stop the service, run verify, \
                 and keep the directory"
            );
        }
    }
}

/// Number of hours in the ledger on disk.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HoursOnDisk {
    /// As of this marker.
    marker: Position,
    hours: u64,
    /// The marker of the running flush, and the hours that it adds. It may be on disk already.
    flushing: Option<(Position, u64)>,
}

impl HoursOnDisk {
    pub(super) fn new(marker: Position, hours: u64) -> HoursOnDisk {
        HoursOnDisk {
            marker,
            hours,
            flushing: None,
        }
    }

    /// A flush that adds `hours` may move the marker to `marker` from now on.
    pub(super) fn start_flush(&mut self, marker: Position, hours: u64) {
        self.flushing = Some((marker, hours));
    }

    /// The flush to `marker` has succeeded.
    pub(super) fn end_flush(&mut self, marker: Position) {
        if let Some((_, hours)) = self.flushing.take_if(|(at, _)| *at == marker) {
            self.hours += hours;
        }
        self.marker = marker;
    }

    pub(super) fn drop_hours(&mut self, hours: u64) {
        self.hours = self.hours.saturating_sub(hours);
    }

    /// The number at `marker`; `None` if that is not one of the two that it knows.
    fn at(&self, marker: Position) -> Option<u64> {
        match self.flushing {
            _ if marker == self.marker => Some(self.hours),
            Some((at, hours)) if marker == at => Some(self.hours + hours),
            _ => None,
        }
    }
}

/// Totals of the whole ledger, including hours that are too old but not dropped yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LedgerCounts {
    pub(super) hours: u64,
    pub(super) totals: Totals,
}

/// Copies the unflushed hours, with the counters beside them.
#[derive(Default)]
struct HoursOf {
    on_disk: HoursOnDisk,
    totals: Totals,
}

impl ViewSpec for HoursOf {
    type Copy = Vec<Hour>;

    /// They are few bytes, and dropped at once.
    fn copy_bytes(&self, _tally: &Tally, _cutoff: Hour) -> usize {
        0
    }

    fn copy(&self, tally: &Tally, _cutoff: Hour) -> Vec<Hour> {
        tally.hours()
    }

    fn read_counters(&mut self, tallies: &Tallies) {
        (self.on_disk, self.totals) = (tallies.hours_on_disk(), tallies.expected());
    }

    fn bounds(&self, _cutoff: Hour) -> (Vec<u8>, Vec<u8>) {
        whole_ledger()
    }

    fn seeks(&self) -> bool {
        true
    }
}

/// Adds up the unflushed flows, with the number that all flows should have.
#[derive(Default)]
struct FlowsOf {
    expected: u64,
}

impl ViewSpec for FlowsOf {
    type Copy = u64;

    fn copy_bytes(&self, _tally: &Tally, _cutoff: Hour) -> usize {
        0
    }

    fn copy(&self, tally: &Tally, _cutoff: Hour) -> u64 {
        tally.ledger().map(|(_, totals)| totals.flows).sum()
    }

    fn read_counters(&mut self, tallies: &Tallies) {
        self.expected = tallies.expected().flows;
    }

    fn bounds(&self, _cutoff: Hour) -> (Vec<u8>, Vec<u8>) {
        whole_ledger()
    }

    fn seeks(&self) -> bool {
        false
    }
}

/// The keys of all entries, including those of hours that are too old but not dropped yet.
fn whole_ledger() -> (Vec<u8>, Vec<u8>) {
    let (lower, upper) = codec::ledger_bounds();
    (lower.to_vec(), upper.to_vec())
}

impl Inner {
    /// The counted totals. Takes time proportional to the number of unflushed hours.
    pub(super) fn ledger_counts(self: &Arc<Inner>) -> Result<LedgerCounts, StoreError> {
        loop {
            let mut of = HoursOf::default();
            let view = View::open(self, &mut of)?;
            let (mut disk, marker, copies) = (view.disk.flows, view.marker, view.copies);
            let Some(mut hours) = of.on_disk.at(marker) else {
                // A flush ended in between.
                continue;
            };
            let mut unflushed: Vec<Hour> = copies.into_iter().flatten().collect();
            unflushed.sort_unstable();
            unflushed.dedup();
            for hour in unflushed {
                let key = codec::ledger_key(hour);
                disk.seek(&key);
                hours += u64::from(disk.key().is_none_or(|found| found != key));
            }
            disk.status().map_err(with_context("reading the ledger"))?;
            let totals = of.totals;
            return Ok(LedgerCounts { hours, totals });
        }
    }

    /// Compares the counted totals with those of the ledger, unless the last time was too recent. Returns when it can
    /// be called again.
    pub(super) fn audit_ledger(self: &Arc<Inner>, not_before: Instant) -> Instant {
        let start = Instant::now();
        if start < not_before {
            return not_before;
        }
        match self.ledger_difference() {
            Ok(difference) => self.audit.set(difference),
            Err(error) => tracing::warn!(%error, "ledger not compared with the accepted flows"),
        }
        Instant::now() + start.elapsed() * REST
    }

    /// Flows that were counted, minus those in the ledger. Reads all of it, in constant memory.
    fn ledger_difference(self: &Arc<Inner>) -> Result<i64, StoreError> {
        let mut of = FlowsOf::default();
        let view = View::open(self, &mut of)?;
        let mut disk = view.disk.flows;
        let mut flows: u64 = view.copies.into_iter().sum();
        while let Some((_, value)) = disk.item() {
            flows = flows.wrapping_add(codec::decode_totals(value)?.flows);
            disk.advance();
        }
        disk.status().map_err(with_context("reading the ledger"))?;
        Ok(of.expected.wrapping_sub(flows) as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Store, StoreOptions};
    use flow::{BatchBuilder, Counters};
    use rocksdb::statistics::Ticker;
    use std::time::Duration;

    fn commit(store: &Store, hours: impl Iterator<Item = u64>) {
        let mut batch = BatchBuilder::with_capacity(0);
        for hour in hours {
            let hour = Hour::new(hour).unwrap();
            batch.push(hour, [b"a", b"b", b"c"], Counters { tx: 1, rx: 2 });
        }
        store.commit(vec![batch.finish()]).unwrap();
    }

    fn counts(store: &Store) -> (u64, u64) {
        let counts = store.inner.ledger_counts().unwrap();
        (counts.hours, counts.totals.flows)
    }

    /// The minimum number of entries that iterators read during one of five calls of `act`: the compactor thread reads
    /// the ledger too, but not all the time.
    fn fewest_entries_read(store: &Store, mut act: impl FnMut(u32)) -> u64 {
        let read = || {
            let options = &store.inner.database_options;
            options.get_ticker_count(Ticker::NumberDbNext)
        };
        let of_each = (0..5).map(|call| {
            let before = read();
            act(call);
            let entries = read() - before;
            std::thread::sleep(Duration::from_millis(50));
            entries
        });
        of_each.min().unwrap()
    }

    #[test]
    fn neither_a_scrape_nor_a_deletion_reads_the_whole_ledger() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Store::open(dir.path(), StoreOptions::default()).unwrap().0;
        let store = open();
        commit(&store, 0..2000);
        assert_eq!(counts(&store), (2000, 2000));
        store.flush().unwrap();
        commit(&store, 1990..2010);
        assert_eq!(counts(&store), (2010, 2020));
        let of_scrape = fewest_entries_read(&store, |_| {
            store.observe().unwrap();
            let metrics = store.inner.options.metrics.store();
            assert_eq!(metrics.ledger_hours.get(), 2010);
        });
        assert!(of_scrape < 100, "{of_scrape}");
        store.flush().unwrap();
        let of_deletion = fewest_entries_read(&store, |call| {
            let deleted = store
                .delete_hours(Hour::new(2009 - u64::from(call)).unwrap().into())
                .unwrap();
            assert_eq!(deleted.unwrap().flows, 1);
        });
        assert!(of_deletion < 100, "{of_deletion}");
        assert_eq!(counts(&store), (2005, 2015));
        drop(store);
        assert_eq!(counts(&open()), (2005, 2015));
    }

    #[test]
    fn the_number_of_hours_is_exact_at_every_step_of_a_flush() {
        let dir = tempfile::tempdir().unwrap();
        let seen: Arc<parking_lot::Mutex<Vec<(u64, u64)>>> = Arc::default();
        let inner: Arc<std::sync::OnceLock<std::sync::Weak<Inner>>> = Arc::default();
        let options = StoreOptions {
            on_step: Some(Arc::new({
                let (seen, inner) = (seen.clone(), inner.clone());
                move |_| {
                    let Some(inner) = inner.get().and_then(std::sync::Weak::upgrade) else {
                        return;
                    };
                    let counts = inner.ledger_counts().unwrap();
                    seen.lock().push((counts.hours, counts.totals.flows));
                }
            })),
            ..StoreOptions::default()
        };
        let (store, _) = Store::open(dir.path(), options).unwrap();
        commit(&store, 0..10);
        store.flush().unwrap();
        commit(&store, 5..15);
        inner.set(Arc::downgrade(&store.inner)).unwrap();
        store.flush().unwrap();
        assert_eq!(*seen.lock(), [(15, 20); 4]);
        assert_eq!(counts(&store), (15, 20));
    }

    #[test]
    fn the_audit_finds_flows_that_are_missing() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        assert_eq!(store.ledger_difference(), None, "nothing was flushed yet");
        commit(&store, 0..10);
        store.flush().unwrap();
        let inner = &store.inner;
        inner.audit_ledger(Instant::now());
        assert_eq!(store.ledger_difference(), Some(0));
        store.observe().unwrap();
        let difference = &inner.options.metrics.store().ledger_difference_flows;
        assert_eq!(difference.get(), 0);
        let flows = inner.flows().unwrap();
        inner
            .db
            .delete_cf(flows, codec::ledger_key(Hour::new(3).unwrap()))
            .unwrap();
        let next = inner.audit_ledger(Instant::now());
        assert_eq!(
            inner.audit_ledger(next + Duration::from_secs(1)),
            next + Duration::from_secs(1)
        );
        store.observe().unwrap();
        assert_eq!((difference.get(), store.ledger_difference()), (1, Some(1)));
    }
}
