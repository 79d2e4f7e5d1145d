//! The settings that all clients of Kafka share: brokers, topic, name of this node, options.

use std::fmt;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};

use super::KafkaError;
use super::error::with_context;

/// A request without a response by then is sent again on a new connection.
const REQUEST_MS_MAX: u64 = 10_000;
/// Longest pause between attempts to connect, so that recovered brokers are found soon.
const RECONNECT_MS_MAX: u64 = 1_000;

/// The settings of all clients of Kafka.
#[derive(Clone)]
pub struct KafkaSettings {
    /// Some of the brokers, as `host:port,host:port`.
    pub brokers: String,
    /// The topic that is the journal.
    pub topic: String,
    /// The name of this node, by which the group recognises it after a restart. It has to be unique.
    pub node: String,
    /// A node loses its partitions if the group does not hear from it for this long.
    pub session_timeout: Duration,
    /// Options of librdkafka by name, such as `security.protocol` or `sasl.password`. [`RESERVED`] ones cannot be set.
    pub options: Vec<(String, String)>,
}

/// Options on which exactness or membership in the group depends.
const RESERVED: [&str; 12] = [
    "acks",
    "auto.offset.reset",
    "bootstrap.servers",
    "client.id",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "group.id",
    "group.instance.id",
    "isolation.level",
    "partition.assignment.strategy",
    "session.timeout.ms",
];

impl KafkaSettings {
    /// # Errors
    /// If an option is reserved.
    pub fn validate(&self) -> Result<(), KafkaError> {
        let names = self.options.iter().map(|(name, _)| name.as_str());
        match names.into_iter().find(|name| RESERVED.contains(name)) {
            None => Ok(()),
            Some(name) => Err(KafkaError::Settings {
                context: "reading options",
                why: format!("{name} cannot be set; leave it out"),
            }),
        }
    }

    /// The topic of [`Owners`](super::Owners).
    pub fn owners_topic(&self) -> String {
        format!("{}-owners", self.topic)
    }

    /// The topic of the claims of addresses: see [`KeyedTopic`](super::KeyedTopic).
    pub fn directory_topic(&self) -> String {
        format!("{}-directory", self.topic)
    }

    /// The configuration of a client: the operator's options, overridden by `fixed`.
    pub(super) fn client(&self, fixed: &[(&str, &str)]) -> ClientConfig {
        self.client_with_defaults(&[], fixed)
    }

    /// The same, with defaults that the operator may override.
    pub(super) fn client_with_defaults(
        &self,
        defaults: &[(&str, &str)],
        fixed: &[(&str, &str)],
    ) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (name, value) in defaults {
            config.set(*name, *value);
        }
        for (name, value) in &self.options {
            config.set(name, value);
        }
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", format!("flowtally-{}", self.node))
            .set("allow.auto.create.topics", "false")
            .set("socket.timeout.ms", REQUEST_MS_MAX.to_string())
            .set("reconnect.backoff.max.ms", RECONNECT_MS_MAX.to_string());
        for (name, value) in fixed {
            config.set(*name, *value);
        }
        config
    }
}

/// Values of options may be passwords.
impl fmt::Debug for KafkaSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options: Vec<_> = self.options.iter().map(|(name, _)| name).collect();
        f.debug_struct("KafkaSettings")
            .field("brokers", &self.brokers)
            .field("topic", &self.topic)
            .field("node", &self.node)
            .field("session_timeout", &self.session_timeout)
            .field("options", &options)
            .finish()
    }
}

/// Creates a client. It connects and reconnects by itself.
pub(super) fn create<C: ClientContext, T: FromClientConfigAndContext<C>>(
    config: &ClientConfig,
    context: C,
) -> Result<T, KafkaError> {
    config
        .create_with_context(context)
        .map_err(with_context("creating a Kafka client"))
}

/// Logs the errors of a client.
#[derive(Clone, Debug)]
pub(super) struct Log;

impl ClientContext for Log {
    fn error(&self, error: rdkafka::error::KafkaError, reason: &str) {
        log_error(&error, reason);
    }
}

/// At level debug: most of these are temporary, and the client logs failed connections by itself.
pub(super) fn log_error(error: &rdkafka::error::KafkaError, reason: &str) {
    tracing::debug!(%error, reason, "kafka");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(options: &[(&str, &str)]) -> KafkaSettings {
        KafkaSettings {
            brokers: "127.0.0.1:9".into(),
            topic: "flows".into(),
            node: "a".into(),
            session_timeout: Duration::from_secs(10),
            options: options
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
        }
    }

    #[test]
    fn tls_and_sasl_are_compiled_in() {
        let settings = settings(&[
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", "flowtally"),
            ("sasl.password", "secret"),
            ("acks", "0"),
        ]);
        super::super::Producer::new(&settings).unwrap();
        let error = settings.validate().unwrap_err().to_string();
        assert!(error.contains("acks cannot be set"), "{error}");
        assert!(!format!("{settings:?}").contains("secret"));
        let defaults = [("linger.ms", "1"), ("acks", "1")];
        let config = settings.client_with_defaults(&defaults, &[("acks", "all")]);
        assert_eq!(config.get("acks"), Some("all"), "the fixed option wins");
        assert_eq!(config.get("linger.ms"), Some("1"));
    }

    #[test]
    fn an_option_that_does_not_exist_is_named() {
        let error = super::super::Producer::new(&settings(&[("no.such", "secret")])).unwrap_err();
        assert!(matches!(error, KafkaError::Settings { .. }), "{error}");
        let error = error.to_string();
        assert!(
            error.contains("no.such") && !error.contains("secret"),
            "{error}"
        );
    }
}
