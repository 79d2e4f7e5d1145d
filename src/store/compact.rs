//! Compaction beyond what RocksDB starts by itself.
//!
//! A row that is spread over several files costs a read two to three times of what one costs that is
//! stored once. RocksDB lets files pile up before it compacts them, for the good of those who write
//! nearly only new keys. So after a flush that added to an hour already on disk, which is nearly
//! every flush, a thread of its own compacts that hour: a tenth of a second for 200,000 rows. It takes
//! a tenth of its time at most: hours too large for that are left to RocksDB in between.

use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use rocksdb::{BottommostLevelCompaction, CompactOptions};

use super::codec;
use super::error::StoreError;
use super::{Inner, Store};
use crate::domain::Hour;

/// For each second that it compacts, the compactor rests this many.
const REST: u32 = 9;

/// What the compactor waits for.
#[derive(Debug, Default)]
pub(super) struct CompactionDue {
    due: Mutex<Due>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Due {
    hour: Option<Hour>,
    closing: bool,
}

impl CompactionDue {
    /// `hour` has sums in more than one file now.
    pub(super) fn note(&self, hour: Hour) {
        self.change(|due| due.hour = Some(hour));
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

    /// Waits for the next hour that is due, after a rest; `None` when the store is closing.
    fn next(&self, rest: Duration) -> Option<Hour> {
        let due = self.due.lock().ok()?;
        let (due, _) = self
            .changed
            .wait_timeout_while(due, rest, |due| !due.closing)
            .ok()?;
        let mut due = self
            .changed
            .wait_while(due, |due| !due.closing && due.hour.is_none())
            .ok()?;
        due.hour.take().filter(|_| !due.closing)
    }
}

impl Inner {
    /// The compactor's life.
    pub(super) fn compact_until_closed(&self) {
        let mut rest = Duration::ZERO;
        while let Some(hour) = self.compaction_due.next(rest) {
            let start = Instant::now();
            if let Err(error) = self.compact_hour(hour) {
                tracing::error!(%error, "compaction failed, reads of the hour are slower");
            }
            rest = start.elapsed() * REST;
            tracing::debug!(
                hour = hour.get(),
                ms = start.elapsed().as_millis() as u64,
                "compacted"
            );
        }
    }

    fn compact_hour(&self, hour: Hour) -> Result<(), StoreError> {
        let (lower, upper) = codec::hour_bounds(hour);
        let mut options = CompactOptions::default();
        // What RocksDB wants to compact meanwhile goes on.
        options.set_exclusive_manual_compaction(false);
        let (lower, upper) = (Some(lower), Some(upper));
        self.db
            .compact_range_cf_opt(self.flows()?, lower, upper, &options);
        Ok(())
    }
}

impl Store {
    /// Compacts all sums on disk, so that each key is stored once.
    pub fn compact(&self) -> Result<(), StoreError> {
        let mut options = CompactOptions::default();
        // Files that were moved down as they are hold operands still.
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        let (lower, upper) = (None::<&[u8]>, None::<&[u8]>);
        self.inner
            .db
            .compact_range_cf_opt(self.inner.flows()?, lower, upper, &options);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Counters;
    use crate::store::{BatchBuilder, StoreOptions};

    #[test]
    fn an_hour_that_flushes_add_to_is_soon_in_one_place() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let hour = Hour::new(7).unwrap();
        // One file fewer than RocksDB waits for.
        for _ in 0..3 {
            let mut batch = BatchBuilder::with_capacity(0);
            batch.push(hour, [b"a", b"b", b"c"], Counters { tx: 1, rx: 2 });
            store.commit(&[batch.finish()]).unwrap();
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
