//! Checkpoints of partitions: a node without stores starts from them, even if Kafka has deleted messages, and gets the
//! same sums.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::RngExt;
use rdkafka::admin::AdminOptions;
use rdkafka::{Offset, TopicPartitionList};

use crate::cluster::post;
use crate::kafka::{BROKER, admin, block_on};
use crate::nodes::{Node, rows, until_answered};
use crate::support::{Daemon, Model, TestFlow, add_to, odd_flow, random};
use crate::wait::{at_most, until};

const PARTITIONS: i32 = 6;

fn node(topic: &str, name: &str, dir: &Path) -> Node {
    let mut node = Node::new(&BROKER.addresses, topic, name, dir);
    let url = format!("file://{}/objects", dir.display());
    node.more = ["--checkpoint-url", &url, "--checkpoint-interval", "1"]
        .map(String::from)
        .into();
    node
}

/// A metric with a partition as label.
fn by_partition(daemon: &Daemon, name: &str) -> BTreeMap<i32, u64> {
    let body = daemon.client.get("/metrics", &[]).unwrap().body;
    let text = String::from_utf8(body).unwrap();
    let lines = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?.strip_prefix("{partition=\"")?;
        let (partition, value) = rest.split_once("\"} ")?;
        Some((partition.parse().unwrap(), value.parse().unwrap()))
    });
    lines.collect()
}

fn total(daemon: &Daemon, name: &str) -> u64 {
    let body = daemon.client.get("/metrics", &[]).unwrap().body;
    let text = String::from_utf8(body).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap().parse().unwrap()
}

/// Waits until all of the node's sums are in checkpoints, and returns their positions.
fn until_in_checkpoints(daemon: &Daemon) -> BTreeMap<i32, u64> {
    let mut positions = BTreeMap::new();
    until("all to be in checkpoints", || {
        positions = by_partition(daemon, "flowtally_partition_position");
        let in_checkpoints = by_partition(daemon, "flowtally_checkpoint_position");
        positions.len() == PARTITIONS as usize
            && positions
                .iter()
                .all(|(p, at)| *at == 0 || in_checkpoints.get(p) == Some(at))
    });
    positions
}

/// Deletes messages, as the topic's retention would.
fn delete_records(topic: &str, before: &BTreeMap<i32, u64>) {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in before {
        let offset = Offset::Offset(*offset as i64);
        list.add_partition_offset(topic, *partition, offset)
            .unwrap();
    }
    let deleted = block_on(admin().delete_records(&list, &AdminOptions::new())).unwrap();
    for element in deleted.elements() {
        element.error().unwrap();
    }
}

/// The number of batches that were sent, and the expected sums.
struct Sent {
    random: rand::rngs::StdRng,
    model: Model,
    batches: usize,
}

impl Sent {
    fn new(test: &str) -> Sent {
        Sent {
            random: random(test),
            model: Model::new(),
            batches: 0,
        }
    }

    fn more(&mut self, daemon: &Daemon) {
        let flows: Vec<TestFlow> = (0..300)
            .map(|_| odd_flow(&mut self.random, &[0, 1, 7, 8]))
            .collect();
        self.batches += 1;
        post(&daemon.client, &format!("batch-{}", self.batches), &flows);
        add_to(&mut self.model, &flows);
    }

    fn check(&self, daemon: &Daemon) {
        let response = until_answered(&daemon.client, "/flows?from=0&to=100");
        assert!(response.rows() == rows(&self.model), "{}", daemon.log());
    }
}

/// The descriptions of a partition's checkpoints, the oldest first.
fn descriptions(dir: &Path, topic: &str, partition: i32) -> Vec<(PathBuf, serde_json::Value)> {
    let dir = dir.join("objects").join(topic).join(partition.to_string());
    let found = std::fs::read_dir(dir).into_iter().flatten();
    let mut paths: Vec<_> = found
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_file())
        .collect();
    paths.sort();
    let read = |path: PathBuf| {
        let value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        (path, value)
    };
    paths.into_iter().map(read).collect()
}

