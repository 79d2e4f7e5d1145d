//! The flows of a batch one by one: hashes and JSON.

use std::fmt::Write as _;

use xxhash_rust::xxh3::{xxh3_128, xxh3_128_with_seed};

use super::{Location, push_json_string};
use flow::codec::{Corrupt, FlowKey};
use flow::{Batch, Counters, Field, codec};

/// Separates hashes of texts from hashes of flows.
const TEXT_SEED: u64 = 1;

/// The record of a flow. Its hashes depend only on its content, not on how the file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHashes {
    /// Hash of the flow, or of the record's text in formats where options determine the flow.
    pub(crate) content: u128,
    /// Hash of the flow; `None` if the options exclude the record.
    pub(crate) flow: Option<u128>,
    /// Whether the flow is in the batch; false if its hour is too far ahead.
    pub(crate) is_in_batch: bool,
    pub(crate) location: Location,
    /// Its text, in formats in which a cut line may still be a valid record.
    pub(crate) line: Option<Line>,
}

/// The range of a record's text in [`Chunk::text`](super::Chunk).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) start: u32,
    pub(crate) last_field: u32,
    pub(crate) end: u32,
    /// The field of the flow that is last in the text; `None` if the text identifies the record.
    pub(crate) last_column: Option<Field>,
}

impl RecordHashes {
    /// The records of a batch that was decoded from JSON, with the location of each.
    pub(crate) fn of_flows(
        batch: &Batch,
        locations: impl IntoIterator<Item = Location>,
    ) -> Vec<RecordHashes> {
        let record = |(flow, location)| RecordHashes {
            content: flow,
            flow: Some(flow),
            is_in_batch: true,
            location,
            line: None,
        };
        hashes(batch)
            .into_iter()
            .zip(locations)
            .map(record)
            .collect()
    }
}

pub(super) fn hashes(batch: &Batch) -> Vec<u128> {
    let mut bytes = Vec::new();
    let records = codec::Records::new(batch.bytes()).into_iter().flatten();
    // A freshly decoded batch has no other records.
    let hash = |record: codec::Record<'_>| hash(&mut bytes, record.key, record.counters);
    records.flatten().map(hash).collect()
}

fn hash(bytes: &mut Vec<u8>, key: &[u8], counters: Counters) -> u128 {
    bytes.clear();
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(&codec::encode_counters(counters));
    xxh3_128(bytes)
}

pub(super) fn hash_of_text(text: &str) -> u128 {
    xxh3_128_with_seed(text.as_bytes(), TEXT_SEED)
}

/// Encodes a batch as a request body: a JSON array.
///
/// # Errors
/// Cannot fail for a batch that was built or decoded.
pub(crate) fn to_json(batch: &Batch) -> Result<Vec<u8>, Corrupt> {
    let mut text = String::with_capacity(batch.bytes().len() + 100 * batch.flows());
    text.push('[');
    for record in codec::Records::new(batch.bytes())? {
        let record = record?;
        if text.len() > 1 {
            text.push(',');
        }
        push_flow(&mut text, &FlowKey::decode(record.key)?, record.counters);
    }
    text.push(']');
    Ok(text.into_bytes())
}

fn push_flow(text: &mut String, key: &FlowKey<'_>, counters: Counters) {
    for (start, name) in [
        ("{\"src_app\":", &key.src_app),
        (",\"dest_app\":", &key.dest_app),
        (",\"vpc_id\":", &key.vpc_id),
    ] {
        text.push_str(start);
        push_json_string(text, name);
    }
    let (tx, rx, hour) = (counters.tx, counters.rx, key.hour);
    // Writing to a string cannot fail.
    let _written = write!(
        text,
        ",\"bytes_tx\":{tx},\"bytes_rx\":{rx},\"hour\":{hour}}}"
    );
}

/// Encodes the first flow of a batch as JSON.
///
/// # Errors
/// Cannot fail for a batch that was built or decoded.
pub(crate) fn first_to_json(batch: &Batch) -> Result<String, Corrupt> {
    let array = String::from_utf8(to_json(&batch.part(0..1)?)?).unwrap_or_default(); // it is UTF-8
    Ok(array.trim_start_matches('[').trim_end_matches(']').into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow::decode::{Format, decode};

    const FLOW: &str = r#"{"src_app":"aü\"","dest_app":"b\u0000","vpc_id":"v","bytes_tx":120,"bytes_rx":18446744073709551615,"hour":34}"#;

    #[test]
    fn json_is_accepted_by_the_decoder() {
        let batch = decode(format!("[{FLOW},{FLOW}]").as_bytes(), Format::Json).unwrap();
        let again = decode(&to_json(&batch).unwrap(), Format::Json).unwrap();
        assert_eq!(again.bytes(), batch.bytes());
        let empty = batch.part(0..0).unwrap();
        assert_eq!(to_json(&empty).unwrap(), b"[]");
    }
}
