//! The reaction of `flowtally send` to each response: about the batch, the address, or a temporary condition.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::send::{flows, parts, send};
use crate::spool::{batches, sender};
use crate::spool_refused::{answering, response, set_aside};
use crate::support::ndjson_body;
use crate::wait::until;

const TAKEN: &str = "{\"accepted\":10}";

/// Regression test: each of them used to end the command, and the batch blocked all others.
#[test]
fn a_response_about_a_batch_sets_it_aside() {
    let named = "{\"type\":\"about:blank\",\"title\":\"t\",\"detail\":\"d\",\"index\":3}";
    let field = "{\"field\":\"hour\"}";
    // More than `send` reads: the status is sufficient.
    let long: &'static str = "<p>too large</p>".repeat(5_000).leak();
    for (status, body) in [
        ("413 Payload Too Large", long),
        ("422 Unprocessable Content", long),
        ("400 Bad Request", named),
        ("400 Bad Request", field),
        ("411 Length Required", ""),
        ("413 Payload Too Large", "<html>"),
        ("414 URI Too Long", ""),
        ("415 Unsupported Media Type", ""),
        ("422 Unprocessable Content", ""),
        ("431 Request Header Fields Too Large", ""),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let spool = dir.path().to_str().unwrap();
        let url = answering(move |number| match number {
            1 => response(status, body),
            _ => response("200 OK", TAKEN),
        });
        let arguments = ["--batch-flows", "10", "--spool", spool];
        let (end, out, error) = parts(&send(&url, &arguments, &ndjson_body(&flows(30))));
        assert_eq!(end, Some(1), "{status}: {error}");
        assert!(
            out.starts_with("20 flows sent in 2 batches"),
            "{status}: {out}"
        );
        assert!(batches(dir.path()).is_empty(), "{status}");
        let aside = set_aside(dir.path());
        assert_eq!(aside.len(), 1, "{status}");
        let (reason, command) = &aside[0];
        assert!(reason.starts_with(&status[..3]), "{reason}");
        assert!(command.starts_with("flowtally send "), "{command}");
        assert_eq!(
            command.contains("--no-compress"),
            ["411", "414", "415", "431"].contains(&&status[..3])
        );
        // To correct a batch by hand, decompress it first.
        assert_eq!(reason.contains("zstd -d"), status.starts_with("400"));
    }
}

/// For a wrong token, a wrong URL, or a proxy that requires a password, the command keeps reading the pipe, since its
/// producer may be unable to repeat the flows; no flow is lost or set aside.
#[test]
fn a_response_about_the_address_keeps_the_flows_and_the_command() {
    let responses = [
        response("301 Moved Permanently", ""),
        response(
            "400 Bad Request",
            "<html>The plain HTTP request was sent to HTTPS port",
        ),
        response("401 Unauthorized", ""),
        response("403 Forbidden", ""),
        response("404 Not Found", ""),
        response("405 Method Not Allowed", ""),
        response("407 Proxy Authentication Required", ""),
        response("410 Gone", ""),
        response("421 Misdirected Request", ""),
        response("451 Unavailable For Legal Reasons", ""),
        response("200 OK", "<html>Please log in"),
        // Counts that add up to those of the batch only if they wrap.
        response(
            "200 OK",
            "{\"accepted\":18446744073709551615,\"expired\":11}",
        ),
        response("404 Not Found", &"<p>nothing here</p>".repeat(5_000)),
        response("204 No Content", ""),
    ];
    std::thread::scope(|scope| {
        for wrong in responses {
            scope.spawn(|| {
                keeps_on(wrong.clone(), true);
                keeps_on(wrong, false);
            });
        }
    });
}

/// The status is sufficient: some responses are truncated, and proxies respond in Latin-1, or without a charset.
#[test]
fn a_refusal_whose_body_cannot_be_read_sets_its_batch_aside() {
    for refusal in [
        &b"HTTP/1.1 413 Payload Too Large\r\nconnection: close\r\ncontent-length: 100\r\n\r\nshort"
            [..],
        b"HTTP/1.1 413 Charge trop grande\r\nconnection: close\r\n\
          content-type: text/html\r\ncontent-length: 8\r\n\r\nrefus\xe9\xe9.",
        b"HTTP/1.1 422 Unprocessable Content\r\nconnection: close\r\n\
          content-type: application/problem+json\r\ncontent-length: 4\r\n\r\n\x00\xff\xfe{",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let url = answering(move |number| match number {
            1 => refusal.to_vec(),
            _ => response("200 OK", TAKEN).into_bytes(),
        });
        let spool = dir.path().to_str().unwrap();
        let arguments = ["--batch-flows", "10", "--spool", spool, "--retry-for", "5"];
        let (end, out, error) = parts(&send(&url, &arguments, &ndjson_body(&flows(30))));
        assert_eq!(end, Some(1), "{error}");
        assert!(
            out.starts_with("20 flows sent in 2 batches"),
            "{out} {error}"
        );
        assert_eq!(set_aside(dir.path()).len(), 1);
    }
}

fn keeps_on(wrong: String, has_spool: bool) {
    let mended = Arc::new(AtomicBool::new(false));
    let tries = Arc::new(AtomicUsize::new(0));
    let (is_mended, tried) = (mended.clone(), tries.clone());
    let refusal = wrong.clone();
    let url = answering(move |_| {
        tried.fetch_add(1, Ordering::Relaxed);
        match is_mended.load(Ordering::Relaxed) {
            true => response("200 OK", TAKEN),
            false => refusal.clone(),
        }
    });
    let dir = tempfile::tempdir().unwrap();
    // Without a spool, the flows at the end of the pipe have to be accepted by then.
    let retry_for = if has_spool { "0" } else { "60" };
    let arguments = ["--batch-flows", "10", "--retry-for", retry_for];
    let mut child = match has_spool {
        true => sender(&url, dir.path(), &arguments, Stdio::piped()),
        false => std::process::Command::new(crate::support::Daemon::binary())
            .args(["send", "--url", &url])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    };
    let mut input = child.stdin.take().unwrap();
    let mut error = BufReader::new(child.stderr.take().unwrap());
    input.write_all(&ndjson_body(&flows(20))).unwrap();
    let mut line = String::new();
    error.read_line(&mut line).unwrap();
    assert!(
        line.contains(" refuses: ") && line.contains("are kept"),
        "{wrong}: {line}"
    );
    // Several attempts, one message.
    until("more tries", || tries.load(Ordering::Relaxed) > 2);
    mended.store(true, Ordering::Relaxed);
    input.write_all(&ndjson_body(&flows(10))).unwrap();
    if has_spool {
        until("the spool to be sent", || batches(dir.path()).is_empty());
    }
    drop(input);
    let output = child.wait_with_output().unwrap();
    let (status, out, _) = parts(&output);
    let mut rest = String::new();
    error.read_to_string(&mut rest).unwrap();
    assert_eq!((status, rest.as_str()), (Some(0), ""), "{wrong}");
    assert!(
        out.starts_with("30 flows sent in 3 batches"),
        "{wrong}: {out}"
    );
    assert!(set_aside(dir.path()).is_empty(), "{wrong}");
}
