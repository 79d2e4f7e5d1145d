//! Files as people have them, in `tests/data/cases/`, and what is right for each of them (`INDEX.md` there
//! says why): imported, sent, and as the bodies of requests, by the real binary.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::import::{Bench, import};
use crate::send::{parts, url};
use crate::support::{Daemon, JSON, NDJSON};

/// What comes of a file.
struct Case {
    file: &'static str,
    arguments: &'static [&'static str],
    /// Flows that count, and those that are refused.
    flows: u64,
    refused: u64,
    /// Rows as CSV, in order.
    rows: &'static [&'static str],
    /// Is said, on either stream.
    says: &'static [&'static str],
}

const fn case(
    file: &'static str,
    [flows, refused]: [u64; 2],
    rows: &'static [&'static str],
    says: &'static [&'static str],
) -> Case {
    Case {
        file,
        arguments: &[],
        flows,
        refused,
        rows,
        says,
    }
}

const fn with(arguments: &'static [&'static str], case: Case) -> Case {
    Case { arguments, ..case }
}

const LOG_FORMAT: &[&str] = &["--format", "vpc-flow-logs"];
const V01: &[&str] = &[
    "10.20.0.5,10.20.0.9,,8400,0,492985",
    "10.20.0.9,10.20.0.5,,61000,0,492985",
];
const WEB: &[&str] = &["web,db,vpc-1,100,2000,492985"];
const TWO: &[&str] = &["web,db,vpc-1,101,2001,492985"];
const THREE: &[&str] = &[
    "Zürich-web,db,vpc-1,7,8,492985",
    "web,db,vpc-1,101,2001,492985",
];
const NOT_OURS: &str = "flowtally counts flows between applications";

