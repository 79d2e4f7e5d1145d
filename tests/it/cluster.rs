//! Many nodes over one journal: what is acknowledged is counted once, whichever nodes come and go, and any node
//! answers for all of it, or says that it cannot.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::kafka::BROKER;
use crate::support::{
    Answer, Client, Daemon, Model, TestFlow, add_to, json_body, odd_flow, random,
};

/// A node that can be started again, at the same place.
pub struct Node {
    pub brokers: String,
    name: String,
    topic: String,
    dir: PathBuf,
    port: u16,
    more: Vec<String>,
}

impl Node {
    pub fn new(topic: &str, name: &str, dir: &Path) -> Node {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        Node {
            brokers: BROKER.addresses.clone(),
            name: name.into(),
            topic: topic.into(),
            dir: dir.join(name),
            port: free.local_addr().unwrap().port(),
            more: Vec::new(),
        }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn client(&self) -> Client {
        Client::new(([127, 0, 0, 1], self.port).into())
    }

    pub fn start(&self) -> Daemon {
        let (listen, url) = (format!("127.0.0.1:{}", self.port), self.url());
        let mut arguments = vec![
            "--listen",
            &listen,
            "--node-url",
            &url,
            "--node-name",
            &self.name,
            "--kafka-brokers",
            &self.brokers,
            "--kafka-topic",
            &self.topic,
            "--kafka-partitions",
            "6",
        ];
        arguments.extend(self.more.iter().map(String::as_str));
        Daemon::launch(&self.dir, &arguments)
    }
}

/// Waits until it answers `path` with 200.
pub fn until_answered(client: &Client, path: &str) -> Answer {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let answer = client.get(path, &[]);
        match answer {
            Ok(answer) if answer.status == 200 => return answer,
            other if Instant::now() > deadline => panic!("{path}: {other:?}"),
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Under its key, until it is in and visible: while partitions move, that may take more than one try.
pub fn post(client: &Client, key: &str, flows: &[TestFlow]) {
    let headers = [
        ("content-type", "application/json"),
        ("idempotency-key", key),
    ];
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let answer = client.post("/flows?wait=visible", &headers, &json_body(flows));
        let answer = answer.unwrap();
        if answer.status == 200 {
            assert_eq!(answer.json()["accepted"], flows.len());
            return;
        }
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(Instant::now() < deadline, "{answer:?}");
    }
}

/// The rows that hours have to have, as an answer to `GET /flows?from=0` shows them.
pub fn rows(model: &Model) -> Vec<(crate::support::Key, flowtally::domain::Counters)> {
    model
        .iter()
        .map(|(key, sums)| (key.clone(), *sums))
        .collect()
}

#[test]
fn one_node_answers_for_all_partitions() {
    let _up = BROKER.up.read().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let node = Node::new("one-node", "a", dir.path());
    let daemon = node.start();
    until_answered(&daemon.client, "/readyz");
    let mut random = random("one_node_answers_for_all_partitions");
    let mut model = Model::new();
    for n in 0..20 {
        let flows: Vec<_> = (0..200)
            .map(|_| odd_flow(&mut random, &[0, 1, 7]))
            .collect();
        let key = format!("{n}{}", "k".repeat(if n % 2 == 0 { 1 } else { 250 }));
        for _twice in 0..2 {
            post(&daemon.client, &key, &flows);
        }
        add_to(&mut model, &flows);
    }
    let answer = until_answered(&daemon.client, "/flows?from=0&to=100");
    assert_eq!(answer.rows(), rows(&model));
    assert_eq!(
        answer.header("flowtally-lag").unwrap().split(',').count(),
        6
    );
    let hours = until_answered(&daemon.client, "/hours").json();
    let flows: u64 = (hours.as_array().unwrap().iter())
        .map(|hour| hour["flows"].as_u64().unwrap())
        .sum();
    assert_eq!(flows, 4_000);

    // What is not possible says what is.
    assert_eq!(daemon.client.delete("/flows?hour=1").unwrap().status, 501);
    assert_eq!(
        daemon.client.post("/backups", &[], b"").unwrap().status,
        501
    );
    let unknown = daemon.client.post("/flows?wait=never", &[], b"[]").unwrap();
    assert_eq!(unknown.status, 400);

    // A batch that needs several messages.
    let flows: Vec<_> = (0..60_000)
        .map(|n| TestFlow::new(9, &format!("src-{n:060}"), "d", "v", 1, 2))
        .collect();
    post(&daemon.client, "long", &flows);
    add_to(&mut model, &flows);
    let metrics = daemon.client.get("/metrics", &[]).unwrap();
    let metrics = String::from_utf8(metrics.body).unwrap();
    assert!(metrics.contains("flowtally_partitions 6\n"));
    assert!(metrics.contains("flowtally_partition_lag_messages{partition=\"5\"} 0\n"));
    daemon.stop();

    // Nothing is read twice after a restart, and a directory is not taken for another's.
    let daemon = node.start();
    until_answered(&daemon.client, "/readyz");
    let answer = until_answered(&daemon.client, "/flows?from=0&to=100");
    assert_eq!(answer.rows(), rows(&model));
    daemon.stop();
    let mut another = Node::new("another-topic", "a", dir.path());
    another.dir = node.dir.clone();
    let daemon = another.start();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !daemon.log().contains("not those of partition") {
        assert!(Instant::now() < deadline, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(daemon.client.get("/readyz", &[]).unwrap().status, 503);
    assert_eq!(daemon.client.get("/flows?hour=1", &[]).unwrap().status, 503);
    let partial = daemon
        .client
        .get("/flows?hour=1&partial=true", &[])
        .unwrap();
    assert_eq!(partial.header("flowtally-missing"), Some("0,1,2,3,4,5"));
    assert_eq!(partial.body, b"[]\n");
    daemon.stop();
}

#[test]
fn any_node_answers_as_one_service_would() {
    let _up = BROKER.up.read().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("tokens");
    std::fs::write(&tokens, "between-us\n").unwrap();
    let nodes = ["a", "b", "c"].map(|name| {
        let mut node = Node::new("questions", name, dir.path());
        node.more = vec!["--node-token-file".into(), tokens.to_str().unwrap().into()];
        node
    });
    let daemons = nodes.each_ref().map(Node::start);
    let single = Daemon::start(&dir.path().join("single"));
    for daemon in &daemons {
        until_answered(&daemon.client, "/hours");
    }
    let mut random = random("any_node_answers_as_one_service_would");
    for n in 0..9 {
        let flows: Vec<_> = (0..300)
            .map(|_| odd_flow(&mut random, &[3, 4, 9]))
            .collect();
        single.client.accept(&flows);
        post(&daemons[n % 3].client, &format!("key-{n}"), &flows);
    }
    let questions = [
        "hour=3",
        "from=0",
        "from=0&to=100&group_by=src_app",
        "from=0&group_by=vpc_id,hour",
        "from=3&to=5&group_by=dest_app,hour",
        "from=0&group_by=",
        "from=0&sort=bytes&limit=7",
        "hour=4&sort=-bytes_tx&limit=50",
        "from=0&group_by=src_app&sort=bytes_rx&limit=5",
        "from=0&group_by=src_app,vpc_id&limit=11",
        "from=0&src_app=a&src_app=abc&limit=3",
        "from=0&search=SVC&sort=bytes",
        "from=0&dest_app=&vpc_id=%22",
        "hour=77",
        "hour=3&limit=40",
    ];
    for question in questions {
        let mut path = format!("/flows?{question}");
        for page in 0.. {
            let expected = single.client.get(&path, &[]).unwrap();
            assert_eq!(expected.status, 200, "{path}");
            for daemon in &daemons {
                let answer = until_answered(&daemon.client, &path);
                assert!(answer.body == expected.body, "{path}: {answer:?}");
                assert_eq!(answer.header("link"), expected.header("link"), "{path}");
            }
            let link = expected.header("link").map(str::to_owned);
            match link.filter(|_| page < 4) {
                Some(link) => path = link[1..link.find('>').unwrap()].to_owned(),
                None => break,
            }
        }
    }
    let hours = single.client.get("/hours", &[]).unwrap().body;
    for daemon in &daemons {
        assert_eq!(until_answered(&daemon.client, "/hours").body, hours);
        let path = "/partitions/rows?p=0&from=0";
        assert_eq!(daemon.client.get(path, &[]).unwrap().status, 401);
        let bearer = [("authorization", "Bearer between-us")];
        let answers = (0..6).map(|p| {
            let path = format!("/partitions/hours?p={p}");
            daemon.client.get(&path, &bearer).unwrap().status
        });
        let statuses: Vec<_> = answers.collect();
        assert!(
            statuses.iter().all(|status| [200, 503].contains(status)),
            "{statuses:?}"
        );
        assert!(statuses.contains(&200), "each has some: {statuses:?}");
    }
    let path = "/partitions/rows?p=0&from=0";
    assert_eq!(single.client.get(path, &[]).unwrap().status, 404);
    daemons.into_iter().for_each(Daemon::stop);
}

/// Flows on their way by `flowtally send`, which tries again until all are acknowledged.
fn sending(url: &str, flows: &[TestFlow]) -> Child {
    let mut child = Command::new(Daemon::binary())
        .args(["send", "--url", url, "--batch-flows", "100"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut input, body) = (
        child.stdin.take().unwrap(),
        crate::support::ndjson_body(flows),
    );
    std::thread::spawn(move || {
        for part in body.chunks(body.len() / 300 + 1) {
            let _it_may_have_ended = std::io::Write::write_all(&mut input, part);
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    child
}

/// A node is killed, one that is new takes its partitions, all are restarted, while flows come in through every
/// node. The sums of hour 9 go up by one known step after the other, so each answer can be checked at once.
#[test]
fn nodes_that_come_and_go_lose_nothing_and_count_nothing_twice() {
    let _up = BROKER.up.read().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let nodes = ["a", "b", "c", "d"].map(|name| Node::new("come-and-go", name, dir.path()));
    let [a, b, c, d] = &nodes;
    let mut model = Model::new();
    let daemons = [a, b, c].map(Node::start);
    for daemon in &daemons {
        until_answered(&daemon.client, "/hours");
    }
    let senders: Vec<Child> = [a, b, c]
        .into_iter()
        .enumerate()
        .map(|(i, node)| {
            let flow = |n: u64| {
                let (src, hour) = (format!("s-{}", n % 977), (n % 5) as u32);
                TestFlow::new(hour, &src, "d", "v", n, i as u64 + 1)
            };
            let flows: Vec<_> = (0..30_000).map(flow).collect();
            add_to(&mut model, &flows);
            sending(&node.url(), &flows)
        })
        .collect();

    let (started, acknowledged, stop) =
        (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let (right, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let step = |n: u64| -> Vec<TestFlow> {
        let flow = |i| TestFlow::new(9, &format!("step-{i}"), &format!("d{}", n % 3), "v", 1, 0);
        (0..10).map(flow).collect()
    };
    let mut steps = 0;
    let mut restarted = Vec::new();
    std::thread::scope(|scope| {
        let poster = scope.spawn(|| {
            let mut n = 0;
            while !stop.load(Ordering::SeqCst) {
                started.fetch_add(10, Ordering::SeqCst);
                let (key, body) = (format!("step-{n}"), json_body(&step(n)));
                let headers = [
                    ("content-type", "application/json"),
                    ("idempotency-key", &*key),
                ];
                // Under its key, by one node after the other, until it is in.
                for node in nodes.iter().cycle() {
                    let answer = node.client().post("/flows?wait=visible", &headers, &body);
                    match answer {
                        Ok(answer) if answer.status == 200 => break,
                        Ok(answer) => assert!([501, 503].contains(&answer.status), "{answer:?}"),
                        Err(_away) => std::thread::sleep(Duration::from_millis(20)),
                    }
                }
                acknowledged.fetch_add(10, Ordering::SeqCst);
                n += 1;
            }
            n
        });
        for node in &nodes {
            let (started, acknowledged, stop) = (&started, &acknowledged, &stop);
            let (right, refused) = (&right, &refused);
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(30));
                    let least = acknowledged.load(Ordering::SeqCst);
                    let Ok(answer) = node.client().get("/flows?hour=9&group_by=", &[]) else {
                        continue;
                    };
                    let most = started.load(Ordering::SeqCst);
                    if answer.status != 200 {
                        assert_eq!(answer.status, 503, "{answer:?}");
                        assert!(answer.header("retry-after").is_some());
                        refused.fetch_add(1, Ordering::SeqCst);
                        continue;
                    }
                    let rows = answer.json();
                    let sum = rows[0]["bytes_tx"].as_u64().unwrap_or(0);
                    assert!((least..=most).contains(&sum), "{least} {sum} {most}");
                    right.fetch_add(1, Ordering::SeqCst);
                }
            });
        }

        // Whatever fails, the threads have to end.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let stopping = Stop(&stop);
        let [daemon_a, mut daemon_b, daemon_c] = daemons;
        std::thread::sleep(Duration::from_secs(2));
        daemon_b.kill();
        let daemon_d = d.start();
        // When the session of the one that was killed is over, the others have all.
        for node in [a, c, d] {
            until_answered(&node.client(), "/flows?hour=9");
        }
        for (node, daemon) in [(a, daemon_a), (c, daemon_c), (d, daemon_d)] {
            daemon.stop();
            restarted.push(node.start());
        }
        restarted.push(b.start());
        for mut sender in senders {
            assert!(sender.wait().unwrap().success());
        }
        drop(stopping);
        steps = poster.join().unwrap();
    });
    for n in 0..steps {
        add_to(&mut model, &step(n));
    }
    let expected = rows(&model);
    for node in &nodes {
        // What was sent without waiting is in Kafka; soon it is in the sums.
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let answer = until_answered(&node.client(), "/flows?from=0&to=100");
            if answer.rows() == expected {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{} has other rows: {answer:?}",
                node.name
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    println!(
        "{steps} steps, {} right answers, {} refused",
        right.load(Ordering::SeqCst),
        refused.load(Ordering::SeqCst)
    );
    restarted.into_iter().for_each(Daemon::stop);
    assert!(steps > 10 && right.load(Ordering::SeqCst) > 10);
}
