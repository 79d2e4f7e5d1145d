//! Files as users have them, in `tests/data/cases/`, with the expected result for each (`INDEX.md` there explains it):
//! imported, sent, and as bodies of requests, by the real binary.

mod table;

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::import::{Bench, import};
use crate::send::{parts, url};
use crate::support::{Daemon, JSON, NDJSON};
use table::{CASES, Case, TWO, V01, WEB};

/// Files with tests of their own, or that are not read.
const ELSEWHERE: &[&str] = &[
    "INDEX.md",
    "gen_many_hours.py",
    "redirect.py",
    "v06-apps.csv",
    // `bodies_of_each_format_and_encoding_are_accepted_or_refused`, below, and `one_invalid_line_in_a_thousand_is_rejected`.
    "j25-one-bad-in-a-thousand.ndjson",
    // Tested over HTTP.
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
fn each_example_file_is_imported_as_documented() {
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
fn each_example_file_is_sent_as_documented() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let url = url(&daemon);
    for case in CASES {
        let mut command = Command::new(Daemon::binary());
        // Some are equal after decompression.
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
fn one_invalid_line_in_a_thousand_is_rejected() {
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

/// Exported rows can be imported, and are equal.
#[test]
fn names_survive_export_and_import() {
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
fn bodies_of_each_format_and_encoding_are_accepted_or_refused() {
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
        ("j01-bom.ndjson", &[NDJSON], 200, &["{\"accepted\":2}"]),
        (
            "j21-fluent-bit-json_lines.body",
            &[JSON],
            200,
            &["{\"accepted\":2}"],
        ),
        (
            "j04-pretty-objects.ndjson",
            &[NDJSON],
            400,
            &["\"index\":0", "an object over several lines"],
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
            &["expected a flow object", "several arrays"],
        ),
        ("j17-utf16.json", &[JSON], 400, &["iconv -f UTF-16"]),
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
                "nothing of the batch counted",
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
            "z05-zeros-behind.ndjson.gz",
            &[NDJSON, GZIP],
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
        let response = daemon.client.post("/flows", headers, &body).unwrap();
        let text = String::from_utf8_lossy(&response.body);
        assert_eq!(response.status, status, "{file}: {text}");
        assert!(
            says.iter().all(|word| text.contains(word)),
            "{file}: {text}"
        );
    }
    daemon.stop();
}

/// The command in an error message converts the file into flows.
#[test]
fn the_suggested_command_converts_the_file() {
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
            "jq -r '.. | objects | (.message, .[\"@message\"], select(.field == \"@message\").value) | strings' FILE \
             | flowtally import --format vpc-flow-logs -",
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
