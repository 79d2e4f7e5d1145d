//! Start and stop: signals, and data directories that must not be touched.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use crate::support::{Daemon, TestFlow, json_body};

fn one() -> Vec<TestFlow> {
    vec![TestFlow::new(1, "foo", "bar", "vpc-0", 100, 300)]
}

/// Every file below `dir`, with its content and time of change.
fn tree(dir: &Path) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let modified = path.metadata().unwrap().modified().unwrap();
            if path.is_dir() {
                files.insert(path.clone(), (modified, Vec::new()));
                dirs.push(path);
            } else {
                let content = std::fs::read(&path).unwrap();
                files.insert(path, (modified, content));
            }
        }
    }
    files
}

/// Runs `serve` on `dir`, which has to fail with one line that has `words`, and to change nothing.
fn refuses(dir: &Path, words: &[&str]) {
    let before = tree(dir);
    let output = Command::new(Daemon::binary())
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--log",
            "error",
            "--data-dir",
        ])
        .arg(dir)
        .output()
        .unwrap();
    assert_refusal(&output, words);
    assert_eq!(tree(dir), before, "something in the directory was changed");
}

fn assert_refusal(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn a_stop_in_good_order_flushes_so_that_nothing_is_replayed() {
    for signal in ["TERM", "INT"] {
        let dir = tempfile::tempdir().unwrap();
        let mut daemon = Daemon::start(dir.path());
        daemon.client.accept(&one());
        daemon.signal(signal);
        assert!(daemon.wait().success(), "{}", daemon.log());
        let daemon = Daemon::start(dir.path());
        assert!(
            daemon.log().contains("replayed_batches=0"),
            "{}",
            daemon.log()
        );
        assert_eq!(daemon.client.hour(1).len(), 1);
        daemon.stop();
    }
}

#[test]
fn a_kill_replays_and_so_does_a_second_one() {
    let dir = tempfile::tempdir().unwrap();
    for kills in 1..4u64 {
        let mut daemon = Daemon::start(dir.path());
        let replayed = format!("replayed_batches={}", kills - 1);
        assert!(daemon.log().contains(&replayed), "{}", daemon.log());
        daemon.client.accept(&one());
        assert_eq!(daemon.client.hour(1)[0].1.tx, 100 * kills);
        daemon.kill();
    }
}

#[test]
fn what_is_in_flight_is_finished_and_nothing_else_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path());
    let body = json_body(&one());
    let mut slow = TcpStream::connect(daemon.address).unwrap();
    let head = format!(
        "POST /flows HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    slow.write_all(head.as_bytes()).unwrap();
    slow.write_all(&body[..10]).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    daemon.signal("TERM");
    std::thread::sleep(Duration::from_millis(200));
    assert!(
        TcpStream::connect(daemon.address).is_err(),
        "it still accepts"
    );
    slow.write_all(&body[10..]).unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("{\"accepted\":1}"), "{answer}");
    assert!(daemon.wait().success(), "{}", daemon.log());
    let daemon = Daemon::start(dir.path());
    assert_eq!(daemon.client.hour(1)[0].1.tx, 100);
    daemon.stop();
}

#[test]
fn requests_that_do_not_end_are_broken_off_after_the_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start_with(dir.path(), &["--shutdown-timeout", "1"]);
    daemon.client.accept(&one());
    let mut stuck = TcpStream::connect(daemon.address).unwrap();
    stuck
        .write_all(b"POST /flows HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n[")
        .unwrap();
    std::thread::sleep(Duration::from_millis(100));
    daemon.signal("TERM");
    assert_eq!(daemon.wait().code(), Some(1));
    assert!(daemon.log().contains("broken off"), "{}", daemon.log());
    let daemon = Daemon::start(dir.path());
    assert!(
        daemon.log().contains("replayed_batches=0"),
        "{}",
        daemon.log()
    );
    assert_eq!(daemon.client.hour(1)[0].1.tx, 100);
    daemon.stop();
}

#[test]
fn a_second_signal_ends_at_once_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path());
    daemon.client.accept(&one());
    let mut stuck = TcpStream::connect(daemon.address).unwrap();
    stuck
        .write_all(b"POST /flows HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n[")
        .unwrap();
    std::thread::sleep(Duration::from_millis(100));
    daemon.signal("TERM");
    std::thread::sleep(Duration::from_millis(100));
    daemon.signal("INT");
    assert_eq!(daemon.wait().code(), Some(130));
    let daemon = Daemon::start(dir.path());
    assert_eq!(daemon.client.hour(1)[0].1.tx, 100);
    daemon.stop();
}

