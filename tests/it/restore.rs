//! Restores: complete, verified, and never overwriting anything.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use flowtally::store::{Store, StoreOptions, verify};

use crate::backup::{backups, bad, batch_of, flowtally, good, sum, text};
use crate::support::Daemon;

#[test]
fn a_restore_overwrites_nothing_and_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let (data, to) = (dir.path().join("db"), dir.path().join("backups"));
    let daemon = Daemon::start(&data);
    daemon.client.accept(&batch_of(1));
    daemon.stop();
    let restore = |from: &Path, into: &Path| {
        flowtally(&["restore", "--from", text(from), "--data-dir", text(into)])
    };
    std::fs::create_dir(&to).unwrap();
    let none = restore(&to, &dir.path().join("x"));
    assert!(String::from_utf8_lossy(&none.stderr).contains("there is no backup"));
    good(&["backup", "--data-dir", text(&data), "--to", text(&to)]);
    let full = restore(&to, &data);
    assert_eq!(full.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&full.stderr).contains("is not empty"));
    // After a kill in the middle, no service starts there, and the same restore starts over.
    let half = dir.path().join("half");
    std::fs::create_dir_all(half.join("rocks")).unwrap();
    std::fs::write(half.join("RESTORING"), "").unwrap();
    std::fs::write(half.join("rocks/000009.sst"), "half").unwrap();
    let error = bad(&["verify", "--data-dir", text(&half)]);
    assert!(error.contains("interrupted"), "{error}");
    let error = bad(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        text(&half),
    ]);
    assert!(error.contains("interrupted"), "{error}");
    assert!(restore(&to, &half).status.success());
    // Damage in a backup is detected.
    let backup = backups(&to).remove(0);
    let files = std::fs::read_dir(backup.join("rocks")).unwrap();
    let sst: BTreeSet<_> = files
        .map(|e| e.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "sst"))
        .collect();
    let largest = sst
        .iter()
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap();
    let mut bytes = std::fs::read(largest).unwrap();
    bytes[20] ^= 1;
    std::fs::write(largest, bytes).unwrap();
    let target = dir.path().join("damaged");
    let damaged = restore(&to, &target);
    assert_eq!(damaged.status.code(), Some(1), "{damaged:?}");
    let listen = ["serve", "--listen", "127.0.0.1:0", "--data-dir"];
    let error = bad(&[&listen[..], &[text(&target)]].concat());
    assert!(error.contains("interrupted"), "{error}");
    // By any path to an incomplete backup.
    let unfinished = PathBuf::from(format!("{}.incomplete", text(&backup)));
    std::fs::rename(&backup, &unfinished).unwrap();
    let error = bad(&[
        "restore",
        "--from",
        &format!("{}/.", text(&unfinished)),
        "--data-dir",
        text(&dir.path().join("y")),
    ]);
    assert!(error.contains("interrupted"), "{error}");
    // Every command that could open it.
    for command in ["stats", "verify", "export", "compact"] {
        let error = bad(&[command, "--data-dir", text(&unfinished)]);
        assert!(error.contains("a backup that was interrupted"), "{error}");
    }
    let error = bad(&[&listen[..], &[text(&unfinished)]].concat());
    assert!(error.contains("a backup that was interrupted"), "{error}");
}

#[test]
fn a_directory_with_only_the_name_of_a_backup_is_not_restored() {
    let dir = tempfile::tempdir().unwrap();
    let (data, to) = (dir.path().join("db"), dir.path().join("backups"));
    let into = dir.path().join("restored");
    let restore = ["restore", "--from", text(&to), "--data-dir", text(&into)];
    let empty = to.join("2090-01-01T00-00-00Z");
    std::fs::create_dir_all(&empty).unwrap();
    let error = bad(&restore);
    assert!(
        error.contains(text(&empty)) && error.contains("no other"),
        "{error}"
    );
    std::fs::remove_dir(&empty).unwrap();
    drop(Store::open(&data, StoreOptions::default()).unwrap());
    good(&["backup", "--data-dir", text(&data), "--to", text(&to)]);
    let whole = backups(&to).remove(0);
    std::fs::create_dir(&empty).unwrap();
    let error = bad(&restore);
    assert!(
        error.contains(text(&empty)) && error.contains(text(&whole)),
        "{error}"
    );
    assert!(!into.exists());
    let error = bad(&["stats", "--data-dir", text(&empty)]);
    assert!(error.contains("it has no valid FLOWTALLY file"), "{error}");
}

