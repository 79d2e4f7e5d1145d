//! Hours that are dropped, by age or by request: completely, permanently, and cheaply.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use flow::{Counters, Hour};
use flowtally::store::{RetentionPeriods, Step, Store, StoreOptions, verify};
use rand::RngExt;

use crate::support::{
    Client, Daemon, Disk, JSON, Model, TestFlow, add_to, batch, hour_of, json_body, ledger_of,
    random, scan,
};
use crate::wait::{until, until_logged};

fn flow(hour: u32, n: u64) -> TestFlow {
    TestFlow::new(hour, &format!("s{}", n % 50), "d", "v", n, 1)
}

fn post(client: &Client, headers: &[(&str, &str)], flows: &[TestFlow]) -> (String, bool) {
    let headers = [&[JSON], headers].concat();
    let response = client.post("/flows", &headers, &json_body(flows)).unwrap();
    assert_eq!(response.status, 200, "{response:?}");
    let replayed = response.header("idempotent-replayed").is_some();
    (String::from_utf8(response.body).unwrap(), replayed)
}

#[test]
fn too_old_flows_are_counted_as_expired_and_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--retain-hours", "3", "--flush-interval", "1"];
    let mut daemon = Daemon::start_with(dir.path(), &arguments);
    let client = daemon.client.clone();
    client.accept(&[flow(5, 1), flow(7, 2), flow(8, 3)]);
    // The newest hour is 8, so 5 is kept and 4 is not, even in the batch that moves the newest.
    assert_eq!(
        post(&client, &[], &[flow(4, 1), flow(8, 1)]).0,
        "{\"accepted\":1,\"expired\":1}\n"
    );
    let key = [("idempotency-key", "one")];
    let moving = [flow(5, 9), flow(9, 1), flow(6, 1)];
    let first = post(&client, &key, &moving);
    assert_eq!(
        first,
        ("{\"accepted\":2,\"expired\":1}\n".to_owned(), false)
    );
    assert_eq!(client.hour(5), []);
    assert_eq!(
        post(&client, &[], &[flow(0, 1)]).0,
        "{\"accepted\":0,\"expired\":1}\n"
    );
    // A replay gets the same response, even if more flows are too old by then.
    client.accept(&[flow(12, 1)]);
    let replayed = post(&client, &key, &moving);
    assert_eq!(replayed, (first.0, true));
    for restart in [false, true] {
        if restart {
            daemon.kill();
            daemon = Daemon::start_with(dir.path(), &arguments);
        }
        let hours = daemon.client.get("/hours", &[]).unwrap().json();
        let hours: Vec<_> = hours
            .as_array()
            .unwrap()
            .iter()
            .map(|h| &h["hour"])
            .collect();
        assert_eq!(hours, [9, 12]);
        for hour in [4, 5, 6, 7, 8] {
            assert_eq!(daemon.client.hour(hour), [], "{hour}");
        }
    }
    daemon.stop();
    let verified = verify(dir.path()).unwrap();
    assert!(verified.faults.is_empty(), "{:?}", verified.faults);
    assert_eq!(verified.hours, 2);
}

#[test]
fn an_hour_is_deleted_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let client = &daemon.client;
    client.accept(&[flow(1, 1), flow(2, 2), flow(2, 3)]);
    let delete = |query: &str| {
        let response = client.delete(&format!("/flows{query}")).unwrap();
        (response.status, String::from_utf8(response.body).unwrap())
    };
    assert_eq!(delete("?hour=2"), (200, "{\"deleted\":2}\n".into()));
    assert_eq!(client.hour(2), []);
    let (status, body) = delete("?hour=2");
    assert!(status == 404 && body.contains("no-such-hour"), "{body}");
    assert_eq!(delete("").0, 400);
    assert_eq!(client.hour(1).len(), 1);
    // The hour can get new flows.
    client.accept(&[flow(2, 7)]);
    assert_eq!(client.hour(2)[0].1, Counters { tx: 7, rx: 1 });
    daemon.stop();
    assert!(verify(dir.path()).unwrap().faults.is_empty());
}

