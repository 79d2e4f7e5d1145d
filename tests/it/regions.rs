//! Two regions, each with a Kafka and nodes of its own, and MirrorMaker 2 from the first to the second, with the
//! shipped configuration. The first is lost while flows arrive: everything that was mirrored is in the second to the
//! byte, the rest follows when the first one's Kafka is back, and nothing counts twice however often it is sent.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::cluster::post;
use crate::kafka::{BROKER, Broker, script_command};
use crate::nodes::{Node, rows, until_answered};
use crate::support::{
    Client, Daemon, Model, Response, TestFlow, add_to, hour_of, ndjson_body, odd_flow, random,
};
use crate::wait::{DEADLINE, poll_for};

const ALL: &str = "/flows?from=0&to=100";
const SENT_BATCHES: usize = 300;
const SENT_BATCH_FLOWS: usize = 50;

/// A MirrorMaker that ends with the thread that started it.
struct Mirror(Child);

impl Mirror {
    fn start(properties: &Path, log: &Path) -> Mirror {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "bash"]);
        let mut command = script_command(command, "mirror");
        command.arg(properties);
        let log = File::options().append(true).create(true).open(log).unwrap();
        command
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null());
        Mirror(command.spawn().unwrap())
    }

    /// SIGKILL.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The shipped configuration, with the addresses of the test's two brokers.
fn properties(a: &str, b: &str) -> String {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kafka/mm2.properties");
    let lines = fs::read_to_string(shipped).unwrap();
    let lines = lines.lines().map(|line| match line.split_once(" = ") {
        Some((name @ "a.bootstrap.servers", _)) => format!("{name} = {a}\n"),
        Some((name @ "b.bootstrap.servers", _)) => format!("{name} = {b}\n"),
        Some((name, "3")) if name.ends_with("replication.factor") => format!("{name} = 1\n"),
        _ => format!("{line}\n"),
    });
    lines.collect()
}

