//! How RocksDB is set up, each setting with its reason.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType,
    DBRecoveryMode, LogLevel, Options, statistics::StatsLevel,
};

use super::receipts::ReceiptExpiry;
use super::{StoreOptions, codec, merge};

const MIB: usize = 1 << 20;

/// L0 files of `flows` at which the flusher waits for compaction to catch up.
pub(super) const L0_FILES_MAX: u64 = 24;

/// Size of the block cache from which on indexes are pinned in it.
const PINS_MIN_BYTES: usize = 16 * MIB;

const RECEIPTS_MEMTABLE_BYTES: usize = 4 * MIB;

pub(super) struct RocksOptions {
    pub(super) database: Options,
    pub(super) flows: Options,
    journal: Options,
    receipts: Options,
    /// Which receipts compaction drops.
    pub(super) expiry: Arc<ReceiptExpiry>,
    /// Counts sums that reached `u64::MAX` in a merge.
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
            journal: journal(&cache, options.memtable_bytes),
            receipts: receipts(&cache, &expiry),
            expiry,
            saturated,
        }
    }

    pub(super) fn families(&self) -> [ColumnFamilyDescriptor; 4] {
        [
            // RocksDB insists on a family of this name; nothing is in it.
            ColumnFamilyDescriptor::new("default", unused()),
            ColumnFamilyDescriptor::new(codec::JOURNAL, self.journal.clone()),
            ColumnFamilyDescriptor::new(codec::RECEIPTS, self.receipts.clone()),
            ColumnFamilyDescriptor::new(codec::FLOWS, self.flows.clone()),
        ]
    }
}

fn database(memtable_bytes: usize) -> Options {
    let mut options = Options::default();
    // A few counters; the timers would cost something.
    options.enable_statistics();
    options.set_statistics_level(StatsLevel::ExceptHistogramOrTimers);
    // A log that ends inside a record ends with a write that was never acknowledged. Any other
    // damage must fail the open; the default mode would quietly drop what comes after it.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_track_and_verify_wals_in_manifest(true);
    // Read at each open, once by ourselves as a whole (`wal.rs`); the default is 1 GiB.
    options.set_max_manifest_file_size(16 * MIB);
    // By default 4 MiB, without which no file could be taken in on a disk that is nearly full.
    options.set_manifest_preallocation_size(64 << 10);
    // The log lives until all that it holds is in files. Receipts are few bytes beside the journal's:
    // without a bound, theirs would keep it for hours.
    options.set_max_total_wal_size(8 * memtable_bytes as u64);
    options.set_max_background_jobs(2);
    // For each file that a compaction reads; by default 2 MiB, of up to `L0_FILES_MAX` and more files.
    options.set_compaction_readahead_size((memtable_bytes / 32).clamp(64 << 10, 256 << 10));
    // Spreads the writeback of large files, so that a commit's fsync does not wait for all of it.
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
    // The first log is made as large on disk as the largest memtable, which by default would be this.
    options.set_write_buffer_size(MIB);
    options
}

fn journal(cache: &Cache, memtable_bytes: usize) -> Options {
    let mut options = Options::default();
    // A flush of the tally deletes what it covered, so by the time a memtable is written out most
    // of it is dead, and is dropped instead. Larger ones make POSTs wait: so does each of their logs
    // when it is deleted, on file systems that discard freed blocks at once (p99 120 to 230 ms with
    // 64 MiB, 37 to 80 with 32, about 38 with 16).
    options.set_write_buffer_size(memtable_bytes);
    options.set_max_write_buffer_number(3);
    // What does get written is dead in seconds: compressing it was an eighth of the whole service's
    // CPU, for nothing.
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
    // A new key costs a look at the filter of each file.
    table.set_bloom_filter(10.0, false);
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    options.set_block_based_table_factory(&table);
    options
}

fn flows(cache: &Cache, cache_bytes: usize, saturated: Arc<AtomicU64>) -> Options {
    let mut options = Options::default();
    merge::install(&mut options, saturated);
    // Everything comes in as ingested files; the memtable stays empty.
    options.set_write_buffer_size(MIB);
    // RocksDB would slow down and stop *all* writes, the journal's too, by the number of these
    // files. The flusher keeps it below `L0_FILES_MAX` by itself.
    options.set_level_zero_slowdown_writes_trigger(4 * L0_FILES_MAX as i32);
    options.set_level_zero_stop_writes_trigger(8 * L0_FILES_MAX as i32);
    // Compaction rewrites whole files: what is next to the newest hours, finished ones included, after
    // every flush. Small files at the level where new data arrives keep that little; further down they
    // double.
    options.set_target_file_size_base(2 * MIB as u64);
    options.set_target_file_size_multiplier(2);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_bottommost_compression_type(DBCompressionType::Zstd);
    options.set_bottommost_compression_options(-14, 1, 0, 0, true);
    let mut table = BlockBasedOptions::default();
    // Reads are scans: large blocks compress better and cost fewer index entries, and there is no
    // point lookup that a filter could help.
    table.set_block_size(32 << 10);
    table.set_index_type(BlockBasedIndexType::BinarySearch);
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    // Where names are long, the index of one file has some hundred KiB; what is pinned may pass the cache's size.
    table.set_pin_l0_filter_and_index_blocks_in_cache(cache_bytes >= PINS_MIN_BYTES);
    table.set_format_version(6);
    options.set_block_based_table_factory(&table);
    options
}
