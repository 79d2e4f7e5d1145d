//! Arguments of `flowtally serve`, and how it divides its memory.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{BoolishValueParser, Resettable};
use clap::{Args, Command, FromArgMatches, ValueEnum};

use super::{DataDirArgs, HourArgs};
use crate::service::Mode;
use crate::store;
use agent::units::{days, listen, mib, seconds};

/// Arguments of `flowtally serve`.
///
/// Sizes are in MiB and durations in seconds, unless they have a unit.
#[derive(Clone, Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    pub data_dir: DataDirArgs,

    /// Print all settings and the source of each, and exit.
    #[arg(long)]
    pub print_config: bool,

    /// Address and port to listen on. :8080 means all addresses of this machine; port 0 picks a free port, which the
    /// log shows.
    #[arg(
        long,
        env = "FLOWTALLY_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080",
        value_parser = listen
    )]
    pub listen: String,

    /// File with the tokens for sending flows, one per line; without it, sending needs no token. SIGHUP reloads all
    /// files of tokens and certificates.
    #[arg(long, env = "FLOWTALLY_WRITE_TOKEN_FILE", value_name = "FILE")]
    pub write_token_file: Option<PathBuf>,

    /// File with the tokens for reading, one per line; without it, reading needs no token.
    #[arg(long, env = "FLOWTALLY_READ_TOKEN_FILE", value_name = "FILE")]
    pub read_token_file: Option<PathBuf>,

    /// The service's certificate (PEM), followed by any intermediate certificates. With it, the service accepts HTTPS
    /// only.
    #[arg(long, env = "FLOWTALLY_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key (PEM).
    #[arg(long, env = "FLOWTALLY_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// CA certificates (PEM). Clients then need a certificate that one of them issued, except for /healthz, /readyz,
    /// /openapi.json and the pages.
    #[arg(long, env = "FLOWTALLY_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,

    /// Listen on addresses other than loopback although sending or reading needs no token or certificate.
    #[arg(long, env = "FLOWTALLY_ALLOW_ANONYMOUS", value_parser = BoolishValueParser::new())]
    pub allow_anonymous: bool,

    /// Host names of this service, in addition to those of this machine, separated by commas. The service checks the
    /// name in requests if it listens on loopback without tokens, so that no web page can reach it by a name of its
    /// own.
    #[arg(
        long,
        env = "FLOWTALLY_ALLOW_HOST",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub allow_host: Vec<String>,

    /// The failures that an acknowledged batch survives.
    #[arg(
        long,
        env = "FLOWTALLY_DURABILITY",
        value_enum,
        default_value_t = Durability::Fsync
    )]
    pub durability: Durability,

    /// Seconds for requests in progress to end when the service stops.
    #[arg(
        long = "shutdown-timeout",
        env = "FLOWTALLY_SHUTDOWN_TIMEOUT",
        value_name = "DURATION",
        default_value = "30",
        value_parser = seconds(0..=86_400)
    )]
    pub shutdown_timeout: Duration,

    /// Seconds between flushes of sums from memory to their final files. A longer interval means fewer and larger
    /// files, and a longer replay after a crash.
    #[arg(
        long,
        env = "FLOWTALLY_FLUSH_INTERVAL",
        value_name = "DURATION",
        default_value = "10",
        value_parser = seconds(1..=3_600)
    )]
    pub flush_interval: Duration,

    /// Seconds for which the service remembers the Idempotency-Key of a batch. Within this time, a batch counts once
    /// however often it is sent.
    #[arg(
        long,
        env = "FLOWTALLY_IDEMPOTENCY_WINDOW",
        value_name = "DURATION",
        default_value = "86400",
        value_parser = seconds(1..=31_536_000)
    )]
    pub idempotency_window: Duration,

    /// Disk space for remembered keys, in MiB; if they need more, the oldest are forgotten. A key takes about 100
    /// bytes.
    #[arg(
        long,
        env = "FLOWTALLY_IDEMPOTENCY_DISK_MAX",
        value_name = "SIZE",
        default_value = "256",
        value_parser = mib(16..=1_048_576)
    )]
    pub idempotency_disk_max: u32,

    /// Seconds for which the service remembers the flows of a batch that was sent with ?dedup=content, and exports of
    /// OpenTelemetry. Within this time, the same flows or the same export count once.
    #[arg(
        long,
        env = "FLOWTALLY_CONTENT_WINDOW",
        value_name = "DURATION",
        default_value = "60",
        value_parser = seconds(1..=86_400)
    )]
    pub content_window: Duration,

    /// Days for which the service remembers which flows of sent or imported files it has counted, as a number or as in
    /// 30d. Within this time, a file counts once.
    #[arg(
        long,
        env = "FLOWTALLY_IMPORT_WINDOW",
        value_name = "DAYS",
        default_value = "90",
        value_parser = days(1..=3650)
    )]
    pub import_window: Duration,

    /// Disk space for that, in MiB; if it needs more, the oldest is forgotten. A MiB of a file takes about 3 KiB.
    #[arg(
        long,
        env = "FLOWTALLY_IMPORT_DISK_MAX",
        value_name = "MIB",
        default_value = "256",
        value_parser = mib(16..=1_048_576)
    )]
    pub import_disk_max: u32,

    #[command(flatten)]
    pub hours: HourArgs,

    /// Free disk space, in MiB, below which batches are refused (507) while everything else continues. The default is a
    /// twentieth of the disk, at most 1024, and at least what a flush may need (80, by default), if that is no more
    /// than a quarter of the disk.
    #[arg(
        long,
        env = "FLOWTALLY_DISK_RESERVE",
        value_name = "SIZE",
        value_parser = mib(0..=u32::MAX)
    )]
    pub disk_reserve: Option<u32>,

    /// Memory of the process, in MiB. Bodies, sums in memory, and RocksDB's caches and buffers are all parts of it.
    #[arg(
        long,
        env = "FLOWTALLY_MEMORY_MAX",
        value_name = "SIZE",
        default_value = "512",
        value_parser = mib(128..=1_048_576)
    )]
    pub memory_max: u32,

    /// Largest body of a request, in MiB, both as sent and after decompression. At most a sixteenth of --memory-max,
    /// and at most 1024; by default as large as that.
    #[arg(
        long,
        env = "FLOWTALLY_BODY_MAX",
        value_name = "SIZE",
        value_parser = mib(0..=u32::MAX)
    )]
    pub body_max: Option<u32>,

    /// Memory for groups, sorted rows and pages of all queries together, in MiB. At most a quarter of --memory-max; by
    /// default a sixteenth. A query that needs more is refused (413). Each query has 1/128 of it reserved, so that
    /// small queries need not wait for large ones.
    #[arg(
        long,
        env = "FLOWTALLY_QUERY_MEMORY_MAX",
        value_name = "SIZE",
        value_parser = mib(0..=u32::MAX)
    )]
    pub query_memory_max: Option<u32>,

    /// Seconds that a query may take until its response starts, and then for each chunk of it. Waiting for the client
    /// does not count.
    #[arg(
        long,
        env = "FLOWTALLY_QUERY_TIME_MAX",
        value_name = "DURATION",
        default_value = "30",
        value_parser = seconds(1..=86_400)
    )]
    pub query_time_max: Duration,

    /// Show the N pairs of applications with the most bytes in the newest complete hour as metrics, with their names as
    /// labels, for Prometheus. Each hour may have other pairs, so Prometheus gets up to 2 × N new series an hour.
    #[arg(
        long,
        env = "FLOWTALLY_TRAFFIC_METRICS",
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=500)
    )]
    pub traffic_metrics: Option<u16>,

    #[command(flatten)]
    pub cluster: super::Cluster,

    /// Events to log: error, warn, info, debug, trace, or a filter such as info,flowtally=debug.
    #[arg(
        long,
        env = "FLOWTALLY_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub log: String,

    /// Format of the log: auto is text on a terminal, and JSON elsewhere.
    #[arg(
        long,
        env = "FLOWTALLY_LOG_FORMAT",
        value_enum,
        default_value_t = LogFormat::Auto
    )]
    pub log_format: LogFormat,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Auto,
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Maximum number of responses in progress. Each takes about a MiB: a chunk that is being produced (twice its size if it is a
/// batch of Arrow), one that is being sent, an encoder, and a block of each run, of which there are more while the machine is busy. With little memory,
/// fewer are allowed.
const QUERIES_MAX: usize = 64;
const MIB_PER_QUERY: usize = 6;

/// Memory that the process always needs: its code, threads, RocksDB's tables, compaction.
const OWN_MIB: u32 = 60;

/// How `--memory-max` is divided, without [`OWN_MIB`]. The shares add up to four fifths; the rest is for responses
/// in progress ([`QUERIES_MAX`]) and the allocator's overhead. Only the limit of a body is a share of the whole.
///
/// | share | for |
/// |---|---|
/// | 1/8 | bodies in progress, and their batches |
/// | 2 × 1/8 | the active and the frozen tally, and buffers for the next one |
/// | 1/8 | responses: copies of rows that are not flushed yet |
/// | 1/16 | queries: groups, sorted rows and pages |
/// | 3 × 1/32 | the journal's memtables |
/// | 1/16 | filters that know the keys of hours that still grow |
/// | 1/16 | RocksDB's block cache |
/// | 1/32 | a flush: the order of its rows |
/// | 1/64 | the directory of the fleet's addresses |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    pub inflight_bytes_max: usize,
    pub body_bytes_max: usize,
    pub tally_bytes_max: usize,
    pub view_bytes_max: usize,
    pub query_bytes_max: usize,
    pub queries_max: usize,
    pub memtable_bytes: usize,
    pub known_keys_bytes: usize,
    pub block_cache_bytes: usize,
    pub directory_bytes_max: usize,
}

