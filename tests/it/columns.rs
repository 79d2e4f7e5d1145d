//! Columns: answers as streams of Arrow, and exports as Parquet. Other programs read them in `tests/columns`.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::{UInt32Type, UInt64Type};
use arrow_ipc::reader::StreamReader;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, Encoding, LogicalType};
use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::import::Bench;
use crate::send::{parts, url};
use crate::support::{Daemon, Key, TestFlow, odd_flow, random};
use flow::Counters;

const ARROW: &str = "application/vnd.apache.arrow.stream";
/// 2026-11-29 and 2026-11-30, 00:00 UTC.
const SUNDAY: u32 = 498_864;
const MONDAY: u32 = SUNDAY + 24;

/// The rows of a batch with the columns of flows.
fn rows_of(batch: &RecordBatch) -> Vec<(Key, Counters)> {
    let column = |name: &str| batch.column_by_name(name).unwrap();
    let name = |name: &str| column(name).as_string::<i32>();
    let sum = |name: &str| column(name).as_primitive::<UInt64Type>();
    let [src, dest, vpc] = ["src_app", "dest_app", "vpc_id"].map(name);
    let [tx, rx] = ["bytes_tx", "bytes_rx"].map(sum);
    let hour = column("hour").as_primitive::<UInt32Type>();
    let row = |at: usize| {
        let key = (
            hour.value(at),
            src.value(at).to_owned(),
            dest.value(at).to_owned(),
            vpc.value(at).to_owned(),
        );
        let (tx, rx) = (tx.value(at), rx.value(at));
        (key, Counters { tx, rx })
    };
    (0..batch.num_rows()).map(row).collect()
}

fn stream_rows(stream: &[u8]) -> Vec<(Key, Counters)> {
    let batches = StreamReader::try_new(stream, None).unwrap();
    let rows = batches.map(|batch| rows_of(&batch.unwrap()));
    rows.collect::<Vec<_>>().concat()
}

pub fn parquet_rows(path: &Path) -> Vec<(Key, Counters)> {
    let file = File::open(path).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let rows = reader.build().unwrap();
    let rows = rows.map(|batch| rows_of(&batch.unwrap()));
    rows.collect::<Vec<_>>().concat()
}

/// The names in a directory, sorted.
pub fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

pub fn flowtally(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(Daemon::binary());
    parts(&command.args(arguments).output().unwrap())
}

pub fn stdout(arguments: &[&str]) -> Vec<u8> {
    let mut command = Command::new(Daemon::binary());
    let output = command.args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    output.stdout
}

#[test]
fn arrow_has_the_rows_of_json_in_each_encoding() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let mut random = random("columns");
    let flows: Vec<TestFlow> = (0..3000)
        .map(|_| odd_flow(&mut random, &[3, SUNDAY]))
        .collect();
    daemon.client.accept(&flows);
    for path in ["/flows?hour=3", "/flows?from=0&to=498865", "/flows?hour=4"] {
        let rows = daemon.client.get(path, &[]).unwrap().rows();
        for encoding in ["identity", "gzip", "zstd"] {
            let headers = [("accept", ARROW), ("accept-encoding", encoding)];
            let response = daemon.client.get(path, &headers).unwrap();
            assert_eq!(response.status, 200);
            assert_eq!(response.header("content-type"), Some(ARROW));
            assert_eq!(response.header("vary"), Some("accept, accept-encoding"));
            let coding = response.header("content-encoding").map(str::to_owned);
            let body = match coding.as_deref() {
                Some("zstd") => zstd::decode_all(&response.body[..]).unwrap(),
                // The client may have decompressed it.
                Some("gzip") if response.body.starts_with(b"\x1F\x8B") => {
                    let mut body = Vec::new();
                    let mut gzip = flate2::read::GzDecoder::new(&response.body[..]);
                    gzip.read_to_end(&mut body).unwrap();
                    body
                }
                _ => response.body,
            };
            assert_eq!(stream_rows(&body), rows, "{path} {encoding}");
        }
    }
    let wrong = [("accept", "application/vnd.apache.arrow.file")];
    let problem = daemon.client.get("/flows?hour=3", &wrong).unwrap();
    assert_eq!(problem.status, 406);
    let detail = problem.json()["detail"].to_string();
    assert!(detail.contains(ARROW), "{detail}");
    daemon.stop();
}

