//! `flowtally send --spool` and batches that the service refuses.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::send::{flows, parts, send, url};
use crate::spool::{NOWHERE, batches, flows_in};
use crate::support::{Daemon, Model, add_to, hour_of, json_body, ndjson_body};

/// A server on loopback that responds to the request with each number with `respond(number)`. Returns its URL.
pub(crate) fn answering<T: Into<Vec<u8>>>(
    response: impl Fn(usize) -> T + Send + 'static,
) -> String {
    answering_to(move |number, _| response(number))
}

/// Like [`answering`]; `respond` also gets the request line.
pub(crate) fn answering_to<T: Into<Vec<u8>>>(
    response: impl Fn(usize, &str) -> T + Send + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            let (mut request, mut line, mut length) = (String::new(), String::new(), 0);
            let _it_may_be_closed = lines.read_line(&mut request);
            while lines.read_line(&mut line).is_ok_and(|n| n > 2) {
                let lower = line.to_lowercase();
                if let Some(value) = lower.strip_prefix("content-length: ") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let _it_may_break = lines.read_exact(&mut vec![0; length]);
            let _it_may_have_left = stream.write_all(&response(number, &request).into());
        }
    });
    url
}

pub(crate) fn response(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// The reason beside each batch that was set aside, and the command that sends it again.
pub(crate) fn set_aside(spool: &Path) -> Vec<(String, String)> {
    let refused = spool.join("refused");
    let reason = |path: &PathBuf| {
        let stem = path.to_str().unwrap().split(".json").next().unwrap();
        let text = std::fs::read_to_string(format!("{stem}.txt")).unwrap();
        let command = text.lines().last().unwrap().to_owned();
        (text, command)
    };
    batches(&refused).iter().map(reason).collect()
}

/// Runs the command in the reason, as a user would.
fn run(command: &str, url: &str) -> std::process::Output {
    let rest = command.strip_prefix("flowtally send --url ").unwrap();
    let (_, rest) = rest.split_once(' ').unwrap();
    let binary = Daemon::binary();
    let line = format!("{} send --url {url} {rest}", binary.display());
    Command::new("sh").args(["-c", &line]).output().unwrap()
}

#[test]
fn batches_refused_as_too_large_or_unprocessable_are_set_aside_and_the_others_sent() {
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("it's a spool");
    // The second and the fourth are refused, by a proxy and by a service of another version.
    let url = answering(|number| match number {
        1 => response("413 Payload Too Large", "<html>nginx</html>"),
        3 => response("422 Unprocessable Entity", ""),
        4 => response("200 OK", "{\"accepted\":50,\"shard\":7,\"note\":\"new\"}"),
        _ => response("200 OK", "{\"accepted\":100}"),
    });
    let arguments = ["--batch-flows", "100", "--spool", spool.to_str().unwrap()];
    let flows = flows(450);
    let (status, out, error) = parts(&send(&url, &arguments, &ndjson_body(&flows)));
    assert_eq!(status, Some(1), "{error}");
    assert!(out.starts_with("250 flows sent in 3 batches"), "{out}");
    assert!(out.contains("; 200 refused"), "{out}");
    assert!(error.contains("200 flows were refused"), "{error}");
    assert!(error.contains("/refused contains whole batches"), "{error}");
    assert!(batches(&spool).is_empty());
    let aside = set_aside(&spool);
    assert_eq!(aside.len(), 2);
    assert!(aside[0].0.starts_with("413 "), "{}", aside[0].0);
    assert!(aside[0].1.contains("--batch-flows 12"), "{}", aside[0].1);
    assert!(aside[1].0.starts_with("422 "), "{}", aside[1].0);
    // The next one ignores them, and the commands work.
    let daemon = Daemon::start(&dir.path().join("db"));
    let there = crate::send::url(&daemon);
    let (status, out, error) = parts(&send(&there, &arguments, b""));
    assert_eq!(
        (status, out.starts_with("0 flows")),
        (Some(0), true),
        "{error}"
    );
    for (_, command) in &aside {
        let (status, _, error) = parts(&run(command, &there));
        assert_eq!(status, Some(0), "{command}: {error}");
    }
    let mut model = Model::new();
    add_to(&mut model, &flows[100..200]);
    add_to(&mut model, &flows[300..400]);
    assert_eq!(daemon.client.hour(1), hour_of(&model, 1));
    daemon.stop();
}

/// The real service refuses a key that was used for other flows, an invalid flow, and a damaged file.
#[test]
fn batches_that_the_service_refuses_are_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("spool");
    let arguments = ["--batch-flows", "10", "--spool", spool.to_str().unwrap()];
    let flows = flows(40);
    let away = [&arguments[..], &["--retry-for", "0"]].concat();
    send(NOWHERE, &away, &ndjson_body(&flows));
    let waiting = batches(&spool);
    assert_eq!(waiting.len(), 4);
    let daemon = Daemon::start(&dir.path().join("db"));
    let name = waiting[0].file_name().unwrap().to_str().unwrap();
    let key = name.split('-').nth(1).unwrap();
    let headers = [crate::support::JSON, ("idempotency-key", key)];
    let taken = daemon
        .client
        .post("/flows", &headers, &json_body(&flows[..1]));
    assert_eq!(taken.unwrap().status, 200);
    let bad = String::from_utf8(json_body(&flows[10..20])).unwrap();
    let bad = bad.replacen("\"hour\":1", "\"hour\":-1", 1);
    std::fs::write(&waiting[1], zstd::encode_all(bad.as_bytes(), 1).unwrap()).unwrap();
    let bytes = std::fs::read(&waiting[2]).unwrap();
    std::fs::write(&waiting[2], &bytes[..bytes.len() / 2]).unwrap();

    let (status, out, error) = parts(&send(&url(&daemon), &arguments, b""));
    assert_eq!(status, Some(1), "{error}");
    assert!(out.starts_with("10 flows sent in 1 batch,"), "{out}");
    assert!(out.contains("; 30 refused"), "{out}");
    let aside = set_aside(&spool);
    let reasons: Vec<_> = aside.iter().map(|(reason, _)| reason).collect();
    assert!(reasons[0].starts_with("422 "), "{reasons:?}");
    assert!(
        reasons[1].starts_with("400 ") && reasons[1].contains("hour"),
        "{reasons:?}"
    );
    assert!(reasons[2].contains("is damaged"), "{reasons:?}");
    let mut model = Model::new();
    add_to(&mut model, &flows[..1]);
    add_to(&mut model, &flows[30..]);
    assert_eq!(daemon.client.hour(1), hour_of(&model, 1));
    let (status, _, error) = parts(&run(&aside[0].1, &url(&daemon)));
    assert_eq!(status, Some(0), "{error}");
    add_to(&mut model, &flows[..10]);
    assert_eq!(daemon.client.hour(1), hour_of(&model, 1));
    daemon.stop();
}