/// A file of which nothing can be read has no flow, none refused, and says what it is.
const CASES: &[Case] = &[
    case(
        "v01-v2-header.log",
        [2, 0],
        V01,
        &["1 records without traffic skipped (0 NODATA, 0 SKIPDATA, 1 REJECT)"],
    ),
    case(
        "v02-v2-no-header.log",
        [0, 0],
        &[],
        &["without its header", "--format vpc-flow-logs"],
    ),
    with(LOG_FORMAT, case("v02-v2-no-header.log", [2, 0], V01, &[])),
    case(
        "v03-v5-custom-order.log",
        [2, 0],
        &["10.20.0.5,203.0.113.40,vpc-0c1d2e3f405162738,9000,410000,492985"],
        &["(1 NODATA, 1 SKIPDATA, 0 REJECT)"],
    ),
    with(
        &["--count", "sender"],
        case(
            "v03-v5-custom-order.log",
            [1, 0],
            &["10.20.0.5,203.0.113.40,vpc-0c1d2e3f405162738,9000,0,492985"],
            &["1 records of the other end skipped"],
        ),
    ),
    with(
        &["--count", "receiver"],
        case(
            "v03-v5-custom-order.log",
            [1, 0],
            &["10.20.0.5,203.0.113.40,vpc-0c1d2e3f405162738,0,410000,492985"],
            &["1 records of the other end skipped"],
        ),
    ),
    case(
        "v04-nodata-without-times.log",
        [1, 0],
        &["10.20.0.5,10.20.0.9,,8400,0,492985"],
        &["(1 NODATA, 1 SKIPDATA, 0 REJECT)"],
    ),
    with(
        &["--apps", "v06-apps.csv"],
        case(
            "v06-ipv6-and-mapped.log",
            [3, 0],
            &["web,db,,500,0,492985", "web6,db6,,311,0,492985"],
            &[],
        ),
    ),
    case(
        "v06-ipv6-and-mapped.log",
        [3, 0],
        &[
            "10.20.0.5,10.20.0.9,,500,0,492985",
            "2001:db8:20::5,2001:db8:20::9,,311,0,492985",
        ],
        &[],
    ),
    case(
        "v07-transit-gateway.log",
        [0, 0],
        &[],
        &["Transit Gateway", "not read"],
    ),
    case("v09-tabs.log", [2, 0], V01, &[]),
    case("v11-cloudwatch-export.log.gz", [2, 0], V01, &["1 NODATA"]),
    with(
        LOG_FORMAT,
        case("v11-cloudwatch-export.log.gz", [2, 0], V01, &["1 NODATA"]),
    ),
    case(
        "v12-cloudwatch-console.csv",
        [0, 0],
        &[],
        &["the CloudWatch console's CSV"],
    ),
    case(
        "v13-cloudwatch-subscription.json.gz",
        [0, 1],
        &[],
        &["the envelope of a CloudWatch subscription"],
    ),
    case(
        "v14-firehose-no-newlines.json",
        [0, 1],
        &[],
        &["several values are on one line"],
    ),
    case(
        "v16-glued-header.log",
        [4, 0],
        &[
            "10.20.0.5,10.20.0.9,,67400,0,492985",
            "10.20.0.9,10.20.0.5,,61000,0,492985",
        ],
        &[],
    ),
    case(
        "v16-glued-header.log.gz",
        [4, 0],
        &[
            "10.20.0.5,10.20.0.9,,67400,0,492985",
            "10.20.0.9,10.20.0.5,,61000,0,492985",
        ],
        &[],
    ),
    case(
        "v17-twice-gzipped.log.gz",
        [0, 0],
        &[],
        &["compressed twice"],
    ),
    case(
        "v18-both-enis-v2.log",
        [2, 0],
        &["10.20.0.5,10.20.0.9,,16800,0,492985"],
        &[
            "warning: line 3: ",
            "recorded at more than one interface",
            "docs/directions.md",
        ],
    ),
    with(
        &["--count", "sender"],
        case(
            "v18-both-enis-v2.log",
            [0, 0],
            &[],
            &["line 1: ", "no flow-direction"],
        ),
    ),
    case(
        "v19-hour-boundary.log",
        [2, 0],
        &[
            "10.20.0.5,10.20.0.9,,1000,0,492985",
            "10.20.0.5,10.20.0.9,,10,0,492986",
        ],
        &[],
    ),
    case(
        "v20-athena-result.csv",
        [0, 0],
        &[],
        &["as Athena writes it"],
    ),
    case("v21-parquet-magic.log.parquet", [0, 0], &[], &["Parquet"]),
    case(
        "v24-milliseconds.log",
        [0, 1],
        &[],
        &["line 2: start: 1774746000000 is not a time", "in seconds"],
    ),
    case("v25-truncated.log.gz", [0, 0], &[], &["breaks off"]),
    case("v26-a-tar.tar.gz", [0, 0], &[], &["a tar archive"]),
    case("j01-bom.ndjson", [2, 0], TWO, &[]),
    case("j02-crlf.ndjson", [2, 0], TWO, &[]),
    case(
        "j04-pretty-objects.ndjson",
        [0, 0],
        &[],
        &["an object over several lines", "jq -c . FILE"],
    ),
    case(
        "j06-lines-with-commas.ndjson",
        [1, 2],
        &["Zürich-web,db,vpc-1,7,8,492985"],
        &[
            "line 1: a comma follows the flow",
            "line 2: a comma follows the flow",
            "[ ]",
        ],
    ),
    case("j07-pretty-array.json", [3, 0], THREE, &[]),
    case("j08-two-arrays.json", [3, 0], THREE, &[]),
    case("j08-two-arrays.json.gz", [3, 0], THREE, &[]),
    case(
        "j09-duplicate-keys.json",
        [0, 1],
        &[],
        &["flow 0: bytes_tx: the field is given twice"],
    ),
    case(
        "j10-surrogates.json",
        [1, 0],
        &["📦-web,db\0x,vpc-1,1,0,492985"],
        &[],
    ),
    case(
        "j11-lone-surrogate.ndjson",
        [2, 1],
        TWO,
        &["line 2: src_app: "],
    ),
    case(
        "j12-numbers.ndjson",
        [4, 12],
        &[
            "n11,db,,18446744073709551615,0,492985",
            "n13,db,,9007199254740993,0,492985",
            "n14,db,,100,0,492985",
            "n15,db,,100,0,492985",
        ],
        &["line 1: bytes_tx: ", "line 10: bytes_tx: "],
    ),
    case(
        "j14-big-sums.ndjson",
        [3, 0],
        &["big,db,vpc-1,18446744073709551615,27021597764222979,492985"],
        &[],
    ),
    // Arrays one after the other are read, and these are some: as of j08, with a flow in each.
    case("j15-array-a-line.ndjson", [2, 0], TWO, &[]),
    with(
        &["--format", "ndjson"],
        case(
            "j15-array-a-line.ndjson",
            [0, 2],
            &[],
            &["line 1: an array, and not a flow; --format json"],
        ),
    ),
    case("j17-utf16.json", [0, 0], &[], &["iconv -f UTF-16 -t UTF-8"]),
    case("j18-latin1.ndjson", [2, 1], TWO, &["line 2: not UTF-8"]),
    case(
        "j19-wrapped.json",
        [0, 1],
        &[],
        &["an object with flows in it"],
    ),
    case("j20-telegraf-batch.json", [0, 1], &[], &["Telegraf"]),
    case("j21-fluent-bit-json_lines.body", [2, 0], TWO, &[]),
    case(
        "j22-azure-vnet-flow-log.json",
        [0, 1],
        &[],
        &["an Azure flow log", NOT_OURS],
    ),
    case(
        "j23-gcp-vpc-flows.ndjson",
        [0, 1],
        &[],
        &["a Google Cloud VPC flow log", NOT_OURS],
    ),
    case("j24-hubble.ndjson", [0, 1], &[], &["Hubble's", NOT_OURS]),
    case("c01-excel-semicolons-bom.csv", [0, 0], &[], &["semicolons"]),
    case("c02-excel-sep-line.csv", [0, 0], &[], &["a sep= line"]),
    case(
        "c03-excel-unicode-text.csv",
        [0, 0],
        &[],
        &["iconv -f UTF-16 -t UTF-8"],
    ),
    case("c04-bom-quoted-crlf.csv", [1, 0], WEB, &[]),
    case(
        "c06-formulas.csv",
        [6, 0],
        &[
            "\tweb,db,vpc-1,1,1,492985",
            "+1,db,vpc-1,1,1,492985",
            "-1,db,vpc-1,1,1,492985",
            "=1+1,db,vpc-1,1,1,492985",
            "\"=HYPERLINK(\"\"http://x.example\"\",\"\"y\"\")\",db,vpc-1,1,1,492985",
            "@SUM(1),db,vpc-1,1,1,492985",
        ],
        &[],
    ),
    case(
        "c07-excel-empty-column-and-rows.csv",
        [0, 0],
        &[],
        &["a column has no name"],
    ),
    case(
        "c08-blank-comma-rows.csv",
        [1, 2],
        WEB,
        &["line 3: an empty row", "line 4: an empty row"],
    ),
    case(
        "c09-header-case-and-spaces.csv",
        [0, 0],
        &[],
        &["\"Src_App\", which has to be written src_app"],
    ),
    case(
        "c11-spreadsheet-numbers.csv",
        [1, 9],
        &["x6,db,vpc-1,7,1,492985"],
        &["line 2: bytes_tx: "],
    ),
    case(
        "c14-nul-and-control.csv",
        [1, 0],
        &["we\0b,d\x1bb,vpc-1,1,1,492985"],
        &[],
    ),
    case("z01-skippable-frame-first.ndjson.zst", [2, 0], TWO, &[]),
    case("z02-skippable-frame-last.ndjson.zst", [2, 0], TWO, &[]),
    case(
        "z04-two-frames.ndjson.zst",
        [4, 0],
        &["web,db,vpc-1,202,4002,492985"],
        &[],
    ),
    case("z05-zeros-behind.ndjson.gz", [2, 0], TWO, &[]),
    case("z06-plain-named-gz.ndjson.gz", [2, 0], TWO, &[]),
];

