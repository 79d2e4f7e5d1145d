//! Gauges of the store. Events are counted where they happen; this module reads the values that must be queried.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rocksdb::properties;
use rocksdb::statistics::Ticker;

use super::error::{StoreError, with_context};
use super::rocks::L0_FILES_MAX;
use super::{Inner, Recovery, Store, codec};
use crate::telemetry::metrics::{self, raise_to};

impl Store {
    /// Updates the gauges. Does not read the ledger, which may be large.
    pub fn observe(&self) -> Result<(), StoreError> {
        let inner = &self.inner;
        let metrics = inner.options.metrics.store();
        inner.observe_tallies(metrics)?;
        inner.observe_database(metrics)?;
        inner.observe_ledger(metrics)
    }
}

impl Inner {
    pub(super) fn record_recovery(&self, recovery: &Recovery) {
        let metrics = self.options.metrics.store();
        metrics.replay_batches.set(recovery.batches as i64);
        metrics.replay_flows.set(recovery.flows as i64);
        metrics.replay_seconds.set(recovery.time.as_secs_f64());
        metrics
            .tally_bytes_max
            .set(self.options.tally_bytes_max as i64);
        metrics.level0_files_max.set(L0_FILES_MAX as i64);
    }

    fn observe_tallies(&self, metrics: &metrics::Store) -> Result<(), StoreError> {
        let tallies = self.tallies()?;
        let (active, frozen) = (tallies.active(), tallies.frozen());
        let both = || tallies.both();
        let since = both().filter_map(|tally| tally.since()).min();
        let age = since.map_or(0.0, |since| since.elapsed().as_secs_f64());
        metrics.unflushed_seconds.set(age);
        let journal_bytes: usize = both().map(|tally| tally.journal_bytes()).sum();
        metrics.journal_bytes.set(journal_bytes as i64);
        let memory = [
            ("active", active.memory_bytes()),
            ("frozen", frozen.map_or(0, |tally| tally.memory_bytes())),
        ];
        for (state, bytes) in memory {
            let gauge = metrics.tally_bytes.with_label_values(&[state]);
            gauge.set(bytes as i64);
        }
        Ok(())
    }

    fn observe_database(&self, metrics: &metrics::Store) -> Result<(), StoreError> {
        const DOING: &str = "reading a property";
        let family = |name| self.db.cf_handle(name).ok_or(StoreError::Closed);
        let of = |name, property: &properties::PropName| {
            let value = self.db.property_int_value_cf(family(name)?, property);
            Ok::<_, StoreError>(value.map_err(with_context(DOING))?.unwrap_or(0) as i64)
        };
        for name in [codec::FLOWS, codec::JOURNAL, codec::RECEIPTS] {
            let bytes = of(name, properties::LIVE_SST_FILES_SIZE)?;
            metrics.file_bytes.with_label_values(&[name]).set(bytes);
        }
        let level0 = properties::num_files_at_level(0);
        metrics.level0_files.set(of(codec::FLOWS, &level0)?);
        let pending = of(codec::FLOWS, properties::ESTIMATE_PENDING_COMPACTION_BYTES)?;
        metrics.compaction_pending_bytes.set(pending);
        let running = of(codec::FLOWS, properties::NUM_RUNNING_COMPACTIONS)?;
        metrics.compactions.set(running);
        let receipts = of(codec::RECEIPTS, properties::ESTIMATE_NUM_KEYS)?;
        metrics.receipts.set(receipts);
        let cache = of(codec::FLOWS, properties::BLOCK_CACHE_USAGE)?;
        metrics.cache_bytes.set(cache);

        let ticker = |ticker| self.database_options.get_ticker_count(ticker);
        raise_to(&metrics.journal_syncs, ticker(Ticker::WalFileSynced));
        raise_to(&metrics.compaction_bytes, ticker(Ticker::CompactWriteBytes));
        raise_to(
            &metrics.sums_saturated,
            self.saturated.load(Ordering::Relaxed),
        );
        let (free, reserve) = self.health.free_and_reserve();
        metrics.disk_free_bytes.set(free as i64);
        metrics.disk_reserve_bytes.set(reserve as i64);
        Ok(())
    }

    fn observe_ledger(self: &Arc<Inner>, metrics: &metrics::Store) -> Result<(), StoreError> {
        let ledger = self.ledger_counts()?;
        let all = ledger.totals;
        metrics.ledger_hours.set(ledger.hours as i64);
        metrics.ledger_flows.set(all.flows as i64);
        for (direction, bytes) in [("tx", all.tx), ("rx", all.rx)] {
            let gauge = metrics.ledger_bytes.with_label_values(&[direction]);
            gauge.set(bytes as f64);
        }
        let difference = self.audit.difference();
        metrics.ledger_difference_flows.set(difference);
        Ok(())
    }
}
