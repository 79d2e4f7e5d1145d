//! A disk that fills up, and gets space again. Needs the right to mount a tmpfs.

use std::time::{Duration, Instant};

use flowtally::store::verify;

use crate::support::{
    Answer, Client, Daemon, Disk, JSON, Model, TestFlow, add_to, hour_of, json_body,
};

/// Flows of which hardly any has a key that another has, so that files grow.
fn flows(n: u64) -> Vec<TestFlow> {
    let flow = |i| TestFlow::new(1, &format!("service-{n}-{i}"), "dest", "vpc", 1, n);
    (0..1000).map(flow).collect()
}

fn post(client: &Client, flows: &[TestFlow]) -> Option<Answer> {
    client.post("/flows", &[JSON], &json_body(flows)).ok()
}

fn within(seconds: u64, mut happens: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < deadline {
        if happens() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

#[test]
fn below_the_reserve_batches_are_refused_early() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path().join("disk"), 128);
    if !disk.mounted {
        return;
    }
    let daemon = Daemon::start_with(&disk.path.join("db"), &["--disk-reserve", "60"]);
    let client = &daemon.client;
    client.accept(&flows(0));
    disk.fill(30);
    let refused = || post(client, &flows(1)).filter(|answer| answer.status == 507);
    assert!(within(5, || refused().is_some()), "{}", daemon.log());
    let answer = refused().unwrap();
    assert_eq!(answer.json()["type"], "urn:flowtally:problem:no-space");
    assert!(answer.header("retry-after").is_some());
    assert_eq!(client.get("/readyz", &[]).unwrap().status, 503);
    let rows = client.hour(1).len();
    assert_eq!(rows % 1000, 0, "answers go on, and no batch is half there");
    disk.free();
    assert!(within(5, || post(client, &flows(2))
        .is_some_and(|answer| answer.status == 200)));
    assert_eq!(client.hour(1).len(), rows + 1000);
    daemon.stop();
}

#[test]
fn a_disk_that_is_full_loses_nothing_and_gets_over_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path().join("disk"), 128);
    if !disk.mounted {
        return;
    }
    let db = disk.path.join("db");
    let arguments = [
        "--disk-reserve",
        "0",
        "--flush-interval",
        "1",
        "--memory-max",
        "128",
    ];
    let mut daemon = Daemon::start_with(&db, &arguments);
    let (mut model, mut unknown) = (Model::new(), Model::new());
    let mut refused = 0;
    for round in 0..3 {
        // Full at once, and full after some more flushes: it is another file that fails.
        disk.fill(round * 4);
        let until = Instant::now() + Duration::from_secs(4);
        let mut n = round * 10_000;
        while Instant::now() < until {
            n += 1;
            let flows = flows(n);
            match post(&daemon.client, &flows) {
                Some(answer) if answer.status == 200 => add_to(&mut model, &flows),
                Some(answer) => {
                    assert!(matches!(answer.status, 503 | 507), "{}", answer.status);
                    refused += 1;
                    add_to(&mut unknown, &flows);
                }
                None => add_to(&mut unknown, &flows),
            }
            let answer = daemon.client.get("/healthz", &[]);
            assert!(daemon.has_ended() || answer.is_ok_and(|answer| answer.status == 200));
            if daemon.has_ended() {
                break;
            }
        }
        disk.free();
        let works = within(45, || {
            if daemon.has_ended() {
                // With one clear line; a supervisor starts it again.
                assert!(daemon.log().contains("flowtally: "), "{}", daemon.log());
                daemon = Daemon::start_with(&db, &arguments);
            }
            post(&daemon.client, &[]).is_some()
                && daemon
                    .client
                    .get("/readyz", &[])
                    .is_ok_and(|answer| answer.status == 200)
        });
        assert!(works, "{}", daemon.log());
        let more = flows(round * 10_000 + 9_999);
        assert!(within(10, || post(&daemon.client, &more)
            .is_some_and(|a| a.status == 200)));
        add_to(&mut model, &more);
    }
    // What was acknowledged is there, once; of the rest, what is there is there once.
    let rows = daemon.client.hour(1);
    let expected = hour_of(&model, 1);
    assert!(rows.iter().all(|(key, sums)| {
        model
            .get(key)
            .or_else(|| unknown.get(key))
            .is_some_and(|expected| expected == sums)
    }));
    let found = rows
        .iter()
        .filter(|(key, _)| model.contains_key(key))
        .count();
    assert_eq!(found, expected.len(), "an acknowledged flow is gone");
    assert!(refused > 0, "the disk was never full");
    daemon.stop();
    let verified = verify(&db).unwrap();
    assert!(verified.faults.is_empty(), "{:?}", verified.faults);
    println!("{} rows, {refused} batches refused", rows.len());
}
