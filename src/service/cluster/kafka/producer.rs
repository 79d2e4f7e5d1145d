//! Appends messages to partitions: once, in order, and acknowledged when all in-sync replicas have them.

use std::fmt;
use std::time::Duration;

use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};

use super::error::with_context;
use super::settings::{Log, create};
use super::{KafkaError, KafkaSettings};
use flow::{Offset, Partition};

/// Longest message, key included, that brokers accept by default. Larger batches have to be split.
pub const MESSAGE_BYTES_MAX: usize = 1_000_000;
/// Maximum size of the messages that wait for their acknowledgement.
const QUEUE_KIB_MAX: usize = 64 * 1024;
/// The same for a topic that is not the journal.
const SMALL_QUEUE_KIB_MAX: usize = 4 * 1024;
const QUEUE_MESSAGES_MAX: usize = 100_000;
/// A message that is not acknowledged by then counts as failed.
const DELIVERY_MS_MAX: u64 = 10_000;
/// Longest wait for a topic that the metadata does not list: it may be about to be created.
const UNKNOWN_TOPIC_MS_MAX: u64 = 3_000;
/// Messages that are sent within this time share a request.
const LINGER_MS: u64 = 1;

/// Longest wait for a broker's metadata.
const METADATA_TIME_MAX: Duration = Duration::from_secs(2);

const CONTEXT: &str = "writing to Kafka";

/// Writes to one topic. Clones share connections, queue and thread.
#[derive(Clone)]
pub struct Producer {
    client: FutureProducer<Log>,
    topic: String,
}

impl Producer {
    /// A producer for the journal. If the brokers are unavailable, sending fails later.
    ///
    /// # Errors
    /// If an option is invalid.
    pub fn new(settings: &KafkaSettings) -> Result<Producer, KafkaError> {
        Producer::with_queue(settings, settings.topic.clone(), QUEUE_KIB_MAX)
    }

    /// A producer for another topic, whose messages do not delay those of the journal.
    pub(super) fn apart(settings: &KafkaSettings, topic: &str) -> Result<Producer, KafkaError> {
        Producer::with_queue(settings, topic.to_owned(), SMALL_QUEUE_KIB_MAX)
    }

    fn with_queue(
        settings: &KafkaSettings,
        topic: String,
        queue_kib_max: usize,
    ) -> Result<Producer, KafkaError> {
        let config = settings.client_with_defaults(
            &[
                // Saves half of the bytes, and costs a seventh of a node's CPU.
                ("compression.type", "lz4"),
                ("linger.ms", &LINGER_MS.to_string()),
            ],
            &[
                // Messages are durable when acknowledged, without gaps or duplicates after retries.
                ("acks", "all"),
                ("enable.idempotence", "true"),
                ("message.max.bytes", &MESSAGE_BYTES_MAX.to_string()),
                ("message.timeout.ms", &DELIVERY_MS_MAX.to_string()),
                (
                    "topic.metadata.propagation.max.ms",
                    &UNKNOWN_TOPIC_MS_MAX.to_string(),
                ),
                ("queue.buffering.max.kbytes", &queue_kib_max.to_string()),
                (
                    "queue.buffering.max.messages",
                    &QUEUE_MESSAGES_MAX.to_string(),
                ),
            ],
        );
        Ok(Producer {
            client: create(&config, Log)?,
            topic,
        })
    }

    /// A producer for another topic, over the same connections.
    pub(super) fn for_topic(&self, topic: String) -> Producer {
        let client = self.client.clone();
        Producer { client, topic }
    }

    /// Appends `payload` to a partition. The future resolves to its offset, within about `DELIVERY_MS_MAX`; to `None`
    /// if the brokers have the message but do not report its offset, as after a retry that they recognise. Sending
    /// starts immediately, even if the future is never polled. The key is for the readers of the message.
    ///
    /// # Errors
    /// After [`KafkaError::Unavailable`], the message may have been written, or may be written later.
    pub fn send(
        &self,
        partition: Partition,
        key: Option<&[u8]>,
        payload: &[u8],
    ) -> impl Future<Output = Result<Option<Offset>, KafkaError>> + Send + use<> {
        let mut record = FutureRecord::to(&self.topic)
            .partition(partition.get())
            .payload(payload);
        if let Some(key) = key {
            record = record.key(key);
        }
        let queued = self.client.send_result(record);
        let queued = queued.map_err(|(error, _)| self.error(error));
        // Keeps the client alive, and reports fatal errors.
        let producer = self.clone();
        async move {
            match queued?.await {
                Ok(Ok(delivery)) => Ok(Offset::try_from(delivery.offset).ok()),
                Ok(Err((error, _message))) => Err(producer.error(error)),
                Err(_canceled) => Err(KafkaError::Unavailable {
                    context: CONTEXT,
                    why: "the producer was closed".into(),
                }),
            }
        }
    }

    /// Whether a broker responds. Blocks.
    pub fn is_reachable(&self) -> bool {
        let client = self.client.client();
        client
            .fetch_metadata(Some(&self.topic), METADATA_TIME_MAX)
            .is_ok()
    }

    fn error(&self, error: rdkafka::error::KafkaError) -> KafkaError {
        match self.client.client().fatal_error() {
            Some((_, why)) => KafkaError::Fatal {
                context: CONTEXT,
                why,
            },
            None => with_context(CONTEXT)(error),
        }
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer")
            .field("topic", &self.topic)
            .field("waiting", &self.client.in_flight_count())
            .finish()
    }
}
