use std::path::PathBuf;

use super::prune::Pruned;
use super::upload::Upload;
use super::*;
use crate::store::{self, DataDir, PARTITION_FILE, Position, Store, StoreOptions, verify};
use flow::{BatchBuilder, Counters, Hour, HourRange};

const OF: &str = "partition 3 of 12 of topic flows in Kafka x";

struct Test {
    temp: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    store: Store,
    position: u64,
}

impl Test {
    fn new() -> Test {
        let temp = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        let dir = DataDir::open_partition(&temp.path().join("store"), OF).unwrap();
        let (store, _) = Store::open_dir(dir, StoreOptions::default()).unwrap();
        Test {
            temp,
            runtime,
            store,
            position: 0,
        }
    }

    fn checkpoints(&self, of: &str, node: &str) -> PartitionCheckpoints {
        let url = format!("file://{}/objects/", self.temp.path().display());
        let objects = CheckpointStore::open(&url, self.runtime.handle().clone()).unwrap();
        objects.partition(
            "flows",
            Partition::try_from(3).unwrap(),
            of.into(),
            node.into(),
        )
    }

    fn ours(&self) -> PartitionCheckpoints {
        self.checkpoints(OF, "node/1")
    }

    /// Adds a row in an hour of its own.
    fn apply(&mut self) {
        self.position += 10;
        let mut batch = BatchBuilder::with_capacity(0);
        let hour = Hour::new(self.position).unwrap();
        batch.push(hour, [b"s", b"d", b"v"], Counters { tx: 1, rx: 2 });
        let entry = store::JournalEntry {
            position: Position::new(self.position),
            time_s: 1,
            batch: batch.finish(),
        };
        self.store.apply(vec![entry]).unwrap();
    }

    fn put(&mut self) -> Upload {
        self.apply();
        self.ours().upload(&self.store, &never()).unwrap().unwrap()
    }

    /// Fetches a checkpoint, and returns how many hours it has.
    fn get(&self, listed: &Checkpoint) -> Result<usize, CheckpointError> {
        let into = self.temp.path().join("fetched");
        self.ours().download(listed, &into, &never())?;
        assert!(verify(&into).unwrap().faults.is_empty());
        let dir = DataDir::open_partition(&into, OF).unwrap();
        let (store, _) = Store::open_dir(dir, StoreOptions::default()).unwrap();
        assert_eq!(store.position().unwrap().get(), listed.position.get());
        Ok(store.ledger(HourRange::ALL).unwrap().count())
    }

    fn dir(&self) -> PathBuf {
        self.temp.path().join("objects/flows/3")
    }

    fn description(&self, listed: &Checkpoint) -> PathBuf {
        self.dir().join(listed.path.filename().unwrap())
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir().join(FILES)).unwrap();
        entries.map(|e| e.unwrap().path()).collect()
    }
}

/// A token that is never cancelled.
fn never() -> CancellationToken {
    CancellationToken::new()
}

fn is_damaged<T: fmt::Debug>(result: Result<T, CheckpointError>, says: &str) {
    let Err(CheckpointError::Damaged { why, .. }) = &result else {
        panic!("{result:?}");
    };
    assert!(why.contains(says), "{why}");
}

#[test]
fn a_download_equals_its_upload_and_only_new_files_are_sent() {
    let mut test = Test::new();
    let ours = test.ours();
    assert_eq!(
        ours.upload(&test.store, &never()).unwrap(),
        None,
        "it is empty"
    );
    assert!(ours.list(&never()).unwrap().is_empty());
    let first = test.put();
    assert_eq!(
        (first.files, first.bytes),
        (first.files_sent, first.bytes_sent)
    );
    assert_eq!(
        ours.upload(&test.store, &never()).unwrap(),
        None,
        "nothing moved"
    );
    let (before, second) = (test.files().len(), test.put());
    let kept = second.files - second.files_sent;
    assert!(kept > 0 && kept < second.files, "{second:?}");
    // Two files with the same content are one object.
    let new = (test.files().len() - before) as u64;
    assert!((1..=second.files_sent).contains(&new), "{second:?}, {new}");
    let listed = ours.list(&never()).unwrap();
    let positions: Vec<_> = listed.iter().map(|l| l.position.get()).collect();
    assert_eq!(positions, [20, 10]);
    assert_eq!(test.get(&listed[0]).unwrap(), 2);
    assert_eq!(test.get(&listed[1]).unwrap(), 1, "over the other");
    // No checkpoint is left on the local disk.
    assert!(
        std::fs::read_dir(test.temp.path().join("store/checkpoints"))
            .unwrap()
            .next()
            .is_none()
    );
}

