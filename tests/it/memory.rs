//! `--memory-max` holds under combined load: bodies with many keys and many hours, queries that sort and group, all
//! hours, clients that do not read, and connections without a request.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Client, Daemon, NDJSON};
use crate::wait::{DEADLINE, until, until_some};

/// Additional memory of a debug build: its code is larger.
const DEBUG_MIB: u64 = if cfg!(debug_assertions) { 24 } else { 0 };

fn line(names: u32, hour: u32) -> String {
    let (src, dest) = (names % 1999, names % 2003);
    format!(
        "{{\"src_app\":\"service-{src}\",\"dest_app\":\"service-{dest}\",\"vpc_id\":\"vpc-{}\",\
         \"bytes_tx\":{names},\"bytes_rx\":2,\"hour\":{hour}}}\n",
        names % 7
    )
}

fn of_one_hour(hour: u32) -> String {
    format!(
        "{{\"src_app\":\"\",\"dest_app\":\"\",\"vpc_id\":\"\",\"bytes_tx\":0,\"bytes_rx\":0,\"hour\":{hour}}}\n"
    )
}

/// A body of about this many bytes.
fn body(bytes: usize, line: impl Fn(u32) -> String) -> Vec<u8> {
    let mut body = String::new();
    let mut n = 0;
    while body.len() + 200 < bytes {
        body.push_str(&line(n));
        n += 1;
    }
    body.into_bytes()
}

/// The default of `--body-max`.
fn body_bytes_max(memory_mib: usize) -> usize {
    (memory_mib << 20) / 16
}

/// Number of responses with status 200, and of others.
#[derive(Default)]
struct Counts {
    ok: AtomicU64,
    other: AtomicU64,
}

