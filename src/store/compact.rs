//! Compaction beyond what RocksDB triggers by itself.
//!
//! Reading a row that is spread over several files costs two to three times as much as one that is stored once. RocksDB
//! lets files accumulate before it compacts them, which suits workloads that mostly write new keys. So after a flush
//! that added to a busy hour on disk, the compactor thread compacts that hour immediately if it is cheap: if the flush
//! touched a good part of the rows to be rewritten, and they are few. It uses at most a twentieth of its time. RocksDB
//! does all other compaction.

use parking_lot::{Condvar, Mutex};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rocksdb::{BottommostLevelCompaction, CompactOptions};

use super::codec;
use super::error::{StoreError, with_context};
use super::{Inner, Store};
use flow::Hour;

/// The compactor rests this many times as long as it has worked.
const REST: u32 = 19;
/// Upper bound of a rewrite: a third of a second of CPU.
const REWRITE_BYTES_MAX: u64 = 8 << 20;
/// At most this many rows are rewritten per row that was added to.
const ROWS_REWRITTEN_PER_ROW_ADDED: u64 = 32;
/// Pause before remains of dropped hours are compacted again after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
/// Upper bound of pending ranges of dropped hours.
const DROPPED_MAX: usize = 64;
/// Approximate size of a row on disk (`benches/RESULTS.md`).
const ROW_BYTES: u64 = 10;

/// The rows that a flush added to hours that were already on disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlushOverlap {
    /// The first and last hour of the flush: its file spans them.
    pub(super) first: Hour,
    pub(super) last: Hour,
    /// The hour to which most rows were added, and their number.
    pub(super) busiest: Hour,
    pub(super) rows: usize,
}

/// Requests to the compactor.
#[derive(Debug, Default)]
pub(super) struct CompactionRequests {
    due: Mutex<Requests>,
    changed: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct Requests {
    added: Option<FlushOverlap>,
    /// A class of receipts exceeds its size bound.
    receipts: bool,
    /// Something was flushed.
    audit: bool,
    /// Ranges of dropped hours (end exclusive) that some files may still contain a part of.
    dropped: Vec<(u32, u32)>,
    closing: bool,
}

impl CompactionRequests {
    /// Requests compaction of the hours that a flush added to.
    pub(super) fn request_hour(&self, added: FlushOverlap) {
        self.change(|due| due.added = Some(added));
    }

    /// Requests that the oldest receipts are dropped.
    pub(super) fn request_receipts(&self) {
        self.change(|due| due.receipts = true);
    }

    /// Requests that the ledger is compared with the accepted flows.
    pub(super) fn request_audit(&self) {
        self.change(|due| due.audit = true);
    }

    /// Requests that files with remains of the dropped hours from `first` to `end` (exclusive) are compacted.
    pub(super) fn request_dropped(&self, first: u32, end: u32) {
        self.change(|due| {
            let known = due.dropped.len();
            match due.dropped.last_mut() {
                Some((_, before)) if *before == first => *before = end,
                // If there are too many separate ranges, leave them to RocksDB's own compaction.
                _ if known >= DROPPED_MAX => {}
                _ => due.dropped.push((first, end)),
            }
        });
    }

    pub(super) fn close(&self) {
        self.change(|due| due.closing = true);
    }

    fn change(&self, change: impl FnOnce(&mut Requests)) {
        change(&mut self.due.lock());
        self.changed.notify_all();
    }

