//! The API as clients see it: each response and each type of problem, by its body.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Daemon, JSON, NDJSON, Response, TestFlow, json_body, raw};
use crate::wait::{at_most, until, until_some};

struct Service {
    daemon: Daemon,
    _dir: tempfile::TempDir,
}

impl Service {
    fn start() -> Service {
        Service::start_with(&[])
    }

    fn start_with(arguments: &[&str]) -> Service {
        let dir = tempfile::tempdir().unwrap();
        Service {
            daemon: Daemon::start_with(dir.path(), arguments),
            _dir: dir,
        }
    }

    fn get(&self, path: &str) -> Response {
        self.daemon.client.get(path, &[]).unwrap()
    }

    fn post(&self, body: impl AsRef<[u8]>) -> Response {
        self.post_as(&[JSON], body)
    }

    fn post_as(&self, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Response {
        let client = &self.daemon.client;
        client.post("/flows", headers, body.as_ref()).unwrap()
    }

    fn is_empty(&self) {
        for hour in [0, 1, 2, 3] {
            assert_eq!(self.daemon.client.hour(hour), [], "something was counted");
        }
    }
}

/// Asserts a problem document of `status` whose detail has all `words`; returns it.
#[track_caller]
fn problem(response: &Response, status: u16, words: &[&str]) -> Value {
    let text = String::from_utf8_lossy(&response.body);
    assert_eq!(response.status, status, "{text}");
    assert_eq!(
        response.header("content-type"),
        Some("application/problem+json")
    );
    let problem = response.json();
    assert_eq!(problem["status"], status);
    assert!(
        problem["type"]
            .as_str()
            .unwrap()
            .starts_with("urn:flowtally:problem:")
    );
    assert!(!problem["title"].as_str().unwrap().is_empty());
    let detail = problem["detail"].as_str().unwrap();
    for word in words {
        assert!(detail.contains(word), "{word:?} is not in {detail:?}");
    }
    problem
}

const FLOW: &str = r#"{"src_app": "foo", "dest_app": "bar", "vpc_id": "vpc-0", "bytes_tx": 100, "bytes_rx": 300, "hour": 1}"#;

/// `FLOW` with the member `"field": …` replaced by `member`.
fn with(field: &str, member: &str) -> String {
    let flow: Value = serde_json::from_str(FLOW).unwrap();
    let members: Vec<String> = [
        "src_app", "dest_app", "vpc_id", "bytes_tx", "bytes_rx", "hour",
    ]
    .into_iter()
    .map(|name| match name == field {
        true => member.to_owned(),
        false => format!("{name:?}: {}", flow[name]),
    })
    .filter(|member| !member.is_empty())
    .collect();
    format!("{{{}}}", members.join(", "))
}

#[test]
fn sums_are_returned_in_order() {
    let service = Service::start();
    let flows = [
        TestFlow::new(1, "foo", "bar", "vpc-0", 100, 300),
        TestFlow::new(1, "foo", "bar", "vpc-0", 200, 600),
        TestFlow::new(1, "foo", "bar", "vpc-1", 1, 2),
        TestFlow::new(1, "baz", "qux", "vpc-0", 100, 500),
        TestFlow::new(2, "baz", "qux", "vpc-0", 100, 400),
    ];
    let response = service.post(json_body(&flows));
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert_eq!(response.json(), json!({"accepted": 5}));
    let response = service.get("/flows?hour=1");
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert_eq!(
        response.json(),
        json!([
            {"src_app": "baz", "dest_app": "qux", "vpc_id": "vpc-0", "bytes_tx": 100, "bytes_rx": 500, "hour": 1},
            {"src_app": "foo", "dest_app": "bar", "vpc_id": "vpc-0", "bytes_tx": 300, "bytes_rx": 900, "hour": 1},
            {"src_app": "foo", "dest_app": "bar", "vpc_id": "vpc-1", "bytes_tx": 1, "bytes_rx": 2, "hour": 1},
        ])
    );
    assert_eq!(service.get("/flows?hour=2").rows().len(), 1);
    assert_eq!(service.get("/flows?hour=3").json(), json!([]));
    assert_eq!(service.get("/flows?hour=4294967294").json(), json!([]));
}

#[test]
fn empty_responses_and_batches_are_valid() {
    let service = Service::start();
    let accept = |accept: &str| {
        let client = &service.daemon.client;
        client.get("/flows?hour=1", &[("accept", accept)]).unwrap()
    };
    assert_eq!(accept("application/json").json(), json!([]));
    assert_eq!(accept("application/x-ndjson").body, b"");
    let csv = accept("text/csv").body;
    assert_eq!(csv, b"src_app,dest_app,vpc_id,bytes_tx,bytes_rx,hour\n");
    for (headers, body) in [
        (JSON, "[]"),
        (JSON, " [ ] \n"),
        (NDJSON, "\n"),
        (NDJSON, ""),
    ] {
        assert_eq!(
            service.post_as(&[headers], body).json(),
            json!({"accepted": 0})
        );
    }
    service.is_empty();
}

#[test]
fn flows_in_any_valid_json_are_accepted() {
    let service = Service::start();
    let pretty = serde_json::to_string_pretty(&serde_json::from_str::<Value>(FLOW).unwrap());
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let bodies = [
        format!("[{FLOW}]"),
        format!("\r\n\t [ {FLOW} ] \n"),
        format!("[{}]", pretty.unwrap()),
        // Unknown fields are ignored, whatever their values, and other spellings are unknown.
        format!(
            "[{}]",
            with(
                "hour",
                r#""hour": 1, "tags": {"a": [1, 1e400, null]}, "Hour": "x""#
            )
        ),
        format!(
            "[{}]",
            with("hour", &format!("\"hour\": 1, \"x\": {}", deep))
        ),
        format!("[{}]", with("src_app", r#""src_app": "\u0066o\u006f""#)),
        format!("[{}]", with("hour", r#""\u0068our": 1"#)),
    ];
    for body in &bodies {
        assert_eq!(service.post(body).json(), json!({"accepted": 1}), "{body}");
    }
    for kind in [
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/json;x=y",
    ] {
        let response = service.post_as(&[("content-type", kind)], format!("[{FLOW}]"));
        assert_eq!(response.status, 200, "{kind}");
    }
    let lines = format!("{FLOW}\n\n  {FLOW}\r\n{FLOW}");
    assert_eq!(
        service.post_as(&[NDJSON], lines).json(),
        json!({"accepted": 3})
    );
    let rows = service.daemon.client.hour(1);
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].1.tx, 100 * 13);
}

#[test]
fn the_extremes_of_each_field_are_accepted() {
    let service = Service::start();
    let long = "x".repeat(1024);
    let flows = [
        TestFlow::new(0, "", "", "", 0, u64::MAX),
        TestFlow::new(0, &long, &"é".repeat(512), &"\0".repeat(1024), u64::MAX, 0),
        TestFlow::new(4_294_967_294, "a", "b", "c", 1, 1),
    ];
    assert_eq!(service.post(json_body(&flows)).status, 200);
    assert_eq!(service.daemon.client.hour(0).len(), 2);
    assert_eq!(service.daemon.client.hour(4_294_967_294).len(), 1);
    let names = [format!("\"{long}y\""), format!("\"{}\"", "é".repeat(513))];
    for (name, bytes) in names.iter().zip(["1025", "1026"]) {
        let body = format!("[{}]", with("dest_app", &format!("\"dest_app\": {name}")));
        let problem = problem(&service.post(body), 400, &["dest_app", bytes, "1024"]);
        assert_eq!(problem["field"], "dest_app");
    }
}

#[test]
fn an_invalid_flow_is_named_by_index_and_field_and_refuses_the_batch() {
    let service = Service::start();
    let fields = [
        "src_app", "dest_app", "vpc_id", "bytes_tx", "bytes_rx", "hour",
    ];
    for field in fields {
        let is_name = fields[..3].contains(&field);
        let mut wrong = vec![
            (String::new(), vec!["missing"]),
            (format!("\"{field}\": null"), vec!["null"]),
            (format!("\"{field}\": true"), vec!["true"]),
            (format!("\"{field}\": {{}}"), vec!["map"]),
            (format!("\"{field}\": [1]"), vec!["sequence"]),
        ];
        if is_name {
            wrong.push((format!("\"{field}\": 5"), vec!["integer `5`", "a string"]));
            wrong.push((
                format!("\"{field}\": \"a\", \"{field}\": \"a\""),
                vec!["twice"],
            ));
            wrong.push((format!("\"{field}\": \"\\ud800\""), vec!["hex escape"]));
            wrong.push((
                format!("\"{field}\": \"a\u{1}b\""),
                vec!["control character"],
            ));
        } else {
            let max = if field == "hour" {
                "4294967294"
            } else {
                "18446744073709551615"
            };
            for number in [
                "-1",
                "1.5",
                "1.0",
                "1e3",
                "-0",
                "18446744073709551616",
                "\"1\"",
            ] {
                wrong.push((
                    format!("\"{field}\": {number}"),
                    vec!["integer from 0 to", max],
                ));
            }
            if field == "hour" {
                wrong.push(("\"hour\": 4294967295".into(), vec!["4294967295", max]));
            }
            wrong.push((format!("\"{field}\": 1, \"{field}\": 1"), vec!["twice"]));
            wrong.push((format!("\"{field}\": 01"), vec!["number"]));
        }
        for (member, words) in wrong {
            let bad = with(field, &member);
            let words = [&[field, "flow 2"], words.as_slice()].concat();
            let response = service.post(format!("[{FLOW}, {FLOW}, {bad}, {FLOW}]"));
            let json = problem(&response, 400, &words);
            assert_eq!(json["index"], 2, "{bad}");
            assert_eq!(json["field"], field, "{bad}");
            let response = service.post_as(&[NDJSON], format!("{FLOW}\n\n{FLOW}\n{bad}\n{FLOW}"));
            let words = [words.as_slice(), &["line 4"]].concat();
            let json = problem(&response, 400, &words);
            assert_eq!((&json["index"], &json["field"]), (&json!(2), &json!(field)));
        }
    }
    service.is_empty();
}

#[test]
fn bodies_that_are_not_a_batch_are_refused() {
    let service = Service::start();
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(10_000), close.repeat(10_000));
    let nested = format!(
        "[{}]",
        with("hour", &format!("\"hour\": {}", deep("[", "]")))
    );
    let unknown_not_utf8 = [b"[{\"x\": \"\xff\"}]".as_slice()];
    for (body, index, words) in [
        (b"".as_slice(), None, vec!["ends too early"]),
        (b"{}", None, vec!["an object", "array of flows"]),
        (
            FLOW.as_bytes(),
            None,
            vec!["array of flows", "wrap it in [ ]"],
        ),
        (b"null", None, vec!["array of flows"]),
        (b"[", Some(0), vec!["ends too early"]),
        (b"[1]", Some(0), vec!["flow object"]),
        (b"[[]]", Some(0), vec!["flow object"]),
        (b"[null]", Some(0), vec!["flow object"]),
        (b"[{}]", Some(0), vec!["src_app", "missing"]),
        (
            format!("[{FLOW}").as_bytes(),
            Some(1),
            vec!["ends too early"],
        ),
        (
            format!("[{FLOW},]").as_bytes(),
            Some(1),
            vec!["trailing comma"],
        ),
        (
            format!("[{FLOW} {FLOW}]").as_bytes(),
            Some(1),
            vec!["expected `,` or `]`"],
        ),
        (
            format!("[{FLOW}]]").as_bytes(),
            None,
            vec!["trailing characters"],
        ),
        (
            format!("[{FLOW}][]").as_bytes(),
            None,
            vec!["trailing characters"],
        ),
        (
            b"[{\"src_app\": \"\xff\"}]",
            None,
            vec!["not UTF-8", "byte 14"],
        ),
        (unknown_not_utf8[0], None, vec!["not UTF-8"]),
        (deep("[", "]").as_bytes(), Some(0), vec!["flow object"]),
        (nested.as_bytes(), Some(0), vec!["hour", "sequence"]),
    ] {
        let response = service.post(body);
        let json = problem(&response, 400, &words);
        assert_eq!(json.get("index").and_then(Value::as_u64), index, "{json}");
    }
    for body in [
        format!("{FLOW}{FLOW}"),
        format!("[{FLOW}]"),
        FLOW.replace(", ", ",\n"),
    ] {
        problem(&service.post_as(&[NDJSON], body), 400, &["line 1"]);
    }
    service.is_empty();
}

#[test]
fn unsupported_media_types_and_encodings_are_refused() {
    let service = Service::start();
    let body = format!("[{FLOW}]");
    let form = ("content-type", "application/x-www-form-urlencoded");
    problem(
        &service.post_as(&[form], &body),
        415,
        &["curl -d", "-H 'Content-Type: application/json'"],
    );
    for kind in ["text/plain", "text/csv", "application/xml", ""] {
        let response = service.post_as(&[("content-type", kind)], &body);
        problem(
            &response,
            415,
            &["application/json", "application/x-ndjson"],
        );
    }
    let response = service.post_as(
        &[("content-type", "application/json; charset=utf-16")],
        &body,
    );
    problem(&response, 415, &["utf-16"]);
    for encoding in ["br", "deflate", "gzip, zstd"] {
        let response = service.post_as(&[JSON, ("content-encoding", encoding)], &body);
        problem(&response, 415, &[]);
        assert_eq!(response.header("accept-encoding"), Some("gzip, zstd"));
    }
    for encoding in ["gzip", "zstd"] {
        let response = service.post_as(&[JSON, ("content-encoding", encoding)], &body);
        problem(&response, 400, &["not valid", encoding]);
    }
    let cut = zstd::encode_all(body.as_bytes(), 1).unwrap();
    let response = service.post_as(&[JSON, ("content-encoding", "zstd")], &cut[..cut.len() - 3]);
    problem(&response, 400, &["not valid zstd"]);
    let client = &service.daemon.client;
    let response = client
        .get("/flows?hour=1", &[("accept", "text/html")])
        .unwrap();
    problem(&response, 406, &["application/json", "text/csv"]);
    let none = [("accept-encoding", "identity;q=0")];
    problem(&client.get("/flows?hour=1", &none).unwrap(), 406, &["gzip"]);
    service.is_empty();
}

#[test]
fn queries_are_parsed_strictly() {
    let service = Service::start();
    for (query, words) in [
        ("", vec!["hour", "from", "to"]),
        ("?", vec!["/flows?hour=1"]),
        ("?hour", vec!["hour"]),
        ("?hour=", vec!["hour"]),
        ("?hour=x", vec!["\"x\"", "4294967294"]),
        ("?hour=-1", vec!["-1"]),
        ("?hour=%2B1", vec!["+1"]),
        ("?hour=1.0", vec!["1.0"]),
        ("?hour=4294967295", vec!["4294967295"]),
        ("?hour=99999999999999999999", vec!["99999999999999999999"]),
        ("?hour=1&hour=1", vec!["twice"]),
        ("?hour=1&hours=2", vec!["hours"]),
        ("?Hour=1", vec!["Hour"]),
    ] {
        problem(&service.get(&format!("/flows{query}")), 400, &words);
    }
    assert_eq!(service.get("/flows?hour=0001").status, 200);
    assert_eq!(service.get("/flows?ho%75r=%31").status, 200);
    let client = &service.daemon.client;
    let response = client.post("/flows?dry_run=1", &[JSON], b"[]").unwrap();
    problem(&response, 400, &["dry_run"]);
}

#[test]
fn paths_and_methods_are_routed() {
    let service = Service::start();
    for path in [
        "/index.html",
        "/flow",
        "/flows/",
        "/flows/1",
        "//flows",
        "/FLOWS",
        "/backups/",
    ] {
        problem(&service.get(path), 404, &["/flows"]);
    }
    let address = service.daemon.address;
    for (method, path, allow) in [
        ("PUT", "/flows", "GET, HEAD, POST, DELETE, OPTIONS"),
        ("PATCH", "/flows", "GET, HEAD, POST, DELETE, OPTIONS"),
        ("DELETE", "/hours", "GET, HEAD, OPTIONS"),
        ("POST", "/", "GET, HEAD, OPTIONS"),
        ("GET", "/backups", "POST, OPTIONS"),
        ("GET", "/backups/1", "DELETE, OPTIONS"),
        ("POST", "/healthz", "GET, HEAD, OPTIONS"),
        ("PUT", "/readyz", "GET, HEAD, OPTIONS"),
    ] {
        let response = raw(
            address,
            format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes(),
        );
        assert!(response.starts_with("HTTP/1.1 405"), "{response}");
        assert!(
            response.contains(&format!("allow: {allow}\r\n")),
            "{response}"
        );
        assert!(response.contains("application/problem+json"), "{response}");
        assert!(response.contains(method), "{response}");
    }
    let response = raw(
        address,
        b"CONNECT flows:80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    );
    assert!(response.starts_with("HTTP/1.1 405"), "{response}");
    let request = "OPTIONS /flows HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let response = raw(address, request.as_bytes());
    assert!(response.starts_with("HTTP/1.1 204"), "{response}");
    assert!(
        response.contains("allow: GET, HEAD, POST, DELETE, OPTIONS"),
        "{response}"
    );
    let request = "HEAD /flows?hour=1 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let response = raw(address, request.as_bytes());
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    assert!(
        response.ends_with("\r\n\r\n"),
        "a HEAD has no body: {response}"
    );
    for (path, body) in [("/healthz", "ok\n"), ("/readyz", "ready\n")] {
        let response = service.get(path);
        assert_eq!(
            (response.status, response.body.as_slice()),
            (200, body.as_bytes())
        );
    }
}

#[test]
fn bodies_have_bounds() {
    let service = Service::start_with(&["--body-max", "1"]);
    let flow = format!("{FLOW},");
    let flows = (1 << 20) / flow.len() - 1;
    let fits = format!("[{}{FLOW}]", flow.repeat(flows - 1));
    assert_eq!(service.post(&fits).json(), json!({"accepted": flows}));
    let over = format!("[{}{FLOW}]", flow.repeat(flows + 5));
    problem(
        &service.post(&over),
        413,
        &["1048576 bytes", "several batches"],
    );
    // A decompression bomb.
    let bomb = zstd::encode_all(over.as_bytes(), 1).unwrap();
    assert!(bomb.len() < 10_000);
    let response = service.post_as(&[JSON, ("content-encoding", "zstd")], &bomb);
    problem(&response, 413, &["after decompression"]);
    let address = service.daemon.address;
    // With Content-Length, it is refused before it is sent; chunked, while it arrives.
    let head = "POST /flows HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
    let response = raw(
        address,
        format!("{head}content-length: 1048577\r\n\r\n").as_bytes(),
    );
    assert!(response.starts_with("HTTP/1.1 413"), "{response}");
    let chunk = format!("{:x}\r\n{over}\r\n", over.len());
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n{chunk}");
    let response = raw(address, chunked.as_bytes());
    assert!(response.starts_with("HTTP/1.1 413"), "{response}");
    // No body, and a valid chunked one.
    let response = raw(address, format!("{head}\r\n").as_bytes());
    assert!(response.starts_with("HTTP/1.1 411"), "{response}");
    let empty = "transfer-encoding: chunked\r\n\r\n3\r\n [ \r\n1\r\n]\r\n0\r\n\r\n";
    let response = raw(address, format!("{head}{empty}").as_bytes());
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
}

#[test]
fn truncated_bodies_count_nothing() {
    let service = Service::start();
    let address = service.daemon.address;
    let body = format!("[{FLOW}]");
    let head = |length: usize| {
        format!("POST /flows HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n")
    };
    // Truncated by a client that closes its side: a response or a closed connection, but no count.
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(head(body.len() + 50).as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut response = String::new();
    let _reset = stream.read_to_string(&mut response);
    assert!(!response.contains("200 OK"), "{response}");
    // A length that is too short: the body ends inside a flow.
    let response = raw(
        address,
        format!("{}{body}", head(body.len() - 5)).as_bytes(),
    );
    assert!(response.starts_with("HTTP/1.1 400"), "{response}");
    assert!(response.contains("ends too early"), "{response}");
    // A broken chunk.
    let chunked =
        "POST /flows HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n[]";
    let response = raw(address, chunked.as_bytes());
    assert!(!response.contains("200 OK"), "{response}");
    service.is_empty();
    assert_eq!(service.post(&body).status, 200);
}

#[test]
fn a_client_that_closes_its_side_gets_its_response() {
    use std::io::{Read, Write};
    let service = Service::start();
    let body = format!("[{FLOW}]");
    let length = body.len();
    let post = format!(
        "POST /flows HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let get = "GET /flows?hour=1 HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned();
    for (request, end) in [(post, "{\"accepted\":1}\n"), (get, "\"hour\":1}]\n")] {
        let mut stream = std::net::TcpStream::connect(service.daemon.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        assert!(response.ends_with(end), "{response}");
    }
}

#[test]
fn two_lengths_types_or_codings_are_refused() {
    let service = Service::start();
    let body = format!("[{FLOW}]");
    let send = |headers: &str| {
        let head = "POST /flows HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
        raw(
            service.daemon.address,
            format!("{head}{headers}\r\n\r\n{body}").as_bytes(),
        )
    };
    let length = format!("content-length: {}", body.len());
    let types = "content-type: application/json\r\ncontent-type: text/csv";
    assert!(send(&format!("{length}\r\n{types}")).starts_with("HTTP/1.1 415"));
    assert!(send("content-length: 2\r\ncontent-length: 3").starts_with("HTTP/1.1 400"));
    let response = send("transfer-encoding: gzip, chunked");
    assert!(response.starts_with("HTTP/1.1 4"), "{response}");
    service.is_empty();
}

#[test]
fn stalled_large_bodies_do_not_block_small_ones() {
    use std::io::Write;
    let service = Service::start();
    // Announced, barely begun: 40 times the memory for bodies.
    let stuck: Vec<_> = (0..160)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(service.daemon.address).unwrap();
            let head =
                "POST /flows HTTP/1.1\r\nhost: localhost\r\ncontent-length: 33554432\r\n\r\n[";
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    until("connections", || {
        let connections = service.daemon.client.metric("flowtally_http_connections");
        connections > stuck.len() as f64
    });
    let start = std::time::Instant::now();
    let flows = vec![TestFlow::new(1, "a", "b", "c", 1, 1); 10_000];
    service.daemon.client.accept(&flows);
    assert!(start.elapsed() < at_most(2));
    drop(stuck);
}

#[test]
fn a_huge_batch_is_one_batch() {
    let service = Service::start();
    let flows: Vec<_> = (0..200_000u32)
        .map(|i| {
            TestFlow::new(
                i % 24,
                &format!("src-{}", i % 501),
                "dest",
                &i.to_string(),
                1,
                2,
            )
        })
        .collect();
    let mut body = json_body(&flows);
    assert_eq!(service.post(&body).json(), json!({"accepted": 200_000}));
    let rows: usize = (0..24)
        .map(|hour| service.daemon.client.hour(hour).len())
        .sum();
    assert_eq!(rows, 200_000);
    // With one invalid flow at its end, nothing counts.
    let end = body.len() - 2;
    body.truncate(end);
    body.extend_from_slice(b", \"hour\": 1}]");
    let json = problem(&service.post(&body), 400, &["hour", "twice"]);
    assert_eq!(json["index"], 199_999);
    assert_eq!(service.daemon.client.hour(0)[0].1.tx, 1);
}

#[test]
fn a_service_that_is_not_ready_responds_with_503() {
    // A service is observably not ready while it replays a large journal: it listens before.
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path());
    let flows: Vec<_> = (0..200_000u32)
        .map(|i| TestFlow::new(1, &format!("src-{i}"), "dest", "vpc", 1, 2))
        .collect();
    for _ in 0..4 {
        daemon.client.accept(&flows);
    }
    // Several attempts: on a busy machine, the replay may end before the first request.
    let mut seen = 0;
    for _ in 0..10 {
        daemon.kill();
        daemon = Daemon::launch(dir.path(), &[]);
        let early = [
            daemon.client.get("/readyz", &[]).unwrap(),
            daemon.client.get("/flows?hour=1", &[]).unwrap(),
            daemon.client.post("/flows", &[JSON], b"[]").unwrap(),
        ];
        assert_eq!(daemon.client.get("/healthz", &[]).unwrap().status, 200);
        for response in early.iter().filter(|response| response.status != 200) {
            problem(response, 503, &["replayed"]);
            assert_eq!(response.header("retry-after"), Some("1"));
            seen += 1;
        }
        if seen > 0 {
            break;
        }
    }
    assert!(seen > 0, "it was always ready before the first request");
    let rows = until_some("a response", || {
        let response = daemon.client.get("/flows?hour=1", &[]).unwrap();
        (response.status == 200).then(|| response.rows())
    });
    assert_eq!(rows.len(), 200_000);
    assert!(rows.iter().all(|(_, c)| c.tx == 4));
    daemon.stop();
}
