//! `flowtally send`, against the real service and against one that misbehaves.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::spool::until_read;
use crate::support::{
    Daemon, Model, TestFlow, add_to, free_address, hour_of, json_body, ndjson_body,
};
use crate::wait::{at_most, until};

pub fn flows(count: u64) -> Vec<TestFlow> {
    (0..count)
        .map(|i| TestFlow::new(1, &format!("svc-{}", i % 7), "d,\"e\"", "", i, 1))
        .collect()
}

pub fn csv_body(flows: &[TestFlow]) -> Vec<u8> {
    let mut text = "hour,src_app,dest_app,vpc_id,bytes_tx,bytes_rx\n".to_owned();
    for flow in flows {
        let (hour, src, dest, vpc) = &flow.key;
        let dest = dest.replace('"', "\"\"");
        text += &format!("{hour},{src},\"{dest}\",{vpc},{},{}\n", flow.tx, flow.rx);
    }
    text.into_bytes()
}

pub fn send(url: &str, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(Daemon::binary())
        .args(["send", "--url", url])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end before it has read all input.
    let _sent = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// Status, standard output, standard error.
pub fn parts(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

pub fn url(daemon: &Daemon) -> String {
    format!("http://{}", daemon.address)
}

#[test]
fn a_pipe_of_each_format_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let flows = flows(2500);
    let mut model = Model::new();
    for body in [json_body(&flows), ndjson_body(&flows), csv_body(&flows)] {
        let (status, out, error) = parts(&send(&url(&daemon), &[], &body));
        assert_eq!(status, Some(0), "{error}");
        assert_eq!(
            out,
            "2500 flows sent in 3 batches, 0 of which the service had already; 0 refused\n"
        );
        add_to(&mut model, &flows);
        assert_eq!(daemon.client.hour(1), hour_of(&model, 1));
    }
    // Empty input is not an error.
    assert_eq!(parts(&send(&url(&daemon), &[], b"")).0, Some(0));
    daemon.stop();
}

#[test]
fn a_file_counts_once_however_often_it_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    // Equal batches in one file each count.
    let flows: Vec<_> = (0..3000)
        .map(|_| TestFlow::new(1, "a", "b", "c", 1, 0))
        .collect();
    let file = dir.path().join("flows.json");
    std::fs::write(&file, json_body(&flows)).unwrap();
    let file = file.to_str().unwrap();
    let tx = || daemon.client.hour(1)[0].1.tx;
    for (arguments, said, expected) in [
        (&[file][..], "3000 flows sent in 1 batch", 3000),
        (&[file, "--no-compress"], "0 flows sent in 0 batches", 3000),
        (&[file, "--again"], "3000 flows sent in 1 batch", 6000),
    ] {
        let (status, out, error) = parts(&send(&url(&daemon), arguments, b""));
        assert_eq!(status, Some(0), "{error}");
        assert!(out.starts_with(said), "{out}");
        assert_eq!(tx(), expected);
    }
    daemon.stop();
}

#[test]
fn refused_flows_go_to_the_rejects_file_and_the_others_are_sent() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    let rejects = dir.path().join("rejects.ndjson");
    let good = String::from_utf8(ndjson_body(&flows(3))).unwrap();
    let bad = good
        .lines()
        .next()
        .unwrap()
        .replace("\"hour\":1", "\"hour\":-1");
    let input = format!("{good}{bad}\nnonsense\n{good}");
    let arguments = ["--format", "ndjson", "--rejects", rejects.to_str().unwrap()];
    let (status, out, error) = parts(&send(&url(&daemon), &arguments, input.as_bytes()));
    assert_eq!(status, Some(1));
    assert!(out.starts_with("6 flows sent"), "{out}");
    assert!(
        error.contains("2 flows were refused; they are in"),
        "{error}"
    );
    let lines = std::fs::read_to_string(rejects).unwrap();
    let lines: Vec<serde_json::Value> = lines
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(
        (&lines[0]["place"], &lines[0]["flow"]),
        (&"-: line 4".into(), &bad.into())
    );
    assert!(
        lines[0]["why"].as_str().unwrap().starts_with("hour: "),
        "{}",
        lines[0]
    );
    assert_eq!(lines[1]["flow"], "nonsense");

    // The rest of a truncated input cannot be read, and the error names this.
    let (status, out, error) = parts(&send(&url(&daemon), &[], &json_body(&flows(3))[..200]));
    assert_eq!(status, Some(1));
    assert!(
        out.starts_with("1 flows sent") || out.starts_with("2 flows sent"),
        "{out}"
    );
    assert!(error.contains("the rest was not read"), "{error}");
    daemon.stop();
}

