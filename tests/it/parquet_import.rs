//! Parquet as an input of `flowtally import`: exports, files of other programs, and AWS's flow logs.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow_array::{
    ArrayRef, BinaryArray, Decimal128Array, Float64Array, Int32Array, Int64Array, RecordBatch,
    StringArray,
};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, GzipLevel};
use parquet::file::properties::WriterProperties;

use crate::columns::{flowtally, stdout};
use crate::import::{Bench, import};
use crate::send::url;
use crate::support::{Daemon, TestFlow, odd_flow, random};
use flow::Counters;

/// Writes columns to a Parquet file, compressed as AWS does it.
fn write_parquet(path: &Path, columns: Vec<(&str, ArrayRef)>) -> String {
    let columns = columns.into_iter().map(|(name, array)| {
        let is_nullable = true;
        (name, array, is_nullable)
    });
    let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let properties = WriterProperties::builder()
        .set_compression(Compression::GZIP(GzipLevel::default()))
        .set_max_row_group_row_count(Some(2))
        .build();
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn an_export_is_imported_exactly_and_once() {
    let bench = Bench::new();
    let mut random = random("parquet import");
    let flows: Vec<TestFlow> = (0..3000)
        .map(|_| odd_flow(&mut random, &[0, 7, 24]))
        .collect();
    let from = bench.dir.path().join("from");
    let daemon = Daemon::start(&from);
    daemon.client.accept(&flows);
    let rows = daemon.client.get("/flows?from=0", &[]).unwrap().rows();
    let days = bench.dir.path().join("days");
    let (url_of, days) = (url(&daemon), days.to_str().unwrap());
    let export = ["export", "--url", &url_of, "--format"];
    stdout(&[&export[..], &["parquet", "--to-dir", days]].concat());
    let lines = stdout(&[&export[..], &["ndjson", "--to", "24"]].concat());
    daemon.stop();
    let [first, second] = ["000000-000023", "000024-000047"]
        .map(|hours| format!("{days}/flows-hours-{hours}.parquet"));
    let into = ["--data-dir", &bench.db];
    let (status, out, error) = import(&[&[&*first, &*second][..], &into].concat());
    assert_eq!(status, Some(0), "{error}");
    let all = format!("{} flows imported in ", rows.len());
    assert!(out.starts_with(&all), "{out}");
    // The same flows as text are the same file.
    let text = bench.file("flows.ndjson", &lines);
    let (status, out, error) = import(&[&[&*first, &*text][..], &into].concat());
    assert_eq!(status, Some(0), "{error}");
    assert!(out.starts_with("0 flows imported in "), "{out}");
    let daemon = Daemon::start(Path::new(&bench.db));
    let imported = daemon.client.get("/flows?from=0", &[]).unwrap().rows();
    assert_eq!(imported, rows);
    // Through the service, too.
    let (status, out, error) = import(&[&second, "--url", &url(&daemon)]);
    assert_eq!(status, Some(0), "{error}");
    assert!(out.starts_with("0 flows sent in "), "{out}");
    daemon.stop();
}

#[test]
fn parquet_of_other_programs_is_imported() {
    let bench = Bench::new();
    let path = |name: &str| bench.dir.path().join(name);
    let names =
        |names: [Option<&str>; 3]| -> ArrayRef { Arc::new(StringArray::from(names.to_vec())) };
    let bytes = |text: [&[u8]; 3]| -> ArrayRef { Arc::new(BinaryArray::from_vec(text.to_vec())) };
    let numbers = |numbers: [i64; 3]| -> ArrayRef { Arc::new(Int64Array::from(numbers.to_vec())) };
    // Signed integers, decimals and undeclared text; one row is wrong; the hour is in the path, and a column is unknown.
    let decimals = Decimal128Array::from(vec![0, 1, i128::from(u64::MAX)]);
    let decimals: ArrayRef = Arc::new(decimals.with_precision_and_scale(20, 0).unwrap());
    let note: ArrayRef = Arc::new(Float64Array::from(vec![0.5; 3]));
    std::fs::create_dir_all(path("hour=07")).unwrap();
    let file = write_parquet(
        &path("hour=07/data_0.parquet"),
        vec![
            ("note", note),
            ("vpc_id", bytes([b"", b"v", b"v"])),
            ("src_app", names([Some("a"), None, Some("c\n")])),
            ("dest_app", names([Some("x"), Some("y"), Some("z")])),
            ("bytes_tx", numbers([5, 6, 7])),
            ("bytes_rx", decimals),
        ],
    );
    let (status, out, error) = import(&[&file, "--data-dir", &bench.db]);
    assert_eq!(status, Some(1), "{error}");
    assert!(out.starts_with("2 flows imported in "), "{out}");
    assert!(error.contains("line 2: src_app"), "{error}");
    let row = |src: &str, dest: &str, vpc: &str, tx, rx| {
        let key = (7, src.to_owned(), dest.to_owned(), vpc.to_owned());
        (key, Counters { tx, rx })
    };
    let expected = [row("a", "x", "", 5, 0), row("c\n", "z", "v", 7, u64::MAX)];
    assert_eq!(bench.hour(7), expected);

    let good = || {
        vec![
            ("src_app", names([Some("a"); 3])),
            ("dest_app", names([Some("b"); 3])),
            ("vpc_id", names([Some("v"); 3])),
            ("bytes_tx", numbers([1; 3])),
            ("bytes_rx", numbers([1; 3])),
            ("hour", numbers([1; 3])),
        ]
    };
    let floats: ArrayRef = Arc::new(Float64Array::from(vec![1.0; 3]));
    let with = |at: usize, name: &'static str, array: &ArrayRef| {
        let mut columns = good();
        columns[at] = (name, array.clone());
        columns
    };
    for (columns, says) in [
        (
            with(3, "bytes_tx", &floats),
            "column bytes_tx has the type Float64",
        ),
        (
            with(0, "src_app", &numbers([1; 3])),
            "column src_app has the type Int64",
        ),
        (with(4, "received", &floats), "without the column bytes_rx"),
        (
            vec![("a", floats.clone()), ("b", floats.clone())],
            "but a, b",
        ),
        (
            with(0, "srcaddr", &floats),
            "column srcaddr has the type Float64",
        ),
        (
            with(0, "srcaddr", &names([Some("10.0.0.1"); 3])),
            "without the column dstaddr",
        ),
        (
            with(2, "vpc_id", &bytes([b"\xFF", b"v", b"v"])),
            "column vpc_id: ",
        ),
    ] {
        let file = write_parquet(&path("wrong.parquet"), columns);
        let (status, out, error) = import(&[&file, "--data-dir", &bench.db]);
        assert_eq!(status, Some(1), "{says}: {out}");
        assert!(error.contains("wrong.parquet: "), "{error}");
        assert!(error.contains(says), "{says}: {error}");
    }
    // Damaged, and cut.
    let file = write_parquet(&path("good.parquet"), good());
    let whole = std::fs::read(&file).unwrap();
    let mut damaged = whole.clone();
    damaged[4..40].fill(0xFF);
    for bytes in [&whole[..whole.len() - 9], &damaged, b"PAR1"] {
        let file = bench.file("damaged.parquet", bytes);
        let (status, _, error) = import(&[&file, "--data-dir", &bench.db]);
        assert_eq!(status, Some(1), "{error}");
        assert!(error.contains("undamaged copy"), "{error}");
    }
    // Other commands and pipes say who reads it.
    let daemon = Daemon::start(&path("served"));
    let (status, _, error) = flowtally(&["send", &file, "--url", &url(&daemon)]);
    daemon.stop();
    assert_eq!(status, Some(1));
    assert!(error.contains("flowtally import reads it"), "{error}");
    let (status, _, error) = import(&[&file, "--format", "csv", "--data-dir", &bench.db]);
    assert_eq!(status, Some(1));
    assert!(error.contains("leave --format"), "{error}");
    assert_eq!(bench.hour(7), expected);
}

