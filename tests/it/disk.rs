//! A disk that is full or fails, and recovers. Needs strace, and permission to mount a tmpfs.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flowtally::store::verify;

use crate::support::{
    Client, Daemon, Disk, JSON, Model, Response, TestFlow, add_to, hour_of, json_body,
};
use crate::wait::{until, until_daemon, until_some};

/// Flows with mostly distinct keys, so that files grow.
fn flows(n: u64) -> Vec<TestFlow> {
    let flow = |i| TestFlow::new(1, &format!("service-{n}-{i}"), "dest", "vpc", 1, n);
    (0..1000).map(flow).collect()
}

fn post(client: &Client, flows: &[TestFlow]) -> Option<Response> {
    client.post("/flows", &[JSON], &json_body(flows)).ok()
}

/// Fails system calls of a process, by strace, until it is dropped.
pub struct Failing(Child);

impl Failing {
    /// `None` if that is not possible.
    pub fn calls(calls: &str, error: &str, daemon: &Daemon) -> Option<Failing> {
        let strace = Command::new("strace")
            .args(["-f", "-qq", "-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:error={error}")])
            .args(["-o", "/dev/null", "-p", &daemon.id().to_string()])
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut strace) = strace else {
            println!("{error}: NOT TESTED, strace is missing");
            return None;
        };
        let attached = until_some("strace is attached, or has ended", || {
            let has_ended = strace.try_wait().unwrap().is_some();
            (has_ended || is_traced(daemon)).then_some(!has_ended)
        });
        if !attached {
            println!("{error}: NOT TESTED, strace may not attach");
        }
        attached.then_some(Failing(strace))
    }
}

/// Whether each thread of the process is traced.
fn is_traced(daemon: &Daemon) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{}/task", daemon.id())).unwrap();
    threads.flatten().all(|thread| {
        let status = std::fs::read_to_string(thread.path().join("status"));
        // Ignores threads that have ended.
        status.is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
    })
}

impl Drop for Failing {
    fn drop(&mut self) {
        // On SIGTERM, strace detaches from the process.
        let _ended = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ended = self.0.wait();
    }
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
    let refused = || post(client, &flows(1)).filter(|response| response.status == 507);
    let response = until_some("a batch is refused", refused);
    assert_eq!(response.json()["type"], "urn:flowtally:problem:no-space");
    assert!(response.header("retry-after").is_some());
    assert_eq!(client.get("/readyz", &[]).unwrap().status, 503);
    let rows = client.hour(1).len();
    assert_eq!(
        rows % 1000,
        0,
        "queries succeed, and no batch is half counted"
    );
    disk.free();
    until("a batch is accepted", || {
        post(client, &flows(2)).is_some_and(|response| response.status == 200)
    });
    assert_eq!(client.hour(1).len(), rows + 1000);
    daemon.stop();
}

/// Space of the journal that is no longer needed is released before batches are refused.
#[test]
fn the_journal_makes_room_when_the_disk_is_nearly_full() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path().join("disk"), 240);
    if !disk.mounted {
        return;
    }
    let daemon = Daemon::start_with(&disk.path.join("db"), &["--disk-reserve", "100"]);
    // Beyond the reserve, there is space for little more than the journal's logs.
    disk.fill(170);
    let long = "v".repeat(800);
    let flow = |n: u64, i| TestFlow::new(1, &format!("service-{n}-{i}"), "dest", &long, 1, n);
    let taken = |n| {
        let flows: Vec<_> = (0..1000).map(|i| flow(n, i)).collect();
        post(&daemon.client, &flows).is_some_and(|response| response.status == 200)
    };
    let batches = (0..1000).take_while(|n| taken(*n)).count() as u64;
    assert!(batches < 1000, "the disk is not nearly full");
    until("a batch is accepted again", || taken(batches));
    let rows = daemon.client.hour(1).len() as u64;
    println!("{batches} batches until the first was refused");
    assert_eq!(rows, (batches + 1) * 1000);
    daemon.stop();
}

/// A service on a failing disk, and the flows that were sent to it.
struct Trial {
    db: PathBuf,
    arguments: &'static [&'static str],
    daemon: Daemon,
    /// Acknowledged.
    model: Model,
    /// Sent, and not acknowledged.
    unknown: Model,
    refused: usize,
    sent: u64,
}

