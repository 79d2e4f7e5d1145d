//! The store: durable, exact sums in one directory.
//!
//! A commit appends its batches to the [`journal`] with one fsync and adds them to the [`tally`]. When a tally is
//! large or old, it is frozen, and the flusher thread writes its rows and the **marker** (the last journal position
//! that they contain) into one file, which RocksDB ingests atomically ([`flush`]). Sums and marker therefore always
//! agree: after a crash, the journal is replayed from the marker. Readers ([`scan`]) apply the same rule, so that
//! they see every acknowledged batch exactly once during a flush ([`view`]).
//!
//! Threads and scans share one [`Inner`]. `docs/internals/store.md` has its parts, and the order in which a thread may
//! take their locks.

mod apply;
mod arena;
mod audit;
mod checkpoint;
pub mod codec;
mod commit;
mod compact;
#[cfg(test)]
mod crash_copy;
mod cuts;
mod dedupe;
mod dir;
mod error;
mod families;
mod flush;
mod health;
mod journal;
mod known_keys;
mod ledger;
mod live_files;
mod merge;
mod observe;
mod open;
mod options;
mod pacer;
mod position;
mod receipts;
mod retention;
mod rocks;
mod rocks_error;
mod run;
mod scan;
mod selection;
mod settle;
mod spare;
mod staging;
mod tallies;
mod tally;
mod tiers;
mod torn;
mod verify;
mod view;
mod view_budget;
mod visibility;
mod wal;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rocksdb::{ColumnFamily, DB, Options};

pub use apply::{Applied, JournalEntry};
pub use checkpoint::StoreCheckpoint;
pub use dedupe::Outcome;
pub use dir::{DataDir, INCOMPLETE, PARTITION_FILE, RESTORING_FILE, ROCKS};
pub use error::StoreError;
pub use health::WriteHealth;
pub use ledger::Ledger;
pub use open::Recovery;
pub use options::{Durability, Step, StepHook, StoreOptions};
pub use position::Position;
pub use retention::RetentionPeriods;
pub use scan::{Scan, ScanEnd, StoredRow};
pub use selection::Selection;
pub use settle::Backlog;
#[doc(hidden)] // for benches
pub use tally::{Tally, batch_memory_bytes};
pub use tiers::{FinestRows, Span, Tier};
pub use verify::{Fault, Verified, verify};
pub use wal::truncate_torn_writes;
#[cfg(fuzzing)]
pub use {merge::assert_merge_associates, tally::assert_replay_adds_up};

use audit::Audit;
use compact::CompactionRequests;
use error::with_context;
use families::Families;
use flush::Flusher;
use health::Health;
use journal::{Journal, JournalMemtable};
use known_keys::KnownKeys;
use pacer::Pacer;
use receipts::ReceiptExpiry;
use retention::RetentionState;
use settle::Settler;
use tallies::Tallies;
use view_budget::ViewBudget;
use visibility::Visibility;

/// An open data directory. Dropping it stops its threads. No data is lost: batches that are not flushed are in the
/// journal. Call [`Store::flush`] first to make the next open fast.
#[derive(Debug)]
pub struct Store {
    inner: Arc<Inner>,
    /// `None`, like the other threads, if the store is open read-only.
    flusher: Option<JoinHandle<()>>,
    compactor: Option<JoinHandle<()>>,
    settler: Option<JoinHandle<()>>,
}

