//! Notifications to systemd of start, reload and stop, read from a socket like systemd's.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::{Daemon, TestFlow};

/// A daemon with `arguments` that notifies `socket`.
fn launch(socket: &Path, data_dir: &Path, arguments: &[&str]) -> Daemon {
    let mut command = Command::new(Daemon::binary());
    command.env("NOTIFY_SOCKET", socket);
    Daemon::launch_by(command, data_dir, arguments)
}

fn bind(path: &Path) -> UnixDatagram {
    let socket = UnixDatagram::bind(path).unwrap();
    let patience = Some(Duration::from_secs(30));
    socket.set_read_timeout(patience).unwrap();
    socket
}

/// The next message: one assignment per line.
fn next(socket: &UnixDatagram) -> Vec<String> {
    let mut message = [0; 4096];
    let length = socket.recv(&mut message).unwrap();
    let text = std::str::from_utf8(&message[..length]).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn readiness_and_stop_are_notified() {
    let temp = tempfile::tempdir().unwrap();
    let (path, dir) = (temp.path().join("notify"), temp.path().join("db"));
    let socket = bind(&path);
    let flow = TestFlow::new(1, "foo", "bar", "vpc-0", 100, 300);
    for round in 1..4u64 {
        let mut daemon = launch(&path, &dir, &[]);
        assert_eq!(next(&socket), ["STATUS=opening the data directory"]);
        assert_eq!(next(&socket), ["READY=1", "STATUS=accepting flows"]);
        // Without retries: from the notification on, it accepts flows, and replayed flows are visible.
        daemon.client.accept(std::slice::from_ref(&flow));
        assert_eq!(daemon.client.hour(1)[0].1.tx, 100 * round);
        if round == 1 {
            daemon.kill(); // so that the next one has something to replay
            continue;
        }
        daemon.signal("TERM");
        let words = next(&socket);
        assert_eq!(words[0], "STOPPING=1");
        assert!(words[1].starts_with("STATUS=finishing"), "{words:?}");
        assert!(daemon.wait().success(), "{}", daemon.log());
    }
}

#[test]
fn start_end_and_failure_of_a_reload_are_notified() {
    let temp = tempfile::tempdir().unwrap();
    let (path, tokens) = (temp.path().join("notify"), temp.path().join("tokens"));
    std::fs::write(&tokens, "alpha\n").unwrap();
    let socket = bind(&path);
    let arguments = ["--write-token-file", tokens.to_str().unwrap()];
    let daemon = launch(&path, &temp.path().join("db"), &arguments);
    next(&socket);
    assert_eq!(next(&socket)[0], "READY=1");
    for (text, failure) in [("beta\n", None), ("", Some("no token in it"))] {
        std::fs::write(&tokens, text).unwrap();
        daemon.signal("HUP");
        let begin = next(&socket);
        assert_eq!(begin[0], "RELOADING=1");
        let since = begin[1].strip_prefix("MONOTONIC_USEC=").unwrap();
        assert!(since.parse::<u64>().unwrap() > 0);
        let end = next(&socket);
        assert_eq!(end[0], "READY=1");
        match failure {
            None => assert_eq!(end[1], "STATUS=accepting flows"),
            Some(words) => assert!(end[1].contains(words), "{end:?}"),
        }
    }
    daemon.stop();
}

#[test]
fn a_start_that_fails_is_never_ready() {
    let temp = tempfile::tempdir().unwrap();
    let (path, dir) = (temp.path().join("notify"), temp.path().join("db"));
    Daemon::start(&dir).stop();
    // Damage that RocksDB detects at the open.
    std::fs::write(dir.join("rocks/CURRENT"), "nonsense").unwrap();
    let socket = bind(&path);
    let mut daemon = launch(&path, &dir, &[]);
    assert_eq!(daemon.wait().code(), Some(1), "{}", daemon.log());
    socket.set_nonblocking(true).unwrap();
    let mut message = [0; 4096];
    while let Ok(length) = socket.recv(&mut message) {
        let text = String::from_utf8_lossy(&message[..length]);
        assert!(!text.contains("READY"), "{text}");
    }
}

#[test]
fn an_unread_notify_socket_does_not_block() {
    let temp = tempfile::tempdir().unwrap();
    let daemon = launch(&temp.path().join("none"), &temp.path().join("db"), &[]);
    let flow = TestFlow::new(1, "foo", "bar", "vpc-0", 100, 300);
    crate::wait::until_logged(&daemon, " ready ");
    assert!(
        daemon.log().contains("cannot be notified"),
        "{}",
        daemon.log()
    );
    daemon.client.accept(&[flow]);
    daemon.stop();
}
