//! HAProxy in front of nodes, with the shipped configuration: TLS, limits, and retries when a node dies.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};

use crate::cluster::post;
use crate::kafka::BROKER;
use crate::nodes::{Node, rows, until_answered};
use crate::support::{
    Client, Daemon, JSON, Model, TestFlow, add_to, free_address, json_body, ndjson_body, odd_flow,
    random,
};
use crate::wait::{DEADLINE, poll_for, until, until_some};

const CONFIGURATION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/haproxy/haproxy.cfg");

/// HAProxy, until it is dropped.
struct Front {
    process: Child,
    address: SocketAddr,
    watch: SocketAddr,
    certificate: PathBuf,
    log: PathBuf,
}

impl Front {
    /// Starts it in front of three nodes.
    fn start(dir: &Path, nodes: [SocketAddr; 3], more: &[(&str, &str)]) -> Front {
        Front::start_at(free_address(), dir, nodes, more)
    }

    fn start_at(
        address: SocketAddr,
        dir: &Path,
        nodes: [SocketAddr; 3],
        more: &[(&str, &str)],
    ) -> Front {
        let (both, authority) = (dir.join("front.pem"), dir.join("front.crt"));
        if !both.exists() {
            let key = KeyPair::generate().unwrap();
            let certificate = CertificateParams::new(vec!["localhost".into()]).unwrap();
            let certificate = certificate.self_signed(&key).unwrap().pem();
            std::fs::write(&both, format!("{certificate}{}", key.serialize_pem())).unwrap();
            std::fs::write(&authority, certificate).unwrap();
        }
        let id = |flag| Command::new("id").arg(flag).output().unwrap().stdout;
        let (user, group) = (id("-un"), id("-gn"));
        let (watch, log) = (
            free_address(),
            dir.join(format!("front-{}.log", address.port())),
        );
        let command = |check: &[&str]| {
            let mut command = Command::new("/usr/sbin/haproxy");
            command.args(check).args(["-f", CONFIGURATION]);
            command.env("FRONT_BIND", address.to_string());
            command.env("FRONT_WATCH", watch.to_string());
            command.env("FRONT_CERT", &both);
            command.env("FRONT_USER", String::from_utf8_lossy(&user).trim());
            command.env("FRONT_GROUP", String::from_utf8_lossy(&group).trim());
            for (number, node) in nodes.iter().enumerate() {
                command.env(format!("NODE_{}", number + 1), node.to_string());
            }
            command.envs(more.iter().copied());
            command
        };
        let checked = command(&["-c"]).output().unwrap();
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success(), "{said}");
        assert!(!said.contains("WARNING"), "{said}");
        let output = std::fs::File::create(&log).unwrap();
        let process = command(&["-db"])
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Front {
            process,
            address,
            watch,
            certificate: authority,
            log,
        }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    fn client(&self) -> Client {
        Client::tls(&self.url(), &std::fs::read(&self.certificate).unwrap())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Number of requests that were sent to a second node.
    fn sent_again(&self) -> u64 {
        let metrics = Client::new(self.watch).get("/metrics", &[]).unwrap().body;
        let metrics = String::from_utf8(metrics).unwrap();
        let of_nodes = |line: &str| {
            let line =
                line.strip_prefix("haproxy_backend_retry_warnings_total{proxy=\"nodes\"} ")?;
            line.parse().ok()
        };
        metrics.lines().find_map(of_nodes).expect(&metrics)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _it_may_have_ended = self.process.kill();
        let _the_same = self.process.wait();
    }
}

/// HAProxy writes its log after the response.
fn until_in_log(word: &str, log: impl Fn() -> String) {
    let found = poll_for(DEADLINE, || log().contains(word).then_some(()));
    assert!(found.is_some(), "no {word:?} in {}", log());
}

/// A node that claims to be ready, reads each request completely, and closes the connection; counts the requests that
/// are not health checks.
fn aborts_responses() -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let broken = Arc::new(AtomicU64::new(0));
    let count = broken.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, count) = (stream.unwrap(), count.clone());
            std::thread::spawn(move || {
                let mut request = [0; 64 << 10];
                let read = stream.read(&mut request).unwrap_or_default();
                let is = |path: &str| request[..read].starts_with(path.as_bytes());
                if is("GET /readyz") || is("GET /healthz") {
                    let _he_may_have_left = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n");
                } else if read > 0 {
                    count.fetch_add(1, Ordering::Relaxed);
                    let pause = Some(Duration::from_millis(100));
                    stream.set_read_timeout(pause).unwrap();
                    while let Ok(1..) = stream.read(&mut request) {}
                }
            });
        }
    });
    (address, broken)
}

