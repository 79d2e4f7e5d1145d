//! `flowtally send --spool`: flows are on disk within a second of reading them, none is lost if the disk is full or the
//! process gets a signal, and no batch blocks the others permanently.

use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::daemon::signal;
use crate::send::{flows, parts, send, url};
use crate::support::{Daemon, Disk, Model, add_to, hour_of, json_body, ndjson_body, random};
use crate::wait::{at_most, until};
use rand::RngExt;

/// No process listens there.
pub(crate) const NOWHERE: &str = "http://127.0.0.1:9";

pub(crate) fn sender(url: &str, spool: &Path, arguments: &[&str], input: Stdio) -> Child {
    // SIGHUP and SIGINT may be ignored where the tests run, and a child inherits that.
    Command::new("env")
        .arg("--default-signal=HUP,INT")
        .arg(Daemon::binary())
        .args(["send", "--url", url, "--spool"])
        .arg(spool)
        .args(arguments)
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The files of batches in a directory.
pub(crate) fn batches(dir: &Path) -> Vec<PathBuf> {
    let Ok(found) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let paths = found.map(|file| file.unwrap().path());
    let is_batch = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.ends_with(".json") || name.ends_with(".json.zst")
    };
    let mut paths: Vec<_> = paths.filter(is_batch).collect();
    paths.sort();
    paths
}

/// Flows in the batches that wait in a spool.
pub(crate) fn flows_in(spool: &Path) -> usize {
    let of = |path: &PathBuf| {
        let bytes = std::fs::read(path).unwrap();
        let json = match path.extension().unwrap() == "zst" {
            true => zstd::decode_all(&bytes[..]).unwrap(),
            false => bytes,
        };
        let flows: serde_json::Value = serde_json::from_slice(&json).unwrap();
        flows.as_array().unwrap().len()
    };
    batches(spool).iter().map(of).sum()
}

/// Waits until everything that was written into a pipe has been read.
pub(crate) fn until_read(pipe: &impl AsFd) {
    until("the pipe to be read", || {
        rustix::io::ioctl_fionread(pipe).unwrap() == 0
    });
}

/// A collector writes a line occasionally, and the service is unavailable. Regression test: ten of twelve flows were
/// only in memory after seven seconds.
#[test]
fn a_slow_pipe_is_on_disk_within_a_second() {
    for (name, lost_max) in [("KILL", 1), ("HUP", 0)] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = sender(NOWHERE, dir.path(), &[], Stdio::piped());
        let mut input = child.stdin.take().unwrap();
        for (number, flow) in flows(4).into_iter().enumerate() {
            let written = Instant::now();
            input.write_all(&ndjson_body(&[flow])).unwrap();
            until("the flow to be on disk", || flows_in(dir.path()) > number);
            let took = written.elapsed();
            assert!(took < at_most(1), "{took:?}");
        }
        input.write_all(&ndjson_body(&flows(1))).unwrap();
        until_read(&input);
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        let kept = flows_in(dir.path());
        assert!(5 - kept <= lost_max, "{kept} of 5 after {name}");
        if name == "HUP" {
            assert_eq!(output.status.code(), Some(128 + 1));
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(error.contains("stopped; in the spool: "), "{error}");
        }
        drop(input);
    }
}

#[test]
fn nohup_is_respected() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new("nohup")
        .arg(Daemon::binary())
        .args(["send", "--url", NOWHERE, "--spool"])
        .arg(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    for (number, flow) in flows(3).into_iter().enumerate() {
        input.write_all(&ndjson_body(&[flow])).unwrap();
        // After a hangup, it continues to read.
        until("the flow to be on disk", || flows_in(dir.path()) > number);
        signal(&child, "HUP");
    }
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}

/// Flows in a pipe that is no longer read. A partly read line counts, but not if only its line end is left: its flow was
/// complete, and is in the spool.
fn left_in(pipe: PipeReader) -> usize {
    let lines = BufReader::new(pipe).lines().map_while(Result::ok);
    lines.filter(|line| !line.is_empty()).count()
}

/// Writes flows into a pipe until it is no longer read, and returns their number.
pub(crate) fn write_all(mut pipe: std::io::PipeWriter) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        // The test itself holds the other end, so this blocks and does not fail.
        let _nobody_reads_on = pipe.write_all(&ndjson_body(&flows(20_000)));
    })
}

