//! Edge cases of HTTP: truncated responses, caches, long heads, nearly valid bodies.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::daemon::signal;
use crate::support::{Daemon, JSON, NDJSON, TestFlow, json_body, ndjson_body, raw};
use crate::wait::{DEADLINE, until};

/// More bytes than all buffers between the service and its client.
const ROWS: usize = 200_000;

fn large(daemon: &Daemon) {
    for part in 0..4 {
        let flows: Vec<_> = (0..ROWS / 4)
            .map(|n| TestFlow::new(1, &format!("source-{part}-{n:0>80}"), "d", "v", 1, 1))
            .collect();
        daemon.client.accept(&flows);
    }
}

fn curl(address: SocketAddr, output: &Path, arguments: &[&str]) -> Child {
    Command::new("curl")
        .args(["-s", "--http1.0", "-o"])
        .arg(output)
        .args(arguments)
        .arg(format!("http://{address}/flows?hour=1"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// In HTTP/1.0, only the end of the connection marks the end of a response.
#[test]
fn a_truncated_http_1_0_response_is_detected() {
    let dir = tempfile::tempdir().unwrap();
    let stop: [&dyn Fn(&mut Daemon); 2] = [&|daemon| daemon.kill(), &|daemon| {
        daemon.signal("TERM");
        // Only responses that wait for their clients were aborted.
        assert!(daemon.wait().success());
    }];
    let (db, output) = (dir.path().join("db"), dir.path().join("output"));
    let start = || Daemon::start_with(&db, &["--shutdown-timeout", "5"]);
    let mut daemon = start();
    large(&daemon);
    // A complete response ends properly.
    let mut all = curl(daemon.address, &output, &[]);
    assert!(all.wait().unwrap().success());
    let whole = raw(daemon.address, b"GET /flows?hour=1 HTTP/1.0\r\n\r\n");
    assert!(whole.ends_with("]\n") && whole.matches("source-").count() == ROWS);
    for stop in stop {
        std::fs::remove_file(&output).unwrap();
        let mut slow = curl(daemon.address, &output, &["--limit-rate", "200k"]);
        let mut client = TcpStream::connect(daemon.address).unwrap();
        client
            .write_all(b"GET /flows?hour=1 HTTP/1.0\r\n\r\n")
            .unwrap();
        client.read_exact(&mut [0; 1000]).unwrap();
        until("curl has the beginning", || {
            output.metadata().is_ok_and(|about| about.len() > 0)
        });
        assert!(
            slow.try_wait().unwrap().is_none(),
            "it is too fast for this"
        );
        // Neither client reads while the service stops.
        signal(&slow, "STOP");
        stop(&mut daemon);
        signal(&slow, "CONT");
        let end = client.read_to_end(&mut Vec::new());
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(
            slow.wait().unwrap().code(),
            Some(56),
            "curl did not detect the truncation"
        );
        daemon = start();
    }
    daemon.stop();
}

#[test]
fn no_response_is_cached_and_each_ends_with_a_newline() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let client = &daemon.client;
    client.accept(&[TestFlow::new(1, "a", "b", "c", 1, 1)]);
    let posted = |path: &str, headers: &[(&str, &str)]| client.post(path, headers, b"[]").unwrap();
    let got = |path: &str| client.get(path, &[]).unwrap();
    for (name, response) in [
        ("rows", got("/flows?hour=1")),
        ("no rows", got("/flows?hour=2")),
        (
            "rows as CSV",
            client
                .get("/flows?hour=1", &[("accept", "text/csv")])
                .unwrap(),
        ),
        ("hours", got("/hours")),
        ("metrics", got("/metrics")),
        ("readiness", got("/readyz")),
        ("health", got("/healthz")),
        ("the API", got("/openapi.json")),
        ("a batch", posted("/flows", &[JSON])),
        ("a bad batch", client.post("/flows", &[JSON], b"{").unwrap()),
        (
            "no such media type",
            posted("/flows", &[("content-type", "x/y")]),
        ),
        ("a backup", posted("/backups", &[])),
        ("no such backup", client.delete("/backups/none").unwrap()),
        ("no such path", got("/nowhere")),
        ("partitions", got("/partitions/rows?p=0")),
        ("a bad query", got("/flows?hour=x")),
        ("no such method", client.delete("/hours").unwrap()),
        ("a deleted hour", client.delete("/flows?hour=1").unwrap()),
        ("no such hour", client.delete("/flows?hour=1").unwrap()),
    ] {
        assert_eq!(response.header("cache-control"), Some("no-store"), "{name}");
        assert!(response.body.ends_with(b"\n"), "{name}: {response:?}");
        assert!(!response.body.ends_with(b"\n\n"), "{name}: {response:?}");
    }
    // Immutable responses may be cached.
    for page in ["/", "/docs"] {
        assert_eq!(got(page).header("cache-control"), Some("no-cache"));
    }
    daemon.stop();
}

/// As documented in OpenAPI: 64 of each kind, of 1,024 bytes, each of which takes three in the target.
#[test]
fn the_documented_number_and_length_of_names_can_be_queried() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let name = |n: usize| format!("{}{n:0>4}", "é".repeat(510));
    let flows: Vec<_> = (0..70)
        .map(|n| TestFlow::new(1, &name(n), &name(n), &name(n), 1, 1))
        .collect();
    daemon.client.accept(&flows);
    let of = |field: &str, names: usize| {
        let value = |n| format!("&{field}={}{n:0>4}", "%C3%A9".repeat(510));
        (0..names).map(value).collect::<String>()
    };
    let ask = |query: &str, part: usize| {
        let mut stream = TcpStream::connect(daemon.address).unwrap();
        let request = format!(
            "GET /flows?hour=1{query} HTTP/1.1\r\nhost: localhost\r\n\
                               connection: close\r\n\r\n"
        );
        for part in request.as_bytes().chunks(part) {
            stream.write_all(part).unwrap();
        }
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    };
    let all: String = ["src_app", "dest_app", "vpc_id"]
        .map(|f| of(f, 64))
        .concat();
    for part in [usize::MAX, 5000] {
        let response = ask(&of("src_app", 64), part);
        assert_eq!(response.matches("\"src_app\"").count(), 64);
        let response = ask(&all, part);
        assert_eq!(response.matches("\"src_app\"").count(), 64);
    }
    assert!(ask(&of("src_app", 65), 5000).contains("there are 65 values of src_app"));
    let response = ask(&all.repeat(2), 5000);
    assert!(
        response.starts_with("HTTP/1.1 414 ") && response.contains("target-too-long"),
        "{response}"
    );
    // A second request after a long one, on the same connection.
    let mut stream = TcpStream::connect(daemon.address).unwrap();
    let two = format!(
        "GET /flows?hour=1{all} HTTP/1.1\r\nhost: localhost\r\n\r\n\
         GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(two.as_bytes()).unwrap();
    let mut responses = String::new();
    stream.read_to_string(&mut responses).unwrap();
    assert_eq!(responses.matches("HTTP/1.1 200 OK").count(), 2);
    assert_eq!(responses.matches("\"src_app\"").count(), 64);
    // Its memory is released.
    for _ in 0..20 {
        assert!(ask(&all, usize::MAX).starts_with("HTTP/1.1 200 "));
    }
    daemon.stop();
}

/// The memory of an arriving head is bounded, whether the head ends or not.
#[test]
fn long_targets_that_do_not_end_take_no_memory_from_others() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let before = daemon.memory_mib();
    let long = format!("GET /flows?hour=1&search={}", "x".repeat(600 << 10));
    let heads: Vec<_> = (0..60)
        .map(|_| {
            let mut stream = TcpStream::connect(daemon.address).unwrap();
            stream.write_all(long.as_bytes()).unwrap();
            stream
        })
        .collect();
    let end = b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let end_of = |mut stream: TcpStream| {
        stream.write_all(end).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    };
    until("connections", || {
        daemon.client.metric("flowtally_http_connections") > heads.len() as f64
    });
    let grown = daemon.memory_mib().saturating_sub(before);
    assert!(grown < 20, "{grown} MiB for 35 MiB of heads");
    let responses: Vec<_> = heads.into_iter().map(end_of).collect();
    let answered = |status: &str| responses.iter().filter(|a| a.contains(status)).count();
    // The first ones get responses, and the others a 503.
    assert!(
        (1..=4).contains(&answered("HTTP/1.1 200 ")),
        "{responses:?}"
    );
    assert_eq!(answered("HTTP/1.1 200 ") + answered("HTTP/1.1 503 "), 60);
    // All memory is released.
    let mut stream = TcpStream::connect(daemon.address).unwrap();
    stream.write_all(long.as_bytes()).unwrap();
    assert!(end_of(stream).starts_with("HTTP/1.1 200 "));
    daemon.stop();
}

#[test]
fn a_refused_head_gets_a_problem_document() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let long = "x".repeat(200_000);
    let many = "x: y\r\n".repeat(200);
    for (head, status, kind) in [
        (
            format!("host: localhost\r\nx: {long}\r\n"),
            431,
            "head-too-large",
        ),
        (format!("host: localhost\r\n{many}"), 431, "head-too-large"),
        ("host: localhost\r\nx y: z\r\n".to_owned(), 400, "bad-head"),
    ] {
        let response = raw(
            daemon.address,
            format!("GET /hours HTTP/1.1\r\n{head}\r\n").as_bytes(),
        );
        assert!(
            response.starts_with(&format!("HTTP/1.1 {status} ")),
            "{response}"
        );
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains("content-type: application/problem+json"),
            "{head}"
        );
        let problem: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(problem["type"], format!("urn:flowtally:problem:{kind}"));
        assert_eq!(problem["status"], status);
    }
    daemon.stop();
}

