//! The process is killed at any moment. Afterwards, every acknowledged batch is counted exactly once, and every other
//! one completely or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use flowtally::store::{Step, Store, StoreOptions};
use rand::RngExt;

use crate::support::{Client, Daemon, JSON, Key, TestFlow, batch, json_body, random, scan};
use crate::wait::until;
use flow::Counters;

const ROWS: usize = 7;

/// Batch `n` of `writer`: rows of its own, and one that all batches of the hour share.
fn flows_of(hour: u32, writer: usize, n: usize) -> Vec<TestFlow> {
    let (src, dest) = (format!("w{writer}"), format!("b{n}"));
    let mut flows: Vec<_> = (0..ROWS)
        .map(|i| TestFlow::new(hour, &src, &dest, &format!("v{i}"), 1, 1))
        .collect();
    flows.push(TestFlow::new(hour, "all", "all", "all", 1, 1));
    flows
}

/// Compares the rows of an hour with the acknowledged batches, and returns the number of counted batches.
fn assert_batches_are_whole(
    rows: &[(Key, Counters)],
    acknowledged: &BTreeSet<(usize, usize)>,
) -> usize {
    let mut batches: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    let mut all = 0;
    for ((_, src, dest, _), counters) in rows {
        if src == "all" {
            all = counters.tx;
            continue;
        }
        assert_eq!(
            (counters.tx, counters.rx),
            (1, 1),
            "{src} {dest} counted twice"
        );
        let id = (src[1..].parse().unwrap(), dest[1..].parse().unwrap());
        *batches.entry(id).or_default() += 1;
    }
    for (id, rows) in &batches {
        assert_eq!(*rows, ROWS, "batch {id:?} is counted in part");
    }
    for id in acknowledged {
        assert!(
            batches.contains_key(id),
            "acknowledged batch {id:?} is lost"
        );
    }
    assert_eq!(all as usize, batches.len(), "the shared row disagrees");
    batches.len()
}

/// Rounds of the random kill test; by hand: `FLOWTALLY_TEST_KILLS=500`.
fn rounds() -> u32 {
    let rounds = std::env::var("FLOWTALLY_TEST_KILLS").ok();
    rounds.and_then(|r| r.parse().ok()).unwrap_or(100)
}

/// It guards against a response that is sent before its batch is durable, a batch that is both in the journal and in a
/// flushed file, and a group that is replayed in part.
#[test]
fn killed_at_random_moments_under_load() {
    const WRITERS: usize = 4;
    let mut random = random("killed_at_random_moments_under_load");
    let dir = tempfile::tempdir().unwrap();
    let mut rounds_acknowledged: Vec<BTreeSet<(usize, usize)>> = Vec::new();
    let (mut acknowledged, mut unknown) = (0, 0);
    for hour in 0..rounds() {
        let mut daemon = Daemon::start_with(dir.path(), &["--flush-interval", "1"]);
        if let Some(previous) = hour.checked_sub(1) {
            let before = &rounds_acknowledged[previous as usize];
            unknown +=
                assert_batches_are_whole(&daemon.client.hour(previous), before) - before.len();
        }
        // After some batches: mostly early, when there is only a journal; sometimes around a flush.
        let wait_ms = match random.random_range(0..4) {
            0 => random.random_range(900..1300),
            _ => random.random_range(1..150),
        };
        let next = AtomicUsize::new(0);
        let address = daemon.address;
        let done = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let next = &next;
                    scope.spawn(move || {
                        let client = Client::new(address);
                        let mut done = Vec::new();
                        loop {
                            let n = next.fetch_add(1, Ordering::Relaxed);
                            let body = json_body(&flows_of(hour, writer, n));
                            match client.post("/flows", &[JSON], &body) {
                                Ok(response) if response.status == 200 => done.push((writer, n)),
                                Ok(response) => panic!("{response:?}"),
                                Err(_killed) => return done,
                            }
                        }
                    })
                })
                .collect();
            until("some batches are sent", || {
                next.load(Ordering::Relaxed) > 20
            });
            std::thread::sleep(Duration::from_millis(wait_ms));
            daemon.kill();
            let done = writers.into_iter().flat_map(|w| w.join().unwrap());
            done.collect::<BTreeSet<_>>()
        });
        acknowledged += done.len();
        rounds_acknowledged.push(done);
    }
    let daemon = Daemon::start(dir.path());
    for (hour, acknowledged) in (0..).zip(&rounds_acknowledged) {
        assert_batches_are_whole(&daemon.client.hour(hour), acknowledged);
    }
    println!(
        "{} kills, {acknowledged} batches acknowledged, {unknown} stored without a response",
        rounds()
    );
    assert!(acknowledged > 10 * rounds() as usize);
    daemon.stop();
}

/// Ends the process like SIGKILL: without destructors, and without writing buffers.
const AT: &str = "FLOWTALLY_TEST_CRASH_AT";
const DIR: &str = "FLOWTALLY_TEST_CRASH_DIR";

const STEPS: [Step; 6] = [
    Step::Journaled,
    Step::Frozen,
    Step::Written,
    Step::Ingested,
    Step::Trimmed,
    Step::Replayed,
];

fn options(on_step: Option<flowtally::store::StepHook>) -> StoreOptions {
    StoreOptions {
        tally_bytes_max: 1, // the commit after each one freezes and flushes
        on_step,
        ..StoreOptions::default()
    }
}