/// At any moment of a signal, each flow is in the spool or still in the pipe.
#[test]
fn a_signal_loses_nothing_that_was_read() {
    let mut random = random("a_signal_loses_nothing_that_was_read");
    let mut kept_in_all = 0;
    for (round, arguments) in [
        &["--batch-flows", "100"][..],
        &["--batch-flows", "100000", "--no-compress"],
        // The spool is full soon, and the sender waits.
        &["--spool-max", "1", "--no-compress", "--batch-flows", "300"],
        &["--spool-max", "1", "--no-compress"],
        &["--retry-for", "0", "--batch-flows", "700"],
    ]
    .into_iter()
    .enumerate()
    {
        let dir = tempfile::tempdir().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let input = Stdio::from(reader.try_clone().unwrap());
        let child = sender(NOWHERE, dir.path(), arguments, input);
        let writing = write_all(writer);
        until("the spool to be locked", || {
            dir.path().join("lock").exists()
        });
        // The moment does not matter.
        std::thread::sleep(Duration::from_millis(random.random_range(50..1200)));
        // In the last round, the sender has given up by itself.
        if round < 4 {
            signal(&child, ["TERM", "INT", "HUP", "TERM"][round]);
        }
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("in the spool: "), "{arguments:?}: {error}");
        assert!(!error.contains("had no room"), "{arguments:?}: {error}");
        let (kept, left) = (flows_in(dir.path()), left_in(reader));
        writing.join().unwrap();
        assert_eq!(kept + left, 20_000, "{arguments:?}: {kept} kept; {error}");
        kept_in_all += kept;
    }
    assert!(kept_in_all > 0);
}

#[test]
fn a_full_disk_is_waited_out() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path().join("disk"), 2);
    if !disk.mounted {
        println!("a spool on a full disk: NOT RUN");
        return;
    }
    let spool = disk.path.join("spool");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let url = format!("http://{address}");
    let arguments = ["--no-compress", "--batch-flows", "300"];
    let flows = flows(30_000);

    // It fills the disk, waits, and is ended by a signal: nothing is lost.
    let (reader, mut writer) = std::io::pipe().unwrap();
    let input = Stdio::from(reader.try_clone().unwrap());
    let mut child = sender(&url, &spool, &arguments, input);
    let body = ndjson_body(&flows);
    let writing = std::thread::spawn(move || {
        let _nobody_reads_on = writer.write_all(&body);
    });
    let mut error = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    error.read_line(&mut line).unwrap();
    assert!(line.contains("the disk is full; reading pauses"), "{line}");
    until("the batch that was being filled is on disk", || {
        let is_whole = |path: &PathBuf| path.to_string_lossy().ends_with("-300.json");
        batches(&spool).iter().any(|path| !is_whole(path))
    });
    // The status shows that the signal ended it, so it was waiting.
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    error.read_line(&mut line).unwrap();
    assert!(!line.contains("had no room"), "{line}");
    let kept = flows_in(&spool);
    // The next one reads the rest of the pipe, and has the beginning of the first line in the spool.
    let mut rest = BufReader::new(reader);
    let mut begun = String::new();
    rest.read_line(&mut begun).unwrap();
    let mut left = Vec::new();
    rest.read_to_end(&mut left).unwrap();
    writing.join().unwrap();
    assert_eq!(kept + 1 + left.split(|b| *b == b'\n').count() - 1, 30_000);

    // The next one waits too, until the service is up and accepts the waiting batches.
    let mut child = sender(&url, &spool, &arguments, Stdio::piped());
    let mut input = child.stdin.take().unwrap();
    let mut again = begun.into_bytes();
    again.extend_from_slice(&left);
    let writing = std::thread::spawn(move || input.write_all(&again));
    let refuses = TcpListener::bind(address).unwrap();
    drop(refuses.accept().unwrap());
    drop(refuses);
    let db = dir.path().join("db");
    let daemon = Daemon::start_with(&db, &["--listen", &address.to_string()]);
    let (status, _, error) = parts(&child.wait_with_output().unwrap());
    assert_eq!(status, Some(0), "{error}");
    writing.join().unwrap().unwrap();
    let mut model = Model::new();
    add_to(&mut model, &flows);
    assert_eq!(daemon.client.hour(1), hour_of(&model, 1));
    daemon.stop();
}

