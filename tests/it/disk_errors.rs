//! Classes of disk errors, and a data directory that disappears. Some tests need strace.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use flowtally::store::verify;

use crate::backup::{good, text};
use crate::disk::Failing;
use crate::support::{Client, Daemon, JSON, TestFlow, json_body};
use crate::wait::{at_most, until, until_daemon};

fn flows(n: u32) -> Vec<TestFlow> {
    let flow = |i| TestFlow::new(1, &format!("service-{n}-{i}"), "dest", "vpc", 1, 2);
    (0..100).map(flow).collect()
}

fn status(client: &Client, n: u32) -> u16 {
    let response = client.post("/flows", &[JSON], &json_body(&flows(n)));
    response.map_or(0, |response| response.status)
}

fn readiness(client: &Client) -> (u16, String) {
    let response = client.get("/readyz", &[]).unwrap();
    let body = String::from_utf8_lossy(&response.body).into_owned();
    (response.status, body)
}

/// The way in which the service shows that the data directory is gone.
#[derive(PartialEq)]
enum Seen {
    BySending,
    ByAsking,
}

/// Waits until batches are refused, or the readiness is lost. A check is due each second.
fn until_not_ready(daemon: &Daemon, seen: Seen) {
    let begun = Instant::now();
    until("the data directory is known to be gone", || match seen {
        Seen::BySending => status(&daemon.client, 0) == 503,
        Seen::ByAsking => readiness(&daemon.client).0 == 503,
    });
    let took = begun.elapsed();
    assert!(took < at_most(3), "{took:?}: {}", daemon.log());
}

/// Started by strace, which fails these calls from the beginning.
fn start_failing(data_dir: &Path, calls: &str, error: &str) -> Daemon {
    let mut command = Command::new("strace");
    command
        .args(["-D", "-f", "-qq", "-e", &format!("trace={calls}")])
        .args(["-e", &format!("inject={calls}:error={error}")])
        .args(["-o", "/dev/null"])
        .arg(Daemon::binary());
    Daemon::launch_by(command, data_dir, &["--flush-interval", "1"])
}

#[test]
fn commits_fail_while_the_data_directory_is_missing() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, away) = (temp.path().join("db"), temp.path().join("away"));
    for what in ["db", "db/rocks", "db/FLOWTALLY"] {
        let daemon = Daemon::start(&dir);
        assert_eq!(status(&daemon.client, 0), 200);
        let keyed = || {
            let headers = [JSON, ("idempotency-key", "replayed")];
            let body = json_body(&[TestFlow::new(2, "a", "b", "c", 1, 1)]);
            let response = daemon.client.post("/flows", &headers, &body).unwrap();
            response.status
        };
        assert_eq!(keyed(), 200);
        let moved = temp.path().join(what);
        std::fs::rename(&moved, &away).unwrap();
        // The same if another directory replaces it.
        if what == "db" {
            std::fs::create_dir_all(dir.join("rocks")).unwrap();
            std::fs::copy(away.join("FLOWTALLY"), dir.join("FLOWTALLY")).unwrap();
        }
        until_not_ready(&daemon, Seen::BySending);
        for n in 1..20 {
            assert_eq!(status(&daemon.client, n), 503, "{what}: {}", daemon.log());
        }
        // A replayed response would acknowledge that its batch is on disk.
        assert_eq!(keyed(), 503, "{what}");
        until_not_ready(&daemon, Seen::ByAsking);
        assert!(
            readiness(&daemon.client)
                .1
                .contains("data directory is gone")
        );
        assert_eq!(daemon.client.hour(1).len(), 100, "queries succeed");
        let log = daemon.log();
        assert_eq!(log.matches("batches are refused").count(), 1, "{log}");

        if what == "db" {
            std::fs::remove_dir_all(&dir).unwrap();
        }
        std::fs::rename(&away, &moved).unwrap();
        until("batches are accepted again", || {
            status(&daemon.client, 0) == 200
        });
        daemon.stop();
        assert!(verify(&dir).unwrap().faults.is_empty());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
fn a_removed_data_directory_is_detected_without_a_request() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("db");
    let mut daemon = Daemon::start(&dir);
    assert_eq!(status(&daemon.client, 0), 200);
    std::fs::remove_dir_all(&dir).unwrap();
    until_not_ready(&daemon, Seen::ByAsking);
    daemon.signal("TERM");
    assert!(!daemon.wait().success());
    let log = daemon.log();
    assert!(log.contains("was removed, renamed or replaced"), "{log}");
    assert!(!log.contains("acknowledged flows are safe"), "{log}");
}

