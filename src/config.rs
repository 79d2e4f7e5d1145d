//! Arguments, environment and an optional file, as validated values. Every flag of the service is also
//! a variable, `--data-dir` is `FLOWTALLY_DATA_DIR`, and a key of the file, `data-dir`; the flag comes
//! first, then the variable, then the file.

mod file;

pub use file::{Settings, parse};

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::TypedValueParser as _;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::input;
use crate::store;

/// Sums network flows per hour and application pair.
///
/// Agents POST batches of flows to /flows; GET /flows?hour=N answers how many bytes went between
/// which applications in that hour.
#[derive(Debug, Parser)]
#[command(name = "flowtally", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the service.
    ///
    /// SIGTERM or SIGINT stops it in good order; a second one ends it at once. Neither loses a
    /// flow that was acknowledged. Exit status: 0 after a stop in good order, 1 when it cannot
    /// start or had to break off requests, 2 for wrong arguments, 130 after a second signal.
    Serve(Serve),
    /// Send flows to a service: each counts once, however often it has to be tried.
    ///
    /// Reads a JSON array, NDJSON, CSV or AWS VPC Flow Logs, also as gzip or zstd, from a file or a
    /// pipe. Tries again while the service is away or overloaded, under one idempotency key a batch. A
    /// file that is sent again, and has not changed, counts once with the same --batch-flows and
    /// within the service's --idempotency-window. Exit status: 0 when the service has everything, 1
    /// with a line that says what not.
    Send(Send),
    /// Import files of flows, into a stopped service's data directory or through a running service.
    ///
    /// Reads JSON arrays, NDJSON, CSV or AWS VPC Flow Logs, also as gzip or zstd. A file that is
    /// imported again in the same way, and has not changed, counts once; also where the first import
    /// was interrupted: it goes on where that one stopped. That holds within the --idempotency-window
    /// (a day) of the service. What is not a flow is left out, counted and named by file and line.
    ///
    /// Of a VPC flow log, a flow takes: the hour since the epoch from start; vpc_id from vpc-id; the
    /// applications from the addresses (pkt-srcaddr and pkt-dstaddr where there are any, else srcaddr
    /// and dstaddr) by --apps; bytes_tx from bytes. Where flow-direction is ingress, source and
    /// destination change places, and bytes are bytes_rx. Records with NODATA, SKIPDATA or REJECT
    /// stand for no traffic, and are skipped and counted.
    ///
    /// Exit status: 0 when everything is imported, 1 with a line that says what not, 128 and the
    /// signal's number after a signal.
    Import(Import),
    /// Rewrite the sums of a stopped service, so that each is stored once.
    ///
    /// The service does this by itself, bit by bit; done in one go, it makes a backup smaller.
    Compact(Compact),
    /// Check that everything stored by a stopped service, or in a backup, is what it was given.
    ///
    /// Reads all rows and the journal, checks their checksums, and holds the sums of every hour
    /// against the ledger, an account of the same flows that is kept beside them. Changes nothing.
    /// Exit status: 0 when all agrees, 1 with a line for each fault.
    Verify(Verify),
    /// Take a backup, of a running service or of a stopped one.
    ///
    /// Makes a directory in DIR that is named after the time and is a whole data directory. The next
    /// backup into the same DIR fetches only the files that are new. A running service goes on
    /// meanwhile. A backup that was interrupted ends in .incomplete, is never restored from, and is
    /// removed by the next. Exit status: 0 when it is complete and on disk, 1 with a line that says why
    /// not.
    Backup(Backup),
    /// Make a data directory of a backup, and verify it.
    ///
    /// Exit status: 0 when it is complete and verified, 1 with a line that says why not.
    Restore(Restore),
    /// Write the rows of hours to standard output.
    Export(Export),
    /// Say what is stored: hours, flows, bytes, space on disk.
    Stats(Stats),
    /// Print the completions for a shell.
    Completions(Completions),
    /// Print the manual page, or write one for each command into a directory.
    Man(Man),
}

/// The data directory, for every command that works on one.
#[derive(Clone, Debug, Args)]
pub struct DataDir {
    /// Directory that holds everything the service stores.
    #[arg(
        long = "data-dir",
        env = "FLOWTALLY_DATA_DIR",
        value_name = "DIR",
        default_value = "data/db"
    )]
    pub path: PathBuf,
}

