//! Flags of `flowtally serve` for a node of a cluster.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::Serve;
use crate::service::cluster::{NodeConfig, PeerTls};
use agent::units::seconds;
use flow::OutOfRange;

/// Partitions of a topic that the service creates: the maximum number of nodes that can share it.
const PARTITIONS_DEFAULT: &str = "12";

/// The arguments of `flowtally serve` for a node of a cluster.
#[derive(Clone, Debug, Args)]
pub struct Cluster {
    /// Kafka brokers, as in host:9092,host:9092. Makes this process a node of a cluster: Kafka is the journal, and
    /// each node has the sums of some of its partitions.
    #[arg(
        long,
        env = "FLOWTALLY_KAFKA_BROKERS",
        value_name = "LIST",
        value_parser = brokers
    )]
    pub kafka_brokers: Option<String>,

    /// Topic that is the journal. It is created if it is absent, and so is a second one, with -owners at the end of its
    /// name.
    #[arg(
        long,
        env = "FLOWTALLY_KAFKA_TOPIC",
        value_name = "TOPIC",
        default_value = "flows"
    )]
    pub kafka_topic: String,

    /// Partitions of a topic that the service creates: the maximum number of nodes that can share it. The number can
    /// never be changed.
    #[arg(
        long,
        env = "FLOWTALLY_KAFKA_PARTITIONS",
        value_name = "N",
        default_value = PARTITIONS_DEFAULT,
        value_parser = clap::value_parser!(i32).range(1..=256)
    )]
    pub kafka_partitions: i32,

    /// Option of librdkafka, such as security.protocol=sasl_ssl. May be repeated, and may have several options,
    /// separated by ;. Text after a ; that is not NAME=VALUE belongs to the value before.
    #[arg(
        long,
        env = "FLOWTALLY_KAFKA_OPTION",
        value_name = "NAME=VALUE",
        value_parser = options,
        hide_env_values = true
    )]
    pub kafka_option: Vec<LibrdkafkaOptions>,

    /// Name of this node. It has to stay the same, and no other node may have it.
    #[arg(
        long,
        env = "FLOWTALLY_NODE_NAME",
        value_name = "NAME",
        value_parser = node_name
    )]
    pub node_name: Option<String>,

    /// URL at which the other nodes reach this one, as in http://node-1:8080.
    #[arg(
        long,
        env = "FLOWTALLY_NODE_URL",
        value_name = "URL",
        value_parser = node_url
    )]
    pub node_url: Option<String>,

    /// File with the tokens of the nodes, one per line, the same on all nodes. A node sends the first one to the
    /// others, and a request to /partitions needs any of them.
    #[arg(long, env = "FLOWTALLY_NODE_TOKEN_FILE", value_name = "FILE")]
    pub node_token_file: Option<PathBuf>,

    /// CA certificates (PEM) to verify the certificates of other nodes with, instead of the default ones.
    #[arg(long, env = "FLOWTALLY_NODE_CA", value_name = "FILE")]
    pub node_ca: Option<PathBuf>,

    /// URL for checkpoints of partitions, as in s3://bucket/path, gs://bucket/path or file:///path, the same on all
    /// nodes. A node that lacks a partition starts from its newest checkpoint instead of the start of the topic.
    #[arg(long, env = "FLOWTALLY_CHECKPOINT_URL", value_name = "URL")]
    pub checkpoint_url: Option<String>,

    /// Seconds between two checkpoints of a partition.
    #[arg(
        long,
        env = "FLOWTALLY_CHECKPOINT_INTERVAL",
        value_name = "DURATION",
        default_value = "600",
        value_parser = seconds(1..=86_400)
    )]
    pub checkpoint_interval: Duration,
}

impl Cluster {
    /// The node that the arguments describe; `None` without brokers.
    pub(super) fn node(&self, serve: &Serve) -> Result<Option<NodeConfig>, String> {
        let Some(brokers) = self.kafka_brokers.clone() else {
            return Ok(None);
        };
        let (Some(name), Some(url)) = (self.node_name.clone(), self.node_url.clone()) else {
            return Err("with --kafka-brokers, give --node-name and --node-url too".into());
        };
        if serve.read_token_file.is_some() && self.node_token_file.is_none() {
            return Err(
                "with --read-token-file, give --node-token-file too: otherwise anyone can read rows by the requests of nodes"
                    .into(),
            );
        }
        // A node that requires client certificates has one itself.
        let certificate = serve.tls_cert.clone().zip(serve.tls_key.clone());
        let certificate = certificate.filter(|_| serve.tls_client_ca.is_some());
        let options = self.kafka_option.iter().flat_map(|o| o.to_vec());
        Ok(Some(NodeConfig {
            brokers,
            topic: self.kafka_topic.clone(),
            partitions: self
                .kafka_partitions
                .try_into()
                .map_err(|e: OutOfRange| e.to_string())?,
            options: options.collect(),
            name,
            checkpoint_url: self.checkpoint_url.clone(),
            checkpoint_interval: self.checkpoint_interval,
            token_file: self.node_token_file.clone(),
            url,
            tls: PeerTls {
                ca: self.node_ca.clone(),
                certificate,
            },
        }))
    }

