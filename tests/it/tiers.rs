//! Sums of days and of thirty days: what queries answer with `step`, and when hours are no longer kept.

use std::process::Command;

use serde_json::{Value, json};

use crate::columns::{names_in, parquet_rows};
use crate::support::{Client, Daemon, JSON, TestFlow, json_body};

/// A flow of `a` in each of these hours, with as many bytes as the hour's number.
fn fill(client: &Client, hours: std::ops::Range<u32>) {
    let flows: Vec<_> = hours
        .map(|hour| TestFlow::new(hour, "a", "d", "v", u64::from(hour), 1))
        .collect();
    for flows in flows.chunks(2000) {
        client.accept(flows);
    }
}

fn get(client: &Client, path: &str) -> Value {
    let response = client.get(path, &[]).unwrap();
    assert_eq!(response.status, 200, "{path}: {response:?}");
    response.json()
}

/// The type and the detail of a refusal.
fn refused(client: &Client, path: &str, status: u16) -> (String, String) {
    let response = client.get(path, &[]).unwrap();
    assert_eq!(response.status, status, "{path}: {response:?}");
    let problem = response.json();
    let text = |name: &str| problem[name].as_str().unwrap().to_owned();
    (text("type"), text("detail"))
}

fn sum(hours: std::ops::Range<u64>) -> u64 {
    hours.sum()
}

#[test]
fn hours_are_added_up_in_steps() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let client = &daemon.client;
    fill(client, 10..60);
    let rows = get(client, "/flows?from=0&to=96&group_by=hour&step=24");
    let row = |hour: u64, tx, rx| json!({"hour": hour, "bytes_tx": tx, "bytes_rx": rx});
    let expected = [
        row(0, sum(10..24), 14),
        row(24, sum(24..48), 24),
        row(48, sum(48..60), 12),
    ];
    assert_eq!(rows, json!(expected));
    let hours = get(client, "/hours?step=24");
    let starts: Vec<_> = hours
        .as_array()
        .unwrap()
        .iter()
        .map(|of| of["hour"].clone())
        .collect();
    assert_eq!(starts, [0, 24, 48]);
    assert_eq!(hours[1]["flows"], 24);
    // Steps begin at multiples, whatever the first hour is.
    let rows = get(client, "/flows?from=20&to=30&group_by=hour,src_app&step=7");
    let starts: Vec<_> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["hour"].clone())
        .collect();
    assert_eq!(starts, [14, 21, 28]);
    let (kind, detail) = refused(client, "/flows?from=0&group_by=src_app&step=24", 400);
    assert!(
        kind.ends_with("bad-query") && detail.contains("group_by with hour"),
        "{detail}"
    );
    daemon.stop();
}