/// What comes before the end of a file that breaks off is sent.
const SENT_IN_PART: &str = "v25-truncated.log.gz";

/// Held by tests of their own, or not read.
const ELSEWHERE: &[&str] = &[
    "INDEX.md",
    "gen_many_hours.py",
    "redirect.py",
    "v06-apps.csv",
    // `what_a_body_may_be`, below, and `one_bad_in_a_thousand`.
    "j25-one-bad-in-a-thousand.ndjson",
    // The edge of HTTP.
    "r01-java-h2c-upgrade.http",
    "r02-no-content-type-foreign-origin.http",
];

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/cases")
        .join(file)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

impl Case {
    fn arguments(&self) -> Vec<String> {
        let file = text(&path(self.file)).to_owned();
        let arguments = self.arguments.iter().map(|&argument| match argument {
            "v06-apps.csv" => text(&path(argument)).to_owned(),
            argument => argument.to_owned(),
        });
        std::iter::once(file).chain(arguments).collect()
    }

    fn check(&self, (status, out, error): (Option<i32>, String, String), done: &str, rows: &str) {
        let name = format!("{} {:?}", self.file, self.arguments);
        let is_good = self.refused == 0 && self.flows > 0;
        assert_eq!(status, Some(i32::from(!is_good)), "{name}: {out}{error}");
        assert!(
            out.starts_with(&format!("{} flows {done} in ", self.flows)),
            "{name}: {out}"
        );
        assert!(
            out.contains(&format!("; {} refused", self.refused)),
            "{name}: {out}"
        );
        for word in self.says {
            assert!(
                out.contains(word) || error.contains(word),
                "{name}: {word}: {out}{error}"
            );
        }
        if self.flows == 0 && self.refused == 0 {
            let errors = error.lines().filter(|line| line.starts_with("flowtally: "));
            assert_eq!(errors.count(), 1, "{name}: {error}");
        }
        let rows: Vec<&str> = rows.lines().skip(1).collect();
        assert_eq!(rows, self.rows, "{name}");
    }
}

