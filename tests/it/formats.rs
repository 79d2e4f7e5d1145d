//! Data directories of older formats. `tests/data` keeps one of each; that of format 4 is read in `notes`.

use std::path::{Path, PathBuf};
use std::process::Command;

use flowtally::store::{self, Selection, Store};

use crate::corruption::copy;
use crate::support::{Daemon, scan};

/// Hour 5 was compacted, then added to, and a batch is only in the journal.
const SUMS: [(u32, &[(&str, u64)]); 3] = [(5, &[("a", 1101)]), (6, &[("c", 10)]), (7, &[("d", 7)])];

fn sums(store: &Store) {
    for (hour, rows) in SUMS {
        let found = scan(store, hour);
        let found: Vec<_> = found.iter().map(|(key, sums)| (&*key.1, sums.tx)).collect();
        assert_eq!(found, rows);
    }
}

/// Format 5 has no family for settled rows.
#[test]
fn a_directory_of_format_5_is_read_and_upgraded() {
    let kept = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/format-5");
    let dir = tempfile::tempdir().unwrap();
    let db: &Path = &dir.path().join("db");
    copy(&kept, db);
    let verified = store::verify(db).unwrap();
    assert!(verified.faults.is_empty(), "{:?}", verified.faults);
    sums(&Store::open_read_only(db).unwrap());
    let identity = || std::fs::read_to_string(db.join("FLOWTALLY")).unwrap();
    assert_eq!(identity(), "flowtally data directory, format 5\n");

    let daemon = Daemon::start(db);
    for (hour, rows) in SUMS {
        let found = daemon.client.hour(hour);
        let found: Vec<_> = found.iter().map(|(key, sums)| (&*key.1, sums.tx)).collect();
        assert_eq!(found, rows);
    }
    daemon.stop();
    assert_eq!(identity(), "flowtally data directory, format 7\n");
    let mut compact = Command::new(Daemon::binary());
    let compacted = compact.arg("compact").arg("--data-dir").arg(db).output();
    assert!(compacted.unwrap().status.success());
    let store = Store::open_read_only(db).unwrap();
    sums(&store);
    assert!(store.select(Selection::hours((0..9).into())).is_ok());
    drop(store);
    let verified = store::verify(db).unwrap();
    assert!(verified.faults.is_empty(), "{:?}", verified.faults);
    assert_eq!((verified.hours, verified.rows), (3, 3));
}

/// Format 6 has no sums of days. Hours 5 to 59 are settled, and hour 6 has late rows; a batch for hour 60 is only in the
/// journal.
#[test]
fn days_are_summed_in_a_directory_of_format_6() {
    let kept = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/format-6");
    let dir = tempfile::tempdir().unwrap();
    let db: &Path = &dir.path().join("db");
    copy(&kept, db);
    let verified = store::verify(db).unwrap();
    assert!(verified.faults.is_empty(), "{:?}", verified.faults);
    // Name "a" has hour + 1 bytes in each hour, and twice as many in hour 6; "b" has 100 each.
    let sums_of_a = |hours: std::ops::Range<u64>| hours.map(|hour| hour + 1).sum::<u64>() + 7;
    let query = "/flows?from=0&to=72&group_by=src_app";
    let found = |daemon: &Daemon| {
        let rows = daemon.client.get(query, &[]).unwrap().json();
        let row = |row: &serde_json::Value| {
            let name = row["src_app"].as_str().unwrap().to_owned();
            (name, row["bytes_tx"].as_u64().unwrap())
        };
        rows.as_array().unwrap().iter().map(row).collect::<Vec<_>>()
    };
    let expected = |from: u64| {
        vec![
            ("a".to_owned(), sums_of_a(from..61)),
            ("b".to_owned(), 100 * 57),
        ]
    };
    let daemon = Daemon::start(db);
    assert_eq!(found(&daemon), expected(5));
    daemon.stop();
    let mut compact = Command::new(Daemon::binary());
    let compacted = compact.arg("compact").arg("--data-dir").arg(db).output();
    assert!(compacted.unwrap().status.success());
    let daemon = Daemon::start(db);
    assert_eq!(found(&daemon), expected(5));
    daemon.stop();
    let verified = store::verify(db).unwrap();
    assert!(verified.faults.is_empty(), "{:?}", verified.faults);
    assert_eq!(verified.spans, 2);
}
