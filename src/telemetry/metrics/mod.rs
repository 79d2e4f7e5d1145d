//! All metrics, with their names and meanings. Each is updated where the event happens. In Prometheus's terms:
//! counters only increase, gauges are current values, and histograms are of times in seconds.

mod traffic;

pub use traffic::{Traffic, TrafficHour, TrafficPair};

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder, exponential_buckets,
};

/// All metrics of one service. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    all: Arc<AllMetrics>,
}

#[derive(Debug)]
struct AllMetrics {
    registry: Registry,
    /// Held while gauges are updated and written, so that concurrent scrapes each see a consistent state.
    exposition: Mutex<()>,
    http: Http,
    ingest: Ingest,
    store: Store,
    directory: Directory,
    traffic: Traffic,
    cluster: Cluster,
}

/// Metrics of HTTP requests.
#[derive(Debug)]
pub struct Http {
    pub requests: IntCounterVec,
    pub request_seconds: HistogramVec,
    pub rejected: IntCounterVec,
    pub query_rows_read: IntCounter,
    pub connections: IntGauge,
    pub ready: IntGauge,
}

/// Metrics of incoming batches.
#[derive(Debug)]
pub struct Ingest {
    pub flows: IntCounter,
    pub batches: IntCounter,
    pub bytes: IntCounter,
    pub replayed: IntCounter,
    pub expired: IntCounter,
    pub points_rejected: IntCounterVec,
    pub commit_batches: Histogram,
    pub commit_seconds: Histogram,
    pub queued_batches: IntGauge,
    pub body_bytes: IntGauge,
    pub hour_guard_off: IntGauge,
}

/// Metrics of the store.
#[derive(Debug)]
pub struct Store {
    pub journal_write_seconds: Histogram,
    pub journal_syncs: IntCounter,
    pub journal_bytes: IntGauge,
    pub unflushed_seconds: Gauge,
    pub tally_bytes: IntGaugeVec,
    pub tally_bytes_max: IntGauge,
    pub stall_seconds: prometheus::Counter,
    pub pacing_seconds: prometheus::Counter,
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
    pub ledger_bytes: prometheus::GaugeVec,
    pub ledger_difference_flows: IntGauge,
    pub hours_dropped: IntCounter,
}

/// Metrics of the directory of the fleet's addresses.
#[derive(Debug)]
pub struct Directory {
    pub agents: IntGauge,
    pub claims: IntGauge,
    pub conflicts: IntGauge,
}

/// Metrics of a cluster node. Partitions are labels; there are as many as the journal has.
#[derive(Debug)]
pub struct Cluster {
    pub partitions: IntGauge,
    pub position: IntGaugeVec,
    pub lag: IntGaugeVec,
    pub flows_applied: IntCounter,
    pub batches_repeated: IntCounter,
    pub batches_reused: IntCounter,
    pub checkpoint_time: IntGaugeVec,
    pub checkpoint_position: IntGaugeVec,
    pub checkpoint_bytes: IntCounter,
    pub checkpoint_files: IntCounter,
    pub checkpoint_failures: IntCounter,
    pub checkpoint_restores: IntCounter,
}

impl Metrics {
    pub fn http(&self) -> &Http {
        &self.all.http
    }

    pub fn ingest(&self) -> &Ingest {
        &self.all.ingest
    }

    pub fn store(&self) -> &Store {
        &self.all.store
    }

    pub fn directory(&self) -> &Directory {
        &self.all.directory
    }

    pub fn traffic(&self) -> &Traffic {
        &self.all.traffic
    }

    pub fn cluster(&self) -> &Cluster {
        &self.all.cluster
    }

    /// Returns all metrics in Prometheus's text format 0.0.4, after `observe` has updated the gauges.
    ///
    /// # Errors
    /// If the library cannot encode a metric, which is a bug.
    pub fn expose(&self, observe: impl FnOnce()) -> Result<String, prometheus::Error> {
        let _one_at_a_time = self.all.exposition.lock();
        observe();
        TextEncoder::new().encode_to_string(&self.all.registry.gather())
    }
}