#[test]
fn sums_of_days_stay_when_hours_are_too_old() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = [
        "--retain-hours=30",
        "--retain-days=60",
        "--retain-30days=all",
        "--hour-ahead-max=none",
        "--flush-interval=1",
    ];
    let daemon = Daemon::start_with(dir.path(), &arguments);
    let client = &daemon.client;
    fill(client, 0..3000);
    // The hours from 2969 on are kept, and the days from hour 1536 on (1559 is in the day that begins there).
    let by_app = |from: u32, to: u32| format!("/flows?from={from}&to={to}&group_by=src_app");
    let total = |from: u32, to: u32| get(client, &by_app(from, to))[0]["bytes_tx"].clone();
    assert_eq!(total(2969, 3000), sum(2969..3000));
    assert_eq!(total(2952, 3000), sum(2952..3000));
    assert_eq!(total(1536, 3000), sum(1536..3000));
    assert_eq!(total(0, 3000), sum(0..3000));
    assert_eq!(total(720, 1440), sum(720..1440));
    for (path, finer_from) in [
        ("/flows?hour=2968".to_owned(), 2969),
        ("/flows?from=2952&to=3000".to_owned(), 2969),
        (by_app(2953, 3000), 2969),
        (by_app(2952, 2969), 2969),
        (
            "/flows?from=1536&to=3000&group_by=hour&step=36".to_owned(),
            2969,
        ),
        (by_app(1512, 3000), 1536),
        (
            "/flows?from=720&to=3000&group_by=hour&step=24".to_owned(),
            1536,
        ),
    ] {
        let (kind, detail) = refused(client, &path, 400);
        assert_eq!(kind, "urn:flowtally:problem:too-coarse");
        assert!(
            detail.starts_with(&format!("before hour {finer_from},")),
            "{path}: {detail}"
        );
    }
    let days = get(client, "/flows?from=1536&to=3000&group_by=hour&step=24");
    assert_eq!(days.as_array().unwrap().len(), 61);
    assert_eq!(
        days[0],
        json!({"hour": 1536, "bytes_tx": sum(1536..1560), "bytes_rx": 24})
    );
    let hours = get(client, "/hours");
    let finest = |hour: usize| hours[hour]["finest_step"].clone();
    let expected = [json!(720), json!(720), json!(24), json!(24), Value::Null];
    assert_eq!([0, 1535, 1536, 2968, 2969].map(finest), expected);
    assert_eq!(hours.as_array().unwrap().len(), 3000);
    // Late flows are not too old, since thirty days are kept for ever.
    let late = [TestFlow::new(3, "a", "d", "v", 1_000_000, 0)];
    let response = client.post("/flows", &[JSON], &json_body(&late)).unwrap();
    assert_eq!(response.json(), json!({"accepted": 1}));
    assert_eq!(total(0, 720), sum(0..720) + 1_000_000);
    // Only whole spans are deleted.
    for (query, says) in [
        ("hour=2968", "24 hours"),
        ("from=1536&to=1550", "24 hours"),
        ("from=24&to=48", "720 hours"),
    ] {
        let response = client.delete(&format!("/flows?{query}")).unwrap();
        assert_eq!(response.status, 409, "{query}: {response:?}");
        let problem = response.json();
        assert_eq!(problem["type"], "urn:flowtally:problem:part-of-a-span");
        assert!(
            problem["detail"].as_str().unwrap().contains(says),
            "{problem}"
        );
    }
    let deleted = client.delete("/flows?from=1536&to=1560").unwrap();
    assert_eq!(deleted.json(), json!({"deleted": 24}));
    let deleted = client.delete("/flows?from=720&to=1440").unwrap();
    assert_eq!(deleted.json(), json!({"deleted": 720}));
    assert_eq!(
        total(0, 3000),
        sum(0..720) + 1_000_000 + sum(1440..1536) + sum(1560..3000)
    );
    assert_eq!(
        client.delete("/flows?from=720&to=1440").unwrap().status,
        404
    );
    // An export has all of it, each part as finely as it is kept.
    let export = |arguments: &[&str]| {
        let mut command = Command::new(Daemon::binary());
        command.args(["export", "--url", &format!("http://{}", daemon.address)]);
        let output = command.args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let exported = export(&[]);
    let rows: Vec<Value> = exported
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let tx: u64 = rows
        .iter()
        .map(|row| row["bytes_tx"].as_u64().unwrap())
        .sum();
    assert_eq!(tx, total(0, 3000).as_u64().unwrap());
    // Thirty days twice, the second of which has the first days that are kept; days up to the one of hour 2969; and hours.
    let hours: Vec<u64> = rows
        .iter()
        .map(|row| row["hour"].as_u64().unwrap())
        .collect();
    assert_eq!(&hours[..3], [0, 1440, 2160]);
    assert_eq!(hours.last(), Some(&2999));
    // So have files, each of which is called after the span of its sum.
    let days = tempfile::tempdir().unwrap();
    let to_dir = days.path().to_str().unwrap();
    let in_files = || export(&["--format", "parquet", "--to-dir", to_dir]);
    assert!(in_files().contains(" files written, with "));
    let names = names_in(days.path());
    assert_eq!(
        names[..3],
        [
            "flows-hours-000000-000719.parquet",
            "flows-hours-001440-002159.parquet",
            "flows-hours-002160-002183.parquet"
        ]
    );
    assert_eq!(names.last().unwrap(), "flows-hours-002976-002999.parquet");
    let in_names = names
        .iter()
        .flat_map(|name| parquet_rows(&days.path().join(name)));
    let in_names: Vec<(u64, u64)> = in_names
        .map(|(key, sums)| (key.0.into(), sums.tx))
        .collect();
    let as_text: Vec<(u64, u64)> = hours
        .iter()
        .zip(&rows)
        .map(|(hour, row)| (*hour, row["bytes_tx"].as_u64().unwrap()))
        .collect();
    assert_eq!(in_names, as_text);
    assert!(in_files().starts_with("0 files written"));
    daemon.stop();
}

