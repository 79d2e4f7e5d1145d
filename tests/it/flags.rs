//! The command line: units, hints, and errors.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::send::{flows, parts, send, url};
use crate::support::{Daemon, TestFlow, ndjson_body};
use crate::terminal::in_terminal;

fn flowtally(arguments: &[&str]) -> Output {
    Command::new(Daemon::binary())
        .args(arguments)
        .output()
        .unwrap()
}

/// By flag, variable and file; printed as they were given, and usable as a file again.
#[test]
fn sizes_and_durations_have_units() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("flowtally.toml");
    std::fs::write(
        &file,
        "memory-max = \"1GiB\"\nquery-time-max = \"1m\"\nbody-max = 32\n",
    )
    .unwrap();
    let output = Command::new(Daemon::binary())
        .args([
            "serve",
            "--print-config",
            "--flush-interval",
            "10s",
            "--config",
        ])
        .arg(&file)
        .env("FLOWTALLY_RETAIN_HOURS", "30d")
        .env("FLOWTALLY_IDEMPOTENCY_WINDOW", "2d")
        .output()
        .unwrap();
    let (status, shown, error) = parts(&output);
    assert_eq!(status, Some(0), "{error}");
    for setting in [
        "memory-max = \"1GiB\"",
        "query-time-max = \"1m\"",
        "body-max = 32",
        "flush-interval = \"10s\"",
        "retain-hours = \"30d\"",
        "idempotency-window = \"2d\"",
    ] {
        assert!(shown.contains(setting), "{setting}: {shown}");
    }
    std::fs::write(&file, &shown).unwrap();
    let again = flowtally(&[
        "serve",
        "--print-config",
        "--config",
        file.to_str().unwrap(),
    ]);
    assert_eq!(again.status.code(), Some(0), "{:?}", parts(&again));

    let wrong = [
        ("--memory-max", "100M", "128 to 1048576 MiB"),
        ("--memory-max", "lots", "512M"),
        ("--retain-hours", "90m", "whole hours"),
        ("--retain-hours", "0", "1 to "),
        ("--flush-interval", "500ms", "whole seconds"),
        ("--flush-interval", "2h", "1 to 3600 seconds"),
        ("--listen", "8080", "127.0.0.1:8080"),
        ("--listen", "localhost", "port is missing"),
        ("--port", "8080", "--listen 127.0.0.1:8080"),
    ];
    for (flag, value, word) in wrong {
        let (status, _, error) = parts(&flowtally(&["serve", "--print-config", flag, value]));
        assert_eq!(status, Some(2), "{flag} {value}");
        assert!(error.contains(word), "{error}");
    }
    // A size that contradicts the others is still an error.
    let (status, _, error) = parts(&flowtally(&[
        "serve",
        "--memory-max",
        "1G",
        "--body-max",
        "1G",
    ]));
    assert!(
        status == Some(1) && error.contains("--body-max is 1024"),
        "{error}"
    );
}

#[test]
fn hours_have_dates() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    // 2026-11-29 00:00 UTC.
    let midnight = 498_864;
    let flow = |hour| TestFlow::new(hour, &format!("h{hour}"), "b", "c", 1, 1);
    let all: Vec<_> = (midnight - 1..midnight + 26).map(flow).collect();
    daemon.client.accept(&all);
    let url = url(&daemon);
    let export = |range: &[&str]| {
        let output = flowtally(&[&["export", "--url", &url], range].concat());
        let (status, out, error) = parts(&output);
        assert_eq!(status, Some(0), "{error}");
        out.lines().count()
    };
    assert_eq!(export(&[]), 27);
    assert_eq!(export(&["--from", "2026-11-29", "--to", "2026-11-30"]), 24);
    assert_eq!(
        export(&["--from", "2026-11-29T10", "--to", "2026-11-29T12:00Z"]),
        2
    );
    assert_eq!(export(&["--from", "498864", "--to", "2026-11-29T01"]), 1);
    let once = ["top", "--once", "--format", "csv", "--url", &url, "--hour"];
    let (_, out, error) = parts(&flowtally(&[&once[..], &["2026-11-29T10"]].concat()));
    assert!(out.contains("\nh498874,"), "{out} {error}");
    for wrong in ["2026-11-29T10:30", "tomorrow"] {
        let (status, _, error) = parts(&flowtally(&["export", "--url", &url, "--from", wrong]));
        assert!(status == Some(2) && error.contains("--from"), "{error}");
    }
    daemon.stop();
}

