//! Errors of Kafka, by what has to be done about them.

use rdkafka::error::{KafkaError as Source, RDKafkaErrorCode as Code};

use super::MESSAGE_BYTES_MAX;
use flow::{Offset, OutOfRange, Partition, PartitionCount};

/// Its text tells what the operator, or the client, can do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KafkaError {
    /// It is unknown whether something was written: try again, under the same idempotency key.
    #[error("{context}: Kafka is not available; try again: {why}")]
    Away { context: &'static str, why: String },

    /// The brokers take messages more slowly than they are sent. Nothing was written.
    #[error("the queue to Kafka is full; try again shortly")]
    QueueFull,

    #[error(
        "Kafka takes messages of at most {MESSAGE_BYTES_MAX} bytes, or of less where the topic's \
         max.message.bytes says so"
    )]
    TooLarge,

    #[error("{context}: there is no such topic or partition: {why}")]
    NoTopic { context: &'static str, why: String },

    #[error("{context}: Kafka refuses access: check user, password, certificates and ACLs: {why}")]
    Denied { context: &'static str, why: String },

    /// Kafka no longer has what the store lacks, or never had what the store has.
    #[error(
        "partition {partition} holds the offsets from {first} to before {end}, and {offset} is due: restore \
         a newer backup of it, or, if Kafka has lost its end, start with an empty store"
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
    OtherPartitions {
        topic: String,
        was: PartitionCount,
        is: PartitionCount,
    },

    #[error("{context}: an option for Kafka is wrong: {why}")]
    Settings { context: &'static str, why: String },

    /// The client has stopped for good, because it could not keep its guarantees.
    #[error("{context}: the client of Kafka has given up; restart the service: {why}")]
    Broken { context: &'static str, why: String },
}

impl KafkaError {
    /// Whether a retry may succeed shortly.
    pub fn is_temporary(&self) -> bool {
        matches!(self, KafkaError::Away { .. } | KafkaError::QueueFull)
    }

    /// Classifies an error by its code. An unknown code is taken for a temporary error.
    pub(super) fn of(context: &'static str, source: &Source) -> KafkaError {
        let why = source.to_string();
        let code = match source {
            Source::AdminOp(code) => Some(*code),
            other => other.rdkafka_error_code(),
        };
        match (source, code) {
            // The value is left out, since it may be a password.
            (Source::ClientConfig(_, what, name, _), _) => KafkaError::Settings {
                context,
                why: format!("{name}: {what}"),
            },
            (Source::ClientCreation(_) | Source::AdminOpCreation(_) | Source::Nul(_), _) => {
                KafkaError::Settings { context, why }
            }
            (Source::MessageConsumptionFatal(_), _) => KafkaError::Broken { context, why },
            (_, Some(code)) => KafkaError::of_code(context, code, why),
            _ => KafkaError::Away { context, why },
        }
    }

    pub(super) fn of_code(context: &'static str, code: Code, why: String) -> KafkaError {
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
            | Code::OutOfOrderSequenceNumber => KafkaError::Broken { context, why },
            _ => KafkaError::Away { context, why },
        }
    }
}

/// For `map_err`: adds what was being done.
pub(super) fn failed(context: &'static str) -> impl Fn(Source) -> KafkaError {
    move |source| KafkaError::of(context, &source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_fall_into_what_can_be_done_about_them() {
        let of = |code| KafkaError::of("testing", &Source::MessageProduction(code));
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
        let refused = KafkaError::of(
            "testing",
            &Source::AdminOp(Code::ClusterAuthorizationFailed),
        );
        assert!(matches!(refused, KafkaError::Denied { .. }), "{refused}");
    }
}
