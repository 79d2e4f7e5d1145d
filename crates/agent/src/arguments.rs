//! What commands that send flows are told.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::inputs;
use crate::units::{mib, seconds};

/// Where commands look for the service, as where the service listens, unless they are told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:8080";

/// What `flowtally send` is told.
#[derive(Clone, Debug, Args)]
pub struct Send {
    /// File to send; - reads a pipe, and sends what comes within a second.
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,

    /// The service.
    #[arg(
        long,
        env = "FLOWTALLY_URL",
        value_name = "URL",
        default_value = DEFAULT_URL
    )]
    pub url: String,

    #[command(flatten)]
    pub input: Input,

    /// Flows in a batch of a pipe. A file is cut into batches of about 1 MiB by what is in it.
    #[arg(
        long,
        value_name = "N",
        default_value = "1000",
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    pub batch_flows: u32,

    /// Directory for batches of a pipe that the service has not accepted yet. They outlive this process: the
    /// next one sends them first. So send continues to read while the service is away. A flow from a pipe is
    /// on disk a second after it was read. A batch that the service will never accept goes into DIR/refused,
    /// with the reason and the command that sends it again, unless --rejects is given; the rest is sent. A
    /// file needs no spool: it is read again.
    #[arg(long, env = "FLOWTALLY_SPOOL", value_name = "DIR")]
    pub spool: Option<PathBuf>,

    /// Disk for the spool, in MiB or as in 10G; when it is full, or the disk is, reading waits.
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "1024",
        value_parser = mib(1..=1_048_576)
    )]
    pub spool_max: u32,

    #[command(flatten)]
    pub retry: Retry,

    /// Send bodies as they are, not as zstd.
    #[arg(long)]
    pub no_compress: bool,

    #[command(flatten)]
    pub credentials: Credentials,
}

/// How to read flows, for every command that does.
#[derive(Clone, Debug, Args)]
pub struct Input {
    /// How the flows are written; without it, the beginning tells: [ json, { ndjson, a header with
    /// srcaddr vpc-flow-logs, anything else csv.
    #[arg(long, value_enum)]
    pub format: Option<InputFormat>,

    /// CSV file with the columns address and app, for VPC flow logs: names for addresses and ranges
    /// (10.0.0.0/16); the longest prefix counts. Addresses that are not in it stay as they are.
    #[arg(long, value_name = "FILE")]
    pub apps: Option<PathBuf>,

    /// Whose records of VPC flow logs count, where both ends of a conversation are recorded: the
    /// sender's, the receiver's, or both. For sender and receiver, the log has to have flow-direction.
    #[arg(long, value_enum, default_value = "both")]
    pub count: Count,

    /// File to which flows that are refused are added, one JSON line each, with the reason. A file that
    /// is read again adds nothing that is there already.
    #[arg(long, value_name = "FILE")]
    pub rejects: Option<PathBuf>,

    /// Where the flows come from, as in host-7. Equal files from different sources count separately; without
    /// it, equal files count once. With it, standard input is recognised by its flows, as a file is; without
    /// it, standard input counts each time.
    #[arg(long, value_name = "NAME", conflicts_with = "again")]
    pub source: Option<String>,

    /// Count a file once more, if it has been counted before.
    #[arg(long)]
    pub again: bool,

    /// The file is still being written: leave a last line that has no line end for the next time.
    #[arg(long)]
    pub growing: bool,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InputFormat {
    /// One array of flows.
    Json,
    /// A flow a line.
    Ndjson,
    /// A header with the six names, then a flow a line.
    Csv,
    /// AWS VPC Flow Logs as text, of any version and order of fields.
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
pub enum Count {
    /// Records of bytes that left an interface.
    Sender,
    /// Records of bytes that arrived at one.
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

/// How long a service is tried.
#[derive(Clone, Debug, Args)]
pub struct Retry {
    /// Seconds, or as in 10m, after which to give up when the service takes nothing; 0: after one try.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "300",
        value_parser = seconds(0..=31_536_000)
    )]
    pub retry_for: Duration,
}

/// What a service may ask for before it answers.
#[derive(Clone, Debug, Args)]
pub struct Credentials {
    /// File with a token that the service asks for.
    #[arg(long, env = "FLOWTALLY_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Authority, as PEM, to trust for https instead of the usual ones.
    #[arg(long, env = "FLOWTALLY_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,

    /// Client certificate, as PEM, for a service that asks for one.
    #[arg(long, env = "FLOWTALLY_CERT", value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,

    /// The client certificate's private key, as PEM.
    #[arg(long, env = "FLOWTALLY_KEY", value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
}
