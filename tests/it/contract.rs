//! The API as clients see it: each response and each type of problem, by its body.

use serde_json::{Value, json};

use crate::support::{Daemon, JSON, NDJSON, Response, TestFlow, json_body};

pub(crate) struct Service {
    pub(crate) daemon: Daemon,
    pub(crate) _dir: tempfile::TempDir,
}

impl Service {
    pub(crate) fn start() -> Service {
        Service::start_with(&[])
    }

    pub(crate) fn start_with(arguments: &[&str]) -> Service {
        let dir = tempfile::tempdir().unwrap();
        Service {
            daemon: Daemon::start_with(dir.path(), arguments),
            _dir: dir,
        }
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        self.daemon.client.get(path, &[]).unwrap()
    }

    pub(crate) fn post(&self, body: impl AsRef<[u8]>) -> Response {
        self.post_as(&[JSON], body)
    }

    pub(crate) fn post_as(&self, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Response {
        let client = &self.daemon.client;
        client.post("/flows", headers, body.as_ref()).unwrap()
    }

    pub(crate) fn is_empty(&self) {
        for hour in [0, 1, 2, 3] {
            assert_eq!(self.daemon.client.hour(hour), [], "something was counted");
        }
    }
}

/// Asserts a problem document of `status` whose detail has all `words`; returns it.
#[track_caller]
pub(crate) fn problem(response: &Response, status: u16, words: &[&str]) -> Value {
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

pub(crate) const FLOW: &str = r#"{"src_app": "foo", "dest_app": "bar", "vpc_id": "vpc-0", "bytes_tx": 100, "bytes_rx": 300, "hour": 1}"#;

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
