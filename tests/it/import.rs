//! `flowtally import`, into a data directory and through a running service.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::send::{csv_body, flows, parts, url};
use crate::support::{Daemon, Key, Model, add_to, hour_of, json_body, ndjson_body};
use crate::wait::poll_for;
use flow::Counters;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(Daemon::binary());
    command.arg("import").args(arguments);
    command
}

pub fn import(arguments: &[&str]) -> (Option<i32>, String, String) {
    parts(&command(arguments).output().unwrap())
}

fn import_pipe(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = command(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end before it has read all input.
    let _sent = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// A directory with files, and a data directory to import them into.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub db: String,
}

impl Bench {
    pub fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("db").to_str().unwrap().to_owned();
        Bench { dir, db }
    }

    pub fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The rows of an hour from a service on the data directory. The rows have to agree with the ledger.
    pub fn hour(&self, hour: u32) -> Vec<(Key, Counters)> {
        let daemon = Daemon::start(Path::new(&self.db));
        let rows = daemon.client.hour(hour);
        daemon.stop();
        let verify = Command::new(Daemon::binary())
            .args(["verify", "--data-dir", &self.db])
            .output()
            .unwrap();
        assert!(verify.status.success(), "{verify:?}");
        rows
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

#[test]
fn every_format_and_compression_is_imported() {
    let bench = Bench::new();
    let flows = flows(25_000);
    let bodies = [
        ("json", json_body(&flows)),
        ("ndjson", ndjson_body(&flows)),
        ("csv", csv_body(&flows)),
    ];
    let mut model = Model::new();
    let mut files = Vec::new();
    for (name, body) in &bodies {
        files.push(bench.file(name, body));
        files.push(bench.file(&format!("{name}.gz"), &gzip(body)));
        files.push(bench.file(
            &format!("{name}.zst"),
            &zstd::encode_all(&body[..], 1).unwrap(),
        ));
    }
    add_to(&mut model, &flows);
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let (status, out, error) = import(&[&files[..], &["--data-dir", &bench.db]].concat());
    assert_eq!(status, Some(0), "{error}");
    // All encodings are the same file.
    assert!(out.starts_with("25000 flows imported in "), "{out}");
    assert!(out.contains("; 200000 flows skipped, which"), "{out}");
    assert_eq!(bench.hour(1), hour_of(&model, 1));

    // A pipe counts each time.
    let output = import_pipe(&["-", "--data-dir", &bench.db], &gzip(&bodies[1].1));
    assert!(output.status.success(), "{output:?}");
    add_to(&mut model, &flows);
    assert_eq!(bench.hour(1), hour_of(&model, 1));

    let daemon = Daemon::start(&bench.dir.path().join("served"));
    let url = url(&daemon);
    let (status, out, error) = import(&[&files[..], &["--url", &url]].concat());
    assert_eq!(status, Some(0), "{error}");
    assert!(out.starts_with("25000 flows sent in "), "{out}");
    assert!(out.contains("; 200000 flows skipped, which"), "{out}");
    let output = import_pipe(&["-", "--url", &url], &bodies[0].1);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(daemon.client.hour(1), hour_of(&model, 1));
    let (status, out, error) = import(&[files[0], "--url", &url]);
    assert_eq!(status, Some(0), "{error}");
    assert!(out.starts_with("0 flows sent in 0 batches"), "{out}");
    assert_eq!(daemon.client.hour(1), hour_of(&model, 1));
    daemon.stop();
}

#[test]
fn a_file_counts_once_unless_again_is_given() {
    let bench = Bench::new();
    let flows = flows(30_000);
    let file = bench.file("flows.ndjson", &ndjson_body(&flows));
    let into = [&file, "--data-dir", &bench.db];
    let mut model = Model::new();
    for (more, known, counts) in [
        (
            &[][..],
            "30000 flows imported in 3 batches; 0 refused\n",
            true,
        ),
        (
            &[],
            "0 flows imported in 0 batches; 0 refused; 30000 flows skipped, which",
            false,
        ),
        (
            &["--again"],
            "30000 flows imported in 3 batches; 0 refused\n",
            true,
        ),
    ] {
        let (status, out, error) = import(&[&into[..], more].concat());
        assert_eq!(status, Some(0), "{error}");
        assert!(out.starts_with(known), "{out}");
        if counts {
            add_to(&mut model, &flows);
        }
        assert_eq!(bench.hour(1), hour_of(&model, 1));
    }
}

#[test]
fn invalid_flows_of_an_import_are_rejected_and_the_others_count() {
    let bench = Bench::new();
    let flows = flows(20_000);
    let mut model = Model::new();
    add_to(&mut model, &flows);
    let body = String::from_utf8(ndjson_body(&flows)).unwrap();
    let mut lines: Vec<&str> = body.lines().collect();
    let negative = lines[0].replace("\"hour\":1", "\"hour\":-1");
    lines.insert(12_344, "nonsense");
    lines.insert(3, &negative);
    let file = bench.file("flows.ndjson", lines.join("\n").as_bytes());
    let rejects = bench.dir.path().join("rejects.ndjson");
    let rejects = rejects.to_str().unwrap();
    let into = [&file, "--data-dir", &bench.db, "--rejects", rejects];

    let (status, out, error) = import(&[&into[..], &["--max-rejects", "0"]].concat());
    assert_eq!(status, Some(1), "{out}");
    assert!(out.starts_with("0 flows imported"), "{out}");
    assert!(error.contains("line 4: hour: "), "{error}");
    assert!(
        error.contains("--max-rejects 0 allows; none of it"),
        "{error}"
    );

    std::fs::remove_file(rejects).unwrap();
    let (status, out, error) = import(&[&into[..], &["--max-rejects", "2"]].concat());
    assert_eq!(status, Some(1));
    assert!(out.starts_with("20000 flows imported"), "{out}");
    assert!(
        error.contains("2 flows were refused; they are in"),
        "{error}"
    );
    let kept = std::fs::read_to_string(rejects).unwrap();
    // A second run appends none of them; under another name, it appends all.
    let (status, _, error) = import(&into);
    assert_eq!(status, Some(1));
    assert!(error.contains("2 flows were refused"), "{error}");
    assert_eq!(std::fs::read_to_string(rejects).unwrap(), kept);
    let other = bench.file("other.ndjson", lines.join("\n").as_bytes());
    let (status, _, _) = import(&[&other, "--data-dir", &bench.db, "--rejects", rejects]);
    assert_eq!(status, Some(1));
    let both = kept.clone() + kept.replace(&file, &other).as_str();
    assert_eq!(std::fs::read_to_string(rejects).unwrap(), both);
    let kept: Vec<serde_json::Value> = kept
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(kept.len(), 2);
    assert_eq!(kept[0]["flow"], negative);
    assert_eq!(kept[0]["place"], format!("{file}: line 4"));
    assert!(kept[0]["why"].as_str().unwrap().starts_with("hour: "));
    assert_eq!(kept[1]["flow"], "nonsense");
    assert_eq!(kept[1]["place"], format!("{file}: line 12346"));
    assert_eq!(bench.hour(1), hour_of(&model, 1));

    let daemon = Daemon::start(&bench.dir.path().join("served"));
    let url = url(&daemon);
    let (status, _, error) = import(&[&file, "--url", &url, "--max-rejects", "1"]);
    assert_eq!(status, Some(1));
    assert!(error.contains("--max-rejects 1 allows"), "{error}");
    let (status, out, error) = import(&[&file, "--url", &url]);
    assert_eq!(status, Some(1));
    assert!(out.contains("2 refused"), "{out}");
    assert!(error.contains("2 flows were refused; --rejects"), "{error}");
    let by_url = bench.dir.path().join("by-url.ndjson");
    for _ in 0..2 {
        let by_url = by_url.to_str().unwrap();
        let (status, _, error) = import(&[&file, "--url", &url, "--rejects", by_url]);
        assert_eq!(status, Some(1), "{error}");
    }
    let by_url = std::fs::read_to_string(by_url).unwrap();
    assert_eq!(by_url.lines().count(), 2);
    assert!(by_url.contains("flows.ndjson: line 4"), "{by_url}");
    let mut model = Model::new();
    add_to(&mut model, &flows);
    assert_eq!(daemon.client.hour(1), hour_of(&model, 1));
    daemon.stop();
}

/// The published examples of AWS's user guide, with another order of fields, through both commands.
#[test]
fn a_vpc_flow_log_is_imported() {
    let bench = Bench::new();
    let log = "\
version srcaddr dstaddr srcport dstport protocol start end type packets bytes account-id vpc-id subnet-id instance-id interface-id region az-id sublocation-type sublocation-id action tcp-flags pkt-srcaddr pkt-dstaddr pkt-src-aws-service pkt-dst-aws-service traffic-path flow-direction log-status
5 52.95.128.179 10.0.0.71 80 34210 6 1616729292 1616729349 IPv4 14 15044 123456789012 vpc-abcdefab012345678 subnet-aaaaaaaa012345678 i-0c50d5961bcb2d47b eni-1235b8ca123456789 ap-southeast-2 apse2-az3 - - ACCEPT 19 52.95.128.179 10.0.0.71 S3 - - ingress OK
5 10.0.0.71 52.95.128.179 34210 80 6 1616729292 1616729349 IPv4 7 471 123456789012 vpc-abcdefab012345678 subnet-aaaaaaaa012345678 i-0c50d5961bcb2d47b eni-1235b8ca123456789 ap-southeast-2 apse2-az3 - - ACCEPT 3 10.0.0.71 52.95.128.179 - S3 8 egress OK
5 10.0.0.71 52.95.128.179 34210 80 6 now
5 10.0.0.71 52.95.128.179 34210 80 6 now 1616729349 IPv4 7 471 123456789012 vpc-abcdefab012345678 subnet-aaaaaaaa012345678 i-0c50d5961bcb2d47b eni-1235b8ca123456789 ap-southeast-2 apse2-az3 - - ACCEPT 3 10.0.0.71 52.95.128.179 - S3 8 egress OK
";
    let old = "\
2 123456789010 eni-1235b8ca123456789 172.31.16.139 172.31.16.21 20641 22 6 20 4249 1418530010 1418530070 ACCEPT OK
2 123456789010 eni-1235b8ca123456789 172.31.9.69 172.31.9.12 49761 3389 6 20 4249 1418530010 1418530070 REJECT OK
2 123456789010 eni-1235b8ca123456789 - - - - - - - 1431280876 1431280934 - NODATA
2 123456789010 eni-11111111aaaaaaaaa - - - - - - - 1431280876 1431280934 - SKIPDATA
";
    let log = bench.file("log.gz", &gzip(log.as_bytes()));
    let old = bench.file("old.log", old.as_bytes());
    let apps = bench.file(
        "apps.csv",
        b"address,app\n10.0.0.0/16,batch\n52.95.0.0/16,s3\n172.31.16.139,bastion\n",
    );
    let row = |hour: u32, src: &str, dest: &str, vpc: &str, tx, rx| {
        vec![(
            (hour, src.to_owned(), dest.to_owned(), vpc.to_owned()),
            Counters { tx, rx },
        )]
    };
    let new_rows = row(449_091, "batch", "s3", "vpc-abcdefab012345678", 471, 15_044);
    let old_rows = row(394_036, "bastion", "172.31.16.21", "", 4249, 0);

    // The first has a header; the second has none.
    let daemon = Daemon::start(&bench.dir.path().join("served"));
    let url = url(&daemon);
    for into in [["--data-dir", &bench.db], ["--url", &url]] {
        let with_apps = [&into[..], &["--apps", &apps]].concat();
        let (status, out, error) = import(&[&[log.as_str()][..], &with_apps].concat());
        assert_eq!(status, Some(1), "{out}");
        assert!(
            error.contains("line 4: end: missing, the record has 7 fields"),
            "{error}"
        );
        assert!(
            error.contains("line 5: start: \"now\" is not a number"),
            "{error}"
        );
        let format = ["--format", "vpc-flow-logs", &old];
        let (status, out, error) = import(&[&format[..], &with_apps].concat());
        assert_eq!(status, Some(0), "{error}");
        assert!(
            out.contains("3 records without traffic skipped (1 NODATA, 1 SKIPDATA, 1 REJECT)"),
            "{out}"
        );
    }
    assert_eq!(daemon.client.hour(449_091), new_rows);
    assert_eq!(daemon.client.hour(394_036), old_rows);
    daemon.stop();
    assert_eq!(bench.hour(449_091), new_rows);
    assert_eq!(bench.hour(394_036), old_rows);

    // With other applications the same file would count a second time.
    let (status, _, error) = import(&["--format", "vpc-flow-logs", &old, "--data-dir", &bench.db]);
    assert_eq!(status, Some(1));
    assert!(
        error.contains("gave different flows then, with another --apps"),
        "{error}"
    );
    assert_eq!(bench.hour(394_036), old_rows);
}

/// Imports are killed after increasing times, alternately by SIGKILL and by SIGTERM, until one completes: every flow
/// counts once.
#[test]
fn an_interrupted_import_resumes() {
    let flows = flows(600_000);
    let mut model = Model::new();
    add_to(&mut model, &flows);
    let flows = zstd::encode_all(&json_body(&flows)[..], 1).unwrap();
    // On a busy machine, an import may complete while this test waits for a CPU to kill it.
    let is_interrupted = (0..10).any(|_| {
        let bench = Bench::new();
        let file = bench.file("flows.json.zst", &flows);
        let (killed, ended) = import_with_interruptions(&bench, &file);
        println!("killed {killed} times, ended by a signal {ended} times");
        assert_eq!(bench.hour(1), hour_of(&model, 1));
        let (status, out, error) = import(&[&file, "--data-dir", &bench.db]);
        assert_eq!(status, Some(0), "{error}");
        assert!(
            out.starts_with("0 flows imported in 0 batches; 0 refused; 600000 flows skipped"),
            "{out}"
        );
        assert_eq!(bench.hour(1), hour_of(&model, 1));
        killed > 1 && ended > 0
    });
    assert!(is_interrupted);
}

/// Returns how often an import was killed, and ended by itself because of a signal.
fn import_with_interruptions(bench: &Bench, file: &str) -> (u32, u32) {
    let (mut killed, mut ended) = (0, 0);
    let mut age = Duration::from_millis(10);
    for round in 0.. {
        let mut child = command(&[file, "--data-dir", &bench.db])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Each time is a quarter longer, so that one import completes however slow the machine is.
        age += age / 4;
        if let Some(status) = poll_for(age, || child.try_wait().unwrap()) {
            assert!(status.success(), "{:?}", child.wait_with_output());
            break;
        }
        if round % 2 == 0 {
            child.kill().unwrap();
            child.wait().unwrap();
            killed += 1;
            continue;
        }
        let kill = Command::new("kill").arg(child.id().to_string()).status();
        let _may_have_ended = kill.unwrap();
        let output = child.wait_with_output().unwrap();
        let (status, _, error) = parts(&output);
        match status {
            Some(0) => break,
            // The process does not handle signals yet.
            None => {}
            status => {
                assert_eq!(status, Some(128 + 15), "{error}");
                assert!(error.contains("run it again to import the rest"), "{error}");
                ended += 1;
            }
        }
    }
    (killed, ended)
}

#[test]
fn a_failed_import_names_the_cause_and_its_progress() {
    let bench = Bench::new();
    let flows = flows(40_000);
    let good = bench.file("good.json", &json_body(&flows));
    let mut cut = gzip(&ndjson_body(&flows));
    cut.truncate(cut.len() - 10);
    let cut = bench.file("cut.gz", &cut);
    let db = ["--data-dir", bench.db.as_str()];
    // The names are checked first.
    for (name, word) in [
        ("/nowhere/flows.json", "/nowhere/flows.json: No such file"),
        ("/tmp", "/tmp: is a directory; give a file"),
    ] {
        let (status, out, error) = import(&[&[good.as_str(), name][..], &db].concat());
        assert_eq!((status, out.as_str()), (Some(1), ""));
        assert!(
            error.contains(word) && error.lines().count() == 1,
            "{error}"
        );
        assert!(!PathBuf::from(&bench.db).exists());
    }
    // A directory is created only for the first flow, and is then named.
    let bad = bench.file("bad.ndjson", b"{nonsense\n");
    let (status, out, _) = import(&[&[bad.as_str()][..], &db].concat());
    assert_eq!(status, Some(1));
    assert!(out.starts_with("0 flows imported"), "{out}");
    assert!(!PathBuf::from(&bench.db).exists());
    let (status, out, error) = import(&[&[cut.as_str()][..], &db].concat());
    assert_eq!(status, Some(1));
    assert!(
        error.contains("cut.gz: the gzip data ends early: the file is incomplete"),
        "{error}"
    );
    assert!(error.contains("it is imported up to line "), "{error}");
    let made = format!("made a new data directory at {}\n", bench.db);
    assert!(error.contains(&made), "{error}");
    assert!(
        !out.starts_with("0 flows") && !out.starts_with("40000 flows"),
        "{out}"
    );

    for (name, text, word) in [
        (
            "a.csv",
            &b"src_app,dest_app\n"[..],
            "a.csv: read as CSV, its header has no vpc_id",
        ),
        (
            "a.log",
            b"version srcaddr dstaddr\n",
            "a.log: line 1: read as VPC flow logs, its header has no bytes",
        ),
        ("a.json", b"[{},", "a.json: flow 1, on line 1: EOF"),
    ] {
        let file = bench.file(name, text);
        let (status, out, error) = import(&[&[file.as_str()][..], &db].concat());
        assert_eq!(status, Some(1), "{out}");
        assert!(error.contains(word), "{error}");
        assert!(error.contains("; none of it was imported"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    let apps = bench.file("apps.csv", b"address,app\n10.0.0.0/8,a\n10.0.0.0/8,b\n");
    let (status, _, error) = import(&[&[good.as_str(), "--apps", &apps][..], &db].concat());
    assert_eq!(status, Some(1));
    assert!(
        error.contains("apps.csv: line 3: address: 10.0.0.0/8 is \"b\" here"),
        "{error}"
    );
    let (status, _, error) = import(&[&[good.as_str(), "--rejects", &good][..], &db].concat());
    assert_eq!(status, Some(1));
    assert!(error.contains("--rejects is also an input file"), "{error}");

    let served = bench.dir.path().join("served");
    let daemon = Daemon::start(&served);
    let (status, _, error) = import(&[&good, "--data-dir", served.to_str().unwrap()]);
    assert_eq!(status, Some(1));
    assert!(
        error.contains("in use") && error.contains("--url"),
        "{error}"
    );
    daemon.stop();
    // Both are an error.
    let both = ["--data-dir", &bench.db, "--url", "http://127.0.0.1:9"];
    assert_eq!(import(&[&[good.as_str()], &both[..]].concat()).0, Some(2));
}