fn export(from: &[&str]) -> String {
    let mut command = Command::new(Daemon::binary());
    let output = command
        .args(["export", "--format", "csv"])
        .args(from)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_file_has_its_case() {
    let dir = std::fs::read_dir(path("")).unwrap();
    let names = dir.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let is_known = |name: &String| {
        CASES.iter().any(|case| case.file == name) || ELSEWHERE.contains(&name.as_str())
    };
    let forgotten: Vec<String> = names.filter(|name| !is_known(name)).collect();
    assert_eq!(forgotten, [""; 0]);
}

#[test]
fn imported() {
    for case in CASES {
        let bench = Bench::new();
        let arguments = case.arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let outcome = import(&[&arguments[..], &["--data-dir", &bench.db]].concat());
        let rows = match Path::new(&bench.db).exists() {
            true => export(&["--data-dir", &bench.db]),
            false => String::new(),
        };
        case.check(outcome, "imported", &rows);
    }
}

#[test]
fn sent() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let url = url(&daemon);
    for case in CASES.iter().filter(|case| case.file != SENT_IN_PART) {
        let mut command = Command::new(Daemon::binary());
        // Some are the same, once they are decompressed.
        command
            .args(["send", "--again", "--url", &url])
            .args(case.arguments());
        let outcome = parts(&command.output().unwrap());
        case.check(
            outcome,
            "sent",
            &export(&["--url", &url, "--from", "0", "--to", "500000"]),
        );
        for hour in [492_985, 492_986] {
            daemon
                .client
                .delete(&format!("/flows?hour={hour}"))
                .unwrap();
        }
    }
    daemon.stop();
}

