//! RocksDB options, each with its reason.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompactionStyle,
    DBCompressionType, DBRecoveryMode, LogLevel, Options, UniversalCompactOptions,
    UniversalCompactionStopStyle,
};

use super::receipts::ReceiptExpiry;
use super::{StoreOptions, codec, merge};

const MIB: usize = 1 << 20;

/// Number of runs of `flows` that are merged at a time. A larger number means fewer rewrites, and slower reads of hours
/// that still grow: `docs/internals/decisions/universal-compaction.md`.
const RUNS_MERGED: i32 = 24;
/// Number of runs of `flows` at which RocksDB merges them even if their sizes differ.
pub(super) const RUNS_MANY: u64 = 48;
/// Number of runs of `flows` at which the flusher waits for compaction.
pub(super) const RUNS_MAX: u64 = 96;

/// Number of levels of `flows`. Each run that compaction writes is in a level of its own, above those of older runs, or a
/// single file of level 0 if there is none left. The files of a level contain few hours each, and are deleted without being
/// read when these are settled; those of level 0 have to be merged.
pub(super) const LEVELS: usize = 64;

/// Size of a file of compacted rows. Files that contain only hours that are gone are deleted without being read.
const FILE_BYTES: usize = 32 * MIB;

/// Minimum size of the block cache for pinning index blocks in it.
const PINS_MIN_BYTES: usize = 16 * MIB;

const RECEIPTS_MEMTABLE_BYTES: usize = 4 * MIB;

pub(super) struct RocksOptions {
    pub(super) database: Options,
    pub(super) flows: Options,
    pub(super) settled: Options,
    journal: Options,
    receipts: Options,
    /// The rules by which compaction drops receipts.
    pub(super) expiry: Arc<ReceiptExpiry>,
    /// Number of additions that saturated at `u64::MAX` in merges.
    pub(super) saturated: Arc<AtomicU64>,
}

impl RocksOptions {
    pub(super) fn new(options: &StoreOptions) -> RocksOptions {
        let cache = Cache::new_lru_cache(options.block_cache_bytes);
        let expiry = Arc::new(ReceiptExpiry::new(options));
        let saturated = Arc::new(AtomicU64::new(0));
        RocksOptions {
            database: database(options.memtable_bytes),
            flows: flows(&cache, options.block_cache_bytes, saturated.clone()),
            settled: settled(&cache, options.block_cache_bytes, saturated.clone()),
            journal: journal(&cache, options.memtable_bytes),
            receipts: receipts(&cache, &expiry),
            expiry,
            saturated,
        }
    }

    pub(super) fn families(&self) -> Vec<ColumnFamilyDescriptor> {
        vec![
            // RocksDB requires a family of this name; it is empty.
            ColumnFamilyDescriptor::new("default", unused()),
            ColumnFamilyDescriptor::new(codec::JOURNAL, self.journal.clone()),
            ColumnFamilyDescriptor::new(codec::RECEIPTS, self.receipts.clone()),
            ColumnFamilyDescriptor::new(codec::FLOWS, self.flows.clone()),
            ColumnFamilyDescriptor::new(codec::SETTLED, self.settled.clone()),
        ]
    }
}

/// Sets what the binding has no function for. Call this after each open.
pub(super) fn set_dynamic_options(db: &DB) -> Result<(), rocksdb::Error> {
    let flows = db.cf_handle(codec::FLOWS);
    // RocksDB merges only those runs that are too many, and at least `RUNS_MERGED`.
    let runs_kept = RUNS_MANY - RUNS_MERGED as u64 + 1;
    let value = format!("{{max_read_amp={runs_kept};}}");
    flows.map_or(Ok(()), |flows| {
        db.set_options_cf(flows, &[("compaction_options_universal", &value)])
    })
}

