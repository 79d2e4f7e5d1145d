//! Decodes exports of OpenTelemetry's metrics (OTLP's `ExportMetricsServiceRequest`) into batches, and encodes the
//! responses to them.
//!
//! [`metrics`] finds the flows. It reads a [`Node`](node::Node), which is a message in [`protobuf`]'s binary encoding or in
//! [`json`]. Both are read in place: no message is copied, so an export takes no more memory than its body, whatever it
//! claims to contain. An export is read twice, by [`measure`] and by [`build`], so that the batch's memory can be granted
//! before it is allocated.

mod json;
mod metrics;
mod node;
mod protobuf;
mod rejected;
mod response;
#[cfg(test)]
mod tests;

use crate::batch::{Batch, BatchBuilder};
use crate::codec;
pub use rejected::{Reason, Rejected};
pub use response::{status, success};

/// The encoding of an export and of its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Protobuf,
    /// Protobuf's JSON mapping, with OTLP's deviations.
    Json,
}

impl Format {
    /// The `Content-Type` of requests and responses.
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Protobuf => "application/x-protobuf",
            Format::Json => "application/json",
        }
    }
}

/// Why nothing of an export counts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// The body is not an export in its format.
    #[error("{what}")]
    Malformed { what: String },
    /// A metric of flows whose data points are not differences.
    #[error(
        "metric {metric:?} {temporality}, and only differences can be added up: set \
         OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=delta at the sender, or let the collector convert it with the \
         processor cumulativetodelta"
    )]
    NotDelta {
        metric: String,
        /// Completes "the metric …".
        temporality: &'static str,
    },
}

impl ExportError {
    fn malformed(what: impl Into<String>) -> ExportError {
        ExportError::Malformed { what: what.into() }
    }
}

/// What an export contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Number of flows.
    pub flows: u64,
    /// Upper bound of the bytes of its batch.
    pub batch_bytes: usize,
    /// Data points that are not flows.
    pub rejected: Rejected,
}

/// Reads an export without building its batch.
///
/// # Errors
/// Nothing of it counts.
pub fn measure(body: &[u8], format: Format) -> Result<Measured, ExportError> {
    let (mut flows, mut batch_bytes) = (0, codec::BATCH_HEADER_BYTES);
    let rejected = read(body, format, |flow| {
        flows += 1;
        batch_bytes += BatchBuilder::flow_bytes_max(flow.names);
    })?;
    Ok(Measured {
        flows,
        batch_bytes,
        rejected,
    })
}

/// Builds the batch of an export. `batch_bytes` are those of [`measure`].
///
/// # Errors
/// Those of [`measure`].
pub fn build(body: &[u8], format: Format, batch_bytes: usize) -> Result<Batch, ExportError> {
    let mut builder = BatchBuilder::with_capacity(batch_bytes);
    read(body, format, |flow| {
        builder.push(flow.hour, flow.names, flow.counters);
    })?;
    Ok(builder.finish())
}

fn read(
    body: &[u8],
    format: Format,
    each: impl FnMut(metrics::Flow<'_>),
) -> Result<Rejected, ExportError> {
    match format {
        Format::Protobuf => metrics::read(protobuf::Binary::message(body), each),
        Format::Json => metrics::read(json::Json::parse(body)?, each),
    }
}

/// Checks invariants for any body: it is refused or read, both readings agree, and the batch is valid and as large as
/// was measured at most. For tests and fuzzing.
#[cfg(any(test, fuzzing))]
pub fn assert_readings_agree(body: &[u8], format: Format) {
    let measured = measure(body, format);
    let built = build(body, format, 0);
    assert_eq!(measured.as_ref().err(), built.as_ref().err());
    let (Ok(measured), Ok(batch)) = (measured, built) else {
        return;
    };
    assert_eq!(measured.flows, batch.flows() as u64);
    assert!(batch.bytes().len() <= measured.batch_bytes, "{measured:?}");
    assert!(Batch::decode(batch.bytes().to_vec()).is_ok());
}