impl Serve {
    /// The arguments of a service of this command's own: `arguments`, and nothing from the environment or a file, which
    /// may describe another service.
    ///
    /// # Errors
    /// If they are not arguments of `flowtally serve`.
    pub fn from_arguments_alone(arguments: Vec<OsString>) -> Result<Serve, clap::Error> {
        let command = Serve::augment_args(Command::new("serve").no_binary_name(true));
        let command = command.mut_args(|argument| argument.env(Resettable::Reset));
        Serve::from_arg_matches(&command.try_get_matches_from(arguments)?)
    }

    /// Whether this is a standalone service or a node of a cluster.
    ///
    /// # Errors
    /// Arguments of a node that contradict each other, as text for the user.
    pub fn mode(&self) -> Result<Mode, String> {
        let node = self.cluster.node(self)?;
        Ok(node.map_or(Mode::Standalone, |node| Mode::Cluster(Box::new(node))))
    }

    /// The file with the tokens of the nodes.
    pub fn node_token_file(&self) -> Option<PathBuf> {
        self.cluster.token_file()
    }

    /// Divides the memory.
    ///
    /// # Errors
    /// A `--body-max` or `--query-memory-max` that does not fit, as text for the user.
    pub fn memory_plan(&self) -> Result<MemoryPlan, String> {
        let memory = (self.memory_max.saturating_sub(OWN_MIB) as usize) << 20;
        let body_max = (self.memory_max / 16).min((flow::BODY_BYTES_MAX >> 20) as u32);
        let body = self.body_max.unwrap_or(body_max);
        if body == 0 || body > body_max {
            return Err(format!(
                "--body-max is {body}; with --memory-max {} it can be 1 to {body_max} (MiB)",
                self.memory_max
            ));
        }
        let query_max = self.memory_max / 4;
        let query = self.query_memory_max.unwrap_or(self.memory_max / 16);
        if query == 0 || query > query_max {
            return Err(format!(
                "--query-memory-max is {query}; with --memory-max {} it can be 1 to {query_max} (MiB)",
                self.memory_max
            ));
        }
        Ok(MemoryPlan {
            inflight_bytes_max: memory / 8,
            body_bytes_max: (body as usize) << 20,
            tally_bytes_max: memory / 8,
            view_bytes_max: memory / 8,
            query_bytes_max: (query as usize) << 20,
            queries_max: ((memory >> 20) / MIB_PER_QUERY).min(QUERIES_MAX),
            memtable_bytes: memory / 32,
            known_keys_bytes: memory / 16,
            block_cache_bytes: memory / 16,
            directory_bytes_max: memory / 64,
        })
    }
}

