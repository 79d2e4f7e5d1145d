//! Exports of OpenTelemetry (`POST /v1/metrics`).

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use flow::Counters;
use serde_json::{Value, json};

use crate::contract::{Service, problem};
use crate::support::{Client, Daemon, JSON, Key, Response, raw};
use crate::wait::until;

/// See `make.py` beside it.
const EXPORT_PB: &[u8] = include_bytes!("../data/otlp/export.pb");
const EXPORT_JSON: &[u8] = include_bytes!("../data/otlp/export.json");
/// Most of its flows are in this hour, one is in the next.
const HOUR: u32 = 498_898;

const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");
const PATH: &str = "/v1/metrics";

fn post(client: &Client, headers: &[(&str, &str)], body: &[u8]) -> Response {
    client.post(PATH, headers, body).unwrap()
}

/// Asserts a 200 in the format of the request; returns the number of rejected data points, and their explanation.
#[track_caller]
fn accepted(response: &Response, replayed: bool) -> (u64, String) {
    let text = String::from_utf8_lossy(&response.body).into_owned();
    assert_eq!(response.status, 200, "{text}");
    let before = response.header("idempotent-replayed");
    assert_eq!(before, replayed.then_some("true"));
    match response.header("content-type").unwrap() {
        "application/json" => {
            let json = response.json();
            let Some(partial) = json.get("partialSuccess") else {
                assert_eq!(json, json!({}));
                return (0, String::new());
            };
            let rejected = partial["rejectedDataPoints"].as_str().unwrap();
            let message = partial["errorMessage"].as_str().unwrap();
            (rejected.parse().unwrap(), message.to_owned())
        }
        "application/x-protobuf" => match response.body[..] {
            [] => (0, String::new()),
            // The message has less than 128 bytes, and there are less than 128 data points.
            [
                0x0A,
                _,
                0x08,
                rejected @ 0..128,
                0x12,
                length @ 0..128,
                ref message @ ..,
            ] => {
                assert_eq!(message.len(), usize::from(length));
                let message = String::from_utf8(message.to_vec()).unwrap();
                (u64::from(rejected), message)
            }
            _ => panic!("{text:?}"),
        },
        other => panic!("{other}"),
    }
}

/// Asserts a `Status` in the format of the request, whose message has all `words`.
#[track_caller]
fn refused(response: &Response, status: u16, words: &[&str]) {
    let text = String::from_utf8_lossy(&response.body);
    assert_eq!(response.status, status, "{text}");
    let message = match response.header("content-type").unwrap() {
        "application/json" => response.json()["message"].as_str().unwrap().to_owned(),
        "application/x-protobuf" => {
            assert_eq!(response.body[0], 0x12, "{text:?}");
            text.into_owned()
        }
        other => panic!("{other}: {text}"),
    };
    for word in words {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
}

fn row(hour: u32, [src, dest, vpc]: [&str; 3], tx: u64, rx: u64) -> (Key, Counters) {
    let key = (hour, src.into(), dest.into(), vpc.into());
    (key, Counters { tx, rx })
}

/// Asserts the rows of an export that was counted so many times.
#[track_caller]
fn assert_counted(client: &Client, times: u64) {
    let expected = [
        row(HOUR, ["web", "", "prod"], 10 * times, 0),
        row(HOUR, ["web", "api.example.com", "prod"], 20 * times, 0),
        row(HOUR, ["web", "db", "prod"], 1000 * times, 5000 * times),
        row(HOUR, ["web", "db", "vpc-1"], 250 * times, 0),
    ];
    assert_eq!(client.hour(HOUR), expected);
    let next = row(HOUR + 1, ["web", "db", "prod"], 7 * times, 0);
    assert_eq!(client.hour(HOUR + 1), [next]);
}

/// An export of a sum under `name`, of data points at these times that have `members`.
fn export(name: &str, temporality: u64, nanos: &[u64], members: &Value) -> Vec<u8> {
    let attribute = |key: &str, text: &str| json!({"key": key, "value": {"stringValue": text}});
    let points = nanos.iter().map(|nanos| {
        let attributes = [attribute("src.name", "a"), attribute("dst.name", "b")];
        let mut point = json!({"timeUnixNano": nanos.to_string(), "attributes": attributes});
        let members = members.as_object().unwrap().clone();
        point.as_object_mut().unwrap().extend(members);
        point
    });
    let points: Vec<Value> = points.collect();
    let sum = json!({"dataPoints": points, "aggregationTemporality": temporality});
    let metrics = json!([{"name": name, "sum": sum}]);
    let export = json!({"resourceMetrics": [{"scopeMetrics": [{"metrics": metrics}]}]});
    serde_json::to_vec(&export).unwrap()
}

const FLOWS: &str = "obi.network.flow.bytes";
const DELTA: u64 = 1;
const CUMULATIVE: u64 = 2;
const NANOS_PER_HOUR: u64 = 3_600_000_000_000;

fn now_nanos() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_nanos() as u64
}

