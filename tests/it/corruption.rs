//! One changed byte anywhere in a data directory: an error, or no effect, but never another sum.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use flow::{Batch, IdempotencyKey};
use flowtally::store::{Outcome, Selection, Store, StoreOptions, verify};
use rand::RngExt;

use crate::support::{
    Daemon, JSON, Key, Model, TestFlow, add_to, batch, hour_of, json_body, random, scan,
};

const HOURS: std::ops::Range<u32> = 1..5;

pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.push(path);
        }
    }
    files
}

/// A directory with compacted files, fresh ones, and a journal; and its content.
fn stored(dir: &Path, with_journal: bool) -> Model {
    let mut model = Model::new();
    let (store, _) = Store::open(dir, StoreOptions::default()).unwrap();
    for round in 0..4 {
        for part in 0..20 {
            let flows: Vec<_> = (0..50)
                .map(|i| {
                    let source = format!("svc-{}", (i * 7 + part) % 90);
                    let hour = HOURS.start + i % HOURS.len() as u32;
                    TestFlow::new(hour, &source, "dest", "vpc-0", u64::from(i), 3)
                })
                .collect();
            add_to(&mut model, &flows);
            store.commit(vec![batch(&flows)]).unwrap();
        }
        if round < 3 || !with_journal {
            store.flush().unwrap();
        }
        if round == 1 {
            store.compact().unwrap();
        }
    }
    model
}

/// Opens and reads everything: the rows, if the ledger agrees, or the error.
fn read(dir: &Path) -> Result<BTreeMap<u32, Vec<(Key, flow::Counters)>>, String> {
    let (store, _) = Store::open(dir, StoreOptions::default()).map_err(|e| e.to_string())?;
    let mut hours = BTreeMap::new();
    for hour in HOURS {
        let at = flow::Hour::new(hour.into()).unwrap();
        // An error in the middle of a response aborts the connection.
        let mut rows = store
            .select(Selection::hour(at))
            .map_err(|e| e.to_string())?;
        while rows.next().map_err(|e| e.to_string())?.is_some() {}
        hours.insert(hour, scan(&store, hour));
    }
    Ok(hours)
}

/// The offsets of the lengths of a MANIFEST's records: a longer length looks like the end of the file.
fn lengths_of_records(manifest: &[u8]) -> Vec<usize> {
    let (mut places, mut at) = (Vec::new(), 0);
    while let Some(header) = manifest.get(at..at + 7) {
        places.extend([at + 4, at + 5]);
        at += 7 + usize::from(u16::from_le_bytes([header[4], header[5]]));
    }
    places
}

fn changed_bytes(with_journal: bool, per_file: usize) {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let model = stored(&whole, with_journal);
    let expected: BTreeMap<_, _> = HOURS.map(|hour| (hour, hour_of(&model, hour))).collect();
    let mut random = random("changed_bytes");
    let mut outcomes: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for file in files(&whole) {
        let bytes = std::fs::read(&file).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        if bytes.is_empty() || name == "LOG" || name == "LOCK" {
            continue;
        }
        // Random ones, and the last: a reader may mistake a changed end of a file for a torn write.
        let mut places: Vec<usize> = (0..per_file)
            .map(|_| random.random_range(0..bytes.len()))
            .collect();
        places.extend((0..bytes.len().min(per_file)).map(|i| bytes.len() - 1 - i));
        if name.starts_with("MANIFEST") {
            places.extend(lengths_of_records(&bytes));
        }
        for at in places {
            let broken = dir.path().join("broken");
            copy(&whole, &broken);
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << random.random_range(0..8);
            std::fs::write(broken.join(file.strip_prefix(&whole).unwrap()), bytes).unwrap();
            let found = verify(&broken).is_ok_and(|verified| verified.faults.is_empty());
            let outcome = outcomes.entry(name.clone()).or_default();
            match read(&broken) {
                Ok(rows) => {
                    assert!(
                        rows == expected,
                        "{name}: byte {at} of {} changes a sum",
                        bytes_of(&file)
                    );
                    outcome.1 += 1;
                }
                Err(error) => {
                    assert!(!error.is_empty());
                    assert!(!found, "verify finds no fault, and then: {error}");
                    outcome.0 += 1;
                }
            }
            std::fs::remove_dir_all(&broken).unwrap();
        }
    }
    for (name, (refused, harmless)) in &outcomes {
        println!("{name}: {refused} refused, {harmless} without effect");
    }
    let refused: usize = outcomes.values().map(|(refused, _)| refused).sum();
    assert!(refused > 0, "nothing was tested");
}

fn bytes_of(path: &Path) -> u64 {
    path.metadata().unwrap().len()
}

