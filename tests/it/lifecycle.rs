//! Start and stop: signals, and data directories that must not be touched.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use crate::support::{Client, Daemon, TestFlow, free_address, json_body};
use crate::wait::{at_most, until, until_logged};

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

fn chmod(mode: &str, path: &Path) {
    let status = Command::new("chmod").arg("-R").arg(mode).arg(path).status();
    assert!(status.unwrap().success());
}

/// An unprivileged user: if the tests run as root, another user.
struct Stranger {
    binary: PathBuf,
    is_other: bool,
}

impl Stranger {
    /// A user who can read everything in `dir`.
    fn new(dir: &Path) -> Stranger {
        let binary = dir.join("flowtally");
        // Copied by another process: otherwise, a child that another test starts meanwhile could inherit the open file,
        // and it could not be executed.
        let copied = Command::new("cp")
            .arg(Daemon::binary())
            .arg(&binary)
            .status();
        assert!(copied.unwrap().success());
        chmod("a+rX", dir);
        Stranger {
            binary,
            is_other: Command::new("id").arg("-u").output().unwrap().stdout == b"0\n",
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        if self.is_other {
            command.uid(65534).gid(65534);
        }
        command
    }
}

/// A client of a daemon whose log cannot be read, once it is ready.
fn client_of(address: SocketAddr) -> Client {
    let client = Client::new(address);
    until("the daemon to be ready", || {
        let response = client.get("/readyz", &[]);
        response.is_ok_and(|response| response.status == 200)
    });
    client
}

/// Bytes in all files below `dir`.
fn bytes_of(dir: &Path) -> usize {
    tree(dir).values().map(|(_, content)| content.len()).sum()
}

/// Runs `serve` on `dir`, which has to fail with one line that has `words`, and to change nothing.
fn refuses(dir: &Path, words: &[&str]) {
    let before = tree(dir);
    let output = Command::new(Daemon::binary())
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
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
fn a_graceful_stop_flushes_so_that_nothing_is_replayed() {
    for signal in ["TERM", "INT"] {
        let dir = tempfile::tempdir().unwrap();
        // With little memory, so that the journal has files beside its log.
        let arguments = ["--memory-max", "128", "--flush-interval", "3600"];
        let mut daemon = Daemon::start_with(dir.path(), &arguments);
        for _ in 0..80 {
            daemon.client.accept(&vec![one()[0].clone(); 10_000]);
        }
        assert!(bytes_of(dir.path()) > 8 << 20, "nothing to delete");
        daemon.signal(signal);
        assert!(daemon.wait().success(), "{}", daemon.log());
        assert!(bytes_of(dir.path()) < 1 << 20, "the journal is still there");
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
fn a_stop_completes_requests_in_flight_and_accepts_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path());
    let body = json_body(&one());
    let mut slow = begin_post(&daemon, body.len());
    slow.write_all(&body[..10]).unwrap();
    daemon.signal("TERM");
    until("the port to be closed", || {
        TcpStream::connect(daemon.address).is_err()
    });
    slow.write_all(&body[10..]).unwrap();
    let mut response = String::new();
    slow.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    assert!(response.ends_with("{\"accepted\":1}\n"), "{response}");
    assert!(daemon.wait().success(), "{}", daemon.log());
    let daemon = Daemon::start(dir.path());
    assert_eq!(daemon.client.hour(1)[0].1.tx, 100);
    daemon.stop();
}

/// A request whose body never ends.
fn stuck_request(daemon: &Daemon) -> TcpStream {
    let mut stuck = begin_post(daemon, 100);
    stuck.write_all(b"[").unwrap();
    stuck
}

/// Sends the head of a request, and waits until the daemon reads the body.
fn begin_post(daemon: &Daemon, body_bytes: usize) -> TcpStream {
    let mut stream = TcpStream::connect(daemon.address).unwrap();
    let head = format!(
        "POST /flows HTTP/1.1\r\nhost: localhost\r\ncontent-length: {body_bytes}\r\nexpect: 100-continue\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut response = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
    stream.read_exact(&mut response).unwrap();
    assert!(response.starts_with(b"HTTP/1.1 100 "));
    stream
}

#[test]
fn requests_that_do_not_end_are_aborted_after_the_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start_with(dir.path(), &["--shutdown-timeout", "1"]);
    daemon.client.accept(&one());
    let _stuck = stuck_request(&daemon);
    daemon.signal("TERM");
    assert_eq!(daemon.wait().code(), Some(1));
    assert!(daemon.log().contains("were aborted"), "{}", daemon.log());
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
fn a_second_signal_exits_immediately_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path());
    daemon.client.accept(&one());
    let _stuck = stuck_request(&daemon);
    daemon.signal("TERM");
    until_logged(&daemon, " stopping");
    daemon.signal("INT");
    assert_eq!(daemon.wait().code(), Some(130));
    let daemon = Daemon::start(dir.path());
    assert_eq!(daemon.client.hour(1)[0].1.tx, 100);
    daemon.stop();
}

#[test]
fn a_directory_in_use_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    daemon.client.accept(&one());
    refuses(dir.path(), &["in use", dir.path().to_str().unwrap()]);
    assert_eq!(daemon.client.hour(1).len(), 1);
    daemon.stop();
}

#[test]
fn a_directory_of_another_format_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    daemon.client.accept(&one());
    daemon.stop();
    let identity = dir.path().join("FLOWTALLY");
    let known = flowtally::store::codec::FORMAT;
    let newer = format!("format {}", known + 1);
    std::fs::write(&identity, format!("flowtally data directory, {newer}\n")).unwrap();
    refuses(dir.path(), &[&newer, &format!("up to {known}")]);
    std::fs::write(&identity, "flowtally data directory, format 1\n").unwrap();
    refuses(dir.path(), &["format 1", "before the first release"]);
}