#[test]
fn a_spool_keeps_flows_while_the_service_is_unavailable() {
    let dir = tempfile::tempdir().unwrap();
    let address = free_address();
    let url = format!("http://{address}");
    let spool = dir.path().join("spool");
    let spool = spool.to_str().unwrap();
    let flows = flows(2500);
    let arguments = ["--spool", spool, "--retry-for", "1"];
    let (status, _, error) = parts(&send(&url, &arguments, &ndjson_body(&flows)));
    assert_eq!(status, Some(1));
    assert!(
        error.contains("has accepted nothing for 1 seconds"),
        "{error}"
    );
    assert!(error.contains("in the spool: 3 batches"), "{error}");
    let batches = || std::fs::read_dir(spool).unwrap().count() - 1;
    assert_eq!(batches(), 3);

    let db = dir.path().join("db");
    let daemon = Daemon::start_with(&db, &["--listen", &address.to_string()]);
    let (status, out, error) = parts(&send(&url, &["--spool", spool], b""));
    assert_eq!(
        (status, out.starts_with("2500 flows")),
        (Some(0), true),
        "{error}"
    );
    assert_eq!(batches(), 0);
    let mut model = Model::new();
    add_to(&mut model, &flows);
    assert_eq!(daemon.client.hour(1), hour_of(&model, 1));
    daemon.stop();
}

#[test]
fn a_signal_leaves_unsent_flows_in_the_spool() {
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("spool");
    let mut child = Command::new(Daemon::binary())
        .args(["send", "--url", "http://127.0.0.1:9", "--spool"])
        .arg(&spool)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(&ndjson_body(&flows(10))).unwrap();
    until_read(&input);
    let kill = Command::new("kill").arg(child.id().to_string()).status();
    assert!(kill.unwrap().success());
    let output = child.wait_with_output().unwrap();
    let (status, _, error) = parts(&output);
    assert_eq!(status, Some(128 + 15), "{error}");
    assert!(error.contains("in the spool: 1 batch"), "{error}");
    let batch = std::fs::read_dir(&spool)
        .unwrap()
        .map(|e| e.unwrap().file_name());
    let names: Vec<_> = batch.map(|name| name.into_string().unwrap()).collect();
    assert!(
        names.iter().any(|name| name.ends_with("-10.json.zst")),
        "{names:?}"
    );
    drop(input);
}

/// Sends SIGTERM at random moments, and runs the command again with the same file.
#[test]
fn a_file_that_signals_interrupt_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    let (url, spool) = (url(&daemon), dir.path().join("spool"));
    let flows = flows(600_000);
    let file = dir.path().join("flows.ndjson");
    std::fs::write(&file, ndjson_body(&flows)).unwrap();
    let mut interrupted = 0;
    // Each time is half as long again, so that one run completes however slow the machine is.
    let mut pause = Duration::from_millis(60);
    loop {
        let mut child = Command::new(Daemon::binary())
            .args(["send", "--url", &url, "--spool"])
            .args([&spool, &file])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(pause);
        pause += pause / 2;
        let kill = Command::new("kill").arg(child.id().to_string()).status();
        let _may_have_ended = kill.unwrap();
        let begin = Instant::now();
        let status = child.wait().unwrap();
        if status.success() {
            break;
        }
        assert!(begin.elapsed() < at_most(3), "a signal ends it immediately");
        // Before it handles signals, the default action ends it.
        if status.signal() != Some(15) {
            assert_eq!(status.code(), Some(128 + 15));
            interrupted += 1;
        }
    }
    assert!(interrupted > 1);
    let mut model = Model::new();
    add_to(&mut model, &flows);
    assert_eq!(daemon.client.hour(1), hour_of(&model, 1));
    daemon.stop();
}

#[test]
fn a_signal_does_not_wait_for_room() {
    let mut child = Command::new(Daemon::binary())
        .args(["send", "--url", "http://127.0.0.1:9", "--batch-flows", "10"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let body = ndjson_body(&flows(300));
    input.write_all(&body).unwrap();
    // It reads more than fits into its queue, and waits for room.
    until("reading to begin", || {
        rustix::io::ioctl_fionread(&input).unwrap() < body.len() as u64
    });
    let kill = Command::new("kill").arg(child.id().to_string()).status();
    assert!(kill.unwrap().success());
    let begin = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    assert!(begin.elapsed() < at_most(3));
    drop(input);
}

/// Responds to each request with the next of `responses`, and reports the times of the requests.
fn scripted(
    responses: &'static [&'static str],
) -> (String, std::thread::JoinHandle<Vec<(Instant, String)>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let mut requests = Vec::new();
        for response in responses {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            let (mut key, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                lines.read_line(&mut line).unwrap();
                let line = line.trim().to_lowercase();
                if line.is_empty() {
                    break;
                }
                if let Some(value) = line.strip_prefix("idempotency-key: ") {
                    key = value.to_owned();
                }
                if let Some(value) = line.strip_prefix("content-length: ") {
                    length = value.parse().unwrap();
                }
            }
            lines.read_exact(&mut vec![0; length]).unwrap();
            requests.push((Instant::now(), key));
            stream.write_all(response.as_bytes()).unwrap();
        }
        requests
    });
    (url, server)
}