/// A running service or a stopped one's directory.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Place {
    /// The running service, as in http://127.0.0.1:8080.
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,

    /// The data directory of a service that is stopped.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
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

/// What `flowtally backup` is told.
#[derive(Clone, Debug, Args)]
pub struct Backup {
    #[command(flatten)]
    pub place: Place,

    #[command(flatten)]
    pub credentials: Credentials,

    /// Directory for backups, each in one of its own.
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,

    /// Remove all but the newest N backups when this one is complete.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep: Option<u32>,
}

/// What `flowtally restore` is told.
#[derive(Clone, Debug, Args)]
pub struct Restore {
    /// A backup, or the directory of them, of which the newest complete one is taken.
    #[arg(long, value_name = "DIR")]
    pub from: PathBuf,

    /// Directory to make; it has to be absent or empty.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
}

/// What `flowtally export` is told.
#[derive(Clone, Debug, Args)]
pub struct Export {
    #[command(flatten)]
    pub place: Place,

    #[command(flatten)]
    pub credentials: Credentials,

    /// First hour; without it, the first that has flows.
    #[arg(long, value_name = "HOUR")]
    pub from: Option<u32>,

    /// The hour after the last one; without it, all that have flows.
    #[arg(long, value_name = "HOUR")]
    pub to: Option<u32>,

    /// How rows are written.
    #[arg(long, value_enum, default_value_t = ExportFormat::Ndjson)]
    pub format: ExportFormat,
}

/// `--format` of `flowtally export`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// A row a line, as JSON.
    Ndjson,
    /// A line with the names of the columns, then a row a line.
    Csv,
}

/// What `flowtally stats` is told.
#[derive(Clone, Debug, Args)]
pub struct Stats {
    #[command(flatten)]
    pub place: Place,

    #[command(flatten)]
    pub credentials: Credentials,

    /// As one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What `flowtally completions` is told.
#[derive(Clone, Debug, Args)]
pub struct Completions {
    /// The shell.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// What `flowtally man` is told.
#[derive(Clone, Debug, Args)]
pub struct Man {
    /// Directory for flowtally.1, flowtally-serve.1 and so on; without it, flowtally.1 is printed.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// What `flowtally compact` is told.
#[derive(Clone, Debug, Args)]
pub struct Compact {
    #[command(flatten)]
    pub data_dir: DataDir,
}

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
        default_value = "http://127.0.0.1:8080"
    )]
    pub url: String,

    #[command(flatten)]
    pub input: Input,

    /// Flows in a batch.
    #[arg(
        long,
        value_name = "N",
        default_value = "1000",
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    pub batch_flows: u32,

    /// Directory for batches that the service has not taken yet. They outlive this process: the
    /// next one sends them first. It can go on reading while the service is away.
    #[arg(long, env = "FLOWTALLY_SPOOL", value_name = "DIR")]
    pub spool: Option<PathBuf>,

    /// Disk for the spool, in MiB; when it is full, reading waits.
    #[arg(
        long,
        value_name = "MIB",
        default_value = "1024",
        value_parser = clap::value_parser!(u32).range(1..=1_048_576)
    )]
    pub spool_max: u32,

    /// Seconds after which to give up when the service takes nothing.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "300",
        value_parser = seconds(0..=31_536_000)
    )]
    pub retry_for: Duration,

    /// Send bodies as they are, not as zstd.
    #[arg(long)]
    pub no_compress: bool,

    #[command(flatten)]
    pub credentials: Credentials,
}

/// What `flowtally import` is told.
#[derive(Clone, Debug, Args)]
pub struct Import {
    /// Files to import; - reads a pipe, which cannot be imported again.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,

    #[command(flatten)]
    pub place: Place,

    #[command(flatten)]
    pub input: Input,

    /// Stop when more flows than this are refused; without it, all that can be read is imported.
    #[arg(long, value_name = "N")]
    pub max_rejects: Option<u64>,

    #[command(flatten)]
    pub credentials: Credentials,
}