impl Counts {
    fn note(&self, status: Option<u16>) {
        let counter = if status == Some(200) {
            &self.ok
        } else {
            &self.other
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn both(&self) -> (u64, u64) {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (of(&self.ok), of(&self.other))
    }
}

/// Sends a request, and never reads the response.
fn unread(daemon: &Daemon, path: &str, encoding: &str) -> TcpStream {
    let mut stream = TcpStream::connect(daemon.address).unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: {encoding}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

fn holds(memory_mib: usize) {
    const TIME: Duration = Duration::from_secs(8);
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(dir.path(), &["--memory-max", &memory_mib.to_string()]);
    // The maximum size, but limited so that the test does not take too long.
    let large = body_bytes_max(memory_mib).min(16 << 20);
    let keys: Vec<_> = (0..8)
        .map(|i| body(500 << 10, |n| line(n * 8 + i, n % 24)))
        .collect();
    let large_of_keys = body(large, |n| line(n.wrapping_mul(2_654_435_761), n % 24));
    let of_hours: Vec<_> = (0..2)
        .map(|i| body(large, |n| of_one_hour(n + i * 300_000)))
        .collect();
    let (posts, queries) = (Counts::default(), Counts::default());
    let end = Instant::now() + TIME;
    let post = |bodies: &[&Vec<u8>]| {
        let client = Client::new(daemon.address);
        for body in bodies.iter().cycle() {
            if Instant::now() > end {
                break;
            }
            let response = client.post("/flows", &[NDJSON], body);
            posts.note(response.ok().map(|response| response.status));
        }
    };
    let ask = |paths: &[&str], encoding: &str| {
        let client = Client::new(daemon.address);
        for path in paths.iter().cycle() {
            if Instant::now() > end {
                break;
            }
            let response = client.get(path, &[("accept-encoding", encoding)]);
            queries.note(response.ok().map(|response| response.status));
        }
    };
    let (post, ask) = (&post, &ask);
    std::thread::scope(|scope| {
        for of in [0, 3, 5] {
            let bodies: Vec<_> = keys[of..].iter().chain(&keys[..of]).collect();
            scope.spawn(move || post(&bodies));
        }
        for bodies in [vec![&large_of_keys], of_hours.iter().collect()] {
            scope.spawn(move || post(&bodies));
        }
        for encoding in ["zstd", "gzip", "identity"] {
            scope.spawn(move || {
                ask(
                    &[
                        "/flows?from=0&sort=bytes&limit=50000",
                        "/flows?from=0&group_by=vpc_id,dest_app&sort=bytes_tx",
                        "/flows?from=0&to=24&search=1&sort=-bytes&limit=20000",
                        "/metrics",
                    ],
                    encoding,
                )
            });
            scope.spawn(move || ask(&["/hours", "/hours?from=1000", "/flows?hour=5"], encoding));
        }
        let mut unread_ones = Vec::new();
        while Instant::now() < end {
            if unread_ones.len() < 60 {
                for (path, encoding) in [
                    ("/flows?from=0", "zstd"),
                    ("/flows?from=0", "gzip"),
                    ("/hours", "identity"),
                ] {
                    unread_ones.push(unread(&daemon, path, encoding));
                }
                let idle = (0..20).map(|_| TcpStream::connect(daemon.address).unwrap());
                unread_ones.extend(idle);
            }
            // Sent one at a time.
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let most = daemon.memory_mib_max();
    let (posts, queries) = (posts.both(), queries.both());
    println!("{most} of {memory_mib} MiB; posts {posts:?}, queries {queries:?}");
    assert!(posts.0 >= 3 && queries.0 > 5, "{posts:?} {queries:?}");
    let bound = memory_mib as u64 + DEBUG_MIB;
    assert!(most <= bound, "{most} MiB of {memory_mib}");
    // The service still works.
    assert_eq!(daemon.client.get("/readyz", &[]).unwrap().status, 200);
}

#[test]
fn memory_max_of_128_mib_holds() {
    holds(128);
}

#[test]
fn memory_max_of_512_mib_holds() {
    holds(512);
}

#[test]
fn memory_max_of_2048_mib_holds() {
    holds(2048);
}

/// Clients look up the maximum number of keys and do not read the responses: one long key repeated, or keys that are
/// all known.
#[test]
fn unread_receipts_take_bounded_memory() {
    const CLIENTS: usize = 100;
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(dir.path(), &["--memory-max", "128"]);
    let keys: Vec<_> = (0..20_000).map(|i| format!("import_{i:043}")).collect();
    let note = "n".repeat(96);
    for keys in keys.chunks(64) {
        let notes: Vec<_> = keys.iter().map(|key| format!("{key}={note}")).collect();
        let (own, notes) = (format!("import_x{}", keys[0]), notes.join(","));
        let headers = [NDJSON, ("idempotency-key", &own), ("receipt-notes", &notes)];
        let response = daemon
            .client
            .post("/flows", &headers, line(1, 1).as_bytes());
        assert_eq!(response.unwrap().status, 200);
    }
    let asked = |keys: &[&str]| serde_json::json!({ "keys": keys }).to_string();
    // A socket alone buffers four MiB.
    let long = format!("import_{}", "x".repeat(248));
    let notes = format!("={note}");
    let headers = [
        NDJSON,
        ("idempotency-key", &long),
        ("receipt-notes", &notes),
    ];
    let response = daemon
        .client
        .post("/flows", &headers, line(1, 1).as_bytes());
    assert_eq!(response.unwrap().status, 200);
    let repeated = asked(&vec![&long[..]; keys.len()]);
    let all = asked(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    let mut unread_ones = Vec::new();
    let mut statuses = BTreeMap::new();
    for body in [repeated, all] {
        for _ in 0..CLIENTS {
            let mut stream = TcpStream::connect(daemon.address).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            let length = body.len();
            let head = format!(
                "POST /receipts HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                 Content-Length: {length}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).unwrap();
            // A refused body is not read to its end.
            let _sent_or_refused = stream.write_all(body.as_bytes());
            // Waits until the response has begun, since the test is not about concurrent bodies.
            let mut status = [0; 12];
            let begun = stream.read_exact(&mut status).is_ok();
            *statuses.entry((begun, status[9..].to_vec())).or_insert(0) += 1;
            unread_ones.push((stream, status.ends_with(b" 200")));
        }
    }
    // The service has filled the sockets, and waits with the rest.
    for (stream, _) in unread_ones.iter().filter(|(_, is_long)| *is_long) {
        until("a socket is full", || {
            rustix::io::ioctl_fionread(stream).unwrap() >= 32 << 10
        });
    }
    let most = daemon.memory_mib_max();
    println!("{most} MiB, {statuses:?}");
    // Three quarters of the eleven concurrent responses may be long ones.
    assert!(statuses[&(true, b"200".to_vec())] >= 8, "{statuses:?}");
    assert!(most <= 128 + DEBUG_MIB, "{most} MiB of 128");
    drop(unread_ones);
    // The service sends complete responses.
    let all = asked(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    let json = [("content-type", "application/json")];
    let response = until_some("a response", || {
        let response = daemon.client.post("/receipts", &json, all.as_bytes());
        let response = response.unwrap();
        assert!([200, 429, 503].contains(&response.status), "{response:?}");
        (response.status == 200).then_some(response)
    });
    let receipts = response.json()["receipts"].as_array().unwrap().len();
    assert_eq!(receipts, keys.len());
}

/// Twelve clients send bodies with new names of the maximum length.
fn holds_with_long_new_names(memory_mib: usize) {
    const TIME: Duration = Duration::from_secs(12);
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(dir.path(), &["--memory-max", &memory_mib.to_string()]);
    let body_bytes = body_bytes_max(memory_mib) / 20 * 19;
    let next = AtomicU64::new(0);
    let posts = Counts::default();
    let end = Instant::now() + TIME;
    std::thread::scope(|scope| {
        for client in 0..12 {
            let (daemon, next, posts) = (&daemon, &next, &posts);
            scope.spawn(move || {
                let client_of_its_own = Client::new(daemon.address);
                let pad = "x".repeat(984);
                while Instant::now() < end {
                    let mut body = String::with_capacity(body_bytes);
                    while body.len() + 4096 < body_bytes {
                        let name = next.fetch_add(1, Ordering::Relaxed);
                        let hour = if client % 2 == 0 { 0 } else { name % 24 };
                        body.push_str(&format!(
                            "{{\"src_app\":\"{pad}{name:016}\",\"dest_app\":\"{pad}{name:016}\",\
                             \"vpc_id\":\"{pad}{name:016}\",\"bytes_tx\":1,\"bytes_rx\":2,\"hour\":{hour}}}\n"
                        ));
                    }
                    let response = client_of_its_own.post("/flows", &[NDJSON], body.as_bytes());
                    posts.note(response.ok().map(|response| response.status));
                }
            });
        }
    });
    let (most, posts) = (daemon.memory_mib_max(), posts.both());
    println!("{most} of {memory_mib} MiB; posts {posts:?}");
    assert!(posts.0 >= 3, "{posts:?}");
    let bound = memory_mib as u64 + DEBUG_MIB;
    assert!(most <= bound, "{most} MiB of {memory_mib}");
    assert_eq!(daemon.client.get("/readyz", &[]).unwrap().status, 200);
}

#[test]
fn memory_max_of_128_mib_holds_with_long_new_names() {
    holds_with_long_new_names(128);
}

#[test]
fn memory_max_of_512_mib_holds_with_long_new_names() {
    holds_with_long_new_names(512);
}