/// For any free space and any end of a read, a full disk and a signal leave all flows in the spool and in the pipe, and
/// the next command counts them.
#[test]
fn a_full_disk_and_a_signal_lose_nothing() {
    let flows = flows(20_000);
    let array = json_body(&flows);
    let csv = crate::send::csv_body(&flows);
    for (body, ballast) in [
        (&csv, 1024),
        (&csv, 1010),
        (&csv, 850),
        (&csv, 700),
        (&ndjson_body(&flows), 1020),
        (&ndjson_body(&flows), 800),
        (&array, 990),
        (&array, 800),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path().join("disk"), 1);
        if !disk.mounted {
            println!("a spool on a full disk, and a signal: NOT RUN");
            return;
        }
        let (file, spool) = (disk.path.join("ballast"), disk.path.join("spool"));
        std::fs::write(&file, vec![b'x'; ballast << 10]).unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        let input = || Stdio::from(reader.try_clone().unwrap());
        let mut child = sender(NOWHERE, &spool, &["--no-compress"], input());
        let text = body.clone();
        let writing = std::thread::spawn(move || writer.write_all(&text).unwrap());
        let mut line = String::new();
        let mut error = errors(&mut child);
        error.read_line(&mut line).unwrap();
        assert!(line.contains("the disk is full; reading pauses"), "{line}");
        // Batches are closed by their age meanwhile, at any moment.
        std::thread::sleep(Duration::from_millis(u64::from(ballast as u32 % 7) * 200));
        signal(&child, "TERM");
        assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
        error.read_to_string(&mut line).unwrap();
        assert!(
            !line.contains("had no room") && !line.contains("not kept"),
            "{line}"
        );
        let left = std::fs::read_dir(&spool).unwrap();
        let names: Vec<_> = left.map(|file| file.unwrap().file_name()).collect();
        assert!(
            names
                .iter()
                .all(|name| !name.to_str().unwrap().ends_with("tmp")),
            "{names:?}"
        );
        if ballast == 1024 {
            assert_eq!(names, ["lock"], "nothing was read");
        }
        std::fs::remove_file(&file).unwrap();
        let daemon = Daemon::start(&dir.path().join("db"));
        let child = sender(&url(&daemon), &spool, &["--no-compress"], input());
        drop(reader);
        let (status, _, error) = parts(&child.wait_with_output().unwrap());
        writing.join().unwrap();
        assert_eq!(status, Some(0), "{ballast}: {line}; {error}");
        let mut model = Model::new();
        add_to(&mut model, &flows);
        assert_eq!(
            daemon.client.hour(1),
            hour_of(&model, 1),
            "{ballast}: {line}"
        );
        daemon.stop();
    }
}

/// What a process has written to standard error, line by line.
fn errors(child: &mut Child) -> BufReader<std::process::ChildStderr> {
    BufReader::new(child.stderr.take().unwrap())
}

/// Regression test: delivery ended there, without an error until the next line arrived.
#[test]
fn an_open_pipe_with_a_spool_outlasts_retry_for() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let there = format!("http://{address}");
    let spool = dir.path().join("spool");
    let mut child = sender(&there, &spool, &["--retry-for", "1"], Stdio::piped());
    let mut error = errors(&mut child);
    let mut input = child.stdin.take().unwrap();
    let flows = flows(2);
    input.write_all(&ndjson_body(&flows[..1])).unwrap();
    let mut line = String::new();
    error.read_line(&mut line).unwrap();
    assert!(
        line.contains("has accepted nothing for 1 seconds"),
        "{line}"
    );
    assert!(line.contains("kept in the spool"), "{line}");
    let daemon = Daemon::start_with(&dir.path().join("db"), &["--listen", &address.to_string()]);
    until("the spool to be sent", || batches(&spool).is_empty());
    input.write_all(&ndjson_body(&flows[1..])).unwrap();
    drop(input);
    let (status, out, _) = parts(&child.wait_with_output().unwrap());
    assert_eq!(status, Some(0), "{out}");
    line.clear();
    error.read_to_string(&mut line).unwrap();
    assert_eq!(line, "");
    let mut model = Model::new();
    add_to(&mut model, &flows);
    assert_eq!(daemon.client.hour(1), hour_of(&model, 1));
    daemon.stop();
}

