//! Compaction beyond what RocksDB starts by itself.
//!
//! A row that is spread over several files costs a read two to three times of what one costs that is
//! stored once. RocksDB lets files pile up before it compacts them, for the good of those who write
//! nearly only new keys. So after a flush that added to a busy hour on disk, a thread of its own
//! compacts that hour at once, where this is worth it and cheap: when the flush touched a good part of
//! what has to be rewritten, and that is little. It takes a twentieth of its time at most. Everything
//! else is left to RocksDB.

use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use rocksdb::{BottommostLevelCompaction, CompactOptions};

use super::codec;
use super::error::{StoreError, database};
use super::{Inner, Store};
use flow::Hour;

/// For each second that it compacts, the compactor rests this many.
const REST: u32 = 19;
/// Most that it rewrites at a time: a third of a second of CPU.
const REWRITE_BYTES_MAX: u64 = 8 << 20;
/// At least one row in so many has to be one that was added to.
const ROWS_REWRITTEN_PER_ROW_ADDED: u64 = 32;
/// Rest after a failure, before what dropped hours left is seen to again.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
/// Ranges of dropped hours whose remains it sees to.
const DROPPED_MAX: usize = 64;
/// About what a row takes on disk (`benches/RESULTS.md`).
const ROW_BYTES: u64 = 10;

/// What flushes added to hours that were on disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Added {
    /// The first and the last hour of the flush: its file spans these.
    pub(super) first: Hour,
    pub(super) last: Hour,
    /// The hour that got most rows, and how many.
    pub(super) busiest: Hour,
    pub(super) rows: usize,
}

/// What the compactor waits for.
#[derive(Debug, Default)]
pub(super) struct CompactionDue {
    due: Mutex<Due>,
    changed: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct Due {
    added: Option<Added>,
    /// Receipts have passed their bound.
    receipts: bool,
    /// Hours that are gone, each from the first up to but without the second: some files may have a
    /// part of them.
    dropped: Vec<(u32, u32)>,
    closing: bool,
}

impl CompactionDue {
    /// A flush has put a part of an hour's sums in another file.
    pub(super) fn note(&self, added: Added) {
        self.change(|due| due.added = Some(added));
    }

    /// Receipts take more of the disk than they may.
    pub(super) fn note_receipts(&self) {
        self.change(|due| due.receipts = true);
    }

    /// The hours from `first` up to but without `end` are gone.
    pub(super) fn note_dropped(&self, first: u32, end: u32) {
        self.change(|due| {
            let known = due.dropped.len();
            match due.dropped.last_mut() {
                Some((_, before)) if *before == first => *before = end,
                // Where so many are gone in no order, RocksDB's own compaction sees to them.
                _ if known >= DROPPED_MAX => {}
                _ => due.dropped.push((first, end)),
            }
        });
    }

    pub(super) fn close(&self) {
        self.change(|due| due.closing = true);
    }

    fn change(&self, change: impl FnOnce(&mut Due)) {
        if let Ok(mut due) = self.due.lock() {
            change(&mut due);
        }
        self.changed.notify_all();
    }

    /// Waits for the next that is due, after a rest; `None` when the store is closing.
    fn next(&self, rest: Duration) -> Option<Due> {
        let due = self.due.lock().ok()?;
        let (due, _) = self
            .changed
            .wait_timeout_while(due, rest, |due| !due.closing)
            .ok()?;
        let mut due = self
            .changed
            .wait_while(due, |due| {
                !due.closing && due.added.is_none() && due.dropped.is_empty() && !due.receipts
            })
            .ok()?;
        (!due.closing).then(|| std::mem::take(&mut *due))
    }
}

impl Inner {
    /// The compactor's life.
    pub(super) fn compact_until_closed(&self) {
        let mut rest = Duration::ZERO;
        while let Some(due) = self.compaction_due.next(rest) {
            let start = Instant::now();
            rest = Duration::ZERO;
            if due.receipts
                && let Err(error) = self.drop_old_receipts()
            {
                tracing::warn!(%error, "old idempotency keys take more of the disk than they may");
            }
            for (first, end) in due.dropped {
                if let Err(error) = self.compact_dropped(first, end) {
                    tracing::warn!(%error, "a part of what dropped hours took stays on disk for now");
                    self.compaction_due.note_dropped(first, end);
                    rest = RETRY_PAUSE;
                }
            }
            let Some(added) = due.added else {
                continue;
            };
            let compacted = self.compact_if_cheap(added);
            rest = rest.max(start.elapsed() * REST);
            match compacted {
                Ok(false) => {}
                Ok(true) => tracing::debug!(
                    hour = added.busiest.get(),
                    ms = start.elapsed().as_millis() as u64,
                    "compacted"
                ),
                Err(error) => tracing::warn!(%error, "reads of the hour are slower until it works"),
            }
        }
    }