/// How to read flows, for every command that does.
#[derive(Clone, Debug, Args)]
pub struct Input {
    /// How the flows are written; without it, the beginning tells: [ json, { ndjson, "version "
    /// vpc-flow-logs, anything else csv.
    #[arg(long, value_enum)]
    pub format: Option<InputFormat>,

    /// CSV file with the columns address and app, for VPC flow logs: names for addresses and ranges
    /// (10.0.0.0/16); the longest prefix counts. Addresses that are not in it stay as they are.
    #[arg(long, value_name = "FILE")]
    pub apps: Option<PathBuf>,

    /// File to which flows that are refused are added, one JSON line each, with the reason.
    #[arg(long, value_name = "FILE")]
    pub rejects: Option<PathBuf>,

    /// Count a file once more, if it has been read before.
    #[arg(long)]
    pub again: bool,
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

impl From<InputFormat> for input::InputFormat {
    fn from(format: InputFormat) -> input::InputFormat {
        match format {
            InputFormat::Json => input::InputFormat::Json,
            InputFormat::Ndjson => input::InputFormat::Ndjson,
            InputFormat::Csv => input::InputFormat::Csv,
            InputFormat::VpcFlowLogs => input::InputFormat::VpcFlowLogs,
        }
    }
}

/// What `flowtally verify` is told.
#[derive(Clone, Debug, Args)]
pub struct Verify {
    #[command(flatten)]
    pub data_dir: DataDir,
}

/// What `flowtally serve` is told.
#[derive(Clone, Debug, Args)]
pub struct Serve {
    /// TOML file with settings: its keys are the long names of these flags, as in memory-max = 1024.
    #[arg(long, env = "FLOWTALLY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Show all settings, and where each comes from, and end.
    #[arg(long)]
    pub print_config: bool,

    #[command(flatten)]
    pub data_dir: DataDir,

    /// Address and port to listen on; port 0 picks a free one, which the log shows.
    #[arg(
        long,
        env = "FLOWTALLY_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080"
    )]
    pub listen: String,

    /// File with the tokens of those who may send flows, one a line; without it, no token is needed
    /// for that. SIGHUP reads all files of tokens and certificates again.
    #[arg(long, env = "FLOWTALLY_WRITE_TOKEN_FILE", value_name = "FILE")]
    pub write_token_file: Option<PathBuf>,

    /// File with the tokens of those who may read, one a line; without it, no token is needed for
    /// that.
    #[arg(long, env = "FLOWTALLY_READ_TOKEN_FILE", value_name = "FILE")]
    pub read_token_file: Option<PathBuf>,

    /// The service's certificate, as PEM, followed by those between it and the root. With it, the
    /// service speaks HTTPS only.
    #[arg(long, env = "FLOWTALLY_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key, as PEM.
    #[arg(long, env = "FLOWTALLY_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Authority, as PEM, whose certificate clients need for everything but /healthz and /readyz.
    #[arg(long, env = "FLOWTALLY_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,

    /// Listen beyond this machine although nothing guards sending or reading.
    #[arg(long, env = "FLOWTALLY_ALLOW_ANONYMOUS")]
    pub allow_anonymous: bool,

    /// What an acknowledged batch survives.
    #[arg(
        long,
        env = "FLOWTALLY_DURABILITY",
        value_enum,
        default_value_t = Durability::Fsync
    )]
    pub durability: Durability,

    /// Seconds that requests under way get to end in, when the service stops.
    #[arg(
        long = "shutdown-timeout",
        env = "FLOWTALLY_SHUTDOWN_TIMEOUT",
        value_name = "SECONDS",
        default_value = "30",
        value_parser = seconds(0..=86_400)
    )]
    pub shutdown_timeout: Duration,

    /// Seconds after which sums move from memory to their final files. Longer means fewer and
    /// larger files, and a longer replay after a crash.
    #[arg(
        long,
        env = "FLOWTALLY_FLUSH_INTERVAL",
        value_name = "SECONDS",
        default_value = "10",
        value_parser = seconds(1..=3_600)
    )]
    pub flush_interval: Duration,

    /// Seconds for which a batch's Idempotency-Key is remembered, so that the batch counts once
    /// however often it is sent.
    #[arg(
        long,
        env = "FLOWTALLY_IDEMPOTENCY_WINDOW",
        value_name = "SECONDS",
        default_value = "86400",
        value_parser = seconds(1..=31_536_000)
    )]
    pub idempotency_window: Duration,

    /// Disk for remembered keys, in MiB; when they need more, the oldest are forgotten. A key takes
    /// about 100 bytes.
    #[arg(
        long,
        env = "FLOWTALLY_IDEMPOTENCY_DISK_MAX",
        value_name = "MIB",
        default_value = "256",
        value_parser = clap::value_parser!(u32).range(16..=1_048_576)
    )]
    pub idempotency_disk_max: u32,

    /// Hours to keep before the newest one that has flows. Older ones are dropped as a whole, and flows
    /// for them are counted as expired. Without it, all are kept.
    #[arg(
        long,
        env = "FLOWTALLY_RETAIN_HOURS",
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub retain_hours: Option<u32>,

    /// Free space on the disk, in MiB, below which batches are refused (507) and everything else
    /// goes on; a twentieth of the disk by default, at most 1024.
    #[arg(long, env = "FLOWTALLY_DISK_RESERVE", value_name = "MIB")]
    pub disk_reserve: Option<u32>,

    /// Memory that the process may take, in MiB: bodies under way, sums in memory, RocksDB's caches
    /// and buffers are all cut from it.
    #[arg(
        long,
        env = "FLOWTALLY_MEMORY_MAX",
        value_name = "MIB",
        default_value = "512",
        value_parser = clap::value_parser!(u32).range(128..=1_048_576)
    )]
    pub memory_max: u32,

    /// Largest body of a request in MiB, as sent and after decompression; at most a sixteenth
    /// of the memory, which is also the default.
    #[arg(long, env = "FLOWTALLY_BODY_MAX", value_name = "MIB")]
    pub body_max: Option<u32>,

    /// What to log: error, warn, info, debug, trace, or a filter such as info,flowtally=debug.
    #[arg(
        long,
        env = "FLOWTALLY_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub log: String,

    /// How to log: auto is text on a terminal, and JSON elsewhere.
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
    /// One object a line.
    Json,
}