/// The process could continue to write to a deleted log without an error, but no start would find these batches.
#[test]
fn commits_fail_after_logs_were_deleted() {
    for (what, is_deleted) in [(".log", true), ("CURRENT", false), (".log", false)] {
        let temp = tempfile::tempdir().unwrap();
        let (dir, away) = (temp.path().join("db"), temp.path().join("away"));
        let mut daemon = Daemon::start(&dir);
        for n in 0..5 {
            assert_eq!(status(&daemon.client, n), 200);
        }
        // Longer than the interval of checks, so that the files have been checked once.
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(status(&daemon.client, 5), 200, "{}", daemon.log());
        std::fs::create_dir(&away).unwrap();
        let mut moved = Vec::new();
        for entry in std::fs::read_dir(dir.join("rocks")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if name.ends_with(what) {
                std::fs::rename(&path, away.join(&name)).unwrap();
                moved.push((path, away.join(name)));
            }
        }
        assert!(!moved.is_empty());
        until_not_ready(&daemon, Seen::BySending);
        for n in 10..20 {
            assert_eq!(status(&daemon.client, n), 503, "{what}: {}", daemon.log());
        }
        until_not_ready(&daemon, Seen::ByAsking);
        let log = daemon.log();
        assert_eq!(
            log.matches("was removed while it was in use").count(),
            1,
            "{log}"
        );
        if is_deleted {
            daemon.signal("TERM");
            assert!(!daemon.wait().success());
            let log = daemon.log();
            assert!(!log.contains("acknowledged flows are safe"), "{log}");
            continue;
        }
        for (path, away) in moved {
            std::fs::rename(away, path).unwrap();
        }
        until("batches are accepted again", || {
            status(&daemon.client, 20) == 200
        });
        daemon.stop();
        assert!(verify(&dir).unwrap().faults.is_empty());
    }
}

/// An exceeded quota is treated as a full disk, and not as a failing one, which would end the process.
#[test]
fn an_exceeded_quota_is_treated_as_a_full_disk() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("db");
    let mut daemon = Daemon::start(&dir);
    assert_eq!(status(&daemon.client, 0), 200);
    // As over NFS, where the sync reports it.
    let calls = "fdatasync,fsync,fallocate";
    let Some(failing) = Failing::calls(calls, "EDQUOT", &daemon) else {
        return;
    };
    // Ten seconds of writes that fail for other reasons would end the process.
    let end = Instant::now() + Duration::from_secs(14);
    while Instant::now() < end {
        let response = daemon.client.post("/flows", &[JSON], &json_body(&flows(1)));
        let response = response.unwrap();
        assert_eq!(response.status, 507, "{}", daemon.log());
        let detail = response.json()["detail"].to_string();
        assert!(detail.contains("quota"), "{detail}");
        // Some batches a second are enough.
        std::thread::sleep(Duration::from_millis(200));
        assert!(!daemon.has_ended(), "{}", daemon.log());
    }
    let (ready, why) = readiness(&daemon.client);
    assert!(ready == 503 && why.contains("quota"), "{why}");
    drop(failing);
    // RocksDB has to be opened again: the process ends, once, and the next one continues.
    let recovers = || {
        if daemon.has_ended() {
            let log = daemon.log();
            let last = log.lines().last().unwrap();
            assert!(last.contains("as planned"), "{last}");
            daemon = Daemon::start(&dir);
        }
        status(&daemon.client, 2) == 200
    };
    until("batches are accepted again", recovers);
    let rows = daemon.client.hour(1).len();
    assert!(rows == 200 || rows == 300, "{rows}");
    daemon.stop();
    assert!(verify(&dir).unwrap().faults.is_empty());
}

/// On FAT, FUSE and SMB, `link` fails with EPERM.
#[test]
fn without_links_files_are_copied() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, to) = (temp.path().join("db"), temp.path().join("backups"));
    for error in ["EPERM", "EOPNOTSUPP"] {
        let daemon = start_failing(&dir, "link,linkat", error);
        until("batches are accepted", || status(&daemon.client, 0) == 200);
        let url = format!("http://{}", daemon.address);
        for n in 1..4 {
            assert_eq!(status(&daemon.client, n), 200);
            good(&["backup", "--url", &url, "--to", text(&to)]);
        }
        let log = daemon.log();
        assert!(!log.contains("failed"), "{log}");
        assert_eq!(daemon.client.hour(1).len(), 400);
        let staged = || std::fs::read_dir(dir.join("staging")).unwrap().count();
        until("what was staged is removed", || staged() == 0);
        daemon.stop();
        assert!(verify(&dir).unwrap().faults.is_empty());
        let backups = crate::backup::backups(&to);
        assert_eq!(backups.len(), 3);
        for backup in backups {
            let verified = verify(&backup).unwrap();
            assert!(verified.faults.is_empty() && verified.flows > 0);
        }
        std::fs::remove_dir_all(&dir).unwrap();
        std::fs::remove_dir_all(&to).unwrap();
    }
}

