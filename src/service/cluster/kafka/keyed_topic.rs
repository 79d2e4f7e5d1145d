//! A small topic of one partition whose messages every node reads, from the start: the last one of each key counts.

use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use tokio_util::sync::CancellationToken;

use super::error::with_context;
use super::settings::{Log, create};
use super::{KafkaError, KafkaSettings, Producer};
use flow::{Offset, Partition};

/// Longest wait for messages before the thread checks whether it has to stop.
const POLL_TIME_MAX: Duration = Duration::from_millis(100);

const CONTEXT: &str = "reading the topic of addresses";

/// Writes to the topic, and reads it on a thread of its own.
#[derive(Debug)]
pub struct KeyedTopic {
    producer: Producer,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl KeyedTopic {
    /// Calls `receive` with each message: those that are in the topic, and from then on, those that any node sends.
    ///
    /// # Errors
    /// If an option is invalid, or the thread does not start.
    pub fn open(
        settings: &KafkaSettings,
        topic: &str,
        receive: impl Fn(&[u8]) + Send + 'static,
    ) -> Result<KeyedTopic, KafkaError> {
        let client: BaseConsumer<Log> = create(
            &settings.client(&[
                // A client needs a group, but it does not join it, and commits nothing.
                ("group.id", topic),
                ("enable.auto.commit", "false"),
                ("auto.offset.reset", "earliest"),
            ]),
            Log,
        )?;
        let mut list = TopicPartitionList::new();
        let from_the_start = list.add_partition_offset(topic, 0, rdkafka::Offset::Beginning);
        let assigned = from_the_start.and_then(|()| client.assign(&list));
        assigned.map_err(with_context(CONTEXT))?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let run = move || {
            let mut is_logged = false;
            while !stopped.is_cancelled() {
                match client.poll(POLL_TIME_MAX) {
                    None => {}
                    Some(Ok(message)) => {
                        is_logged = false;
                        receive(message.payload().unwrap_or_default());
                    }
                    Some(Err(error)) => match with_context(CONTEXT)(error) {
                        error if error.is_temporary() || is_logged => {}
                        error => {
                            is_logged = true;
                            tracing::error!(%error, "topic of addresses cannot be read");
                        }
                    },
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("kafka-directory".into())
            .spawn(run)
            .map_err(|e| KafkaError::Settings {
                context: "starting a thread",
                why: e.to_string(),
            })?;
        Ok(KeyedTopic {
            producer: Producer::apart(settings, topic)?,
            stop,
            thread: Some(thread),
        })
    }

    /// Sends a message, which replaces those with the same key.
    pub fn send(
        &self,
        key: &str,
        payload: &[u8],
    ) -> impl Future<Output = Result<Option<Offset>, KafkaError>> + Send + use<> {
        let key = Some(key.as_bytes());
        self.producer.send(Partition::FIRST, key, payload)
    }
}

impl Drop for KeyedTopic {
    fn drop(&mut self) {
        self.stop.cancel();
        let _a_panic_is_printed = self.thread.take().map(JoinHandle::join);
    }
}