#[test]
fn the_sums_of_other_hours_are_beside_each_row() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let client = &daemon.client;
    let flow = |hour, src: &str, tx| TestFlow::new(hour, src, "d", "v", tx, 0);
    client.accept(&[
        flow(1, "same", 5),
        flow(1, "gone", 7),
        flow(1, "less", 9),
        flow(2, "same", 5),
        flow(2, "new", 70),
        flow(2, "less", 1),
    ]);
    let path = "/flows?hour=2&group_by=src_app&compare=previous&sort=change";
    let rows = get(client, path);
    let of = |row: &Value| {
        (
            row["src_app"].as_str().unwrap().to_owned(),
            row["bytes_tx"].as_u64().unwrap(),
            row["bytes_tx_before"].as_u64().unwrap(),
        )
    };
    let found: Vec<_> = rows.as_array().unwrap().iter().map(of).collect();
    let expected = [
        ("new", 70, 0),
        ("same", 5, 5),
        ("gone", 0, 7),
        ("less", 1, 9),
    ];
    assert_eq!(
        found,
        expected.map(|(name, tx, before)| (name.to_owned(), tx, before))
    );
    let response = client.get(
        "/flows?hour=2&group_by=src_app&sort=bytes&limit=1&other=true",
        &[],
    );
    let response = response.unwrap();
    assert_eq!(response.header("flowtally-total-bytes-tx"), Some("76"));
    assert_eq!(
        response.json(),
        json!([
            {"src_app": "new", "bytes_tx": 70, "bytes_rx": 0},
            {"other": true, "bytes_tx": 6, "bytes_rx": 0}
        ])
    );
    daemon.stop();
}

/// The output of `flowtally query` with these arguments, and whether it succeeded.
fn query(daemon: &Daemon, arguments: &[&str]) -> (String, bool) {
    let mut command = Command::new(Daemon::binary());
    command.args(["query", "--url", &format!("http://{}", daemon.address)]);
    let output = command.args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8(text).unwrap(), output.status.success())
}

#[test]
fn the_same_is_asked_from_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let flow = |hour, src: &str, dest: &str, tx| TestFlow::new(hour, src, dest, "v", tx, 1);
    daemon.client.accept(&[
        flow(1, "web", "db", 1000),
        flow(2, "web", "db", 20),
        flow(2, "we\u{1b}b", "cache", 3),
        flow(30, "api", "db", 7),
    ]);
    for (arguments, expected) in [
        (
            &["--hour", "2", "--group-by", "src_app"][..],
            "src_app    bytes_tx  bytes_rx\n\
             web              20         1\n\
             we\\u{1b}b         3         1\n",
        ),
        (
            &[
                "--from",
                "0",
                "--to",
                "40",
                "--group-by",
                "dest_app",
                "--limit",
                "1",
                "--other",
            ],
            "dest_app      bytes_tx  bytes_rx\n\
             db                1027         3\n\
             (all others)         3         1\n",
        ),
        (
            &[
                "--from",
                "5",
                "--to",
                "31",
                "--group-by",
                "hour",
                "--step",
                "24",
            ],
            "hour  bytes_tx  bytes_rx\n\
             0         1023         3\n\
             24           7         1\n",
        ),
        (
            &["--hour", "2", "--group-by", "", "--compare", "1"],
            "bytes_tx  bytes_rx  bytes_tx_before  bytes_rx_before  change\n      \
             23         2             1000                1    -976\n",
        ),
        (
            &["--hour", "2", "src_app^=web", "--format", "csv"],
            "src_app,dest_app,vpc_id,bytes_tx,bytes_rx,hour\nweb,db,v,20,1,2\n",
        ),
        (
            &[
                "--from",
                "0",
                "peer=cache",
                "dest_app!=db",
                "--format",
                "ndjson",
            ],
            "{\"src_app\":\"we\\u001bb\",\"dest_app\":\"cache\",\"vpc_id\":\"v\",\"bytes_tx\":3,\"bytes_rx\":1,\"hour\":2}\n",
        ),
    ] {
        assert_eq!(
            query(&daemon, arguments),
            (expected.to_owned(), true),
            "{arguments:?}"
        );
    }
    for (arguments, says) in [
        (&["--hour", "2", "web"][..], "is not a filter"),
        (
            &["--hour", "2", "app=web"],
            "is not a parameter of GET /flows",
        ),
        (&["--hour", "soon"], "it must be a number, or"),
        (&[], "no hours are selected"),
        (&["--hour", "2", "--step", "24"], "group_by with hour"),
    ] {
        let (text, is_success) = query(&daemon, arguments);
        assert!(!is_success && text.contains(says), "{arguments:?}: {text}");
    }
    daemon.stop();
}