    /// Waits for requests, after a rest; `None` when the store is closing.
    fn next(&self, rest: Duration) -> Option<Requests> {
        let mut due = self.due.lock();
        let _rested = self
            .changed
            .wait_while_for(&mut due, |due| !due.closing, rest);
        self.changed.wait_while(&mut due, |due| {
            let is_idle = due.added.is_none() && due.dropped.is_empty();
            !due.closing && is_idle && !due.receipts && !due.audit
        });
        (!due.closing).then(|| std::mem::take(&mut *due))
    }
}

impl Inner {
    /// Body of the compactor thread.
    pub(super) fn compact_until_closed(self: &Arc<Inner>) {
        let mut rest = Duration::ZERO;
        let mut next_audit = Instant::now();
        while let Some(due) = self.compaction_requests.next(rest) {
            rest = Duration::ZERO;
            if due.receipts
                && let Err(error) = self.drop_old_receipts()
            {
                tracing::warn!(%error, "old idempotency keys not dropped; they exceed their bound on disk");
            }
            for (first, end) in due.dropped {
                if let Err(error) = self.compact_dropped(first, end) {
                    tracing::warn!(%error, "files of dropped hours not compacted; the compactor retries");
                    self.compaction_requests.request_dropped(first, end);
                    rest = RETRY_PAUSE;
                }
            }
            if due.audit {
                next_audit = self.audit_ledger(next_audit);
            }
            let Some(added) = due.added else {
                continue;
            };
            let start = Instant::now();
            let compacted = self.compact_if_cheap(added);
            rest = rest.max(start.elapsed() * REST);
            match compacted {
                Ok(false) => {}
                Ok(true) => tracing::debug!(
                    hour = added.busiest.get(),
                    ms = start.elapsed().as_millis() as u64,
                    "compacted"
                ),
                Err(error) => {
                    tracing::warn!(%error, "hour not compacted; reads of it are slower meanwhile")
                }
            }
        }
    }

    /// Compacts the few files that contain both dropped and other hours.
    fn compact_dropped(&self, first: u32, end: u32) -> Result<(), StoreError> {
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        let (from, to) = codec::range_bounds((first..end).into());
        let levels = self.compact_range(Some(&from), Some(&to), &options)?;
        // A manual compaction moves everything to the last level that has files of the range.
        match levels.as_slice() {
            [] => Ok(()),
            [first, rest @ ..] if *first > 0 && rest.iter().all(|level| level == first) => Ok(()),
            _ => Err(StoreError::CompactionFailed),
        }
    }

    /// Compacts the busiest hour if that is cheap. Returns whether it did.
    fn compact_if_cheap(&self, added: FlushOverlap) -> Result<bool, StoreError> {
        let (first, _) = codec::hour_bounds(added.first);
        let (_, last) = codec::hour_bounds(added.last);
        let bytes = self.bytes_on_disk(&first, &last)?;
        let worth_it = added.rows as u64 * ROW_BYTES * ROWS_REWRITTEN_PER_ROW_ADDED;
        if bytes > REWRITE_BYTES_MAX.min(worth_it) {
            return Ok(false);
        }
        let (lower, upper) = codec::hour_bounds(added.busiest);
        let mut options = CompactOptions::default();
        // Do not block RocksDB's own compactions.
        options.set_exclusive_manual_compaction(false);
        // If this fails, reads of the hour stay slower until the next flush tries again.
        let (lower, upper) = (Some(&lower), Some(&upper));
        self.db
            .compact_range_cf_opt(self.flows()?, lower, upper, &options);
        Ok(true)
    }