/// Raises a counter to `count`.
pub fn raise_to(counter: &IntCounter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}

/// Creates metrics and registers them.
struct Registrar(Registry);

impl Registrar {
    /// An invalid or duplicate name is a bug that every start and every test detects.
    #[expect(clippy::expect_used)]
    fn register<M: Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        let metric = metric.expect("the name and the labels of a metric are valid");
        let registered = self.0.register(Box::new(metric.clone()));
        registered.expect("the name of a metric is its own");
        metric
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, label: &str) -> IntGaugeVec {
        self.register(IntGaugeVec::new(Opts::new(name, help), &[label]))
    }

    fn seconds(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::new(name, help))
    }

    fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(buckets);
        self.register(Histogram::with_opts(options))
    }
}

/// From a quarter of a millisecond to eight seconds.
fn time_buckets() -> Vec<f64> {
    powers_of_two(0.000_25, 16)
}

fn powers_of_two(first: f64, count: usize) -> Vec<f64> {
    // This fails only for invalid arguments; without buckets, the library uses its default ones.
    exponential_buckets(first, 2.0, count).unwrap_or_default()
}

impl Default for AllMetrics {
    fn default() -> AllMetrics {
        let registrar = Registrar(Registry::new());
        let build = registrar.gauges("flowtally_build_info", "Always 1.", "version");
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        #[cfg(target_os = "linux")]
        {
            use prometheus::process_collector::ProcessCollector;
            // Memory, CPU and open files of the process, under Prometheus's usual names.
            let _without_them = registrar.0.register(Box::new(ProcessCollector::for_self()));
        }
        AllMetrics {
            exposition: Mutex::default(),
            http: Http::new(&registrar),
            ingest: Ingest::new(&registrar),
            store: Store::new(&registrar),
            directory: Directory::new(&registrar),
            traffic: registrar.register(Traffic::new()),
            cluster: Cluster::new(&registrar),
            registry: registrar.0,
        }
    }
}

impl Http {
    fn new(registrar: &Registrar) -> Http {
        let seconds = HistogramOpts::new(
            "flowtally_http_request_seconds",
            "Time from the head of a request to the first byte of its response.",
        )
        .buckets(time_buckets());
        Http {
            requests: registrar.counters(
                "flowtally_http_requests_total",
                "Requests with a response.",
                &["method", "path", "status"],
            ),
            request_seconds: registrar.register(HistogramVec::new(seconds, &["method", "path"])),
            rejected: registrar.counters(
                "flowtally_rejected_total",
                "Rejected requests, by problem type.",
                &["reason"],
            ),
            query_rows_read: registrar.counter(
                "flowtally_query_rows_read_total",
                "Stored rows that queries have read.",
            ),
            connections: registrar.gauge("flowtally_http_connections", "Open connections."),
            ready: registrar.gauge("flowtally_ready", "1 while the service accepts flows."),
        }
    }
}

