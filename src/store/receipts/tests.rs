//! Receipts and notes: windows, bounds, and what displaces what.

use super::*;
use crate::store::Position;

/// An offline command does not know the windows of the service whose directory it writes to.
#[test]
fn an_offline_command_drops_no_receipt() {
    let dir = tempfile::tempdir().unwrap();
    let open = |options| Store::open(dir.path(), options).unwrap().0;
    let compact = |store: &Store| {
        let family = receipts_family(&store.inner.db).unwrap();
        let mut options = CompactOptions::default();
        options.set_bottommost_level_compaction(rocksdb::BottommostLevelCompaction::Force);
        let all = None::<&[u8]>;
        store
            .inner
            .db
            .compact_range_cf_opt(family, all, all, &options);
        store.inner.db.get_cf(family, b"key").unwrap().is_some()
    };
    let store = open(StoreOptions::default());
    let two_days_ago = Receipt {
        fingerprint: 1,
        time_s: now().as_secs() - 2 * 24 * 3600,
        too_old: 0,
        position: Position::ZERO,
    };
    let family = receipts_family(&store.inner.db).unwrap();
    let receipt = codec::encode_receipt(two_days_ago);
    store.inner.db.put_cf(family, b"key", receipt).unwrap();
    store.inner.db.flush_cf(family).unwrap();
    drop(store);
    assert!(compact(&open(StoreOptions::for_offline_command())));
    assert!(!compact(&open(StoreOptions::default())));
}

fn put(store: &Store, key: &str, age: Duration) {
    let receipt = Receipt {
        fingerprint: 1,
        time_s: (now() - age).as_secs(),
        too_old: 0,
        position: Position::ZERO,
    };
    let value = codec::encode_noted_receipt(receipt, &"x".repeat(60));
    let db = &store.inner.db;
    db.put_cf(receipts_family(db).unwrap(), key, value).unwrap();
}

fn kept(store: &Store, keys: &[&str]) -> Vec<bool> {
    let key = |key: &&str| IdempotencyKey::new(key.as_bytes()).unwrap();
    let keys: Vec<_> = keys.iter().map(key).collect();
    let kept = store.receipts(&keys).unwrap();
    kept.iter().map(Option::is_some).collect()
}

/// Too many notes displace other notes, but no receipts.
#[test]
fn notes_do_not_displace_receipts() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        import_receipts_bytes_max: 400 << 10,
        ..StoreOptions::default()
    };
    let (store, _) = Store::open(dir.path(), options).unwrap();
    let key = |number: u64| format!("import_{number:032}");
    let note = |number: u64| String::from_utf8(codec::note_key(key(number).as_bytes())).unwrap();
    for number in 0..200 {
        put(&store, &key(number), Duration::from_secs(9000));
    }
    for number in 1000..9000 {
        put(&store, &note(number), Duration::from_secs(9000 - number));
    }
    let inner = &store.inner;
    inner
        .db
        .flush_cf(receipts_family(&inner.db).unwrap())
        .unwrap();
    assert!(inner.receipts_exceed_bound().unwrap());
    inner.drop_old_receipts().unwrap();
    assert!(!inner.receipts_exceed_bound().unwrap());
    for number in 0..200 {
        assert_eq!(kept(&store, &[&key(number)]), [true], "{number}");
    }
    assert_eq!(kept(&store, &[&key(1000), &key(8999)]), [false, true]);
    let [batches, imports, notes, contents] = inner.receipts_bytes().unwrap();
    assert!(
        imports <= 100 << 10 && notes <= 300 << 10,
        "{batches} {imports} {notes}"
    );
    assert_eq!(contents, 0);
}

/// Keys that are made of content are kept for a short time, and do not displace others.
#[test]
fn content_has_a_window_and_a_bound_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        receipts_bytes_max: 1200 << 10,
        content_window: Duration::from_secs(100_000),
        ..StoreOptions::default()
    };
    let (store, _) = Store::open(dir.path(), options).unwrap();
    let content = |number: u64| {
        IdempotencyKey::of_content(number.into())
            .as_str()
            .to_owned()
    };
    put(&store, &content(1), Duration::from_secs(110_000));
    put(&store, "batch", Duration::from_secs(80_000));
    for number in 2..5000 {
        put(&store, &content(number), Duration::from_secs(5000 - number));
    }
    let [expired, old, new] = [1, 2, 4999].map(content);
    let keys = [&*expired, &*old, "batch"];
    assert_eq!(kept(&store, &keys), [false, true, true]);
    let inner = &store.inner;
    let family = receipts_family(&inner.db).unwrap();
    inner.db.flush_cf(family).unwrap();
    assert!(inner.receipts_exceed_bound().unwrap());
    inner.drop_old_receipts().unwrap();
    assert!(!inner.receipts_exceed_bound().unwrap());
    assert_eq!(kept(&store, &[&*old, &*new, "batch"]), [false, true, true]);
}

#[test]
fn imports_have_a_window_and_a_bound_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        import_receipts_bytes_max: 300 << 10,
        ..StoreOptions::default()
    };
    let (store, _) = Store::open(dir.path(), options).unwrap();
    const DAY: Duration = Duration::from_secs(24 * 3600);
    for (key, age) in [("batch", 2), ("import_a", 89), ("import_b", 91)] {
        put(&store, key, DAY * age);
    }
    let keys = ["batch", "import_a", "import_b"];
    assert_eq!(kept(&store, &keys), [false, true, false]);

    // Too many imports displace old imports, but no other batches.
    for number in 0..5000 {
        put(
            &store,
            &format!("import_{number:032}"),
            Duration::from_secs(5000 - number),
        );
    }
    put(&store, "recent", DAY / 2);
    let inner = &store.inner;
    let family = receipts_family(&inner.db).unwrap();
    inner.db.flush_cf(family).unwrap();
    assert!(inner.receipts_exceed_bound().unwrap());
    inner.drop_old_receipts().unwrap();
    assert!(!inner.receipts_exceed_bound().unwrap());
    let (old, new) = (format!("import_{:032}", 0), format!("import_{:032}", 4999));
    let keys = [&old, &new, "import_a", "recent"];
    assert_eq!(kept(&store, &keys), [false, true, false, true]);
}
