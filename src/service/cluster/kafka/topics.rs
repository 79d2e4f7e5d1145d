//! The three topics: creates them if they are absent, and validates their settings.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::{KafkaError as RdKafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, Producer as _};

use super::error::with_context;
use super::settings::{Log, create, log_error};
use super::{KafkaError, KafkaSettings, MESSAGE_BYTES_MAX};
use flow::PartitionCount;

/// Replicas of each partition, if there are that many brokers.
const REPLICAS_MAX: usize = 3;
/// Maximum time for the topics to exist.
const TOPICS_SECONDS_MAX: u64 = 30;
/// The longest message as stored in the topic, with its record and batch headers.
const STORED_BYTES_MAX: usize = MESSAGE_BYTES_MAX + 1024;
const REQUEST_SECONDS_MAX: u64 = 10;
const POLL: Duration = Duration::from_millis(100);
/// How long Kafka keeps a message about addresses: longer than a node needs it.
const DIRECTORY_KEPT_MS: &str = "3600000";

const CONTEXT: &str = "finding the topics";

/// The ID of the cluster, which distinguishes topics of the same name in different clusters. Blocks.
///
/// # Errors
/// If no broker responds.
pub fn cluster_id(settings: &KafkaSettings) -> Result<String, KafkaError> {
    let admin: AdminClient<Log> = create(&settings.client(&[]), Log)?;
    let timeout = Duration::from_secs(REQUEST_SECONDS_MAX);
    let id = admin.inner().fetch_cluster_id(timeout);
    id.ok_or_else(|| KafkaError::Unavailable {
        context: "requesting the cluster's ID",
        why: format!("no broker responded within {REQUEST_SECONDS_MAX} s"),
    })
}

/// Remembers that a broker refused the client: a request for metadata only reports that no broker responded.
#[derive(Clone, Debug, Default)]
struct RefusalContext(Arc<Mutex<Option<KafkaError>>>);

impl ClientContext for RefusalContext {
    fn error(&self, error: RdKafkaError, reason: &str) {
        log_error(&error, reason);
        let refusals = [
            RDKafkaErrorCode::Authentication,
            RDKafkaErrorCode::SaslAuthenticationFailed,
            RDKafkaErrorCode::UnsupportedSASLMechanism,
            RDKafkaErrorCode::SSL,
        ];
        if error
            .rdkafka_error_code()
            .is_some_and(|code| refusals.contains(&code))
        {
            let why = reason.to_owned();
            *self.0.lock() = Some(KafkaError::Denied {
                context: CONTEXT,
                why,
            });
        }
    }
}