#[test]
fn a_new_node_starts_from_checkpoints_when_kafka_has_only_the_rest() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, topic) = (temp.path(), "checkpoints");
    let mut sent = Sent::new("a_new_node_starts_from_checkpoints");
    let a = node(topic, "a", dir);
    let mut daemon = a.start();
    until_answered(&daemon.client, "/hours");
    (0..5).for_each(|_| sent.more(&daemon));
    let first = until_in_checkpoints(&daemon);
    let files_first = total(&daemon, "flowtally_checkpoint_files_total");
    // Only new files are sent.
    sent.more(&daemon);
    let positions = until_in_checkpoints(&daemon);
    let files_sent = total(&daemon, "flowtally_checkpoint_files_total") - files_first;
    let mut files_all = 0;
    for (partition, at) in positions.iter().filter(|(p, at)| first[p] != **at) {
        let (_, newest) = descriptions(dir, topic, *partition).pop().unwrap();
        assert_eq!(newest["position"], *at);
        files_all += newest["files"].as_array().unwrap().len() as u64;
    }
    assert!(
        files_sent > 0 && files_sent < files_all,
        "{files_sent} of {files_all}"
    );
    assert_eq!(total(&daemon, "flowtally_checkpoint_failures_total"), 0);

    // The node is lost, with its disk, and Kafka deletes the messages that are in checkpoints.
    delete_records(topic, &positions);
    daemon.kill();
    std::fs::remove_dir_all(&a.dir).unwrap();
    let b = node(topic, "b", dir);
    let daemon = b.start();
    sent.check(&daemon);
    let with_some = positions.values().filter(|at| **at > 0).count() as u64;
    assert_eq!(
        total(&daemon, "flowtally_checkpoint_restores_total"),
        with_some
    );
    sent.more(&daemon);
    sent.check(&daemon);
    daemon.stop();

    // An older store is useless to a node that returns, and is replaced.
    let daemon = b.start();
    until_answered(&daemon.client, "/hours");
    assert_eq!(total(&daemon, "flowtally_checkpoint_restores_total"), 0);
    let old = dir.join("old");
    daemon.stop();
    copy(&b.dir, &old);
    let daemon = b.start();
    until_answered(&daemon.client, "/hours");
    (0..3).for_each(|_| sent.more(&daemon));
    let positions = until_in_checkpoints(&daemon);
    daemon.stop();
    delete_records(topic, &positions);
    std::fs::remove_dir_all(&b.dir).unwrap();
    std::fs::rename(&old, &b.dir).unwrap();
    let daemon = b.start();
    sent.check(&daemon);
    assert!(total(&daemon, "flowtally_checkpoint_restores_total") > 0);
    sent.more(&daemon);
    sent.check(&daemon);
    daemon.stop();

    // Without checkpoints and without the messages, the log names the missing part.
    std::fs::remove_dir_all(&b.dir).unwrap();
    std::fs::rename(dir.join("objects"), dir.join("elsewhere")).unwrap();
    let daemon = b.start();
    until("the log names the missing part", || {
        daemon.log().contains("of 0 checkpoints none can be used")
    });
    assert_eq!(daemon.client.get("/readyz", &[]).unwrap().status, 503);
    daemon.stop();
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status();
    assert!(copied.unwrap().success());
}

