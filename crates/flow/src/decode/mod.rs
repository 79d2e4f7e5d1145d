//! Decodes request bodies into validated [`Batch`]es, with two decoders that agree.
//!
//! [`fast`] decodes the form that agents usually send, and gives up at the first deviation without side effects.
//! [`json`] decodes everything else, and alone defines what is an error. A test verifies that they agree on bodies that
//! both accept.
//!
//! [`otlp`] decodes exports of OpenTelemetry.

mod bodies;
mod fast;
mod hints;
mod json;
pub mod lookalikes;
pub mod otlp;

use std::fmt;

use crate::Field;
use crate::batch::Batch;

/// Format of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON array of flows. If the body starts with an object, it is read as NDJSON, since some senders call that
    /// JSON.
    Json,
    /// One JSON object per line; blank lines are skipped.
    Ndjson,
}

/// Why a body is not a batch. None of its flows counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// Index of the flow, from 0; `None` if the error is outside of flows.
    pub index: Option<usize>,
    /// The field; `None` if the error is outside of fields.
    pub field: Option<Field>,
    /// What is wrong.
    pub what: String,
    /// Line and column in the body, from 1, if known.
    pub at: Option<(usize, usize)>,
}

impl std::error::Error for DecodeError {}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(index) = self.index {
            write!(f, "flow {index}: ")?;
        }
        if let Some(field) = self.field {
            write!(f, "{}: ", field.name())?;
        }
        f.write_str(&self.what)?;
        match self.at {
            Some((line, column)) => write!(f, " (line {line}, column {column})"),
            None => Ok(()),
        }
    }
}

/// Decodes a whole body.
///
/// # Errors
/// The first error, with its flow and field.
pub fn decode(body: &[u8], format: Format) -> Result<Batch, DecodeError> {
    decode_only(body, format).map_err(|error| bodies::explain(error, body, format))
}

/// Like [`decode`], without recognising foreign formats.
fn decode_only(body: &[u8], format: Format) -> Result<Batch, DecodeError> {
    fast::decode(body, format).map_or_else(|| json::decode(body, format), Ok)
}

/// Capacity for the batch of a body. A batch takes about half the size of a small body. For large bodies, the
/// capacity is the body's size, so that the batch never has to be moved; memory that is not touched costs nothing.
fn batch_bytes(body_bytes: usize) -> usize {
    match body_bytes {
        0..LARGE_BODY_BYTES => body_bytes / 2,
        _ => body_bytes,
    }
}

const LARGE_BODY_BYTES: usize = 512 << 10;

/// The error for a missing field.
const MISSING: &str = "the field is missing";
/// UTF-8's byte order mark, which some editors and shells write at the start of files. It has no meaning.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// Concatenated files can start with several marks.
fn without_mark(text: &str) -> &str {
    text.trim_start_matches(BYTE_ORDER_MARK)
}

/// Whether a line of NDJSON has no flow.
fn is_blank(line: &str) -> bool {
    line.bytes().all(|b| matches!(b, b' ' | b'\t' | b'\r'))
}

/// Validates one flow as JSON, for senders of many flows, so that an invalid flow does not cost its whole batch. It
/// is not read as NDJSON, since a flow may span several lines.
///
/// # Errors
/// What is wrong with it.
pub fn validate_flow(flow: &str) -> Result<(), String> {
    read_flow(flow).map(drop)
}

/// Reads one flow as a batch.
///
/// # Errors
/// What is wrong with it.
pub fn read_flow(flow: &str) -> Result<Batch, String> {
    match decode_only(format!("[{flow}]").as_bytes(), Format::Json) {
        Ok(batch) if batch.flows() == 1 => Ok(batch),
        Ok(_) => Err("it is not one flow".into()),
        Err(error) => Err(match error.field {
            Some(field) => format!("{}: {}", field.name(), error.what),
            None => error.what,
        }),
    }
}

