use prometheus::{Counter, Gauge, GaugeVec, Histogram, IntCounter, IntGauge, IntGaugeVec, Opts};

use super::registrar::{Registrar, powers_of_two, time_buckets};

/// Metrics of the store.
#[derive(Debug)]
pub struct Store {
    pub journal_write_seconds: Histogram,
    pub journal_syncs: IntCounter,
    pub journal_bytes: IntGauge,
    pub unflushed_seconds: Gauge,
    pub tally_bytes: IntGaugeVec,
    pub tally_bytes_max: IntGauge,
    pub stall_seconds: Counter,
    pub pacing_seconds: Counter,
    pub unsettled_bytes: IntGauge,
    pub unsettled_rows: IntGauge,
    pub cold_hours: IntGauge,
    pub unsummed_days: IntGauge,
    pub unsummed_thirty_days: IntGauge,
    pub unreadable_hours: IntGauge,
    pub unreadable_spans: IntGauge,
    pub settle_failures: IntCounter,
    pub flush_seconds: Histogram,
    pub flush_rows: IntCounter,
    pub flush_failures: IntCounter,
    pub runs: IntGauge,
    pub runs_max: IntGauge,
    pub file_bytes: IntGaugeVec,
    pub compactions: IntGauge,
    pub compaction_pending_bytes: IntGauge,
    pub compaction_bytes: IntCounter,
    pub cache_bytes: IntGauge,
    pub disk_free_bytes: IntGauge,
    pub disk_reserve_bytes: IntGauge,
    pub receipts: IntGauge,
    pub replay_batches: IntGauge,
    pub replay_flows: IntGauge,
    pub replay_seconds: Gauge,
    pub sums_saturated: IntCounter,
    pub ledger_hours: IntGauge,
    pub ledger_flows: IntGauge,
    pub ledger_bytes: GaugeVec,
    pub ledger_difference_flows: IntGauge,
    pub hours_dropped: IntCounter,
}

impl Store {
    pub(super) fn new(registrar: &Registrar) -> Store {
        let ledger_bytes = Opts::new(
            "flowtally_ledger_bytes",
            "Sums of bytes_tx and bytes_rx over all hours, according to the ledger.",
        );
        Store {
            journal_write_seconds: registrar.histogram(
                "flowtally_journal_write_seconds",
                "Time of a write to the journal, its fsync included.",
                time_buckets(),
            ),
            journal_syncs: registrar
                .counter("flowtally_journal_syncs_total", "Fsyncs of the journal."),
            journal_bytes: registrar.gauge(
                "flowtally_journal_bytes",
                "Bytes of batches in the journal that a restart would replay.",
            ),
            unflushed_seconds: registrar.seconds(
                "flowtally_unflushed_seconds",
                "Age of the oldest unflushed flow.",
            ),
            tally_bytes: registrar.gauges(
                "flowtally_tally_bytes",
                "Memory of unflushed sums: active, and frozen for the flush in progress.",
                "state",
            ),
            tally_bytes_max: registrar.gauge(
                "flowtally_tally_bytes_max",
                "Memory at which sums are flushed.",
            ),
            stall_seconds: registrar.register(Counter::new(
                "flowtally_stall_seconds_total",
                "Time for which commits waited for a flush.",
            )),
            pacing_seconds: registrar.register(Counter::new(
                "flowtally_pacing_seconds_total",
                "Time for which commits were delayed because compaction is behind.",
            )),
            unsettled_bytes: registrar.gauge(
                "flowtally_unsettled_bytes",
                "Bytes on disk of the hours that still grow or are not settled yet.",
            ),
            unsettled_rows: registrar.gauge(
                "flowtally_unsettled_rows",
                "Approximate number of rows on disk that are not settled yet.",
            ),
            cold_hours: registrar.gauge(
                "flowtally_unsettled_entries",
                "Hours that have gone cold and are not settled yet. Up to 63 small ones wait for others.",
            ),
            unsummed_days: registrar.gauge(
                "flowtally_unsummed_day_spans",
                "Days that are over and have settled rows, but no sums yet.",
            ),
            unsummed_thirty_days: registrar.gauge(
                "flowtally_unsummed_thirty_day_spans",
                "Thirty days that are over and have settled rows, but no sums yet.",
            ),
            unreadable_hours: registrar.gauge(
                "flowtally_unreadable_entries",
                "Hours whose rows could not be read since the start. They are not settled.",
            ),
            unreadable_spans: registrar.gauge(
                "flowtally_unreadable_spans",
                "Days and thirty days whose rows could not be read since the start. They get no sums.",
            ),
            settle_failures: registrar.counter(
                "flowtally_settle_failures_total",
                "Times that hours could not be settled, summed or thinned.",
            ),
            flush_seconds: registrar.histogram(
                "flowtally_flush_seconds",
                "Time of a flush.",
                powers_of_two(0.001, 16),
            ),
            flush_rows: registrar.counter("flowtally_flush_rows_total", "Rows that were flushed."),
            flush_failures: registrar
                .counter("flowtally_flush_failures_total", "Flushes that failed."),
            runs: registrar.gauge(
                "flowtally_runs",
                "Sorted runs of rows that are not settled, which reads merge.",
            ),
            runs_max: registrar.gauge(
                "flowtally_runs_max",
                "Sorted runs at which flushes wait for compaction.",
            ),
            file_bytes: registrar.gauges(
                "flowtally_file_bytes",
                "Bytes of the database's files, by what they hold.",
                "family",
            ),
            compactions: registrar.gauge("flowtally_compactions", "Running compactions."),
            compaction_pending_bytes: registrar.gauge(
                "flowtally_compaction_pending_bytes",
                "Estimated bytes that compaction of settled rows has to rewrite.",
            ),
            compaction_bytes: registrar.counter(
                "flowtally_compaction_bytes_total",
                "Bytes that compaction wrote.",
            ),
            cache_bytes: registrar.gauge(
                "flowtally_cache_bytes",
                "Memory of the database's block cache.",
            ),
            disk_free_bytes: registrar.gauge(
                "flowtally_disk_free_bytes",
                "Free space on the disk of the data directory.",
            ),
            disk_reserve_bytes: registrar.gauge(
                "flowtally_disk_reserve_bytes",
                "Free space below which batches are refused.",
            ),
            receipts: registrar.gauge(
                "flowtally_receipts",
                "Estimated number of stored idempotency keys and notes.",
            ),
            replay_batches: registrar
                .gauge("flowtally_replay_batches", "Batches replayed at start."),
            replay_flows: registrar.gauge("flowtally_replay_flows", "Flows replayed at start."),
            replay_seconds: registrar
                .seconds("flowtally_replay_seconds", "Time of the replay at start."),
            sums_saturated: registrar.counter(
                "flowtally_sums_stopped_total",
                "Additions that saturated at 2^64-1.",
            ),
            ledger_hours: registrar.gauge("flowtally_ledger_entries", "Hours that have flows."),
            ledger_flows: registrar.gauge(
                "flowtally_ledger_flows",
                "Flows of all hours, according to the ledger.",
            ),
            ledger_bytes: registrar
                .register(GaugeVec::new(ledger_bytes, &["direction"])),
            ledger_difference_flows: registrar.gauge(
                "flowtally_ledger_difference_flows",
                "Flows in the ledger at start, plus those accepted since, minus those dropped, \
                 minus those in the ledger, compared after flushes. Anything but 0 is a fault.",
            ),
            hours_dropped: registrar.counter(
                "flowtally_ledger_entries_dropped_total",
                "Hours that were dropped by age or on request.",
            ),
        }
    }
}
