//! The client of Kafka, which is the journal of a cluster: the topic is the write-ahead log, and the consumer group
//! decides which node owns which partition. A second topic has the table of owners, a third one what agents say about
//! addresses. This module does not depend on flows or stores.
//!
//! - [`ensure_topics`] creates the topics if they are absent.
//! - [`Producer`] appends messages to partitions, and returns their offsets when all in-sync replicas have them.
//! - [`Consumer`] is a member of the group: it passes the messages of its assigned partitions to a [`Handler`], from
//!   the offsets that the handler requests.
//! - [`Owners`] has the current owner of each partition.
//! - [`KeyedTopic`] passes the messages of a small topic to every node.
//!
//! The position of a store is the offset after the last message that it has applied.

mod announcement;
mod consumer;
mod error;
mod keyed_topic;
mod owners;
mod poll_loop;
mod producer;
mod settings;
mod topics;

pub use announcement::Truncation;
pub use consumer::{ConsumedMessage, Consumer, Control, Handler, Progress};
pub use error::KafkaError;
pub use keyed_topic::KeyedTopic;
pub use owners::{Owner, Owners, Signer};
pub use poll_loop::TRUNCATION_TIME_MIN;
pub use producer::{MESSAGE_BYTES_MAX, Producer};
pub use settings::KafkaSettings;
pub use topics::{cluster_id, ensure_topics};
