use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, exponential_buckets,
};

/// Creates metrics and registers them.
pub(super) struct Registrar(pub(super) Registry);

impl Registrar {
    /// An invalid or duplicate name is a bug that every start and every test detects.
    #[expect(clippy::expect_used)]
    pub(super) fn register<M: Collector + Clone + 'static>(
        &self,
        metric: prometheus::Result<M>,
    ) -> M {
        let metric = metric.expect("the name and the labels of a metric are valid");
        let registered = self.0.register(Box::new(metric.clone()));
        registered.expect("the name of a metric is its own");
        metric
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help))
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help))
    }

    pub(super) fn gauges(&self, name: &str, help: &str, label: &str) -> IntGaugeVec {
        self.register(IntGaugeVec::new(Opts::new(name, help), &[label]))
    }

    pub(super) fn seconds(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::new(name, help))
    }

    pub(super) fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(buckets);
        self.register(Histogram::with_opts(options))
    }
}

/// From a quarter of a millisecond to eight seconds.
pub(super) fn time_buckets() -> Vec<f64> {
    powers_of_two(0.000_25, 16)
}

pub(super) fn powers_of_two(first: f64, count: usize) -> Vec<f64> {
    // This fails only for invalid arguments; without buckets, the library uses its default ones.
    exponential_buckets(first, 2.0, count).unwrap_or_default()
}
