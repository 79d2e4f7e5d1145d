//! Command-line arguments of the commands that send flows.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::examples;
use crate::inputs;
use crate::units::{address_range, mib, name, seconds};

/// The default URL of the service: the address where it listens by default.
pub const DEFAULT_URL: &str = "http://127.0.0.1:8080";

/// The commands of `flowtally-agent`, which are also those of `flowtally agent`.
#[derive(Clone, Debug, Subcommand)]
pub enum AgentCommand {
    /// Send flows to a service; each flow counts once, no matter how many attempts it takes.
    ///
    /// Reads a JSON array, NDJSON, CSV or AWS VPC Flow Logs, plain or compressed with gzip or zstd, from a
    /// file or a pipe. Equivalent to flowtally send. Exit status: 0 if the service has every flow; otherwise
    /// 1, and an error line explains what is missing.
    #[command(after_help = examples::SEND)]
    Send(Box<Send>),
    /// Report the outbound TCP connections of this host.
    ///
    /// Sums the bytes of each connection by application and hour, and sends them each minute. Reports wait on disk
    /// while the service cannot be reached. Restarts neither lose nor repeat what the kernel still knows. See
    /// docs/watch.md. Exit status: 0 after a signal; 1 with a line that explains why it cannot continue.
    #[command(after_help = examples::WATCH)]
    Watch(Box<Watch>),
    /// Receive NetFlow (versions 5 and 9), IPFIX and sFlow over UDP.
    ///
    /// Sums what routers and switches export, by application and hour, and sends it each minute. See docs/listen.md.
    /// Exit status: 0 after a signal; 1 with a line that explains why it cannot continue.
    #[command(after_help = examples::LISTEN)]
    Listen(Box<Listen>),
}

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

/// Arguments of `flowtally-agent watch`.
#[derive(Clone, Debug, Args)]
pub struct Watch {
    #[command(flatten)]
    pub service: ServiceUrl,

    /// Directory for the reports that the service has not accepted yet, and for what was counted of each connection.
    #[arg(
        long,
        env = "FLOWTALLY_STATE_DIR",
        value_name = "DIR",
        default_value = "/var/lib/flowtally-agent"
    )]
    pub state_dir: PathBuf,

    /// Time between two reports, in seconds or with a unit, as in 5m. Agents that start at the same time report at
    /// different times.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "60",
        value_parser = seconds(1..=3600)
    )]
    pub interval: Duration,

    /// CSV file with the columns address and app that names the other ends (dest_app) by their address, address and
    /// port (10.0.0.7:5432), or range (10.0.0.0/16). Ranges are for what no agent claims in the directory. It is read
    /// again when it changes.
    #[arg(long, value_name = "FILE")]
    pub(crate) apps: Option<PathBuf>,

    /// Name of other ends that are neither in the table nor in the directory: their address, or unknown.
    #[arg(long, value_enum, default_value = "address")]
    pub(crate) unattributed: Unattributed,

    /// Neither tell the service which applications listen at the addresses of this host, nor ask it for those of other
    /// hosts.
    #[arg(long)]
    pub no_directory: bool,

    /// Ranges of addresses that are not unique among the hosts, such as those of containers: the agent neither claims them
    /// in the directory nor asks for them. May be repeated.
    #[arg(
        long,
        value_name = "RANGE",
        value_delimiter = ',',
        default_value = "172.17.0.0/16",
        value_parser = address_range
    )]
    pub private_ranges: Vec<IpNet>,

    /// TOML file with the rules that name the applications of this host (src_app). The default rules use the name of
    /// the Kubernetes workload, of the container, of the systemd unit, or of the executable.
    #[arg(long, value_name = "FILE")]
    pub app_rules: Option<PathBuf>,

    /// The vpc_id of the flows. By default it is that of the instance on AWS, as far as cloud-init knows it, and
    /// otherwise empty.
    #[arg(long, env = "FLOWTALLY_VPC_ID", value_name = "ID", value_parser = name)]
    pub vpc_id: Option<String>,

    /// Look at connections of this network namespace only, or at those of all containers of the host, which requires
    /// root, or CAP_SYS_ADMIN and CAP_SYS_PTRACE.
    #[arg(long, env = "FLOWTALLY_NETNS", value_enum, default_value = "host")]
    pub netns: NamespaceSelection,

    /// Count connections to loopback addresses, too.
    #[arg(long)]
    pub loopback: bool,

    /// Disk space for reports that wait, in MiB or with a unit, as in 10G; when it is used up, the agent sums in memory.
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "256",
        value_parser = mib(1..=1_048_576)
    )]
    pub spool_max: u32,

    /// File for Prometheus metrics of the agent, which the textfile collector of node_exporter reads.
    #[arg(long, value_name = "FILE")]
    pub metrics_file: Option<PathBuf>,

    #[command(flatten)]
    pub credentials: Credentials,
}

/// Arguments of `flowtally-agent listen`.
#[derive(Clone, Debug, Args)]
pub struct Listen {
    #[command(flatten)]
    pub service: ServiceUrl,

