//! A node joins its cluster: Kafka is unavailable, or requires certificates and passwords; tokens are rotated.

use std::io::Read;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use rdkafka::admin::AdminOptions;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::access::Pki;
use crate::cluster::post;
use crate::kafka::{BROKER, Broker, admin, block_on, client, script_by};
use crate::nodes::{Node, until_answered};
use crate::support::{Daemon, JSON, TestFlow, free_address, json_body};
use crate::wait::{DEADLINE, at_most, until, until_logged, until_logged_times};

fn one_flow() -> Vec<u8> {
    json_body(&[TestFlow::new(1, "a", "b", "v", 3, 4)])
}

/// Asserts that the process exits with `text` instead of retrying.
fn exits_with(mut daemon: Daemon, text: &str) {
    let status = daemon.wait();
    let log = daemon.log();
    assert!(!status.success() && log.contains(text), "{status:?}: {log}");
}

#[test]
fn a_node_waits_for_kafka() {
    let dir = tempfile::tempdir().unwrap();
    // No broker listens there yet.
    let place = free_address();
    let node = Node::new(&place.to_string(), "waited-for", "a", dir.path());
    let daemon = node.start();
    assert_eq!(daemon.client.get("/healthz", &[]).unwrap().status, 200);
    until_logged(&daemon, "cannot join the cluster yet");
    assert_eq!(daemon.client.get("/readyz", &[]).unwrap().status, 503);
    let posted = daemon.client.post("/flows", &[JSON], &one_flow()).unwrap();
    assert_eq!(posted.status, 503);
    assert!(posted.header("retry-after").is_some());
    daemon.stop();

    let daemon = node.start();
    until_logged(&daemon, "cannot join the cluster yet");
    let listener = TcpListener::bind(place).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(broker) = TcpStream::connect(&*BROKER.addresses) else {
                continue;
            };
            let ways = [
                (client.try_clone().unwrap(), broker.try_clone().unwrap()),
                (broker, client),
            ];
            for (mut from, mut to) in ways {
                std::thread::spawn(move || {
                    let _ended = std::io::copy(&mut Read::by_ref(&mut from), &mut to);
                    let _gone = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
    until_answered(&daemon.client, "/readyz");
    let posted = daemon.client.post("/flows", &[JSON], &one_flow()).unwrap();
    assert_eq!(posted.status, 200);
    daemon.stop();

    // The stop may happen while partitions are being opened.
    for name in ["d", "e", "f"] {
        let node = Node::new(&BROKER.addresses, "waited-for", name, dir.path());
        let daemon = node.start();
        until_logged(&daemon, "joined the cluster");
        daemon.stop();
    }

    // An error that waiting cannot resolve ends the process.
    let mut wrong = Node::new(&BROKER.addresses, "waited-for", "b", dir.path());
    wrong.more = ["--kafka-option", "no.such=x"].map(str::to_owned).into();
    exits_with(wrong.start(), "no.such");
    let wrong = Node::new(&BROKER.addresses, "not a topic", "c", dir.path());
    exits_with(wrong.start(), "not a topic");
}

/// It sends nothing from which it could learn that Kafka is back.
#[test]
fn a_node_without_partitions_is_ready_again() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start();
    let nodes = ["a", "b"].map(|name| {
        let mut node = Node::new(&broker.addresses, "few", name, dir.path());
        node.partitions = 1;
        node
    });
    let daemons = nodes.each_ref().map(Node::start);
    for daemon in &daemons {
        until_answered(&daemon.client, "/hours");
    }
    let has_none = |daemon: &Daemon| {
        let metrics = daemon.client.get("/metrics", &[]).unwrap().body;
        String::from_utf8_lossy(&metrics).contains("\nflowtally_partitions 0\n")
    };
    let idle = daemons.iter().find(|daemon| has_none(daemon)).unwrap();
    broker.kill();
    let posted = idle.client.post("/flows", &[JSON], &one_flow()).unwrap();
    assert_eq!(posted.status, 503);
    assert_eq!(idle.client.get("/readyz", &[]).unwrap().status, 503);
    broker.restart();
    until_answered(&idle.client, "/readyz");
    daemons.into_iter().for_each(Daemon::stop);
    broker.stop();
}

/// Messages of the new topic are never added to the sums of the old one.
#[test]
fn a_recreated_topic_is_not_mistaken_for_the_previous_one() {
    let dir = tempfile::tempdir().unwrap();
    let topic = "made-anew";
    let mut node = Node::new(&BROKER.addresses, topic, "a", dir.path());
    node.partitions = 1;
    let flows = [TestFlow::new(1, "a", "b", "v", 3, 4)];
    let daemon = node.start();
    for n in 0..5 {
        post(&daemon.client, &format!("before-{n}"), &flows);
    }
    daemon.stop();
    let deleted = block_on(admin().delete_topics(&[topic], &AdminOptions::new()));
    assert!(deleted.unwrap().iter().all(Result::is_ok));
    // The deletion takes a moment; a node that joins too early would continue with the old topic.
    until("the topic to be deleted", || {
        let asked = (admin().inner()).fetch_metadata(None, at_most(10));
        asked.unwrap().topics().iter().all(|t| t.name() != topic)
    });

    let daemon = node.start();
    until_logged(&daemon, "the topic was created anew");
    for _ in 0..10 {
        let posted = daemon.client.post("/flows", &[JSON], &one_flow()).unwrap();
        assert_eq!(posted.status, 200, "it is in Kafka");
    }
    daemon.stop();
    // It now has more messages than the old one had.
    let other = Node {
        name: "b".into(),
        dir: dir.path().join("b"),
        ..node.clone()
    };
    for node in [node, other] {
        let daemon = node.start();
        until_logged(&daemon, "the topic was created anew");
        assert_eq!(daemon.client.get("/readyz", &[]).unwrap().status, 503);
        let asked = daemon.client.get("/flows?hour=1", &[]).unwrap();
        assert_eq!(asked.status, 503);
        daemon.stop();
    }
}

/// A broker that accepts only clients with a password that trust its certificate.
struct Guarded<'a> {
    dir: &'a Path,
    addresses: String,
}

impl Guarded<'_> {
    fn start<'a>(dir: &'a Path, pki: &Pki) -> Guarded<'a> {
        // Kafka requires key and certificate in one file, the key first.
        let pem = [&pki.key, &pki.cert].map(|file| std::fs::read_to_string(file).unwrap());
        let store = dir.join("broker.pem");
        std::fs::write(&store, pem.concat()).unwrap();
        let properties = dir.join("guarded.properties");
        let login = "org.apache.kafka.common.security.plain.PlainLoginModule required \
                     username=broker password=between-brokers user_broker=between-brokers user_flowtally=right";
        let lines = format!(
            "ssl.keystore.type=PEM\nssl.keystore.location={store}\n\
             ssl.truststore.type=PEM\nssl.truststore.location={ca}\n\
             sasl.enabled.mechanisms=PLAIN\nsasl.mechanism.inter.broker.protocol=PLAIN\n\
             listener.name.clients.plain.sasl.jaas.config={login};\n",
            store = store.display(),
            ca = pki.ca,
        );
        std::fs::write(&properties, lines).unwrap();
        let mut command = Command::new("bash");
        command.env("KAFKA_PROTOCOL", "SASL_SSL");
        command.env("KAFKA_PROPERTIES", properties);
        let addresses = script_by(command, &["start", dir.join("kafka").to_str().unwrap()]);
        Guarded {
            dir,
            addresses: addresses.trim().to_owned(),
        }
    }
}