/// Checks an invariant for any body: if the fast decoder accepts it, the other one decodes the same batch. Returns
/// whether the fast decoder accepted it. For tests and fuzzing.
#[cfg(any(test, fuzzing))]
pub fn assert_decoders_agree(body: &[u8], format: Format) -> bool {
    let Some(fast) = fast::decode(body, format) else {
        let _any_result = json::decode(body, format);
        return false;
    };
    let json = json::decode(body, format);
    let same = json
        .as_ref()
        .is_ok_and(|json| json.bytes() == fast.bytes() && json.flows() == fast.flows());
    assert!(same, "{json:?} for {:?}", String::from_utf8_lossy(body));
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bodies near the fast decoder's shape: right, or wrong by one edit.
    fn bodies() -> impl Strategy<Value = (Vec<u8>, Format)> {
        let flow = (
            prop::sample::select(vec![
                "foo",
                "",
                "ü",
                "a\\u0000b",
                "x\\n",
                "a\u{1}b",
                "\u{10FFFF}",
                "a-name-of-more-than-sixteen-bytes",
                "exactly8",
                "exactly-sixteen-",
            ]),
            prop::sample::select(vec![
                "0",
                "1",
                "12345678",
                "123456789",
                "01",
                "-1",
                "1.0",
                "1e3",
                "4294967294",
                "4294967295",
                "99999999",
                "100000000",
                "18446744073709551615",
                "18446744073709551616",
                "\"1\"",
                "null",
                "1 ",
                "",
            ]),
            prop::sample::select(vec![", ", ",", " , ", ",\n", ",\t", ""]),
            prop::sample::select(vec![": ", ":", " : ", ":\n", ""]),
            any::<prop::sample::Index>(),
            prop::bool::weighted(0.8),
        )
            .prop_map(|(name, number, comma, colon, which, plain)| {
                let mut members = vec![
                    ("src_app", "\"a\"".to_owned()),
                    ("dest_app", "\"b\"".to_owned()),
                    ("vpc_id", "\"c\"".to_owned()),
                    ("bytes_tx", "1".to_owned()),
                    ("bytes_rx", "2".to_owned()),
                    ("hour", "3".to_owned()),
                ];
                let which = which.index(6);
                if which < 3 {
                    members[which].1 = format!("\"{name}\"");
                } else {
                    members[which].1 = number.to_owned();
                }
                let (comma, colon) = if plain { (", ", ": ") } else { (comma, colon) };
                let members: Vec<_> = members
                    .into_iter()
                    .map(|(k, v)| format!("\"{k}\"{colon}{v}"))
                    .collect();
                format!("{{{}}}", members.join(comma))
            });
        (
            prop::collection::vec(flow, 1..4),
            prop::sample::select(vec![Format::Json, Format::Ndjson]),
            prop::option::weighted(0.5, (any::<prop::sample::Index>(), any::<u8>(), 0..3u8)),
        )
            .prop_map(|(flows, format, edit)| {
                let mut body = match format {
                    Format::Json => format!("[{}]", flows.join(", ")),
                    Format::Ndjson => flows.join("\n"),
                }
                .into_bytes();
                if let Some((at, byte, kind)) = edit {
                    let at = at.index(body.len());
                    match kind {
                        0 => body[at] = byte,
                        1 => body.insert(at, byte),
                        _ => drop(body.remove(at)),
                    }
                }
                (body, format)
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn what_the_fast_decoder_accepts_the_other_decodes_alike((body, format) in bodies()) {
            assert_decoders_agree(&body, format);
        }
    }

    /// Bodies that agents send, with some bytes changed, cut, copied or replaced by JSON tokens.
    /// `FLOWTALLY_TEST_FUZZ=50000000` runs it that many times.
    #[test]
    fn both_decoders_agree_on_mutated_bodies() {
        use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
        const TOKENS: [&str; 24] = [
            "\"",
            "\\",
            "\\u0041",
            "\\ud83d\\ude00",
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            " ",
            "\n",
            "\r\n",
            "\t",
            "0",
            "-",
            "1e9",
            ".5",
            "18446744073709551615",
            "99999999999999999999",
            "\u{e9}",
            "\0",
            "\"hour\"",
            "\"src_app\"",
        ];
        let variable = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let cases = variable("FLOWTALLY_TEST_FUZZ").unwrap_or(200_000);
        let seed = variable("FLOWTALLY_TEST_SEED").unwrap_or_else(rand::random);
        println!("FLOWTALLY_TEST_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let flow = r#"{"src_app": "foo", "dest_app": "b-9", "vpc_id": "", "bytes_tx": 100, "bytes_rx": 12345678, "hour": 1}"#;
        let tight = flow.replace(": ", ":").replace(", ", ",");
        let seeds = [
            (format!("[{flow}, {flow}]"), Format::Json),
            (format!("[{tight},{tight}]"), Format::Json),
            (format!("{flow}\n{flow}\n"), Format::Ndjson),
            (format!("{tight}\n{tight}"), Format::Ndjson),
        ];
        let mut taken = 0;
        for _ in 0..cases {
            let (body, format) = &seeds[random.random_range(0..seeds.len())];
            let mut body = body.clone().into_bytes();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..body.len());
                let end = (at + random.random_range(0..12)).min(body.len());
                match random.random_range(0..6) {
                    0 => body[at] = random.next_u32() as u8,
                    1 => drop(body.drain(at..end)),
                    2 => {
                        let copy = body[at..end].to_vec();
                        let to = random.random_range(0..=body.len());
                        body.splice(to..to, copy);
                    }
                    3 => body.truncate(at.max(1)),
                    _ => {
                        let token = TOKENS[random.random_range(0..TOKENS.len())].bytes();
                        let end = if random.random() { at } else { end };
                        body.splice(at..end, token);
                    }
                }
                if body.is_empty() {
                    body.push(b' ');
                }
            }
            taken += u64::from(assert_decoders_agree(&body, *format));
        }
        println!("the fast decoder accepted {taken} of {cases}");
        assert!(
            taken > cases / 50,
            "{taken}: the mutations leave nothing to compare"
        );
    }

    #[test]
    fn the_fast_decoder_accepts_what_agents_send() {
        let plain = r#"{"src_app": "foo", "dest_app": "bär", "vpc_id": "vpc-0", "bytes_tx": 100, "bytes_rx": 18446744073709551, "hour": 1}"#;
        let tight = plain.replace(": ", ":").replace(", ", ",");
        let turned = r#"{ "hour":1,"bytes_rx":0,"vpc_id":"","src_app":"a","bytes_tx":12345678,"dest_app":"b" }"#;
        for flow in [plain, &tight, turned] {
            for (format, body) in [
                (Format::Json, format!("[{flow}]")),
                (Format::Json, format!(" [ {flow},\n {flow} ]\n")),
                (Format::Ndjson, flow.to_owned()),
                (Format::Ndjson, format!("{flow}\r\n\n{flow}\n")),
            ] {
                let fast = fast::decode(body.as_bytes(), format);
                let json = json::decode(body.as_bytes(), format).unwrap();
                assert_eq!(fast.expect(&body).bytes(), json.bytes());
            }
        }
    }
}
