//! Compaction beyond what RocksDB triggers by itself.
//!
//! Reading a row that is spread over several files costs two to three times as much as one that is stored once. RocksDB
//! lets files accumulate before it merges them, which suits workloads that mostly write new keys. So after a flush
//! that added to hours on disk, the compactor thread merges all runs of `flows` immediately if that is cheap: if the
//! flush touched a good part of the rows to be rewritten, and they are few. It uses at most a twentieth of its time.
//! RocksDB does all other compaction.

use parking_lot::{Condvar, Mutex};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rocksdb::{BottommostLevelCompaction, CompactOptions};

use super::codec;
use super::error::{StoreError, with_context};
use super::{Inner, Store};
use flow::HourRange;

/// The compactor rests this many times as long as it has worked.
const REST: u32 = 19;
/// Upper bound of a rewrite: a third of a second of CPU.
const REWRITE_BYTES_MAX: u64 = 8 << 20;
/// At most this many rows are rewritten per row that was added to.
const ROWS_REWRITTEN_PER_ROW_ADDED: u64 = 32;
/// Pause before remains of dropped hours are compacted again after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
/// All runs of `flows` are merged when this fraction of their bytes is dropped.
const DROPPED_FRACTION: u64 = 4;
/// All runs of `flows` are merged when at most one part in this many of their bytes is alive: the other rows have been
/// settled. It would take days until RocksDB merges large runs, and they need as much space as all settled rows.
const DEAD_PARTS: u64 = 4;
/// Fewer dead bytes are left to RocksDB.
const DEAD_BYTES_MIN: u64 = if cfg!(test) { 1 << 10 } else { 16 << 20 };
/// Upper bound of remembered ranges of dropped hours, and of settled ones.
const RANGES_MAX: usize = 64;
/// Approximate size of a row on disk (`benches/RESULTS.md`).
const ROW_BYTES: u64 = 10;

