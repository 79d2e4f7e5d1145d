//! Answers in Arrow's format are those in JSON.

use arrow_array::cast::AsArray;
use arrow_array::types::{UInt32Type, UInt64Type};
use arrow_array::{Array, RecordBatch};
use arrow_ipc::reader::StreamReader;
use tokio_util::sync::CancellationToken;

use super::encode::CHUNK_BYTES;
use super::{EncodedRows, Engine, QueryError, QueryLimits, Row, RowFormat};
use crate::store::{Store, StoreOptions};
use flow::query::text;
use flow::{BatchBuilder, Counters, Encoding, Hour};

/// The end of a complete stream.
const STREAM_END: [u8; 8] = [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0];
const ROWS: u64 = 20_000;

/// Many rows in hour 7, and odd ones in hours 1 and 2.
fn filled(dir: &std::path::Path) -> Store {
    let (store, _) = Store::open(dir, StoreOptions::default()).unwrap();
    let mut batch = BatchBuilder::with_capacity(0);
    let mut push = |hour, names: [&str; 3], tx, rx| {
        let hour = Hour::new(hour).unwrap();
        batch.push(hour, names.map(str::as_bytes), Counters { tx, rx });
    };
    for row in 0..ROWS {
        let names = [row / 100, row % 100].map(|number| format!("svc-{number}"));
        push(7, [&names[0], &names[1], "vpc-0"], row, u64::MAX - row);
    }
    let long = "é".repeat(512);
    for (number, name) in ["", "\0", "a", "\"quoted\", \\", "🦀", &long]
        .into_iter()
        .enumerate()
    {
        let hour = 1 + number as u64 % 2;
        push(hour, [name, "x", name], u64::MAX, 0);
        push(hour, ["x", name, ""], number as u64, 1);
    }
    store.commit(vec![batch.finish()]).unwrap();
    store
}

fn answer(store: &Store, query: &str, format: RowFormat) -> Vec<u8> {
    let query = text::parse_flows(query).unwrap();
    let engine = Engine::new(QueryLimits::NONE);
    let rows = engine.ask(store, &query, CancellationToken::new()).unwrap();
    let mut rows = EncodedRows::new(rows, format, Encoding::Identity).unwrap();
    let mut body = Vec::new();
    while let Some(chunk) = rows.next_chunk().unwrap() {
        assert!(chunk.len() < 2 * CHUNK_BYTES, "{}", chunk.len());
        body.extend_from_slice(&chunk);
    }
    body
}

fn row(batch: &RecordBatch, at: usize) -> Row<'_> {
    let name = |name: &str| {
        let names = batch.column_by_name(name)?.as_string::<i32>();
        names.is_valid(at).then(|| names.value(at))
    };
    let sum = |name: &str| {
        let sums = batch.column_by_name(name)?.as_primitive::<UInt64Type>();
        Some(sums.value(at))
    };
    let hours = batch.column_by_name("hour");
    let hours = hours.map(|hours| hours.as_primitive::<UInt32Type>());
    let hour = hours.filter(|hours| hours.is_valid(at));
    let before = sum("bytes_tx_before").zip(sum("bytes_rx_before"));
    let other = batch.column_by_name("other");
    Row {
        src_app: name("src_app"),
        dest_app: name("dest_app"),
        vpc_id: name("vpc_id"),
        counters: Counters {
            tx: sum("bytes_tx").unwrap(),
            rx: sum("bytes_rx").unwrap(),
        },
        before: before.map(|(tx, rx)| Counters { tx, rx }),
        hour: hour.and_then(|hours| Hour::new(hours.value(at).into())),
        is_other: other.is_some_and(|other| other.as_boolean().value(at)),
    }
}

/// The same rows as JSON, and the number of batches.
fn as_json(stream: &[u8]) -> (Vec<u8>, usize) {
    let (mut json, mut batches) = (b"[".to_vec(), 0);
    for batch in StreamReader::try_new(stream, None).unwrap() {
        let batch = batch.unwrap();
        batches += 1;
        for at in 0..batch.num_rows() {
            if json.len() > 1 {
                json.extend_from_slice(b",\n");
            }
            RowFormat::Json.write(&row(&batch, at), &mut json);
        }
    }
    json.extend_from_slice(b"]\n");
    (json, batches)
}

#[test]
fn arrow_has_the_rows_of_json_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path());
    for (query, is_long) in [
        ("hour=7", true),
        ("hour=1", false),
        ("hour=3", false),
        ("from=0&to=9", true),
        ("from=0&to=9&group_by=", false),
        ("from=0&to=9&group_by=hour", false),
        ("from=0&to=9&group_by=dest_app,hour", false),
        ("from=0&to=24&group_by=src_app,hour&step=24", false),
        ("from=0&to=9&sort=-bytes_tx&limit=5", false),
        ("hour=7&sort=bytes&limit=3&other=true", false),
        (
            "hour=7&group_by=vpc_id&sort=bytes&limit=3&other=true",
            false,
        ),
        ("hour=7&group_by=src_app&compare=1", false),
        (
            "hour=2&group_by=src_app,vpc_id&compare=previous&sort=change",
            false,
        ),
    ] {
        let stream = answer(&store, query, RowFormat::Arrow);
        let json = answer(&store, query, RowFormat::Json);
        assert!(stream.ends_with(&STREAM_END), "{query}");
        let (same, batches) = as_json(&stream);
        let [same, json] = [same, json].map(|text| String::from_utf8(text).unwrap());
        assert_eq!(same, json, "{query}");
        assert_eq!(batches > 1, is_long, "{query}");
    }
}

#[test]
fn a_row_of_all_others_is_the_only_one_with_nulls() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path());
    let nullable = |query: &str| {
        let stream = answer(&store, query, RowFormat::Arrow);
        let schema = StreamReader::try_new(&stream[..], None).unwrap().schema();
        let fields = schema.fields().iter();
        let fields = fields.map(|field| (field.name().clone(), field.is_nullable()));
        fields.collect::<Vec<_>>()
    };
    let named = |fields: &[(&str, bool)]| -> Vec<(String, bool)> {
        let fields = fields.iter();
        fields.map(|(name, is)| ((*name).to_owned(), *is)).collect()
    };
    assert_eq!(
        nullable("hour=7&group_by=src_app&sort=bytes&limit=1&other=true"),
        named(&[
            ("src_app", true),
            ("bytes_tx", false),
            ("bytes_rx", false),
            ("other", false)
        ])
    );
    assert_eq!(
        nullable("hour=7&group_by=src_app&compare=previous"),
        named(&[
            ("src_app", false),
            ("bytes_tx", false),
            ("bytes_rx", false),
            ("bytes_tx_before", false),
            ("bytes_rx_before", false)
        ])
    );
}

#[test]
fn a_stream_that_fails_has_no_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path());
    let query = text::parse_flows("hour=7").unwrap();
    let engine = Engine::new(QueryLimits::NONE);
    let cancel = CancellationToken::new();
    let rows = engine.ask(&store, &query, cancel.clone()).unwrap();
    let mut rows = EncodedRows::new(rows, RowFormat::Arrow, Encoding::Identity).unwrap();
    let mut body = rows.next_chunk().unwrap().unwrap().to_vec();
    cancel.cancel();
    let error = loop {
        match rows.next_chunk() {
            Ok(chunk) => body.extend_from_slice(&chunk.unwrap()),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, QueryError::Cancelled), "{error}");
    assert!(!body.ends_with(&STREAM_END));
}
