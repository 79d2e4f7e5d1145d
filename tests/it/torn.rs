//! Directories after a power cut: the store opens, and has all acknowledged batches. `src/store/torn/tests.rs` tests
//! the possible states of a log.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use flowtally::store::{Durability, Step, StepHook, Store, StoreOptions, verify};
use parking_lot::Mutex;
use rand::RngExt;

use crate::corruption::{copy, files};
use crate::support::{TestFlow, batch, random, scan};

fn flows(part: usize) -> Vec<TestFlow> {
    let flow = |i| TestFlow::new(1, &format!("service-{part}-{i}"), "dest", "vpc", 1, 2);
    (0..40).map(flow).collect()
}

fn open(dir: &Path) -> Store {
    Store::open(dir, StoreOptions::default()).unwrap().0
}

fn with_extension(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = files(&dir.join("rocks"));
    found.retain(|file| file.extension().is_some_and(|e| e == extension));
    found.sort();
    found
}

fn manifest(dir: &Path) -> PathBuf {
    let current = std::fs::read_to_string(dir.join("rocks/CURRENT")).unwrap();
    dir.join("rocks").join(current.trim_end())
}

/// `after`, of which only the content of `before` is synced, and some sectors of the rest.
fn torn(
    before: &[u8],
    after: &[u8],
    sector_bytes: usize,
    there: impl Fn(usize) -> bool,
) -> Vec<u8> {
    assert!(after.starts_with(before));
    let mut left = after.to_vec();
    let first = before.len() - before.len() % sector_bytes;
    for (n, sector) in (first..after.len()).step_by(sector_bytes).enumerate() {
        if !there(n) {
            left[sector.max(before.len())..(sector + sector_bytes).min(after.len())].fill(0);
        }
    }
    left
}

/// The cut happens while RocksDB records a new file of sums in the MANIFEST: the journal still has its batches.
#[test]
fn a_torn_manifest_opens() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, before, broken) = (
        temp.path().join("db"),
        temp.path().join("before"),
        temp.path().join("broken"),
    );
    let mut random = random("a_torn_manifest_opens");
    // In separate hours, so that nothing is compacted meanwhile.
    let flows_of = |part: usize| {
        let mut flows = flows(part);
        flows.iter_mut().for_each(|flow| flow.key.0 = part as u32);
        flows
    };
    let rows_of = |store: &Store| -> Vec<_> { (0..9).flat_map(|hour| scan(store, hour)).collect() };
    for flush in 0..3 {
        // The directory before RocksDB has the file, and the MANIFEST right after that.
        let due = Arc::new(Mutex::new((false, Vec::new())));
        let hook: StepHook = {
            let (dir, before, due) = (dir.clone(), before.clone(), due.clone());
            Arc::new(move |step| match (step, &mut *due.lock()) {
                (Step::Written, (true, _)) => copy(&dir, &before),
                (Step::Ingested, (true, after)) => *after = std::fs::read(manifest(&dir)).unwrap(),
                _ => {}
            })
        };
        let options = StoreOptions {
            on_step: Some(hook),
            ..StoreOptions::default()
        };
        let (store, _) = Store::open(&dir, options).unwrap();
        for part in 0..=flush {
            store.commit(vec![batch(&flows_of(part))]).unwrap();
            if part < flush {
                store.flush().unwrap();
            }
        }
        due.lock().0 = true;
        store.flush().unwrap();
        let rows = rows_of(&store);
        let synced = std::fs::read(manifest(&before)).unwrap();
        let after = std::mem::take(&mut due.lock().1);
        assert!(after.len() > synced.len() + 100);
        // Its files of sums exist before the MANIFEST lists them.
        for file in with_extension(&dir, "sst") {
            std::fs::copy(&file, before.join("rocks").join(file.file_name().unwrap())).unwrap();
        }
        let sectors = after.len().div_ceil(512) - synced.len() / 512;
        for subset in 0..1 << sectors.min(6) {
            copy(&before, &broken);
            let mut left = torn(&synced, &after, 512, |n| subset >> n & 1 == 1);
            if random.random() {
                left.resize(left.len() + random.random_range(0..5000), 0);
            }
            std::fs::write(manifest(&broken), &left).unwrap();
            // A read-only open changes nothing, and its error has the remedy.
            if let Err(error) = verify(&broken) {
                let error = error.to_string();
                assert!(
                    error.contains("start the service, which cuts it off"),
                    "{error}"
                );
            }
            let store = open(&broken);
            assert_eq!(rows_of(&store), rows, "{flush}: {subset:b}");
            store.commit(vec![batch(&flows_of(8))]).unwrap();
            store.flush().unwrap();
            assert_eq!(rows_of(&store).len(), rows.len() + 40);
            drop(store);
            assert!(verify(&broken).unwrap().faults.is_empty());
            std::fs::remove_dir_all(&broken).unwrap();
        }
        drop(store);
        for dir in [&before, &dir] {
            std::fs::remove_dir_all(dir).unwrap();
        }
    }
}