/// By default, a write beyond `ulimit -f` kills the process.
#[test]
fn a_limit_of_file_size_is_a_failed_write() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("db");
    let mut command = Command::new("prlimit");
    command.arg("--fsize=200000").arg(Daemon::binary());
    let mut daemon = Daemon::launch_by(command, &dir, &["--flush-interval", "3600"]);
    until("it is ready", || readiness(&daemon.client).0 == 200);
    let accepted = (0..200).take_while(|n| status(&daemon.client, *n) == 200);
    let accepted = accepted.count();
    assert!((3..200).contains(&accepted), "{accepted}");
    assert!(!daemon.has_ended(), "{}", daemon.log());
    assert_eq!(daemon.client.hour(1).len(), accepted * 100);
    // All messages name the limit, and none the disk, which works.
    let (ready, why) = readiness(&daemon.client);
    assert!(ready == 503 && why.contains("ulimit -f"), "{why}");
    until_daemon(&mut daemon, "it ends", |daemon| {
        status(&daemon.client, 0);
        daemon.has_ended()
    });
    let log = daemon.log();
    let last = log.lines().last().unwrap();
    assert!(last.contains("ulimit -f"), "{last}");
    assert!(log.contains("LimitFSIZE="), "{log}");
    assert!(!log.contains("check the disk"), "{log}");
    let daemon = Daemon::start(&dir);
    assert_eq!(daemon.client.hour(1).len(), accepted * 100);
    daemon.stop();
}

/// Every file that a command may be writing when it reaches the limit.
#[test]
fn commands_name_the_limit_of_file_size() {
    let temp = tempfile::tempdir().unwrap();
    let path = |name: &str| temp.path().join(name);
    let file = path("flows.json");
    // Names that hardly compress, so that files grow with the number of flows.
    let random = rand::random::<u64>();
    let name = |i: u64| -> String {
        let hash = |n: u64| xxhash_rust::xxh3::xxh3_128_with_seed(&n.to_le_bytes(), random);
        (0..24u64)
            .map(|n| format!("{:032x}", hash(n << 32 | i)))
            .collect()
    };
    let flow = |i| TestFlow::new(1, &name(i), "d", "v", 1, 2);
    let flows: Vec<_> = (0..2000).map(flow).collect();
    std::fs::write(&file, json_body(&flows)).unwrap();
    let stored = path("stored");
    good(&["import", "--data-dir", text(&stored), text(&file)]);
    let limited = |arguments: &[&str]| {
        let mut command = Command::new("prlimit");
        command.arg("--fsize=50000").arg(Daemon::binary());
        let output = std::fs::File::create(path("output")).unwrap();
        command.stdin(std::fs::File::open(&file).unwrap());
        let output = command.args(arguments).stdout(output).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("ulimit -f"), "{arguments:?}: {said}");
        assert!(!said.contains("check the disk"), "{arguments:?}: {said}");
    };
    let (new, to, spool) = (path("new"), path("backups"), path("spool"));
    limited(&["import", "--data-dir", text(&new), text(&file)]);
    limited(&["backup", "--data-dir", text(&stored), "--to", text(&to)]);
    limited(&["export", "--data-dir", text(&stored)]);
    let nowhere = "http://127.0.0.1:1";
    limited(&["send", "--url", nowhere, "--spool", text(&spool), "-"]);
}

/// The top directory of a fresh ext file system contains a directory that cannot be removed.
#[test]
fn a_lost_and_found_directory_is_ignored() {
    let temp = tempfile::tempdir().unwrap();
    let volume = |name: &str| {
        let path = temp.path().join(name);
        std::fs::create_dir_all(path.join("lost+found")).unwrap();
        path
    };
    let file = temp.path().join("flows.json");
    std::fs::write(&file, json_body(&flows(0))).unwrap();

    let imported = volume("imported");
    good(&["import", "--data-dir", text(&imported), text(&file)]);
    let served = volume("served");
    let daemon = Daemon::start(&served);
    let url = format!("http://{}", daemon.address);
    let spool = volume("spool");
    good(&["send", "--url", &url, "--spool", text(&spool), text(&file)]);
    assert_eq!(daemon.client.hour(1).len(), 100);
    let backups = volume("backups");
    good(&["backup", "--url", &url, "--to", text(&backups)]);
    daemon.stop();
    let restored = volume("restored");
    let restore = [
        "restore",
        "--from",
        text(&backups),
        "--data-dir",
        text(&restored),
    ];
    good(&restore);
    // An interrupted restore starts over.
    std::fs::write(restored.join("RESTORING"), "").unwrap();
    good(&restore);
    for path in [&imported, &served, &restored] {
        assert_eq!(verify(path).unwrap().flows, 100);
    }
    for path in [&imported, &served, &restored, &backups, &spool] {
        assert!(path.join("lost+found").is_dir());
    }
    // Its content is not counted; in a real one, it could not even be read.
    let bytes = || {
        let json = good(&["stats", "--json", "--data-dir", text(&imported)]);
        let stored: serde_json::Value = serde_json::from_str(&json).unwrap();
        stored["disk_bytes"].as_u64().unwrap()
    };
    std::fs::write(imported.join("lost+found/inode"), vec![1; 50 << 20]).unwrap();
    assert!(bytes() < 50 << 20, "{}", bytes());
    // A file of that name belongs to somebody.
    let other = temp.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("lost+found"), "x").unwrap();
    crate::backup::bad(&["import", "--data-dir", text(&other), text(&file)]);
}