/// `--durability`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Durability {
    /// A crash of the machine: each response waits until the batch is on disk.
    Fsync,
    /// A crash of the process, but not of the machine. Faster if fsync is slow.
    Os,
}

impl From<Durability> for store::Durability {
    fn from(durability: Durability) -> store::Durability {
        match durability {
            Durability::Fsync => store::Durability::Fsync,
            Durability::Os => store::Durability::Os,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Parsed {
        #[command(flatten)]
        serve: Serve,
    }

    #[test]
    fn a_service_of_ones_own_takes_nothing_from_the_environment() {
        let argument = |text: &str| OsString::from(text);
        let arguments = ["--data-dir", "d", "--memory-max", "256"].map(argument);
        let serve = Serve::from_arguments_alone(arguments.to_vec()).unwrap();
        assert_eq!(serve.data_dir.path, PathBuf::from("d"));
        assert_eq!((serve.memory_max, serve.body_max), (256, None));
        let command = Serve::augment_args(Command::new("serve"));
        let with_variables = command
            .get_arguments()
            .filter(|argument| argument.get_env().is_some());
        assert!(with_variables.count() > 20, "they would apply otherwise");
        let reset = command.mut_args(|argument| argument.env(Resettable::Reset));
        assert!(reset.get_arguments().all(|a| a.get_env().is_none()));
        assert!(Serve::from_arguments_alone(vec![argument("--nonsense")]).is_err());
    }

    /// Otherwise, a body of few hours could exceed the share of a tally.
    #[test]
    fn a_tally_has_room_for_a_body() {
        for memory in (128..4096).chain([1_048_576]) {
            let arguments = ["x", "--data-dir", "d", "--memory-max", &memory.to_string()];
            let command = Parsed::try_parse_from(arguments).unwrap();
            let plan = command.serve.memory_plan().unwrap();
            assert!(plan.body_bytes_max <= plan.tally_bytes_max, "{memory}");
            assert!((8..=64).contains(&plan.queries_max), "{memory}");
        }
    }

    /// With any amount of memory, a batch is within the bounds of its encoding and of a tally.
    #[test]
    fn a_body_has_an_upper_bound() {
        let plan = |arguments: &[&str]| {
            let arguments = [&["x", "--data-dir", "d", "--memory-max"], arguments].concat();
            let command = Parsed::try_parse_from(arguments).unwrap();
            command.serve.memory_plan().map(|plan| plan.body_bytes_max)
        };
        assert_eq!(plan(&["1024"]), Ok(64 << 20));
        assert_eq!(plan(&["1048576"]), Ok(flow::BODY_BYTES_MAX));
        assert_eq!(plan(&["1048576", "--body-max", "1024"]), Ok(1 << 30));
        assert!(plan(&["1048576", "--body-max", "1025"]).is_err());
    }
}