    /// Addresses at which to receive datagrams; each takes all formats. May be repeated.
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        value_delimiter = ',',
        default_value = "0.0.0.0:2055,0.0.0.0:6343"
    )]
    pub listen: Vec<SocketAddr>,

    /// Receive from exporters with these addresses or ranges only, as in 10.0.0.0/24. UDP does not prove who has sent a
    /// datagram. May be repeated.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', value_parser = address_range)]
    pub exporters: Vec<IpNet>,

    /// One packet of how many is sampled, for exporters that do not announce it.
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub sampling_rate: u32,

    /// Which records to count when flows are exported where they enter and where they leave a router: those of the
    /// sender's side (ingress), of the receiver's side (egress), or both. Records without a direction always count.
    #[arg(long, value_enum, default_value = "both")]
    pub(crate) count: Count,

    /// Directory for the reports that the service has not accepted yet, and the exporters' templates.
    #[arg(
        long,
        env = "FLOWTALLY_STATE_DIR",
        value_name = "DIR",
        default_value = "/var/lib/flowtally-listen"
    )]
    pub state_dir: PathBuf,

    /// Time between two reports, in seconds or with a unit, as in 5m.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "60",
        value_parser = seconds(1..=3600)
    )]
    pub interval: Duration,

    /// CSV file with the columns address and app that names both ends by their address, address and port
    /// (10.0.0.7:5432), or range (10.0.0.0/16). It is read again when it changes.
    #[arg(long, value_name = "FILE")]
    pub(crate) apps: Option<PathBuf>,

    /// Name of ends that are not in the table: their address, or unknown.
    #[arg(long, value_enum, default_value = "address")]
    pub(crate) unattributed: Unattributed,

    /// The vpc_id of the flows; empty by default.
    #[arg(long, env = "FLOWTALLY_VPC_ID", value_name = "ID", value_parser = name)]
    pub vpc_id: Option<String>,

    /// Disk space for reports that wait, in MiB or with a unit, as in 10G; when it is used up, sums stay in memory.
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "256",
        value_parser = mib(1..=1_048_576)
    )]
    pub spool_max: u32,

    /// File for Prometheus metrics, which the textfile collector of node_exporter reads.
    #[arg(long, value_name = "FILE")]
    pub metrics_file: Option<PathBuf>,

    #[command(flatten)]
    pub credentials: Credentials,
}

/// `--netns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NamespaceSelection {
    /// The network namespace of the agent.
    Host,
    /// All network namespaces of the host.
    All,
}

/// `--unattributed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Unattributed {
    /// The address as text.
    Address,
    /// The word unknown.
    Unknown,
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
    /// Format of the flows; by default it is detected from the first bytes: fields of other programs' records name
    /// theirs, otherwise [ is json, { is ndjson, a header with srcaddr is vpc-flow-logs, anything else is csv.
    #[arg(long, value_enum)]
    pub(crate) format: Option<InputFormat>,

    /// The fields of AWS VPC Flow Logs that have no header, in their order and with blanks between them, as in the log's
    /// format: version srcaddr dstaddr bytes start. It implies --format vpc-flow-logs.
    #[arg(long, value_name = "NAMES")]
    pub(crate) fields: Option<String>,

    /// CSV file with the columns address and app that maps addresses and ranges (10.0.0.0/16) of flow logs to
    /// application names; the longest prefix wins. Addresses that are not in the file remain addresses.
    #[arg(long, value_name = "FILE")]
    pub(crate) apps: Option<PathBuf>,

    /// Which records of flow logs to count when both ends of a conversation are recorded: the sender's,
    /// the receiver's, or both. sender and receiver require that the records have a direction: in logs of AWS, the field
    /// flow-direction.
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
    /// Azure's flow logs of virtual networks, and of network security groups (version 2), as JSON documents.
    AzureFlowLogs,
    /// Google Cloud's VPC flow logs as JSON: a log entry a line, or arrays of them.
    GcpFlowLogs,
    /// JSON of goflow2: NetFlow, IPFIX and sFlow.
    Goflow2,
    /// Akvorado's flows, as ClickHouse writes them with FORMAT JSONEachRow.
    Akvorado,
}

impl From<InputFormat> for inputs::InputFormat {
    fn from(format: InputFormat) -> inputs::InputFormat {
        match format {
            InputFormat::Json => inputs::InputFormat::Json,
            InputFormat::Ndjson => inputs::InputFormat::Ndjson,
            InputFormat::Csv => inputs::InputFormat::Csv,
            InputFormat::VpcFlowLogs => inputs::InputFormat::VpcFlowLogs,
            InputFormat::AzureFlowLogs => inputs::InputFormat::AzureFlowLogs,
            InputFormat::GcpFlowLogs => inputs::InputFormat::GcpFlowLogs,
            InputFormat::Goflow2 => inputs::InputFormat::Goflow2,
            InputFormat::Akvorado => inputs::InputFormat::Akvorado,
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

/// Arguments of the command `completions`.
#[derive(Clone, Debug, Args)]
pub struct Completions {
    /// The shell.
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// Arguments of the command `man`.
#[derive(Clone, Debug, Args)]
pub struct Man {
    /// Directory for the pages, one for each command; without it, the first page is printed.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}