impl Trial {
    fn new(db: PathBuf, arguments: &'static [&'static str]) -> Trial {
        Trial {
            daemon: Daemon::start_with(&db, arguments),
            db,
            arguments,
            model: Model::new(),
            unknown: Model::new(),
            refused: 0,
            sent: 0,
        }
    }

    /// Sends batches for a while: they are refused or accepted, and queries succeed.
    fn send_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until && !self.daemon.has_ended() {
            self.sent += 1;
            let flows = flows(self.sent);
            match post(&self.daemon.client, &flows) {
                Some(response) if response.status == 200 => add_to(&mut self.model, &flows),
                Some(response) => {
                    assert!(matches!(response.status, 503 | 507), "{}", response.status);
                    self.refused += 1;
                    add_to(&mut self.unknown, &flows);
                }
                None => add_to(&mut self.unknown, &flows),
            }
            self.responses("/healthz");
            self.responses("/flows?hour=2");
        }
    }

    /// Asserts that the service responds, or is about to exit.
    fn responses(&mut self, path: &str) {
        match self.daemon.client.get(path, &[]) {
            Ok(response) => assert_eq!(response.status, 200, "{path}: {}", self.daemon.log()),
            Err(error) => {
                let what = format!("it ends after {error} of {path}");
                until_daemon(&mut self.daemon, &what, Daemon::has_ended);
            }
        }
    }

    /// The disk works again: batches are accepted, after a restart if the service has exited.
    fn recovers(&mut self) {
        until_daemon(&mut self.daemon, "it is ready", |daemon| {
            if daemon.has_ended() {
                // It exited with one clear line; a supervisor restarts it.
                let log = daemon.log();
                assert_eq!(log.matches("flowtally: ").count(), 1, "{log}");
                *daemon = Daemon::start_with(&self.db, self.arguments);
            }
            let ready = daemon.client.get("/readyz", &[]);
            ready.is_ok_and(|response| response.status == 200)
        });
        self.sent += 1;
        let flows = flows(self.sent);
        until_daemon(&mut self.daemon, "a batch is accepted", |daemon| {
            post(&daemon.client, &flows).is_some_and(|response| response.status == 200)
        });
        add_to(&mut self.model, &flows);
    }

    /// Acknowledged flows are counted once, and the others at most once.
    fn ends_well(self) {
        let rows = self.daemon.client.hour(1);
        let expected = hour_of(&self.model, 1);
        assert!(rows.iter().all(|(key, sums)| {
            let expected = self.model.get(key).or_else(|| self.unknown.get(key));
            expected.is_some_and(|expected| expected == sums)
        }));
        let found = rows.iter().filter(|(key, _)| self.model.contains_key(key));
        assert_eq!(
            found.count(),
            expected.len(),
            "an acknowledged flow is lost"
        );
        assert!(self.refused > 0, "nothing ever failed");
        self.daemon.stop();
        let verified = verify(&self.db).unwrap();
        assert!(verified.faults.is_empty(), "{:?}", verified.faults);
        println!("{} rows, {} batches refused", rows.len(), self.refused);
    }
}

#[test]
fn a_full_disk_loses_nothing_and_the_service_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path().join("disk"), 128);
    if !disk.mounted {
        return;
    }
    const ARGUMENTS: &[&str] = &[
        "--disk-reserve",
        "0",
        "--flush-interval",
        "1",
        "--memory-max",
        "128",
    ];
    let mut trial = Trial::new(disk.path.join("db"), ARGUMENTS);
    for round in 0..3 {
        // Full immediately, or after some more flushes: another file fails then.
        disk.fill(round * 4);
        trial.send_for(Duration::from_secs(4));
        disk.free();
        trial.recovers();
    }
    trial.ends_well();
}

/// Syncs, and the system calls that create and remove files, fail for a while.
#[test]
fn io_errors_lose_nothing_and_the_service_recovers() {
    let dir = tempfile::tempdir().unwrap();
    const ARGUMENTS: &[&str] = &["--flush-interval", "1", "--memory-max", "128"];
    let mut trial = Trial::new(dir.path().join("db"), ARGUMENTS);
    for calls in [
        "fdatasync",
        "fsync",
        "link,linkat",
        "rename,renameat,renameat2",
        "unlink,unlinkat",
    ] {
        trial.send_for(Duration::from_millis(500));
        let Some(failing) = Failing::calls(calls, "EIO", &trial.daemon) else {
            return;
        };
        let refused = trial.refused;
        trial.send_for(Duration::from_secs(3));
        println!("{calls}: {} batches refused", trial.refused - refused);
        drop(failing);
        trial.recovers();
    }
    trial.ends_well();
}