fn database(memtable_bytes: usize) -> Options {
    let mut options = Options::default();
    // Statistics read the clock twice a merged row, whatever their level: 4 % of ingest's CPU.
    if cfg!(test) {
        options.enable_statistics();
    }
    // A log that ends inside a record ends with a write that was never acknowledged. Any other damage must fail the
    // open; the default mode would silently drop everything after it.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_track_and_verify_wals_in_manifest(true);
    // Each open reads it, and `wal.rs` reads it completely; the default is 1 GiB.
    options.set_max_manifest_file_size(16 * MIB);
    // The default is 4 MiB; with less free space than that, no file could be ingested.
    options.set_manifest_preallocation_size(64 << 10);
    // A log is kept until all its data is in files. Receipts are small beside the journal; without this bound, their
    // memtable would keep logs for hours.
    options.set_max_total_wal_size(8 * memtable_bytes as u64);
    // A large compaction must not hold up small ones: with one thread, runs pile up behind it.
    options.set_max_background_jobs(4);
    // Memory per input file of a compaction. The default is 2 MiB, for up to `RUNS_MANY` files and more.
    options.set_compaction_readahead_size((memtable_bytes / 32).clamp(64 << 10, 128 << 10));
    // Spread the writeback of large files, so that the fsync of a commit does not wait for all of it.
    options.set_bytes_per_sync(MIB as u64);
    options.set_max_open_files(512);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(16 * MIB);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

fn unused() -> Options {
    let mut options = Options::default();
    // RocksDB preallocates the first log by the largest memtable, which would be this one by default.
    options.set_write_buffer_size(MIB);
    options
}

fn journal(cache: &Cache, memtable_bytes: usize) -> Options {
    let mut options = Options::default();
    // A flush of the tally deletes the batches that it covers, so when a memtable is flushed, most of it is obsolete
    // and is dropped. Larger memtables make POSTs wait: so does the deletion of each of their logs on file systems that
    // discard freed blocks immediately (p99 120 to 230 ms with 64 MiB, 37 to 80 with 32, about 38 with 16).
    options.set_write_buffer_size(memtable_bytes);
    options.set_max_write_buffer_number(3);
    // Below jemalloc's `oversize_threshold` (`.cargo/config.toml`): the blocks of a memtable then stay mapped for the next
    // one. With the default of 1 MiB, each is unmapped at once; its page faults took a few percent of ingest's CPU.
    options.set_arena_block_size(128 << 10);
    // Entries are obsolete within seconds; compressing them took an eighth of the service's CPU.
    options.set_compression_type(DBCompressionType::None);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    options.set_block_based_table_factory(&table);
    options
}

fn receipts(cache: &Cache, expiry: &Arc<ReceiptExpiry>) -> Options {
    let mut options = Options::default();
    expiry.install(&mut options);
    options.set_write_buffer_size(RECEIPTS_MEMTABLE_BYTES);
    // Keys are mostly random.
    options.set_compression_type(DBCompressionType::None);
    let mut table = BlockBasedOptions::default();
    // A new key is looked up in the filter of each file.
    table.set_bloom_filter(10.0, false);
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    options.set_block_based_table_factory(&table);
    options
}

/// Rows of hours that still grow, the ledger and the marker.
fn flows(cache: &Cache, cache_bytes: usize, saturated: Arc<AtomicU64>) -> Options {
    let mut options = rows(cache, cache_bytes, saturated);
    // Merges runs of similar size, many at a time, so that each row is rewritten once or twice while its hour grows.
    // Leveled compaction, RocksDB's default, rewrote it about five times, and then everything stopped.
    options.set_compaction_style(DBCompactionStyle::Universal);
    options.set_num_levels(LEVELS as i32);
    let mut universal = UniversalCompactOptions::default();
    universal.set_min_merge_width(RUNS_MERGED);
    universal.set_max_merge_width(RUNS_MANY as i32);
    // Sizes within a factor of two are similar.
    universal.set_size_ratio(100);
    universal.set_stop_style(UniversalCompactionStopStyle::Similar);
    // Rows are rarely overwritten: merging everything would free little space.
    universal.set_max_size_amplification_percent(i32::MAX);
    options.set_universal_compaction_options(&universal);
    options.set_level_zero_file_num_compaction_trigger(RUNS_MERGED);
    // At these thresholds RocksDB would slow down and stop *all* writes, including the journal's. The flusher keeps
    // the number of runs below `RUNS_MAX` by itself.
    options.set_level_zero_slowdown_writes_trigger(4 * RUNS_MAX as i32);
    options.set_level_zero_stop_writes_trigger(8 * RUNS_MAX as i32);
    // Everything here is rewritten soon.
    options.set_compression_type(DBCompressionType::Lz4);
    options
}

/// Rows of settled hours. They are ingested in the order of their hours, so compaction has nothing to do, except for
/// late flows.
fn settled(cache: &Cache, cache_bytes: usize, saturated: Arc<AtomicU64>) -> Options {
    let mut options = rows(cache, cache_bytes, saturated);
    // As above: compaction must not stop the journal's writes.
    options.set_level_zero_slowdown_writes_trigger(4 * RUNS_MAX as i32);
    options.set_level_zero_stop_writes_trigger(8 * RUNS_MAX as i32);
    options.set_soft_pending_compaction_bytes_limit(0);
    options.set_hard_pending_compaction_bytes_limit(0);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_bottommost_compression_type(DBCompressionType::Zstd);
    options.set_bottommost_compression_options(-14, 1, 0, 0, true);
    options
}

/// What both families of rows have in common.
fn rows(cache: &Cache, cache_bytes: usize, saturated: Arc<AtomicU64>) -> Options {
    let mut options = Options::default();
    merge::install(&mut options, saturated);
    // All data is ingested as files; the memtable stays empty.
    options.set_write_buffer_size(MIB);
    options.set_target_file_size_base(FILE_BYTES as u64);
    let mut table = BlockBasedOptions::default();
    // Reads are scans: large blocks compress better and need fewer index entries, and there are no point lookups that
    // a filter could help. But each scan holds a block of each run.
    table.set_block_size(16 << 10);
    table.set_index_type(BlockBasedIndexType::BinarySearch);
    // An index key has the beginning that tells two blocks apart, a KiB of it with long names. Store what neighbours have
    // in common once: files end by their compressed size, so the index of one could need tens of MiB.
    table.set_index_block_restart_interval(16);
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    // With long names, the index of one file takes some hundred KiB; pinned blocks may exceed the size of the cache.
    table.set_pin_l0_filter_and_index_blocks_in_cache(cache_bytes >= PINS_MIN_BYTES);
    table.set_format_version(6);
    options.set_block_based_table_factory(&table);
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Selection, Store, StoreOptions};
    use flow::{BatchBuilder, Counters, Hour};

    /// Names of a KiB compress well, so a file of them has millions of rows, whose index is in memory while it is read.
    #[test]
    fn an_index_does_not_repeat_what_names_have_in_common() {
        let dir = tempfile::tempdir().unwrap();
        // Data is not cached, since the hour is much larger.
        let options = StoreOptions {
            block_cache_bytes: 512 << 10,
            ..StoreOptions::default()
        };
        let (store, _) = Store::open(dir.path(), options).unwrap();
        let mut batch = BatchBuilder::with_capacity(0);
        let common = "x".repeat(984);
        for n in 0..40_000 {
            let name = format!("{common}{n:016}");
            let names = [name.as_bytes(), b"d", b"v"];
            batch.push(Hour::FIRST, names, Counters { tx: 1, rx: 2 });
        }
        store.commit(vec![batch.finish()]).unwrap();
        store.flush().unwrap();
        let mut rows = store.select(Selection::hour(Hour::FIRST)).unwrap();
        assert!(rows.next().unwrap().is_some());
        let db = &store.inner.db;
        let flows = db.cf_handle(codec::FLOWS).unwrap();
        let cached = db.property_int_value_cf(flows, "rocksdb.block-cache-usage");
        let cached = cached.unwrap().unwrap();
        // The index has more than 200 blocks of 16 KiB.
        assert!((10_000..100_000).contains(&cached), "{cached}");
        drop(rows);
    }
}
