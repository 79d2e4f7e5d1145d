//! The service's output for operators: metrics, logs, request IDs.

use std::collections::BTreeMap;

use crate::support::{Daemon, JSON, TestFlow, json_body};

fn metrics(daemon: &Daemon) -> BTreeMap<String, f64> {
    let response = daemon.client.get("/metrics", &[]).unwrap();
    assert_eq!(response.status, 200);
    let media_type = response.header("content-type").unwrap();
    assert_eq!(media_type, "text/plain; version=0.0.4; charset=utf-8");
    let text = String::from_utf8(response.body).unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[test]
fn metrics_count_accepted_and_stored_flows() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path());
    let flows: Vec<_> = (0..30)
        .map(|n| TestFlow::new(n % 3, "a", "b", "v", 5, 7))
        .collect();
    daemon.client.accept(&flows);
    let key = [JSON, ("idempotency-key", "k")];
    for _ in 0..2 {
        daemon
            .client
            .post("/flows", &key, &json_body(&flows))
            .unwrap();
    }
    assert_eq!(
        daemon
            .client
            .post("/flows", &[JSON], b"[{}]")
            .unwrap()
            .status,
        400
    );
    assert_eq!(daemon.client.get("/nothing", &[]).unwrap().status, 404);
    assert_eq!(daemon.client.delete("/flows?hour=1").unwrap().status, 200);
    let seen = metrics(&daemon);
    for (name, value) in [
        ("flowtally_ready", 1.0),
        ("flowtally_flows_accepted_total", 60.0),
        ("flowtally_batches_accepted_total", 2.0),
        ("flowtally_batches_replayed_total", 1.0),
        ("flowtally_ledger_entries", 2.0),
        ("flowtally_ledger_flows", 40.0),
        ("flowtally_ledger_bytes{direction=\"tx\"}", 200.0),
        ("flowtally_ledger_difference_flows", 0.0),
        ("flowtally_ledger_entries_dropped_total", 1.0),
        ("flowtally_rejected_total{reason=\"bad-batch\"}", 1.0),
        ("flowtally_rejected_total{reason=\"not-found\"}", 1.0),
        (
            "flowtally_http_requests_total{method=\"POST\",path=\"/flows\",status=\"200\"}",
            3.0,
        ),
        (
            "flowtally_http_requests_total{method=\"GET\",path=\"other\",status=\"404\"}",
            1.0,
        ),
        ("flowtally_receipts", 1.0),
        ("flowtally_commit_batches_count", 2.0),
        ("flowtally_replay_batches", 0.0),
        ("flowtally_unsettled_entries", 0.0),
        ("flowtally_unsummed_day_spans", 0.0),
        ("flowtally_unsummed_thirty_day_spans", 0.0),
        ("flowtally_unreadable_entries", 0.0),
        ("flowtally_unreadable_spans", 0.0),
        ("flowtally_settle_failures_total", 0.0),
    ] {
        assert_eq!(seen.get(name), Some(&value), "{name} of {seen:#?}");
    }
    for name in [
        "flowtally_journal_syncs_total",
        "flowtally_disk_free_bytes",
        "flowtally_file_bytes{family=\"flows\"}",
        "flowtally_flush_seconds_count",
        "process_resident_memory_bytes",
    ] {
        assert!(
            seen.get(name).is_some_and(|v| *v > 0.0),
            "{name} of {seen:#?}"
        );
    }
    daemon.client.accept(&flows);
    daemon.kill();
    let daemon = Daemon::start(dir.path());
    let seen = metrics(&daemon);
    assert_eq!(seen["flowtally_replay_flows"], 30.0);
    assert_eq!(seen["flowtally_ledger_flows"], 70.0);
    assert_eq!(seen["flowtally_ledger_difference_flows"], 0.0);
}

#[test]
fn a_request_id_is_the_same_in_the_response_and_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--log", "debug", "--log-format", "json"];
    let mut daemon = Daemon::start_with(dir.path(), &arguments);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let headers = [
        ("x-request-id", "order-66"),
        ("traceparent", &format!("00-{trace}-b7ad6b7169203331-01")),
    ];
    let response = daemon.client.get("/flows?hour=7", &headers).unwrap();
    assert_eq!(response.header("x-request-id"), Some("order-66"));
    let other = daemon.client.get("/flows?hour=x", &[]).unwrap();
    let made = other.header("x-request-id").unwrap().to_owned();
    assert_eq!(made.len(), 32);
    daemon.signal("TERM");
    assert!(daemon.wait().success());
    let log = daemon.log();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .filter(|line: &serde_json::Value| line["message"] == "answered")
        .collect();
    let of = |id: &str| {
        let mut of = lines.iter().filter(|line| line["span"]["request_id"] == id);
        of.next().unwrap_or_else(|| panic!("{id} in {log}")).clone()
    };
    let line = of("order-66");
    assert_eq!(line["span"]["trace_id"], trace);
    assert_eq!(
        (&line["status"], &line["path"]),
        (&200.into(), &"/flows".into())
    );
    assert_eq!(of(&made)["status"], 400);
}
