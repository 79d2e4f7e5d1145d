//! Options of a store.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::RetentionPeriods;
use crate::telemetry::Metrics;

/// The failures that an acknowledged batch survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// A crash of the machine: every commit waits for its fsync.
    Fsync,
    /// A crash of the process: the operating system decides when to write to disk.
    Os,
}

/// A failpoint: tests observe it, or end the process there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A batch of the journal was replayed into the tally, at open.
    Replayed,
    /// The group is in the journal, but not in the tally yet.
    Journaled,
    /// A flush starts; the tally is frozen.
    Frozen,
    /// The file to ingest is written and synced.
    Written,
    /// The file, including the marker, is ingested; the journal still has its batches.
    Ingested,
    /// The journal is trimmed.
    Trimmed,
    /// The files that delete hours are written and synced.
    DropWritten,
    /// They are ingested: the hours are deleted, but their settled rows and their files still exist.
    Dropped,
    /// The files with the rows of cold hours are written and synced; flows may still come for these hours.
    SettleWritten,
    /// They are ingested; the rows are still in `flows` too.
    Settled,
    /// The rows are deleted from `flows`.
    Moved,
    /// The files with the sums of a span are written and synced.
    SpanWritten,
    /// They are ingested.
    SpanSummed,
    /// Files that change which spans have rows are ingested; readers do not see that yet.
    SpansIngested,
    /// The files that remove rows which are kept in spans are written and synced.
    ThinWritten,
    /// They are ingested.
    Thinned,
}

/// See [`StoreOptions::on_step`].
pub type StepHook = Arc<dyn Fn(Step) + Send + Sync>;

/// Options of a [`Store`]. The defaults are those of `flowtally serve`.
#[derive(Clone)]
pub struct StoreOptions {
    pub durability: Durability,
    /// A tally is frozen when its tables reach this size. During a flush there are two tallies, so their memory is
    /// bounded by twice this plus one group of batches.
    pub tally_bytes_max: usize,
    /// Memory of the filters that know the keys of hours that still grow.
    pub known_keys_bytes: usize,
    /// Upper bound of the unflushed rows that all scans together copy, including their sort order. A scan that needs
    /// more runs alone.
    pub view_bytes_max: usize,
    /// RocksDB's cache of index blocks and recently read rows.
    pub block_cache_bytes: usize,
    /// Size of the journal's memtable; up to three of them exist at a time.
    pub memtable_bytes: usize,
    /// A tally is frozen when a restart would replay this many bytes for it.
    pub journal_bytes_max: usize,
    /// A tally is frozen when its oldest flow is this old.
    pub flush_interval: Duration,
    /// An hour is settled when a later one has flows and none came for it for this long.
    pub cold_after: Duration,
    /// Maximum wait of a commit for a flush if both tallies are full, and of a scan for memory for its view. After it,
    /// they are refused.
    pub stall_max: Duration,
    /// How long a batch's idempotency key is remembered.
    pub idempotency_window: Duration,
    /// How long a batch is remembered by its content, for senders that ask for it.
    pub content_window: Duration,
    /// How long the keys of imported files are remembered.
    pub import_window: Duration,
    /// The journal is external (Kafka), and time is read from it instead of the clock: a second read, however late,
    /// must produce the same sums.
    pub external_journal: bool,
    /// Upper bound of receipts on disk; the oldest are dropped first.
    pub receipts_bytes_max: u64,
    /// The same bound for receipts of imported files.
    pub import_receipts_bytes_max: u64,
    /// Batches are refused while less than this is free on the disk. `None` is a twentieth of the disk, at most 1
    /// GiB, but at least what a flush may need if that is at most a quarter of the disk.
    pub disk_reserve_bytes: Option<u64>,
    /// How long rows of hours, and sums of spans, are kept.
    pub retention: RetentionPeriods,
    /// Hours count from the epoch, so age counts from the clock's hour if the newest hour with flows is later. If
    /// false, hours may be any numbers, and age counts from the newest.
    pub clock_bounds_age: bool,
    /// The metrics to update.
    pub metrics: Metrics,
    /// Called at each [`Step`], on the thread that reaches it. For tests.
    pub on_step: Option<StepHook>,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            durability: Durability::Fsync,
            tally_bytes_max: 32 << 20,
            known_keys_bytes: 32 << 20,
            view_bytes_max: 64 << 20,
            block_cache_bytes: 32 << 20,
            memtable_bytes: 16 << 20,
            journal_bytes_max: 256 << 20,
            flush_interval: Duration::from_secs(10),
            cold_after: Duration::from_secs(60),
            stall_max: Duration::from_secs(10),
            idempotency_window: Duration::from_secs(24 * 3600),
            content_window: Duration::from_secs(60),
            import_window: Duration::from_secs(90 * 24 * 3600),
            external_journal: false,
            receipts_bytes_max: 256 << 20,
            import_receipts_bytes_max: 256 << 20,
            disk_reserve_bytes: None,
            retention: RetentionPeriods::default(),
            clock_bounds_age: false,
            metrics: Metrics::default(),
            on_step: None,
        }
    }
}

impl StoreOptions {
    /// Disk space that a flush may need until it has trimmed the journal: its file, and the journal's logs meanwhile.
    pub(super) fn flush_bytes(&self) -> u64 {
        (self.tally_bytes_max + 3 * self.memtable_bytes) as u64
    }

    /// For a command that opens a service's directory while the service is stopped. It drops no receipt, since it
    /// does not know the service's windows.
    pub fn for_offline_command() -> StoreOptions {
        StoreOptions {
            idempotency_window: Duration::MAX,
            content_window: Duration::MAX,
            import_window: Duration::MAX,
            receipts_bytes_max: u64::MAX,
            import_receipts_bytes_max: u64::MAX,
            ..StoreOptions::default()
        }
    }
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreOptions")
            .field("durability", &self.durability)
            .field("tally_bytes_max", &self.tally_bytes_max)
            .field("view_bytes_max", &self.view_bytes_max)
            .field("block_cache_bytes", &self.block_cache_bytes)
            .field("memtable_bytes", &self.memtable_bytes)
            .field("journal_bytes_max", &self.journal_bytes_max)
            .field("flush_interval", &self.flush_interval)
            .field("stall_max", &self.stall_max)
            .finish_non_exhaustive()
    }
}
