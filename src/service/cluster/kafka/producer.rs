//! Appends to partitions: a batch is acknowledged when all in-sync replicas have it, once, in order.

use std::fmt;
use std::time::Duration;

use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};

use super::error::failed;
use super::settings::{Log, create};
use super::{KafkaError, Settings};

/// Longest message, key included: what brokers take by default. Larger batches have to be cut.
pub const MESSAGE_BYTES_MAX: usize = 1_000_000;
/// Messages that wait for their acknowledgement.
const QUEUE_KIB_MAX: usize = 64 * 1024;
const QUEUE_MESSAGES_MAX: usize = 100_000;
/// A message that is not acknowledged by then has failed, as far as we know.
const DELIVERY_MS_MAX: u64 = 10_000;
/// For a topic that metadata does not list: it may be about to be made.
const UNKNOWN_TOPIC_MS_MAX: u64 = 3_000;
/// Messages that come so soon after one another share a request.
const LINGER_MS: u64 = 1;

/// A broker that is asked whether it is there has so long.
const ASK: Duration = Duration::from_secs(2);

const DOING: &str = "writing to Kafka";

/// Writes to one topic. Clones share connections, queue and thread.
#[derive(Clone)]
pub struct Producer {
    client: FutureProducer<Log>,
    topic: String,
}

impl Producer {
    /// A producer for the journal.
    ///
    /// # Errors
    /// An option that is wrong. Brokers that are away show when something is sent.
    pub fn new(settings: &Settings) -> Result<Producer, KafkaError> {
        let config = settings.client_by_default(
            &[
                // Half of the bytes, for a seventh of a node's CPU.
                ("compression.type", "lz4"),
                ("linger.ms", &LINGER_MS.to_string()),
            ],
            &[
                // Durable before it is acknowledged, and without gaps or repetitions from retries.
                ("acks", "all"),
                ("enable.idempotence", "true"),
                ("message.max.bytes", &MESSAGE_BYTES_MAX.to_string()),
                ("message.timeout.ms", &DELIVERY_MS_MAX.to_string()),
                (
                    "topic.metadata.propagation.max.ms",
                    &UNKNOWN_TOPIC_MS_MAX.to_string(),
                ),
                ("queue.buffering.max.kbytes", &QUEUE_KIB_MAX.to_string()),
                (
                    "queue.buffering.max.messages",
                    &QUEUE_MESSAGES_MAX.to_string(),
                ),
            ],
        );
        Ok(Producer {
            client: create(&config, Log)?,
            topic: settings.topic.clone(),
        })
    }

    /// One for another topic, over the same connections.
    pub(super) fn to(&self, topic: String) -> Producer {
        let client = self.client.clone();
        Producer { client, topic }
    }

    /// Appends `payload` to a partition; the result is its offset there, about `DELIVERY_MS_MAX` later at
    /// the latest. It is under way when this returns: many can be sent before the first is waited for,
    /// and one that nobody waits for is sent all the same. The key is for those who read the message.
    ///
    /// # Errors
    /// After [`KafkaError::Away`] the message may have been written nevertheless, or be written yet.
    pub fn send(
        &self,
        partition: i32,
        key: Option<&[u8]>,
        payload: &[u8],
    ) -> impl Future<Output = Result<u64, KafkaError>> + Send + use<> {
        let mut record = FutureRecord::to(&self.topic)
            .partition(partition)
            .payload(payload);
        if let Some(key) = key {
            record = record.key(key);
        }
        let queued = self.client.send_result(record);
        let queued = queued.map_err(|(error, _)| self.error(error));
        // Keeps the client alive, and says more about an error.
        let producer = self.clone();
        async move {
            match queued?.await {
                Ok(Ok(delivery)) => Ok(u64::try_from(delivery.offset).unwrap_or_default()),
                Ok(Err((error, _message))) => Err(producer.error(error)),
                Err(_canceled) => Err(KafkaError::Away {
                    doing: DOING,
                    why: "the producer was closed".into(),
                }),
            }
        }
    }

    /// Whether a broker answers, for who has nothing to send. Blocks meanwhile.
    pub fn is_answered(&self) -> bool {
        let client = self.client.client();
        client.fetch_metadata(Some(&self.topic), ASK).is_ok()
    }

    fn error(&self, error: rdkafka::error::KafkaError) -> KafkaError {
        match self.client.client().fatal_error() {
            Some((_, why)) => KafkaError::Broken { doing: DOING, why },
            None => failed(DOING)(error),
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
