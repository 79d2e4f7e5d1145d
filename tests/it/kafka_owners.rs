//! The topic of owners, with a real broker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flowtally::service::cluster::kafka::{
    KafkaError, Owners, Producer, Signer, Truncation, ensure_topics,
};
use parking_lot::Mutex;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::kafka::{BROKER, block_on, client, count, o, p, settings};
use crate::wait::until;

/// Signs nothing, and accepts everything.
#[derive(Debug)]
pub(crate) struct Unsigned;

impl Signer for Unsigned {
    fn sign(&self, _: &str) -> Option<String> {
        None
    }

    fn verify(&self, _: &str, _: Option<&str>) -> bool {
        true
    }
}

#[test]
fn announcements_are_found_by_a_late_reader() {
    let broker = &*BROKER;
    let of = |node: &str| settings(&broker.addresses, "announced", node);
    ensure_topics(&of("a"), count(2)).unwrap();
    let producer = Producer::new(&of("a")).unwrap();
    let first = Owners::open(
        &of("a"),
        "http://a",
        &producer,
        Arc::new(Unsigned),
        count(2),
    )
    .unwrap();
    assert!(first.table().is_empty());
    block_on(first.publish_ownership(p(0), o(5))).unwrap();
    block_on(first.publish_ownership(p(1), o(6))).unwrap();
    until("it reads its own", || first.table().len() == 2);
    let epoch = first.owner(p(0)).unwrap().epoch;
    block_on(first.publish_ownership(p(0), o(9))).unwrap();

    let second = Owners::open(
        &of("b"),
        "http://b",
        &producer,
        Arc::new(Unsigned),
        count(2),
    )
    .unwrap();
    let owner = second.owner(p(0)).unwrap();
    assert_eq!((owner.node.as_str(), owner.url.as_str()), ("a", "http://a"));
    assert_eq!(
        (owner.epoch, owner.offset),
        (epoch, o(9)),
        "it is the same ownership"
    );
    assert_eq!(second.owner(p(1)).unwrap().offset, o(6));
    block_on(second.publish_ownership(p(0), o(9))).unwrap();
    until("a change is received", || {
        first.owner(p(0)).unwrap().node == "b"
    });
    assert!(first.owner(p(0)).unwrap().epoch > epoch);

    // The journal has no such partition.
    block_on(first.publish_ownership(p(2), o(9))).unwrap();
    block_on(first.publish_ownership(p(0), o(10))).unwrap();
    until("the last is read", || {
        second.owner(p(0)).unwrap().offset == o(10)
    });
    assert_eq!(second.owner(p(2)), None);

    // The journal got more partitions meanwhile.
    let error = Owners::open(
        &of("c"),
        "http://c",
        &producer,
        Arc::new(Unsigned),
        count(3),
    )
    .unwrap_err();
    assert!(
        matches!(error, KafkaError::PartitionsChanged { was, is, .. } if was == count(2) && is == count(3)),
        "{error}"
    );

    let nowhere = Owners::open(
        &settings(&broker.addresses, "no-such", "a"),
        "http://a",
        &producer,
        Arc::new(Unsigned),
        count(2),
    );
    let error = nowhere.unwrap_err();
    assert!(
        matches!(
            error,
            KafkaError::NoTopic { .. } | KafkaError::Unavailable { .. }
        ),
        "{error}"
    );
}

/// A signature is the token itself.
#[derive(Debug)]
struct Named(Mutex<Vec<&'static str>>);

impl Signer for Named {
    fn sign(&self, _: &str) -> Option<String> {
        self.0.lock().first().map(ToString::to_string)
    }

    fn verify(&self, _: &str, signature: Option<&str>) -> bool {
        signature.is_some_and(|token| self.0.lock().contains(&token))
    }
}

#[test]
fn permanent_announcements_outlive_their_token_and_overwrites() {
    let broker = &*BROKER;
    let of = |node: &str| settings(&broker.addresses, "remembered", node);
    ensure_topics(&of("a"), count(4)).unwrap();
    let producer = Producer::new(&of("a")).unwrap();
    let open = |node: &str, tokens: &Arc<Named>, partitions| {
        let url = format!("http://{node}");
        Owners::open(
            &of(node),
            &url,
            &producer,
            tokens.clone(),
            count(partitions),
        )
    };
    let tokens = |of: &[&'static str]| Arc::new(Named(Mutex::new(of.to_vec())));
    let (first, only_new) = (tokens(&["old"]), tokens(&["new"]));
    let running = open("a", &first, 4).unwrap();
    let truncation = Truncation {
        partition: p(3),
        sums_to: o(29),
        kafka_to: o(16),
    };
    running.report_truncation(truncation);

    // Under an unknown token, no announcement is valid.
    let stranger = tokens(&["guess"]);
    let other = open("x", &stranger, 4).unwrap();
    assert_eq!(other.truncation(p(3)), None);
    drop(other);

    *first.0.lock() = vec!["new", "old"];
    running.publish_permanent();
    until("it is known under the new token", || {
        open("b", &only_new, 4).unwrap().truncation(p(3)) == Some(truncation)
    });
    let error = open("b", &only_new, 8).unwrap_err();
    assert!(
        matches!(error, KafkaError::PartitionsChanged { was, is, .. } if was == count(4) && is == count(8)),
        "{error}"
    );

    // Compaction keeps only this one.
    let over: BaseProducer = client(&broker.addresses).create().unwrap();
    for (key, said) in [
        ("lost/3", r#"{"partition":3,"sums_to":1,"kafka_to":1}"#),
        ("journal", r#"{"partitions":8,"seal":"no"}"#),
    ] {
        let record = BaseRecord::to("remembered-owners").partition(0);
        over.send(record.key(key).payload(said)).unwrap();
    }
    over.flush(Duration::from_secs(30)).unwrap();
    running.publish_permanent();
    until("both are written again", || {
        let written = last_of_keys(&of("a").brokers, "remembered-owners");
        written["lost/3"] == r#"{"partition":3,"sums_to":29,"kafka_to":16,"seal":"new"}"#
            && written["journal"] == r#"{"partitions":4,"seal":"new"}"#
    });
}

/// The messages that compaction would keep in a topic of one partition.
fn last_of_keys(brokers: &str, topic: &str) -> BTreeMap<String, String> {
    let mut config = client(brokers);
    config.set("group.id", "last-of-keys");
    let reader: BaseConsumer = config.create().unwrap();
    let timeout = Duration::from_secs(30);
    let mut left = BTreeMap::new();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, rdkafka::Offset::Beginning)
        .unwrap();
    reader.assign(&list).unwrap();
    let mut next = 0;
    let (_, end) = reader.fetch_watermarks(topic, 0, timeout).unwrap();
    while next < end {
        let message = reader.poll(timeout).unwrap().unwrap();
        next = message.offset() + 1;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        left.insert(
            text(message.key().unwrap()),
            text(message.payload().unwrap()),
        );
    }
    left
}
