//! Limits of queries: memory, time, and disconnected clients.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use serde_json::json;

use crate::support::{Client, Daemon, TestFlow};
use crate::wait::{at_most, until, until_flushed};

/// `rows` rows of hour 1, no two of which have a name in common.
fn fill(client: &Client, rows: usize) {
    let all: Vec<usize> = (0..rows).collect();
    for part in all.chunks(20_000) {
        let name = |of: &str, i: usize| format!("{of}-{:032}", i * 7919 % rows);
        let flow = |i: usize| {
            TestFlow::new(
                1,
                &name("src", i),
                &name("dest", i),
                &name("vpc", i),
                i as u64,
                1,
            )
        };
        let flows: Vec<_> = part.iter().map(|&i| flow(i)).collect();
        client.accept(&flows);
    }
}

/// Queries that need more memory than there is are refused with an alternative; those that stream, or keep few rows,
/// need none.
#[test]
fn memory_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(dir.path(), &["--query-memory-max", "4"]);
    let client = &daemon.client;
    fill(client, 60_000);
    for query in [
        "group_by=vpc_id",
        "sort=bytes",
        "limit=60000",
        "group_by=dest_app&sort=bytes_tx&limit=10",
    ] {
        let response = client.get(&format!("/flows?hour=1&{query}"), &[]).unwrap();
        assert_eq!(response.status, 413, "{query}");
        let detail = response.json()["detail"].as_str().unwrap().to_owned();
        for word in ["4 MiB", "--query-memory-max", "from", "group_by", "limit"] {
            assert!(detail.contains(word), "{query}: {detail}");
        }
    }
    for (query, rows) in [
        ("group_by=src_app", 60_000),
        ("group_by=src_app,dest_app", 60_000),
        ("sort=bytes&limit=10", 10),
        ("group_by=src_app&sort=-bytes&limit=10", 10),
        ("group_by=", 1),
        ("vpc_id=vpc-00000000000000000000000000000007&sort=bytes", 1),
        ("search=VPC-00000000000000000000000000000007", 1),
    ] {
        let response = client.get(&format!("/flows?hour=1&{query}"), &[]).unwrap();
        assert_eq!(response.status, 200, "{query}: {}", response.json());
        assert_eq!(response.json().as_array().unwrap().len(), rows, "{query}");
    }
    let top = client
        .get("/flows?hour=1&sort=bytes_tx&limit=1", &[])
        .unwrap();
    assert_eq!(top.json()[0]["bytes_tx"], json!(59_999));
}

/// A client that does not read a response that holds memory is aborted, and small queries do not wait for that.
#[test]
fn a_slow_reader_does_not_block_small_queries() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(dir.path(), &["--query-memory-max", "4"]);
    fill(&daemon.client, 60_000);
    let large = "/flows?hour=1&sort=bytes&limit=15000";
    let mut slow = TcpStream::connect(daemon.address).unwrap();
    let request = format!("GET {large} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    slow.write_all(request.as_bytes()).unwrap();
    // It has its response before any other query: the start is read, and the rest is not.
    let mut start = [0; 15];
    slow.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 200 OK");
    let status = |path: &str| daemon.client.get(path, &[]).unwrap().status;
    let begun = Instant::now();
    until("the slow reader's response to hold the memory", || {
        status(large) != 200
    });
    for path in [
        "/flows?hour=1&sort=bytes&limit=20",
        "/flows?hour=1&group_by=src_app&sort=bytes&limit=20",
        "/flows?hour=1&limit=100",
    ] {
        let asked = Instant::now();
        assert_eq!(status(path), 200, "{path}");
        assert!(asked.elapsed() < at_most(2), "{path}");
    }
    until("the memory to be released", || status(large) == 200);
    println!("held for {:?}", begun.elapsed());
    drop(slow);
}

fn rows_read(daemon: &Daemon) -> u64 {
    let client = &daemon.client;
    client.metric("flowtally_query_rows_read_total") as u64
}