/// One clock is wrong, the service's or the producer's: such a batch waits, and the others do not wait for it.
#[test]
fn a_batch_that_is_too_early_waits_behind_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().to_str().unwrap();
    let too_early = serde_json::json!({
        "type": "urn:flowtally:problem:hour-too-far-ahead", "title": "t", "status": 400, "detail": "d",
    })
    .to_string();
    let refusing = too_early.clone();
    let url = answering(move |number| match number {
        1 => response("400 Bad Request", &refusing),
        2 | 3 => response("200 OK", "{\"accepted\":10}"),
        4 | 5 => response("400 Bad Request", &refusing),
        _ => response("200 OK", "{\"accepted\":10}"),
    });
    let arguments = ["--batch-flows", "10", "--spool", spool];
    let (status, out, error) = parts(&send(&url, &arguments, &ndjson_body(&flows(40))));
    assert_eq!(status, Some(0), "{error}");
    assert!(out.starts_with("40 flows sent in 4 batches"), "{out}");

    let url = answering(move |number| match number {
        0 | 3.. => response("400 Bad Request", &too_early),
        _ => response("200 OK", "{\"accepted\":10}"),
    });
    let arguments = ["--batch-flows", "10", "--retry-for", "2", "--spool", spool];
    let (status, out, error) = parts(&send(&url, &arguments, &ndjson_body(&flows(30))));
    assert_eq!(status, Some(1), "{error}");
    assert!(out.starts_with("20 flows sent in 2 batches"), "{out}");
    assert!(error.contains("in the spool: 1 batch;"), "{error}");
    assert_eq!(flows_in(dir.path()), 10);
}