/// A flow of the far future makes all others too old. Deleting it moves the cutoff back, but restores no dropped hour.
#[test]
fn age_counts_from_the_newest_hour_that_has_flows() {
    let arguments = ["--retain-hours", "24", "--hour-ahead-max", "none"];
    let far = Hour::MAX;
    for _ in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let mut daemon = Daemon::start_with(dir.path(), &arguments);
        let old: Vec<_> = (76..100).map(|hour| flow(hour, 1)).collect();
        daemon.client.accept(&old);
        daemon.client.accept(&[flow(far, 1)]);
        assert_eq!(daemon.client.hour(99), []);
        let deleted = daemon.client.delete(&format!("/flows?hour={far}")).unwrap();
        assert_eq!(deleted.status, 200);
        daemon.kill();
        let daemon = Daemon::start_with(dir.path(), &arguments);
        let hours = daemon.client.get("/hours", &[]).unwrap().json();
        assert_eq!(hours, serde_json::json!([]));
        daemon.client.accept(&[flow(100, 1)]);
        daemon.client.accept(&[flow(far, 1)]);
        let deleted = daemon.client.delete(&format!("/flows?hour={far}")).unwrap();
        assert_eq!(deleted.status, 200);
        daemon.client.accept(&[flow(101, 1)]);
        assert_eq!(daemon.client.hour(101).len(), 1);
        daemon.stop();
    }
}

/// It guards against a kill that leaves rows without their ledger or vice versa, and against a journal that restores
/// dropped flows.
#[test]
fn killed_at_each_step_of_a_drop() {
    for step in [
        Step::Frozen,
        Step::Ingested,
        Step::DropWritten,
        Step::Dropped,
    ] {
        let dir = tempfile::tempdir().unwrap();
        // The steps before the drop are those of its flush; a copy of the directory at a step is the state after a
        // kill.
        let copy = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().to_owned(), copy.path().to_owned());
        let copies = Arc::new(AtomicU32::new(0));
        let count = copies.clone();
        let armed = Arc::new(AtomicU32::new(0));
        let is_armed = armed.clone();
        let options = StoreOptions {
            on_step: Some(Arc::new(move |now| {
                if now == step && is_armed.load(Ordering::SeqCst) == 1 {
                    let n = count.fetch_add(1, Ordering::SeqCst);
                    copy_at_rest(&from, &to.join(n.to_string()));
                }
            })),
            ..StoreOptions::default()
        };
        let (store, _) = Store::open(dir.path(), options).unwrap();
        for hour in 1..4 {
            store
                .commit(vec![batch(&[flow(hour, 1), flow(hour, 2)])])
                .unwrap();
        }
        // Before a drop, one file has all hours; before a flush, none.
        if matches!(step, Step::DropWritten | Step::Dropped) {
            store.flush().unwrap();
        }
        armed.store(1, Ordering::SeqCst);
        let gone = store
            .delete_hours(Hour::new(2).unwrap().into())
            .unwrap()
            .unwrap();
        assert_eq!(gone.flows, 2);
        armed.store(0, Ordering::SeqCst);
        drop(store);
        let copies = copies.load(Ordering::SeqCst);
        assert!(copies > 0, "{step:?} was not taken");
        for n in 0..copies {
            let copy = copy.path().join(n.to_string());
            let verified = verify(&copy).unwrap();
            assert!(
                verified.faults.is_empty(),
                "{step:?}: {:?}",
                verified.faults
            );
            let (store, _) = Store::open(&copy, StoreOptions::default()).unwrap();
            let left = scan(&store, 2);
            let sum: u64 = left.iter().map(|(_, c)| c.rx).sum();
            match step {
                Step::Dropped => assert_eq!(left, []),
                _ => assert_eq!(sum, 2, "{step:?}"),
            }
            for hour in [1, 3] {
                assert_eq!(scan(&store, hour).len(), 2);
            }
        }
    }
}