#[test]
fn errors_of_clients_name_the_flag_that_the_service_requires() {
    let dir = tempfile::tempdir().unwrap();
    let token = |name: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("{name}-token\n")).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (reads, writes, other) = (token("reads"), token("writes"), token("other"));
    let daemon = Daemon::start_with(
        &dir.path().join("db"),
        &["--write-token-file", &writes, "--read-token-file", &reads],
    );
    let url = url(&daemon);
    let body = ndjson_body(&flows(3));
    for (arguments, words) in [
        (
            &[][..],
            "401 Unauthorized: the service needs a token: give --token-file FILE",
        ),
        (
            &["--token-file", &other],
            "does not know the token of --token-file",
        ),
        (&["--token-file", &reads], "give another --token-file FILE"),
    ] {
        let arguments = [arguments, &["--retry-for", "0"]].concat();
        let (status, _, error) = parts(&send(&url, &arguments, &body));
        assert!(status == Some(1) && error.contains(words), "{error}");
    }
    let backups = dir.path().join("backups");
    for command in [
        &["stats"][..],
        &["export"],
        &["top", "--once"],
        &["backup", "--to", backups.to_str().unwrap()],
    ] {
        let (status, _, error) = parts(&flowtally(&[command, &["--url", &url]].concat()));
        assert_eq!(status, Some(1));
        assert!(
            error.contains("give --token-file FILE"),
            "{command:?}: {error}"
        );
    }
    // The live view does not retry forever with a wrong token.
    let top = format!(
        "{} top --url {url} --token-file {other}",
        Daemon::binary().display()
    );
    if let Some((text, status)) = in_terminal(&format!("timeout --foreground 30 {top}")) {
        assert_eq!(status, Some(1), "{text}");
        assert!(
            text.contains("does not know the token of --token-file"),
            "{text}"
        );
    }
    daemon.stop();
}

/// Responds to every request with a redirect to `target`.
fn redirecting(status: u16, target: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 64 << 10];
            let read = stream.read(&mut head).unwrap_or(0);
            let head = String::from_utf8_lossy(&head[..read]).into_owned();
            let path = head.split(' ').nth(1).unwrap_or("/");
            let response = format!(
                "HTTP/1.1 {status} Moved\r\nlocation: {target}{path}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            );
            let _it_may_have_left = stream.write_all(response.as_bytes());
        }
    });
    url
}

#[test]
fn redirects_are_named_and_not_followed() {
    let asked = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("http://{}", listener.local_addr().unwrap());
    let count = asked.clone();
    std::thread::spawn(move || {
        listener.incoming().for_each(|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
    });
    for status in [301, 302, 303, 307, 308] {
        let url = redirecting(status, target.clone());
        for path in ["", "/flows"] {
            let arguments = ["--retry-for", "0"];
            let url = format!("{url}{path}");
            let (end, _, error) = parts(&send(&url, &arguments, &ndjson_body(&flows(3))));
            assert_eq!(end, Some(1));
            assert!(
                error.contains(&format!("it redirects to {target}/flows")),
                "{error}"
            );
            assert!(error.contains(&format!("give --url {target}")), "{error}");
        }
        let (end, _, error) = parts(&flowtally(&["stats", "--url", &url]));
        assert_eq!(end, Some(1));
        assert!(error.contains(&format!("give --url {target}")), "{error}");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

#[test]
fn on_a_terminal_the_url_of_the_page_and_the_input_are_announced() {
    let dir = tempfile::tempdir().unwrap();
    let binary = Daemon::binary();
    let (binary, db) = (binary.display(), dir.path().display());
    for (listen, host) in [
        ("127.0.0.1:0", "127.0.0.1"),
        (":0 --allow-anonymous", "[::1]"),
    ] {
        let serve = format!("{binary} serve --listen {listen} --data-dir {db}/db");
        let Some((text, _)) = in_terminal(&format!("timeout --foreground -s INT 5 {serve}")) else {
            return;
        };
        // Without IPv6, it is IPv4.
        let (url, ipv4) = (format!("open http://{host}:"), "open http://127.0.0.1:");
        assert!(text.contains(&url) || text.contains(ipv4), "{text}");
    }
    let send = format!("timeout --foreground -s INT 2 {binary} send --url http://127.0.0.1:9");
    if let Some((text, _)) = in_terminal(&send) {
        assert!(text.contains("reading flows from the terminal"), "{text}");
    }
}
