//! Gauges of the store. Events are counted where they happen; this module reads the values that must be queried.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rocksdb::properties;

use super::error::{StoreError, with_context};
use super::rocks::RUNS_MAX;
use super::{Backlog, Inner, Recovery, Store, codec};
use crate::telemetry::metrics::{self, raise_to};

impl Store {
    /// Updates the gauges. Does not read the ledger, which may be large.
    pub fn observe(&self) -> Result<(), StoreError> {
        let inner = &self.inner;
        let metrics = inner.options.metrics.store();
        inner.observe_tallies(metrics)?;
        inner.observe_database(metrics)?;
        self.backlog().observe(metrics);
        inner.observe_ledger(metrics)
    }

    /// The flows that were accepted, minus those in the ledger, as they were compared after a flush. Anything but 0 is a
    /// fault. `None` before the first comparison.
    pub fn ledger_difference(&self) -> Option<i64> {
        self.inner.audit.difference()
    }

    /// The work that is left for the settler.
    pub fn backlog(&self) -> Backlog {
        self.inner.settler.backlog()
    }
}

impl Backlog {
    /// Updates the gauges.
    pub fn observe(self, metrics: &metrics::Store) {
        for (gauge, count) in [
            (&metrics.cold_hours, self.cold_hours),
            (&metrics.unsummed_days, self.unsummed_days),
            (&metrics.unsummed_thirty_days, self.unsummed_thirty_days),
            (&metrics.unreadable_hours, self.unreadable_hours),
            (&metrics.unreadable_spans, self.unreadable_spans),
        ] {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
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
        metrics.runs_max.set(RUNS_MAX as i64);
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
        for name in [
            codec::FLOWS,
            codec::SETTLED,
            codec::JOURNAL,
            codec::RECEIPTS,
        ] {
            let bytes = of(name, properties::LIVE_SST_FILES_SIZE)?;
            metrics.file_bytes.with_label_values(&[name]).set(bytes);
        }
        metrics.runs.set(self.runs()? as i64);
        let unsettled = of(codec::FLOWS, properties::LIVE_SST_FILES_SIZE)?;
        metrics.unsettled_bytes.set(unsettled);
        let rows = of(codec::FLOWS, properties::ESTIMATE_NUM_KEYS)?;
        metrics.unsettled_rows.set(rows);
        let pending = of(
            codec::SETTLED,
            properties::ESTIMATE_PENDING_COMPACTION_BYTES,
        )?;
        metrics.compaction_pending_bytes.set(pending);
        let running = of(codec::FLOWS, properties::NUM_RUNNING_COMPACTIONS)?;
        metrics.compactions.set(running);
        let receipts = of(codec::RECEIPTS, properties::ESTIMATE_NUM_KEYS)?;
        metrics.receipts.set(receipts);
        let cache = of(codec::FLOWS, properties::BLOCK_CACHE_USAGE)?;
        metrics.cache_bytes.set(cache);
        let text = properties::CFSTATS_NO_FILE_HISTOGRAM;
        let compacted = [codec::FLOWS, codec::SETTLED].into_iter().map(|name| {
            let text = self.db.property_value_cf(family(name)?, text);
            let text = text.map_err(with_context(DOING))?;
            Ok(text.as_deref().and_then(compacted_bytes).unwrap_or(0))
        });
        let compacted: Result<u64, StoreError> = compacted.sum();
        raise_to(&metrics.compaction_bytes, compacted?);
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
        metrics.ledger_difference_flows.set(difference.unwrap_or(0));
        Ok(())
    }
}

/// The bytes that compaction wrote, in hundredths of a GiB, from a family's statistics. RocksDB has the exact number
/// only if it collects all statistics, which costs ingest 4 %.
fn compacted_bytes(statistics: &str) -> Option<u64> {
    let (_, rest) = statistics.split_once("Cumulative compaction: ")?;
    let (gib, _) = rest.split_once(" GB write")?;
    Some((gib.parse::<f64>().ok()? * f64::from(1 << 30)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreOptions;

    #[test]
    fn the_bytes_of_compaction_are_in_rocksdbs_statistics() {
        let text = "...\nCumulative compaction: 1.50 GB write, 2.00 MB/s write, ...";
        assert_eq!(compacted_bytes(text), Some(3 << 29));
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let inner = &store.inner;
        let flows = inner.flows().unwrap();
        let text = inner
            .db
            .property_value_cf(flows, properties::CFSTATS_NO_FILE_HISTOGRAM);
        let text = text.unwrap().unwrap();
        assert_eq!(compacted_bytes(&text), Some(0), "{text}");
    }
}