impl Drop for Guarded<'_> {
    fn drop(&mut self) {
        let dir = self.dir.join("kafka");
        script_by(Command::new("bash"), &["stop", dir.to_str().unwrap()]);
    }
}

#[test]
fn kafka_may_require_certificates_and_passwords() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(&dir.path().join("pki"));
    let broker = Guarded::start(dir.path(), &pki);
    let node = |name: &str, ca: &str, password: &str| {
        let mut node = Node::new(&broker.addresses, "guarded", name, dir.path());
        let options = format!(
            "security.protocol=sasl_ssl;ssl.ca.location={ca};sasl.mechanism=PLAIN;sasl.username=flowtally;\
             sasl.password={password}"
        );
        node.more = vec!["--kafka-option".into(), options];
        node
    };
    let daemon = node("a", &pki.ca, "right").start();
    until_answered(&daemon.client, "/readyz");
    let posted = (daemon.client).post("/flows?wait=visible", &[JSON], &one_flow());
    assert_eq!(posted.unwrap().status, 200);
    assert_eq!(daemon.client.hour(1).len(), 1);
    daemon.stop();

    let other = Pki::new(&dir.path().join("other"));
    exits_with(node("b", &pki.ca, "wrong").start(), "check user, password");
    exits_with(node("c", &other.ca, "right").start(), "certificates");
}