/// A flow whose hour is in seconds is set aside, and the rest of its batch counts. A flow with an hour that a wrong
/// clock may explain waits.
#[test]
fn an_hour_in_another_unit_does_not_block_its_batch() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(&dir.path().join("db"), &["--hour-ahead-max", "48"]);
    let there = url(&daemon);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = now.unwrap().as_secs();
    let flow = |tx: u64, hour: u64| {
        format!(
            "{{\"src_app\":\"a\",\"dest_app\":\"b\",\"vpc_id\":\"\",\"bytes_tx\":{tx},\"bytes_rx\":0,\"hour\":{hour}}}\n"
        )
    };
    let tx = || -> u64 {
        daemon
            .client
            .hour(1)
            .iter()
            .map(|(_, counters)| counters.tx)
            .sum()
    };
    let body = [
        flow(1, 1),
        flow(2, seconds),
        flow(4, 1),
        flow(8, seconds / 60),
    ]
    .concat();
    let spool = dir.path().join("spool");
    let arguments = ["--spool", spool.to_str().unwrap()];
    let (status, out, error) = parts(&send(&there, &arguments, body.as_bytes()));
    assert_eq!(status, Some(1), "{error}");
    assert!(out.starts_with("2 flows sent in 1 batch"), "{out}: {error}");
    assert_eq!(tx(), 5);
    assert!(batches(&spool).is_empty());
    let aside = set_aside(&spool);
    assert_eq!(aside.len(), 1);
    let (reason, command) = &aside[0];
    assert!(
        reason.contains("it looks like seconds: divide by 3600"),
        "{reason}"
    );
    assert!(reason.contains("None of its 2 flows counted"), "{reason}");
    // The printed command reaches the service, which refuses them again.
    let (status, out, error) = parts(&run(command, &there));
    assert_eq!(status, Some(1), "{error}");
    assert!(
        out.starts_with("0 flows sent") && out.contains("2 refused"),
        "{out}"
    );

    let rejects = dir.path().join("rejects");
    let kept = ["--rejects", rejects.to_str().unwrap()];
    let with_rejects = [&arguments[..], &kept].concat();
    let (status, out, error) = parts(&send(&there, &with_rejects, body.as_bytes()));
    assert_eq!(status, Some(1), "{error}");
    assert!(out.starts_with("2 flows sent in 1 batch"), "{out}: {error}");
    assert_eq!(tx(), 10);
    assert_eq!(
        std::fs::read_to_string(&rejects).unwrap().lines().count(),
        2
    );
    assert!(
        error.contains(&format!("| flowtally send --url {there}")),
        "{error}"
    );

    // An hour a month ahead may be due to a wrong clock.
    let ahead = [flow(1, 1), flow(2, seconds / 3600 + 700)].concat();
    let arguments = [&arguments[..], &["--retry-for", "1"]].concat();
    let (status, _, error) = parts(&send(&there, &arguments, ahead.as_bytes()));
    assert_eq!(status, Some(1), "{error}");
    assert_eq!(
        (flows_in(&spool), set_aside(&spool).len(), tx()),
        (2, 1, 10)
    );
    daemon.stop();
}

/// With `--rejects`, the flows are written there; with neither, no flow is lost.
#[test]
fn rejects_take_whole_batches_and_without_them_sending_ends() {
    let dir = tempfile::tempdir().unwrap();
    let rejects = dir.path().join("rejects.ndjson");
    let too_large = |number| match number {
        0 => response("413 Payload Too Large", ""),
        _ => response("200 OK", "{\"accepted\":100}"),
    };
    let spool = dir.path().join("spool");
    for spool in [None, Some(spool.to_str().unwrap())] {
        let mut arguments = vec![
            "--batch-flows",
            "100",
            "--rejects",
            rejects.to_str().unwrap(),
        ];
        arguments.extend(spool.iter().flat_map(|spool| ["--spool", spool]));
        let url = answering(too_large);
        let (status, out, error) = parts(&send(&url, &arguments, &ndjson_body(&flows(200))));
        assert_eq!(status, Some(1), "{error}");
        assert!(out.starts_with("100 flows sent"), "{out}");
        assert!(error.contains("jq -r .flow "), "{error}");
        let text = std::fs::read_to_string(&rejects).unwrap();
        assert_eq!(text.lines().count(), 100);
        let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert!(line["why"].as_str().unwrap().starts_with("413 "), "{line}");
        std::fs::remove_file(&rejects).unwrap();
    }
    let url = answering(too_large);
    let arguments = ["--batch-flows", "100"];
    let (status, out, error) = parts(&send(&url, &arguments, &ndjson_body(&flows(200))));
    assert_eq!(status, Some(1));
    assert!(out.starts_with("0 flows sent"), "{out}");
    assert!(
        error.contains("413")
            && error.contains("flowtally send --batch-flows 12")
            && error.contains("--rejects FILE, or flowtally send --spool DIR"),
        "{error}"
    );
}