#[test]
fn a_changed_byte_never_changes_a_sum() {
    changed_bytes(true, 12);
}

#[test]
fn a_changed_byte_never_changes_a_flushed_sum() {
    changed_bytes(false, 12);
}

#[test]
fn verify_names_a_path_that_is_not_a_data_directory() {
    let temp = tempfile::tempdir().unwrap();
    for (dir, word) in [
        (temp.path().to_owned(), "not a flowtally"),
        (temp.path().join("no"), "there is no data directory"),
    ] {
        let output = Command::new(Daemon::binary())
            .args(["verify", "--data-dir"])
            .arg(dir)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(word) && text.lines().count() == 1, "{text}");
    }
}

/// A power cut leaves the write that was in progress without some of its sectors.
#[test]
fn a_torn_log_opens() {
    let temp = tempfile::tempdir().unwrap();
    let whole = temp.path().join("whole");
    let flows = |part: u32| -> Vec<TestFlow> {
        let flow = |i| TestFlow::new(1, &format!("svc-{part}-{i}"), "dest", "vpc", 1, 2);
        (0..100).map(flow).collect()
    };
    let mut lengths = Vec::new();
    let log = || {
        let mut logs = files(&whole);
        logs.retain(|file| file.extension().is_some_and(|e| e == "log"));
        logs.sort();
        logs.pop().unwrap()
    };
    {
        let (store, _) = Store::open(&whole, StoreOptions::default()).unwrap();
        for part in 0..3 {
            store.commit(vec![batch(&flows(part))]).unwrap();
            lengths.push(bytes_of(&log()) as usize);
        }
    }
    let bytes = std::fs::read(log()).unwrap();
    let [.., second, third] = lengths[..] else {
        unreachable!()
    };
    assert!(third - second > 2048, "the last write has some sectors");
    let sector = (second + 1024).next_multiple_of(512);
    let mut without_end = bytes.clone();
    without_end[sector..].fill(0);
    let mut without_middle = bytes.clone();
    without_middle[sector..sector + 512].fill(0);
    let mut longer = bytes.clone();
    longer.extend([0; 5000]);
    let mut changed = bytes.clone();
    changed[third - 100] ^= 1;
    for (log_bytes, parts) in [
        (without_end, Some(2)),
        (without_middle, Some(2)),
        (longer, Some(3)),
        (bytes[..third - 1].to_vec(), Some(2)),
        // A power cut cannot cause this: the write may have been acknowledged.
        (changed, None),
    ] {
        let broken = temp.path().join("broken");
        copy(&whole, &broken);
        let broken_log = broken.join(log().strip_prefix(&whole).unwrap());
        std::fs::write(&broken_log, &log_bytes).unwrap();
        // A read-only open truncates nothing, and returns correct sums or an error.
        match (Store::open_read_only(&broken), parts) {
            (Ok(store), Some(parts)) => assert_eq!(scan(&store, 1).len(), 100 * parts),
            (Err(error), parts) => {
                let remedy = match parts {
                    Some(_) => "start the service, which cuts it off",
                    None => "damaged",
                };
                assert!(error.to_string().contains(remedy), "{error}");
            }
            (Ok(_), None) => panic!("the damage is not detected"),
        }
        assert_eq!(std::fs::read(&broken_log).unwrap(), log_bytes);
        match (Store::open(&broken, StoreOptions::default()), parts) {
            (Ok((store, _)), Some(parts)) => {
                assert_eq!(scan(&store, 1).len(), 100 * parts);
                // And continues.
                store.commit(vec![batch(&flows(7))]).unwrap();
                drop(store);
                let (store, _) = Store::open(&broken, StoreOptions::default()).unwrap();
                assert_eq!(scan(&store, 1).len(), 100 * (parts + 1));
            }
            (Err(error), None) => {
                let error = error.to_string();
                assert!(
                    error.contains("damaged") && error.contains(".log"),
                    "{error}"
                );
            }
            (opened, parts) => panic!("{parts:?}, and it opens: {:?}", opened.map(|(_, r)| r)),
        }
        std::fs::remove_dir_all(&broken).unwrap();
    }
}

