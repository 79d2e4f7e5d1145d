//! Finds the flows of an export: the data points of the metrics of network flows that OpenTelemetry's eBPF
//! instrumentation (OBI) and Grafana Beyla send.
//!
//! A data point has the bytes that were sent from one end (`src`) to another (`dst`) in an interval. Its attribute
//! `direction` is `request` if the sender of the bytes has opened the connection, and `response` otherwise. A response
//! is counted as bytes that the end that has opened the connection received, so that both directions of a conversation
//! are one row.

use std::borrow::Cow;

use super::ExportError;
use super::node::{Field, Node, Read};
use super::rejected::{Reason, Rejected};
use crate::{Counters, Hour, NAME_BYTES_MAX};

/// The metrics of flows. The collector's receiver for Prometheus appends `_total` to the name, and replaces dots by
/// underscores in names and in attributes.
const METRICS: [&str; 2] = ["obi.network.flow.bytes", "beyla.network.flow.bytes"];

/// The attributes that name the source, the destination and the VPC, the first that is not empty of each. An attribute
/// of the data point or of its resource.
pub(super) const NAMES: [&[&str]; 3] = [
    &["k8s.src.owner.name", "src.name", "src.cidr", "src.address"],
    &["k8s.dst.owner.name", "dst.name", "dst.cidr", "dst.address"],
    &["vpc.id", "k8s.cluster.name"],
];
const DIRECTION: &str = "direction";
const RESPONSE: &str = "response";

const RESOURCE_METRICS: Field = field(1, "resourceMetrics");
const RESOURCE: Field = field(1, "resource");
const RESOURCE_ATTRIBUTES: Field = field(1, "attributes");
const SCOPE_METRICS: Field = field(2, "scopeMetrics");
const METRIC: Field = field(2, "metrics");
const METRIC_NAME: Field = field(1, "name");
/// The data of a metric, by its kind. All kinds have their data points in the field 1.
const DATA: [Field; 5] = [
    field(7, "sum"),
    field(5, "gauge"),
    field(9, "histogram"),
    field(10, "exponentialHistogram"),
    field(11, "summary"),
];
/// The index of sums in [`DATA`].
const SUM: usize = 0;
const DATA_POINTS: Field = field(1, "dataPoints");
const TEMPORALITY: Field = field(2, "aggregationTemporality");
/// `AGGREGATION_TEMPORALITY_DELTA` and `AGGREGATION_TEMPORALITY_CUMULATIVE`.
const DELTA: u64 = 1;
const CUMULATIVE: u64 = 2;
/// What is read of a data point, see [`Walk::point`].
const POINT: [Field; 5] = [
    field(7, "attributes"),
    field(3, "timeUnixNano"),
    field(6, "asInt"),
    field(4, "asDouble"),
    field(8, "flags"),
];
/// The flag of a data point without a value.
const NO_RECORDED_VALUE: u64 = 1;
const ATTRIBUTE: [Field; 2] = [field(1, "key"), field(2, "value")];
const STRING_VALUE: Field = field(1, "stringValue");

const NANOS_PER_HOUR: u64 = 3_600_000_000_000;
/// 2^64, the smallest value that is too large.
const VALUE_END: f64 = 18_446_744_073_709_551_616.0;

const fn field(number: u32, name: &'static str) -> Field {
    Field { number, name }
}

/// A data point that counts.
#[derive(Debug)]
pub(super) struct Flow<'a> {
    pub(super) hour: Hour,
    pub(super) names: [&'a [u8]; 3],
    pub(super) counters: Counters,
}

/// Passes on the flows of an export, and returns what of it does not count.
///
/// # Errors
/// The export is malformed, or a metric of flows is cumulative. Flows before that were passed on.
pub(super) fn read<'a>(export: impl Node<'a>, each: impl FnMut(Flow<'_>)) -> Read<Rejected> {
    let mut walk = Walk {
        each,
        rejected: Rejected::default(),
    };
    export.fields(&[RESOURCE_METRICS], |_, resources| {
        resources.elements(|resource| walk.resource(resource))
    })?;
    Ok(walk.rejected)
}

/// Goes through an export. A message's fields may have any order, so it is read once for the fields that the others
/// depend on, and then for those.
struct Walk<F> {
    each: F,
    rejected: Rejected,
}

