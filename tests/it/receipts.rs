//! Receipts: lookups, notes, and receipts of an earlier format.

use std::path::Path;
use std::process::Command;

use crate::send::flows;
use crate::support::{Daemon, JSON, json_body};

/// Receipts of format 3 have no notes.
#[test]
fn an_earlier_format_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    let headers = [JSON, ("idempotency-key", "k1")];
    let post = |daemon: &Daemon| {
        let response = daemon
            .client
            .post("/flows", &headers, &json_body(&flows(2)));
        let response = response.unwrap();
        assert_eq!(response.status, 200);
        response.header("idempotent-replayed").is_some()
    };
    let mut daemon = Daemon::start(&db);
    assert!(!post(&daemon));
    daemon.kill();
    let identity = db.join("FLOWTALLY");
    std::fs::write(&identity, "flowtally data directory, format 3\n").unwrap();
    let daemon = Daemon::start(&db);
    assert!(post(&daemon));
    daemon.stop();
    let text = std::fs::read_to_string(&identity).unwrap();
    assert_eq!(text, "flowtally data directory, format 7\n");
    assert!(verified(&db));
}

fn verified(db: &Path) -> bool {
    let mut verify = Command::new(Daemon::binary());
    let verify = verify.arg("verify").arg("--data-dir").arg(db);
    verify.output().unwrap().status.success()
}

#[test]
fn receipts_are_looked_up() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "w-secret\n").unwrap();
    let daemon = Daemon::start_with(
        &dir.path().join("db"),
        &["--write-token-file", token.to_str().unwrap()],
    );
    let token = ("authorization", "Bearer w-secret");
    let post = |path: &str, headers: &[(&str, &str)], body: &str| {
        let response = daemon.client.post(path, headers, body.as_bytes()).unwrap();
        let kind = response.json()["type"].as_str().map(str::to_owned);
        (response.status, kind.unwrap_or_default(), response)
    };
    let flow = json_body(&flows(1));
    let flow = std::str::from_utf8(&flow).unwrap();
    let with = |key: &'static str, notes: &'static str| {
        [
            JSON,
            token,
            ("idempotency-key", key),
            ("receipt-notes", notes),
        ]
    };
    let notes = "!import_c,=mine,import_a=1,import_b=x=y";
    assert_eq!(post("/flows", &with("import_k", notes), flow).0, 200);
    // The same batch is replayed; another one is excluded by the existing note.
    assert_eq!(post("/flows", &with("import_k", notes), flow).0, 200);
    let (status, kind, _) = post("/flows", &with("import_l", "!import_a"), flow);
    assert_eq!(
        (status, &kind[..]),
        (409, "urn:flowtally:problem:receipt-exists")
    );
    // A note is not a batch.
    assert_eq!(post("/flows", &with("import_a", "=e"), flow).0, 200);
    for (key, notes) in [
        ("import_l", "nonsense"),
        ("import_l", "=a,=b"),
        ("import_l", "other=1"),
        ("other", "=1"),
    ] {
        let (status, kind, _) = post("/flows", &with(key, notes), flow);
        assert_eq!(
            (status, &kind[..]),
            (400, "urn:flowtally:problem:bad-receipt-notes")
        );
    }
    let no_key = [JSON, token, ("receipt-notes", "=1")];
    assert_eq!(post("/flows", &no_key, flow).0, 400);

    let asked = r#"{"keys":["import_b","import_c","import_k","import_b","import_l"]}"#;
    let (status, _, response) = post("/receipts", &[JSON, token], asked);
    assert_eq!(status, 200);
    assert_eq!(response.header("content-type"), Some("application/json"));
    let text = String::from_utf8(response.body.clone()).unwrap();
    assert!(text.starts_with('{') && text.ends_with("]}\n"), "{text}");
    let receipts = response.json()["receipts"].as_array().unwrap().clone();
    let known: Vec<_> = receipts
        .iter()
        .map(|r| (r["key"].clone(), r["note"].clone()))
        .collect();
    assert_eq!(
        known,
        [
            ("import_b".into(), "x=y".into()),
            ("import_k".into(), "mine".into())
        ]
    );
    assert!(receipts[0]["taken_at"].as_u64().unwrap() > 1_700_000_000);
    let many = format!("{{\"keys\":{:?}}}", vec!["k"; 20_001]);
    for (headers, body, status) in [
        (&[JSON][..], asked, 401),
        (&[JSON, token], "[]", 400),
        (&[JSON, token], "{\"keys\":[\"\"]}", 400),
        (&[JSON, token], "{\"keys\":[],\"x\":1}", 400),
        (&[JSON, token], &many, 400),
        (&[("content-type", "text/plain"), token], asked, 415),
        (
            &[("content-type", "application/x-ndjson"), token],
            asked,
            415,
        ),
    ] {
        assert_eq!(
            post("/receipts", headers, body).0,
            status,
            "{headers:?} {body:.50}"
        );
    }
    assert_eq!(post("/receipts?x=1", &[JSON, token], asked).0, 400);
    let long = "x".repeat(255);
    for (count, status) in [(4000, 200), (5000, 400), (9000, 413)] {
        let keys = format!("{{\"keys\":{:?}}}", vec![&long; count]);
        assert_eq!(
            post("/receipts", &[JSON, token], &keys).0,
            status,
            "{count}"
        );
    }
    daemon.stop();
}