#[test]
fn one_bad_in_a_thousand() {
    let bench = Bench::new();
    let file = path("j25-one-bad-in-a-thousand.ndjson");
    let (status, out, error) = import(&[text(&file), "--data-dir", &bench.db]);
    assert_eq!(status, Some(1), "{error}");
    assert!(
        out.starts_with("999 flows imported") && out.contains("; 1 refused"),
        "{out}"
    );
    assert!(error.contains("line 618: bytes_rx: "), "{error}");
    assert_eq!(bench.hour(492_985).len(), 999);
}

/// What is exported can be imported, and is the same.
#[test]
fn names_come_back_the_same() {
    let bench = Bench::new();
    for file in [
        "j10-surrogates.json",
        "c06-formulas.csv",
        "c14-nul-and-control.csv",
    ] {
        import(&[text(&path(file)), "--data-dir", &bench.db]);
    }
    let expected = bench.hour(492_985);
    assert_eq!(expected.len(), 8);
    for format in ["csv", "ndjson"] {
        let output = Command::new(Daemon::binary())
            .args(["export", "--data-dir", &bench.db, "--format", format])
            .output()
            .unwrap();
        let again = Bench::new();
        let file = again.file(format, &output.stdout);
        let (status, _, error) = import(&[&file, "--data-dir", &again.db]);
        assert_eq!(status, Some(0), "{error}");
        assert_eq!(again.hour(492_985), expected, "{format}");
    }
}

#[test]
fn what_a_body_may_be() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    const ZSTD: (&str, &str) = ("content-encoding", "zstd");
    const GZIP: (&str, &str) = ("content-encoding", "gzip");
    for (file, headers, status, says) in [
        (
            "j02-crlf.ndjson",
            &[NDJSON][..],
            200,
            &["{\"accepted\":2}"][..],
        ),
        (
            "j04-pretty-objects.ndjson",
            &[NDJSON],
            400,
            &["\"index\":0"],
        ),
        (
            "j06-lines-with-commas.ndjson",
            &[NDJSON],
            400,
            &["\"index\":0"],
        ),
        ("j07-pretty-array.json", &[JSON], 200, &["{\"accepted\":3}"]),
        // A request has one batch.
        (
            "j08-two-arrays.json",
            &[JSON],
            400,
            &["trailing characters"],
        ),
        (
            "j08-two-arrays.json.gz",
            &[JSON, GZIP],
            400,
            &["trailing characters"],
        ),
        (
            "j09-duplicate-keys.json",
            &[JSON],
            400,
            &["\"index\":0", "\"field\":\"bytes_tx\""],
        ),
        ("j10-surrogates.json", &[JSON], 200, &["{\"accepted\":1}"]),
        (
            "j11-lone-surrogate.ndjson",
            &[NDJSON],
            400,
            &["\"index\":1", "\"field\":\"src_app\""],
        ),
        (
            "j12-numbers.ndjson",
            &[NDJSON],
            400,
            &["\"index\":0", "\"field\":\"bytes_tx\""],
        ),
        (
            "j15-array-a-line.ndjson",
            &[NDJSON],
            400,
            &["expected a flow object"],
        ),
        ("j17-utf16.json", &[JSON], 400, &["\"status\":400"]),
        ("j18-latin1.ndjson", &[NDJSON], 400, &["not UTF-8 at byte"]),
        ("j19-wrapped.json", &[JSON], 400, &["an array of flows"]),
        (
            "j20-telegraf-batch.json",
            &[JSON],
            400,
            &["an array of flows"],
        ),
        (
            "j21-fluent-bit-json_lines.body",
            &[NDJSON],
            200,
            &["{\"accepted\":2}"],
        ),
        (
            "j25-one-bad-in-a-thousand.ndjson",
            &[NDJSON],
            400,
            &[
                "\"index\":617",
                "\"field\":\"bytes_rx\"",
                "nothing of the batch was counted",
            ],
        ),
        (
            "z01-skippable-frame-first.ndjson.zst",
            &[NDJSON, ZSTD],
            200,
            &["{\"accepted\":2}"],
        ),
        (
            "z02-skippable-frame-last.ndjson.zst",
            &[NDJSON, ZSTD],
            200,
            &["{\"accepted\":2}"],
        ),
        (
            "z04-two-frames.ndjson.zst",
            &[NDJSON, ZSTD],
            200,
            &["{\"accepted\":4}"],
        ),
    ] {
        let body = std::fs::read(path(file)).unwrap();
        let answer = daemon.client.post("/flows", headers, &body).unwrap();
        let text = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.status, status, "{file}: {text}");
        assert!(
            says.iter().all(|word| text.contains(word)),
            "{file}: {text}"
        );
    }
    daemon.stop();
}