/// Requests to the compactor.
#[derive(Debug, Default)]
pub(super) struct CompactionRequests {
    due: Mutex<Requests>,
    changed: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct Requests {
    /// Number of rows that the last flush added to hours that were already in `flows`.
    rows_added: Option<usize>,
    /// A class of receipts exceeds its size bound.
    receipts: bool,
    /// Something was flushed.
    audit: bool,
    /// Ranges of dropped hours (end exclusive) that some files may still contain a part of.
    dropped: Vec<(u32, u32)>,
    /// Hours whose rows were moved out of `flows`.
    settled: Vec<HourRange>,
    closing: bool,
}

impl CompactionRequests {
    /// Requests compaction of `flows` if that is cheap, after a flush that added `rows` to hours there.
    pub(super) fn request_merge(&self, rows: usize) {
        self.change(|due| due.rows_added = Some(rows));
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
                _ if known >= RANGES_MAX => {}
                _ => due.dropped.push((first, end)),
            }
        });
    }

    /// Requests that the runs of `flows` are merged if most of their rows are dead, after `hours` were settled.
    pub(super) fn request_dead(&self, hours: &[HourRange]) {
        self.change(|due| due.settled.extend_from_slice(hours));
    }

    pub(super) fn close(&self) {
        self.change(|due| due.closing = true);
    }

    fn is_closing(&self) -> bool {
        self.due.lock().closing
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
            let is_idle =
                due.rows_added.is_none() && due.dropped.is_empty() && due.settled.is_empty();
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
        let mut settled = Vec::new();
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
            if !due.settled.is_empty() {
                settled.extend(due.settled);
                if let Err(error) = self.merge_if_dead(&mut settled) {
                    tracing::warn!(%error, "runs with settled rows not merged; the compactor retries");
                    self.compaction_requests.request_dead(&settled);
                    rest = RETRY_PAUSE;
                }
            }
            if due.audit {
                next_audit = self.audit_ledger(next_audit);
            }
            let Some(rows) = due.rows_added else {
                continue;
            };
            let start = Instant::now();
            let merged = self.merge_if_cheap(rows);
            rest = rest.max(start.elapsed() * REST);
            match merged {
                Ok(false) => {}
                Ok(true) => {
                    tracing::debug!(ms = start.elapsed().as_millis() as u64, "merged all runs")
                }
                Err(error) => {
                    tracing::warn!(%error, "runs not merged; reads are slower meanwhile")
                }
            }
        }
    }

    /// Compacts the few files of settled rows that contain both dropped and other hours. Merges the runs of `flows` if
    /// much of them is dropped; RocksDB merges them soon in any case, while flows come.
    fn compact_dropped(&self, first: u32, end: u32) -> Result<(), StoreError> {
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        let (from, to) = codec::range_bounds((first..end).into());
        let flows = self.flows()?;
        let dropped = self.bytes_in(flows, &from, &to);
        let all = self.bytes_in(flows, &[], &codec::META_PREFIX);
        if dropped > 0 && dropped * DROPPED_FRACTION >= all {
            let left = self.compact_range(codec::FLOWS, None, None, &options)?;
            if !left.is_empty() {
                return Err(StoreError::CompactionFailed);
            }
        }
        let levels = self.compact_range(codec::SETTLED, Some(&from), Some(&to), &options)?;
        // A manual compaction moves everything to the last level that has files of the range.
        match levels.as_slice() {
            [] => Ok(()),
            [first, rest @ ..] if *first > 0 && rest.iter().all(|level| level == first) => Ok(()),
            _ => Err(StoreError::CompactionFailed),
        }
    }

    /// Merges all runs of `flows` if most of their rows are in `settled` hours, which are forgotten then: later rows of
    /// them are alive. Of more than [`RANGES_MAX`] ranges, only the last are considered.
    fn merge_if_dead(&self, settled: &mut Vec<HourRange>) -> Result<(), StoreError> {
        let flows = self.flows()?;
        let bytes_of = |hours: &HourRange| {
            let (from, to) = codec::range_bounds(*hours);
            self.bytes_in(flows, &from, &to)
        };
        *settled = HourRange::disjoint(std::mem::take(settled));
        settled.retain(|hours| bytes_of(hours) > 0);
        settled.drain(..settled.len().saturating_sub(RANGES_MAX));
        let dead: u64 = settled.iter().map(bytes_of).sum();
        let all = self.bytes_in(flows, &[], &codec::META_PREFIX);
        if !is_mostly_dead(dead, all) || all.saturating_sub(dead) > self.health.room() {
            return Ok(());
        }
        let start = Instant::now();
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        let left = self.compact_range(codec::FLOWS, None, None, &options)?;
        if self.compaction_requests.is_closing() {
            return Ok(());
        }
        if !left.is_empty() {
            return Err(StoreError::CompactionFailed);
        }
        settled.clear();
        let ms = start.elapsed().as_millis() as u64;
        tracing::debug!(
            dead,
            all,
            ms,
            "merged all runs to free the space of settled rows"
        );
        Ok(())
    }

    /// Merges all runs of `flows` if that is cheap after a flush that added `rows` to hours there. Returns whether it
    /// did.
    fn merge_if_cheap(&self, rows: usize) -> Result<bool, StoreError> {
        let flows = self.flows()?;
        // With the ledger, which is rewritten too.
        let property = rocksdb::properties::LIVE_SST_FILES_SIZE;
        let bytes = self.db.property_int_value_cf(flows, property);
        let bytes = bytes
            .map_err(with_context("reading a property"))?
            .unwrap_or(0);
        let worth_it = rows as u64 * ROW_BYTES * ROWS_REWRITTEN_PER_ROW_ADDED;
        if bytes > REWRITE_BYTES_MAX.min(worth_it) {
            return Ok(false);
        }
        let mut options = CompactOptions::default();
        // Do not block RocksDB's own compactions.
        options.set_exclusive_manual_compaction(false);
        // If this fails, reads stay slower until the next flush tries again.
        let all = None::<&[u8]>;
        self.db.compact_range_cf_opt(flows, all, all, &options);
        Ok(true)
    }

    /// Compacts a range of the family called `name`. Returns the levels of those files that had keys of it before and
    /// are still there.
    ///
    /// The C interface drops the status of a manual compaction and the binding has no event listeners. RocksDB's
    /// counter of background errors covers all families and flushes, and does not count a compaction that an earlier
    /// error kept from starting. So the files tell whether it succeeded.
    fn compact_range(
        &self,
        name: &str,
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
                file.column_family_name == name
                    && upper.is_none_or(is_from)
                    && lower.is_none_or(is_until)
            }))
        };
        let before: HashSet<String> = files()?.map(|file| file.name).collect();
        let family = self.db.cf_handle(name).ok_or(StoreError::Closed)?;
        self.db.compact_range_cf_opt(family, lower, upper, options);
        let left = files()?.filter(|file| before.contains(&file.name));
        Ok(left.map(|file| file.level).collect())
    }
}

/// Whether the runs of `flows`, with `all` bytes, should be merged because `dead` of them are settled.
fn is_mostly_dead(dead: u64, all: u64) -> bool {
    dead >= DEAD_BYTES_MIN && all.saturating_sub(dead) * DEAD_PARTS <= all
}

