//! The API over HTTP: routes, sizes and forms of bodies, connections, readiness.

use serde_json::json;

use crate::contract::{FLOW, Service, problem};
use crate::support::{Daemon, JSON, TestFlow, json_body, raw};
use crate::wait::{DEADLINE, at_most, until, until_some};

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
        ("PUT", "/v1/metrics", "POST, OPTIONS"),
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
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
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