const TAKEN: &str =
    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 14\r\n\r\n{\"accepted\":3}";

#[test]
fn send_retries_under_the_same_key_after_the_requested_pause() {
    let (url, server) = scripted(&[
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: 2\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 14\r\n\r\n{\"acc",
        "",
        TAKEN,
    ]);
    let (status, out, error) = parts(&send(&url, &[], &ndjson_body(&flows(3))));
    assert_eq!(status, Some(0), "{error}");
    assert!(out.starts_with("3 flows sent in 1 batch"), "{out}");
    let requests = server.join().unwrap();
    assert!(requests[1].0 - requests[0].0 >= Duration::from_secs(2));
    assert!(!requests[0].1.is_empty() && requests.iter().all(|(_, key)| *key == requests[0].1));
}

#[test]
fn a_permanent_error_ends_send() {
    for (response, word) in [
        (
            "HTTP/1.1 401 Unauthorized\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            "401",
        ),
        (
            "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            "400",
        ),
        (
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 14\r\n\r\n{\"accepted\":2}",
            "not flowtally",
        ),
        (
            "HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            "413",
        ),
        (
            "HTTP/1.1 302 Found\r\nlocation: /x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            "302",
        ),
        (
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi",
            "not flowtally",
        ),
    ] {
        let (url, server) = scripted(Box::leak(Box::new([response])));
        let arguments = ["--retry-for", "0"];
        let (status, _, error) = parts(&send(&url, &arguments, &ndjson_body(&flows(3))));
        assert_eq!(status, Some(1));
        assert!(error.contains(word) && error.contains("refuses"), "{error}");
        server.join().unwrap();
    }
    for (arguments, word) in [
        (&["/nowhere/flows.json"][..], "/nowhere/flows.json: "),
        (&["/tmp"], "is a directory"),
        (&["--token-file", "/nowhere/token"], "/nowhere/token: "),
    ] {
        let (status, _, error) = parts(&send("http://127.0.0.1:9", arguments, b""));
        assert_eq!(status, Some(1));
        assert!(
            error.contains(word) && error.lines().count() == 1,
            "{error}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("flows.ndjson");
    std::fs::write(&file, ndjson_body(&flows(3))).unwrap();
    let file = file.to_str().unwrap();
    let (status, _, error) = parts(&send("http://127.0.0.1:9", &[file, "--rejects", file], b""));
    assert!(
        status == Some(1) && error.contains("--rejects is also an input file"),
        "{error}"
    );
    let (status, _, error) = parts(&send("localhost", &[], b""));
    assert_eq!(status, Some(1));
    assert!(error.contains("http://127.0.0.1:8080"), "{error}");
}

#[test]
fn send_presents_a_token_and_trusts_a_given_authority() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "# agents\nw-secret\n").unwrap();
    let token = token.to_str().unwrap();
    let daemon = Daemon::start_with(&dir.path().join("db"), &["--write-token-file", token]);
    let body = ndjson_body(&flows(3));
    let at_once = ["--retry-for", "0"];
    let (status, _, error) = parts(&send(&url(&daemon), &at_once, &body));
    assert!(status == Some(1) && error.contains("token"), "{error}");
    let (status, _, error) = parts(&send(&url(&daemon), &["--token-file", token], &body));
    assert_eq!(status, Some(0), "{error}");
    daemon.stop();
    with_certificate(dir.path(), &body);
}

fn with_certificate(dir: &Path, body: &[u8]) {
    let pki = crate::access::Pki::new(&dir.join("pki"));
    let daemon = pki.serve(&dir.join("tls"), true);
    let url = format!("https://{}", daemon.address);
    let ca = ["--ca", &pki.ca, "--retry-for", "1"];
    let (cert, key) = (pki.client.0.as_str(), pki.client.1.as_str());
    let with = [&ca[..], &["--cert", cert, "--key", key]].concat();
    let (status, _, error) = parts(&send(&url, &with, body));
    assert_eq!(status, Some(0), "{error}");
    let (status, _, error) = parts(&send(&url, &ca, body));
    assert!(
        status == Some(1) && error.contains("certificate"),
        "{error}"
    );
    let (status, _, error) = parts(&send(&url, &["--retry-for", "1"], body));
    assert!(
        status == Some(1) && error.contains("has accepted nothing"),
        "{error}"
    );
    daemon.stop();
}
