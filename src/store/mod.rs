//! The store: durable, exact sums in one directory.
//!
//! A commit appends its batches to the [`journal`], with one fsync, and adds them to the [`tally`].
//! A tally that is big or old is frozen and flushed by a thread of its own: [`flush`] writes its rows
//! and the **marker**, the last journal position they contain, into one file that RocksDB ingests
//! atomically. So sums and marker cannot disagree, whatever happens in between: with the old marker
//! the journal is replayed, with the new one it is skipped. Readers ([`scan`]) use the same rule to
//! see every acknowledged batch exactly once while a flush is on its way.

mod apply;
mod arena;
mod checkpoint;
pub mod codec;
mod commit;
mod compact;
mod dedupe;
mod dir;
mod error;
mod flush;
mod health;
mod journal;
mod ledger;
mod merge;
mod observe;
mod open;
mod options;
mod presence;
mod receipts;
mod retention;
mod rocks;
mod run;
mod scan;
mod selection;
mod tally;
mod torn;
mod verify;
mod views;
mod wal;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rocksdb::{ColumnFamily, DB, Options};

pub use apply::{Applied, Entry};
pub use checkpoint::Checkpointed;
pub use dedupe::{Known, Outcome};
pub use dir::{DataDir, INCOMPLETE, PARTITION_FILE, RESTORING_FILE, ROCKS};
pub use error::StoreError;
pub use health::WriteHealth;
pub use ledger::Ledger;
pub use open::Recovery;
pub use options::{Durability, Step, StepHook, StoreOptions};
pub use retention::Retention;
pub use scan::{Scan, ScanEnd, StoredRow};
pub use selection::Selection;
#[doc(hidden)] // for benches
pub use tally::{Tally, batch_memory_bytes};
pub use verify::{Fault, Verified, verify};
pub use wal::cut_torn;
#[cfg(fuzzing)]
pub use {merge::check as check_merge, tally::check as check_replay};

use compact::CompactionDue;
use error::database;
use flow::{Hour, Totals};
use health::Health;
use journal::Journal;
use receipts::Expiry;
use views::ViewBudget;

/// An open data directory. Dropping it stops its threads and loses nothing: what is not flushed is
/// in the journal. [`Store::flush`] first makes the next open quick.
#[derive(Debug)]
pub struct Store {
    inner: Arc<Inner>,
    /// Without it and the other, the store is open only to be read.
    flusher: Option<JoinHandle<()>>,
    compactor: Option<JoinHandle<()>>,
}

/// Everything that the flusher and running scans share. The database is closed, and then the
/// directory let go, when the last of them ends: fields are dropped in this order.
struct Inner {
    db: DB,
    dir: DataDir,
    /// Kept for its statistics.
    database_options: Options,
    flows_options: Options,
    options: StoreOptions,
    /// Held by the one commit that is under way. Has the keys of batches whose write failed: such a
    /// write may be in the log all the same, where a later one takes its positions but not its
    /// receipts; so the next one takes them back.
    commit: Mutex<Vec<Vec<u8>>>,
    tallies: Mutex<Tallies>,
    /// See [`Inner::marker`].
    marker: AtomicU64,
    /// Held by whoever writes to `flows`, and by whoever needs it and the journal's beginning to stand
    /// still.
    writer: Mutex<()>,
    /// Counts up when a drop of hours begins and when it ends: odd while one is under way.
    drops: AtomicU64,
    /// Keys the tags of this open store, so that no other one gives the same.
    tags: RandomState,
    /// The first hour that is kept; what is before it is not there for readers.
    horizon: AtomicU32,
    /// The latest hour that the clock has shown: see [`Inner::retention`].
    clock_hour: AtomicU32,
    views: ViewBudget,
    /// Signalled when there may be something to flush.
    flush_due: Condvar,
    /// Signalled when a flush ended, well or not.
    flush_ended: Condvar,
    compaction_due: CompactionDue,
    expiry: Arc<Expiry>,
    /// See [`Inner::widen_journal`].
    journal_is_wide: AtomicBool,
    /// Sums that reached `u64::MAX` and were stopped there.
    stopped: Arc<AtomicU64>,
    health: Health,
}