/// State shared by the flusher, the compactor, the settler and running scans. When the last of them ends, the database
/// is closed, and then the directory is unlocked: fields are dropped in this order.
struct Inner {
    db: DB,
    dir: DataDir,
    /// For its statistics.
    #[cfg(test)]
    database_options: Options,
    flows_options: Options,
    settled_options: Options,
    options: StoreOptions,
    /// Held during a commit. Contains the receipt keys of batches whose write failed. Such a write may be in the log
    /// nevertheless; a later write reuses its positions but not its receipts, so the next commit deletes those.
    /// Poisoned, it refuses commits: a thread panicked during one, and its receipts may be stored without its flows.
    commit: Mutex<Vec<Vec<u8>>>,
    /// `std`'s lock, as `commit`'s is, because poison is meant: see [`Inner::tallies`].
    tallies: Mutex<Tallies>,
    visibility: Visibility,
    families: Families,
    /// Changes only with the write lock.
    known_keys: parking_lot::Mutex<KnownKeys>,
    flusher: Flusher,
    pacer: Pacer,
    retention: RetentionState,
    views: ViewBudget,
    compaction_requests: CompactionRequests,
    settler: Settler,
    receipt_expiry: Arc<ReceiptExpiry>,
    journal_memtable: JournalMemtable,
    /// Number of additions that saturated at `u64::MAX`.
    saturated: Arc<AtomicU64>,
    audit: Audit,
    health: Health,
}

impl Inner {
    fn tallies(&self) -> Result<MutexGuard<'_, Tallies>, StoreError> {
        // Poisoned: a thread panicked while it changed the sums, so they may be wrong.
        self.tallies.lock().map_err(|_| StoreError::Closed)
    }

    fn flows(&self) -> Result<&ColumnFamily, StoreError> {
        flows_family(&self.db)
    }

    /// Approximate size on disk of the rows from `first` to `end` (exclusive), without unflushed data.
    fn bytes_on_disk(&self, first: &[u8], end: &[u8]) -> Result<u64, StoreError> {
        let families = [Some(self.flows()?), self.settled()];
        let bytes = families.into_iter().flatten();
        Ok(bytes.map(|family| self.bytes_in(family, first, end)).sum())
    }

    /// Approximate size of the keys from `first` to `end` (exclusive) in the files of one family.
    fn bytes_in(&self, family: &ColumnFamily, first: &[u8], end: &[u8]) -> u64 {
        let range = rocksdb::Range::new(first, end);
        let sizes = self.db.get_approximate_sizes_cf(family, &[range]);
        sizes.iter().sum()
    }

    /// Number of sorted runs in `flows`: a read merges them. Each file in level 0 is one, and each further level.
    fn runs(&self) -> Result<u64, StoreError> {
        let flows = self.flows()?;
        let files = |level| {
            let property = rocksdb::properties::num_files_at_level(level);
            let value = self.db.property_int_value_cf(flows, property);
            Ok(value
                .map_err(with_context("reading a property"))?
                .unwrap_or(0))
        };
        let levels = (1..rocks::LEVELS).map(|level| Ok(files(level)?.min(1)));
        [files(0)].into_iter().chain(levels).sum()
    }

    /// The marker, the last journal position that the sums on disk contain.
    fn marker(&self) -> Result<Position, StoreError> {
        self.visibility.marker(&self.db)
    }

    /// A read-only store cannot flush, so its tally is never full.
    fn tally_bytes_max(&self) -> usize {
        match self.options.tally_bytes_max {
            usize::MAX => usize::MAX,
            bytes => bytes.min(arena::TALLY_BYTES_MAX),
        }
    }

    fn is_full(&self, tally: &Tally) -> bool {
        tally.memory_bytes() >= self.tally_bytes_max()
            || tally.journal_bytes() >= self.options.journal_bytes_max
    }

    fn step(&self, step: Step) {
        if let Some(hook) = &self.options.on_step {
            hook(step);
        }
    }
}

/// See [`Store::is_ingesting`].
const INGESTING_TIME: Duration = Duration::from_secs(1);

fn flows_family(db: &DB) -> Result<&ColumnFamily, StoreError> {
    db.cf_handle(codec::FLOWS).ok_or(StoreError::Closed)
}

/// The last journal position that the sums on disk contain; 0 before the first flush.
fn marker_in(db: &DB) -> Result<Position, StoreError> {
    let value = db
        .get_pinned_cf(flows_family(db)?, codec::MARKER_KEY)
        .map_err(with_context("reading the marker"))?;
    Ok(value.map_or(Ok(Position::ZERO), |value| codec::decode_marker(&value))?)
}

