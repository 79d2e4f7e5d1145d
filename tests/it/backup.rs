//! Backups of a running and of a stopped service: complete, or not restorable.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flowtally::store::verify;

use rand::RngExt;

use crate::support::{Client, Daemon, JSON, TestFlow, json_body, random};
use crate::wait::{at_most, until};

pub(crate) fn flowtally(arguments: &[&str]) -> Output {
    let output = Command::new(Daemon::binary()).args(arguments).output();
    output.unwrap()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub(crate) fn good(arguments: &[&str]) -> String {
    let output = flowtally(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn bad(arguments: &[&str]) -> String {
    let output = flowtally(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

pub(crate) fn url(daemon: &Daemon) -> String {
    format!("http://{}", daemon.address)
}

/// The backups in a directory, by name.
pub(crate) fn backups(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    paths.sort();
    paths
}

/// Every batch has the same row in two hours, so a state between two commits has the same sum in both.
pub(crate) fn batch_of(n: u64) -> Vec<TestFlow> {
    let name = format!("s{}", n % 200);
    vec![
        TestFlow::new(1, &name, "d", "v", 1, 0),
        TestFlow::new(2, &name, "d", "v", 1, 0),
    ]
}

pub(crate) fn sum(client: &Client, hour: u32) -> u64 {
    client.hour(hour).iter().map(|(_, c)| c.tx).sum()
}

/// Starts from a restored backup, and returns how many batches are in it.
fn batches_in(from: &Path, scratch: &Path) -> u64 {
    let restored = scratch.join("restored");
    let output = good(&[
        "restore",
        "--from",
        text(from),
        "--data-dir",
        text(&restored),
    ]);
    assert!(output.contains("all as the ledger has it"), "{output}");
    let daemon = Daemon::start(&restored);
    let sums = (sum(&daemon.client, 1), sum(&daemon.client, 2));
    daemon.stop();
    std::fs::remove_dir_all(&restored).unwrap();
    assert_eq!(sums.0, sums.1, "a batch is stored in part");
    sums.0
}

#[test]
fn a_backup_during_ingest_is_a_consistent_state() {
    let dir = tempfile::tempdir().unwrap();
    let (data, to) = (dir.path().join("db"), dir.path().join("backups"));
    let daemon = Daemon::start_with(&data, &["--flush-interval", "1"]);
    let (stop, done, longest_us) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let url = url(&daemon);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let client = Client::new(daemon.address);
            while !stop.load(Ordering::SeqCst) {
                let n = done.load(Ordering::SeqCst);
                let start = Instant::now();
                let response = client.post("/flows", &[JSON], &json_body(&batch_of(n)));
                assert_eq!(response.unwrap().status, 200);
                longest_us.fetch_max(start.elapsed().as_micros() as u64, Ordering::SeqCst);
                done.fetch_add(1, Ordering::SeqCst);
            }
        });
        let flushes = || daemon.client.metric("flowtally_flush_seconds_count");
        for round in 0..4 {
            let flushes_before = flushes();
            until("a flush", || flushes() > flushes_before);
            let before = done.load(Ordering::SeqCst);
            let output = good(&["backup", "--url", &url, "--to", text(&to)]);
            let after = done.load(Ordering::SeqCst);
            println!("{round}: {output}");
            let inside = batches_in(&to, dir.path());
            assert!(
                (before..=after + 1).contains(&inside),
                "{inside} batches, and {before} before, {after} after"
            );
        }
        stop.store(true, Ordering::SeqCst);
    });
    println!(
        "longest POST: {} ms",
        longest_us.load(Ordering::SeqCst) / 1000
    );
    assert_eq!(backups(&to).len(), 4);
    assert_eq!(
        std::fs::read_dir(data.join("checkpoints")).unwrap().count(),
        0
    );
    daemon.stop();
}

#[test]
fn a_second_backup_fetches_only_new_files() {
    let dir = tempfile::tempdir().unwrap();
    let (data, to) = (dir.path().join("db"), dir.path().join("backups"));
    let daemon = Daemon::start_with(&data, &["--flush-interval", "1"]);
    let flows: Vec<_> = (0..20_000)
        .map(|n| {
            TestFlow::new(
                1,
                &format!("service-{n}"),
                &format!("d{}", n * 7),
                "v",
                n,
                1,
            )
        })
        .collect();
    daemon.client.accept(&flows);
    let backup = [
        "backup",
        "--url",
        &url(&daemon),
        "--to",
        text(&to),
        "--keep",
        "2",
    ];
    let new = |output: &str| -> u64 {
        let (_, rest) = output.split_once("of which ").unwrap();
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    let first = new(&good(&backup));
    daemon
        .client
        .accept(&[TestFlow::new(2, "a", "b", "c", 1, 1)]);
    let second = new(&good(&backup));
    assert!(first > 100_000 && second < first / 2, "{first}, {second}");
    let output = good(&backup);
    assert!(output.contains("older backups removed: 1"), "{output}");
    let kept = backups(&to);
    assert_eq!(kept.len(), 2);
    // Each is independent: the other one can be removed, and the service continues.
    std::fs::remove_dir_all(&kept[0]).unwrap();
    let verified = verify(&kept[1]).unwrap();
    assert!(verified.faults.is_empty(), "{:?}", verified.faults);
    assert_eq!(verified.flows, 20_001);
    assert_eq!(daemon.client.hour(1).len(), 20_000);
}

#[test]
fn a_killed_backup_is_recognised_and_never_restored() {
    let dir = tempfile::tempdir().unwrap();
    let (data, to) = (dir.path().join("db"), dir.path().join("backups"));
    let daemon = Daemon::start(&data);
    let flows: Vec<_> = (0..100_000)
        .map(|n| {
            TestFlow::new(
                1,
                &format!("service-{n}"),
                &format!("d{}", n * 7919),
                "v",
                n,
                1,
            )
        })
        .collect();
    for part in flows.chunks(20_000) {
        daemon.client.accept(part);
    }
    let url = url(&daemon);
    let mut interrupted = 0;
    for round in 0..12 {
        let mut child = Command::new(Daemon::binary())
            .args(["backup", "--url", &url, "--to", text(&to)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        if round % 2 == 0 {
            // Kills the backup at many moments.
            std::thread::sleep(Duration::from_millis(4 * round));
        } else {
            let has_begun = || to.exists() && backups(&to).iter().any(|path| is_incomplete(path));
            let deadline = Instant::now() + at_most(5);
            while !has_begun() && Instant::now() < deadline && child.try_wait().unwrap().is_none() {
                // It may end within milliseconds.
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        end_session(&daemon, &data);
        if !to.exists() {
            continue;
        }
        for path in backups(&to) {
            if is_incomplete(&path) {
                interrupted += 1;
                let target = dir.path().join("x");
                let error = bad(&[
                    "restore",
                    "--from",
                    text(&path),
                    "--data-dir",
                    text(&target),
                ]);
                assert!(error.contains("interrupted"), "{error}");
                assert!(!target.exists());
            } else {
                assert!(verify(&path).unwrap().faults.is_empty());
                std::fs::remove_dir_all(path).unwrap();
            }
        }
    }
    println!("{interrupted} were interrupted in the middle");
    assert!(interrupted > 0);
    // The service may still start the session of the backup that was killed last.
    until("a backup after those that were killed", || {
        end_session(&daemon, &data);
        flowtally(&["backup", "--url", &url, "--to", text(&to)])
            .status
            .success()
    });
    assert!(backups(&to).iter().all(|path| !is_incomplete(path)));
}

fn is_incomplete(backup: &Path) -> bool {
    backup.to_string_lossy().ends_with(".incomplete")
}

/// The service keeps the checkpoint of a backup that was killed until its session ends.
fn end_session(daemon: &Daemon, data: &Path) {
    let checkpoints = std::fs::read_dir(data.join("checkpoints"));
    for checkpoint in checkpoints.into_iter().flatten().flatten() {
        let id = checkpoint.file_name().into_string().unwrap();
        let _gone = daemon.client.delete(&format!("/backups/{id}")).unwrap();
    }
}

#[test]
fn a_stopped_service_is_backed_up_by_command_or_by_copy() {
    let dir = tempfile::tempdir().unwrap();
    let (data, to) = (dir.path().join("db"), dir.path().join("backups"));
    let mut daemon = Daemon::start(&data);
    for n in 0..50 {
        daemon.client.accept(&batch_of(n));
    }
    let in_use = bad(&["backup", "--data-dir", text(&data), "--to", text(&to)]);
    assert!(in_use.contains("in use"), "{in_use}");
    // With a journal.
    daemon.kill();
    good(&["backup", "--data-dir", text(&data), "--to", text(&to)]);
    assert_eq!(batches_in(&to, dir.path()), 50);
    let daemon = Daemon::start(&data);
    let rows = (daemon.client.hour(1), daemon.client.hour(2));
    daemon.stop();
    let copy = dir.path().join("copy");
    let copied = Command::new("cp")
        .args(["-r", text(&data), text(&copy)])
        .status();
    assert!(copied.unwrap().success());
    let daemon = Daemon::start(&copy);
    assert_eq!((daemon.client.hour(1), daemon.client.hour(2)), rows);
    daemon.stop();
    // A plain copy can be restored from as well.
    let again = dir.path().join("again");
    good(&["restore", "--from", text(&copy), "--data-dir", text(&again)]);
}

#[test]
fn the_files_of_a_checkpoint_and_nothing_else_can_be_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    daemon.client.accept(&batch_of(1));
    let begun = daemon.client.post("/backups", &[], b"").unwrap();
    assert_eq!(begun.status, 201);
    let manifest = begun.json();
    let id = manifest["id"].as_str().unwrap();
    assert_eq!(
        daemon.client.post("/backups", &[], b"").unwrap().status,
        409
    );
    for file in manifest["files"].as_array().unwrap() {
        let name = file["name"].as_str().unwrap();
        let response = daemon
            .client
            .get(&format!("/backups/{id}/{name}"), &[])
            .unwrap();
        assert_eq!(response.status, 200);
        assert_eq!(response.body.len() as u64, file["bytes"].as_u64().unwrap());
    }
    for name in [
        "rocks/../../FLOWTALLY",
        "%2e%2e/FLOWTALLY",
        "rocks/LOCK",
        "rocks/",
        "x",
        "rocks/none.sst",
    ] {
        let response = daemon
            .client
            .get(&format!("/backups/{id}/{name}"), &[])
            .unwrap();
        assert_eq!(response.status, 404, "{name}");
    }
    assert_eq!(
        daemon
            .client
            .delete(&format!("/backups/{id}"))
            .unwrap()
            .status,
        204
    );
    assert_eq!(
        daemon
            .client
            .delete(&format!("/backups/{id}"))
            .unwrap()
            .status,
        404
    );
    let gone = daemon
        .client
        .get(&format!("/backups/{id}/FLOWTALLY"), &[])
        .unwrap();
    assert_eq!(gone.status, 404);
}

#[test]
fn a_stop_removes_the_checkpoint_of_a_backup_in_progress() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    daemon.client.accept(&batch_of(1));
    let begun = daemon.client.post("/backups", &[], b"").unwrap();
    assert_eq!(begun.status, 201);
    let checkpoints = || std::fs::read_dir(dir.path().join("checkpoints")).unwrap();
    assert_eq!(checkpoints().count(), 1);
    daemon.stop();
    assert_eq!(checkpoints().count(), 0);
}

/// The file has more bytes than the kernel buffers for a client that reads nothing.
#[test]
fn a_stop_does_not_wait_for_a_download() {
    let dir = tempfile::tempdir().unwrap();
    // All of it is in one file, so that it takes long to send.
    let daemon = Daemon::start_with(dir.path(), &["--flush-interval", "3600"]);
    let mut random = random("a_stop_does_not_wait_for_a_download");
    for _ in 0..4 {
        let name = || {
            format!(
                "{:032x}{:032x}",
                random.random::<u128>(),
                random.random::<u128>()
            )
        };
        let names: Vec<String> = std::iter::repeat_with(name).take(40_000).collect();
        let flow = |name| TestFlow::new(1, name, "d", "v", 1, 1);
        let flows: Vec<_> = names.iter().map(|name| flow(name)).collect();
        daemon.client.accept(&flows);
    }
    let manifest = daemon.client.post("/backups", &[], b"").unwrap().json();
    let files = manifest["files"].as_array().unwrap();
    let largest = files.iter().max_by_key(|file| file["bytes"].as_u64());
    let largest = largest.unwrap();
    assert!(largest["bytes"].as_u64().unwrap() > 5 << 20, "{largest}");
    let id = manifest["id"].as_str().unwrap();
    let name = largest["name"].as_str().unwrap();
    let mut client = TcpStream::connect(daemon.address).unwrap();
    write!(
        client,
        "GET /backups/{id}/{name} HTTP/1.1\r\nhost: localhost\r\n\r\n"
    )
    .unwrap();
    client.read_exact(&mut [0; 2000]).unwrap();
    until("the socket is full", || {
        rustix::io::ioctl_fionread(&client).unwrap() >= 32 << 10
    });
    let start = Instant::now();
    daemon.stop();
    assert!(start.elapsed() < at_most(5));
    assert_eq!(
        std::fs::read_dir(dir.path().join("checkpoints"))
            .unwrap()
            .count(),
        0
    );
}

/// The clock was wrong, or two backups are made within a second.
#[test]
fn a_new_backup_is_named_after_all_others() {
    let dir = tempfile::tempdir().unwrap();
    let (data, to) = (dir.path().join("db"), dir.path().join("backups"));
    let daemon = Daemon::start(&data);
    daemon.client.accept(&batch_of(1));
    daemon.stop();
    let backup = [
        "backup",
        "--data-dir",
        text(&data),
        "--to",
        text(&to),
        "--keep",
        "3",
    ];
    for _ in 0..3 {
        assert_eq!(String::from_utf8(flowtally(&backup).stderr).unwrap(), "");
    }
    let newest = backups(&to).pop().unwrap();
    std::fs::rename(&newest, to.join("2099-12-31T23-59-59Z")).unwrap();
    let output = flowtally(&backup);
    assert!(output.status.success(), "{output:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("name is in the future") && error.contains("check the clock"),
        "{error}"
    );
    let names: Vec<_> = backups(&to)
        .into_iter()
        .map(|path| path.file_name().unwrap().to_owned())
        .collect();
    assert_eq!(names.len(), 3);
    assert_eq!(names[1..], ["2099-12-31T23-59-59Z", "2100-01-01T00-00-00Z"]);
    assert_eq!(batches_in(&to, dir.path()), 1);
    let last = to.join("9999-12-31T23-59-59Z");
    std::fs::rename(backups(&to).pop().unwrap(), &last).unwrap();
    let error = bad(&backup);
    assert!(
        error.contains(text(&last)) && error.contains("check the clock"),
        "{error}"
    );
    assert_eq!(backups(&to).len(), 3);
}
