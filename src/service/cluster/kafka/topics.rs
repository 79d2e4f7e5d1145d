//! The two topics, made where they are absent.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::{KafkaError as Source, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, Producer as _};

use super::error::failed;
use super::settings::{Log, create, log_error};
use super::{KafkaError, MESSAGE_BYTES_MAX, Settings};

/// Partitions of a journal that is made by us: the most nodes that can share it.
pub const PARTITIONS_DEFAULT: i32 = 12;
/// Copies of each partition, where there are so many brokers.
const REPLICAS_MAX: usize = 3;
/// Topics have to be there by then.
const TOPICS_SECONDS_MAX: u64 = 30;
/// What the longest message takes in the topic, with what is around it.
const STORED_BYTES_MAX: usize = MESSAGE_BYTES_MAX + 1024;
const REQUEST_SECONDS_MAX: u64 = 10;
const POLL: Duration = Duration::from_millis(100);

const DOING: &str = "looking for the topics";

/// The name that the brokers share: a topic of this name elsewhere is another one. Blocks meanwhile.
///
/// # Errors
/// Brokers that are away.
pub fn cluster_id(settings: &Settings) -> Result<String, KafkaError> {
    let admin: AdminClient<Log> = create(&settings.client(&[]), Log)?;
    let timeout = Duration::from_secs(REQUEST_SECONDS_MAX);
    let id = admin.inner().fetch_cluster_id(timeout);
    id.ok_or_else(|| KafkaError::Away {
        doing: "asking for the cluster's name",
        why: format!("no broker answers in {REQUEST_SECONDS_MAX} s"),
    })
}

/// Remembers that a broker refused us. To who asks for metadata, that is a broker that does not answer.
#[derive(Clone, Debug, Default)]
struct Refusal(Arc<Mutex<Option<KafkaError>>>);

impl ClientContext for Refusal {
    fn error(&self, error: Source, reason: &str) {
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
            *self.last() = Some(KafkaError::Denied { doing: DOING, why });
        }
    }
}

impl Refusal {
    fn last(&self) -> std::sync::MutexGuard<'_, Option<KafkaError>> {
        // It is replaced as a whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the journal, with `partitions`, and the topic of owners, where they are absent. Returns how many
/// partitions the journal has: one that was there keeps its own number. Blocks meanwhile.
///
/// # Errors
/// Brokers that are away, or refuse.
pub fn ensure_topics(settings: &Settings, partitions: i32) -> Result<i32, KafkaError> {
    let admin: AdminClient<Log> = create(&settings.client(&[]), Log)?;
    // Of the clients, one that is polled hears of errors.
    let refusal = Refusal::default();
    let client: FutureProducer<Refusal> = create(&settings.client(&[]), refusal.clone())?;
    let deadline = Instant::now() + Duration::from_secs(TOPICS_SECONDS_MAX);
    loop {
        let timeout = Duration::from_secs(REQUEST_SECONDS_MAX);
        let metadata = client.client().fetch_metadata(None, timeout);
        let metadata =
            metadata.map_err(|e| refusal.last().take().unwrap_or_else(|| failed(DOING)(e)))?;
        // `None` while it is absent, or some partition has no leader yet.
        let partitions_of = |name: &str| {
            let topic = metadata.topics().iter().find(|t| t.name() == name)?;
            let led = topic.partitions().iter().all(|p| p.leader() >= 0);
            (led && !topic.partitions().is_empty()).then_some(topic.partitions().len())
        };
        let (journal, owners) = (&settings.topic, &settings.owners_topic());
        if let (Some(count), Some(_)) = (partitions_of(journal), partitions_of(owners)) {
            check_journal(&admin, journal)?;
            check_owners(&admin, owners)?;
            return Ok(i32::try_from(count).unwrap_or(i32::MAX));
        }
        if Instant::now() >= deadline {
            let why = format!("{journal} and {owners} have partitions without a leader");
            return Err(KafkaError::Away { doing: DOING, why });
        }
        let replicas = metadata.brokers().len().min(REPLICAS_MAX);
        // With three copies, one broker may be away without writes being refused, and what is acknowledged
        // is on two.
        let in_sync = if replicas == REPLICAS_MAX { "2" } else { "1" };
        let replicas = || TopicReplication::Fixed(i32::try_from(replicas).unwrap_or(1));
        let topics = [
            NewTopic::new(journal, partitions, replicas())
                .set("cleanup.policy", "delete")
                // A node that gets a partition for the first time reads it from the start.
                .set("retention.ms", "-1"),
            // One partition, so that announcements have an order; the last of each partition stays.
            NewTopic::new(owners, 1, replicas()).set("cleanup.policy", "compact"),
        ]
        .map(|topic| topic.set("min.insync.replicas", in_sync));
        let options = AdminOptions::new().operation_timeout(Some(timeout));
        let mut making = pin!(admin.create_topics(&topics, &options));
        let made = loop {
            match making.as_mut().now_or_never() {
                Some(made) => break made,
                None => sleep(POLL),
            }
        };
        for result in made.map_err(failed("making the topics"))? {
            match result {
                Ok(topic) => {
                    let partitions = if topic == *owners { 1 } else { partitions };
                    tracing::info!(topic, partitions, "made a topic");
                }
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => {
                    let why = format!("{topic}: {code}");
                    return Err(KafkaError::of_code("making the topics", code, why));
                }
            }
        }
        sleep(POLL);
    }
}

/// Refuses a journal that somebody else has made, and that batches would be lost from, or do not fit into.
fn check_journal(admin: &AdminClient<Log>, journal: &str) -> Result<(), KafkaError> {
    let settings = configuration(admin, journal);
    let has = |name: &str| settings.get(name).map_or("", |value| value);
    if has("cleanup.policy").contains("compact") {
        let why = "it would drop batches; it has to be delete";
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

/// Refuses a topic of owners that forgets what nobody says again.
fn check_owners(admin: &AdminClient<Log>, owners: &str) -> Result<(), KafkaError> {
    let settings = configuration(admin, owners);
    if (settings.get("cleanup.policy")).is_some_and(|policy| policy != "compact") {
        let why = "it would forget what nodes have said; it has to be compact";
        return Err(wrong(owners, "cleanup.policy", &settings, why));
    }
    Ok(())
}

type Configuration = BTreeMap<String, String>;

fn wrong(topic: &str, name: &str, has: &Configuration, why: &str) -> KafkaError {
    KafkaError::Settings {
        doing: "looking at the topics",
        why: format!(
            "topic {topic} has {name}={}: {why}",
            has.get(name).map_or("", |value| value)
        ),
    }
}

/// What a topic is set to; nothing where that cannot be seen, which takes a right of its own.
fn configuration(admin: &AdminClient<Log>, topic: &str) -> Configuration {
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
                "the topic's configuration cannot be seen, and is not checked"
            );
            Configuration::new()
        }
    }
}