#[test]
fn a_directory_in_use_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    daemon.client.accept(&one());
    refuses(dir.path(), &["in use", dir.path().to_str().unwrap()]);
    assert_eq!(daemon.client.hour(1).len(), 1);
    daemon.stop();
}

#[test]
fn a_directory_of_a_newer_format_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    daemon.client.accept(&one());
    daemon.stop();
    let identity = dir.path().join("FLOWTALLY");
    std::fs::write(identity, "flowtally data directory, format 2\n").unwrap();
    refuses(dir.path(), &["format 2", "up to 1"]);
}

#[test]
fn a_directory_that_is_not_ours_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.tex"), "years of work").unwrap();
    refuses(
        dir.path(),
        &["not a flowtally data directory", "--data-dir"],
    );
    // Nor a database of somebody else's, nor a file in the way.
    std::fs::write(dir.path().join("FLOWTALLY"), "hello").unwrap();
    refuses(dir.path(), &["not a flowtally data directory"]);
    let file = dir.path().join("thesis.tex");
    let output = Command::new(Daemon::binary())
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--log",
            "error",
            "--data-dir",
        ])
        .arg(&file)
        .output()
        .unwrap();
    assert_refusal(&output, &["thesis.tex", "cannot use"]);
}

#[test]
fn a_directory_that_cannot_be_written_is_left_alone() {
    // Root may write anywhere, so this runs as somebody else where the tests run as root.
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("db");
    Daemon::start(&dir).stop();
    let binary = temp.path().join("flowtally");
    std::fs::copy(Daemon::binary(), &binary).unwrap();
    let chmod = |mode: &str, path: &Path| {
        let status = Command::new("chmod").arg("-R").arg(mode).arg(path).status();
        assert!(status.unwrap().success());
    };
    chmod("a+rX", temp.path());
    chmod("a-w", &dir);
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    let serve = |dir: &Path| {
        let mut command = Command::new(&binary);
        command.args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--log",
            "error",
            "--data-dir",
        ]);
        command.arg(dir);
        if root {
            command.uid(65534).gid(65534);
        }
        command.output().unwrap()
    };
    let before = tree(&dir);
    assert_refusal(
        &serve(&dir),
        &["cannot use", "ermission denied", "may write"],
    );
    assert_eq!(tree(&dir), before);
    // The same where it would have to be made.
    assert_refusal(
        &serve(&dir.join("deeper")),
        &["cannot use", "ermission denied"],
    );
    chmod("u+w", &dir);
}

#[test]
fn a_port_that_is_taken_is_one_clear_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(Daemon::binary())
        .args([
            "serve",
            "--listen",
            &taken.local_addr().unwrap().to_string(),
        ])
        .arg("--data-dir")
        .arg(dir.path().join("db"))
        .output()
        .unwrap();
    assert_refusal(&output, &["port is taken", "--listen"]);
    assert!(!dir.path().join("db").exists());
}

#[test]
fn a_copy_of_a_stopped_directory_gives_the_same_answers() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, copy) = (temp.path().join("db"), temp.path().join("copy"));
    let daemon = Daemon::start(&dir);
    daemon.client.accept(&one());
    let rows = daemon.client.hour(1);
    daemon.stop();
    let status = Command::new("cp").arg("-r").arg(&dir).arg(&copy).status();
    assert!(status.unwrap().success());
    let daemon = Daemon::start(&copy);
    assert_eq!(daemon.client.hour(1), rows);
    daemon.stop();
}

#[test]
fn the_environment_sets_what_flags_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(Daemon::binary())
        .args(["serve", "--data-dir"])
        .arg(dir.path())
        .env("FLOWTALLY_LISTEN", "no-such-host.invalid:1")
        .output()
        .unwrap();
    assert_refusal(&output, &["no-such-host.invalid:1"]);
    let output = Command::new(Daemon::binary())
        .args(["serve", "--durability", "hope"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("fsync") && text.contains("os"), "{text}");
}

#[test]
fn durability_os_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start_with(dir.path(), &["--durability", "os"]);
    for _ in 0..10 {
        daemon.client.accept(&one());
    }
    daemon.kill();
    let daemon = Daemon::start(dir.path());
    assert_eq!(daemon.client.hour(1)[0].1.tx, 1000);
    daemon.stop();
}
