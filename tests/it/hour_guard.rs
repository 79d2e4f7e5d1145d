//! One sender with a wrong clock or unit must not make all other flows too old.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::import::{Bench, import};
use crate::support::{Client, Daemon, JSON, Response, TestFlow, json_body};
use crate::wait::{until_flushed, until_logged};

const RETAIN: [&str; 4] = ["--retain-hours", "48", "--flush-interval", "1"];

fn seconds() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    time.unwrap().as_secs()
}

fn now() -> u32 {
    (seconds() / 3600) as u32
}

fn flow(hour: u32) -> TestFlow {
    TestFlow::new(hour, "web", "db", "vpc-1", 100, 20)
}

fn post(client: &Client, hours: &[u32]) -> Response {
    let flows: Vec<_> = hours.iter().map(|hour| flow(*hour)).collect();
    client.post("/flows", &[JSON], &json_body(&flows)).unwrap()
}

fn hours(client: &Client) -> Vec<u64> {
    let hours = client.get("/hours", &[]).unwrap().json();
    let hours = hours.as_array().unwrap().iter();
    hours.map(|hour| hour["hour"].as_u64().unwrap()).collect()
}

#[test]
fn a_far_future_hour_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(dir.path(), &RETAIN);
    let client = &daemon.client;
    let now = now();
    assert_eq!(post(client, &[now, now - 1]).status, 200);
    let s = seconds() as u32;
    for (hour, hint) in [
        (s, "; it looks like seconds: divide by 3600;"),
        (s / 60, "; it looks like minutes: divide by 60;"),
        (now + 50, "(--hour-ahead-max); nothing of the batch counted"),
        (4_294_967_294, "(--hour-ahead-max); nothing"),
    ] {
        let response = post(client, &[now, now + 48, hour, hour]);
        let problem = response.json();
        assert_eq!(response.status, 400, "{problem}");
        assert_eq!(problem["type"], "urn:flowtally:problem:hour-too-far-ahead");
        assert_eq!(
            (&problem["index"], &problem["field"]),
            (&2.into(), &Value::from("hour"))
        );
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(hint), "{detail}");
        assert!(detail.starts_with(&format!("flow 2: hour: {hour} is more than 48 hours after")));
    }
    // For a number that is no valid hour, the decoder gives the same hint.
    let wrong = format!("[{}]", flow(1).json()).replace("\"hour\":1", &format!("\"hour\":{s}000"));
    let response = client.post("/flows", &[JSON], wrong.as_bytes()).unwrap();
    let detail = response.json()["detail"].to_string();
    assert!(
        detail.contains("milliseconds: divide by 3600000"),
        "{detail}"
    );
    until_flushed(client);
    assert_eq!(hours(client), [u64::from(now) - 1, u64::from(now)]);
    // Ahead, but not too far.
    assert_eq!(post(client, &[now + 47]).status, 200);
    assert_eq!(hours(client).len(), 3);
    daemon.stop();
}

#[test]
fn hours_of_a_day_and_services_without_retention_are_not_guarded() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(&dir.path().join("day"), &RETAIN);
    assert_eq!(post(&daemon.client, &[0, 12, 23]).status, 200);
    daemon.stop();
    for arguments in [
        &[][..],
        &["--retain-hours", "48", "--hour-ahead-max", "none"],
    ] {
        let name = arguments.len().to_string();
        let daemon = Daemon::start_with(&dir.path().join(name), arguments);
        assert_eq!(post(&daemon.client, &[4_294_967_294]).status, 200);
        assert_eq!(daemon.client.metric("flowtally_hour_guard_off"), 0.0);
        daemon.stop();
    }
    let daemon = Daemon::start_with(&dir.path().join("0"), &["--hour-ahead-max", "1"]);
    // Stored hours are not validated, and a refused batch leaves its key unused.
    daemon.stop();
    let daemon = Daemon::start_with(&dir.path().join("new"), &["--hour-ahead-max", "1"]);
    let key = [JSON, ("idempotency-key", "k")];
    let refused = json_body(&[flow(now() + 9)]);
    assert_eq!(
        daemon.client.post("/flows", &key, &refused).unwrap().status,
        400
    );
    let right = json_body(&[flow(now())]);
    assert_eq!(
        daemon.client.post("/flows", &key, &right).unwrap().status,
        200
    );
    daemon.stop();
}

