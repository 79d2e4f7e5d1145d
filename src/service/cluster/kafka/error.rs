//! Errors of Kafka, classified by their remedy.

use rdkafka::error::{KafkaError as RdKafkaError, RDKafkaErrorCode as Code};

use super::MESSAGE_BYTES_MAX;
use flow::{Offset, OutOfRange, Partition, PartitionCount};

/// An error of Kafka. Its text contains the remedy for the operator or the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KafkaError {
    /// It is unknown whether something was written: try again, under the same idempotency key.
    #[error("{context}: Kafka is unavailable; try again: {why}")]
    Unavailable { context: &'static str, why: String },

    /// The brokers accept messages more slowly than they are sent. Nothing was written.
    #[error("the queue of messages for Kafka is full; try again shortly")]
    QueueFull,

    #[error(
        "the message is too large: Kafka accepts at most {MESSAGE_BYTES_MAX} bytes, or the topic's \
         max.message.bytes if that is less"
    )]
    TooLarge,

    #[error("{context}: there is no such topic or partition: {why}")]
    NoTopic { context: &'static str, why: String },

    #[error("{context}: Kafka refuses access: check user, password, certificates and ACLs: {why}")]
    Denied { context: &'static str, why: String },

    /// Kafka has deleted messages that the store lacks, or has lost messages that the store includes.
    #[error(
        "partition {partition} holds the offsets from {first} to before {end}, and {offset} is due: restore \
         a newer checkpoint of it, or, if Kafka has lost its end, start with an empty store"
    )]
    OutOfRange {
        partition: Partition,
        offset: Offset,
        first: Offset,
        end: Offset,
    },

    #[error("{context}: partition {partition} has a message at the impossible offset {offset}")]
    BadOffset {
        context: &'static str,
        partition: Partition,
        offset: i64,
    },

    #[error("{context}: {what}")]
    OutOfBounds {
        context: &'static str,
        what: OutOfRange,
    },

    /// A flow's sums would be in two partitions.
    #[error(
        "topic {topic} had {was} partitions and has {is}: a flow's names decide its partition, so their number can \
         never change. Use a new topic (--kafka-topic); or, if {topic} was created anew and is empty, delete \
         {topic}-owners, which remembers"
    )]
    PartitionsChanged {
        topic: String,
        was: PartitionCount,
        is: PartitionCount,
    },

    #[error("{context}: an option for Kafka is invalid: {why}")]
    Settings { context: &'static str, why: String },

    /// A fatal error of librdkafka: the client has stopped, because it could not keep its guarantees.
    #[error(
        "{context}: the Kafka client has stopped after a fatal error; restart the service: {why}"
    )]
    Fatal { context: &'static str, why: String },
}

impl KafkaError {
    /// Whether a retry may succeed shortly.
    pub fn is_temporary(&self) -> bool {
        matches!(self, KafkaError::Unavailable { .. } | KafkaError::QueueFull)
    }

    /// Classifies an error by its code. An unknown code counts as temporary.
    pub(super) fn classify(context: &'static str, source: &RdKafkaError) -> KafkaError {
        let why = source.to_string();
        let code = match source {
            RdKafkaError::AdminOp(code) => Some(*code),
            other => other.rdkafka_error_code(),
        };
        match (source, code) {
            // The value is left out, since it may be a password.
            (RdKafkaError::ClientConfig(_, what, name, _), _) => KafkaError::Settings {
                context,
                why: format!("{name}: {what}"),
            },
            (
                RdKafkaError::ClientCreation(_)
                | RdKafkaError::AdminOpCreation(_)
                | RdKafkaError::Nul(_),
                _,
            ) => KafkaError::Settings { context, why },
            (RdKafkaError::MessageConsumptionFatal(_), _) => KafkaError::Fatal { context, why },
            (_, Some(code)) => KafkaError::classify_code(context, code, why),
            _ => KafkaError::Unavailable { context, why },
        }
    }

    pub(super) fn classify_code(context: &'static str, code: Code, why: String) -> KafkaError {
        match code {
            Code::QueueFull => KafkaError::QueueFull,
            Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => {
                KafkaError::TooLarge
            }
            Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::InvalidTopic => KafkaError::NoTopic { context, why },
            Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedSASLMechanism
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed => KafkaError::Denied { context, why },
            Code::InvalidArgument
            | Code::InvalidConfig
            | Code::InvalidPartitions
            | Code::InvalidReplicationFactor
            | Code::InvalidSessionTimeout
            | Code::InconsistentGroupProtocol
            | Code::InvalidGroupId
            | Code::PolicyViolation => KafkaError::Settings { context, why },
            Code::Fatal
            | Code::Fenced
            | Code::FencedInstanceId
            | Code::UnreleasedInstanceId
            | Code::OutOfOrderSequenceNumber => KafkaError::Fatal { context, why },
            _ => KafkaError::Unavailable { context, why },
        }
    }
}

/// For `map_err`: classifies an error of the operation `context`.
pub(super) fn with_context(context: &'static str) -> impl Fn(RdKafkaError) -> KafkaError {
    move |source| KafkaError::classify(context, &source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_classified() {
        let of = |code| KafkaError::classify("testing", &RdKafkaError::MessageProduction(code));
        for code in [
            Code::MessageTimedOut,
            Code::AllBrokersDown,
            Code::NotEnoughReplicas,
            Code::NotLeaderForPartition,
            Code::BrokerTransportFailure,
            Code::QueueFull,
            Code::PurgeQueue,
        ] {
            assert!(of(code).is_temporary(), "{code:?}");
        }
        assert_eq!(of(Code::MessageSizeTooLarge), KafkaError::TooLarge);
        for (code, says) in [
            (Code::UnknownTopic, "no such topic"),
            (Code::TopicAuthorizationFailed, "ACLs"),
            (Code::Fatal, "restart"),
            (Code::InvalidConfig, "option"),
        ] {
            let error = of(code);
            assert!(!error.is_temporary(), "{code:?}");
            assert!(error.to_string().contains(says), "{error}");
        }
        let refused = KafkaError::classify(
            "testing",
            &RdKafkaError::AdminOp(Code::ClusterAuthorizationFailed),
        );
        assert!(matches!(refused, KafkaError::Denied { .. }), "{refused}");
    }
}