impl Store {
    /// Settles all hours and compacts all sums on disk, so that each key is stored once.
    ///
    /// # Errors
    /// [`StoreError::CompactionFailed`] or another one; no sum is lost then.
    pub fn compact(&self) -> Result<(), StoreError> {
        self.inner.settle_all()?;
        let mut options = CompactOptions::default();
        // Files that were moved down unchanged still contain merge operands.
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        for name in [codec::FLOWS, codec::SETTLED] {
            let left = self.inner.compact_range(name, None, None, &options)?;
            if !left.is_empty() {
                return Err(StoreError::CompactionFailed);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Selection;
    use crate::store::StoreOptions;
    use flow::BatchBuilder;
    use flow::{Counters, Hour};

    #[test]
    fn an_hour_in_many_files_is_compacted() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let hour = Hour::new(7).unwrap();
        // RocksDB would leave so few files alone.
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
        let files = store.inner.db.live_files().unwrap();
        drop(store);
        let mut damaged = 0;
        for file in files.iter().filter(|file| file.num_entries >= 1000) {
            let path = dir
                .path()
                .join(super::super::ROCKS)
                .join(file.name.trim_start_matches('/'));
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[10] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            damaged += 1;
        }
        assert_eq!(damaged, 1);
        let store = open();
        for _ in 0..2 {
            let compacted = store.compact();
            assert!(
                matches!(
                    compacted,
                    Err(StoreError::CompactionFailed | StoreError::Database { .. })
                ),
                "{compacted:?}"
            );
        }
    }

    /// Rows that were settled are in the runs of `flows` too, until those are merged.
    #[test]
    fn settled_rows_leave_the_runs_once_they_are_most_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let mut batch = BatchBuilder::with_capacity(0);
        for n in 0..6000_u64 {
            let (hour, name) = (Hour::new(n % 2).unwrap(), n.to_string());
            batch.push(
                hour,
                [name.as_bytes(), b"b", b"c"],
                Counters { tx: 1, rx: 2 },
            );
        }
        store.commit(vec![batch.finish()]).unwrap();
        store.flush().unwrap();
        let inner = &store.inner;
        let entries = || {
            let files = inner.db.live_files().unwrap();
            let of_flows = files
                .iter()
                .filter(|file| file.column_family_name == codec::FLOWS);
            of_flows.map(|file| file.num_entries).sum::<u64>()
        };
        assert!(entries() > 6000);
        inner.settle_all().unwrap();
        let give_up = Instant::now() + Duration::from_secs(120);
        while entries() > 100 {
            assert!(Instant::now() < give_up, "{} entries", entries());
            std::thread::sleep(Duration::from_millis(5));
        }
        let is_mostly_dead =
            |dead, all| is_mostly_dead(dead * DEAD_BYTES_MIN, all * DEAD_BYTES_MIN);
        assert!(is_mostly_dead(3, 4) && !is_mostly_dead(3, 5) && !is_mostly_dead(0, 0));
    }

    /// An hour may be settled several times before its runs are merged.
    #[test]
    fn settled_hours_count_once() {
        let ranges = [5..7, 1..3, 6..9, 3..4, 4..4, 20..21, 20..21]
            .map(HourRange::from)
            .to_vec();
        assert_eq!(
            HourRange::disjoint(ranges),
            [1..4, 5..9, 20..21].map(HourRange::from)
        );
    }

    /// Files with remains of dropped hours are rewritten, which the compactor has to notice.
    #[test]
    fn files_of_dropped_hours_are_compacted() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        for _ in 0..3 {
            let mut batch = BatchBuilder::with_capacity(0);
            for n in 0..120_u64 {
                // Most rows are in the hour that is dropped.
                let (hour, name) = (Hour::new(n.min(19) * 7 % 20), n.to_string());
                let counters = Counters { tx: 1, rx: 2 };
                batch.push(hour.unwrap(), [name.as_bytes(), b"b", b"c"], counters);
            }
            store.commit(vec![batch.finish()]).unwrap();
            store.flush().unwrap();
        }
        store.compact().unwrap();
        let inner = &store.inner;
        let entries = || {
            let (lower, upper) = codec::hour_bounds(Hour::new(13).unwrap());
            let files = inner.db.live_files().unwrap();
            let spans = |file: &rocksdb::LiveFile| {
                let (start, end) = (file.start_key.as_ref(), file.end_key.as_ref());
                file.column_family_name == codec::SETTLED
                    && start.is_some_and(|key| **key < upper[..])
                    && end.is_some_and(|key| **key >= lower[..])
            };
            let spanning = files.iter().filter(|file| spans(file));
            spanning
                .map(|file| file.num_deletions + file.num_entries)
                .sum::<u64>()
        };
        let before = entries();
        assert!(before >= 120, "{before}");
        store
            .delete_hours(Hour::new(13).unwrap().into())
            .unwrap()
            .unwrap();
        store.inner.compact_dropped(13, 14).unwrap();
        // The rows are gone from the file with the other hours, and so is the tombstone.
        assert!(entries() <= before - 100, "{before}, {}", entries());
        store.inner.compact_dropped(13, 14).unwrap();
        store.inner.compact_dropped(100, 101).unwrap();
    }
}
