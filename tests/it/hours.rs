//! `GET /hours`: ranges, compression, entity tags, and very many hours.

use std::io::Read;
use std::process::Command;

use crate::support::{Client, Daemon, JSON, NDJSON, Response, TestFlow};

fn hours_in(response: &Response) -> Vec<u64> {
    let json = response.json();
    let hours = json.as_array().unwrap().iter();
    hours.map(|of| of["hour"].as_u64().unwrap()).collect()
}

fn get(client: &Client, path: &str) -> Response {
    let response = client.get(path, &[]).unwrap();
    assert_eq!(response.status, 200, "{path}");
    response
}

fn flow(hour: u32) -> TestFlow {
    TestFlow::new(hour, "a", "b", "v", 1, 2)
}

#[test]
fn a_range_of_hours() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(dir.path(), &["--flush-interval", "1"]);
    let client = &daemon.client;
    client.accept(&[3, 5, 4_294_967_294].map(flow));
    crate::wait::until_flushed(client);
    // Some of the requested hours are on disk, and some are not.
    client.accept(&[5, 7, 0].map(flow));
    for (query, expected) in [
        ("", vec![0, 3, 5, 7, 4_294_967_294]),
        ("?from=5", vec![5, 7, 4_294_967_294]),
        ("?to=5", vec![0, 3]),
        ("?from=3&to=7", vec![3, 5]),
        ("?from=5&to=6", vec![5]),
        ("?from=8&to=4294967294", vec![]),
        ("?to=4294967295&from=4294967294", vec![4_294_967_294]),
    ] {
        let response = get(client, &format!("/hours{query}"));
        assert_eq!(hours_in(&response), expected, "{query}");
        let text = String::from_utf8(response.body.clone()).unwrap();
        assert!(text.starts_with('[') && text.ends_with("]\n"), "{text}");
        assert_eq!(response.header("content-type"), Some("application/json"));
    }
    let five = get(client, "/hours?from=5&to=6").json();
    let expected = serde_json::json!([{"hour": 5, "flows": 2, "bytes_tx": 2, "bytes_rx": 4}]);
    assert_eq!(five, expected);
    for (query, why) in [
        ("?from=5&to=5", "has to be greater"),
        ("?from=7&to=5", "has to be greater"),
        ("?to=0", "has to be greater"),
        ("?from=4294967295", "from is"),
        ("?to=4294967296", "to is"),
        ("?from=x", "from is"),
        ("?from=1&from=2", "given twice"),
        ("?hour=5", "those are from, to, step, partial"),
    ] {
        let response = client.get(&format!("/hours{query}"), &[]).unwrap();
        let detail = response.json()["detail"].as_str().unwrap().to_owned();
        assert_eq!(response.status, 400, "{query}");
        assert!(detail.contains(why), "{query}: {detail}");
    }
}

#[test]
fn hours_are_compressed_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    // More than one chunk of a response.
    let flows: Vec<_> = (0..5_000).map(flow).collect();
    daemon.client.accept(&flows);
    let plain = get(&daemon.client, "/hours").body;
    assert!(plain.len() > 200_000);
    for encoding in ["gzip", "zstd"] {
        let headers = [("accept-encoding", encoding)];
        let response = daemon.client.get("/hours", &headers).unwrap();
        assert_eq!(response.header("content-encoding"), Some(encoding));
        assert_eq!(response.header("vary"), Some("accept-encoding"));
        assert!(response.body.len() < plain.len() / 5);
        let mut read = Vec::new();
        match encoding {
            "gzip" => flate2::read::GzDecoder::new(&response.body[..]).read_to_end(&mut read),
            _ => zstd::Decoder::new(&response.body[..])
                .unwrap()
                .read_to_end(&mut read),
        }
        .unwrap();
        assert_eq!(read, plain);
    }
    let refused = [("accept-encoding", "identity;q=0")];
    assert_eq!(daemon.client.get("/hours", &refused).unwrap().status, 406);
}

