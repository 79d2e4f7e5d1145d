//! Clients that violate HTTP, over raw sockets: they get a clear refusal or a closed connection, nothing of theirs
//! counts, and other clients are served as before.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Daemon, JSON, TestFlow, json_body, raw};
use crate::wait::until;

fn flow() -> Vec<TestFlow> {
    vec![TestFlow::new(1, "a", "b", "c", 1, 1)]
}

/// The statuses in a raw response, in order.
fn statuses(response: &str) -> Vec<u16> {
    let heads = response.match_indices("HTTP/1.");
    let status = |(at, _)| response[at + 9..at + 12].parse().unwrap();
    heads.map(status).collect()
}

fn post(headers: &str, body: &str) -> Vec<u8> {
    format!(
        "POST /flows HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{headers}\r\n{body}"
    )
    .into_bytes()
}

#[test]
fn malformed_requests_are_refused_and_count_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let body = String::from_utf8(json_body(&flow())).unwrap();
    let length = body.len();
    let chunked = format!("{length:x}\r\n{body}\r\n0\r\n\r\n");
    let smuggled = format!(
        "0\r\n\r\n{}",
        String::from_utf8(post(&format!("content-length: {length}\r\n"), &body)).unwrap()
    );
    let huge = "x".repeat(1 << 20);
    let many: String = (0..2000).map(|i| format!("x-{i}: y\r\n")).collect();
    let get = |rest: &str| format!("GET {rest}").into_bytes();
    let mut closed = Vec::new();
    for (name, request, allowed) in [
        (
            "both lengths",
            post(
                "content-length: 5\r\ntransfer-encoding: chunked\r\n",
                &smuggled,
            ),
            &[400][..],
        ),
        (
            "both lengths, turned",
            post(
                "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
                &smuggled,
            ),
            &[400],
        ),
        (
            "two lengths",
            post(
                &format!("content-length: {length}\r\ncontent-length: 1\r\n"),
                &body,
            ),
            &[400],
        ),
        (
            "a negative length",
            post("content-length: -1\r\n", &body),
            &[400],
        ),
        (
            "a length in words",
            post("content-length: ten\r\n", &body),
            &[400],
        ),
        (
            "a length with a sign",
            post(&format!("content-length: +{length}\r\n"), &body),
            &[400],
        ),
        (
            "a chunk size that is no number",
            post(
                "transfer-encoding: chunked\r\n",
                &format!("zz\r\n{body}\r\n0\r\n\r\n"),
            ),
            &[400],
        ),
        (
            "a chunk longer than its size",
            post(
                "transfer-encoding: chunked\r\n",
                &format!("1\r\n{body}\r\n0\r\n\r\n"),
            ),
            &[400],
        ),
        (
            "a chunk without its end",
            post(
                "transfer-encoding: chunked\r\n",
                &format!("{length:x}\r\n{body}XX0\r\n\r\n"),
            ),
            &[400],
        ),
        (
            "a chunk of 2^64",
            post(
                "transfer-encoding: chunked\r\n",
                &format!("10000000000000000\r\n{body}"),
            ),
            &[400],
        ),
        (
            "chunked twice",
            post("transfer-encoding: chunked, chunked\r\n", &chunked),
            &[400, 415],
        ),
        (
            "chunked, then something",
            post("transfer-encoding: chunked, gzip\r\n", &chunked),
            &[400, 415],
        ),
        (
            "an unknown coding",
            post("transfer-encoding: xchunked\r\n", &chunked),
            &[400, 415],
        ),
        (
            "a header without a name",
            post(": x\r\ncontent-length: 0\r\n", ""),
            &[400],
        ),
        (
            "a header with a space",
            post("content-length : 0\r\n", ""),
            &[400],
        ),
        (
            "a folded header",
            post("x: y\r\n z\r\ncontent-length: 0\r\n", ""),
            &[400, 411],
        ),
        (
            "a header of 1 MiB",
            post(&format!("x: {huge}\r\ncontent-length: 0\r\n"), ""),
            &[431],
        ),
        (
            "2,000 headers",
            post(&format!("{many}content-length: 0\r\n"), ""),
            &[431],
        ),
        (
            "a query of 100,000 characters",
            get(&format!(
                "/flows?hour={} HTTP/1.1\r\nhost: localhost\r\n\r\n",
                "1".repeat(100_000)
            )),
            &[400],
        ),
        (
            "a path of 1 MiB",
            get(&format!("/{huge} HTTP/1.1\r\nhost: localhost\r\n\r\n")),
            &[414, 431],
        ),
        ("no version", get("/flows?hour=1\r\n\r\n"), &[400]),
        (
            "an unknown version",
            get("/flows?hour=1 HTTP/3.0\r\nhost: localhost\r\n\r\n"),
            &[400, 505],
        ),
        (
            "HTTP/2 in the clear",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            &[400, 404, 405, 505],
        ),
        (
            "TLS where there is none",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
            &[400],
        ),
        (
            "an unknown method",
            b"BREW /flows HTTP/1.1\r\nhost: localhost\r\n\r\n".to_vec(),
            &[405],
        ),
        (
            "PUT",
            b"PUT /flows HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n".to_vec(),
            &[405],
        ),
        (
            "a NUL in the path",
            b"GET /fl\0ws HTTP/1.1\r\nhost: localhost\r\n\r\n".to_vec(),
            &[400],
        ),
        (
            "an unknown expectation",
            post(&format!("expect: cake\r\ncontent-length: {length}\r\n"), ""),
            &[417, 400],
        ),
    ] {
        let response = raw(daemon.address, &request);
        let found = statuses(&response);
        if found.is_empty() {
            closed.push(name);
        }
        // The connection may be closed without a response, but a smuggled request gets none.
        assert!(found.len() <= 1, "{name}: {found:?}");
        assert!(
            found.iter().all(|status| allowed.contains(status)),
            "{name}: {found:?}"
        );
        assert_eq!(
            daemon.client.get("/healthz", &[]).unwrap().status,
            200,
            "after {name}"
        );
    }
    assert!(daemon.client.hour(1).is_empty(), "something was counted");
    assert!(closed.len() <= 3, "closed without a word: {closed:?}");
    daemon.stop();
}

