//! Backups from a service whose connection stalls or is cut, and the signals that end a backup.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use crate::backup::{bad, text};
use crate::support::Daemon;
use crate::wait::{DEADLINE, at_most};

/// How [`half_a_service`] continues after the first bytes of a file.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Closes,
    Waits,
    /// Sends nothing more.
    IsSilent,
}

/// Offers a backup of one file of 1000 bytes, and responds with the first ten of them. The receiver gets the first line
/// of each request.
fn half_a_service(then: Then) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, requests) = channel();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming().take(8) {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let request = lines.next().unwrap().unwrap();
            while !lines.next().unwrap().unwrap().is_empty() {}
            let response = match request.split_once(' ').unwrap().0 {
                "POST" => {
                    let manifest =
                        r#"{"id":"one","files":[{"name":"rocks/1.sst","bytes":1000,"tag":"x"}]}"#;
                    let length = manifest.len();
                    format!("201 Created\r\ncontent-length: {length}\r\n\r\n{manifest}")
                }
                "GET" => "200 OK\r\ncontent-length: 1000\r\n\r\n0123456789".into(),
                _ => "204 No Content\r\n\r\n".into(),
            };
            let response = format!(
                "HTTP/1.1 {}",
                response.replacen("\r\n", "\r\nconnection: close\r\n", 1)
            );
            let is_last = request.starts_with("DELETE");
            if !is_last || then != Then::IsSilent {
                stream.write_all(response.as_bytes()).unwrap();
            }
            if !request.starts_with("POST") && then != Then::Closes {
                held.push(stream);
            }
            if sender.send(request).is_err() {
                return;
            }
        }
    });
    (url, requests)
}

#[test]
fn a_signal_to_a_backup_ends_its_session_on_the_service() {
    for (signal, status, then) in [
        ("TERM", 143, Then::Waits),
        ("INT", 130, Then::Waits),
        ("TERM", 143, Then::IsSilent),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (url, requests) = half_a_service(then);
        let child = Command::new(Daemon::binary())
            .args(["backup", "--url", &url, "--to", text(dir.path())])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let next = || requests.recv_timeout(DEADLINE).unwrap();
        assert!(next().starts_with("POST /backups "));
        assert!(next().starts_with("GET /backups/one/rocks/1.sst "));
        let kill = Command::new("kill")
            .args([format!("-{signal}"), child.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
        assert!(next().starts_with("DELETE /backups/one "));
        let start = Instant::now();
        let output = child.wait_with_output().unwrap();
        assert!(start.elapsed() < at_most(5));
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.starts_with("flowtally: stopped; "), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn a_broken_connection_is_an_error_that_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (url, _requests) = half_a_service(Then::Closes);
    let error = bad(&["backup", "--url", &url, "--to", text(dir.path())]);
    let expected = format!("{url}/backups/one/rocks/1.sst: the response is incomplete: ");
    assert!(error.contains(&expected), "{error}");
    assert!(!error.contains(text(dir.path())), "{error}");
}