#[test]
fn commands_write_a_stream_of_arrow() {
    let bench = Bench::new();
    let daemon = Daemon::start(Path::new(&bench.db));
    let flow = |hour, src: &str| TestFlow::new(hour, src, "d", "v", u64::MAX, 1);
    daemon
        .client
        .accept(&[flow(1, "a"), flow(1, "b"), flow(30, "a"), flow(SUNDAY, "c")]);
    let url = url(&daemon);
    let rows = daemon.client.get("/flows?from=0", &[]).unwrap().rows();
    let of_url = ["export", "--url", &url, "--format", "arrow"];
    assert_eq!(stream_rows(&stdout(&of_url)), rows);
    let one = ["query", "--url", &url, "--format", "arrow", "--hour", "1"];
    assert_eq!(stream_rows(&stdout(&one)), rows[..2]);
    let none = [&of_url[..], &["--from", "2", "--to", "3"]].concat();
    assert!(stream_rows(&stdout(&none)).is_empty());
    daemon.stop();
    let of_dir = ["export", "--data-dir", &bench.db, "--format", "arrow"];
    assert_eq!(stream_rows(&stdout(&of_dir)), rows);
}

#[test]
fn a_day_is_a_file_with_exact_types_and_statistics() {
    let bench = Bench::new();
    let daemon = Daemon::start(Path::new(&bench.db));
    let mut random = random("a day");
    let hours = [0, 7, 23, 24, 47, SUNDAY, SUNDAY + 23, MONDAY];
    let flows: Vec<TestFlow> = (0..4000).map(|_| odd_flow(&mut random, &hours)).collect();
    daemon.client.accept(&flows);
    let rows = daemon.client.get("/flows?from=0", &[]).unwrap().rows();
    let (days, url) = (bench.dir.path().join("a/days"), url(&daemon));
    let to_dir = days.to_str().unwrap();
    let export = ["export", "--format", "parquet", "--to-dir", to_dir];
    let from_url = [&export[..], &["--url", &url]].concat();
    let out = String::from_utf8(stdout(&from_url)).unwrap();
    assert_eq!(out, format!("4 files written, with {} rows\n", rows.len()));
    let names = [
        "flows-2026-11-29.parquet",
        "flows-2026-11-30.parquet",
        "flows-hours-000000-000023.parquet",
        "flows-hours-000024-000047.parquet",
    ];
    assert_eq!(names_in(&days), names);
    // Names sort as hours do, except that numbers come after dates.
    let in_order = [names[2], names[3], names[0], names[1]];
    let all = in_order.map(|name| parquet_rows(&days.join(name)));
    assert_eq!(all.concat(), rows);
    assert!(all[0].iter().all(|(key, _)| key.0 < 24));
    let maximum = rows.iter().any(|(_, sums)| sums.tx == u64::MAX);
    assert!(maximum, "no sum is exact only as u64");

    let file = SerializedFileReader::new(File::open(days.join(names[0])).unwrap()).unwrap();
    let metadata = file.metadata();
    let types: Vec<_> = metadata
        .file_metadata()
        .schema_descr()
        .columns()
        .iter()
        .map(|column| (column.name().to_owned(), column.logical_type_ref().cloned()))
        .collect();
    let text = || Some(LogicalType::String);
    let unsigned = |bit_width| Some(LogicalType::integer(bit_width, false));
    assert_eq!(
        types,
        [
            ("src_app".to_owned(), text()),
            ("dest_app".to_owned(), text()),
            ("vpc_id".to_owned(), text()),
            ("bytes_tx".to_owned(), unsigned(64)),
            ("bytes_rx".to_owned(), unsigned(64)),
            ("hour".to_owned(), unsigned(32)),
        ]
    );
    for row_group in metadata.row_groups() {
        let sorted = row_group.sorting_columns().unwrap();
        let sorted: Vec<i32> = sorted.iter().map(|column| column.column_idx).collect();
        assert_eq!(sorted, [5, 0, 1, 2]);
        for (at, column) in row_group.columns().iter().enumerate() {
            assert!(matches!(column.compression(), Compression::ZSTD(_)));
            assert!(column.statistics().unwrap().min_bytes_opt().is_some());
            let has_dictionary = column
                .encodings()
                .any(|encoding| encoding == Encoding::RLE_DICTIONARY);
            assert_eq!(has_dictionary, at < 3 || at == 5, "{at}");
        }
    }

    // From the directory, everything is the same, so nothing is written.
    daemon.stop();
    let from_dir = [&export[..], &["--data-dir", &bench.db]].concat();
    let out = String::from_utf8(stdout(&from_dir)).unwrap();
    assert_eq!(out, "0 files written, with 0 rows; 4 files unchanged\n");
}