impl Store {
    /// The current rows of `selection` in key order.
    pub fn select(&self, selection: Selection) -> Result<Scan, StoreError> {
        Scan::open(&self.inner, selection)
    }

    /// The current rows of `selection` as several scans, in key order, for as many threads. There are at most `parts`,
    /// and fewer if the rows are few.
    pub fn select_parts(
        &self,
        selection: Selection,
        parts: usize,
    ) -> Result<Vec<Scan>, StoreError> {
        Scan::open_parts(&self.inner, selection, parts)
    }

    /// Flushes everything that was committed before the call, within `time_max`. Then the journal is empty and its
    /// log files are deleted, so the next open is fast and a copy of the directory is small.
    pub fn flush_within(&self, time_max: Duration) -> Result<(), StoreError> {
        self.inner.require_dir()?;
        self.flush_tallies(time_max)?;
        Journal::new(&self.inner.db)?.release_space()
    }

    /// Flushes everything that was committed before the call, within `time_max`.
    pub(super) fn flush_tallies(&self, time_max: Duration) -> Result<(), StoreError> {
        if self.flusher.is_none() {
            return Err(StoreError::ReadOnly);
        }
        let give_up = Instant::now() + time_max;
        let inner = &*self.inner;
        let mut tallies = inner.tallies()?;
        let target = tallies.active().last();
        tallies.flush.error = None;
        while tallies.flushed() < target {
            if let Some(error) = &tallies.flush.error {
                return Err(StoreError::FlushFailed { why: error.clone() });
            }
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(StoreError::FlushFailed {
                    why: format!("it did not finish within {} seconds", time_max.as_secs()),
                });
            }
            // Flush the active tally only if it contains flows that were committed before the call.
            tallies.flush.is_requested = tallies.active().since().is_some();
            inner.flusher.wake();
            tallies = inner.flusher.wait_until_ended(tallies, left)?;
        }
        Ok(())
    }

    /// [`Store::flush_within`] one hour.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.flush_within(Duration::from_secs(3600))
    }

    /// See [`StoreOptions::tally_bytes_max`].
    pub fn tally_bytes_max(&self) -> usize {
        self.inner.tally_bytes_max()
    }

    /// Whether a batch was added within the last second.
    pub fn is_ingesting(&self) -> bool {
        let last = self.inner.tallies().map(|tallies| tallies.last_added());
        last.is_ok_and(|at| at.is_some_and(|at| at.elapsed() < INGESTING_TIME))
    }

    /// Number of additions since open that saturated at `u64::MAX`: in the tally, and each time that a read or a
    /// compaction adds up stored operands.
    pub fn sums_saturated(&self) -> u64 {
        self.inner.saturated.load(Ordering::Relaxed)
    }
}

/// Runs the body of a thread that the service depends on, and aborts the process if it panics. Otherwise requests
/// would wait for that thread forever. The next start recovers everything from the journal.
pub fn abort_on_panic(body: impl FnOnce()) {
    struct Abort;
    impl Drop for Abort {
        fn drop(&mut self) {
            if std::thread::panicking() {
                std::process::abort();
            }
        }
    }
    let _abort = Abort;
    body();
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Ok(mut tallies) = self.inner.tallies.lock() {
            tallies.flush.is_closing = true;
        }
        self.inner.flusher.wake();
        self.inner.compaction_requests.close();
        self.inner.settler.close();
        let join = |thread: Option<JoinHandle<()>>| {
            // The threads log their own errors, and a panic has been printed.
            let _ended = thread.map(JoinHandle::join);
        };
        join(self.flusher.take());
        // Nothing is written any more. A running compaction can be cancelled at any point.
        self.inner.db.cancel_all_background_work(false);
        join(self.compactor.take());
        join(self.settler.take());
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