#[test]
fn a_downloaded_store_sends_only_new_files_too() {
    let mut test = Test::new();
    for _ in 0..3 {
        test.put();
    }
    let newest = test.ours().list(&never()).unwrap().remove(0);
    test.get(&newest).unwrap();
    let other = test.temp.path().join("other");
    std::fs::rename(test.temp.path().join("fetched"), &other).unwrap();
    let dir = DataDir::open_partition(&other, OF).unwrap();
    test.store = Store::open_dir(dir, StoreOptions::default()).unwrap().0;
    let put = test.put();
    assert!(put.files_sent < put.files, "{put:?}");
    let newest = test.ours().list(&never()).unwrap().remove(0);
    assert_eq!(test.get(&newest).unwrap(), 4);
}

#[test]
fn damage_is_detected_and_missing_files_are_sent_again() {
    let mut test = Test::new();
    test.put();
    let listed = test.ours().list(&never()).unwrap().remove(0);
    let largest = |test: &Test| {
        let files = test.files().into_iter();
        files
            .max_by_key(|path| path.metadata().unwrap().len())
            .unwrap()
    };
    let path = largest(&test);
    let whole = std::fs::read(&path).unwrap();
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    std::fs::write(&path, &changed).unwrap();
    is_damaged(test.get(&listed), "has changed");
    std::fs::write(&path, &whole[1..]).unwrap();
    is_damaged(test.get(&listed), "bytes instead of");
    std::fs::remove_file(&path).unwrap();
    is_damaged(test.get(&listed), "is gone");
    for path in test.files() {
        std::fs::remove_file(path).unwrap();
    }
    let put = test.put();
    assert_eq!(put.files, put.files_sent);
    let newest = test.ours().list(&never()).unwrap().remove(0);
    assert_eq!(test.get(&newest).unwrap(), 2);

    let path = test.description(&newest);
    let text = std::fs::read_to_string(&path).unwrap();
    for (change, says) in [
        (text[..text.len() / 2].to_owned(), "EOF"),
        (
            text.replace("\"format\":1", "\"format\":2"),
            "its format is 2",
        ),
        (
            text.replace("\"position\":20", "\"position\":21"),
            "another position",
        ),
        (
            text.replace("FLOWTALLY", "/etc/passwd"),
            "a file \"/etc/passwd\"",
        ),
        (
            text.replace(PARTITION_FILE, "rocks/P"),
            "it lacks the file PARTITION",
        ),
        (
            text.replace("\"object\":\"", "\"object\":\"../"),
            "it has a file",
        ),
    ] {
        assert_ne!(change, text);
        std::fs::write(&path, change).unwrap();
        is_damaged(test.get(&newest), says);
    }
    std::fs::remove_file(&path).unwrap();
    is_damaged(test.get(&newest), "it is gone");
}

#[test]
fn checkpoints_of_another_journal_are_refused() {
    let mut test = Test::new();
    test.put();
    test.apply();
    let other = test.checkpoints("partition 3 of 12 of topic flows in Kafka y", "a");
    let listed = other.list(&never()).unwrap().remove(0);
    let got = other.download(&listed, &test.temp.path().join("fetched"), &never());
    let put = other.upload(&test.store, &never());
    for error in [got.unwrap_err(), put.unwrap_err()] {
        assert!(
            matches!(error, CheckpointError::WrongIdentity { .. }),
            "{error}"
        );
        assert!(error.to_string().contains("Kafka x, not of"), "{error}");
    }
    for url in ["", "flows", "ftp://x/y", "file://relative", "s3:/x"] {
        let opened = CheckpointStore::open(url, test.runtime.handle().clone());
        assert!(matches!(opened, Err(CheckpointError::Url(_))), "{url}");
    }
}

#[test]
fn a_cancelled_upload_or_download_leaves_nothing_behind() {
    let mut test = Test::new();
    test.apply();
    let ours = test.ours();
    // At any time.
    for delay_ms in 0.. {
        let stop = CancellationToken::new();
        let cancelled = stop.clone();
        let timer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(delay_ms));
            cancelled.cancel();
        });
        match ours.upload(&test.store, &stop) {
            Err(CheckpointError::Stopped) => {}
            // The request that completed the checkpoint may have been the one that was cancelled.
            Ok(_) => break,
            Err(error) => panic!("{error}"),
        }
        timer.join().unwrap();
        let left = std::fs::read_dir(test.temp.path().join("store/checkpoints"));
        assert!(left.map_or(0, Iterator::count) == 0);
    }
    let stop = never();
    stop.cancel();
    test.apply();
    let put = ours.upload(&test.store, &stop);
    assert!(matches!(put, Err(CheckpointError::Stopped)));
    let listed = ours.list(&never()).unwrap().remove(0);
    let into = test.temp.path().join("fetched");
    let got = ours.download(&listed, &into, &stop);
    assert!(matches!(got, Err(CheckpointError::Stopped)));
    assert_eq!(test.get(&listed).unwrap(), 1, "over what was left");
    let limited = ours.limited(&never(), Duration::from_millis(1));
    test.runtime.block_on(limited.token().cancelled());
}