#[test]
fn only_idempotent_requests_are_sent_to_a_second_node() {
    const POSTS: u64 = 30;
    // More than one TLS record.
    const FLOWS: u64 = 300;
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    let (broken, count) = aborts_responses();
    let nodes = [daemon.address, broken, daemon.address];
    let front = Front::start(dir.path(), nodes, &[]);
    let client = front.client();
    until_answered(&client, "/readyz");

    let flow = TestFlow::new(1, "a", "b", "v", 1, 2);
    let body = json_body(&vec![flow; FLOWS as usize]);
    let posts = |keyed: bool| {
        let before = count.load(Ordering::Relaxed);
        let mut ok = 0;
        for n in 0..POSTS {
            let key = format!("key-{n}");
            let mut headers = vec![JSON];
            headers.extend(keyed.then_some(("idempotency-key", &key[..])));
            match client.post("/flows", &headers, &body) {
                Ok(response) if response.status == 200 => ok += 1,
                Ok(response) => {
                    assert_eq!(response.json()["status"], 502, "{}", front.log());
                    let kind = response.header("content-type");
                    assert_eq!(kind, Some("application/problem+json"));
                }
                // A later request on a connection gets a closed connection.
                Err(ureq::Error::Io(_)) => {}
                Err(other) => panic!("{other}: {}", front.log()),
            }
        }
        (ok, count.load(Ordering::Relaxed) - before)
    };
    let (ok, broken_off) = posts(true);
    assert_eq!(ok, POSTS, "{}", front.log());
    assert!(broken_off > 0);
    assert!(front.sent_again() >= broken_off);
    // A batch without a response may have counted, so only its sender may retry it.
    let (ok, broken_off) = posts(false);
    assert!(broken_off > 0);
    assert_eq!(ok, POSTS - broken_off, "{}", front.log());
    let counted = daemon.client.get("/flows?hour=1", &[]).unwrap().rows();
    assert_eq!(counted[0].1.tx, FLOWS * (POSTS + ok));

    // Queries are retried.
    for _ in 0..POSTS {
        assert_eq!(client.get("/flows?hour=1", &[]).unwrap().rows(), counted);
    }
    daemon.stop();
}

#[test]
fn request_ids_are_passed_on_and_paths_between_nodes_are_closed() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--log", "debug", "--log-format", "json"];
    let daemon = Daemon::start_with(&dir.path().join("db"), &arguments);
    let front = Front::start(dir.path(), [daemon.address; 3], &[]);
    let client = front.client();
    until_answered(&client, "/readyz");

    let trace = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    let headers = [("x-request-id", "order-66"), ("traceparent", &parent[..])];
    let response = client.get("/flows?hour=1", &headers).unwrap();
    assert_eq!(response.header("x-request-id"), Some("order-66"));
    // A request without an ID gets one from HAProxy, and has it in both logs.
    let response = client.get("/flows?hour=2", &[]).unwrap();
    let made = response.header("x-request-id").unwrap().to_owned();
    assert_eq!(made.len(), 36, "{made}");
    until_in_log(&made, || front.log());
    for word in ["order-66", trace, &made] {
        until_in_log(word, || daemon.log());
    }
    for path in [
        "/partitions/rows?p=1",
        "/%70artitions/rows?p=1",
        "//partitions/applied",
        "/PARTITIONS/hours",
        "/metrics",
    ] {
        let response = client.get(path, &[]).unwrap();
        assert_eq!(response.status, 404, "{path}");
        assert!(response.header("x-request-id").is_some());
        assert_eq!(
            response.json()["detail"],
            "this is not for the front; ask a node"
        );
    }
    daemon.stop();
}