/// `flowtally send` with the batches in its spool, and `flows`.
fn send(url: &str, spool: &Path, flows: &[TestFlow]) -> Child {
    let mut child = Command::new(Daemon::binary())
        .args(["send", "--url", url, "--spool"])
        .arg(spool)
        .args(["--batch-flows", &SENT_BATCH_FLOWS.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let body = ndjson_body(flows);
    std::thread::spawn(move || {
        let _it_may_have_ended = std::io::Write::write_all(&mut input, &body);
    });
    child
}

/// Batches in a spool.
fn spooled(spool: &Path) -> usize {
    let Ok(files) = fs::read_dir(spool) else {
        return 0;
    };
    let is_batch = |path: PathBuf| path.to_string_lossy().contains(".json");
    files
        .filter(|file| is_batch(file.as_ref().unwrap().path()))
        .count()
}

/// Fills a sender's spool with all flows, while the service does not respond.
fn fill(spool: &Path, flows: &[TestFlow]) {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let mut sender = send(&url, spool, flows);
    crate::wait::until("all batches to be in the spool", || {
        spooled(spool) >= SENT_BATCHES
    });
    sender.kill().unwrap();
    sender.wait().unwrap();
}

/// Waits until a response of a region satisfies `right`; `log` is printed on failure.
fn until(what: &str, client: &Client, path: &str, log: &Path, right: impl Fn(&Response) -> bool) {
    let begun = Instant::now();
    let held = poll_for(DEADLINE, || {
        right(&until_answered(client, path)).then_some(())
    });
    if held.is_none() {
        let log = fs::read_to_string(log).unwrap();
        let lines: Vec<_> = log.lines().rev().take(30).collect();
        panic!("not {what}; the mirror's log, from its end: {lines:#?}");
    }
    println!("{what}: {:.1} s", begun.elapsed().as_secs_f32());
}

/// Number of messages that the nodes did not count again.
fn repeated(daemons: &[Daemon]) -> u64 {
    let of = |daemon: &Daemon| -> u64 {
        let metrics = daemon.client.get("/metrics", &[]).unwrap().body;
        let metrics = String::from_utf8(metrics).unwrap();
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("flowtally_pieces_repeated_total "));
        line.unwrap().parse().unwrap()
    };
    daemons.iter().map(of).sum()
}

#[test]
fn a_lost_region_is_in_the_other_one_and_nothing_counts_twice() {
    let dir = tempfile::tempdir().unwrap();
    let broker_a = Broker::start();
    let node = |name: &str, brokers: &str| Node::new(brokers, "flows", name, dir.path());
    let nodes_a = ["a-1", "a-2"].map(|name| node(name, &broker_a.addresses));
    let nodes_b = ["b-1", "b-2"].map(|name| node(name, &BROKER.addresses));
    let mut a = nodes_a.each_ref().map(Node::start);
    let b = nodes_b.each_ref().map(Node::start);
    let (to_a, to_b) = (nodes_a[1].client(), nodes_b[1].client());
    until_answered(&to_a, "/hours");
    until_answered(&to_b, "/hours");
    let (settings, log) = (
        dir.path().join("mm2.properties"),
        dir.path().join("mm2.log"),
    );
    fs::write(
        &settings,
        properties(&broker_a.addresses, &BROKER.addresses),
    )
    .unwrap();
    let mirror = Mirror::start(&settings, &log);

    let mut random = random("regions");
    let mut batch = |hour| -> Vec<TestFlow> {
        let flow = |_| odd_flow(&mut random, &[hour]);
        (0..200).map(flow).collect()
    };
    let mut model = Model::new();
    let loads: Vec<_> = (0..20).map(|_| batch(1)).collect();
    for (n, flows) in loads.iter().enumerate() {
        post(&a[n % 2].client, &format!("load-{n}"), flows);
        add_to(&mut model, flows);
    }
    let response = until_answered(&to_a, ALL);
    assert_eq!(response.rows(), rows(&model));
    until("mirrored", &to_b, ALL, &log, |b| b.body == response.body);

    // A lost response, and a client that continues in B.
    assert_eq!(repeated(&b), 0);
    post(&to_b, "load-7", &loads[7]);
    assert!(repeated(&b) > 0);

    // While a sender runs, mirroring stops; then all of A is lost.
    let flow = |n| TestFlow::new(2, &format!("s-{}", n % 977), "d", "v", n as u64, 1);
    let sent: Vec<_> = (0..SENT_BATCHES * SENT_BATCH_FLOWS).map(flow).collect();
    add_to(&mut model, &sent);
    let spool = dir.path().join("spool");
    fill(&spool, &sent);
    let mut sender = send(&nodes_a[0].url, &spool, &[]);
    let sent_to_a = |least: usize| {
        let least = (least * SENT_BATCH_FLOWS) as u64;
        move |hours: &Response| {
            let hours = hours.json();
            let hour = hours.as_array().unwrap().iter().find(|h| h["hour"] == 2);
            hour.is_some_and(|hour| hour["flows"].as_u64().unwrap() >= least)
        }
    };
    until("sent", &to_a, "/hours", &log, sent_to_a(SENT_BATCHES / 10));
    until("mirrored", &to_b, "/hours", &log, sent_to_a(1));
    mirror.kill();
    let late = [batch(3), batch(3)];
    for (n, flows) in late.iter().enumerate() {
        post(&to_a, &format!("late-{n}"), flows);
        add_to(&mut model, flows);
    }
    a.iter_mut().for_each(Daemon::kill);
    broker_a.kill();
    sender.kill().unwrap();
    sender.wait().unwrap();
    let waiting = spooled(&spool);
    println!("{waiting} of {SENT_BATCHES} batches were not sent");
    assert!(waiting > 0 && waiting < SENT_BATCHES);

    // B has the mirrored batches, and continues.
    let response = until_answered(&to_b, "/flows?hour=1");
    assert_eq!(response.rows(), hour_of(&model, 1));
    let mut sender = send(&nodes_b[0].url, &spool, &[]);
    assert!(sender.wait().unwrap().success());
    assert_eq!(spooled(&spool), 0);
    let new = batch(4);
    post(&to_b, "new", &new);
    add_to(&mut model, &new);
    assert_eq!(to_b.hour(4), hour_of(&model, 4));
    // Of the last batches that A acknowledged, B has only those that the client has sent again.
    post(&to_b, "late-0", &late[0]);
    let mut again = Model::new();
    add_to(&mut again, &late[0]);
    assert_eq!(to_b.hour(3), rows(&again));

    // A's Kafka is back, and with it the batches that were not mirrored; MirrorMaker repeats some others.
    broker_a.restart();
    let a = nodes_a.each_ref().map(Node::start);
    let before = repeated(&b);
    let mirror = Mirror::start(&settings, &log);
    let last = batch(5);
    post(&to_a, "last", &last);
    add_to(&mut model, &last);
    let last = hour_of(&model, 5);
    until("continued", &to_b, "/flows?hour=5", &log, |b| {
        b.rows() == last
    });
    for node in &nodes_b {
        assert_eq!(until_answered(&node.client(), ALL).rows(), rows(&model));
    }
    let repeated = repeated(&b) - before;
    println!("{repeated} messages had counted before");
    assert!(repeated > 0);
    mirror.kill();
    a.into_iter().chain(b).for_each(Daemon::stop);
    broker_a.stop();
}