#[test]
fn rare_but_valid_requests_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let body = String::from_utf8(json_body(&flow())).unwrap();
    let length = body.len();
    let plain = post(&format!("content-length: {length}\r\n"), &body);
    let get = b"GET /flows?hour=1 HTTP/1.1\r\nhost: localhost\r\n\r\n".to_vec();
    let half = length / 2;
    let (front, back) = body.split_at(half);
    let parts = format!(
        "{half:X};a=b\r\n{front}\r\n{:x}\r\n{back}\r\n0\r\nx: y\r\n\r\n",
        length - half
    );
    for (name, request, expected) in [
        ("pipelining", [plain.clone(), get.clone(), plain.clone(), get].concat(), &[200, 200, 200, 200][..]),
        ("chunks with extensions and trailers", post("transfer-encoding: chunked\r\n", &parts), &[200]),
        ("100-continue", post(&format!("expect: 100-continue\r\ncontent-length: {length}\r\n"), &body), &[100, 200]),
        ("HTTP/1.0", format!("POST /flows HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes(), &[200]),
        ("HEAD", b"HEAD /flows?hour=1 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".to_vec(), &[200]),
        ("OPTIONS", b"OPTIONS /flows HTTP/1.1\r\nhost: localhost\r\n\r\n".to_vec(), &[204]),
        ("a full URL", b"GET http://localhost/flows?hour=1 HTTP/1.1\r\nhost: localhost\r\n\r\n".to_vec(), &[200]),
    ] {
        let response = raw(daemon.address, &request);
        assert_eq!(statuses(&response), expected, "{name}: {response}");
    }
    // Two pipelined, one in chunks, one after an expectation, one by HTTP/1.0.
    assert_eq!(daemon.client.hour(1)[0].1.tx, 5);
    daemon.stop();
}

/// A thousand senders send a byte per second, in heads or bodies, next to a fast one.
#[test]
fn a_thousand_slow_senders_do_not_slow_a_fast_one() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(dir.path(), &["--memory-max", "128"]);
    let stop = Arc::new(AtomicBool::new(false));
    let mut slow: Vec<TcpStream> = (0..1000)
        .map(|_| TcpStream::connect(daemon.address).unwrap())
        .collect();
    let dripping = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let head = post("content-length: 1000000\r\n", "");
            for (i, stream) in slow.iter_mut().enumerate() {
                // Half of them are already sending their bodies.
                let begun = if i % 2 == 0 { &head[..] } else { &head[..20] };
                stream.write_all(begun).unwrap();
            }
            while !stop.load(Ordering::Relaxed) {
                for stream in &mut slow {
                    let _refused = stream.write_all(b" ");
                }
                // One byte for each.
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    });
    let until = Instant::now() + Duration::from_secs(5);
    let (mut posts, mut slowest) = (0, Duration::ZERO);
    while Instant::now() < until {
        let begin = Instant::now();
        daemon.client.accept(&flow());
        posts += 1;
        assert_eq!(daemon.client.hour(1)[0].1.tx, posts);
        slowest = slowest.max(begin.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    dripping.join().unwrap();
    println!("{posts} POSTs and GETs beside 1,000 slow senders, the slowest pair took {slowest:?}");
    assert!(
        posts > 50 && slowest < Duration::from_secs(2),
        "{posts}, {slowest:?}"
    );
    assert!(daemon.memory_mib() < 128);
    daemon.stop();
}

/// Open files for a service with 64 connections: those of its own, and the connections.
const FILES_FOR_64: usize = 640 + 64;

/// Sends a request over a new connection, and waits for a slot.
fn is_alive(daemon: &Daemon) -> bool {
    let mut stream = TcpStream::connect(daemon.address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    statuses(&response) == [200]
}

/// Connections take all slots with unfinished heads, or without sending anything.
#[test]
fn unfinished_heads_are_evicted_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::launch_with_files(dir.path(), FILES_FOR_64);
    let mut streams: Vec<TcpStream> = (0..70)
        .map(|_| TcpStream::connect(daemon.address).unwrap())
        .collect();
    for (i, stream) in streams.iter_mut().enumerate() {
        if i % 2 == 0 {
            stream
                .write_all(b"GET /flows?hour=1 HTTP/1.1\r\nx: ")
                .unwrap();
        }
    }
    let begin = Instant::now();
    for _ in 0..20 {
        assert!(is_alive(&daemon));
    }
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    // Connections with a request in progress keep their slots as long as their bodies arrive.
    let mut posting: Vec<TcpStream> = (0..63)
        .map(|_| TcpStream::connect(daemon.address).unwrap())
        .collect();
    let body = json_body(&flow());
    let head = post(
        &format!("content-length: {}\r\nconnection: close\r\n", body.len()),
        "",
    );
    for stream in &mut posting {
        stream.write_all(&head).unwrap();
    }
    for _ in 0..5 {
        assert!(is_alive(&daemon));
    }
    let mut taken = 0;
    for mut stream in posting {
        let _refused = stream.write_all(&body);
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        match statuses(&response)[..] {
            [200] => taken += 1,
            [503] => assert!(response.contains("too slowly"), "{response}"),
            _ => panic!("{response:?}"),
        }
    }
    println!("{taken} of 63 slow senders kept their slots");
    let rows = daemon.client.hour(1);
    assert_eq!(rows.first().map_or(0, |(_, sum)| sum.tx), taken);
    daemon.stop();
}

/// Memory for large bodies is scarce; stalled bodies do not keep it from one that arrives.
#[test]
fn stalled_large_bodies_are_evicted_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let stalled: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut stream = TcpStream::connect(daemon.address).unwrap();
            stream
                .write_all(&post("content-length: 9000000\r\n", "["))
                .unwrap();
            stream.write_all(&vec![b' '; 5 << 20]).unwrap();
            stream
        })
        .collect();
    // The received part of a stalled body is in memory.
    until("the stalled bodies to arrive", || {
        daemon.client.metric("flowtally_body_bytes") >= (4 * (5 << 20)) as f64
    });
    let mut body = json_body(&flow());
    body.extend(vec![b' '; 9 << 20]);
    let begin = Instant::now();
    let accepted = || {
        let response = daemon.client.post("/flows", &[JSON], &body).unwrap();
        assert!(matches!(response.status, 200 | 503), "{}", response.status);
        response.status == 200
    };
    until("the stalled bodies to make room", accepted);
    println!("a large body beside four that stall: {:?}", begin.elapsed());
    // The evicted requests get the reason.
    let told = stalled.into_iter().filter(|mut stream| {
        stream
            .set_read_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        let mut response = [0; 4096];
        let bytes = stream.read(&mut response).unwrap_or(0);
        let response = String::from_utf8_lossy(&response[..bytes]);
        response.contains(" 503 ") && response.contains("too slowly")
    });
    assert!(told.count() > 0);
    daemon.stop();
}

/// A client that is still sending when it is refused gets the reason.
#[test]
fn a_large_body_to_a_wrong_path_is_drained_before_the_response() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let body = vec![b' '; 5 << 20];
    for (path, status) in [("/nowhere", 404), ("/healthz", 405), ("/flows?x=1", 400)] {
        let response = daemon.client.post(path, &[JSON], &body).unwrap();
        assert_eq!(response.status, status, "{path}");
    }
    daemon.stop();
}
