//! What can go wrong with Kafka, by what has to be done about it.

use rdkafka::error::{KafkaError as Source, RDKafkaErrorCode as Code};

use super::MESSAGE_BYTES_MAX;

/// Says what the operator, or the client, can do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KafkaError {
    /// Whether something was written is not known: try again, under the same idempotency key.
    #[error("{doing}: Kafka does not answer as it should; try again: {why}")]
    Away { doing: &'static str, why: String },

    /// Brokers take less than is sent. Nothing was written.
    #[error("more waits to be written to Kafka than there is memory for; try again shortly")]
    QueueFull,

    #[error(
        "Kafka takes messages of at most {MESSAGE_BYTES_MAX} bytes, or of less where the topic's \
         max.message.bytes says so"
    )]
    TooLarge,

    #[error("{doing}: there is no such topic or partition: {why}")]
    NoTopic { doing: &'static str, why: String },

    #[error("{doing}: Kafka does not let us: check user, password, certificates and ACLs: {why}")]
    Denied { doing: &'static str, why: String },

    /// What a store lacks is no longer in Kafka, or what it has never was.
    #[error(
        "partition {partition} holds the offsets from {first} to before {end}, and {offset} is due: restore \
         a newer backup of it, or, if Kafka has lost its end, begin with an empty store"
    )]
    OutOfRange {
        partition: i32,
        offset: u64,
        first: u64,
        end: u64,
    },

    /// Sums would be in two places.
    #[error(
        "topic {topic} had {was} partitions and has {is}: a flow's names decide its partition, so their number can \
         never change. Take a new topic (--kafka-topic); or, if {topic} was made anew and is empty, delete \
         {topic}-owners, which remembers"
    )]
    OtherPartitions { topic: String, was: i32, is: i32 },

    #[error("{doing}: an option for Kafka is wrong: {why}")]
    Settings { doing: &'static str, why: String },

    /// The client refuses to go on, because it could not keep its promises.
    #[error("{doing}: the client of Kafka has given up; restart the service: {why}")]
    Broken { doing: &'static str, why: String },
}

impl KafkaError {
    /// Whether the same may succeed shortly.
    pub fn is_temporary(&self) -> bool {
        matches!(self, KafkaError::Away { .. } | KafkaError::QueueFull)
    }

    /// What code there is decides; any that is not known is taken to pass.
    pub(super) fn of(doing: &'static str, source: &Source) -> KafkaError {
        let why = source.to_string();
        let code = match source {
            Source::AdminOp(code) => Some(*code),
            other => other.rdkafka_error_code(),
        };
        match (source, code) {
            // Without the value, which may be a password.
            (Source::ClientConfig(_, what, name, _), _) => KafkaError::Settings {
                doing,
                why: format!("{name}: {what}"),
            },
            (Source::ClientCreation(_) | Source::AdminOpCreation(_) | Source::Nul(_), _) => {
                KafkaError::Settings { doing, why }
            }
            (Source::MessageConsumptionFatal(_), _) => KafkaError::Broken { doing, why },
            (_, Some(code)) => KafkaError::of_code(doing, code, why),
            _ => KafkaError::Away { doing, why },
        }
    }

    pub(super) fn of_code(doing: &'static str, code: Code, why: String) -> KafkaError {
        match code {
            Code::QueueFull => KafkaError::QueueFull,
            Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => {
                KafkaError::TooLarge
            }
            Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::InvalidTopic => KafkaError::NoTopic { doing, why },
            Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedSASLMechanism
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed => KafkaError::Denied { doing, why },
            Code::InvalidArgument
            | Code::InvalidConfig
            | Code::InvalidPartitions
            | Code::InvalidReplicationFactor
            | Code::InvalidSessionTimeout
            | Code::InconsistentGroupProtocol
            | Code::InvalidGroupId
            | Code::PolicyViolation => KafkaError::Settings { doing, why },
            Code::Fatal
            | Code::Fenced
            | Code::FencedInstanceId
            | Code::UnreleasedInstanceId
            | Code::OutOfOrderSequenceNumber => KafkaError::Broken { doing, why },
            _ => KafkaError::Away { doing, why },
        }
    }
}

/// For `map_err`: names what was being done.
pub(super) fn failed(doing: &'static str) -> impl Fn(Source) -> KafkaError {
    move |source| KafkaError::of(doing, &source)
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