/// A copy of the state after a kill: RocksDB's own threads may be changing files meanwhile.
fn copy_at_rest(from: &std::path::Path, to: &std::path::Path) {
    until("a copy without concurrent changes", || {
        let before = listing(from);
        copy_dir(from, to);
        let is_at_rest = listing(from) == before;
        if !is_at_rest {
            std::fs::remove_dir_all(to).unwrap();
        }
        is_at_rest
    });
}

/// Every file below `dir`, with its length and the time of its last change.
fn listing(dir: &std::path::Path) -> Vec<(std::path::PathBuf, u64, SystemTime)> {
    let mut files = Vec::new();
    for found in std::fs::read_dir(dir).unwrap().flatten() {
        let Ok(about) = found.metadata() else {
            continue;
        };
        if about.is_dir() {
            files.extend(listing(&found.path()));
        } else {
            files.push((found.path(), about.len(), about.modified().unwrap()));
        }
    }
    files.sort();
    files
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for found in std::fs::read_dir(from).unwrap() {
        let found = found.unwrap();
        let into = to.join(found.file_name());
        if found.path().is_dir() {
            copy_dir(&found.path(), &into);
        } else {
            // RocksDB may remove one meanwhile.
            let _gone = std::fs::copy(found.path(), into);
        }
    }
}

/// Random commits, drops, flushes, compactions and restarts, compared with a map.
#[test]
fn dropped_hours_stay_dropped() {
    let mut random = random("dropped_hours_stay_dropped");
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        tally_bytes_max: 16 << 10,
        flush_interval: Duration::from_millis(50),
        retention: RetentionPeriods::of_hours(Some(20)),
        ..StoreOptions::default()
    };
    let open = || Store::open(dir.path(), options.clone()).unwrap().0;
    let (mut store, mut model) = (open(), Model::new());
    let mut newest = 100;
    for step in 0..600 {
        match random.random_range(0..20) {
            0 => store.flush().unwrap(),
            1 => store.compact().unwrap(),
            2 => {
                drop(store);
                store = open();
            }
            3..6 => {
                let hour = random.random_range(newest - 20..=newest);
                let held = hour_of(&model, hour);
                let deleted = store
                    .delete_hours(Hour::new(hour.into()).unwrap().into())
                    .unwrap();
                assert_eq!(deleted.is_some(), !held.is_empty(), "step {step}");
                model.retain(|key, _| key.0 != hour);
                if hour == newest {
                    newest += 1;
                    let flows = [flow(newest, 1)];
                    store.commit(vec![batch(&flows)]).unwrap();
                    add_to(&mut model, &flows);
                }
            }
            _ => {
                newest += u32::from(random.random_range(0..4) == 0);
                let flows: Vec<_> = (0..random.random_range(1..40))
                    .map(|_| {
                        let hour = random.random_range(newest - 20..=newest);
                        flow(hour, random.random_range(0..1000))
                    })
                    .chain([flow(newest, 1)])
                    .collect();
                store.commit(vec![batch(&flows)]).unwrap();
                add_to(&mut model, &flows);
            }
        }
        model.retain(|key, _| key.0 + 20 >= newest);
        let hour = random.random_range(newest - 25..=newest);
        assert_eq!(
            scan(&store, hour),
            hour_of(&model, hour),
            "step {step}, hour {hour}"
        );
    }
    let ledger = ledger_of(&store);
    let hours: BTreeMap<u32, ()> = model.keys().map(|key| (key.0, ())).collect();
    let ledger: BTreeMap<u32, ()> = ledger.map(|(h, _)| (h.get(), ())).collect();
    assert_eq!(ledger, hours);
    store.observe().unwrap();
    let difference = &options.metrics.store().ledger_difference_flows;
    assert_eq!(difference.get(), 0);
    drop(store);
    let verified = verify(dir.path()).unwrap();
    assert!(verified.faults.is_empty(), "{:?}", verified.faults);
}