    /// The file with the tokens of the nodes.
    pub(super) fn token_file(&self) -> Option<PathBuf> {
        self.node_token_file.clone()
    }
}

/// Names and values of options.
pub type LibrdkafkaOptions = std::sync::Arc<[(String, String)]>;

/// A password may contain a semicolon, and clap prints the text of an error.
fn options(text: &str) -> Result<LibrdkafkaOptions, String> {
    let is_name = |name: &str| {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'.';
        !name.is_empty() && name.bytes().all(fits)
    };
    let mut options: Vec<(String, String)> = Vec::new();
    for part in text.split(';') {
        match (part.split_once('='), options.last_mut()) {
            (Some((name, value)), _) if is_name(name) => options.push((name.into(), value.into())),
            (_, Some((_, value))) => *value += &format!(";{part}"),
            _ => return Err("it has to be NAME=VALUE".into()),
        }
    }
    Ok(options.into())
}

fn brokers(text: &str) -> Result<String, String> {
    match text.split(',').all(|broker| !broker.trim().is_empty()) {
        true => Ok(text.into()),
        false => Err("it has to be like kafka-1:9092,kafka-2:9092".into()),
    }
}

/// Kafka derives other names from it.
fn node_name(text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    match (1..=200).contains(&text.len()) && text.bytes().all(fits) {
        true => Ok(text.into()),
        false => Err("it has to be 1 to 200 letters, digits, dots, - and _".into()),
    }
}

fn node_url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("http://");
    let rest = rest.or_else(|| text.strip_prefix("https://"));
    let fits = |rest: &str| {
        let is_host = |byte: u8| byte.is_ascii_graphic() && !b"?#@".contains(&byte);
        !rest.is_empty() && !rest.starts_with([':', '/']) && rest.bytes().all(is_host)
    };
    match rest.is_some_and(fits) {
        true => Ok(text.into()),
        false => Err("it has to be like http://node-1:8080".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::tests::parse_with;
    use super::*;

    #[test]
    fn options_are_distinguished_from_semicolons_in_values() {
        let read = |text| options(text).map(|o| o.to_vec());
        let all = |pairs: &[(&str, &str)]| {
            let owned = pairs
                .iter()
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
            Ok(owned.collect::<Vec<_>>())
        };
        assert_eq!(read("a.b=1"), all(&[("a.b", "1")]));
        assert_eq!(
            read("a.b=1;c=2=3;d="),
            all(&[("a.b", "1"), ("c", "2=3"), ("d", "")])
        );
        let password = "sasl.password=p;w;P=1;;ssl.ca.location=/ca";
        let expected = all(&[("sasl.password", "p;w;P=1;"), ("ssl.ca.location", "/ca")]);
        assert_eq!(read(password), expected);
        for wrong in ["", "a.b", ";a.b=1", "=1", "A=1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn options_that_may_be_passwords_are_not_shown() {
        let file =
            "kafka-brokers = \"a:1\"\nkafka-option = \"sasl.username=u;sasl.password=secret-1\"\n";
        for arguments in [&[][..], &["--kafka-option", "sasl.password=secret-2"]] {
            let (_, settings) = parse_with(file, arguments).unwrap();
            let shown = settings.to_string();
            assert!(
                shown.contains("# kafka-option is set, and not shown"),
                "{shown}"
            );
            assert!(!shown.contains("secret"), "{shown}");
        }
    }

    #[test]
    fn arguments_of_a_node_need_brokers_from_any_source() {
        let given = |file, arguments: &[&str]| parse_with(file, arguments).map(|_| ());
        let brokers = ["--kafka-brokers", "a:1"];
        let named = ["--node-name", "n"];
        // As printed by --print-config.
        assert_eq!(given("kafka-topic = \"flows\"\n", &[]), Ok(()));
        assert_eq!(given("kafka-brokers = \"a:1\"\n", &named), Ok(()));
        assert_eq!(given("node-name = \"n\"\n", &brokers), Ok(()));
        for (file, arguments, source) in [
            ("", &named[..], "--node-name: "),
            ("node-name = \"n\"\n", &[], "flowtally.toml: "),
        ] {
            let error = given(file, arguments).unwrap_err();
            assert!(
                error.contains("node-name is for a node of a cluster"),
                "{error}"
            );
            assert!(error.contains(source), "{error}");
        }
    }
}
