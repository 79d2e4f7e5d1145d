//! Receipts: how they are looked up, what is noted with them, and those of an earlier format.

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
        let answer = daemon
            .client
            .post("/flows", &headers, &json_body(&flows(2)));
        let answer = answer.unwrap();
        assert_eq!(answer.status, 200);
        answer.header("idempotent-replayed").is_some()
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
    assert_eq!(text, "flowtally data directory, format 4\n");
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
        let answer = daemon.client.post(path, headers, body.as_bytes()).unwrap();
        let kind = answer.json()["type"].as_str().map(str::to_owned);
        (answer.status, kind.unwrap_or_default(), answer)
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
    // Again it is the same batch; another one may not be beside what is there.
    assert_eq!(post("/flows", &with("import_k", notes), flow).0, 200);
    let (status, kind, _) = post("/flows", &with("import_l", "!import_a"), flow);
    assert_eq!(
        (status, &kind[..]),
        (409, "urn:flowtally:problem:receipt-exists")
    );
    assert_eq!(post("/flows", &with("import_a", "=e"), flow).0, 422);
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

    let asked = r#"{"keys":["import_b","import_c","import_k","import_l"]}"#;
    let (status, _, answer) = post("/receipts", &[JSON, token], asked);
    assert_eq!(status, 200);
    let receipts = answer.json()["receipts"].as_array().unwrap().clone();
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
    daemon.stop();
}