/// Stands for the marker while it is not known which it is. No journal gets that long.
const MARKER_CHANGES: u64 = u64::MAX;

struct Tallies {
    active: Tally,
    frozen: Option<Arc<Tally>>,
    /// Journal position up to which the sums on disk are complete: the marker.
    flushed: u64,
    /// The newest hour that has had flows.
    newest: Option<u32>,
    /// What the ledger has to add up to: what it did at the start, and everything since.
    expected: Totals,
    /// Flush the active tally now, whatever its size and age.
    flush_now: bool,
    /// Why the last flush failed; `None` once one succeeds.
    flush_error: Option<String>,
    closing: bool,
}

impl Tallies {
    fn freeze(&mut self) {
        debug_assert!(self.frozen.is_none());
        let fresh = Tally::new(self.active.last());
        self.frozen = Some(Arc::new(std::mem::replace(&mut self.active, fresh)));
        self.flush_now = false;
    }

    /// Counts what a batch says that it adds.
    fn note_ledger(&mut self, ledger: impl IntoIterator<Item = (u32, Totals)>) {
        for (hour, totals) in ledger {
            self.expected.add(totals);
            self.newest = self.newest.max(Some(hour));
        }
    }
}

impl Inner {
    /// Hides from readers what is too old by now.
    fn set_horizon(&self, tallies: &Tallies) {
        let retention = self.retention(tallies.newest);
        self.horizon.store(retention.horizon(), Ordering::SeqCst);
    }

    fn tallies(&self) -> Result<MutexGuard<'_, Tallies>, StoreError> {
        // A panic while the sums were being changed: what they hold now is anybody's guess.
        self.tallies.lock().map_err(|_| StoreError::Closed)
    }

    fn flows(&self) -> Result<&ColumnFamily, StoreError> {
        flows_family(&self.db)
    }

    /// About how much the keys from `first` up to `end` take on disk, without what is not flushed yet.
    fn bytes_on_disk(&self, first: &[u8], end: &[u8]) -> Result<u64, StoreError> {
        let range = rocksdb::Range::new(first, end);
        let sizes = self.db.get_approximate_sizes_cf(self.flows()?, &[range]);
        Ok(sizes.iter().sum())
    }

    /// The last journal position that the sums on disk contain, as the database has it; 0 before the
    /// first flush.
    fn marker_on_disk(&self) -> Result<u64, StoreError> {
        marker_in(&self.db)
    }

    /// The same without asking the database, except while a flush changes it.
    fn marker(&self) -> Result<u64, StoreError> {
        match self.marker.load(Ordering::SeqCst) {
            MARKER_CHANGES => self.marker_on_disk(),
            marker => Ok(marker),
        }
    }

    /// Runs `ingest`, which changes the marker or fails and may have changed it or not.
    fn change_marker(
        &self,
        ingest: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.marker.store(MARKER_CHANGES, Ordering::SeqCst);
        let ingested = ingest();
        self.marker.store(self.marker_on_disk()?, Ordering::SeqCst);
        ingested
    }

    fn is_full(&self, tally: &Tally) -> bool {
        tally.memory_bytes() >= self.options.tally_bytes_max
            || tally.journal_bytes() >= self.options.journal_bytes_max
    }

    /// Names what the store holds when its last position is `last` and hours were dropped so often: whatever
    /// changes it, changes one of the two.
    fn tag(&self, last: u64, drops: u64) -> u64 {
        self.tags.hash_one((last, drops))
    }

    fn step(&self, step: Step) {
        if let Some(hook) = &self.options.on_step {
            hook(step);
        }
    }
}

fn flows_family(db: &DB) -> Result<&ColumnFamily, StoreError> {
    db.cf_handle(codec::FLOWS).ok_or(StoreError::Closed)
}

