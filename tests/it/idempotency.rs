//! A batch under an idempotency key counts once, however often it is sent.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use flow::{Batch, IdempotencyKey};
use flowtally::store::{Store, StoreOptions};
use rand::RngExt;

use crate::support::{
    Client, Daemon, JSON, NDJSON, Response, TestFlow, batch, free_address, json_body, ndjson_body,
    random,
};
use crate::wait::{until, until_some};

fn flows(n: u64) -> Vec<TestFlow> {
    vec![
        TestFlow::new(1, "a", "b", "v", n, 1),
        TestFlow::new(2, "a", "b", "v", 1, n),
    ]
}

fn send(client: &Client, key: &str, flows: &[TestFlow]) -> Response {
    let headers = [JSON, ("idempotency-key", key)];
    client.post("/flows", &headers, &json_body(flows)).unwrap()
}

fn assert_taken(response: &Response, before: bool) {
    let text = String::from_utf8_lossy(&response.body);
    assert_eq!(
        (response.status, text.as_ref()),
        (200, "{\"accepted\":2}\n")
    );
    let replayed = response.header("idempotent-replayed");
    assert_eq!(replayed, before.then_some("true"));
}

fn assert_problem(response: &Response, status: u16, kind: &str) {
    assert_eq!(response.status, status, "{:?}", response.json());
    let problem = response.json();
    assert!(
        problem["type"].as_str().unwrap().ends_with(kind),
        "{problem}"
    );
}

#[test]
fn a_key_counts_once_also_after_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path());
    assert_taken(&send(&daemon.client, "k1", &flows(5)), false);
    assert_taken(&send(&daemon.client, "k1", &flows(5)), true);
    // The same flows in another format are the same batch.
    let ndjson = [NDJSON, ("idempotency-key", "k1")];
    let response = daemon
        .client
        .post("/flows", &ndjson, &ndjson_body(&flows(5)));
    assert_taken(&response.unwrap(), true);
    assert_taken(&send(&daemon.client, "k2", &flows(5)), false);
    assert_problem(
        &send(&daemon.client, "k1", &flows(6)),
        422,
        "idempotency-key-reused",
    );
    daemon.kill();
    let daemon = Daemon::start(dir.path());
    assert_taken(&send(&daemon.client, "k1", &flows(5)), true);
    assert_problem(
        &send(&daemon.client, "k2", &flows(6)),
        422,
        "idempotency-key-reused",
    );
    daemon.stop();
    let daemon = Daemon::start(dir.path());
    assert_taken(&send(&daemon.client, "k2", &flows(5)), true);
    assert_eq!(daemon.client.hour(1)[0].1.tx, 10);
    // Without a key, each time counts.
    daemon.client.accept(&flows(5));
    assert_eq!(daemon.client.hour(1)[0].1.tx, 15);
    daemon.stop();
}

#[test]
fn an_empty_batch_has_a_receipt_too() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    assert_eq!(
        send(&daemon.client, "k", &[]).header("idempotent-replayed"),
        None
    );
    assert_eq!(
        send(&daemon.client, "k", &[]).header("idempotent-replayed"),
        Some("true")
    );
    assert_problem(
        &send(&daemon.client, "k", &flows(1)),
        422,
        "idempotency-key-reused",
    );
    daemon.stop();
}

#[test]
fn keys_are_visible_ascii_and_one() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    for key in ["", "a b", "käse", &"k".repeat(256)] {
        assert_problem(
            &send(&daemon.client, key, &flows(1)),
            400,
            "bad-idempotency-key",
        );
    }
    let twice = [JSON, ("idempotency-key", "a"), ("idempotency-key", "b")];
    let response = daemon.client.post("/flows", &twice, &json_body(&flows(1)));
    assert_problem(&response.unwrap(), 400, "bad-idempotency-key");
    assert_taken(&send(&daemon.client, &"~".repeat(255), &flows(1)), false);
    assert_taken(
        &send(
            &daemon.client,
            "\"8e03978e-40d5-43dd-bc93-6894a57f9324\"",
            &flows(1),
        ),
        false,
    );
    assert_eq!(daemon.client.hour(1)[0].1.tx, 2);
    daemon.stop();
}

#[test]
fn one_of_concurrent_batches_with_one_key_counts() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    for round in 0..20 {
        let key = format!("round-{round}");
        let fresh = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let response = send(&Client::new(daemon.address), &key, &flows(1));
                    assert_eq!(response.status, 200);
                    let is_fresh = response.header("idempotent-replayed").is_none();
                    fresh.fetch_add(usize::from(is_fresh), Ordering::SeqCst);
                });
            }
        });
        assert_eq!(fresh.into_inner(), 1);
        assert_eq!(daemon.client.hour(1)[0].1.tx, round + 1);
    }
    daemon.stop();
}

#[test]
fn a_key_is_forgotten_after_its_window() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(dir.path(), &["--idempotency-window", "1"]);
    assert_taken(&send(&daemon.client, "k", &flows(1)), false);
    // Other flows are refused while the key is known.
    let taken = until_some("the key to be forgotten", || {
        let response = send(&daemon.client, "k", &flows(2));
        (response.status != 422).then_some(response)
    });
    assert_taken(&taken, false);
    assert_eq!(daemon.client.hour(1)[0].1.tx, 3);
    daemon.stop();
}