#[test]
fn without_a_spool_giving_up_ends_the_command() {
    let mut child = Command::new(Daemon::binary())
        .args(["send", "--url", NOWHERE, "--retry-for", "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(&ndjson_body(&flows(1))).unwrap();
    until("the sender to end", || child.try_wait().unwrap().is_some());
    let (status, _, error) = parts(&child.wait_with_output().unwrap());
    assert_eq!(status, Some(1));
    assert!(
        error.contains("has accepted nothing for 1 seconds"),
        "{error}"
    );
    assert!(
        error.contains("unsent flows are lost; flowtally send --spool DIR keeps them"),
        "{error}"
    );
    drop(input);
}

/// Regression test: 18 of 249 signals arrived before the command knew what to keep.
#[test]
fn a_signal_at_the_start_loses_nothing_that_was_read() {
    for round in 0..60 {
        let dir = tempfile::tempdir().unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(&ndjson_body(&flows(10))).unwrap();
        let input = Stdio::from(reader.try_clone().unwrap());
        let child = sender(NOWHERE, dir.path(), &[], input);
        // Many moments of a start; the assertions are the same for each.
        std::thread::sleep(Duration::from_micros(700 * round));
        signal(&child, "TERM");
        let output = child.wait_with_output().unwrap();
        drop(writer);
        let (kept, left) = (flows_in(dir.path()), left_in(reader));
        assert_eq!(kept + left, 10, "{round}: {output:?}");
    }
}

/// The first of two processes reads a part of a flow, for any cut of the pipe; the second reads the rest.
#[test]
fn a_partly_read_flow_is_completed_by_the_next_run() {
    let flows = flows(4);
    let csv = String::from_utf8(crate::send::csv_body(&flows)).unwrap();
    let lines = String::from_utf8(ndjson_body(&flows)).unwrap();
    let array = format!("[{}]", lines.trim_end().replace('\n', " ,\n"));
    let daemon_dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&daemon_dir.path().join("db"));
    let mut expected = Model::new();
    for text in [&lines, &array, &csv] {
        let second = text.match_indices('\n').nth(1).unwrap().0;
        for cut in [second - 30, second - 1, second, second + 1, second + 20] {
            let dir = tempfile::tempdir().unwrap();
            let (reader, mut writer) = std::io::pipe().unwrap();
            writer.write_all(&text.as_bytes()[..cut]).unwrap();
            let input = || Stdio::from(reader.try_clone().unwrap());
            let child = sender(NOWHERE, dir.path(), &[], input());
            until_read(&reader);
            signal(&child, "TERM");
            let first = child.wait_with_output().unwrap();
            assert_eq!(first.status.code(), Some(128 + 15));
            writer.write_all(&text.as_bytes()[cut..]).unwrap();
            drop(writer);
            let child = sender(&url(&daemon), dir.path(), &[], input());
            let (status, _, error) = parts(&child.wait_with_output().unwrap());
            assert_eq!(status, Some(0), "{cut} of {text}: {first:?}, then {error}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
            add_to(&mut expected, &flows);
            assert_eq!(
                daemon.client.hour(1),
                hour_of(&expected, 1),
                "{cut}: {text}"
            );
        }
    }
    daemon.stop();
}

/// The unfinished flow is refused, and does not affect the other pipe.
#[test]
fn another_pipe_is_not_mistaken_for_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = sender(NOWHERE, dir.path(), &[], Stdio::piped());
    let mut input = child.stdin.take().unwrap();
    input.write_all(&ndjson_body(&flows(1))[..30]).unwrap();
    until_read(&input);
    signal(&child, "TERM");
    let (_, _, error) = parts(&child.wait_with_output().unwrap());
    assert!(error.contains("30 bytes of an unfinished flow"), "{error}");
    let daemon = Daemon::start(&dir.path().join("db"));
    let spool = dir.path().join("spool");
    std::fs::create_dir(&spool).unwrap();
    std::fs::rename(dir.path().join("unfinished"), spool.join("unfinished")).unwrap();
    let arguments = ["--spool", spool.to_str().unwrap()];
    // An empty pipe decides nothing.
    assert_eq!(parts(&send(&url(&daemon), &arguments, b"")).0, Some(0));
    let flows = flows(3);
    let (status, out, error) = parts(&send(&url(&daemon), &arguments, &ndjson_body(&flows)));
    assert_eq!(status, Some(1), "{error}");
    assert!(out.starts_with("3 flows sent"), "{out}");
    assert!(error.contains("the pipe does not continue it"), "{error}");
    let mut model = Model::new();
    add_to(&mut model, &flows);
    assert_eq!(daemon.client.hour(1), hour_of(&model, 1));
    daemon.stop();
}

/// A program that writes a flow and waits before it ends the line, or the array.
#[test]
fn a_complete_flow_does_not_wait_for_the_next() {
    let flow = String::from_utf8(ndjson_body(&flows(1))).unwrap();
    for text in [flow.trim_end().to_owned(), format!("[{}", flow.trim_end())] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = sender(NOWHERE, dir.path(), &[], Stdio::piped());
        let mut input = child.stdin.take().unwrap();
        let begun = Instant::now();
        input.write_all(text.as_bytes()).unwrap();
        // The pipe remains open.
        until("the flow to be on disk", || flows_in(dir.path()) == 1);
        // A test of `delivery` checks, without a clock, that its second counts from the read.
        assert!(begun.elapsed() < at_most(1), "{text}");
        child.kill().unwrap();
        child.wait().unwrap();
        drop(input);
    }
}