/// Rows of other src_apps are not read, neither in memory nor on disk, over many hours.
#[test]
fn a_query_by_src_app_reads_no_other_rows() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(dir.path(), &["--flush-interval", "1"]);
    let client = &daemon.client;
    let flows: Vec<_> = (0..20_000)
        .map(|i| TestFlow::new(i % 4, &format!("s{}", i / 40), &format!("d{i}"), "v", 1, 1))
        .collect();
    client.accept(&flows);
    for flushed in [false, true] {
        if flushed {
            until_flushed(client);
        }
        for (query, rows) in [
            ("hour=1&src_app=s77", 10),
            ("from=0&src_app=s77&src_app=s5", 80),
            ("from=0&src_app=s77&dest_app=d3100", 1),
            ("from=2&to=3&src_app=none", 0),
        ] {
            let before = rows_read(&daemon);
            let response = client.get(&format!("/flows?{query}"), &[]).unwrap();
            assert_eq!(
                response.json().as_array().unwrap().len() as u64,
                rows,
                "{query}"
            );
            assert_eq!(rows_read(&daemon) - before, rows, "{query}");
        }
    }
}

/// Sends flows in which each of [`SLOW`]'s names has to be sought in vain, in each of `hours` hours.
fn make_slow(client: &Client, hours: u32) {
    let all: Vec<u32> = (0..hours).collect();
    for part in all.chunks(300) {
        let flow = |hour: u32, i: usize| TestFlow::new(hour, &format!("a{i:02}"), "d", "v", 1, 1);
        let flows = part
            .iter()
            .flat_map(|&hour| (0..64).map(move |i| flow(hour, i)));
        client.accept(&flows.collect::<Vec<_>>());
    }
}

fn slow() -> String {
    let names: String = (0..64).map(|i| format!("&src_app=a{i:02}b")).collect();
    format!("/flows?from=0{names}&group_by=")
}

/// A query ends at its time limit, even while it finds no row.
#[test]
fn a_query_ends_at_its_time_limit() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(
        dir.path(),
        &["--query-time-max", "1", "--flush-interval", "1"],
    );
    make_slow(&daemon.client, 8_000);
    until_flushed(&daemon.client);
    let begun = Instant::now();
    let responses: Vec<_> = std::thread::scope(|scope| {
        let ask = || Client::new(daemon.address).get(&slow(), &[]).unwrap();
        let asking: Vec<_> = (0..many()).map(|_| scope.spawn(ask)).collect();
        asking
            .into_iter()
            .map(|asking| asking.join().unwrap())
            .collect()
    });
    let time = begun.elapsed();
    let response = responses.iter().find(|response| response.status == 503);
    let response = response.unwrap_or_else(|| panic!("all {} ended in {time:?}", responses.len()));
    assert!(response.header("retry-after").is_some());
    let detail = response.json()["detail"].as_str().unwrap().to_owned();
    for word in ["longer", "--query-time-max", "from", "src_app"] {
        assert!(detail.contains(word), "{detail}");
    }
    assert!(time < at_most(5), "{time:?}");
}

/// Enough concurrent slow queries that each takes long, even on a large machine.
pub(crate) fn many() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (8 * cores).min(60)
}

/// A query ends when its client has disconnected.
#[test]
fn a_query_ends_when_its_client_disconnects() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(
        dir.path(),
        &["--query-time-max", "600", "--flush-interval", "1"],
    );
    make_slow(&daemon.client, 8_000);
    until_flushed(&daemon.client);
    let request = format!("GET {} HTTP/1.1\r\nhost: localhost\r\n\r\n", slow());
    let clients: Vec<_> = (0..many())
        .map(|_| {
            let mut client = TcpStream::connect(daemon.address).unwrap();
            client.write_all(request.as_bytes()).unwrap();
            client
        })
        .collect();
    let asked = clients.len();
    until("connections", || {
        daemon.client.metric("flowtally_http_connections") > asked as f64
    });
    drop(clients);
    let begun = Instant::now();
    let name = "flowtally_rejected_total{reason=\"cancelled\"}";
    let cancelled = || daemon.client.find_metric(name).unwrap_or(0.0);
    until("half of the queries to be cancelled", || {
        cancelled() >= (asked / 2) as f64
    });
    println!(
        "{} of {asked} ended after {:?}",
        cancelled(),
        begun.elapsed()
    );
}
