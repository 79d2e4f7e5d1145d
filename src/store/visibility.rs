//! Decides which sums a reader sees: the parts of a consistent view that are not in the tallies.
//!
//! A [view](super::view) copies the tallies, then makes an iterator, and reads the **marker** before and after making
//! it. A flush in between is detected by the marker, a drop of hours by its sequence number; the view is then made
//! again. So a flush and a view do not wait for each other. A lock around the ingest would be simpler, but views would
//! wait for the fsync of RocksDB's MANIFEST: `docs/internals/decisions/marker-around-iterator.md` has the figures.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rocksdb::DB;

use super::error::StoreError;
use super::marker_in;
use super::position::Position;

/// Value of the cached marker while a flush may be changing it. No journal reaches this position.
const MARKER_UNKNOWN: u64 = u64::MAX;
/// Pause while hours or spans are being changed, which takes milliseconds.
const CHANGE_PAUSE: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) struct Visibility {
    /// The marker on disk, or [`MARKER_UNKNOWN`].
    marker: AtomicU64,
    /// Sequence number of changes that a view must not straddle: dropped hours, and spans that get or lose rows.
    /// Incremented when one starts and when it ends, so it is odd during a change.
    change_seq: AtomicU64,
    /// Seeds the tags of this open store, so that no other store returns the same tag.
    tag_hasher: RandomState,
}

/// Ends a change.
struct ChangeGuard<'a>(&'a AtomicU64);

impl Drop for ChangeGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Visibility {
    pub(super) fn new() -> Visibility {
        Visibility {
            marker: AtomicU64::new(MARKER_UNKNOWN),
            change_seq: AtomicU64::new(0),
            tag_hasher: RandomState::new(),
        }
    }

    /// The marker: the last journal position that the sums on disk contain; 0 before the first flush. Reads the
    /// database only while a flush may be changing it.
    pub(super) fn marker(&self, db: &DB) -> Result<Position, StoreError> {
        match self.marker.load(Ordering::SeqCst) {
            MARKER_UNKNOWN => marker_in(db),
            marker => Ok(Position::new(marker)),
        }
    }

    /// Runs `ingest`, which may change the marker even if it fails, and then reloads the cached marker.
    pub(super) fn update_marker(
        &self,
        db: &DB,
        ingest: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.marker.store(MARKER_UNKNOWN, Ordering::SeqCst);
        let ingested = ingest();
        self.marker.store(marker_in(db)?.get(), Ordering::SeqCst);
        ingested
    }

    /// Runs `read` with the sequence number of changes, and repeats it if one happened meanwhile.
    pub(super) fn between_changes<T>(
        &self,
        mut read: impl FnMut(u64) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        loop {
            let change_seq = self.change_seq.load(Ordering::SeqCst);
            if change_seq.is_multiple_of(2) {
                let value = read(change_seq)?;
                if change_seq == self.change_seq.load(Ordering::SeqCst) {
                    return Ok(value);
                }
            }
            std::thread::sleep(CHANGE_PAUSE);
        }
    }

    /// Runs `change`, which drops hours or changes spans, so that [`Visibility::between_changes`] notices.
    pub(super) fn during_change<T>(&self, change: impl FnOnce() -> T) -> T {
        self.change_seq.fetch_add(1, Ordering::SeqCst);
        // Also after a panic: otherwise, all readers would wait for ever.
        let _ended = ChangeGuard(&self.change_seq);
        change()
    }