/// A clock that was set back, or was never set.
#[test]
fn a_clock_behind_the_stored_hours_refuses_nothing_and_is_logged() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path());
    let late = now() + 100;
    assert_eq!(post(&daemon.client, &[late]).status, 200);
    // Replayed without validation.
    daemon.kill();
    let daemon = Daemon::start_with(dir.path(), &["--hour-ahead-max", "48"]);
    let (client, off) = (&daemon.client, "flowtally_hour_guard_off");
    let log = daemon.log();
    assert!(
        log.contains("WARN") && log.contains("the clock is behind"),
        "{log}"
    );
    assert_eq!(client.metric(off), 1.0);
    assert_eq!(hours(client), [u64::from(late)]);
    assert_eq!(post(client, &[late + 1]).status, 200);
    for hour in [late, late + 1] {
        let path = format!("/flows?hour={hour}");
        assert_eq!(client.delete(&path).unwrap().status, 200);
    }
    assert_eq!(client.metric(off), 0.0);
    assert_eq!(post(client, &[late]).status, 400);
    assert_eq!(daemon.log().matches("the clock is behind").count(), 1);
    daemon.stop();
}

/// It was stored without a guard: by an import, a backup, or before `--retain-hours` was set.
#[test]
fn a_wrong_stored_hour_makes_no_other_too_old() {
    let (bench, now) = (Bench::new(), now());
    // Seconds instead of hours.
    let wrong = seconds() as u32;
    let dir = bench.dir.path().join("db");
    let lines: Vec<_> = [now, now - 47, now - 100, wrong]
        .iter()
        .map(|hour| flow(*hour).json().to_string())
        .collect();
    let file = bench.file("flows", lines.join("\n").as_bytes());
    let (status, out, error) = import(&["--data-dir", dir.to_str().unwrap(), &file]);
    assert_eq!(status, Some(0), "{error}");
    assert!(out.starts_with("4 flows imported"), "{out}");
    let kept = [now - 47, now, wrong].map(u64::from);
    for _ in 0..2 {
        let mut daemon = Daemon::start_with(&dir, &RETAIN);
        until_logged(&daemon, "hours dropped");
        assert_eq!(hours(&daemon.client)[..2], kept[..2]);
        assert_eq!(hours(&daemon.client).len(), 3);
        // Nor does a new flow of such an hour, and hours that are too old by the clock remain too old.
        let response = post(&daemon.client, &[now - 46, wrong, now - 100]);
        let text = response.json().to_string();
        assert_eq!(text, r#"{"accepted":2,"expired":1}"#);
        let delete = |hour: u32| daemon.client.delete(&format!("/flows?hour={hour}"));
        delete(now - 46).unwrap();
        // The next start has something to drop again.
        daemon.kill();
        import(&["--data-dir", dir.to_str().unwrap(), "--again", &file]);
    }
}

#[test]
fn age_counts_from_the_clock_if_flows_are_ahead_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(dir.path(), &RETAIN);
    let (client, now) = (&daemon.client, now());
    assert_eq!(post(client, &[now + 48]).status, 200);
    for (hour, response) in [
        (now - 47, r#"{"accepted":1}"#),
        (now - 50, r#"{"accepted":0,"expired":1}"#),
    ] {
        assert_eq!(post(client, &[hour]).json().to_string(), response, "{hour}");
    }
    daemon.stop();
    // If hours are arbitrary numbers, age counts from the newest.
    let any = [&RETAIN[..], &["--hour-ahead-max", "none"]].concat();
    let daemon = Daemon::start_with(&dir.path().join("any"), &any);
    assert_eq!(post(&daemon.client, &[now + 48]).status, 200);
    let response = post(&daemon.client, &[now - 1]).json().to_string();
    assert_eq!(response, r#"{"accepted":0,"expired":1}"#);
    daemon.stop();
}

#[test]
fn retention_logs_dropped_hours() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(dir.path(), &RETAIN);
    assert_eq!(post(&daemon.client, &[1, 1, 5]).status, 200);
    until_flushed(&daemon.client);
    assert_eq!(post(&daemon.client, &[100]).status, 200);
    until_logged(&daemon, "hours dropped");
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("hours dropped"));
    let line = line.unwrap();
    for word in [
        "WARN",
        "first=1",
        "hours=2",
        "flows=3",
        "bytes_tx=300",
        "bytes_rx=60",
    ] {
        assert!(line.contains(word), "{word}: {line}");
    }
    daemon.stop();
}

#[test]
fn an_import_has_the_guard_too() {
    let (s, now) = (seconds() as u32, now());
    let bench = Bench::new();
    let lines: Vec<_> = [now, s, 23, now + 48, now + 60]
        .iter()
        .map(|hour| flow(*hour).json().to_string())
        .collect();
    for (name, text) in [
        ("lines", lines.join("\n")),
        ("array", format!("[{}]", lines.join(","))),
    ] {
        let file = bench.file(name, text.as_bytes());
        let dir = bench.dir.path().join(format!("{name}-db"));
        let dir = dir.to_str().unwrap();
        let place = ["--data-dir", dir, &file];
        let guarded = [&["--hour-ahead-max", "48"][..], &place].concat();
        let (status, out, error) = import(&guarded);
        assert_eq!(status, Some(1), "{error}");
        assert!(
            out.starts_with("3 flows imported") && out.contains("2 refused"),
            "{out}"
        );
        assert!(error.contains("seconds: divide by 3600"), "{error}");
        assert!(
            error.contains("line 2") || error.contains("flow 1"),
            "{error}"
        );
        let daemon = Daemon::start(Path::new(dir));
        assert_eq!(hours(&daemon.client).len(), 3);
        daemon.stop();
    }
    // The service's flags apply as well; without either, all hours are accepted.
    let file = bench.file("all", lines.join("\n").as_bytes());
    for (arguments, taken) in [
        (&["--retain-hours", "1"][..], "3 flows imported"),
        (
            &["--retain-hours", "1", "--hour-ahead-max", "none"],
            "5 flows imported",
        ),
        (&[], "5 flows imported"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("db");
        let place = ["--data-dir", dir.to_str().unwrap(), &file];
        let (_, out, error) = import(&[arguments, &place[..]].concat());
        assert!(out.starts_with(taken), "{out} {error}");
    }
}

#[test]
fn a_spool_keeps_flows_that_are_too_far_ahead() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("flows.ndjson");
    std::fs::write(&file, flow(now() + 100).json().to_string()).unwrap();
    let spool = dir.path().join("spool");
    // A spool is for pipes: a file is read again.
    let send = |daemon: &Daemon| {
        let url = format!("http://{}", daemon.address);
        let output = Command::new(Daemon::binary())
            .args(["send", "-", "--url", &url, "--retry-for", "1", "--spool"])
            .arg(&spool)
            .stdin(std::fs::File::open(&file).unwrap())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    let db = dir.path().join("db");
    let daemon = Daemon::start_with(&db, &RETAIN);
    let (status, error) = send(&daemon);
    assert_eq!(status, Some(1), "{error}");
    assert!(error.contains("more than 48 hours after"), "{error}");
    assert!(hours(&daemon.client).is_empty());
    daemon.stop();
    // Simulates that the service's clock is right again.
    let daemon = Daemon::start(&db);
    std::fs::write(&file, "").unwrap();
    let (_, error) = send(&daemon);
    assert_eq!(hours(&daemon.client), [u64::from(now()) + 100], "{error}");
    daemon.stop();
}

/// Regression test: such a flow was reported as counted, and never was.
#[test]
fn a_flow_of_a_file_that_was_too_far_ahead_counts_when_the_clock_is_right() {
    let now = now();
    for way in ["send", "url", "dir"] {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let (db, file, rejects) = (path("db"), path("flows"), path("rejects"));
        let lines = [now, now + 60, now - 1].map(|hour| flow(hour).json().to_string());
        std::fs::write(&file, lines.join("\n")).unwrap();
        let give = |ahead_max: &str, arguments: &[&str]| {
            let guard = [&RETAIN[..2], &["--hour-ahead-max", ahead_max]].concat();
            let daemon = (way != "dir").then(|| Daemon::start_with(Path::new(&db), &guard));
            let url = daemon.as_ref().map(|d| format!("http://{}", d.address));
            let mut command = Command::new(Daemon::binary());
            match (way, &url) {
                ("send", Some(url)) => command.args(["send", "--url", url]),
                (_, Some(url)) => command.args(["import", "--url", url]),
                _ => command.args(["import", "--data-dir", &db]).args(&guard),
            };
            let output = command.args(arguments).arg(&file).output().unwrap();
            if let Some(daemon) = daemon {
                daemon.stop();
            }
            crate::send::parts(&output)
        };
        let (status, out, error) = give("48", &[]);
        assert_eq!(status, Some(1), "{way} {error}");
        assert!(
            out.starts_with("2 flows ") && out.contains("1 refused"),
            "{out}"
        );
        assert!(!error.contains("nothing of the batch"), "{error}");
        for _ in 0..2 {
            let (status, out, error) = give("48", &["--rejects", &rejects]);
            assert_eq!(status, Some(1), "{way} {out} {error}");
            assert!(out.starts_with("0 flows "), "{way} {out}");
            assert!(out.contains("1 refused; 2 flows skipped"), "{way} {out}");
            let kept = std::fs::read_to_string(&rejects).unwrap();
            assert!(
                kept.contains("line 2") && kept.contains(&(now + 60).to_string()),
                "{kept}"
            );
        }
        let (status, out, error) = give("100", &[]);
        assert_eq!(status, Some(0), "{way} {error}");
        assert!(out.starts_with("1 flows "), "{way} {out}");
        assert!(out.contains("0 refused; 2 flows skipped"), "{way} {out}");
        let (status, out, _) = give("100", &[]);
        assert_eq!(status, Some(0), "{way} {out}");
        assert!(
            out.starts_with("0 flows ") && out.contains("; 3 flows skipped"),
            "{way} {out}"
        );
        let daemon = Daemon::start(Path::new(&db));
        let hours = hours(&daemon.client);
        assert_eq!(hours, [now - 1, now, now + 60].map(u64::from), "{way}");
        daemon.stop();
    }
}