#[test]
fn a_client_beyond_its_limit_of_requests_has_to_wait() {
    const LIMIT: u64 = 20;
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    let limit = LIMIT.to_string();
    let front = Front::start(
        dir.path(),
        [daemon.address; 3],
        &[("FRONT_REQUESTS_PER_10S", &limit)],
    );
    let client = front.client();
    let mine = [("authorization", "Bearer mine")];
    until_answered(&client, "/readyz");
    let mut accepted = 0;
    // A slow machine needs more requests to exceed the limit within ten seconds.
    let refused = until_some("a request beyond the limit", || {
        let response = client.get("/hours", &mine).unwrap();
        accepted += u64::from(response.status == 200);
        (response.status != 200).then_some(response)
    });
    assert!(accepted >= LIMIT, "{accepted}");
    assert_eq!(refused.status, 429);
    assert_eq!(refused.header("retry-after"), Some("5"));
    let kind = &refused.json()["type"];
    assert_eq!(kind, "urn:flowtally:problem:too-many-requests");
    // Other clients are not affected, even at the same address.
    let other = [("authorization", "Bearer other")];
    assert_eq!(client.get("/hours", &other).unwrap().status, 200);

    // A sender respects Retry-After, and all of its flows are counted.
    let flows: Vec<_> = (0..3 * LIMIT)
        .map(|n| TestFlow::new(1, &format!("app-{n}"), "b", "v", 1, 2))
        .collect();
    let (said, ended) = send(&front, &flows, 1, Duration::from_secs(5)).finish();
    assert!(ended, "{said}");
    let mut model = Model::new();
    add_to(&mut model, &flows);
    let counted = daemon.client.get("/flows?hour=1", &[]).unwrap().rows();
    assert_eq!(counted, rows(&model));
    until_in_log(" 429 ", || front.log());
    daemon.stop();
}

#[test]
fn invented_tokens_do_not_raise_the_limit_of_an_address() {
    const LIMIT: u64 = 20;
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    let limit = LIMIT.to_string();
    let limits = [("FRONT_ADDRESS_REQUESTS_PER_10S", &limit[..])];
    let front = Front::start(dir.path(), [daemon.address; 3], &limits);
    let client = front.client();
    until_answered(&client, "/readyz");
    let mut ask = (0_u64..).map(|n| {
        let invented = [("authorization", &format!("Bearer {n}")[..])];
        client.get("/hours", &invented).unwrap().status
    });
    // The rate is over ten seconds, on a machine of any speed.
    let refused = ask
        .by_ref()
        .take(100 * LIMIT as usize)
        .position(|status| status == 429);
    assert!(
        refused.is_some_and(|n| n > LIMIT as usize / 2),
        "{refused:?}"
    );
    daemon.stop();
}

/// A running `flowtally send`.
struct Sending(Child);