/// The tag changes whenever the response changes: after flows, after a DELETE, after retention drops an hour, and after
/// a restart.
#[test]
fn a_client_with_the_current_response_gets_a_304() {
    let dir = tempfile::tempdir().unwrap();
    let start = || Daemon::start_with(dir.path(), &["--retain-hours", "10"]);
    let mut daemon = start();
    let mut seen: Vec<String> = Vec::new();
    let mut look = |daemon: &Daemon, expected: &[u64]| {
        let response = get(&daemon.client, "/hours");
        assert_eq!(hours_in(&response), expected);
        let tag = response.header("etag").unwrap().to_owned();
        for known in [tag.clone(), format!("\"x\", {tag}"), "*".into()] {
            let headers = [("if-none-match", &*known)];
            let again = daemon.client.get("/hours", &headers).unwrap();
            assert_eq!((again.status, again.body.len()), (304, 0), "{known}");
            assert_eq!(again.header("etag"), Some(&*tag));
        }
        // It does not depend on the compression.
        let headers = [("if-none-match", &*tag), ("accept-encoding", "gzip")];
        assert_eq!(daemon.client.get("/hours", &headers).unwrap().status, 304);
        for old in &seen {
            let headers = [("if-none-match", &**old)];
            let response = daemon.client.get("/hours", &headers).unwrap();
            assert_eq!(response.status, 200, "{old} of {seen:?}");
        }
        seen.push(tag);
    };
    look(&daemon, &[]);
    daemon.client.accept(&[flow(3)]);
    look(&daemon, &[3]);
    // The same hours, and other sums.
    daemon.client.accept(&[flow(3)]);
    look(&daemon, &[3]);
    daemon.client.accept(&[flow(4), flow(5)]);
    look(&daemon, &[3, 4, 5]);
    assert_eq!(daemon.client.delete("/flows?hour=4").unwrap().status, 200);
    look(&daemon, &[3, 5]);
    daemon.client.accept(&[flow(14)]);
    look(&daemon, &[5, 14]);
    assert_eq!(daemon.client.delete("/flows?hour=14").unwrap().status, 200);
    look(&daemon, &[5]);
    daemon.kill();
    daemon = start();
    look(&daemon, &[5]);
    daemon.client.accept(&[flow(6)]);
    look(&daemon, &[5, 6]);
    let refused = daemon.client.post("/flows", &[JSON], b"[{}]").unwrap();
    assert_eq!(refused.status, 400);
    let tag = get(&daemon.client, "/hours")
        .header("etag")
        .unwrap()
        .to_owned();
    assert_eq!(seen_last(&seen), tag, "nothing has changed");
    // The tag of another range works in the same way.
    let headers = [("if-none-match", &*tag)];
    daemon.client.accept(&[flow(6)]);
    let response = daemon.client.get("/hours?from=5", &headers).unwrap();
    assert_eq!(response.status, 200);
}

fn seen_last(seen: &[String]) -> String {
    seen.last().unwrap().clone()
}

/// 1,170,000 hours, which are 134 years: more than 64 MiB of JSON. A debug build uses fewer, which also exceed that.
#[test]
fn commands_read_more_hours_than_fit_into_memory() {
    const HOURS: u64 = if cfg!(debug_assertions) {
        760_000
    } else {
        1_170_000
    };
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let client = &daemon.client;
    // Sums of many digits.
    let line = |hour: u64| {
        format!(
            "{{\"src_app\":\"a\",\"dest_app\":\"b\",\"vpc_id\":\"v\",\"bytes_tx\":{},\"bytes_rx\":18446744073709551615,\"hour\":{hour}}}\n",
            u64::MAX - hour
        )
    };
    for first in (0..HOURS).step_by(90_000) {
        let body: String = (first..(first + 90_000).min(HOURS)).map(line).collect();
        let response = client.post("/flows", &[NDJSON], body.as_bytes()).unwrap();
        assert_eq!(
            response.status,
            200,
            "{}",
            String::from_utf8_lossy(&response.body)
        );
    }
    let url = format!("http://{}", daemon.address);
    let run = |arguments: &[&str]| {
        let mut command = Command::new("prlimit");
        // Limits the address space, which bounds memory well enough: threads take little of it here.
        command.args(["--as=300000000", "--"]);
        command.arg(Daemon::binary()).args(arguments);
        let output = command.args(["--url", &url]).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {errors}");
        output.stdout
    };
    let text = String::from_utf8(run(&["stats", "--json"])).unwrap();
    let stats: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(stats["hours"], HOURS);
    assert_eq!(stats["last_hour"], HOURS - 1);
    // Larger than a JSON number can be.
    let sum: u128 = (0..HOURS).map(|hour| u128::from(u64::MAX - hour)).sum();
    assert!(text.contains(&format!("\"bytes_tx\":{sum},")), "{text}");
    let top = String::from_utf8(run(&["top", "--once", "--format", "ndjson"])).unwrap();
    assert!(top.contains(&format!("\"hour\":{}", HOURS - 1)), "{top}");
    let rows = run(&["export"]);
    assert_eq!(
        rows.iter().filter(|byte| **byte == b'\n').count() as u64,
        HOURS
    );
    let some = String::from_utf8(run(&["export", "--from", "7", "--to", "9"])).unwrap();
    assert_eq!(some.lines().count(), 2);
    let memory_mib = daemon.memory_mib();
    println!("{memory_mib} MiB with {HOURS} hours");
}

/// The ledger is compared with the accepted flows after a flush, and responses have the result.
#[test]
fn the_hours_tell_whether_the_accounts_balance() {
    const DIFFERENCE: &str = "flowtally-ledger-difference";
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(dir.path(), &["--flush-interval", "1"]);
    let hours = |headers: &[(&str, &str)]| daemon.client.get("/hours", headers).unwrap();
    assert_eq!(hours(&[]).header(DIFFERENCE), None, "nothing was compared");
    daemon
        .client
        .accept(&[TestFlow::new(3, "a", "b", "c", 1, 1)]);
    crate::wait::until("a comparison", || {
        hours(&[]).header(DIFFERENCE) == Some("0")
    });
    // Also if the client has the hours already.
    let tag = hours(&[]).header("etag").unwrap().to_owned();
    let known = hours(&[("if-none-match", tag.as_str())]);
    assert_eq!((known.status, known.header(DIFFERENCE)), (304, Some("0")));
    daemon.stop();
}
