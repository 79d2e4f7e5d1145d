use super::*;
use crate::store::Store;
use flow::{BatchBuilder, Counters};

/// Two hours on disk, a third in the journal.
fn stored(dir: &Path) -> Store {
    let (store, _) = Store::open(dir, StoreOptions::default()).unwrap();
    for hour in [7, 8, 9] {
        let mut batch = BatchBuilder::with_capacity(0);
        for name in [b"a", b"b"] {
            let hour = Hour::new(hour).unwrap();
            batch.push(
                hour,
                [name, b"d", b"v"],
                Counters {
                    tx: 1,
                    rx: u64::MAX / 2,
                },
            );
        }
        store.commit(vec![batch.finish()]).unwrap();
        if hour == 8 {
            store.flush().unwrap();
        }
    }
    store
}

#[test]
fn a_verification_finds_all_flows_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    drop(stored(dir.path()));
    let names = || {
        let entries = std::fs::read_dir(dir.path().join("rocks")).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let verified = verify(dir.path()).unwrap();
    assert!(verified.faults.is_empty(), "{:?}", verified.faults);
    assert_eq!((verified.hours, verified.rows, verified.flows), (2, 4, 4));
    assert_eq!(verified.journal_batches, 1);
    assert_eq!(names(), before);
}

#[test]
fn an_additional_byte_is_found_in_its_hour() {
    let dir = tempfile::tempdir().unwrap();
    let store = stored(dir.path());
    let mut key = Vec::new();
    flow::codec::push_key(&mut key, Hour::new(8).unwrap(), b"b", b"d", b"v");
    let one = codec::encode_counters(Counters { tx: 1, rx: 0 });
    let inner = &store.inner;
    inner
        .db
        .merge_cf(inner.flows().unwrap(), &key, one)
        .unwrap();
    drop(store);
    let faults = verify(dir.path()).unwrap().faults;
    let [fault] = faults.as_slice() else {
        panic!("{faults:?}")
    };
    let text = fault.to_string();
    assert!(
        text.starts_with("hour 8: the rows add up to bytes_tx 3,"),
        "{text}"
    );
}

/// One fault more than the report lists.
#[test]
fn faults_beyond_the_list_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let store = stored(dir.path());
    let inner = &store.inner;
    let one = codec::encode_totals(Totals {
        tx: 1,
        ..Totals::default()
    });
    for hour in 100..101 + FAULTS_MAX as u64 {
        let key = codec::ledger_key(Hour::new(hour).unwrap());
        inner.db.merge_cf(inner.flows().unwrap(), key, one).unwrap();
    }
    drop(store);
    let verified = verify(dir.path()).unwrap();
    assert_eq!(verified.faults.len(), FAULTS_MAX);
    assert_eq!(verified.faults_found, FAULTS_MAX as u64 + 1);
    assert_eq!(verified.hours, 2 + FAULTS_MAX as u64 + 1);
}

#[test]
fn a_key_without_an_hour_hides_no_row() {
    let dir = tempfile::tempdir().unwrap();
    let store = stored(dir.path());
    let inner = &store.inner;
    let one = codec::encode_counters(Counters { tx: 1, rx: 0 });
    for key in [&b"\0"[..], b"\xFF\xFF\xFF\xFFa"] {
        inner.db.merge_cf(inner.flows().unwrap(), key, one).unwrap();
    }
    drop(store);
    let verified = verify(dir.path()).unwrap();
    let faults: Vec<_> = verified.faults.iter().map(Fault::to_string).collect();
    assert_eq!(faults, ["the rows: a key has no hour"; 2]);
    assert_eq!((verified.hours, verified.rows), (2, 4));
}

#[test]
fn an_hour_without_rows_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let store = stored(dir.path());
    let inner = &store.inner;
    let (lower, upper) = codec::hour_bounds(Hour::new(8).unwrap());
    inner
        .db
        .delete_range_cf(inner.flows().unwrap(), lower, upper)
        .unwrap();
    drop(store);
    let faults = verify(dir.path()).unwrap().faults;
    assert!(
        matches!(faults.as_slice(), [Fault::Differs { hour, .. }] if hour.get() == 8),
        "{faults:?}"
    );
}

#[test]
fn a_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _store = stored(dir.path());
    assert!(matches!(verify(dir.path()), Err(StoreError::InUse { .. })));
}
