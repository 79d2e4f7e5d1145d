//! Kafka as the journal of many nodes. The topic is the write-ahead log, and the consumer group says which
//! node owns which partition; nothing is added to that but a table of owners, in a topic of its own.
//!
//! - [`ensure_topics`] makes the topics where they are absent.
//! - [`Producer`] appends batches to partitions, and is told their offsets when all replicas have them.
//! - [`Consumer`] is a member of the group: it hands the batches of the partitions that it is given to a
//!   [`Handler`], each from the offset that the handler asks for.
//! - [`Owners`] says which node has a partition now.
//!
//! Offsets are where a store goes on: that of the batch after the last one that it holds.

mod announcement;
mod consumer;
mod error;
mod member;
mod owners;
mod producer;
mod settings;
mod topics;

pub use announcement::Lost;
pub use consumer::{Consumer, Control, Handler, Progress, Record};
pub use error::KafkaError;
pub use member::AHEAD_MAX;
pub use owners::{Owner, Owners, Seal};
pub use producer::{MESSAGE_BYTES_MAX, Producer};
pub use settings::Settings;
pub use topics::{PARTITIONS_DEFAULT, cluster_id, ensure_topics};