/// A log of AWS, as text and as Parquet: two records that count, one of the other end, and one without traffic.
const LOG: &str = "\
version srcaddr dstaddr bytes start flow-direction vpc-id action log-status
2 10.0.0.5 10.0.0.9 8400 1774746005 egress vpc-1 ACCEPT OK
2 10.0.0.5 10.0.0.9 8400 1774746006 ingress vpc-2 ACCEPT OK
2 fd00::0:1 10.0.0.5 9223372036854775807 1774746007 egress - ACCEPT OK
2 - - - 1774746008 - - - NODATA
";

#[test]
fn flow_logs_of_aws_in_parquet_are_those_in_text() {
    let bench = Bench::new();
    let text =
        |values: [Option<&str>; 4]| -> ArrayRef { Arc::new(StringArray::from(values.to_vec())) };
    let numbers =
        |values: [Option<i64>; 4]| -> ArrayRef { Arc::new(Int64Array::from(values.to_vec())) };
    let hive = bench.dir.path().join("year=2026/month=03/day=29");
    std::fs::create_dir_all(&hive).unwrap();
    let sources = [Some("10.0.0.5"), Some("10.0.0.5"), Some("fd00::0:1"), None];
    let destinations = [Some("10.0.0.9"), Some("10.0.0.9"), Some("10.0.0.5"), None];
    let version: ArrayRef = Arc::new(Int32Array::from(vec![2; 4]));
    let start = 1_774_746_005;
    let directions = [Some("egress"), Some("ingress"), Some("egress"), Some("-")];
    let log = write_parquet(
        &hive.join("1_vpcflowlogs_eu-central-1_fl-1.log.parquet"),
        vec![
            ("version", version),
            ("srcaddr", text(sources)),
            ("dstaddr", text(destinations)),
            (
                "bytes",
                numbers([Some(8400), Some(8400), Some(i64::MAX), None]),
            ),
            ("start", numbers([0, 1, 2, 3].map(|at| Some(start + at)))),
            ("flow_direction", text(directions)),
            (
                "vpc_id",
                text([Some("vpc-1"), Some("vpc-2"), None, Some("")]),
            ),
            (
                "action",
                text([Some("ACCEPT"), Some("ACCEPT"), Some("ACCEPT"), None]),
            ),
            (
                "log_status",
                text([Some("OK"), Some("OK"), Some("OK"), Some("NODATA")]),
            ),
        ],
    );
    let apps = bench.file("apps.csv", b"address,app\n10.0.0.5,web\n");
    let into = [
        "--data-dir",
        &bench.db,
        "--apps",
        &apps,
        "--count",
        "sender",
    ];
    let (status, out, error) = import(&[&[&*log][..], &into].concat());
    assert_eq!(status, Some(0), "{error}");
    assert!(out.starts_with("2 flows imported in "), "{out}");
    for says in [
        "1 records without traffic skipped (1 NODATA, 0 SKIPDATA, 0 REJECT)",
        "1 records of the other end skipped",
    ] {
        assert!(out.contains(says), "{out}");
    }
    let row = |src: &str, dest: &str, vpc: &str, tx| {
        let key = (492_985, src.to_owned(), dest.to_owned(), vpc.to_owned());
        (key, Counters { tx, rx: 0 })
    };
    let rows = [
        row("fd00::1", "web", "", i64::MAX as u64),
        row("web", "10.0.0.9", "vpc-1", 8400),
    ];
    assert_eq!(bench.hour(492_985), rows);
    // The same records as text are the same file.
    let text = bench.file("flow.log", LOG.as_bytes());
    let (status, out, error) = import(&[&[&*text][..], &into].concat());
    assert_eq!(status, Some(0), "{error}");
    assert!(out.starts_with("0 flows imported in "), "{out}");
    assert_eq!(bench.hour(492_985), rows);
}