    /// Identifies the store's content by its last position and the number of changes to hours and spans. Every change to the content
    /// changes one of them.
    pub(super) fn tag(&self, last: Position, change_seq: u64) -> u64 {
        self.tag_hasher.hash_one((last, change_seq))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::{Arc, Condvar, Mutex};
    use std::time::Instant;

    use super::*;
    use crate::store::Selection;
    use crate::store::{Step, Store, StoreOptions};
    use flow::{BatchBuilder, Counters, Hour};

    /// A read-write lock without guards: the steps of a flush take and release it.
    #[derive(Debug, Default)]
    struct Gate {
        readers_and_writer: Mutex<(usize, bool)>,
        changed: Condvar,
    }

    impl Gate {
        fn change(
            &self,
            may: impl Fn(&(usize, bool)) -> bool,
            change: impl Fn(&mut (usize, bool)),
        ) {
            let state = self.readers_and_writer.lock().unwrap();
            let mut state = self.changed.wait_while(state, |state| !may(state)).unwrap();
            change(&mut state);
            self.changed.notify_all();
        }
    }

    /// Opens scans while another thread commits and flushes without a pause, and returns the times that they took,
    /// ascending. With `is_locked`, a flush keeps scans from being opened while its file is ingested.
    fn open_times(flushes: usize, is_locked: bool) -> Vec<Duration> {
        let dir = tempfile::tempdir().unwrap();
        let gate = Arc::new(Gate::default());
        let options = StoreOptions {
            on_step: is_locked.then(|| {
                let gate = gate.clone();
                Arc::new(move |step| match step {
                    Step::Written => {
                        gate.change(|(_, writer)| !writer, |(_, writer)| *writer = true);
                        gate.change(|(readers, _)| *readers == 0, |_| {});
                    }
                    Step::Ingested => gate.change(|_| true, |(_, writer)| *writer = false),
                    _ => {}
                }) as crate::store::StepHook
            }),
            ..StoreOptions::default()
        };
        let (store, _) = Store::open(dir.path(), options).unwrap();
        let hour = |n: usize| Hour::new(n as u64 % 20).unwrap();
        let is_over = AtomicBool::new(false);
        let mut times = std::thread::scope(|scope| {
            scope.spawn(|| {
                for flush in 0..flushes {
                    let mut batch = BatchBuilder::with_capacity(0);
                    for n in 0..10_000_usize {
                        let name = ((flush + n) % 50_000).to_string();
                        batch.push(
                            hour(n),
                            [name.as_bytes(), b"d", b"v"],
                            Counters { tx: 1, rx: 2 },
                        );
                    }
                    store.commit(vec![batch.finish()]).unwrap();
                    store.flush().unwrap();
                }
                is_over.store(true, Ordering::Relaxed);
            });
            let mut times = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let start = Instant::now();
                if is_locked {
                    gate.change(|(_, writer)| !writer, |(readers, _)| *readers += 1);
                }
                let scan = store.select(Selection::hour(hour(times.len())));
                if is_locked {
                    gate.change(|_| true, |(readers, _)| *readers -= 1);
                }
                times.push(start.elapsed());
                assert!(scan.unwrap().next().unwrap().is_some() || times.len() < 20_000);
                std::thread::sleep(Duration::from_micros(500));
            }
            times
        });
        times.sort_unstable();
        times
    }

    #[test]
    fn a_drop_that_panics_does_not_hold_up_readers() {
        let visibility = Visibility::new();
        let drop = || visibility.during_change(|| panic!("on purpose"));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(drop));
        assert!(panicked.is_err());
        assert_eq!(visibility.change_seq.load(Ordering::SeqCst), 2);
        assert_eq!(visibility.between_changes(Ok).unwrap(), 2);
    }

    /// Between the ingest of a drop and its end, the disk and the counters beside the tallies disagree.
    #[test]
    fn a_scan_that_is_opened_during_a_drop_waits_for_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let (reached, is_reached) = std::sync::mpsc::channel();
        let (resume, is_resumed) = std::sync::mpsc::channel();
        let is_resumed = Mutex::new(is_resumed);
        let options = StoreOptions {
            on_step: Some(Arc::new(move |step| {
                if step == Step::Dropped {
                    reached.send(()).unwrap();
                    is_resumed.lock().unwrap().recv().unwrap();
                }
            })),
            ..StoreOptions::default()
        };
        let (store, _) = Store::open(dir.path(), options).unwrap();
        let mut batch = BatchBuilder::with_capacity(0);
        let hour = Hour::new(7).unwrap();
        batch.push(hour, [b"a", b"b", b"c"], Counters { tx: 1, rx: 2 });
        store.commit(vec![batch.finish()]).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| store.delete_hours(hour.into()).unwrap().unwrap());
            is_reached.recv().unwrap();
            let (opened, is_opened) = std::sync::mpsc::channel();
            let store = &store;
            let scan = scope.spawn(move || {
                let scan = store.select(Selection::hour(hour));
                opened.send(()).unwrap();
                scan.unwrap().next().unwrap().is_none()
            });
            let waits = is_opened.recv_timeout(Duration::from_millis(100));
            resume.send(()).unwrap();
            assert!(waits.is_err(), "it was opened in the middle of the drop");
            assert!(scan.join().unwrap(), "it has a row of the dropped hour");
        });
    }

    /// For `docs/internals/decisions/marker-around-iterator.md`: the cost of a lock around the ingest. To measure, set
    /// `FLUSHES` to a number of flushes; otherwise a few suffice as a test.
    #[test]
    fn scans_are_opened_while_files_are_ingested() {
        let flushes = std::env::var("FLUSHES").map_or(3, |n| n.parse().unwrap());
        for pair in 0..3 {
            for is_locked in [false, true] {
                let times = open_times(flushes, is_locked);
                let at = |part: f64| times[(times.len() as f64 * part) as usize];
                println!(
                    "{pair}, lock {is_locked}: {} scans, p50 {:?}, p90 {:?}, p99 {:?}, p99.9 {:?}",
                    times.len(),
                    at(0.5),
                    at(0.9),
                    at(0.99),
                    at(0.999)
                );
            }
        }
    }
}