/// Runs in a child process, which [`crash_at`] starts; otherwise, it does nothing.
#[test]
fn child_that_crashes() {
    let (Ok(at), Ok(dir)) = (std::env::var(AT), std::env::var(DIR)) else {
        return;
    };
    let (step, count) = at.split_once(':').unwrap();
    let (step, count): (usize, u32) = (step.parse().unwrap(), count.parse().unwrap());
    let left = Arc::new(AtomicU32::new(count));
    let crash: flowtally::store::StepHook = Arc::new(move |at| {
        if at == STEPS[step] && left.fetch_sub(1, Ordering::SeqCst) == 1 {
            std::process::abort();
        }
    });
    let dir = Path::new(&dir);
    let (store, _) = Store::open(&dir.join("db"), options(Some(crash))).unwrap();
    let append = |name: &str| {
        let mut options = std::fs::OpenOptions::new();
        options
            .append(true)
            .create(true)
            .open(dir.join(name))
            .unwrap()
    };
    // Writes a line in one call: the crash happens on another thread, and would cut the line.
    let line = |mut file: &File, n: usize| file.write_all(format!("{n}\n").as_bytes()).unwrap();
    let (sent, acknowledged) = (append("sent"), append("acknowledged"));
    let first = std::fs::read_to_string(dir.join("sent"))
        .unwrap()
        .lines()
        .count();
    for n in first..first + 30 {
        line(&sent, n);
        // Two batches per group: a crash must separate neither them nor the shared row.
        let flows = [flows_of(1, 0, n), flows_of(1, 1, n)];
        store
            .commit(vec![batch(&flows[0]), batch(&flows[1])])
            .unwrap();
        line(&acknowledged, n);
        if n % 3 == 0 {
            store.flush().unwrap();
        }
    }
}

/// Runs a child that dies when it reaches `step` for the `count`-th time.
fn run_child(dir: &Path, step: Step, count: u32) -> ExitStatus {
    let step = STEPS.iter().position(|s| *s == step).unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child_that_crashes"])
        .env(AT, format!("{step}:{count}"))
        .env(DIR, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap()
}

/// Runs a child and verifies its directory. Returns whether it died at the step.
fn crash_at(dir: &Path, step: Step, count: u32) -> bool {
    let status = run_child(dir, step, count);
    let crashed = status.signal() == Some(6);
    assert!(crashed || status.success(), "{status:?}");
    let acknowledged: BTreeSet<_> = std::fs::read_to_string(dir.join("acknowledged"))
        .unwrap_or_default()
        .lines()
        .flat_map(|n| [0, 1].map(|writer| (writer, n.parse().unwrap())))
        .collect();
    let (store, _) = Store::open(&dir.join("db"), options(None)).unwrap();
    let rows = scan(&store, 1);
    let stored = assert_batches_are_whole(&rows, &acknowledged);
    assert!(stored.is_multiple_of(2), "a group is stored in part");
    drop(store);
    // Opens it again, since the first open may have changed files: the result is the same.
    let (store, _) = Store::open(&dir.join("db"), options(None)).unwrap();
    assert_eq!(scan(&store, 1), rows);
    crashed
}

/// It guards, in the order of the steps, against a group in the journal that is never added; a file that was written
/// and not ingested (it must not count); one that was ingested while the journal still has its batches (they must not
/// count again); a replay that is killed and starts over.
#[test]
fn killed_at_each_step_of_a_flush() {
    for step in STEPS {
        for count in [1, 2, 5] {
            let dir = tempfile::tempdir().unwrap();
            if step == Step::Replayed {
                // The journal to replay is that of a process that died before any flush.
                assert!(!run_child(dir.path(), Step::Frozen, 1).success());
                let got_there = crash_at(dir.path(), step, count);
                assert!(got_there || count > 1);
            } else {
                let crashed = crash_at(dir.path(), step, count);
                assert!(crashed, "{step:?} {count}");
            }
            // Once more on the result.
            crash_at(dir.path(), step, 1);
        }
    }
}

/// A replay that exceeds the tally's bound flushes during the replay. After a kill, marker and journal must still be
/// consistent.
#[test]
fn a_replay_larger_than_the_tally_flushes_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let roomy = || StoreOptions {
        flush_interval: Duration::from_secs(3600),
        ..StoreOptions::default()
    };
    let (store, _) = Store::open(dir.path(), roomy()).unwrap();
    let mut acknowledged = BTreeSet::new();
    for n in 0..50 {
        store.commit(vec![batch(&flows_of(1, 0, n))]).unwrap();
        acknowledged.insert((0, n));
    }
    drop(store); // not flushed
    let (store, recovery) = Store::open(dir.path(), roomy()).unwrap();
    assert_eq!(recovery.batches, 50);
    assert_eq!(
        assert_batches_are_whole(&scan(&store, 1), &acknowledged),
        50
    );
    drop(store);
    let flushes = Arc::new(AtomicU32::new(0));
    let counted = flushes.clone();
    let hook: flowtally::store::StepHook = Arc::new(move |step| {
        counted.fetch_add(u32::from(step == Step::Ingested), Ordering::SeqCst);
    });
    let (store, recovery) = Store::open(dir.path(), options(Some(hook))).unwrap();
    assert_eq!(recovery.batches, 50);
    assert_eq!(flushes.load(Ordering::SeqCst), 50);
    assert_eq!(
        assert_batches_are_whole(&scan(&store, 1), &acknowledged),
        50
    );
    drop(store);
    let (store, recovery) = Store::open(dir.path(), roomy()).unwrap();
    assert_eq!(recovery.batches, 0);
    assert_eq!(
        assert_batches_are_whole(&scan(&store, 1), &acknowledged),
        50
    );
}