/// A node sends its token and its queries to any announced owner, so announcements have to be authenticated.
#[test]
fn announcements_without_a_valid_token_are_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tokens");
    std::fs::write(&file, "secret\n").unwrap();
    let nodes = ["a", "b"].map(|name| {
        let mut node = Node::new(&BROKER.addresses, "believed", name, dir.path());
        node.partitions = 2;
        node.more = vec!["--node-token-file".into(), file.to_str().unwrap().into()];
        node
    });
    let daemons = nodes.each_ref().map(Node::start);
    let flows: Vec<_> = (0..20)
        .map(|n| TestFlow::new(1, &format!("app-{n}"), "b", "v", 3, 4))
        .collect();
    until_answered(&daemons[0].client, "/hours");
    post(&daemons[0].client, "key", &flows);

    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    stranger.set_nonblocking(true).unwrap();
    let url = format!("http://{}", stranger.local_addr().unwrap());
    let producer: BaseProducer = client(&BROKER.addresses).create().unwrap();
    let say = |key: &str, said: &str| {
        let record = BaseRecord::to("believed-owners").partition(0);
        producer.send(record.key(key).payload(said)).unwrap();
    };
    for partition in 0..2 {
        let seal = ["", r#","seal":"00ff""#][partition];
        let said =
            format!(r#"{{"partition":{partition},"url":"{url}","node":"a","offset":100{seal}}}"#);
        say(&partition.to_string(), &said);
        let lost = format!(r#"{{"partition":{partition},"sums_to":1,"kafka_to":0{seal}}}"#);
        say(&format!("lost/{partition}"), &lost);
    }
    say("journal", r#"{"partitions":7}"#);
    producer.flush(DEADLINE).unwrap();

    for daemon in &daemons {
        until_logged(daemon, "announcement rejected");
        // A partition may still be moving between the two: the 503 is temporary.
        let response = until_answered(&daemon.client, "/flows?hour=1");
        assert_eq!(response.rows().len(), flows.len());
    }
    // Nor is it accepted by nodes that read it at their start.
    daemons.into_iter().for_each(Daemon::stop);
    let daemons = nodes.each_ref().map(Node::start);
    for daemon in &daemons {
        until_answered(&daemon.client, "/readyz");
        let response = until_answered(&daemon.client, "/flows?hour=1");
        assert_eq!(response.rows().len(), flows.len());
        until_logged(daemon, "permanent announcement rejected");
    }
    assert!(
        stranger.accept().is_err(),
        "a node has connected to a stranger"
    );
    daemons.into_iter().for_each(Daemon::stop);
}

#[test]
fn tokens_of_nodes_are_rotated_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let files = ["a", "b"].map(|name| dir.path().join(format!("tokens-{name}")));
    let write = |file: usize, text: &str| std::fs::write(&files[file], text).unwrap();
    (0..2).for_each(|file| write(file, "old\n"));
    let nodes = [0, 1].map(|n| {
        let mut node = Node::new(&BROKER.addresses, "exchanged", ["a", "b"][n], dir.path());
        node.more = vec![
            "--node-token-file".into(),
            files[n].to_str().unwrap().into(),
        ];
        node
    });
    let daemons = nodes.each_ref().map(Node::start);
    let response = || {
        daemons
            .each_ref()
            .map(|daemon| until_answered(&daemon.client, "/hours"))
    };
    response();
    let mut reloads = 0;
    for text in ["old\nnew\n", "new\nold\n", "new\n"] {
        for (file, daemon) in daemons.iter().enumerate() {
            write(file, text);
            daemon.signal("HUP");
        }
        reloads += 1;
        for daemon in &daemons {
            until_logged_times(daemon, "tokens and certificates reloaded", reloads);
        }
        response();
    }
    let ask = |token: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", &*bearer)];
        let response = (daemons[0].client).get("/partitions/hours?p=0", &headers);
        response.unwrap().status
    };
    assert_eq!(ask("old"), 401);
    assert_ne!(ask("new"), 401);
    daemons.into_iter().for_each(Daemon::stop);
}

/// Both nodes are killed between the two halves of a rebalance, and are back before the group has noticed. The group then
/// keeps an assignment in which nobody has the partitions that were moving, until a node asks for another one.
#[test]
fn partitions_that_were_moving_when_all_nodes_died_get_an_owner() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = ["a", "b"].map(|name| {
        let mut node = Node::new(&BROKER.addresses, "halves", name, dir.path());
        // Closing them takes a moment, in which the first node is killed.
        node.partitions = 32;
        node
    });
    let mut first = nodes[0].start();
    until_answered(&first.client, "/readyz");
    let flows: Vec<_> = (0..2000)
        .map(|n| TestFlow::new(1, &format!("app-{n}"), "b", "v", 3, 4))
        .collect();
    post(&first.client, "key", &flows);
    let mut second = nodes[1].start();
    // Half of the partitions move to the second node.
    until_logged(&first, "closed a partition");
    first.kill();
    second.kill();
    let daemons = nodes.each_ref().map(Node::start);
    for daemon in &daemons {
        let response = until_answered(&daemon.client, "/flows?hour=1");
        assert_eq!(response.rows().len(), flows.len());
    }
    daemons.into_iter().for_each(Daemon::stop);
}