#[test]
fn a_foreign_directory_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.tex"), "years of work").unwrap();
    refuses(
        dir.path(),
        &["not a flowtally data directory", "--data-dir"],
    );
    // The same holds for a foreign database, and for a file instead of a directory.
    std::fs::write(dir.path().join("FLOWTALLY"), "hello").unwrap();
    refuses(dir.path(), &["not a flowtally data directory"]);
    let file = dir.path().join("thesis.tex");
    let output = Command::new(Daemon::binary())
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(&file)
        .output()
        .unwrap();
    assert_refusal(&output, &["thesis.tex", "cannot use"]);
}

#[test]
fn an_unwritable_directory_is_not_touched() {
    // Root may write anywhere, so this runs as another user if the tests run as root.
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("db");
    Daemon::start(&dir).stop();
    let stranger = Stranger::new(temp.path());
    chmod("a-w", &dir);
    let serve = |dir: &Path| {
        let mut command = stranger.command();
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]);
        command.arg(dir).output().unwrap()
    };
    let before = tree(&dir);
    assert_refusal(
        &serve(&dir),
        &["cannot use", "ermission denied", "may write"],
    );
    assert_eq!(tree(&dir), before);
    // The same if the directory would have to be created.
    assert_refusal(
        &serve(&dir.join("deeper")),
        &["cannot use", "ermission denied"],
    );
    chmod("u+w", &dir);
}

#[test]
fn a_taken_port_is_one_clear_error_line() {
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
fn a_copy_of_a_stopped_directory_returns_the_same_rows() {
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
fn variables_apply_without_flags() {
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

#[test]
fn a_lost_database_is_not_mistaken_for_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    Daemon::start(dir.path()).stop();
    std::fs::remove_dir_all(dir.path().join("rocks")).unwrap();
    refuses(
        dir.path(),
        &["lost its rocks directory", "restore a backup"],
    );
}

#[test]
fn connections_that_send_no_request_do_not_delay_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path());
    let mut idle = Vec::new();
    for start in ["", "G", "GET /flows?hour=1 HTTP/1.1\r\nhost:"] {
        let mut stream = TcpStream::connect(daemon.address).unwrap();
        stream.write_all(start.as_bytes()).unwrap();
        idle.push(stream);
    }
    // Those of the loop, and the client's.
    until("connections", || {
        daemon.client.metric("flowtally_http_connections") >= 4.0
    });
    let start = std::time::Instant::now();
    daemon.signal("TERM");
    assert!(daemon.wait().success(), "{}", daemon.log());
    assert!(start.elapsed() < at_most(5));
}

#[test]
fn a_log_that_cannot_be_written_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_address();
    let mut child = Command::new(Daemon::binary())
        .args([
            "serve",
            "--log",
            "debug",
            "--listen",
            &port.to_string(),
            "--data-dir",
        ])
        .arg(dir.path())
        .stderr(std::fs::File::create("/dev/full").unwrap())
        .spawn()
        .unwrap();
    let client = client_of(port);
    client.accept(&one());
    assert_eq!(client.hour(1).len(), 1);
    let status = Command::new("kill").arg(child.id().to_string()).status();
    assert!(status.unwrap().success());
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_small_limit_of_open_files_limits_connections_not_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_address();
    let script =
        "ulimit -n 710; exec \"$0\" serve --memory-max 128 --listen \"$1\" --data-dir \"$2\"";
    let mut child = Command::new("sh")
        .args(["-c", script])
        .arg(Daemon::binary())
        .arg(port.to_string())
        .arg(dir.path())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let client = client_of(port);
    // Until the kernel's accept queue is full as well.
    let patience = Duration::from_millis(200);
    let idle: Vec<_> = (0..900)
        .map_while(|_| TcpStream::connect_timeout(&port, patience).ok())
        .collect();
    assert!(idle.len() >= 70);
    // Enough for several memtables and files, each of which needs a descriptor.
    let flows: Vec<_> = (0..30_000)
        .map(|i| TestFlow::new(1, &format!("src-{i}"), &"d".repeat(100), "v", 1, 1))
        .collect();
    for _ in 0..12 {
        client.accept(&flows);
    }
    assert_eq!(client.get("/readyz", &[]).unwrap().status, 200);
    drop(idle);
    assert_eq!(client.hour(1)[0].1.tx, 12);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Reading a directory must not change it. It works with flows that are in the journal only, with an earlier format,
/// and without permission to write.
#[test]
fn commands_that_read_change_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("data/db");
    let mut daemon = Daemon::start(&dir);
    daemon.client.accept(&one());
    daemon.kill();
    let identity = dir.join("FLOWTALLY");
    std::fs::write(&identity, "flowtally data directory, format 2\n").unwrap();
    let stranger = Stranger::new(temp.path());
    for mode in ["u+w", "a-w"] {
        chmod(mode, &dir);
        let before = tree(&temp.path().join("data"));
        for (command, said) in [
            ("stats", "flows       1\n"),
            ("export", "\"bytes_tx\":100,\"bytes_rx\":300"),
            ("verify", "1 batches in the journal: all as"),
        ] {
            let output = stranger
                .command()
                .args([command, "--data-dir"])
                .arg(&dir)
                .output();
            let output = output.unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command}: {error}");
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains(said), "{command}: {text}");
        }
        assert_eq!(tree(&temp.path().join("data")), before);
    }
    chmod("u+w", &dir);
}