/// Its input lasts for at least `time`.
fn send(front: &Front, flows: &[TestFlow], batch_flows: usize, time: Duration) -> Sending {
    let mut child = Command::new(Daemon::binary())
        .args(["send", "--url", &front.url(), "--ca"])
        .arg(&front.certificate)
        .args(["--batch-flows", &batch_flows.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, body) = (child.stdin.take().unwrap(), ndjson_body(flows));
    std::thread::spawn(move || {
        for part in body.chunks(body.len() / 100 + 1) {
            let _it_may_have_ended = input.write_all(part);
            // It is still sending when nodes fail.
            std::thread::sleep(time / 100);
        }
    });
    Sending(child)
}

impl Sending {
    /// Its output, and whether it succeeded.
    fn finish(self) -> (String, bool) {
        let output = self.0.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (said, output.status.success())
    }
}

#[test]
fn a_sender_does_not_notice_a_dead_node() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = ["a", "b", "c"].map(|name| Node::new(&BROKER.addresses, "front", name, dir.path()));
    let daemons = nodes.each_ref().map(Node::start);
    let front = Front::start(dir.path(), nodes.each_ref().map(|node| node.address), &[]);
    let client = front.client();
    until_answered(&client, "/flows?hour=1");

    let mut random = random("a_sender_does_not_notice_a_dead_node");
    let mut model = Model::new();
    let sending: Vec<_> = (0..3)
        .map(|_| {
            let flows: Vec<_> = (0..10_000)
                .map(|_| odd_flow(&mut random, &[0, 1, 7]))
                .collect();
            add_to(&mut model, &flows);
            // Partitions move while they are sent, ten seconds after their node has died.
            send(&front, &flows, 100, Duration::from_secs(20))
        })
        .collect();
    let [mut dies, ends, stays] = daemons;
    let taken = || front.log().matches("\"POST /flows").count();
    until("some batches are taken", || taken() > 20);
    dies.kill();
    let before = taken();
    until("some more are taken", || taken() > before + 20);
    // Nor does it notice a graceful shutdown.
    ends.stop();
    for sending in sending {
        let (said, ended) = sending.finish();
        assert!(ended, "{said}");
    }
    // HAProxy logs a request after it has been answered.
    let answered = || {
        let log = front.log();
        let posts = log.lines().filter(|line| line.contains("\"POST /flows"));
        posts.filter(|line| line.contains(" 200 ")).count()
    };
    until("each batch is in the log", || answered() >= 300);
    // The remaining node gets all partitions. When it answers for all of them, its rows include everything that was
    // acknowledged.
    let flows: Vec<_> = (0..200).map(|_| odd_flow(&mut random, &[1])).collect();
    add_to(&mut model, &flows);
    post(&client, "last", &flows);
    let response = until_answered(&client, "/flows?from=0&to=100");
    assert_eq!(response.rows(), rows(&model));
    stays.stop();
    // No node is left.
    let response = client.get("/flows?hour=1", &[]).unwrap();
    assert_eq!(response.status, 503);
    assert_eq!(response.json()["type"], "urn:flowtally:problem:no-node");
    assert!(response.header("retry-after").is_some());
}

#[test]
fn requests_without_a_local_node_go_to_one_other_region() {
    const ASKED: usize = 5;
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(&dir.path().join("db"));
    let (here, there) = (free_address(), free_address());
    let certificate = dir.path().join("front.crt");
    let start = |at: SocketAddr, nodes, other: SocketAddr| {
        let region = format!("localhost:{}", other.port());
        let other = [
            ("OTHER_REGION", &*region),
            ("OTHER_NAME", "localhost"),
            ("OTHER_CA", certificate.to_str().unwrap()),
        ];
        Front::start_at(at, dir.path(), nodes, &other)
    };
    // The first one creates the certificate, and both read it.
    drop(Front::start(dir.path(), [daemon.address; 3], &[]));
    let there_front = start(there, [daemon.address; 3], here);
    let here_front = start(here, [free_address(); 3], there);
    let client = here_front.client();
    until_answered(&client, "/flows?hour=1");

    // No region has a node, and neither HAProxy has noticed yet.
    daemon.kill();
    let asked = || {
        let logs = [here_front.log(), there_front.log()];
        let seen = logs.map(|log| log.matches("GET /hours").count());
        seen.iter().sum::<usize>()
    };
    for _ in 0..ASKED {
        let response = client.get("/hours", &[]).unwrap();
        assert!([502, 503].contains(&response.status), "{response:?}");
    }
    until_in_log("GET /hours", || here_front.log());
    assert!(asked() <= 2 * ASKED, "{}", here_front.log());
}

/// A node that is alive and not ready, as all may be while partitions move.
fn is_not_ready() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut request = [0; 4 << 10];
                let read = stream.read(&mut request).unwrap_or_default();
                let status = match request[..read].starts_with(b"GET /readyz") {
                    true => "503 Not Ready",
                    false => "200 OK",
                };
                let response = format!("HTTP/1.0 {status}\r\n\r\n");
                let _he_may_have_left = stream.write_all(response.as_bytes());
            });
        }
    });
    address
}

#[test]
fn if_no_node_is_ready_requests_go_to_live_ones() {
    let dir = tempfile::tempdir().unwrap();
    let front = Front::start(
        dir.path(),
        [is_not_ready(), free_address(), free_address()],
        &[],
    );
    until_in_log("0 active and 1 backup servers left", || front.log());
    until_answered(&front.client(), "/hours");
    assert_eq!(front.client().get("/readyz", &[]).unwrap().status, 503);
}