    /// Compacts a range. Returns the levels of those files that had keys of it before and are still there.
    ///
    /// The C interface drops the status of a manual compaction and the binding has no event listeners. RocksDB's
    /// counter of background errors covers all families and flushes, and does not count a compaction that an earlier
    /// error kept from starting. So the files tell whether it succeeded.
    fn compact_range(
        &self,
        lower: Option<&[u8]>,
        upper: Option<&[u8]>,
        options: &CompactOptions,
    ) -> Result<Vec<i32>, StoreError> {
        let files = || {
            let files = self
                .db
                .live_files()
                .map_err(with_context("listing the files"))?;
            Ok::<_, StoreError>(files.into_iter().filter(move |file| {
                let is_from = |upper: &[u8]| file.start_key.as_ref().is_some_and(|k| **k <= *upper);
                let is_until = |lower: &[u8]| file.end_key.as_ref().is_some_and(|k| **k >= *lower);
                file.column_family_name == codec::FLOWS
                    && upper.is_none_or(is_from)
                    && lower.is_none_or(is_until)
            }))
        };
        let before: HashSet<String> = files()?.map(|file| file.name).collect();
        self.db
            .compact_range_cf_opt(self.flows()?, lower, upper, options);
        let left = files()?.filter(|file| before.contains(&file.name));
        Ok(left.map(|file| file.level).collect())
    }
}

impl Store {
    /// Compacts all sums on disk, so that each key is stored once.
    ///
    /// # Errors
    /// [`StoreError::CompactionFailed`]; everything is unchanged then.
    pub fn compact(&self) -> Result<(), StoreError> {
        let mut options = CompactOptions::default();
        // Files that were moved down unchanged still contain merge operands.
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        let left = self.inner.compact_range(None, None, &options)?;
        match left.is_empty() {
            true => Ok(()),
            false => Err(StoreError::CompactionFailed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Selection;
    use crate::store::StoreOptions;
    use flow::BatchBuilder;
    use flow::Counters;

    #[test]
    fn an_hour_in_many_files_is_compacted() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let hour = Hour::new(7).unwrap();
        // One file fewer than the number that triggers RocksDB's compaction.
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
        let give_up = Instant::now() + Duration::from_secs(120);
        while piled_up() != Some(0) {
            assert!(Instant::now() < give_up, "{:?} files", piled_up());
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut scan = store.select(Selection::hour(hour)).unwrap();
        let (_, counters) = scan.next().unwrap().unwrap();
        assert_eq!(counters, Counters { tx: 3, rx: 6 });
    }

    /// The second one fails too: RocksDB does not start it because of the first.
    #[test]
    fn a_compaction_of_a_damaged_file_fails_every_time() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Store::open(dir.path(), StoreOptions::default()).unwrap().0;
        let store = open();
        let mut batch = BatchBuilder::with_capacity(0);
        for n in 0..1000_u32 {
            let (hour, name) = (Hour::new(7).unwrap(), n.to_string());
            let counters = Counters { tx: 1, rx: 2 };
            batch.push(hour, [name.as_bytes(), b"b", b"c"], counters);
        }
        store.commit(vec![batch.finish()]).unwrap();
        store.flush().unwrap();
        store.compact().unwrap();
        store.compact().unwrap();
        drop(store);
        let files = std::fs::read_dir(dir.path().join(super::super::ROCKS)).unwrap();
        for file in files.map(|file| file.unwrap().path()) {
            if file.extension().is_some_and(|extension| extension == "sst") {
                let mut bytes = std::fs::read(&file).unwrap();
                bytes[10] ^= 1;
                std::fs::write(&file, bytes).unwrap();
            }
        }
        let store = open();
        for _ in 0..2 {
            let compacted = store.compact();
            assert!(
                matches!(compacted, Err(StoreError::CompactionFailed)),
                "{compacted:?}"
            );
        }
    }

    /// Files with remains of dropped hours are rewritten, which the compactor has to notice.
    #[test]
    fn files_of_dropped_hours_are_compacted() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        for _ in 0..3 {
            let mut batch = BatchBuilder::with_capacity(0);
            for hour in 0..20 {
                let hour = Hour::new(hour).unwrap();
                batch.push(hour, [b"a", b"b", b"c"], Counters { tx: 1, rx: 2 });
            }
            store.commit(vec![batch.finish()]).unwrap();
            store.flush().unwrap();
        }
        store.delete_hour(Hour::new(7).unwrap()).unwrap().unwrap();
        store.inner.compact_dropped(7, 8).unwrap();
        store.inner.compact_dropped(7, 8).unwrap();
        store.inner.compact_dropped(100, 101).unwrap();
    }
}