/// How `--memory-max` is divided. The shares add up to seven tenths of it; the rest is for the
/// process itself, compaction and what an allocator cannot use.
///
/// | share | for |
/// |---|---|
/// | 1/4 | bodies under way, and the batches made of them |
/// | 2 × 1/16 | the active and the frozen tally |
/// | 1/8 | answers: copies of rows that are not flushed yet |
/// | 3 × 1/32 | the journal's memtables |
/// | 1/16 | RocksDB's block cache |
/// | 1/32 | a flush: the order of its rows |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    pub inflight_bytes_max: usize,
    pub body_bytes_max: usize,
    pub tally_bytes_max: usize,
    pub view_bytes_max: usize,
    pub memtable_bytes: usize,
    pub block_cache_bytes: usize,
}

impl Serve {
    /// Divides the memory.
    ///
    /// # Errors
    /// A `--body-max` that does not fit, as text for the user.
    pub fn memory_plan(&self) -> Result<MemoryPlan, String> {
        let memory = (self.memory_max as usize) << 20;
        let body_max = self.memory_max / 16;
        let body = self.body_max.unwrap_or(body_max);
        if body == 0 || body > body_max {
            return Err(format!(
                "--body-max is {body}; with --memory-max {} it can be 1 to {body_max} (MiB)",
                self.memory_max
            ));
        }
        Ok(MemoryPlan {
            inflight_bytes_max: memory / 4,
            body_bytes_max: (body as usize) << 20,
            tally_bytes_max: memory / 16,
            view_bytes_max: memory / 8,
            memtable_bytes: memory / 32,
            block_cache_bytes: memory / 16,
        })
    }
}

/// `--durability`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Durability {
    /// A crash of the machine: each answer waits until the disk has the batch.
    Fsync,
    /// A crash of the process, but not of the machine: faster where fsync is slow.
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

fn seconds(
    range: std::ops::RangeInclusive<u64>,
) -> impl clap::builder::TypedValueParser<Value = Duration> {
    clap::value_parser!(u64)
        .range(range)
        .map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
