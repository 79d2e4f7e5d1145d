//! The flows of a batch, one by one: their hashes, and their JSON.

use std::fmt::Write as _;

use xxhash_rust::xxh3::{xxh3_128, xxh3_128_with_seed};

use super::push_json_string;
use crate::domain::{Counters, Hour};
use crate::store::codec::{self, FlowKey};
use crate::store::{Batch, codec::Corrupt};

/// Keeps the hash of a text from being that of a flow.
const TEXT_SEED: u64 = 1;

/// What a record of an input is: the same for the same content, whatever it is wrapped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHash {
    /// Of the flow; of its text, where that is not a flow or is made into one by names and options.
    pub content: u128,
    /// Of the flow that it gives.
    pub flow: Option<u128>,
}

impl RecordHash {
    /// Of each flow of a batch.
    pub fn of_flows(batch: &Batch) -> Vec<RecordHash> {
        let record = |flow| RecordHash {
            content: flow,
            flow: Some(flow),
        };
        hashes(batch).into_iter().map(record).collect()
    }
}

pub(super) fn hashes(batch: &Batch) -> Vec<u128> {
    let mut bytes = Vec::new();
    let records = codec::Records::new(batch.bytes()).into_iter().flatten();
    // A batch that was decoded just now has no other records.
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

/// A batch as the body of a request: an array.
///
/// # Errors
/// None, for a batch that was built or decoded.
pub fn to_json(batch: &Batch) -> Result<Vec<u8>, Corrupt> {
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
    // A string takes any text.
    let _written = write!(
        text,
        ",\"bytes_tx\":{tx},\"bytes_rx\":{rx},\"hour\":{hour}}}"
    );
}

/// The first flow of a batch as JSON, and the hashes of what it may have been when a part of its last field
/// was there, whichever field that is.
pub fn truncations(batch: &Batch) -> (String, Vec<u128>) {
    let first = codec::Records::new(batch.bytes())
        .ok()
        .and_then(|mut records| records.next()?.ok());
    let Some((key, counters)) =
        first.and_then(|record| Some((FlowKey::decode(record.key).ok()?, record.counters)))
    else {
        return Default::default();
    };
    let mut text = String::new();
    push_flow(&mut text, &key, counters);
    let names = [&*key.src_app, &*key.dest_app, &*key.vpc_id];
    let (mut bytes, mut encoded) = (Vec::new(), Vec::new());
    let mut shorter = Vec::new();
    let mut add = |names: [&str; 3], hour: Hour, counters| {
        encoded.clear();
        let [src_app, dest_app, vpc_id] = names.map(str::as_bytes);
        codec::push_key(&mut encoded, hour, src_app, dest_app, vpc_id);
        shorter.push(hash(&mut bytes, &encoded, counters));
    };
    for (at, name) in names.into_iter().enumerate() {
        for (end, _) in name.char_indices() {
            let mut names = names;
            names[at] = &name[..end];
            add(names, key.hour, counters);
        }
    }
    for hour in beginnings(u64::from(key.hour.get())) {
        let hour = Hour::new(hour).unwrap_or(key.hour);
        add(names, hour, counters);
    }
    for tx in beginnings(counters.tx) {
        add(names, key.hour, Counters { tx, ..counters });
    }
    for rx in beginnings(counters.rx) {
        add(names, key.hour, Counters { rx, ..counters });
    }
    (text, shorter)
}

/// The numbers that the first digits of `number` are.
fn beginnings(number: u64) -> impl Iterator<Item = u64> {
    let shorter = |n: &u64| Some(n / 10).filter(|n| *n > 0);
    std::iter::successors(Some(number), shorter).skip(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::decode::{Format, decode};

    const FLOW: &str = r#"{"src_app":"aü\"","dest_app":"b\u0000","vpc_id":"v","bytes_tx":120,"bytes_rx":18446744073709551615,"hour":34}"#;

    #[test]
    fn json_is_what_the_decoder_takes() {
        let batch = decode(format!("[{FLOW},{FLOW}]").as_bytes(), Format::Json).unwrap();
        let again = decode(&to_json(&batch).unwrap(), Format::Json).unwrap();
        assert_eq!(again.bytes(), batch.bytes());
        let empty = batch.part(0..0).unwrap();
        assert_eq!(to_json(&empty).unwrap(), b"[]");
    }

    #[test]
    fn a_flow_that_was_cut_off_is_one_of_its_truncations() {
        let batch = |flow: &str| decode(flow.as_bytes(), Format::Ndjson).unwrap();
        let (text, shorter) = truncations(&batch(FLOW));
        assert_eq!(batch(&text).bytes(), batch(FLOW).bytes());
        assert!(!shorter.contains(&hashes(&batch(FLOW))[0]));
        for (whole, cut) in [
            (":120", ":12"),
            (":120", ":1"),
            ("18446744073709551615", "1844674407370955161"),
            (":34", ":3"),
            ("aü\\\"", "aü"),
            ("aü\\\"", "a"),
            ("\"v\"", "\"\""),
        ] {
            let hash = hashes(&batch(&FLOW.replace(whole, cut)))[0];
            assert!(shorter.contains(&hash), "{cut}");
        }
    }
}
