//! Notes that a sender stores beside its batches do not affect any batch.

use std::path::PathBuf;

use crate::corruption::copy;
use crate::send::flows;
use crate::support::{Daemon, JSON, Response, TestFlow, json_body};

/// Posts `flows` under `key`.
fn post(daemon: &Daemon, key: &str, notes: Option<&str>, flows: &[TestFlow]) -> Response {
    let mut headers = vec![JSON, ("idempotency-key", key)];
    headers.extend(notes.map(|notes| ("receipt-notes", notes)));
    let response = daemon.client.post("/flows", &headers, &json_body(flows));
    response.unwrap()
}

/// Whether it counted; `false` if it had counted before.
fn counts(response: &Response) -> bool {
    let text = String::from_utf8_lossy(&response.body);
    assert_eq!(response.status, 200, "{text}");
    response.header("idempotent-replayed").is_none()
}

/// The value under `key`: nothing, a receipt or a note without a text, or one with a text.
fn kept(daemon: &Daemon, key: &str) -> Option<Option<String>> {
    let asked = serde_json::json!({ "keys": [key] }).to_string();
    let response = daemon.client.post("/receipts", &[JSON], asked.as_bytes());
    let response = response.unwrap();
    assert_eq!(response.status, 200);
    let receipts = response.json()["receipts"].as_array().unwrap().clone();
    let receipt = receipts.first()?;
    assert_eq!(receipt["key"], key);
    Some(receipt["note"].as_str().map(str::to_owned))
}

#[test]
fn a_note_neither_replaces_nor_imitates_a_receipt() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path());
    let (mine, other) = (flows(3), flows(5));
    assert!(counts(&post(&daemon, "import_mine", None, &mine)));
    assert!(counts(&post(&daemon, "import_noted", Some("=mine"), &mine)));
    // Notes under keys with receipts, under a key without one, and under its own.
    let notes = "=own,import_mine=evil,import_noted=evil,import_future=evil,import_other=evil";
    assert!(counts(&post(&daemon, "import_other", Some(notes), &other)));
    assert_eq!(kept(&daemon, "import_future"), Some(Some("evil".into())));
    let check = |daemon: &Daemon| {
        assert!(!counts(&post(daemon, "import_mine", None, &mine)));
        assert!(!counts(&post(daemon, "import_noted", None, &mine)));
        assert!(!counts(&post(daemon, "import_other", None, &other)));
        assert_eq!(post(daemon, "import_mine", None, &other).status, 422);
        assert_eq!(kept(daemon, "import_mine"), Some(None));
        assert_eq!(kept(daemon, "import_noted"), Some(Some("mine".into())));
        assert_eq!(kept(daemon, "import_other"), Some(Some("own".into())));
    };
    check(&daemon);
    daemon.kill();
    let daemon = Daemon::start(dir.path());
    check(&daemon);
    assert!(counts(&post(&daemon, "import_future", None, &mine)));
    assert!(!counts(&post(&daemon, "import_future", None, &mine)));
    assert_eq!(kept(&daemon, "import_future"), Some(None));
    daemon.stop();
}

/// Notes and batches in one group of the committer.
#[test]
fn concurrent_notes_do_not_refuse_a_batch() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let (mine, other) = (flows(3), flows(5));
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let (daemon, mine, other) = (&daemon, &mine, &other);
            scope.spawn(move || {
                for number in 0..100 {
                    let key = format!("import_{number}");
                    if thread % 2 == 0 {
                        let notes = format!("{key}=evil");
                        let own = format!("import_of_{thread}_{number}");
                        assert!(counts(&post(daemon, &own, Some(&notes), other)));
                    } else {
                        counts(&post(daemon, &key, None, mine));
                    }
                }
            });
        }
    });
    for number in 0..100 {
        assert!(!counts(&post(
            &daemon,
            &format!("import_{number}"),
            None,
            &mine
        )));
    }
    daemon.stop();
}

/// A batch is still refused if a key that it excludes has a receipt or a note.
#[test]
fn a_batch_is_refused_by_keys_that_it_excludes() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let notes = Some("import_mark=m");
    assert!(counts(&post(&daemon, "import_first", notes, &flows(1))));
    for there in ["!import_mark", "!import_first"] {
        let response = post(&daemon, "import_second", Some(there), &flows(2));
        assert_eq!(response.status, 409, "{there}");
    }
    let nothing = Some("!import_nothing");
    assert!(counts(&post(&daemon, "import_second", nothing, &flows(2))));
    daemon.stop();
}

/// Format 4 has notes under the keys of receipts. In this directory, `import_k` and `import_l` are of batches,
/// `import_a` is a note, and `import_b` a note that replaced the receipt of a batch.
#[test]
fn a_directory_of_format_4_is_read() {
    let kept_dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/format-4");
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    copy(&kept_dir, &db);
    // The directory was created in 2026.
    let windows = ["--import-window", "3650"];
    let daemon = Daemon::start_with(&db, &windows);
    let text = |text: &str| Some(Some(text.to_owned()));
    assert_eq!(kept(&daemon, "import_a"), text("1"));
    assert_eq!(kept(&daemon, "import_b"), text("1"));
    assert_eq!(kept(&daemon, "import_k"), text("mine"));
    assert_eq!(kept(&daemon, "import_l"), text("other"));
    assert_eq!(kept(&daemon, "import_m"), None);
    let one = [TestFlow::new(5, "a", "b", "v", 1, 2)];
    assert_eq!(daemon.client.hour(5)[0].1.tx, 3);
    assert!(!counts(&post(&daemon, "import_k", None, &one)));
    assert!(!counts(&post(&daemon, "import_l", None, &one)));
    assert!(counts(&post(&daemon, "import_a", None, &one)));
    assert!(!counts(&post(&daemon, "import_a", None, &one)));
    // A newer note takes precedence.
    let newer = Some("import_b=2");
    assert!(counts(&post(&daemon, "import_n", newer, &one)));
    assert_eq!(kept(&daemon, "import_b"), text("2"));
    assert_eq!(daemon.client.hour(5)[0].1.tx, 5);
    daemon.stop();
    let identity = std::fs::read_to_string(db.join("FLOWTALLY")).unwrap();
    assert_eq!(identity, "flowtally data directory, format 7\n");
}