/// The command in a message makes flows of the file.
#[test]
fn the_next_step_is_right() {
    for (file, step, rows) in [
        (
            "c01-excel-semicolons-bom.csv",
            "tr ';' ',' <FILE | flowtally import -",
            WEB,
        ),
        (
            "c02-excel-sep-line.csv",
            "tail -n +2 FILE | flowtally import -",
            WEB,
        ),
        (
            "c07-excel-empty-column-and-rows.csv",
            "cut -d, -f1-6 FILE | flowtally import -",
            WEB,
        ),
        (
            "j04-pretty-objects.ndjson",
            "jq -c . FILE | flowtally import -",
            TWO,
        ),
        (
            "j19-wrapped.json",
            "jq -c '.. | objects | select(has(\"src_app\"))' FILE | flowtally import -",
            &["web,db,vpc-1,1,2,492985"],
        ),
        (
            "j20-telegraf-batch.json",
            "jq -c '(.metrics // [.])[] | .tags + .fields' FILE | flowtally import -",
            &["web,db,vpc-1,1,2,492985"],
        ),
        (
            "v12-cloudwatch-console.csv",
            "tail -n +2 FILE | cut -d, -f2 | tr -d '\"' | flowtally import --format vpc-flow-logs -",
            V01,
        ),
        (
            "v14-firehose-no-newlines.json",
            "jq -r .message FILE | flowtally import --format vpc-flow-logs -",
            V01,
        ),
        (
            "v17-twice-gzipped.log.gz",
            "gzip -dc FILE | flowtally import -",
            V01,
        ),
        (
            "v20-athena-result.csv",
            "sed 's/\"\"/-/g; s/\"//g; 1s/_/-/g; y/,/ /' FILE | flowtally import -",
            &V01[..1],
        ),
        (
            "v26-a-tar.tar.gz",
            "tar -xOf FILE | flowtally import -",
            V01,
        ),
    ] {
        let file = path(file);
        let file = text(&file);
        let bench = Bench::new();
        let (_, out, error) = import(&[file, "--data-dir", &bench.db]);
        assert!(error.contains(step), "{file}: {step}: {out}{error}");
        if step.starts_with("jq") && Command::new("jq").arg("--version").output().is_err() {
            println!("{file}: NOT RUN, there is no jq");
            continue;
        }
        let step = step
            .replace("FILE", file)
            .replace("flowtally", text(&Daemon::binary()));
        let step = format!("{step} --data-dir {}", bench.db);
        let output = Command::new("sh").args(["-c", &step]).output().unwrap();
        let (_, _, error) = parts(&output);
        assert!(Path::new(&bench.db).exists(), "{step}: {error}");
        let exported = export(&["--data-dir", &bench.db]);
        assert_eq!(
            exported.lines().skip(1).collect::<Vec<_>>(),
            rows,
            "{step}: {error}"
        );
    }
}