/// The last journal position that the sums on disk contain; 0 before the first flush.
fn marker_in(db: &DB) -> Result<u64, StoreError> {
    let value = db
        .get_pinned_cf(flows_family(db)?, codec::MARKER_KEY)
        .map_err(database("reading the marker"))?;
    Ok(value.map_or(Ok(0), |value| codec::decode_marker(&value))?)
}

impl Store {
    /// The rows of `hour` as they are now, in key order.
    pub fn scan(&self, hour: Hour) -> Result<Scan, StoreError> {
        Scan::open(&self.inner, Selection::hour(hour))
    }

    /// The rows of `selection` as they are now, in key order.
    pub fn select(&self, selection: Selection) -> Result<Scan, StoreError> {
        Scan::open(&self.inner, selection)
    }

    /// Flushes everything that has been committed, and waits for it, `time_max` at most. The journal
    /// is empty then, and its log is let go: the next open reads neither, and a copy of the directory
    /// is as small as it can be.
    pub fn flush_within(&self, time_max: Duration) -> Result<(), StoreError> {
        self.inner.look_for_dir()?;
        self.flush_tallies(time_max)?;
        Journal::new(&self.inner.db)?.release()
    }

    /// Flushes everything that has been committed, and waits for it, `time_max` at most.
    pub(super) fn flush_tallies(&self, time_max: Duration) -> Result<(), StoreError> {
        if self.flusher.is_none() {
            return Err(StoreError::OnlyRead);
        }
        let give_up = Instant::now() + time_max;
        let inner = &*self.inner;
        let mut tallies = inner.tallies()?;
        let target = tallies.active.last();
        tallies.flush_error = None;
        while tallies.flushed < target {
            if let Some(error) = &tallies.flush_error {
                return Err(StoreError::FlushFailed { why: error.clone() });
            }
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(StoreError::FlushFailed {
                    why: format!("it was not done in {} seconds", time_max.as_secs()),
                });
            }
            // What came in later is not asked for.
            tallies.flush_now = tallies.active.since().is_some();
            inner.flush_due.notify_one();
            (tallies, _) = inner
                .flush_ended
                .wait_timeout(tallies, left)
                .map_err(|_| StoreError::Closed)?;
        }
        Ok(())
    }

    /// [`Store::flush_within`] an hour.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.flush_within(Duration::from_secs(3600))
    }

    /// See [`StoreOptions::tally_bytes_max`].
    pub fn tally_bytes_max(&self) -> usize {
        self.inner.options.tally_bytes_max
    }

    /// How often the journal's log was synced to disk since open.
    pub fn log_syncs(&self) -> u64 {
        let options = &self.inner.database_options;
        options.get_ticker_count(rocksdb::statistics::Ticker::WalFileSynced)
    }

    /// How many additions, since open, met a sum that would have passed `u64::MAX`: in the tally,
    /// and each time that a read or a compaction adds up what is on disk.
    pub fn sums_stopped(&self) -> u64 {
        self.inner.stopped.load(Ordering::Relaxed)
    }
}

/// Runs the life of a thread that the service cannot do without. A panic in it is a bug, after which
/// requests would wait for ever: the process ends instead, and the next one finds everything in the
/// journal.
pub fn abort_on_panic(life: impl FnOnce()) {
    struct Abort;
    impl Drop for Abort {
        fn drop(&mut self) {
            if std::thread::panicking() {
                std::process::abort();
            }
        }
    }
    let _abort = Abort;
    life();
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Ok(mut tallies) = self.inner.tallies.lock() {
            tallies.closing = true;
        }
        self.inner.flush_due.notify_all();
        self.inner.compaction_due.close();
        let join = |thread: Option<JoinHandle<()>>| {
            // They log their own errors, and a panic of theirs has been printed.
            let _ended = thread.map(JoinHandle::join);
        };
        join(self.flusher.take());
        // Nothing is written any more. A compaction that is under way may be given up at any point.
        self.inner.db.cancel_all_background_work(false);
        join(self.compactor.take());
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("dir", &self.dir)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
