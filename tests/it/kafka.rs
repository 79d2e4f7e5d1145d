//! Kafka as a journal, with a real broker: acknowledged batches are read once, while nodes join and leave.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use flow::{Offset, Partition, PartitionCount};
use flowtally::service::cluster::kafka::{
    ConsumedMessage, Consumer, Control, Handler, KafkaError, KafkaSettings, Producer, ensure_topics,
};

use crate::wait::until;

/// No process listens there.
pub(crate) const NOWHERE: &str = "127.0.0.1:9";

/// A broker that ends with this process, however that ends.
pub struct Broker {
    dir: PathBuf,
    pub addresses: String,
}

/// A broker that tests share if they do not disturb it.
pub static BROKER: LazyLock<Broker> = LazyLock::new(Broker::start);

impl Broker {
    pub fn start() -> Broker {
        let dir = tempfile::tempdir().unwrap().keep();
        let addresses = script(&["start", dir.to_str().unwrap()]);
        Broker {
            dir,
            addresses: addresses.trim().to_owned(),
        }
    }

    /// SIGKILL.
    pub fn kill(&self) {
        script(&["kill", self.dir.to_str().unwrap(), "1"]);
    }

    /// Restarts the broker with its data.
    pub fn restart(&self) {
        script(&["restart", self.dir.to_str().unwrap(), "1"]);
    }

    pub fn stop(&self) {
        script(&["stop", self.dir.to_str().unwrap()]);
    }
}

fn script(arguments: &[&str]) -> String {
    script_by(Command::new("bash"), arguments)
}

/// One of the project's scripts, run by `command`, which is bash with what a test wants around it, with the target
/// directory that this test was built into.
pub fn script_command(mut command: Command, name: &str) -> Command {
    // target/tests/flowtally
    let target = Path::new(env!("CARGO_BIN_EXE_flowtally"))
        .ancestors()
        .nth(2)
        .unwrap();
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    command.arg(scripts.join(name));
    command.env("CARGO_TARGET_DIR", target);
    command
}

/// A client for an operator's changes to topics.
pub fn admin() -> AdminClient<DefaultClientContext> {
    client(&BROKER.addresses).create().unwrap()
}

pub fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}

/// `scripts/kafka`.
pub fn script_by(command: Command, arguments: &[&str]) -> String {
    let output = script_command(command, "kafka")
        .args(arguments)
        .env("KAFKA_UNTIL", std::process::id().to_string())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "Kafka is not available; it needs bash, the Debian package maven, and Maven Central: {error}"
    );
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn settings(brokers: &str, topic: &str, node: &str) -> KafkaSettings {
    KafkaSettings {
        brokers: brokers.to_owned(),
        topic: topic.to_owned(),
        node: node.to_owned(),
        // On a busy machine, a member may be silent for some seconds.
        session_timeout: Duration::from_secs(20),
        options: Vec::new(),
    }
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(future)
}

pub(crate) fn p(number: i32) -> Partition {
    Partition::try_from(number).unwrap()
}

pub(crate) fn o(number: u64) -> Offset {
    Offset::try_from(number).unwrap()
}

pub(crate) fn count(partitions: i32) -> PartitionCount {
    PartitionCount::try_from(partitions).unwrap()
}

/// The stores of all nodes, as if each partition's store moved with the partition: messages by offset.
#[derive(Debug, Default)]
pub(crate) struct Stores {
    pub(crate) messages: BTreeMap<i32, BTreeMap<u64, Vec<u8>>>,
    pub(crate) owners: BTreeMap<i32, String>,
    pub(crate) errors: Vec<KafkaError>,
    /// The start of partitions without messages; `None` means that it is given later.
    pub(crate) start: BTreeMap<i32, Option<u64>>,
}

impl Stores {
    pub(crate) fn count(&self) -> usize {
        self.messages.values().map(BTreeMap::len).sum()
    }

    pub(crate) fn owned_by(&self, node: &str) -> usize {
        self.owners.values().filter(|owner| *owner == node).count()
    }
}

#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) stores: Arc<Mutex<Stores>>,
}

