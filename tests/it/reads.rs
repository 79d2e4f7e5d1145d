//! Reads during writes: each response shows a state that existed.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flowtally::store::{Store, StoreOptions};

use crate::support::{Daemon, JSON, Key, TestFlow, batch, json_body, scan};
use crate::wait::{DEADLINE, at_most, until, until_some};
use flow::Counters;

const WRITERS: usize = 8;
const ROWS: usize = 40;
const HOUR: u32 = 7;
/// After this time, the machine is too slow for these tests.
const TIME_MAX_S: u64 = 60;

/// A batch of a writer adds 1 to each of its rows: if half a batch were visible, rows would differ.
fn flows_of(writer: usize) -> Vec<TestFlow> {
    (0..ROWS)
        .map(|i| TestFlow::new(HOUR, &format!("w{writer}"), &format!("d{i}"), "v", 1, 2))
        .collect()
}

/// Checks one response: `acknowledged` are the batches before its request, `sent` those after it, and `seen` those in
/// the previous response. Updates `seen`.
fn assert_is_snapshot(
    rows: &[(Key, Counters)],
    acknowledged: &[u64],
    sent: &[u64],
    seen: &mut [u64],
) {
    let mut by_writer: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for ((_, src, ..), counters) in rows {
        assert_eq!(counters.rx, 2 * counters.tx);
        let writer = src[1..].parse().unwrap();
        by_writer.entry(writer).or_default().push(counters.tx);
    }
    for writer in 0..WRITERS {
        let sums = by_writer.get(&writer).cloned().unwrap_or(vec![0; ROWS]);
        assert_eq!(sums.len(), ROWS, "a batch is half visible");
        let batches = sums[0];
        assert!(sums.iter().all(|&s| s == batches), "half visible: {sums:?}");
        assert!(
            batches >= acknowledged[writer],
            "an acknowledged batch is not visible"
        );
        assert!(batches <= sent[writer], "more batches than were sent");
        assert!(batches >= seen[writer], "a sum decreased");
        seen[writer] = batches;
    }
}

fn load_all(counters: &[AtomicU64]) -> Vec<u64> {
    counters.iter().map(|c| c.load(Ordering::SeqCst)).collect()
}

/// Runs writers and one reader concurrently, for some seconds and until there are enough responses and batches; checks
/// every response, and returns their number.
fn read_while_writing(
    seconds: u64,
    (answers_min, batches_min): (usize, u64),
    write: impl Fn(usize) + Sync,
    read: impl Fn() -> Vec<(Key, Counters)>,
) -> (usize, u64) {
    let counters = || (0..WRITERS).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
    let (sent, acknowledged) = (counters(), counters());
    let stop = AtomicBool::new(false);
    let mut responses = 0;
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (sent, acknowledged, stop, write) = (&sent, &acknowledged, &stop, &write);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    sent[writer].fetch_add(1, Ordering::SeqCst);
                    write(writer);
                    acknowledged[writer].fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        // A failed check must end the writers too, or the scope never does.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut seen = vec![0; WRITERS];
            let begun = Instant::now();
            loop {
                let before = load_all(&acknowledged);
                let time = begun.elapsed().as_secs();
                let enough = responses >= answers_min && before.iter().sum::<u64>() >= batches_min;
                if time >= seconds && (enough || time >= TIME_MAX_S) {
                    break;
                }
                let rows = read();
                assert_is_snapshot(&rows, &before, &load_all(&sent), &mut seen);
                responses += 1;
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    let total = load_all(&acknowledged);
    let rows = read();
    assert_is_snapshot(&rows, &total, &total, &mut [0; WRITERS]);
    (responses, total.iter().sum())
}

#[test]
fn a_response_is_a_consistent_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(dir.path(), &["--flush-interval", "1"]);
    let clients: Vec<_> = (0..WRITERS)
        .map(|_| crate::support::Client::new(daemon.address))
        .collect();
    let bodies: Vec<_> = (0..WRITERS).map(|w| json_body(&flows_of(w))).collect();
    let (responses, batches) = read_while_writing(
        5,
        (50, 500),
        |writer| {
            let response = clients[writer].post("/flows", &[JSON], &bodies[writer]);
            assert_eq!(response.unwrap().status, 200);
        },
        || daemon.client.hour(HOUR),
    );
    println!("{responses} responses over {batches} batches");
    assert!(responses >= 50 && batches >= 500, "{responses} {batches}");
    daemon.stop();
}

#[test]
fn a_response_is_a_consistent_snapshot_during_continuous_flushes() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        durability: flowtally::store::Durability::Os,
        tally_bytes_max: 1, // each commit makes the next one freeze the tally
        ..StoreOptions::default()
    };
    let (store, _) = Store::open(dir.path(), options).unwrap();
    let batches: Vec<_> = (0..WRITERS).map(|w| batch(&flows_of(w))).collect();
    let (responses, commits) = read_while_writing(
        4,
        (200, 200),
        |writer| {
            store.commit(vec![batches[writer].clone()]).unwrap();
        },
        || scan(&store, HOUR),
    );
    println!("{responses} responses over {commits} commits, a flush each");
    assert!(responses >= 200 && commits >= 200, "{responses} {commits}");
}

