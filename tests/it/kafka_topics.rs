//! Topics that are refused, and errors of Kafka, with a real broker.

use std::sync::Arc;
use std::time::Instant;

use flowtally::service::cluster::kafka::{
    KafkaError, KafkaSettings, MESSAGE_BYTES_MAX, Owners, Producer, ensure_topics,
};
use parking_lot::Mutex;
use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};

use crate::kafka::{BROKER, NOWHERE, Node, Stores, admin, block_on, count, o, p, settings};
use crate::kafka_owners::Unsigned;
use crate::wait::{at_most, until};

#[test]
fn topics_that_would_lose_messages_are_refused() {
    let broker = &*BROKER;
    let admin = admin();
    for (topic, journal, owners, says) in [
        (
            "wrong-journal",
            ("cleanup.policy", "compact"),
            "compact",
            "topic wrong-journal has cleanup.policy=compact",
        ),
        (
            "wrong-owners",
            ("cleanup.policy", "delete"),
            "delete",
            "topic wrong-owners-owners has cleanup.policy=delete",
        ),
        (
            "short",
            ("max.message.bytes", "1000000"),
            "compact",
            "topic short has max.message.bytes=1000000",
        ),
    ] {
        let of_owners = format!("{topic}-owners");
        let topics = [
            NewTopic::new(topic, 2, TopicReplication::Fixed(1)).set(journal.0, journal.1),
            NewTopic::new(&of_owners, 1, TopicReplication::Fixed(1)).set("cleanup.policy", owners),
        ];
        for made in block_on(admin.create_topics(&topics, &AdminOptions::new())).unwrap() {
            made.unwrap();
        }
        let error = ensure_topics(&settings(&broker.addresses, topic, "a"), count(2)).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn unreachable_brokers_are_an_error_within_the_timeout() {
    let settings = settings(NOWHERE, "flows", "a");
    let start = Instant::now();
    let producer = Producer::new(&settings).unwrap();
    let sent = producer.send(p(0), None, b"x");
    let stores = Arc::new(Mutex::new(Stores::default()));
    let consumer = Node::join(&settings, &stores);
    let owners = Owners::open(
        &settings,
        "http://a",
        &producer,
        Arc::new(Unsigned),
        count(2),
    );
    assert!(owners.unwrap_err().is_temporary());
    assert!(block_on(sent).unwrap_err().is_temporary());
    let took = start.elapsed();
    assert!(took < at_most(14), "{took:?}");
    let error = ensure_topics(&settings, count(2)).unwrap_err();
    assert!(error.is_temporary(), "{error}");

    let large = vec![0; MESSAGE_BYTES_MAX - 1000];
    let mut sends: Vec<_> = (0..80).map(|_| producer.send(p(0), None, &large)).collect();
    let start = Instant::now();
    assert_eq!(block_on(sends.pop().unwrap()), Err(KafkaError::QueueFull));
    let took = start.elapsed();
    assert!(took < at_most(1), "{took:?}");

    let start = Instant::now();
    drop((consumer, sends, producer));
    let took = start.elapsed();
    assert!(took < at_most(5), "{took:?}");
}

#[test]
fn permanent_errors_of_kafka_are_distinguished_from_temporary_ones() {
    let broker = &*BROKER;
    let settings = settings(&broker.addresses, "kinds", "a");
    ensure_topics(&settings, count(2)).unwrap();
    let producer = Producer::new(&settings).unwrap();
    let longest = vec![7; MESSAGE_BYTES_MAX - 1000];
    assert_eq!(
        block_on(producer.send(p(0), None, &longest)),
        Ok(Some(o(0)))
    );
    let too_long = vec![7; MESSAGE_BYTES_MAX + 1];
    let sent = block_on(producer.send(p(0), None, &too_long));
    assert_eq!(sent, Err(KafkaError::TooLarge));
    let error = block_on(producer.send(p(2), None, b"x")).unwrap_err();
    assert!(matches!(error, KafkaError::NoTopic { .. }), "{error}");

    // If two nodes have one name, the first one has to exit.
    let stores = [(); 2].map(|()| Arc::new(Mutex::new(Stores::default())));
    let first = Node::join(&settings, &stores[0]);
    until("it reads", || stores[0].lock().count() == 1);
    let second = Node::join(&settings, &stores[1]);
    until("the name is taken", || {
        let errors = &stores[0].lock().errors;
        matches!(errors[..], [KafkaError::Fatal { .. }])
    });
    until("it has nothing left", || {
        first.control().progress().is_empty()
    });
    until("the other reads", || stores[1].lock().count() == 1);
    drop((first, second));

    let absent = KafkaSettings {
        topic: "absent".into(),
        ..settings
    };
    let start = Instant::now();
    let error = block_on(Producer::new(&absent).unwrap().send(p(0), None, b"x")).unwrap_err();
    assert!(matches!(error, KafkaError::NoTopic { .. }), "{error}");
    let took = start.elapsed();
    assert!(took < at_most(9), "{took:?}");
    let stores = Arc::new(Mutex::new(Stores::default()));
    let _consumer = Node::join(&absent, &stores);
    until("the missing topic is reported", || {
        let stores = stores.lock();
        stores
            .errors
            .iter()
            .any(|e| matches!(e, KafkaError::NoTopic { .. }))
    });
}