#[test]
fn an_export_counts_once_however_it_is_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--content-window", "3600"];
    let mut daemon = Daemon::start_with(dir.path(), &arguments);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(EXPORT_PB).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(EXPORT_PB, 1).unwrap();
    let explained = (
        6,
        "data points that do not count: 6 of other metrics".to_owned(),
    );
    let client = daemon.client.clone();
    let as_gzip = [PROTOBUF, ("content-encoding", "gzip")];
    assert_eq!(accepted(&post(&client, &as_gzip, &gzip), false), explained);
    assert_counted(&client, 1);
    assert_eq!(
        accepted(&post(&client, &[PROTOBUF], EXPORT_PB), true),
        explained
    );
    let as_zstd = [PROTOBUF, ("content-encoding", "zstd")];
    accepted(&post(&client, &as_zstd, &zstd), true);
    assert_counted(&client, 1);

    // Its response was lost with the process.
    daemon.kill();
    let daemon = Daemon::start_with(dir.path(), &arguments);
    let client = &daemon.client;
    accepted(&post(client, &as_gzip, &gzip), true);
    assert_counted(client, 1);

    // In JSON it is another export.
    assert_eq!(
        accepted(&post(client, &[JSON], EXPORT_JSON), false),
        explained
    );
    assert_counted(client, 2);
    for (name, value) in [
        (
            "flowtally_otlp_points_rejected_total{reason=\"other-metric\"}",
            6.0,
        ),
        (
            "flowtally_http_requests_total{method=\"POST\",path=\"/v1/metrics\",status=\"200\"}",
            2.0,
        ),
        ("flowtally_batches_replayed_total", 1.0),
    ] {
        assert_eq!(client.metric(name), value, "{name}");
    }

    // After the window, it is another one.
    drop(daemon);
    let daemon = Daemon::start_with(dir.path(), &["--content-window", "1"]);
    until("the window to pass", || {
        let response = post(&daemon.client, &[PROTOBUF], EXPORT_PB);
        response.header("idempotent-replayed").is_none()
    });
    assert_counted(&daemon.client, 3);
}

#[test]
fn equal_flows_of_two_exports_count_twice() {
    let service = Service::start();
    let client = &service.daemon.client;
    for nanos in [1, 2] {
        let body = export(FLOWS, DELTA, &[nanos], &json!({"asInt": "5"}));
        for replayed in [false, true] {
            let response = post(client, &[JSON], &body);
            assert_eq!(accepted(&response, replayed), (0, String::new()));
        }
    }
    assert_eq!(client.hour(0), [row(0, ["a", "b", ""], 10, 0)]);
    // Sums saturate, of data points too.
    let large = json!({"asDouble": 1.5e19});
    let body = export("beyla.network.flow.bytes", DELTA, &[3, 3], &large);
    accepted(&post(client, &[JSON], &body), false);
    assert_eq!(client.hour(0), [row(0, ["a", "b", ""], u64::MAX, 0)]);
}

#[test]
fn exports_without_flows_are_not_stored() {
    let service = Service::start();
    let client = &service.daemon.client;
    for _ in 0..2 {
        let response = post(client, &[JSON], b"{}");
        assert_eq!(accepted(&response, false), (0, String::new()));
    }
    let body = export("x", CUMULATIVE, &[1, 2, 3], &json!({}));
    let (rejected, _) = accepted(&post(client, &[JSON], &body), false);
    assert_eq!(rejected, 3);
    let body = export(FLOWS, DELTA, &[1, 0], &json!({"asInt": "-1"}));
    let (rejected, why) = accepted(&post(client, &[JSON], &body), false);
    assert_eq!(rejected, 2);
    assert!(why.contains("2 with a value that is not"), "{why}");
    let empty = format!(
        "POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-protobuf\r\n\
         connection: close\r\n"
    );
    let response = raw(
        service.daemon.address,
        format!("{empty}content-length: 0\r\n\r\n").as_bytes(),
    );
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    let response = raw(service.daemon.address, format!("{empty}\r\n").as_bytes());
    assert!(response.starts_with("HTTP/1.1 411"), "{response}");
    assert_eq!(client.metric("flowtally_batches_accepted_total"), 0.0);
    service.is_empty();
}