/// The state after a power cut: the log is longer than its records.
#[test]
fn a_torn_write_is_truncated() {
    let dir = tempfile::tempdir().unwrap();
    let (data, to) = (dir.path().join("db"), dir.path().join("backups"));
    let mut daemon = Daemon::start(&data);
    for n in 0..5 {
        daemon.client.accept(&batch_of(n));
    }
    daemon.kill();
    let is_log = |path: &PathBuf| path.extension().is_some_and(|e| e == "log");
    let files = std::fs::read_dir(data.join("rocks")).unwrap();
    let log = files.map(|e| e.unwrap().path()).filter(is_log).max();
    let log = std::fs::File::options().append(true).open(log.unwrap());
    log.unwrap().write_all(&[0; 4096]).unwrap();
    good(&["backup", "--data-dir", text(&data), "--to", text(&to)]);
    let into = dir.path().join("restored");
    let output = flowtally(&["restore", "--from", text(&to), "--data-dir", text(&into)]);
    assert!(output.status.success(), "{output:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("nothing of it was acknowledged, and it is cut off"),
        "{error}"
    );
    assert_eq!(error.lines().count(), 1, "{error}");
    let daemon = Daemon::start(&into);
    assert_eq!(sum(&daemon.client, 1), 5);
    daemon.stop();
}

#[test]
fn a_backup_into_its_source_or_a_restore_into_its_backup_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (data, to) = (dir.path().join("db"), dir.path().join("backups"));
    drop(Store::open(&data, StoreOptions::default()).unwrap());
    for target in [data.clone(), data.join("rocks"), data.join("a/b")] {
        let error = bad(&["backup", "--data-dir", text(&data), "--to", text(&target)]);
        assert!(error.contains("is inside"), "{error}");
    }
    assert!(!data.join("a").exists() && !data.join("rocks/.lock").exists());
    good(&["backup", "--data-dir", text(&data), "--to", text(&to)]);
    let inside = backups(&to).remove(0).join("rocks/../inner");
    let error = bad(&["restore", "--from", text(&to), "--data-dir", text(&inside)]);
    assert!(error.contains("is inside") && !inside.exists(), "{error}");
}

#[test]
fn one_of_two_restores_into_one_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (data, to) = (dir.path().join("db"), dir.path().join("backups"));
    let daemon = Daemon::start(&data);
    daemon.client.accept(&batch_of(1));
    daemon.stop();
    good(&["backup", "--data-dir", text(&data), "--to", text(&to)]);
    let into = dir.path().join("restored");
    let restore = ["restore", "--from", text(&to), "--data-dir", text(&into)];
    // An interrupted restore that another process is repeating.
    std::fs::create_dir(&into).unwrap();
    std::fs::write(into.join("RESTORING"), "").unwrap();
    let held = std::fs::File::open(&into).unwrap();
    held.lock().unwrap();
    let error = bad(&restore);
    assert!(error.contains("another restore into"), "{error}");
    drop(held);
    for _ in 0..5 {
        let start = || {
            let mut command = Command::new(Daemon::binary());
            command
                .args(restore)
                .stdout(Stdio::null())
                .stderr(Stdio::piped());
            command.spawn().unwrap()
        };
        let both = [start(), start(), start()].map(|child| child.wait_with_output().unwrap());
        let well = both.iter().filter(|output| output.status.success()).count();
        assert_eq!(well, 1, "{both:?}");
        assert!(verify(&into).unwrap().faults.is_empty());
        std::fs::remove_dir_all(&into).unwrap();
    }
}