    /// Rewrites the few files that dropped hours share with others.
    fn compact_dropped(&self, first: u32, end: u32) -> Result<(), StoreError> {
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        let (from, to) = (first.to_be_bytes(), end.to_be_bytes());
        self.compact_range(Some(&from), Some(&to), &options)
    }

    /// Returns whether it was.
    fn compact_if_cheap(&self, added: Added) -> Result<bool, StoreError> {
        let (first, _) = codec::hour_bounds(added.first);
        let (_, last) = codec::hour_bounds(added.last);
        let bytes = self.bytes_on_disk(&first, &last)?;
        let worth_it = added.rows as u64 * ROW_BYTES * ROWS_REWRITTEN_PER_ROW_ADDED;
        if bytes > REWRITE_BYTES_MAX.min(worth_it) {
            return Ok(false);
        }
        let (lower, upper) = codec::hour_bounds(added.busiest);
        let mut options = CompactOptions::default();
        // What RocksDB wants to compact meanwhile goes on.
        options.set_exclusive_manual_compaction(false);
        self.compact_range(Some(&lower), Some(&upper), &options)?;
        Ok(true)
    }

    fn compact_range(
        &self,
        lower: Option<&[u8]>,
        upper: Option<&[u8]>,
        options: &CompactOptions,
    ) -> Result<(), StoreError> {
        // The binding does not hand on how it went; failures are counted, though.
        let failures = || {
            self.db
                .property_int_value(rocksdb::properties::BACKGROUND_ERRORS)
                .map_err(database("reading a property"))
        };
        let before = failures()?;
        self.db
            .compact_range_cf_opt(self.flows()?, lower, upper, options);
        if failures()? == before {
            Ok(())
        } else {
            Err(StoreError::CompactionFailed)
        }
    }
}

impl Store {
    /// Compacts all sums on disk, so that each key is stored once.
    ///
    /// # Errors
    /// [`StoreError::CompactionFailed`], after which everything is as before.
    pub fn compact(&self) -> Result<(), StoreError> {
        let mut options = CompactOptions::default();
        // Files that were moved down as they are hold operands still.
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        self.inner.compact_range(None, None, &options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreOptions;
    use flow::BatchBuilder;
    use flow::Counters;

    #[test]
    fn an_hour_that_flushes_add_to_is_soon_in_one_place() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let hour = Hour::new(7).unwrap();
        // One file fewer than RocksDB waits for.
        for _ in 0..3 {
            let mut batch = BatchBuilder::with_capacity(0);
            batch.push(hour, [b"a", b"b", b"c"], Counters { tx: 1, rx: 2 });
            store.commit(vec![batch.finish()]).unwrap();
            store.flush().unwrap();
        }
        let inner = &store.inner;
        let piled_up = || {
            let files = rocksdb::properties::num_files_at_level(0);
            let flows = inner.flows().unwrap();
            inner.db.property_int_value_cf(flows, files).unwrap()
        };
        let give_up = Instant::now() + Duration::from_secs(30);
        while piled_up() != Some(0) {
            assert!(Instant::now() < give_up, "{:?} files", piled_up());
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut scan = store.scan(hour).unwrap();
        let (_, counters) = scan.next().unwrap().unwrap();
        assert_eq!(counters, Counters { tx: 3, rx: 6 });
    }
}
