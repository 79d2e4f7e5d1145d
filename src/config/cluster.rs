//! What a node of many is told: where the journal is, who it is, and how the others reach it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::seconds;

/// Partitions of a journal that is made by us: the most nodes that can share it.
const PARTITIONS_DEFAULT: &str = "12";

/// The part of `flowtally serve` that is about many nodes.
#[derive(Clone, Debug, Args)]
pub struct Cluster {
    /// Brokers of Kafka, as in host:9092,host:9092. With it, this is one node of many: Kafka is the journal,
    /// and each node has the sums of some of its partitions.
    #[arg(long, env = "FLOWTALLY_KAFKA_BROKERS", value_name = "LIST")]
    pub kafka_brokers: Option<String>,

    /// Topic that is the journal. It is made where it is absent, and so is one with -owners at its end.
    #[arg(
        long,
        env = "FLOWTALLY_KAFKA_TOPIC",
        value_name = "TOPIC",
        default_value = "flows"
    )]
    pub kafka_topic: String,

    /// Partitions of a topic that is made: the most nodes that can share it. It can never be changed.
    #[arg(
        long,
        env = "FLOWTALLY_KAFKA_PARTITIONS",
        value_name = "N",
        default_value = PARTITIONS_DEFAULT,
        value_parser = clap::value_parser!(i32).range(1..=256)
    )]
    pub kafka_partitions: i32,

    /// Option of librdkafka, such as security.protocol=sasl_ssl; can be given several times, and several
    /// at a time with ; in between.
    #[arg(
        long,
        env = "FLOWTALLY_KAFKA_OPTION",
        value_name = "NAME=VALUE",
        value_delimiter = ';',
        value_parser = option,
        hide_env_values = true
    )]
    pub kafka_option: Vec<(String, String)>,

    /// Name of this node. It has to stay the same, and no other node may have it.
    #[arg(long, env = "FLOWTALLY_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,

    /// Where the other nodes reach this one, as in http://node-1:8080.
    #[arg(long, env = "FLOWTALLY_NODE_URL", value_name = "URL")]
    pub node_url: Option<String>,

    /// File with the tokens of nodes, one a line, the same on all of them. The first is sent to the others,
    /// and one of them is needed for /partitions.
    #[arg(long, env = "FLOWTALLY_NODE_TOKEN_FILE", value_name = "FILE")]
    pub node_token_file: Option<PathBuf>,

    /// Authority, as PEM, that other nodes' certificates are of, instead of the usual ones.
    #[arg(long, env = "FLOWTALLY_NODE_CA", value_name = "FILE")]
    pub node_ca: Option<PathBuf>,

    /// Place for checkpoints of partitions, as in s3://bucket/path, gs://bucket/path or file:///path, the same
    /// on all nodes. A node that lacks a partition starts from the newest, and not from the topic's start.
    #[arg(long, env = "FLOWTALLY_CHECKPOINT_URL", value_name = "URL")]
    pub checkpoint_url: Option<String>,

    /// Seconds between two checkpoints of a partition.
    #[arg(
        long,
        env = "FLOWTALLY_CHECKPOINT_INTERVAL",
        value_name = "SECONDS",
        default_value = "600",
        value_parser = seconds(1..=86_400)
    )]
    pub checkpoint_interval: Duration,
}

fn option(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("it has to be NAME=VALUE".into()),
    }
}