/// Senders that do not learn whether a batch counted send it again until they do.
#[test]
fn retries_through_kills_count_once() {
    const WRITERS: u32 = 4;
    const KILLS: u32 = 15;
    let mut random = random("retries_through_kills_count_once");
    let dir = tempfile::tempdir().unwrap();
    let port = free_address();
    let listen = ["--flush-interval", "1", "--listen", &port.to_string()].map(str::to_owned);
    let listen: Vec<&str> = listen.iter().map(String::as_str).collect();
    let over = AtomicBool::new(false);
    let (sent, again) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let writers = (0..WRITERS).map(|writer| {
            let (over, sent, again) = (&over, &sent, &again);
            scope.spawn(move || {
                let mut n = 0;
                while !over.load(Ordering::SeqCst) {
                    let key = format!("w{writer}-{n}");
                    let row = TestFlow::new(1, &format!("w{writer}"), "b", "v", 1, 0);
                    let body = json_body(&vec![row; 10]);
                    let headers = [JSON, ("idempotency-key", key.as_str())];
                    loop {
                        // A new client each time, since the server may be a new one.
                        match Client::new(port).post("/flows", &headers, &body) {
                            Ok(response) if response.status == 200 => {
                                let replayed = response.header("idempotent-replayed").is_some();
                                again.fetch_add(usize::from(replayed), Ordering::SeqCst);
                                break;
                            }
                            Ok(response) => assert_eq!(response.status, 503),
                            // Retried until the new server is up.
                            Err(_killed) => std::thread::sleep(Duration::from_millis(2)),
                        }
                    }
                    n += 1;
                    sent.fetch_add(1, Ordering::SeqCst);
                }
            })
        });
        let writers: Vec<_> = writers.collect();
        for _ in 0..KILLS {
            let mut daemon = Daemon::start_with(dir.path(), &listen);
            // The moment does not matter.
            std::thread::sleep(Duration::from_millis(random.random_range(20..400)));
            daemon.kill();
        }
        let daemon = Daemon::start_with(dir.path(), &listen);
        over.store(true, Ordering::SeqCst);
        for writer in writers {
            writer.join().unwrap();
        }
        let rows = daemon.client.hour(1);
        let sum: u64 = rows.iter().map(|(_, counters)| counters.tx).sum();
        println!("{KILLS} kills, {sent:?} batches, {again:?} of them acknowledged as taken before");
        assert_eq!(sum, 10 * sent.load(Ordering::SeqCst) as u64);
        daemon.stop();
    });
}

/// The oldest keys are dropped first, and the newest are kept.
#[test]
fn keys_beyond_the_bound_on_disk_are_forgotten_by_age() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        receipts_bytes_max: 450 << 10,
        ..StoreOptions::default()
    };
    let (store, _) = Store::open(dir.path(), options).unwrap();
    let mut random = random("keys_beyond_the_bound_on_disk_are_forgotten_by_age");
    let mut keyed = || {
        let key = format!("{:032x}", random.random::<u128>());
        batch(&flows(1)).with_key(IdempotencyKey::new(key.as_bytes()).unwrap())
    };
    let mut generation = || (0..5000).map(|_| keyed()).collect::<Vec<_>>();
    let (old, new) = (generation(), generation());
    store.commit(old.clone()).unwrap();
    store.flush().unwrap();
    let has_receipt = |batch: &Batch| {
        let (key, _) = batch.receipt().unwrap();
        store.receipts(std::slice::from_ref(key)).unwrap()[0].is_some()
    };
    assert!(has_receipt(&old[0]));
    // Receipts have a resolution of one second.
    let written = SystemTime::now();
    until("two more seconds on the clock", || {
        written.elapsed().is_ok_and(|age| age.as_secs() >= 2)
    });
    store.commit(new.clone()).unwrap();
    store.flush().unwrap();
    // The bound is checked after a flush.
    store.commit(vec![batch(&flows(1))]).unwrap();
    store.flush().unwrap();
    until("an old key to be forgotten", || !has_receipt(&old[0]));
    assert!(new.iter().all(has_receipt));
    assert!(!old.iter().any(has_receipt));
}

/// Of shippers that cannot make keys: a batch that is sent again counts once, for a short time.
#[test]
fn equal_batches_count_once_where_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start_with(dir.path(), &["--content-window", "3600"]);
    let send = |client: &Client, path: &str, flows: &[TestFlow]| {
        client.post(path, &[JSON], &json_body(flows)).unwrap()
    };
    const BY_CONTENT: &str = "/flows?dedup=content";
    assert_taken(&send(&daemon.client, BY_CONTENT, &flows(5)), false);
    assert_taken(&send(&daemon.client, BY_CONTENT, &flows(5)), true);
    assert_taken(&send(&daemon.client, BY_CONTENT, &flows(6)), false);
    let ndjson = daemon
        .client
        .post(BY_CONTENT, &[NDJSON], &ndjson_body(&flows(6)));
    assert_taken(&ndjson.unwrap(), true);
    // By default, equal batches count each time. With a key, the key decides.
    assert_taken(&send(&daemon.client, "/flows", &flows(5)), false);
    let keyed = [JSON, ("idempotency-key", "k")];
    let body = json_body(&flows(5));
    assert_taken(
        &daemon.client.post(BY_CONTENT, &keyed, &body).unwrap(),
        false,
    );
    // Keys of this kind are the service's own.
    let reserved = [JSON, ("idempotency-key", "content_1")];
    let refused = daemon.client.post("/flows", &reserved, &body).unwrap();
    assert_problem(&refused, 400, "bad-idempotency-key");
    daemon.kill();
    let daemon = Daemon::start_with(dir.path(), &["--content-window", "1"]);
    std::thread::sleep(Duration::from_secs(2));
    assert_taken(&send(&daemon.client, BY_CONTENT, &flows(5)), false);
    let wrong = send(&daemon.client, "/flows?dedup=key", &flows(5));
    assert_problem(&wrong, 400, "bad-query");
}
