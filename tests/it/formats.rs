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
    assert_eq!(identity(), "flowtally data directory, format 6\n");
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