#[test]
fn a_slow_client_sees_one_snapshot_and_does_not_delay_others() {
    use std::io::{Read, Write};
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let flows: Vec<_> = (0..200_000)
        .map(|i| TestFlow::new(1, &format!("src-{i:06}"), "dest", "vpc", 1, 1))
        .collect();
    daemon.client.accept(&flows);
    // Sends a request, reads a little, and pauses: the rest of 16 MB does not fit into the buffers in between.
    let mut slow = std::net::TcpStream::connect(daemon.address).unwrap();
    slow.write_all(b"GET /flows?hour=1 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut response = vec![0; 1000];
    slow.read_exact(&mut response).unwrap();
    for round in 0..5 {
        daemon.client.accept(&flows[..1000]);
        let rows = daemon.client.hour(1);
        assert_eq!(rows.len(), 200_000);
        assert_eq!(rows[0].1.tx, round + 2);
    }
    slow.read_to_end(&mut response).unwrap();
    let text = String::from_utf8(response).unwrap();
    assert_eq!(
        text.matches("\"bytes_tx\":1,").count(),
        200_000,
        "all rows of the snapshot"
    );
    daemon.stop();
}

/// Each copies the unflushed rows; all copies together are bounded.
#[test]
fn clients_that_do_not_read_their_responses_hold_a_bounded_amount_of_memory() {
    clients_that_do_not_read("3600");
}

/// They hold files that compaction has replaced since.
#[test]
fn clients_that_do_not_read_their_responses_do_not_delay_flushes() {
    clients_that_do_not_read("1");
}

fn clients_that_do_not_read(flush_interval: &str) {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(dir.path(), &["--flush-interval", flush_interval]);
    for part in 0..3 {
        let flows: Vec<_> = (0..100_000)
            .map(|i| TestFlow::new(1, &format!("source-{part}-{i:06}"), "dest", "vpc", 1, 1))
            .collect();
        daemon.client.accept(&flows);
    }
    let stalled: Vec<_> = (0..150)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(daemon.address).unwrap();
            stream
                .write_all(b"GET /flows?hour=1 HTTP/1.1\r\nhost: localhost\r\n\r\n")
                .unwrap();
            stream
        })
        .collect();
    // Writers are not affected.
    let more: Vec<_> = (0..1000)
        .map(|i| TestFlow::new(1, &format!("source-0-{i:06}"), "dest", "vpc", 1, 1))
        .collect();
    for _ in 0..30 {
        let start = Instant::now();
        daemon.client.accept(&more);
        assert!(start.elapsed() < at_most(2));
        // Flushes happen in between.
        std::thread::sleep(Duration::from_millis(100));
    }
    let memory_mib = daemon.memory_mib();
    println!("{memory_mib} MiB with {} stalled clients", stalled.len());
    assert!(memory_mib < 512, "{memory_mib} MiB");
    drop(stalled);
    let rows = until_some("a response after the clients have left", || {
        let response = daemon.client.get("/flows?hour=1", &[]).unwrap();
        (response.status == 200).then(|| response.rows())
    });
    assert_eq!(rows.len(), 300_000);
    let sum: u64 = rows.iter().map(|(_, counters)| counters.tx).sum();
    assert_eq!(sum, 300_000 + 30_000);
    daemon.stop();
}

/// Slow readers are never idle for long, and would take hours. Other clients get short responses immediately, and long
/// ones after a slow reader was aborted.
#[test]
fn slow_readers_do_not_block_others() {
    let dir = tempfile::tempdir().unwrap();
    // 16 permits for responses.
    let arguments = ["--memory-max", "128", "--shutdown-timeout", "2"];
    let arguments = [&arguments[..], &["--flush-interval", "1"]].concat();
    let mut daemon = Daemon::start_with(dir.path(), &arguments);
    let pad = "x".repeat(200);
    for part in 0..10 {
        let flow = |i| TestFlow::new(1, &format!("{pad}{part}-{i}"), &pad, "v", 1, 2);
        daemon
            .client
            .accept(&(0..5_000).map(flow).collect::<Vec<_>>());
    }
    daemon
        .client
        .accept(&[TestFlow::new(2, "a", "b", "c", 1, 2)]);

    let (stop, answers_begun) = (AtomicBool::new(false), AtomicU64::new(0));
    let _still_connected = std::thread::scope(|scope| {
        let slow = scope.spawn(|| {
            let connect = || {
                let mut stream = std::net::TcpStream::connect(daemon.address).unwrap();
                let request = b"GET /flows?hour=1 HTTP/1.1\r\nHost: localhost\r\n\r\n";
                stream.write_all(request).unwrap();
                stream.set_nonblocking(true).unwrap();
                stream
            };
            let mut slow: Vec<_> = (0..40).map(|_| (connect(), false)).collect();
            let until = Instant::now() + 2 * DEADLINE;
            while !stop.load(Ordering::Relaxed) && Instant::now() < until {
                for (stream, has_begun) in &mut slow {
                    let read = std::io::Read::read(stream, &mut [0; 2048]);
                    if !std::mem::replace(has_begun, *has_begun || read.is_ok_and(|n| n > 0)) {
                        answers_begun.fetch_add(u64::from(*has_begun), Ordering::Relaxed);
                    }
                }
                // They read slowly.
                std::thread::sleep(Duration::from_millis(500));
            }
            slow
        });
        let status = |path: &str| daemon.client.get(path, &[]).map_or(0, |a| a.status);
        until("the slow readers have all permits", || {
            answers_begun.load(Ordering::Relaxed) >= 12
        });
        until("a short response", || status("/flows?hour=2") == 200);
        let begun = Instant::now();
        until("a long response", || {
            for path in [
                "/flows?hour=2",
                "/hours",
                "/flows?hour=1&limit=10",
                "/readyz",
            ] {
                let response = daemon.client.get(path, &[]).unwrap();
                let what = String::from_utf8_lossy(&response.body);
                assert_eq!(response.status, 200, "{path}: {what}");
            }
            status("/flows?hour=1") == 200
        });
        println!("a long response after {:?}", begun.elapsed());
        stop.store(true, Ordering::Relaxed);
        slow.join().unwrap()
    });
    // No flow is lost with the aborted responses.
    daemon.signal("TERM");
    assert!(daemon.wait().success(), "{}", daemon.log());
}