/// A log with three records, the end of each, and the path of the directory.
fn three_records(dir: &Path, durability: Durability) -> (PathBuf, Vec<u8>, Vec<usize>) {
    let options = StoreOptions {
        durability,
        ..StoreOptions::default()
    };
    let (store, _) = Store::open(dir, options).unwrap();
    let log = with_extension(dir, "log").pop().unwrap();
    let mut ends = Vec::new();
    for part in 0..3 {
        store.commit(vec![batch(&flows(part))]).unwrap();
        ends.push(std::fs::metadata(&log).unwrap().len() as usize);
    }
    let bytes = std::fs::read(&log).unwrap();
    (log, bytes, ends)
}

/// A process was killed, and the power was cut while the next one started: it had created a log, and the data that it
/// had read from the previous log was not synced.
#[test]
fn a_torn_older_log_opens() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, broken) = (temp.path().join("db"), temp.path().join("broken"));
    let (log, bytes, ends) = three_records(&dir, Durability::Fsync);
    let next = log.with_file_name("000900.log");
    let sectors = ends[2].div_ceil(512) - ends[1] / 512;
    for subset in 0..1 << sectors {
        copy(&dir, &broken);
        let left = torn(&bytes[..ends[1]], &bytes, 512, |n| subset >> n & 1 == 1);
        let in_broken = |path: &Path| broken.join(path.strip_prefix(&dir).unwrap());
        std::fs::write(in_broken(&log), &left).unwrap();
        std::fs::write(in_broken(&next), "").unwrap();
        let parts = if left == bytes { 3 } else { 2 };
        assert_eq!(scan(&open(&broken), 1).len(), 40 * parts, "{subset:b}");
        // Damage there is still detected.
        let mut changed = bytes.clone();
        changed[ends[1] + 100] ^= 1;
        std::fs::remove_dir_all(&broken).unwrap();
        copy(&dir, &broken);
        std::fs::write(in_broken(&log), &changed).unwrap();
        std::fs::write(in_broken(&next), "").unwrap();
        let error = Store::open(&broken, StoreOptions::default())
            .map(drop)
            .unwrap_err();
        let error = error.to_string();
        assert!(error.contains("damaged"), "{error}");
        // A backup lacks later batches.
        assert!(error.contains("keep this directory"), "{error}");
        std::fs::remove_dir_all(&broken).unwrap();
    }
}

/// With `--durability os`, a crash of the machine may lose the end of the journal, but not an earlier part.
#[test]
fn without_syncs_a_log_opens_up_to_the_first_gap() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, broken) = (temp.path().join("db"), temp.path().join("broken"));
    let (log, bytes, ends) = three_records(&dir, Durability::Os);
    for sector in ends[0].div_ceil(512)..ends[1] / 512 {
        copy(&dir, &broken);
        let mut left = bytes.clone();
        left[sector * 512..][..512].fill(0);
        std::fs::write(broken.join(log.strip_prefix(&dir).unwrap()), &left).unwrap();
        let store = open(&broken);
        assert_eq!(scan(&store, 1).len(), 40);
        store.commit(vec![batch(&flows(7))]).unwrap();
        drop(store);
        assert_eq!(scan(&open(&broken), 1).len(), 80);
        std::fs::remove_dir_all(&broken).unwrap();
    }
}