impl Ingest {
    fn new(registrar: &Registrar) -> Ingest {
        Ingest {
            flows: registrar.counter(
                "flowtally_flows_accepted_total",
                "Flows that were acknowledged and counted.",
            ),
            batches: registrar.counter(
                "flowtally_batches_accepted_total",
                "Batches that were acknowledged and counted.",
            ),
            bytes: registrar.counter(
                "flowtally_batch_bytes_total",
                "Bytes of accepted batches as the journal stores them.",
            ),
            replayed: registrar.counter(
                "flowtally_batches_replayed_total",
                "Batches that were repeated under their idempotency key and not counted again.",
            ),
            expired: registrar.counter(
                "flowtally_flows_expired_total",
                "Flows that were too old to keep.",
            ),
            points_rejected: registrar.counters(
                "flowtally_otlp_points_rejected_total",
                "Data points of OpenTelemetry's exports that are not counted as flows, by reason.",
                &["reason"],
            ),
            commit_batches: registrar.histogram(
                "flowtally_commit_batches",
                "Batches per commit.",
                powers_of_two(1.0, 11),
            ),
            commit_seconds: registrar.histogram(
                "flowtally_commit_seconds",
                "Time of a commit: writing the journal and updating the sums in memory.",
                time_buckets(),
            ),
            queued_batches: registrar.gauge(
                "flowtally_queued_batches",
                "Batches that wait for a commit.",
            ),
            body_bytes: registrar.gauge(
                "flowtally_body_bytes",
                "Memory granted to request bodies and their batches.",
            ),
            hour_guard_off: registrar.gauge(
                "flowtally_hour_guard_off",
                "1 if the clock is behind the newest stored hour by more than --hour-ahead-max, so that \
                 every hour is accepted.",
            ),
        }
    }
}

impl Store {
    fn new(registrar: &Registrar) -> Store {
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
            stall_seconds: registrar.register(prometheus::Counter::new(
                "flowtally_stall_seconds_total",
                "Time for which commits waited for a flush.",
            )),
            pacing_seconds: registrar.register(prometheus::Counter::new(
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
                .register(prometheus::GaugeVec::new(ledger_bytes, &["direction"])),
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

impl Directory {
    fn new(registrar: &Registrar) -> Directory {
        Directory {
            agents: registrar.gauge(
                "flowtally_directory_agents",
                "Agents that have claimed addresses in the last two minutes.",
            ),
            claims: registrar.gauge(
                "flowtally_directory_claims",
                "Claims that an application had an address and a port for some time.",
            ),
            conflicts: registrar.gauge(
                "flowtally_directory_conflicts",
                "Addresses and ports that several agents claim for the same time under different names.",
            ),
        }
    }
}

impl Cluster {
    fn new(registrar: &Registrar) -> Cluster {
        Cluster {
            partitions: registrar.gauge(
                "flowtally_partitions",
                "Partitions assigned to this node.",
            ),
            position: registrar.gauges(
                "flowtally_partition_position",
                "Next offset to apply.",
                "partition",
            ),
            lag: registrar.gauges(
                "flowtally_partition_lag_messages",
                "Messages in Kafka that the sums lack.",
                "partition",
            ),
            flows_applied: registrar.counter(
                "flowtally_flows_applied_total",
                "Flows from Kafka that were added to the sums.",
            ),
            batches_repeated: registrar.counter(
                "flowtally_pieces_repeated_total",
                "Parts of batches in Kafka that had been counted before under their key.",
            ),
            batches_reused: registrar.counter(
                "flowtally_pieces_reused_total",
                "Parts of batches in Kafka that were not counted, because their key had been used for \
                 other flows.",
            ),
            checkpoint_time: registrar.gauges(
                "flowtally_checkpoint_time_seconds",
                "When the partition was last known to be fully in a checkpoint, or else when it was assigned to \
                 this node: seconds since the epoch.",
                "partition",
            ),
            checkpoint_position: registrar.gauges(
                "flowtally_checkpoint_position",
                "Offset from which a node that restores the checkpoint continues.",
                "partition",
            ),
            checkpoint_bytes: registrar.counter(
                "flowtally_checkpoint_bytes_total",
                "Bytes uploaded for checkpoints.",
            ),
            checkpoint_files: registrar.counter(
                "flowtally_checkpoint_files_total",
                "Files uploaded for checkpoints.",
            ),
            checkpoint_failures: registrar.counter(
                "flowtally_checkpoint_failures_total",
                "Checkpoints that failed to be created, pruned or restored.",
            ),
            checkpoint_restores: registrar.counter(
                "flowtally_checkpoint_restores_total",
                "Partitions restored from a checkpoint.",
            ),
        }
    }
}

#[cfg(test)]
mod tests;