impl<F: FnMut(Flow<'_>)> Walk<F> {
    fn resource<'a>(&mut self, resource: impl Node<'a>) -> Read {
        let mut names = Names::default();
        resource.fields(&[RESOURCE], |_, of| {
            of.fields(&[RESOURCE_ATTRIBUTES], |_, attributes| {
                attributes.elements(|attribute| {
                    if let Some((key, text)) = read_attribute(attribute)? {
                        names.offer(&key, text);
                    }
                    Ok(())
                })
            })
        })?;
        resource.fields(&[SCOPE_METRICS], |_, scopes| {
            scopes.elements(|scope| {
                scope.fields(&[METRIC], |_, metrics| {
                    metrics.elements(|metric| self.metric(metric, &names))
                })
            })
        })
    }

    fn metric<'a>(&mut self, metric: impl Node<'a>, of_resource: &Names<'a>) -> Read {
        let mut name = Cow::Borrowed("");
        metric.fields(&[METRIC_NAME], |_, value| {
            name = value.text()?;
            Ok(())
        })?;
        let is_of_flows = is_of_flows(&name);
        metric.fields(&DATA, |kind, data| match (is_of_flows, kind) {
            (true, SUM) => self.sum(&name, data, of_resource),
            (true, _) => self.reject_all(data, Reason::NotASum),
            (false, _) => self.reject_all(data, Reason::OtherMetric),
        })
    }

    fn reject_all<'a>(&mut self, data: impl Node<'a>, reason: Reason) -> Read {
        data.fields(&[DATA_POINTS], |_, points| {
            points.elements(|_| {
                self.rejected.add(reason);
                Ok(())
            })
        })
    }

    fn sum<'a>(&mut self, name: &str, sum: impl Node<'a>, of_resource: &Names<'a>) -> Read {
        let mut temporality = 0;
        sum.fields(&[TEMPORALITY], |_, value| {
            temporality = value.integer()?;
            Ok(())
        })?;
        if temporality != DELTA {
            return Err(ExportError::NotDelta {
                metric: name.to_owned(),
                temporality: match temporality {
                    CUMULATIVE => "is cumulative",
                    _ => "has no aggregation temporality",
                },
            });
        }
        sum.fields(&[DATA_POINTS], |_, points| {
            points.elements(|point| self.point(point, of_resource))
        })
    }

    fn point<'a>(&mut self, point: impl Node<'a>, of_resource: &Names<'a>) -> Read {
        let mut names = Names::default();
        let mut is_response = false;
        let (mut time, mut bytes, mut is_empty) = (0, None, false);
        point.fields(&POINT, |field, value| {
            match field {
                0 => value.elements(|attribute| {
                    match read_attribute(attribute)? {
                        Some((key, text)) if is_called(&key, DIRECTION) => {
                            is_response = text == RESPONSE;
                        }
                        Some((key, text)) => names.offer(&key, text),
                        None => {}
                    }
                    Ok(())
                })?,
                1 => time = value.fixed64()?,
                2 => bytes = u64::try_from(value.sfixed64()?).ok(),
                3 => bytes = whole(value.double()?),
                _ => is_empty = value.integer()? & NO_RECORDED_VALUE != 0,
            }
            Ok(())
        })?;
        let flow = names.or(of_resource).and_then(|[src, dst, vpc]| {
            let bytes = bytes.filter(|_| !is_empty).ok_or(Reason::BadValue)?;
            let hour = Some(time / NANOS_PER_HOUR).filter(|_| time > 0);
            let hour = hour.and_then(Hour::new).ok_or(Reason::NoTime)?;
            let (names, tx, rx) = match is_response {
                false => ([src, dst, vpc], bytes, 0),
                true => ([dst, src, vpc], 0, bytes),
            };
            Ok(Flow {
                hour,
                names,
                counters: Counters { tx, rx },
            })
        });
        match flow {
            Ok(flow) => (self.each)(flow),
            Err(reason) => self.rejected.add(reason),
        }
        Ok(())
    }
}

/// The key and the value of an attribute whose value is a text.
fn read_attribute<'a>(attribute: impl Node<'a>) -> Read<Option<(Cow<'a, str>, Cow<'a, str>)>> {
    let (mut key, mut text) = (None, None);
    attribute.fields(&ATTRIBUTE, |field, value| match field {
        0 => {
            key = Some(value.text()?);
            Ok(())
        }
        _ => value.fields(&[STRING_VALUE], |_, value| {
            text = Some(value.text()?);
            Ok(())
        }),
    })?;
    Ok(key.zip(text))
}

/// `value` as an integer, if it is one.
fn whole(value: f64) -> Option<u64> {
    let is_whole = (0.0..VALUE_END).contains(&value) && value.fract() == 0.0;
    is_whole.then_some(value as u64)
}

fn is_of_flows(metric: &str) -> bool {
    let name = metric.strip_suffix("_total").unwrap_or(metric);
    METRICS.iter().any(|known| is_called(name, known))
}

/// Whether `name` is `known`, in which dots may be underscores.
fn is_called(name: &str, known: &str) -> bool {
    let is_same = |(a, b): (u8, u8)| a == b || (a == b'_' && b == b'.');
    name.len() == known.len() && name.bytes().zip(known.bytes()).all(is_same)
}

/// The names of the source, the destination and the VPC.
#[derive(Debug, Default)]
struct Names<'a>([Name<'a>; 3]);

#[derive(Debug)]
struct Name<'a> {
    text: Cow<'a, str>,
    /// The index of its attribute in its row of [`NAMES`], or one of the two below.
    preference: usize,
}

/// There are only empty attributes.
const EMPTY: usize = usize::MAX - 1;
/// There is no attribute.
const ABSENT: usize = usize::MAX;

impl Default for Name<'_> {
    fn default() -> Self {
        Name {
            text: Cow::Borrowed(""),
            preference: ABSENT,
        }
    }
}

impl<'a> Names<'a> {
    /// Takes the text of the attribute `key`, if it names something and comes before what was taken until now.
    fn offer(&mut self, key: &str, text: Cow<'a, str>) {
        for (name, keys) in self.0.iter_mut().zip(NAMES) {
            let Some(index) = keys.iter().position(|known| is_called(key, known)) else {
                continue;
            };
            let preference = if text.is_empty() { EMPTY } else { index };
            if preference <= name.preference {
                *name = Name { text, preference };
            }
            return;
        }
    }

    /// These names, or for each of them that of `others` if it comes before it.
    ///
    /// # Errors
    /// A name is too long, or that of an end is missing. The VPC is then the empty one.
    fn or<'n>(&'n self, others: &'n Names<'_>) -> Result<[&'n [u8]; 3], Reason> {
        let mut names: [&[u8]; 3] = [&[]; 3];
        for (at, (own, other)) in self.0.iter().zip(&others.0).enumerate() {
            let name = match own.preference <= other.preference {
                true => own,
                false => other,
            };
            if name.preference == ABSENT && at < 2 {
                return Err(Reason::NoName);
            }
            if name.text.len() > NAME_BYTES_MAX {
                return Err(Reason::LongName);
            }
            names[at] = name.text.as_bytes();
        }
        Ok(names)
    }
}
