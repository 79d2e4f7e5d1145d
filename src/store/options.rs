//! How a store behaves.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::telemetry::Metrics;

/// What an acknowledged batch survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// A crash of the machine: every commit waits for its fsync.
    Fsync,
    /// A crash of the process: the operating system writes in its own time.
    Os,
}

/// A point at which a test can look, or end the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A batch of the journal was replayed into the tally, at open.
    Replayed,
    /// The journal holds a group that the tally does not have yet.
    Journaled,
    /// A flush begins; the tally is frozen.
    Frozen,
    /// The file to ingest is written and synced.
    Written,
    /// The file is ingested, marker included; the journal still holds its batches.
    Ingested,
    /// The journal is trimmed.
    Trimmed,
    /// The files that say that hours are gone are written and synced.
    DropWritten,
    /// They are ingested: the hours are gone, and their files are not deleted yet.
    Dropped,
}

/// See [`StoreOptions::on_step`].
pub type StepHook = Arc<dyn Fn(Step) + Send + Sync>;

/// How a [`Store`] behaves. The defaults are those of `flowtally serve`.
#[derive(Clone)]
pub struct StoreOptions {
    pub durability: Durability,
    /// A tally is frozen when its tables reach this many bytes. While a flush is in progress there
    /// are two, so memory for tallies is bounded by twice this and one group of batches.
    pub tally_bytes_max: usize,
    /// All scans together copy at most this many bytes of rows that are not flushed yet, their order
    /// included. A scan that needs more than all of it runs alone.
    pub view_bytes_max: usize,
    /// RocksDB's cache of index blocks and recently read rows.
    pub block_cache_bytes: usize,
    /// The journal's memtable; up to three of them exist at a time.
    pub memtable_bytes: usize,
    /// A tally is frozen when a restart would have to replay this many bytes for it.
    pub journal_bytes_max: usize,
    /// A tally is frozen when its oldest flow is this old.
    pub flush_interval: Duration,
    /// A commit that finds both tallies full waits this long for a flush before it is refused; so
    /// does a scan that finds no memory for its view.
    pub stall_max: Duration,
    /// How long a batch's idempotency key is remembered.
    pub idempotency_window: Duration,
    /// How long the keys of what is imported from files are remembered.
    pub import_window: Duration,
    /// The journal is elsewhere, and what time it is, is said by it: a second reading, however late, has to come
    /// out as the first.
    pub external_journal: bool,
    /// Disk that receipts may take; the oldest go first.
    pub receipts_bytes_max: u64,
    /// The same of what is imported from files.
    pub import_receipts_bytes_max: u64,
    /// Batches are refused while less than this is free on the disk; `None` is a twentieth of it, at
    /// most 1 GiB, and at least what a flush may need, where that is no more than a quarter of it.
    pub disk_reserve_bytes: Option<u64>,
    /// Hours that are kept before the newest one that has flows; `None` keeps all.
    pub retain_hours: Option<u32>,
    /// Hours count from the epoch, and age from the clock's hour where the newest one with flows is later.
    /// Otherwise hours may be any numbers, and age counts from the newest.
    pub clock_bounds_age: bool,
    /// Where everything is counted.
    pub metrics: Metrics,
    /// Called at each [`Step`], on the thread that takes it. For tests.
    pub on_step: Option<StepHook>,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            durability: Durability::Fsync,
            tally_bytes_max: 32 << 20,
            view_bytes_max: 64 << 20,
            block_cache_bytes: 32 << 20,
            memtable_bytes: 16 << 20,
            journal_bytes_max: 256 << 20,
            flush_interval: Duration::from_secs(10),
            stall_max: Duration::from_secs(10),
            idempotency_window: Duration::from_secs(24 * 3600),
            import_window: Duration::from_secs(90 * 24 * 3600),
            external_journal: false,
            receipts_bytes_max: 256 << 20,
            import_receipts_bytes_max: 256 << 20,
            disk_reserve_bytes: None,
            retain_hours: None,
            clock_bounds_age: false,
            metrics: Metrics::default(),
            on_step: None,
        }
    }
}

impl StoreOptions {
    /// What a flush may take on the disk, until it has let go of what it flushed: the file, and the logs
    /// of the journal that are there meanwhile.
    pub(super) fn flush_bytes(&self) -> u64 {
        (self.tally_bytes_max + 3 * self.memtable_bytes) as u64
    }

    /// For a command that opens a service's directory in between: what the service remembers, and for
    /// how long, is the service's business, so no receipt is dropped.
    pub fn for_offline_command() -> StoreOptions {
        StoreOptions {
            idempotency_window: Duration::MAX,
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