#[test]
fn an_export_is_repeated_and_never_loses_what_a_file_has() {
    let bench = Bench::new();
    let daemon = Daemon::start(Path::new(&bench.db));
    let flow = |hour, src: &str| TestFlow::new(hour, src, "d", "v", 5, 1);
    daemon
        .client
        .accept(&[flow(SUNDAY, "a"), flow(SUNDAY + 1, "b"), flow(MONDAY, "c")]);
    let (days, url) = (bench.dir.path().join("days"), url(&daemon));
    let export = |more: &[&str]| {
        let all = ["export", "--format", "parquet", "--url", &url];
        let to_dir = ["--to-dir", days.to_str().unwrap()];
        flowtally(&[&all[..], &to_dir, more].concat())
    };
    let done = |out: &str| (Some(0), out.to_owned(), String::new());
    let (sunday, monday) = (
        days.join("flows-2026-11-29.parquet"),
        days.join("flows-2026-11-30.parquet"),
    );
    let first = export(&["--from", "2026-11-29", "--to", "2026-11-30"]);
    assert_eq!(first, done("1 file written, with 2 rows\n"));
    let all = "1 file written, with 1 rows; 1 file unchanged\n";
    assert_eq!(export(&[]), done(all));
    // What a killed export has left is removed.
    let left = days.join(".flows-2026-11-30.parquet.part");
    std::fs::write(&left, "PAR1").unwrap();
    let none = "0 files written, with 0 rows; 2 files unchanged\n";
    assert_eq!(export(&[]), done(none));
    assert!(!left.exists());
    // New flows of a day.
    daemon.client.accept(&[flow(MONDAY, "c")]);
    assert_eq!(export(&[]), done(all));
    assert_eq!(parquet_rows(&monday)[0].1, Counters { tx: 10, rx: 2 });
    // The service no longer has an hour, and nothing else has changed.
    let deleted = format!("/flows?hour={SUNDAY}");
    assert_eq!(daemon.client.delete(&deleted).unwrap().status, 200);
    assert_eq!(export(&[]), done(none));
    assert_eq!(parquet_rows(&sunday).len(), 2);
    // And now something has.
    daemon.client.accept(&[flow(SUNDAY + 1, "b")]);
    let (status, out, error) = export(&[]);
    let one_left = "0 files written, with 0 rows; 1 file unchanged\n";
    assert_eq!((status, &*out), (Some(1), one_left));
    assert!(error.contains("flows-2026-11-29.parquet: "), "{error}");
    assert!(error.contains("no longer has all others"), "{error}");
    assert_eq!(parquet_rows(&sunday)[1].1.tx, 5);
    std::fs::remove_file(&sunday).unwrap();
    assert_eq!(export(&[]), done(all));
    assert_eq!(parquet_rows(&sunday).len(), 1);
    // Files of others are not replaced.
    std::fs::write(&sunday, "PAR1").unwrap();
    let (status, _, error) = export(&[]);
    assert_eq!(status, Some(1));
    assert!(error.contains("flows-2026-11-29.parquet: "), "{error}");
    assert!(error.contains("move it away"), "{error}");
    let (status, _, error) = export(&["--from", "2026-11-29T10"]);
    assert_eq!(status, Some(1), "{error}");
    assert!(error.contains("give 498864 or 498888"), "{error}");
    let (status, _, error) = flowtally(&["export", "--url", &url, "--format", "parquet"]);
    assert_eq!(status, Some(2), "{error}");
    assert!(error.contains("--to-dir"), "{error}");
    let (status, _, error) = flowtally(&["export", "--url", &url, "--to-dir", "x"]);
    assert_eq!(status, Some(1), "{error}");
    assert!(error.contains("--format parquet"), "{error}");
    daemon.stop();
}