impl Node {
    pub(crate) fn join(settings: &KafkaSettings, stores: &Arc<Mutex<Stores>>) -> Consumer {
        let node = Node {
            name: settings.node.clone(),
            stores: stores.clone(),
        };
        Consumer::join(settings, node).unwrap()
    }
}

impl Handler for Node {
    fn assigned(&mut self, partition: Partition) -> Option<Offset> {
        let partition = partition.get();
        let mut stores = self.stores.lock();
        let before = stores.owners.insert(partition, self.name.clone());
        assert_eq!(before, None, "two own partition {partition}");
        let last = stores
            .messages
            .get(&partition)
            .and_then(|m| m.keys().next_back().copied());
        let start = match last {
            Some(last) => Some(last + 1),
            None => stores.start.get(&partition).copied().unwrap_or(Some(0)),
        };
        start.map(o)
    }

    fn messages(&mut self, _: &Control, partition: Partition, batch: &[ConsumedMessage<'_>]) {
        let partition = partition.get();
        let mut stores = self.stores.lock();
        assert_eq!(stores.owners.get(&partition), Some(&self.name));
        let messages = stores.messages.entry(partition).or_default();
        for record in batch {
            let last = messages.keys().next_back();
            let offset = record.offset.get();
            assert!(last.is_none_or(|last| *last < offset), "{record:?}");
            messages.insert(offset, record.payload.to_vec());
        }
    }

    fn revoked(&mut self, partitions: &[Partition]) {
        let mut stores = self.stores.lock();
        for partition in partitions {
            let owner = stores.owners.remove(&partition.get());
            assert_eq!(owner.as_ref(), Some(&self.name));
        }
    }

    fn lost(&mut self, partitions: &[Partition]) {
        self.revoked(partitions);
    }

    fn failed(&mut self, error: KafkaError) {
        self.stores.lock().errors.push(error);
    }
}

#[test]
fn members_that_join_and_leave_read_everything_once() {
    let broker = &*BROKER;
    let of = |node: &str| settings(&broker.addresses, "members", node);
    assert_eq!(ensure_topics(&of("a"), count(4)).unwrap(), count(4));
    let existing = ensure_topics(&of("a"), count(9)).unwrap();
    assert_eq!(existing, count(4), "they existed");
    let producer = Producer::new(&of("a")).unwrap();
    let mut sent = BTreeMap::new();
    let mut produce = |messages: usize| {
        let acknowledgements: Vec<_> = (0..messages)
            .map(|_| {
                let n = sent.len();
                let partition = (n % 4) as i32;
                let payload = format!("message {n}");
                sent.insert(payload.clone(), partition);
                producer.send(p(partition), Some(b"key"), payload.as_bytes())
            })
            .collect();
        for acknowledgement in acknowledgements {
            block_on(acknowledgement).unwrap();
        }
        sent.len()
    };
    let stores = Arc::new(Mutex::new(Stores::default()));
    let all_read = |sent: usize| until("all is read", || stores.lock().count() == sent);

    let first = Node::join(&of("a"), &stores);
    all_read(produce(500));
    let second = Node::join(&of("b"), &stores);
    while stores.lock().owned_by("b") < 2 {
        produce(50);
    }
    all_read(produce(500));
    assert_eq!(stores.lock().owned_by("a"), 2);
    let progress = second.control().progress();
    assert_eq!(progress.len(), 2);
    until("progress is known", || {
        let progress = second.control().progress();
        progress.values().all(|p| {
            let heard_lately = |at: Instant| at.elapsed() < Duration::from_secs(3);
            p.end.is_some() && p.end == p.position && p.contact.is_some_and(heard_lately)
        })
    });

    // A member that returns within its session keeps its partitions.
    drop(first);
    assert_eq!(stores.lock().owned_by("a"), 0);
    let first = Node::join(&of("a"), &stores);
    until("it is back", || stores.lock().owned_by("a") == 2);
    assert_eq!(stores.lock().owned_by("b"), 2);

    // A member that does not return loses them.
    drop(first);
    let total = produce(500);
    until("the other has all", || stores.lock().owned_by("b") == 4);
    all_read(total);
    drop(second);

    let stores = stores.lock();
    assert_eq!(stores.errors, []);
    let mut read = BTreeMap::new();
    for (partition, messages) in &stores.messages {
        for payload in messages.values() {
            let payload = String::from_utf8(payload.clone()).unwrap();
            assert_eq!(read.insert(payload, *partition), None, "read twice");
        }
    }
    assert_eq!(read, sent);
}

#[test]
fn a_pause_ends_when_the_partition_is_revoked() {
    let broker = &*BROKER;
    let of = |node: &str| settings(&broker.addresses, "paused", node);
    ensure_topics(&of("a"), count(2)).unwrap();
    let producer = Producer::new(&of("a")).unwrap();
    let stores = Arc::new(Mutex::new(Stores::default()));
    let owned_by = |node: &str| stores.lock().owned_by(node);
    let first = Node::join(&of("a"), &stores);
    // The client ignores a pause of a partition that was not passed to it yet.
    until("it reads all", || {
        let progress = first.control().progress();
        progress.len() == 2 && progress.values().all(|p| p.position.is_some())
    });
    (0..2).for_each(|partition| first.control().pause(p(partition)));
    let second = Node::join(&of("b"), &stores);
    until("one partition moves", || owned_by("b") == 1);
    let went = stores.lock().owners.clone();
    let went = *went.iter().find(|(_, node)| *node == "b").unwrap().0;
    drop(second);
    until("it moves back", || owned_by("a") == 2);
    for partition in 0..2 {
        block_on(producer.send(p(partition), None, b"message")).unwrap();
    }
    let messages = |partition| {
        let stores = stores.lock();
        stores.messages.get(&partition).map_or(0, BTreeMap::len)
    };
    until("the returned partition is read", || messages(went) == 1);
    assert_eq!(messages(1 - went), 0, "the other partition is still paused");
    first.control().resume(p(1 - went));
    until("the other is read, too", || messages(1 - went) == 1);
}

#[test]
fn nothing_acknowledged_is_lost_when_the_broker_is_killed() {
    let broker = Broker::start();
    let settings = settings(&broker.addresses, "killed", "a");
    ensure_topics(&settings, count(2)).unwrap();
    let producer = Producer::new(&settings).unwrap();
    let stores = Arc::new(Mutex::new(Stores::default()));
    let consumer = Node::join(&settings, &stores);
    until("partitions are assigned", || {
        stores.lock().owned_by("a") == 2
    });

    let mut pending = Vec::new();
    let mut acknowledged = BTreeMap::new();
    for n in 0..400_usize {
        let (partition, payload) = ((n % 2) as i32, format!("message {n}").into_bytes());
        let acknowledgement = producer.send(p(partition), None, &payload);
        if n < 100 {
            let offset = block_on(acknowledgement).unwrap().unwrap();
            acknowledged.insert((partition, offset), payload);
        } else {
            pending.push((partition, payload, acknowledgement));
        }
        match n {
            // Some messages are in flight then.
            200 => broker.kill(),
            300 => {
                until("the silence is detected", || {
                    let progress = consumer.control().progress();
                    let silent = |contact: Option<Instant>| {
                        contact.is_none_or(|c| c.elapsed() > Duration::from_secs(3))
                    };
                    progress.values().all(|p| silent(p.contact))
                });
                broker.restart();
            }
            _ => {}
        }
    }
    for (partition, payload, acknowledgement) in pending {
        match block_on(acknowledgement) {
            Ok(Some(offset)) => drop(acknowledged.insert((partition, offset), payload)),
            // The broker recognised a retry, and has the message.
            Ok(None) => {}
            Err(error) => assert!(error.is_temporary(), "{error}"),
        }
    }
    // The same client continues, once the broker responds again: on a busy machine, that can take longer than a message
    // waits. Each attempt has its own payload, since a message that timed out may have been written.
    for partition in 0..2 {
        let mut attempt = 0;
        until("the client continues", || {
            attempt += 1;
            let payload = format!("last {partition} {attempt}").into_bytes();
            match block_on(producer.send(p(partition), None, &payload)) {
                Ok(Some(offset)) => {
                    acknowledged.insert((partition, offset), payload);
                    true
                }
                // As above.
                Ok(None) => true,
                Err(error) => {
                    assert!(error.is_temporary(), "{error}");
                    false
                }
            }
        });
    }
    until("the last are read", || {
        let stores = stores.lock();
        let last = |p: i32| stores.messages.get(&p).and_then(|m| m.values().next_back());
        (0..2).all(|p| last(p).is_some_and(|payload| payload.starts_with(b"last")))
    });
    let stores = stores.lock();
    for ((partition, offset), payload) in &acknowledged {
        assert_eq!(stores.messages[partition].get(&offset.get()), Some(payload));
    }
    let payloads: Vec<_> = stores
        .messages
        .values()
        .flat_map(BTreeMap::values)
        .collect();
    let distinct: BTreeSet<_> = payloads.iter().collect();
    assert_eq!(payloads.len(), distinct.len(), "a retry was written twice");
    println!(
        "{} of 402 acknowledged, {} written",
        acknowledged.len(),
        payloads.len()
    );
}

/// A broker that was killed and restarted may report such an offset for a moment.
#[test]
fn reading_continues_after_a_false_out_of_range_error() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("errs", 2, 1).unwrap();
    let settings = settings(&cluster.bootstrap_servers(), "errs", "a");
    let producer = Producer::new(&settings).unwrap();
    let stores = Arc::new(Mutex::new(Stores::default()));
    let consumer = Node::join(&settings, &stores);
    for round in 1..=3 {
        for partition in 0..2 {
            let payload = format!("{partition} {round}");
            block_on(producer.send(p(partition), None, payload.as_bytes())).unwrap();
        }
        until("all is read", || stores.lock().count() == 2 * round);
        let out_of_range = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE;
        cluster.request_errors(RDKafkaApiKey::Fetch, &[out_of_range]);
    }
    assert_eq!(stores.lock().errors, []);
    drop(consumer);
}