#[test]
fn a_damaged_checkpoint_is_skipped() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, topic) = (temp.path(), "damaged-checkpoint");
    let mut sent = Sent::new("a_damaged_checkpoint_is_skipped");
    let a = node(topic, "a", dir);
    let daemon = a.start();
    until_answered(&daemon.client, "/hours");
    sent.more(&daemon);
    let first = until_in_checkpoints(&daemon);
    sent.more(&daemon);
    let second = until_in_checkpoints(&daemon);
    daemon.stop();
    delete_records(topic, &first);
    // In one, a file that the previous one lacks is changed; another one is truncated.
    let moved: Vec<_> = second
        .keys()
        .filter(|p| first[p] > 0 && first[p] != second[p])
        .collect();
    assert!(moved.len() > 1, "{first:?} {second:?}");
    for (n, partition) in moved.iter().take(2).enumerate() {
        let all = descriptions(dir, topic, **partition);
        let [.., (_, before), (path, newest)] = &all[..] else {
            panic!("{all:?}");
        };
        let objects = |of: &serde_json::Value| -> Vec<String> {
            let files = of["files"].as_array().unwrap().iter();
            let sums = files.filter(|f| f["name"].as_str().unwrap().ends_with(".sst"));
            sums.map(|f| f["object"].as_str().unwrap().into()).collect()
        };
        let shared = objects(before);
        let new = objects(newest)
            .into_iter()
            .find(|object| !shared.contains(object));
        let file = path.with_file_name("files").join(new.unwrap());
        let mut content = std::fs::read(&file).unwrap();
        match n {
            0 => content[20] ^= 1,
            _ => drop(content.pop()),
        }
        std::fs::write(file, content).unwrap();
    }
    std::fs::remove_dir_all(&a.dir).unwrap();
    let daemon = a.start();
    sent.check(&daemon);
    let log = daemon.log();
    assert_eq!(log.matches("skipped a checkpoint").count(), 2, "{log}");
    assert!(
        log.contains("has changed") && log.contains("bytes instead of"),
        "{log}"
    );
    assert_eq!(total(&daemon, "flowtally_checkpoint_failures_total"), 2);
    daemon.stop();

    // Checkpoints of another Kafka cluster are refused.
    for partition in 0..PARTITIONS {
        for (path, _) in descriptions(dir, topic, partition) {
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, text.replace(" in Kafka ", " in Kafka not-")).unwrap();
        }
    }
    std::fs::remove_dir_all(&a.dir).unwrap();
    let daemon = a.start();
    until("they are refused", || {
        daemon.log().contains("a --checkpoint-url of its own")
    });
    assert_eq!(daemon.client.get("/flows?hour=1", &[]).unwrap().status, 503);
    daemon.stop();
}

/// Kills the node at random moments, while it makes and while it downloads checkpoints.
#[test]
fn a_kill_during_an_upload_or_download_of_checkpoints_loses_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, topic) = (temp.path(), "checkpoints-and-kills");
    let mut sent = Sent::new("a_kill_while_checkpoints_are_made_or_fetched");
    let a = node(topic, "a", dir);
    let daemon = a.start();
    until_answered(&daemon.client, "/hours");
    (0..3).for_each(|_| sent.more(&daemon));
    let mut deleted = until_in_checkpoints(&daemon);
    daemon.stop();
    let (mut fetching, mut rounds) = (0, 0);
    while fetching < 3 && rounds < 30 {
        rounds += 1;
        delete_records(topic, &deleted);
        std::fs::remove_dir_all(&a.dir).unwrap();
        let mut daemon = a.start();
        // Until the download of one of its partitions begins.
        let partitions = a.dir.join("partitions");
        let has = |end: &str| {
            let found = std::fs::read_dir(&partitions)
                .into_iter()
                .flatten()
                .flatten();
            found
                .filter(|e| e.file_name().to_string_lossy().ends_with(end))
                .count()
        };
        let deadline = Instant::now() + at_most(10);
        while has(".incomplete") == 0 && Instant::now() < deadline {
            // It may end within milliseconds.
            std::thread::sleep(Duration::from_micros(100));
        }
        // The moment does not matter, here and below.
        std::thread::sleep(Duration::from_millis(sent.random.random_range(0..12)));
        daemon.kill();
        fetching += usize::from(has(".incomplete") > 0);
        let mut daemon = a.start();
        sent.check(&daemon);
        // The next checkpoints are due at random times within the second.
        sent.more(&daemon);
        std::thread::sleep(Duration::from_millis(sent.random.random_range(0..1_000)));
        daemon.kill();
        let daemon = a.start();
        sent.check(&daemon);
        deleted = until_in_checkpoints(&daemon);
        daemon.stop();
    }
    println!("{rounds} rounds, {fetching} killed while fetching");
    assert!(fetching >= 3);
}
