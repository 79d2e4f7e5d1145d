//! Responses to exports. They are so small that they are encoded by hand.

use serde::Serialize;

use super::Format;

/// The wire type of messages and texts in the binary encoding; that of integers is 0.
const LENGTH_DELIMITED: u8 = 2;
/// Fields: number and wire type.
const PARTIAL_SUCCESS: u8 = 1 << 3 | LENGTH_DELIMITED;
const REJECTED_DATA_POINTS: u8 = 1 << 3;
const ERROR_MESSAGE: u8 = 2 << 3 | LENGTH_DELIMITED;
const STATUS_MESSAGE: u8 = 2 << 3 | LENGTH_DELIMITED;

/// `ExportMetricsServiceResponse`: an export was counted, except for `rejected` data points. `message` says why.
pub fn success(format: Format, rejected: u64, message: &str) -> Vec<u8> {
    let is_partial = rejected > 0 || !message.is_empty();
    match format {
        Format::Json => json(&Response {
            partial_success: is_partial.then(|| PartialSuccess {
                rejected_data_points: rejected.to_string(),
                error_message: message,
            }),
        }),
        Format::Protobuf if is_partial => {
            let mut partial = Vec::new();
            partial.push(REJECTED_DATA_POINTS);
            push_varint(&mut partial, rejected);
            push_bytes(&mut partial, ERROR_MESSAGE, message.as_bytes());
            let mut response = Vec::new();
            push_bytes(&mut response, PARTIAL_SUCCESS, &partial);
            response
        }
        Format::Protobuf => Vec::new(),
    }
}

/// `google.rpc.Status`: nothing of an export counted, or it is unknown whether it did. Its code is omitted, as OTLP does
/// not use it.
pub fn status(format: Format, message: &str) -> Vec<u8> {
    match format {
        Format::Json => json(&Status { message }),
        Format::Protobuf => {
            let mut status = Vec::new();
            push_bytes(&mut status, STATUS_MESSAGE, message.as_bytes());
            status
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    partial_success: Option<PartialSuccess<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PartialSuccess<'a> {
    /// Integers of 64 bits are strings.
    rejected_data_points: String,
    error_message: &'a str,
}

#[derive(Serialize)]
struct Status<'a> {
    message: &'a str,
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Strings always serialise.
    serde_json::to_vec(value).unwrap_or_default()
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn push_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field);
    push_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