#[test]
fn each_partition_starts_where_its_store_ends() {
    let broker = &*BROKER;
    let settings = settings(&broker.addresses, "offsets", "a");
    ensure_topics(&settings, count(4)).unwrap();
    let producer = Producer::new(&settings).unwrap();
    let produce = |partition: i32, n: u64| {
        let payload = n.to_string();
        assert_eq!(
            block_on(producer.send(p(partition), None, payload.as_bytes())),
            Ok(Some(o(n)))
        );
    };
    (0..4).for_each(|partition| (0..10).for_each(|n| produce(partition, n)));

    let stores = Arc::new(Mutex::new(Stores {
        // The end; an offset beyond the end; and a partition whose store is being restored.
        start: [(0, Some(7)), (1, Some(10)), (2, Some(11)), (3, None)].into(),
        ..Stores::default()
    }));
    let consumer = Node::join(&settings, &stores);
    let offsets = |partition: i32| -> Vec<u64> {
        let stores = stores.lock();
        let messages = stores.messages.get(&partition);
        messages
            .map(|m| m.keys().copied().collect())
            .unwrap_or_default()
    };
    until("partition 0 is read", || offsets(0) == [7, 8, 9]);
    until("the error is reported", || !stores.lock().errors.is_empty());
    let out_of_range = KafkaError::OutOfRange {
        partition: p(2),
        offset: o(11),
        first: o(0),
        end: o(10),
    };
    assert_eq!(stores.lock().errors, [out_of_range]);
    (0..4).for_each(|partition| produce(partition, 10));
    until("partition 1 is read", || offsets(1) == [10]);
    assert_eq!(consumer.control().progress()[&p(3)].position, None);
    assert!(offsets(3).is_empty());
    consumer.control().start(p(3), o(4));
    until("partition 3 is read", || {
        offsets(3) == [4, 5, 6, 7, 8, 9, 10]
    });
    assert_eq!(consumer.control().progress()[&p(3)].position, Some(o(11)));
    assert!(offsets(2).is_empty(), "it is stopped");

    // A paused partition does not delay the others.
    until("partition 0 is read to its end", || {
        offsets(0) == [7, 8, 9, 10]
    });
    let before = offsets(0);
    consumer.control().pause(p(0));
    (0..4).for_each(|partition| produce(partition, 11));
    until("the other continues", || offsets(1).last() == Some(&11));
    assert_eq!(offsets(0), before);
    consumer.control().resume(p(0));
    until("it continues", || offsets(0) == [7, 8, 9, 10, 11]);
}
