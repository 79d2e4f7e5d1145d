//! All metrics, with their names and meanings. Each is updated where the event happens. In Prometheus's terms:
//! counters only increase, gauges are current values, and histograms are of times in seconds.

mod registrar;
mod store;
mod traffic;

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Registry, TextEncoder,
};
use registrar::{Registrar, powers_of_two, time_buckets};
pub use store::Store;
pub use traffic::{Traffic, TrafficHour, TrafficPair};

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