/// Creates the journal, with `partitions`, and the topics of owners and of addresses, if they are absent. Returns how many partitions the
/// journal has: an existing one keeps its number. Blocks.
///
/// # Errors
/// If the brokers are unavailable, or refuse.
pub fn ensure_topics(
    settings: &KafkaSettings,
    partitions: PartitionCount,
) -> Result<PartitionCount, KafkaError> {
    let admin: AdminClient<Log> = create(&settings.client(&[]), Log)?;
    // A client reports errors only if it is polled, as the producer is.
    let refusal = RefusalContext::default();
    let client: FutureProducer<RefusalContext> = create(&settings.client(&[]), refusal.clone())?;
    let deadline = Instant::now() + Duration::from_secs(TOPICS_SECONDS_MAX);
    let mut has_tried_directory = false;
    loop {
        let timeout = Duration::from_secs(REQUEST_SECONDS_MAX);
        let metadata = client.client().fetch_metadata(None, timeout);
        let metadata = metadata.map_err(|e| {
            refusal
                .0
                .lock()
                .take()
                .unwrap_or_else(|| with_context(CONTEXT)(e))
        })?;
        // `None` while the topic is absent or a partition has no leader.
        let partitions_of = |name: &str| {
            let topic = metadata.topics().iter().find(|t| t.name() == name)?;
            let led = topic.partitions().iter().all(|p| p.leader() >= 0);
            (led && !topic.partitions().is_empty()).then_some(topic.partitions().len())
        };
        let (journal, owners) = (&settings.topic, &settings.owners_topic());
        let directory = &settings.directory_topic();
        // Flows do not wait for the topic of addresses.
        let is_known = |name: &str| metadata.topics().iter().any(|t| t.name() == name);
        let has_directory = is_known(directory) || has_tried_directory;
        has_tried_directory = true;
        if let (Some(count), Some(_), true) =
            (partitions_of(journal), partitions_of(owners), has_directory)
        {
            validate_journal_topic(&admin, journal)?;
            validate_owners_topic(&admin, owners)?;
            let invalid = |what| KafkaError::OutOfBounds {
                context: CONTEXT,
                what,
            };
            return PartitionCount::try_from(count).map_err(invalid);
        }
        if Instant::now() >= deadline {
            let why = format!("{journal} and {owners} have partitions without a leader");
            return Err(KafkaError::Unavailable {
                context: CONTEXT,
                why,
            });
        }
        let replicas = metadata.brokers().len().min(REPLICAS_MAX);
        // With three replicas, writes are accepted while one broker is down, and acknowledged messages are on two.
        let in_sync = if replicas == REPLICAS_MAX { "2" } else { "1" };
        let replicas = || TopicReplication::Fixed(i32::try_from(replicas).unwrap_or(1));
        let topics = [
            NewTopic::new(journal, partitions.into(), replicas())
                .set("cleanup.policy", "delete")
                // A node that is assigned a partition for the first time reads it from the start.
                .set("retention.ms", "-1"),
            // One partition, so that announcements have an order. Compaction keeps the last one of each key.
            NewTopic::new(owners, 1, replicas()).set("cleanup.policy", "compact"),
            NewTopic::new(directory, 1, replicas())
                .set("cleanup.policy", "compact,delete")
                .set("retention.ms", DIRECTORY_KEPT_MS)
                // Otherwise, old ones are in the segment that is written, and stay for a week.
                .set("segment.ms", DIRECTORY_KEPT_MS),
        ]
        .map(|topic| topic.set("min.insync.replicas", in_sync));
        let options = AdminOptions::new().operation_timeout(Some(timeout));
        let mut creating = pin!(admin.create_topics(&topics, &options));
        let created = loop {
            match creating.as_mut().now_or_never() {
                Some(created) => break created,
                None => sleep(POLL),
            }
        };
        for result in created.map_err(with_context("creating the topics"))? {
            match result {
                Ok(topic) => {
                    let partitions = match topic == *journal {
                        true => partitions.get(),
                        false => 1,
                    };
                    tracing::info!(topic, partitions, "created a topic");
                }
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) if topic == *directory => {
                    tracing::warn!(
                        topic,
                        %code,
                        "topic of addresses cannot be created; each node knows only what its own agents say"
                    );
                }
                Err((topic, code)) => {
                    let why = format!("{topic}: {code}");
                    return Err(KafkaError::classify_code("creating the topics", code, why));
                }
            }
        }
        sleep(POLL);
    }
}

/// Refuses a journal that would delete batches, or that is configured for smaller messages.
fn validate_journal_topic(admin: &AdminClient<Log>, journal: &str) -> Result<(), KafkaError> {
    let settings = describe(admin, journal);
    let has = |name: &str| settings.get(name).map_or("", |value| value);
    if has("cleanup.policy").contains("compact") {
        let why = "it would delete batches; it has to be delete";
        return Err(wrong(journal, "cleanup.policy", &settings, why));
    }
    let longest = has("max.message.bytes").parse::<usize>();
    if longest.is_ok_and(|longest| longest < STORED_BYTES_MAX) {
        let why = format!(
            "batches do not fit; it has to be {STORED_BYTES_MAX} at least, and is 1048588 by default"
        );
        return Err(wrong(journal, "max.message.bytes", &settings, &why));
    }
    Ok(())
}

/// Refuses a topic of owners that would delete announcements.
fn validate_owners_topic(admin: &AdminClient<Log>, owners: &str) -> Result<(), KafkaError> {
    let settings = describe(admin, owners);
    if (settings.get("cleanup.policy")).is_some_and(|policy| policy != "compact") {
        let why = "it would delete announcements; it has to be compact";
        return Err(wrong(owners, "cleanup.policy", &settings, why));
    }
    Ok(())
}

type Configuration = BTreeMap<String, String>;

fn wrong(topic: &str, name: &str, has: &Configuration, why: &str) -> KafkaError {
    KafkaError::Settings {
        context: "checking the topics",
        why: format!(
            "topic {topic} has {name}={}: {why}",
            has.get(name).map_or("", |value| value)
        ),
    }
}

/// The settings of a topic; none if this client may not describe it.
fn describe(admin: &AdminClient<Log>, topic: &str) -> Configuration {
    let timeout = Duration::from_secs(REQUEST_SECONDS_MAX);
    let options = AdminOptions::new().request_timeout(Some(timeout));
    let of = [ResourceSpecifier::Topic(topic)];
    let mut describing = pin!(admin.describe_configs(&of, &options));
    let described = loop {
        match describing.as_mut().now_or_never() {
            Some(described) => break described,
            None => sleep(POLL),
        }
    };
    match described.map(|described| described.into_iter().next()) {
        Ok(Some(Ok(settings))) => (settings.entries.into_iter())
            .filter_map(|entry| Some((entry.name, entry.value?)))
            .collect(),
        _ => {
            tracing::info!(
                topic,
                "settings of the topic cannot be described, and are not checked"
            );
            Configuration::new()
        }
    }
}
