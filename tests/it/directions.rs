//! Both ends of a conversation in VPC flow logs: the records of one end count, or a warning is printed if both do.

use std::process::Command;

use crate::import::{Bench, import};
use crate::send::{parts, url};
use crate::support::{Daemon, Key};
use flow::Counters;

const HEADER: &str = "interface-id srcaddr dstaddr bytes start flow-direction action log-status\n";
/// A sends 1000 to B, and B 50 to A; each interface records both.
const BOTH: &str = "\
eni-a 10.0.0.1 10.0.0.2 1000 1774746005 egress ACCEPT OK
eni-b 10.0.0.1 10.0.0.2 1000 1774746006 ingress ACCEPT OK
eni-b 10.0.0.2 10.0.0.1 50 1774746007 egress ACCEPT OK
eni-a 10.0.0.2 10.0.0.1 50 1774746008 ingress ACCEPT OK
";

fn row(source: &str, destination: &str, tx: u64, rx: u64) -> (Key, Counters) {
    let key = (492_985, source.into(), destination.into(), String::new());
    (key, Counters { tx, rx })
}

#[test]
fn count_selects_the_end_whose_records_count() {
    let bench = Bench::new();
    let log = bench.file("both.log", format!("{HEADER}{BOTH}").as_bytes());
    for (count, rows, says) in [
        (
            &[][..],
            vec![
                row("10.0.0.1", "10.0.0.2", 1000, 50),
                row("10.0.0.2", "10.0.0.1", 50, 1000),
            ],
            "",
        ),
        (
            &["--count", "both"],
            vec![
                row("10.0.0.1", "10.0.0.2", 1000, 50),
                row("10.0.0.2", "10.0.0.1", 50, 1000),
            ],
            "",
        ),
        (
            &["--count", "sender"],
            vec![
                row("10.0.0.1", "10.0.0.2", 1000, 0),
                row("10.0.0.2", "10.0.0.1", 50, 0),
            ],
            "; 2 records of the other end skipped",
        ),
        (
            &["--count", "receiver"],
            vec![
                row("10.0.0.1", "10.0.0.2", 0, 50),
                row("10.0.0.2", "10.0.0.1", 0, 1000),
            ],
            "; 2 records of the other end skipped",
        ),
    ] {
        let bench = Bench::new();
        let (status, out, error) = import(&[&[&log, "--data-dir", &bench.db], count].concat());
        assert_eq!(status, Some(0), "{error}");
        assert!(out.trim_end().ends_with(says), "{out}");
        assert_eq!(bench.hour(492_985), rows, "{count:?}");
        let daemon = Daemon::start(&bench.dir.path().join("served"));
        let mut send = Command::new(Daemon::binary());
        send.args(["send", "--url", &url(&daemon), &log])
            .args(count);
        let (status, out, error) = parts(&send.output().unwrap());
        assert_eq!(status, Some(0), "{error}");
        assert!(out.trim_end().ends_with(says), "{out}");
        assert_eq!(daemon.client.hour(492_985), rows, "{count:?}");
        daemon.stop();
    }
}

/// The warning is printed once for any number of files and conversations, but not if only one end is recorded or
/// counts.
#[test]
fn counting_both_ends_is_a_warning() {
    let bench = Bench::new();
    let v2 = "version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end \
              action log-status\n";
    let of_v2 = |interface: &str, ends: &str| {
        format!("2 1 {interface} {ends} 1 2 6 1 100 1774746005 1774746006 ACCEPT OK\n")
    };
    let (there, back) = ("10.0.0.1 10.0.0.2", "10.0.0.2 10.0.0.1");
    let rejected = of_v2("eni-b", there).replace("ACCEPT", "REJECT");
    for (name, text, warns) in [
        ("both", format!("{HEADER}{BOTH}{BOTH}"), Some("line 3: ")),
        (
            "no interfaces",
            format!("{HEADER}{BOTH}").replace("interface-id", "x"),
            Some("line 3: "),
        ),
        (
            "v2",
            format!("{v2}{}{}", of_v2("eni-a", there), of_v2("eni-b", there)),
            Some("line 3: "),
        ),
        (
            "mapped",
            format!(
                "{v2}{}{}",
                of_v2("a", "::1 ::ffff:1.1.1.1"),
                of_v2("b", "::1 1.1.1.1")
            ),
            Some("::1"),
        ),
        (
            "one",
            format!("{v2}{}{}", of_v2("eni-a", there), of_v2("eni-a", back)),
            None,
        ),
        (
            "again",
            format!("{v2}{}{}", of_v2("eni-a", there), of_v2("eni-a", there)),
            None,
        ),
        (
            "other",
            format!("{v2}{}{}", of_v2("eni-a", there), of_v2("eni-b", back)),
            None,
        ),
        (
            "rejected",
            format!("{v2}{}{rejected}", of_v2("eni-a", there)),
            None,
        ),
    ] {
        let log = bench.file(name, text.as_bytes());
        let other = bench.file("other", text.as_bytes());
        let (status, _, error) = import(&[&log, &other, "--again", "--data-dir", &bench.db]);
        assert_eq!(status, Some(0), "{name}: {error}");
        let warnings: Vec<&str> = error
            .lines()
            .filter(|line| line.starts_with("warning: "))
            .collect();
        match warns {
            None => assert_eq!(warnings, [""; 0], "{name}"),
            Some(word) => {
                assert_eq!(warnings.len(), 1, "{name}: {error}");
                assert!(warnings[0].contains(word), "{name}: {error}");
                assert!(
                    warnings[0].contains("more than one interface"),
                    "{name}: {error}"
                );
            }
        }
        if !text.starts_with("version") {
            let (_, _, error) = import(&[
                &log,
                "--again",
                "--count",
                "sender",
                "--data-dir",
                &bench.db,
            ]);
            assert!(!error.contains("warning"), "{name}: {error}");
        }
    }
}

