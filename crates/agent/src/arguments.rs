//! Command-line arguments of the commands that send flows.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::inputs;
use crate::units::{mib, seconds};

/// The default URL of the service: the address where it listens by default.
pub const DEFAULT_URL: &str = "http://127.0.0.1:8080";

/// Arguments of `flowtally send`.
#[derive(Clone, Debug, Args)]
pub struct Send {
    /// File to send; - reads from a pipe, and sends flows within a second of reading them.
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,

    #[command(flatten)]
    pub service: ServiceUrl,

    #[command(flatten)]
    pub input: Input,

    /// Flows per batch when reading a pipe. A file is cut into batches of about 1 MiB by its content.
    #[arg(
        long,
        value_name = "N",
        default_value = "1000",
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    pub batch_flows: u32,

    /// Directory for batches of a pipe that the service has not accepted yet, so that reading continues while
    /// the service is down. Batches survive this process: the next one sends them first. A flow from a pipe is
    /// on disk within a second of being read. A batch that the service will never accept moves to DIR/refused,
    /// with the reason and the command that sends it again, unless --rejects is given; the rest is sent. Files
    /// do not need a spool, because they can be read again.
    #[arg(long, env = "FLOWTALLY_SPOOL", value_name = "DIR")]
    pub spool: Option<PathBuf>,

    /// Disk space for the spool, in MiB or with a unit, as in 10G; when the spool or the disk is full,
    /// reading pauses.
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "1024",
        value_parser = mib(1..=1_048_576)
    )]
    pub spool_max: u32,

    #[command(flatten)]
    pub retry: Retry,

    /// Send bodies uncompressed instead of as zstd.
    #[arg(long)]
    pub no_compress: bool,

    #[command(flatten)]
    pub credentials: Credentials,
}

/// The address of the service.
#[derive(Clone, Debug, Args)]
pub struct ServiceUrl {
    /// URL of the service.
    #[arg(
        long,
        env = "FLOWTALLY_URL",
        value_name = "URL",
        default_value = DEFAULT_URL
    )]
    pub url: String,
}

/// Arguments of every command that reads flows.
#[derive(Clone, Debug, Args)]
pub struct Input {
    /// Format of the flows; by default it is detected from the first bytes: [ is json, { is ndjson, a header
    /// with srcaddr is vpc-flow-logs, anything else is csv.
    #[arg(long, value_enum)]
    pub(crate) format: Option<InputFormat>,

    /// CSV file with the columns address and app that maps addresses and ranges (10.0.0.0/16) of VPC flow logs to
    /// application names; the longest prefix wins. Addresses that are not in the file remain addresses.
    #[arg(long, value_name = "FILE")]
    pub(crate) apps: Option<PathBuf>,

    /// Which records of VPC flow logs to count when both ends of a conversation are recorded: the sender's,
    /// the receiver's, or both. sender and receiver require the field flow-direction in the log.
    #[arg(long, value_enum, default_value = "both")]
    pub(crate) count: Count,

    /// File to append refused flows to, one JSON object per line, with the reason. Reading the same input
    /// again does not append duplicates.
    #[arg(long, value_name = "FILE")]
    pub rejects: Option<PathBuf>,

    /// Name of the place that the flows come from, as in host-7. Equal files with different sources count
    /// separately; without this option, equal files count once. Standard input is deduplicated by content
    /// only if this is given; otherwise it counts every time.
    #[arg(long, value_name = "NAME", conflicts_with = "again")]
    pub(crate) source: Option<String>,

    /// Count a file again even if it has been counted before.
    #[arg(long)]
    pub(crate) again: bool,

    /// The file is still being written: leave an incomplete last line for the next run. Not for a pipe, unless
    /// --source is given.
    #[arg(long)]
    pub(crate) growing: bool,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum InputFormat {
    /// A JSON array of flows.
    Json,
    /// One flow per line.
    Ndjson,
    /// A header with the six field names, then one flow per line.
    Csv,
    /// AWS VPC Flow Logs as text, any version and field order.
    VpcFlowLogs,
}

impl From<InputFormat> for inputs::InputFormat {
    fn from(format: InputFormat) -> inputs::InputFormat {
        match format {
            InputFormat::Json => inputs::InputFormat::Json,
            InputFormat::Ndjson => inputs::InputFormat::Ndjson,
            InputFormat::Csv => inputs::InputFormat::Csv,
            InputFormat::VpcFlowLogs => inputs::InputFormat::VpcFlowLogs,
        }
    }
}

/// `--count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Count {
    /// Records of bytes that left a network interface.
    Sender,
    /// Records of bytes that arrived at a network interface.
    Receiver,
    /// All records.
    Both,
}

impl From<Count> for inputs::Count {
    fn from(count: Count) -> inputs::Count {
        match count {
            Count::Sender => inputs::Count::Sender,
            Count::Receiver => inputs::Count::Receiver,
            Count::Both => inputs::Count::Both,
        }
    }
}

/// How long to retry.
#[derive(Clone, Debug, Args)]
pub struct Retry {
    /// How long to retry while the service accepts nothing, in seconds or with a unit, as in 10m; 0: one
    /// attempt only.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "300",
        value_parser = seconds(0..=31_536_000)
    )]
    pub(crate) retry_for: Duration,
}

/// Credentials for the service, and the CA that verifies it.
#[derive(Clone, Debug, Args)]
pub struct Credentials {
    /// File with the bearer token for the service.
    #[arg(long, env = "FLOWTALLY_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,

    /// PEM file of the certificate authority to trust for https, instead of the system's.
    #[arg(long, env = "FLOWTALLY_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,

    /// Client certificate (PEM), if the service requires one.
    #[arg(long, env = "FLOWTALLY_CERT", value_name = "FILE", requires = "key")]
    pub(crate) cert: Option<PathBuf>,

    /// Private key of the client certificate (PEM).
    #[arg(long, env = "FLOWTALLY_KEY", value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
}