/// Space is released, and reads and writes are as fast as before.
#[test]
fn a_thousand_hours_take_the_space_of_the_kept_ones() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        retention: RetentionPeriods::of_hours(Some(24)),
        ..StoreOptions::default()
    };
    let (store, _) = Store::open(dir.path(), options).unwrap();
    let mut sizes = Vec::new();
    let mut longest = Duration::ZERO;
    for hour in 0..1000 {
        let flows: Vec<_> = (0..500)
            .map(|n| {
                TestFlow::new(
                    hour,
                    &format!("service-{n}-{hour}"),
                    "d",
                    "v",
                    n,
                    n * hour as u64,
                )
            })
            .collect();
        let batch = batch(&flows);
        let start = Instant::now();
        store.commit(vec![batch]).unwrap();
        longest = longest.max(start.elapsed());
        if hour % 5 == 0 {
            store.flush().unwrap();
        }
        if hour % 100 == 99 {
            sizes.push(bytes_of(&dir.path().join("rocks")));
        }
    }
    println!("bytes on disk: {sizes:?}; longest commit {longest:?}");
    store.flush().unwrap();
    assert_eq!(ledger_of(&store).count(), 25);
    let most = sizes[1..].iter().max().unwrap();
    assert!(*most < 3 * sizes[1].max(1 << 20), "{sizes:?}");
}

/// Files that a dropped hour shares with others are rewritten, which needs space, so it is retried when there is some.
#[test]
fn a_full_disk_delays_compaction_of_dropped_hours() {
    const HOUR_ROWS: u64 = 80_000;
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path().join("disk"), 64);
    if !disk.mounted {
        return;
    }
    let db = disk.path.join("db");
    let rocks = db.join("rocks");
    let (store, _) = Store::open(&db, StoreOptions::default()).unwrap();
    let mut random = random("a_full_disk_delays_compaction_of_dropped_hours");
    for hour in 1..=3 {
        let flows: Vec<_> = (0..HOUR_ROWS)
            .map(|_| TestFlow::new(hour, &random.random::<u128>().to_string(), "d", "v", 1, 1))
            .collect();
        store.commit(vec![batch(&flows)]).unwrap();
    }
    store.flush().unwrap();
    // RocksDB removes its log, which would make room later.
    until("the old log is removed", || {
        let logs = std::fs::read_dir(&rocks).unwrap().flatten();
        let logs = logs.filter(|file| file.path().extension().is_some_and(|e| e == "log"));
        logs.filter_map(|log| Some(log.metadata().ok()?.len()))
            .sum::<u64>()
            < 1 << 20
    });
    drop(store);
    let daemon = Daemon::start(&db);
    let before = bytes_of(&rocks);
    disk.fill(1);
    let deleted = daemon.client.delete("/flows?hour=2").unwrap();
    assert_eq!(deleted.status, 200);
    until_logged(&daemon, "files of dropped hours not compacted");
    assert!(bytes_of(&rocks) >= before, "{before}, {}", bytes_of(&rocks));
    disk.free();
    until("the files of the dropped hour to be rewritten", || {
        bytes_of(&rocks) <= before * 3 / 4
    });
    daemon.stop();
    let (store, _) = Store::open(&db, StoreOptions::default()).unwrap();
    assert_eq!(scan(&store, 2), []);
    assert_eq!(scan(&store, 3).len() as u64, HOUR_ROWS);
}

fn bytes_of(dir: &std::path::Path) -> u64 {
    let files = std::fs::read_dir(dir).unwrap();
    let sst = files.filter_map(|f| Some(f.ok()?.path()));
    sst.filter(|path| path.extension().is_some_and(|e| e == "sst"))
        .filter_map(|path| Some(path.metadata().ok()?.len()))
        .sum()
}