/// A truncated MANIFEST is not opened as an empty database: the files remain.
#[test]
fn a_truncated_manifest_deletes_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("db");
    stored(&dir, false);
    let sums = |dir: &Path| {
        let mut sums = files(dir);
        sums.retain(|file| file.extension().is_some_and(|e| e == "sst"));
        sums.len()
    };
    let before = sums(&dir);
    let name = |file: &Path| file.file_name().unwrap().to_str().unwrap().to_owned();
    let manifest = files(&dir);
    let manifest = manifest.iter().find(|f| name(f).starts_with("MANIFEST"));
    let bytes = std::fs::read(manifest.unwrap()).unwrap();
    // If column families are missing in it, RocksDB could create them, and would then drop the files of all.
    let is_there = |bytes: &[u8]| bytes.windows(5).any(|name| name == b"flows");
    let ends = lengths_of_records(&bytes);
    let ends = ends.iter().step_by(2).map(|length| length - 4);
    let mut missing = 0;
    for end in ends.take_while(|end| !is_there(&bytes[..*end])) {
        std::fs::write(manifest.unwrap(), &bytes[..end]).unwrap();
        let opened = Store::open(&dir, StoreOptions::default());
        let error = opened.map(drop).unwrap_err().to_string();
        missing += usize::from(error.contains("olumn famil"));
        assert!(before > 0 && sums(&dir) == before, "{error}");
    }
    assert!(missing > 0);
}

/// The exit status is right even if the output is not read.
#[test]
fn verify_fails_by_its_status_even_if_output_cannot_be_written() {
    let temp = tempfile::tempdir().unwrap();
    for end in [">/dev/full 2>&1", "2>&1 | true"] {
        let command = format!(
            "set -o pipefail; {} verify --data-dir {} {end}",
            Daemon::binary().display(),
            temp.path().display()
        );
        let status = Command::new("bash")
            .args(["-c", &command])
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(1), "{end}");
    }
}

/// A store's directory with batches under these keys, and one row.
fn with_receipts(dir: &Path, keys: u32) -> Vec<Batch> {
    let flows = [TestFlow::new(1, "a", "b", "v", 1, 1)];
    let keyed = |n| {
        let key = IdempotencyKey::new(format!("key-{n}").as_bytes()).unwrap();
        batch(&flows).with_key(key)
    };
    let batches: Vec<_> = (0..keys).map(keyed).collect();
    let (store, _) = Store::open(dir, StoreOptions::default()).unwrap();
    store.commit(batches.clone()).unwrap();
    store.flush().unwrap();
    batches
}

/// An unreadable receipt is not treated as absent.
#[test]
fn a_changed_byte_never_counts_a_batch_twice() {
    let temp = tempfile::tempdir().unwrap();
    let (whole, broken) = (temp.path().join("whole"), temp.path().join("broken"));
    let batches = with_receipts(&whole, 300);
    let mut random = random("a_changed_byte_never_counts_a_batch_twice");
    let (mut refused, mut harmless) = (0, 0);
    let mut asked = false;
    for file in files(&whole) {
        if file.extension().is_none_or(|e| e != "sst") {
            continue;
        }
        let bytes = std::fs::read(&file).unwrap();
        for _ in 0..24 {
            let mut bytes = bytes.clone();
            let at = random.random_range(0..bytes.len());
            bytes[at] ^= 1 << random.random_range(0..8);
            copy(&whole, &broken);
            std::fs::write(broken.join(file.strip_prefix(&whole).unwrap()), bytes).unwrap();
            match Store::open(&broken, StoreOptions::default()) {
                Err(_) => refused += 1,
                Ok((store, _)) => {
                    let outcomes = store.commit(batches.clone()).unwrap();
                    drop(store);
                    let is_unknown = |outcome: &Outcome| matches!(outcome, Outcome::Unknown(_));
                    for outcome in &outcomes {
                        let replayed = matches!(outcome, Outcome::Replayed { .. });
                        assert!(replayed || is_unknown(outcome), "{outcome:?}");
                    }
                    match outcomes.iter().position(is_unknown) {
                        None => harmless += 1,
                        Some(n) => {
                            refused += 1;
                            if !asked {
                                ask_for_damaged_receipt(&broken, &format!("key-{n}"));
                                asked = true;
                            }
                        }
                    }
                }
            }
            std::fs::remove_dir_all(&broken).unwrap();
        }
    }
    println!("{refused} refused, {harmless} without effect");
    assert!(refused > 0 && asked, "no receipt was hit");
}

fn ask_for_damaged_receipt(dir: &Path, key: &str) {
    let daemon = Daemon::start(dir);
    let before = daemon.client.hour(1);
    let body = json_body(&[TestFlow::new(1, "a", "b", "v", 1, 1)]);
    let headers = [JSON, ("idempotency-key", key)];
    let response = daemon.client.post("/flows", &headers, &body).unwrap();
    let problem = response.json();
    assert_eq!(response.status, 500, "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("flowtally verify"), "{problem}");
    assert_eq!(daemon.client.hour(1), before);
    // Other keys are not affected.
    let headers = [JSON, ("idempotency-key", "new")];
    let response = daemon.client.post("/flows", &headers, &body).unwrap();
    assert!(matches!(response.status, 200 | 500));
}