#[test]
fn an_idle_connection_outlives_the_minute_of_load_balancers() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let mut stream = TcpStream::connect(daemon.address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    for pause in [0, 64] {
        // A load balancer keeps an idle connection for 60 seconds, and uses it until then.
        std::thread::sleep(Duration::from_secs(pause));
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            .unwrap();
        let mut response = [0; 15];
        stream.read_exact(&mut response).unwrap();
        assert_eq!(&response, b"HTTP/1.1 200 OK");
        let _rest_of_the_answer = stream.read(&mut [0; 4096]).unwrap();
    }
    daemon.stop();
}

#[test]
fn nearly_valid_bodies_count_or_get_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let client = &daemon.client;
    let flows: Vec<_> = (0..2)
        .map(|n| TestFlow::new(n, "a", "b", "c", 1, 1))
        .collect();
    let (array, lines) = (json_body(&flows), ndjson_body(&flows));
    let one = flows[0].json().to_string();
    let marked = |body: &[u8]| [&b"\xef\xbb\xbf"[..], body].concat();
    let zstd = |body: &[u8]| zstd::encode_all(body, 1).unwrap();
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
    let encoding = ("content-encoding", "zstd");
    for (name, headers, body, accepted) in [
        ("a byte order mark", &[JSON][..], marked(&array), 2),
        ("the same before lines", &[NDJSON], marked(&lines), 2),
        (
            "one before each line",
            &[NDJSON],
            [marked(&lines), marked(&lines)].concat(),
            4,
        ),
        ("lines that are called JSON", &[JSON], lines.clone(), 2),
        ("the same with a mark", &[JSON], marked(&lines), 2),
        (
            "the same with more fields",
            &[JSON],
            (one.replace('{', "{\"date\":1.5,") + "\n").into_bytes(),
            1,
        ),
        (
            "utf8",
            &[("content-type", "application/json; charset=utf8")],
            array.clone(),
            2,
        ),
        (
            "a skippable frame first",
            &[JSON, encoding],
            [&skippable[..], &zstd(&array)].concat(),
            2,
        ),
        (
            "skippable frames everywhere",
            &[NDJSON, encoding],
            [
                &skippable[..],
                &skippable,
                &zstd(&lines),
                &skippable,
                &zstd(&lines),
                &skippable,
            ]
            .concat(),
            4,
        ),
    ] {
        let response = client.post("/flows", headers, &body).unwrap();
        let expected = format!("{{\"accepted\":{accepted}}}\n");
        assert_eq!(String::from_utf8_lossy(&response.body), expected, "{name}");
    }
    let pretty = serde_json::to_string_pretty(&flows[0].json()).unwrap();
    let renamed = |from: &str, to: &str| one.replace(&format!("\"{from}\""), &format!("\"{to}\""));
    let utf16: Vec<u8> = ("\u{feff}[]".encode_utf16().flat_map(u16::to_le_bytes)).collect();
    for (body, hint) in [
        (
            format!("[{}]", renamed("dest_app", "dst_app")).into_bytes(),
            "\"dst_app\": did you mean dest_app?",
        ),
        (
            (renamed("bytes_tx", "tx_bytes") + "\n").into_bytes(),
            "\"tx_bytes\": did you mean bytes_tx?",
        ),
        (
            format!("[{one},{}]", renamed("hour", "Hour")).into_bytes(),
            "\"Hour\": did you mean hour?",
        ),
        (
            format!("{one}\n{}", renamed("vpc_id", "vpc")).into_bytes(),
            "\"vpc\": did you mean vpc_id?",
        ),
        (pretty.clone().into_bytes(), "wrap it in [ ]"),
        (format!("{pretty}\n{pretty}").into_bytes(), "commas between"),
        (one.clone().into_bytes(), "wrap it in [ ]"),
        (format!("{one}{one}").into_bytes(), "commas between"),
        (
            format!("{one}\n{one}{one}").into_bytes(),
            "each line must be one flow",
        ),
        (
            format!("[{one}][{one}]").into_bytes(),
            "the body must be one array",
        ),
        (
            format!("{{\"flows\":[{one}]}}").into_bytes(),
            "its field \"flows\"",
        ),
        (utf16, "iconv -f UTF-16"),
    ] {
        let response = client.post("/flows", &[JSON], &body).unwrap();
        let text = String::from_utf8_lossy(&body).into_owned();
        assert_eq!(response.status, 400, "{text}");
        let detail = response.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(hint), "{text}: {detail}");
    }
    // An unrelated field is not suggested for a missing one.
    let response = client
        .post("/flows", &[JSON], b"[{\"src_app\":\"a\",\"bytes_rx\":1}]")
        .unwrap();
    assert!(
        !response.json()["detail"]
            .as_str()
            .unwrap()
            .contains("did you mean")
    );
    for accept in ["", "*", "*/*", "text/html, *; q=.2, */*; q=.2"] {
        let response = client.get("/flows?hour=9", &[("accept", accept)]).unwrap();
        assert_eq!(
            (response.status, &response.body[..]),
            (200, &b"[]\n"[..]),
            "{accept:?}"
        );
    }
    for path in ["/flows/", "/hours/", "/flows/?hour=1", "/metrics//"] {
        let detail = client.get(path, &[]).unwrap().json()["detail"].to_string();
        assert!(detail.contains("without the slash at its end"), "{detail}");
    }
    daemon.stop();
}