#[test]
fn pruning_keeps_what_is_needed() {
    let mut test = Test::new();
    let ours = test.ours();
    assert_eq!(ours.prune(&never()).unwrap(), Pruned::default());
    for _ in 0..4 {
        test.put();
    }
    // A file of an upload that was aborted.
    let orphan = test.dir().join(FILES).join("0-1");
    std::fs::write(&orphan, "x").unwrap();
    let before = test.files().len();
    assert_eq!(
        ours.prune(&never()).unwrap(),
        Pruned::default(),
        "all are young"
    );
    assert_eq!(test.files().len(), before);

    // If a description that is kept cannot be read, no file is removed.
    let newest = test.description(&ours.list(&never()).unwrap()[0]);
    let text = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, "{").unwrap();
    is_damaged(ours.prune_older(i64::MIN, &never()), "EOF");
    assert_eq!(test.files().len(), before);
    std::fs::write(&newest, text).unwrap();

    let pruned = ours.prune_older(i64::MIN, &never()).unwrap();
    assert_eq!(pruned.checkpoints, 2);
    assert_eq!(test.files().len(), before - pruned.files as usize);
    assert!(pruned.files > 1 && !orphan.exists());
    let listed = ours.list(&never()).unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!(test.get(&listed[0]).unwrap(), 4);
    assert_eq!(test.get(&listed[1]).unwrap(), 3);
    assert_eq!(
        ours.prune_older(i64::MIN, &never()).unwrap(),
        Pruned::default()
    );
}

#[test]
fn a_checkpoint_that_was_the_newest_within_the_hour_is_kept() {
    let hour = 60 * 60 * 1_000;
    let stay = |ages: &[i64]| {
        let now = 10 * hour;
        let listed = ages.iter().enumerate().map(|(n, age)| Checkpoint {
            path: Path::default(),
            position: Offset::try_from(100 - n as u64).unwrap(),
            written_ms: now - age,
        });
        prune::split(listed.collect(), |l| now - l.written_ms >= hour)
            .0
            .len()
    };
    assert_eq!(stay(&[0]), 1);
    assert_eq!(stay(&[hour * 5, hour * 6]), 2);
    assert_eq!(stay(&[hour, hour * 2, hour * 3]), 2);
    assert_eq!(stay(&[0, hour, hour * 2, hour * 3]), 3);
    // The third is old, and was the newest until a minute ago.
    assert_eq!(stay(&[0, 60_000, hour * 5, hour * 6, hour * 7]), 4);
    // Uploaded late, by a node that lagged behind.
    assert_eq!(stay(&[hour * 2, 0, hour * 5, hour * 6]), 3);
}

#[test]
fn a_large_file_is_sent_in_parts() {
    let test = Test::new();
    let dir = test.temp.path().join("large");
    std::fs::create_dir_all(dir.join(store::ROCKS)).unwrap();
    for bytes in [0, 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 7] {
        let content: Vec<u8> = (0..bytes).map(|n| (n >> 8 ^ n) as u8).collect();
        let entry = BackupFile {
            name: format!("rocks/{bytes}"),
            bytes: bytes as u64,
            tag: None,
        };
        std::fs::write(dir.join(&entry.name), &content).unwrap();
        let stored = test.ours().send(&dir, &entry, "u", &never()).unwrap();
        let hash = xxhash_rust::xxh3::xxh3_128(&content);
        assert_eq!(stored.checksum, format!("{hash:032x}"));
        let into = tempfile::tempdir_in(test.temp.path()).unwrap();
        std::fs::create_dir(into.path().join(store::ROCKS)).unwrap();
        let came = test.ours().fetch(&stored, into.path(), &never()).unwrap();
        assert_eq!(came, stored.checksum);
        assert!(std::fs::read(into.path().join(&entry.name)).unwrap() == content);
        let cancelled = never();
        cancelled.cancel();
        let stopped = test.ours().send(&dir, &entry, "v", &cancelled);
        assert!(matches!(stopped, Err(CheckpointError::Stopped)));
    }
}
