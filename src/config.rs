//! Arguments, environment and an optional file, as validated values. Every flag of the service is also
//! a variable, `--data-dir` is `FLOWTALLY_DATA_DIR`, and a key of the file, `data-dir`; the flag comes
//! first, then the variable, then the file. A variable that is set to nothing counts as unset. Sizes,
//! durations and times may have [units], wherever they come from.

#[cfg(feature = "kafka")]
mod cluster;
mod examples;
mod file;
mod hours;
mod place;
mod serve;
mod tips;
mod top;
mod units;

#[cfg(feature = "kafka")]
pub use cluster::Cluster;
pub use file::{Settings, parse};
pub use hours::Hours;
pub use place::Place;
pub use serve::{Durability, LogFormat, MemoryPlan, Serve};
pub use top::{Filters, GroupBy, HourChoice, SortBy, Top, TopFormat};
pub use units::hour_name;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use self::units::{days, hour, hours, listen, mib, seconds};
use crate::input;

/// Where commands look for the service, as where the service listens, unless they are told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:8080";

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
    Serve(Box<Serve>),
    /// Send flows to a service: each counts once, however often it has to be tried.
    ///
    /// Reads a JSON array, NDJSON, CSV or AWS VPC Flow Logs, also as gzip or zstd, from a file or a
    /// pipe. Tries again while the service is away or overloaded, under one idempotency key a batch. A
    /// file is told by the flows in it: sent again, under any name and compressed or not, it counts
    /// once, and one that has grown counts what is new. Exit status: 0 when the service has
    /// everything, 1 with a line that says what not.
    #[command(after_help = examples::SEND)]
    Send(Send),
    /// Import files of flows, into a stopped service's data directory or through a running service.
    ///
    /// Reads JSON arrays, NDJSON, CSV or AWS VPC Flow Logs, also as gzip or zstd. A file is told by the
    /// flows in it: imported or sent again, under any name and compressed or not, it counts once, and one
    /// that has grown counts what is new; so does one whose import was interrupted. The service
    /// remembers that for its --import-window (90 days). What is not a flow is left out, counted and named
    /// by file and line.
    ///
    /// Of a VPC flow log, a flow takes: the hour since the epoch from start; vpc_id from vpc-id; the
    /// applications from the addresses (pkt-srcaddr and pkt-dstaddr where there are any, else srcaddr
    /// and dstaddr) by --apps; bytes_tx from bytes. Where flow-direction is ingress, source and
    /// destination change places, and bytes are bytes_rx. Records with NODATA, SKIPDATA or REJECT
    /// stand for no traffic, and are skipped and counted.
    ///
    /// Exit status: 0 when everything is imported, 1 with a line that says what not, 128 and the
    /// signal's number after a signal.
    #[command(after_help = examples::IMPORT)]
    Import(Import),
    /// Rewrite the sums of a stopped service, so that each is stored once.
    ///
    /// The service does this by itself, bit by bit; done in one go, it makes a backup smaller. Exit
    /// status: 0 when it is done, 1 with a line that says why not.
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
    /// not, 128 and the signal's number after a signal.
    #[command(after_help = examples::BACKUP)]
    Backup(Backup),
    /// Make a data directory of a backup, and verify it.
    ///
    /// Exit status: 0 when it is complete and verified, 1 with a line that says why not.
    #[command(after_help = examples::RESTORE)]
    Restore(Restore),
    /// Write the rows of hours to standard output.
    ///
    /// Changes nothing in a data directory. Exit status: 0 when all rows are written, or whoever reads
    /// them has seen enough; 1 with a line that says why not.
    #[command(after_help = examples::EXPORT)]
    Export(Export),
    /// Say what is stored: hours, flows, bytes, space on disk.
    ///
    /// Changes nothing in a data directory. Exit status: 0 when it is said, 1 with a line that says why
    /// not.
    Stats(Stats),
    /// Show the applications of an hour that talk most, and how fast, as it changes.
    ///
    /// Keys: s sorts, g groups, / searches, left and right change the hour, space pauses, ? shows them
    /// all, q quits. It asks for what it shows only. Where standard output is no terminal, --once is
    /// needed: it prints the rows and ends. Exit status: 0 when it is quit, or has printed the rows, 1 with
    /// a line that says why not, 2 for wrong arguments, 128 and the signal's number after a signal. A
    /// service that goes away is no reason to end, except with --once.
    #[command(after_help = examples::TOP)]
    Top(Top),
    /// Print the completions for a shell.
    ///
    /// Exit status: 0 when they are printed, 1 with a line that says why not.
    Completions(Completions),
    /// Print the manual page, or write one for each command into a directory.
    ///
    /// Exit status: 0 when all is written, 1 with a line that says why not.
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

    #[command(flatten)]
    pub file: ConfigFile,
}

/// Where the rest of the settings are.
#[derive(Clone, Debug, Args)]
pub struct ConfigFile {
    /// TOML file with the service's settings: its keys are the long names of the flags of flowtally
    /// serve, as in memory-max = 1024. Another command takes data-dir from it.
    #[arg(long, env = "FLOWTALLY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
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
    #[arg(long, env = "FLOWTALLY_DATA_DIR", value_name = "DIR")]
    pub data_dir: PathBuf,
}

/// What `flowtally export` is told.
#[derive(Clone, Debug, Args)]
pub struct Export {
    #[command(flatten)]
    pub place: Place,

    #[command(flatten)]
    pub credentials: Credentials,

    /// First hour: its number, or a time in UTC where hours are since the epoch, as in 2026-11-29 or
    /// 2026-11-29T10. Without it, the first that has flows.
    #[arg(long, value_name = "HOUR", value_parser = hour)]
    pub from: Option<u32>,

    /// The hour after the last one, written in the same ways; without it, all that have flows.
    #[arg(long, value_name = "HOUR", value_parser = hour)]
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

    /// Directory for batches of a pipe that the service has not taken yet. They outlive this process: the
    /// next one sends them first. It can go on reading while the service is away. Of a pipe, a flow is on
    /// disk a second after it was read. A batch that the service will never take goes into DIR/refused, with
    /// the reason and the command that sends it again, unless --rejects is given; the rest is sent. A file
    /// needs none: it is read again.
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

/// What `flowtally import` is told.
#[derive(Clone, Debug, Args)]
pub struct Import {
    /// Files to import; - reads a pipe.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,

    #[command(flatten)]
    pub place: Place,

    #[command(flatten)]
    pub input: Input,

    /// What the service is told to which the data directory belongs. A service that is running goes by
    /// its own.
    #[command(flatten)]
    pub hours: Hours,

    /// Stop when more flows than this are refused; without it, all that can be read is imported.
    #[arg(long, value_name = "N")]
    pub max_rejects: Option<u64>,

    #[command(flatten)]
    pub retry: Retry,

    #[command(flatten)]
    pub credentials: Credentials,
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

    /// Where the flows come from, as in host-7. Equal files of different origin count each; without it,
    /// equal files are one. Standard input is told by what is in it only where this is given; it counts
    /// each time otherwise.
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

impl From<Count> for input::Count {
    fn from(count: Count) -> input::Count {
        match count {
            Count::Sender => input::Count::Sender,
            Count::Receiver => input::Count::Receiver,
            Count::Both => input::Count::Both,
        }
    }
}

/// What `flowtally verify` is told.
#[derive(Clone, Debug, Args)]
pub struct Verify {
    #[command(flatten)]
    pub data_dir: DataDir,
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