#[test]
fn an_export_that_cannot_be_counted_is_refused_as_a_whole() {
    let service = Service::start_with(&["--body-max", "1"]);
    let client = &service.daemon.client;
    let cumulative = export(FLOWS, CUMULATIVE, &[NANOS_PER_HOUR], &json!({"asInt": 1}));
    refused(
        &post(client, &[JSON], &cumulative),
        400,
        &[
            "\"obi.network.flow.bytes\" is cumulative",
            "cumulativetodelta",
            "nothing of the batch counted",
            "urn:flowtally:problem:bad-export",
        ],
    );
    // A metric that is right does not count if another one is wrong.
    let mut both: Value = serde_json::from_slice(&cumulative).unwrap();
    let right = export(FLOWS, DELTA, &[NANOS_PER_HOUR], &json!({"asInt": 1}));
    let right: Value = serde_json::from_slice(&right).unwrap();
    let resources = both["resourceMetrics"].as_array_mut().unwrap();
    resources.insert(0, right["resourceMetrics"][0].clone());
    refused(
        &post(client, &[JSON], both.to_string().as_bytes()),
        400,
        &["is cumulative"],
    );
    refused(&post(client, &[JSON], b"[]"), 400, &["not an object"]);
    refused(
        &post(client, &[PROTOBUF], &EXPORT_PB[..100]),
        400,
        &["not protobuf"],
    );
    let with_gzip = [PROTOBUF, ("content-encoding", "gzip")];
    refused(
        &post(client, &with_gzip, EXPORT_PB),
        400,
        &["not valid gzip", "bad-body"],
    );
    let with_brotli = [PROTOBUF, ("content-encoding", "br")];
    let response = post(client, &with_brotli, EXPORT_PB);
    refused(&response, 415, &["gzip and zstd"]);
    assert_eq!(response.header("accept-encoding"), Some("gzip, zstd"));
    let response = client.post("/v1/metrics?wait=visible", &[JSON], b"{}");
    refused(&response.unwrap(), 400, &["takes no query parameter"]);

    // A name of the resource is in each flow.
    let many = export(FLOWS, DELTA, &[NANOS_PER_HOUR; 2000], &json!({"asInt": 1}));
    let mut many: Value = serde_json::from_slice(&many).unwrap();
    let vpc = json!({"key": "vpc.id", "value": {"stringValue": "v".repeat(1024)}});
    many["resourceMetrics"][0]["resource"] = json!({"attributes": [vpc]});
    let many = many.to_string();
    assert!(many.len() < 1 << 20);
    refused(
        &post(client, &[JSON], many.as_bytes()),
        413,
        &["1048576 bytes", "body-too-large"],
    );
    let large = vec![0; 2 << 20];
    refused(&post(client, &[PROTOBUF], &large), 413, &[]);

    // Without a known format, it is a problem document.
    let text = [("content-type", "text/plain")];
    problem(
        &post(client, &text, EXPORT_PB),
        415,
        &["text/plain", "application/x-protobuf"],
    );
    problem(&service.get(PATH), 405, &["POST, OPTIONS"]);
    service.is_empty();
}

#[test]
fn tokens_guard_exports() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("writers");
    std::fs::write(&tokens, "w-secret\n").unwrap();
    let daemon = Daemon::start_with(
        &dir.path().join("db"),
        &["--write-token-file", tokens.to_str().unwrap()],
    );
    let client = &daemon.client;
    let response = post(client, &[PROTOBUF], EXPORT_PB);
    refused(&response, 401, &["Authorization: Bearer", "no-token"]);
    assert!(response.header("www-authenticate").is_some());
    let wrong = [PROTOBUF, ("authorization", "Bearer x")];
    refused(&post(client, &wrong, EXPORT_PB), 401, &["wrong-token"]);
    assert_eq!(client.hour(HOUR), []);
    let right = [PROTOBUF, ("authorization", "Bearer w-secret")];
    accepted(&post(client, &right, EXPORT_PB), false);
    assert_counted(client, 1);
}

#[test]
fn times_too_far_ahead_and_too_old_do_not_count() {
    let service = Service::start_with(&["--retain-hours", "48"]);
    let client = &service.daemon.client;
    let value = json!({"asInt": "5"});
    let now = now_nanos();
    let ahead = export(FLOWS, DELTA, &[now, now + 50 * NANOS_PER_HOUR], &value);
    refused(
        &post(client, &[JSON], &ahead),
        400,
        &["flow 1: hour: ", "--hour-ahead-max", "hour-too-far-ahead"],
    );
    let hour = (now / NANOS_PER_HOUR) as u32;
    assert_eq!(client.hour(hour), []);
    let old = export(FLOWS, DELTA, &[now, NANOS_PER_HOUR, 0], &value);
    for replayed in [false, true] {
        let (rejected, why) = accepted(&post(client, &[JSON], &old), replayed);
        assert_eq!(rejected, 2);
        assert!(why.contains("1 without a time"), "{why}");
        assert!(
            why.contains("1 older than everything that is kept"),
            "{why}"
        );
    }
    assert_eq!(client.hour(hour), [row(hour, ["a", "b", ""], 5, 0)]);
}