/// Senders need receipts; other clients may not read them.
#[test]
fn receipts_require_permission_to_send() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("{name}-secret\n")).unwrap();
        path.into_os_string().into_string().unwrap()
    };
    let (write, read) = (file("write"), file("read"));
    let tokens = [("", 401), ("write", 200), ("read", 403), ("other", 401)];
    let guards = [
        (
            vec!["--write-token-file", &write, "--read-token-file", &read],
            tokens,
        ),
        (
            vec!["--write-token-file", &write],
            [("", 401), ("write", 200), ("read", 401), ("other", 401)],
        ),
        (
            vec!["--read-token-file", &read],
            [("", 200), ("write", 200), ("read", 200), ("other", 200)],
        ),
    ];
    for (number, (arguments, tokens)) in guards.iter().enumerate() {
        let daemon = Daemon::start_with(&dir.path().join(number.to_string()), arguments);
        for (token, status) in tokens {
            let bearer = format!("Bearer {token}-secret");
            let mut headers = vec![JSON];
            if !token.is_empty() {
                headers.push(("authorization", &bearer));
            }
            let response = daemon.client.post("/receipts", &headers, b"{\"keys\":[]}");
            let response = response.unwrap();
            assert_eq!(response.status, *status, "{arguments:?} {token:?}");
            if *status == 200 {
                assert_eq!(response.body, b"{\"receipts\":[]}\n");
            }
        }
        daemon.stop();
    }
}

/// More than one chunk of a response, and more than one lookup.
#[test]
fn many_receipts_are_returned_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let keys: Vec<_> = (0..3000).map(|i| format!("import_{i}")).collect();
    for keys in keys.chunks(60) {
        let note = |key: &String| format!("{key}={key}{}", "n".repeat(80));
        let notes: Vec<_> = keys.iter().step_by(2).map(note).collect();
        let (own, notes) = (format!("import_x{}", keys[0]), notes.join(","));
        let headers = [JSON, ("idempotency-key", &own), ("receipt-notes", &notes)];
        let response = daemon
            .client
            .post("/flows", &headers, &json_body(&flows(1)));
        assert_eq!(response.unwrap().status, 200);
    }
    let asked = serde_json::json!({ "keys": keys }).to_string();
    let response = daemon.client.post("/receipts", &[JSON], asked.as_bytes());
    let response = response.unwrap().json();
    let found: Vec<_> = response["receipts"].as_array().unwrap().iter().collect();
    assert_eq!(found.len(), 1500);
    for (number, receipt) in found.iter().enumerate() {
        let key = &keys[2 * number];
        assert_eq!(receipt["key"], **key);
        assert!(receipt["note"].as_str().unwrap().starts_with(key));
    }
    daemon.stop();
}