/// The log does not contain the end that recorded each line.
#[test]
fn counting_one_end_of_a_log_without_directions_is_refused() {
    let bench = Bench::new();
    let record = "eni-a 10.0.0.1 10.0.0.2 1000 1774746005 - ACCEPT OK\n";
    let log = bench.file("no-value", format!("{HEADER}{record}{BOTH}").as_bytes());
    let (status, out, error) = import(&[&log, "--count", "receiver", "--data-dir", &bench.db]);
    assert_eq!(status, Some(1), "{error}");
    assert!(out.starts_with("2 flows imported"), "{out}");
    assert!(
        error.contains("line 2: flow-direction: missing, and required for --count receiver"),
        "{error}"
    );

    let (_, turned) = HEADER.split_once(' ').unwrap();
    let header = turned.replace(" flow-direction", "");
    let record = "10.0.0.1 10.0.0.2 1000 1774746005 ACCEPT OK\n";
    let log = bench.file("no-field", format!("{header}{record}").as_bytes());
    let default = "2 1 eni-a 10.0.0.1 10.0.0.2 1 2 6 1 100 1774746005 1774746006 ACCEPT OK\n";
    let default = bench.file("no-header", default.as_bytes());
    // The same in a second concatenated log.
    let later = bench.file(
        "later",
        format!("{HEADER}{BOTH}{header}{record}").as_bytes(),
    );
    for (log, line) in [(log, 1), (default, 1), (later, 6)] {
        let bench = Bench::new();
        let format = [
            "--format",
            "vpc-flow-logs",
            "--count",
            "sender",
            "--data-dir",
            &bench.db,
        ];
        let (status, out, error) = import(&[&[log.as_str()][..], &format].concat());
        assert_eq!(status, Some(1), "{out}");
        assert!(out.starts_with("0 flows imported"), "{out}");
        let expected = format!("line {line}: read as VPC flow logs, it has no flow-direction");
        assert!(error.contains(&expected), "{error}");
    }
}

#[test]
fn addresses_match_in_any_spelling() {
    let bench = Bench::new();
    let header = "srcaddr dstaddr bytes start\n";
    let records = "::ffff:10.0.0.1 2001:DB8:0:0:1:0:0:1 1 1774746005\n\
        10.0.0.1 2001:db8::1:0:0:1 2 1774746005\n\
        ::FFFF:a00:1 2001:0db8:0000:0000:0001:0000:0000:0001 4 1774746005\n\
        0:0:0:0:0:ffff:10.0.0.1 2001:db8:0:0:1::1 8 1774746005\n";
    let log = bench.file("log", format!("{header}{records}").as_bytes());
    let apps = bench.file(
        "apps.csv",
        b"address,app\n::ffff:10.0.0.0/120,web\n2001:DB8::/32,db\n",
    );
    let (status, _, error) = import(&[&log, "--again", "--data-dir", &bench.db]);
    assert_eq!(status, Some(0), "{error}");
    let (status, _, error) = import(&[&log, "--again", "--apps", &apps, "--data-dir", &bench.db]);
    assert_eq!(status, Some(0), "{error}");
    let rows = [
        row("10.0.0.1", "2001:db8::1:0:0:1", 15, 0),
        row("web", "db", 15, 0),
    ];
    assert_eq!(bench.hour(492_985), rows);
}
