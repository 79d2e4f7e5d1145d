use super::create::has_files;
use super::*;

#[test]
fn a_fresh_directory_is_initialised_and_locked() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("a/b");
    let held = DataDir::open(&path).unwrap();
    assert!(matches!(
        DataDir::open(&path),
        Err(StoreError::InUse { .. })
    ));
    drop(held);
    DataDir::open(&path).unwrap();
}

#[test]
fn a_directory_of_another_journal_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let refused = |opened: Result<DataDir, StoreError>| {
        assert!(
            matches!(opened, Err(StoreError::WrongPartition { .. })),
            "{opened:?}"
        );
    };
    let (ours, path) = ("partition 3 of 12", temp.path());
    drop(DataDir::open_partition(path, ours).unwrap());
    drop(DataDir::open_partition(path, ours).unwrap());
    refused(DataDir::open_partition(path, "partition 4 of 12"));
    refused(DataDir::open(path));
    fs::remove_file(path.join(PARTITION_FILE)).unwrap();
    fs::write(path.join(ROCKS).join("CURRENT"), "").unwrap();
    refused(DataDir::open_partition(path, ours));
    drop(DataDir::open(path).unwrap());
}

#[test]
fn a_crash_during_creation_leaves_an_empty_directory() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join(UNFINISHED), "flowt").unwrap();
    fs::create_dir(temp.path().join(ROCKS)).unwrap();
    assert!(DataDir::open(temp.path()).unwrap().is_fresh().unwrap());
}

#[test]
fn a_crash_during_database_creation_leaves_a_fresh_directory() {
    let temp = tempfile::tempdir().unwrap();
    let dir = DataDir::open(temp.path()).unwrap();
    let make = |name: &str| fs::write(dir.rocks().join(name), "").unwrap();
    for name in ["LOCK", "LOG", "IDENTITY", "MANIFEST-000001", "000001.dbtmp"] {
        make(name);
    }
    assert!(dir.is_fresh().unwrap());
    for name in ["CURRENT", "000004.log", "000009.sst"] {
        make(name);
        assert!(!dir.is_fresh().unwrap(), "{name}");
        fs::remove_file(dir.rocks().join(name)).unwrap();
    }
}

#[test]
fn one_of_many_concurrent_starts_gets_the_directory() {
    for _ in 0..50 {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("db");
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| DataDir::open(&path)))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
        for result in results {
            assert!(
                matches!(result, Ok(_) | Err(StoreError::InUse { .. })),
                "{result:?}"
            );
        }
    }
}

/// The later process found no identity file at first, and then finds files.
#[test]
fn a_directory_created_by_a_concurrent_start_is_not_foreign() {
    let temp = tempfile::tempdir().unwrap();
    let identity = temp.path().join(codec::IDENTITY_FILE);
    let _first = DataDir::open(temp.path()).unwrap();
    assert!(has_files(temp.path()).unwrap());
    create_if_new(temp.path(), &identity).unwrap();
    assert!(matches!(
        DataDir::open(temp.path()),
        Err(StoreError::InUse { .. })
    ));
    fs::remove_file(&identity).unwrap();
    assert!(matches!(
        create_if_new(temp.path(), &identity),
        Err(StoreError::NotOurs { .. })
    ));
}

#[test]
fn a_lost_database_is_not_mistaken_for_an_empty_one() {
    let temp = tempfile::tempdir().unwrap();
    drop(DataDir::open(temp.path()).unwrap());
    fs::remove_dir(temp.path().join(ROCKS)).unwrap();
    let opened = DataDir::open(temp.path());
    assert!(matches!(opened, Err(StoreError::Incomplete { .. })));
}

#[test]
fn foreign_files_are_not_touched() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("letter.txt"), "dear").unwrap();
    assert!(matches!(
        DataDir::open(temp.path()),
        Err(StoreError::NotOurs { .. })
    ));
    fs::write(temp.path().join(codec::IDENTITY_FILE), "not us").unwrap();
    assert!(matches!(
        DataDir::open(temp.path()),
        Err(StoreError::NotOurs { .. })
    ));
    let newer = "flowtally data directory, format 99\n";
    fs::write(temp.path().join(codec::IDENTITY_FILE), newer).unwrap();
    assert!(matches!(
        DataDir::open(temp.path()),
        Err(StoreError::NewerFormat { found: 99, .. })
    ));
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 2);
}
