//! The largest pairs of applications of one hour, as metrics.
//!
//! They are not in one of the library's vectors: these tell series apart by a hash over all label values without
//! separators, so the pairs (`ab`, `c`) and (`a`, `bc`) would be one. Senders choose these names.

use std::collections::HashMap;
use std::sync::Arc;

use flow::{Counters, Hour};
use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Gauge, LabelPair, Metric, MetricFamily, MetricType};

/// Metrics of the traffic of an hour. There are none until [`Traffic::set`]. Clones share them.
#[derive(Clone, Debug)]
pub struct Traffic {
    shown: Arc<Mutex<Option<TrafficHour>>>,
    hour: Desc,
    bytes: Desc,
    other: Desc,
}

/// The traffic of an hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrafficHour {
    pub hour: Hour,
    /// Rows with different names.
    pub pairs: Vec<TrafficPair>,
    /// The sums of all other rows of the hour.
    pub other: Counters,
}

/// A row of the hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrafficPair {
    pub src_app: String,
    pub dest_app: String,
    pub vpc_id: String,
    pub counters: Counters,
}

impl Traffic {
    /// # Errors
    /// If a name is invalid, which is a bug.
    pub(super) fn new() -> prometheus::Result<Traffic> {
        let describe = |name: &str, help: &str, labels: &[&str]| {
            let labels = labels.iter().map(|label| (*label).to_owned()).collect();
            Desc::new(name.into(), help.into(), labels, HashMap::new())
        };
        Ok(Traffic {
            shown: Arc::default(),
            hour: describe(
                "flowtally_traffic_hour",
                "The hour of flowtally_traffic_hour_bytes: the newest complete one that has flows.",
                &[],
            )?,
            bytes: describe(
                "flowtally_traffic_hour_bytes",
                "Bytes of the pairs of applications with the most bytes in the hour (--traffic-metrics).",
                &["src_app", "dest_app", "vpc_id", "direction"],
            )?,
            other: describe(
                "flowtally_traffic_hour_other_bytes",
                "Bytes of all other pairs of applications in the hour.",
                &["direction"],
            )?,
        })
    }

    /// Replaces the hour that is shown; with `None`, there are no such metrics.
    pub fn set(&self, hour: Option<TrafficHour>) {
        *self.shown.lock() = hour;
    }
}

impl Collector for Traffic {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.hour, &self.bytes, &self.other]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let shown = self.shown.lock();
        let Some(shown) = &*shown else {
            return Vec::new();
        };
        let of_pairs = shown.pairs.iter().flat_map(|pair| {
            let names = [&pair.src_app, &pair.dest_app, &pair.vpc_id];
            let [src_app, dest_app, vpc_id] = names.map(String::as_str);
            by_direction(pair.counters).map(|(direction, bytes)| {
                gauge(&self.bytes, &[src_app, dest_app, vpc_id, direction], bytes)
            })
        });
        let of_others = by_direction(shown.other)
            .map(|(direction, bytes)| gauge(&self.other, &[direction], bytes));
        let hour = gauge(&self.hour, &[], f64::from(shown.hour.get()));
        vec![
            family(&self.hour, vec![hour]),
            family(&self.bytes, of_pairs.collect()),
            family(&self.other, of_others.into()),
        ]
    }
}

fn by_direction(counters: Counters) -> [(&'static str, f64); 2] {
    [("tx", counters.tx as f64), ("rx", counters.rx as f64)]
}

/// A value with these values of the labels of `description`.
fn gauge(description: &Desc, labels: &[&str], value: f64) -> Metric {
    let labels = description.variable_labels.iter().zip(labels);
    let labels = labels.map(|(name, value)| {
        let mut label = LabelPair::default();
        label.set_name(name.clone());
        label.set_value((*value).to_owned());
        label
    });
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    let mut metric = Metric::from_label(labels.collect());
    metric.set_gauge(gauge);
    metric
}

fn family(description: &Desc, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(description.fq_name.clone());
    family.set_help(description.help.clone());
    family.set_field_type(MetricType::GAUGE);
    family.set_metric(metrics);
    family
}
