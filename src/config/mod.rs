//! Arguments, environment and an optional file, as validated values. Every flag of the service is also a variable and a
//! key of the file: `--data-dir` is `FLOWTALLY_DATA_DIR` and `data-dir`. A flag overrides the variable, and the
//! variable overrides the file. An empty variable counts as unset. Sizes, durations and times may have [units],
//! whatever their source.

#[cfg_attr(not(feature = "kafka"), path = "no_cluster.rs")]
mod cluster;
mod demo;
mod examples;
mod file;
mod hours;
mod location;
mod query;
mod serve;
mod tips;
mod top;

pub use cluster::Cluster;
pub use demo::Demo;
pub use file::{Settings, parse};
pub use hours::HourArgs;
pub use location::DataLocation;
pub use query::{QueryArgs, QueryFormat};
pub use serve::{Durability, LogFormat, MemoryPlan, Serve};
pub use top::{Filters, GroupBy, HourChoice, SortBy, Top, TopFormat};

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use agent::arguments::{AgentCommand, Completions, Credentials, Input, Man, Retry, Send};
use agent::units::hour;

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
    /// SIGTERM or SIGINT shuts it down gracefully; a second one ends it immediately. Neither loses a flow that was
    /// acknowledged. Exit status: 0 after a graceful shutdown, 1 if it could not start or had to abort requests, 2 for
    /// wrong arguments, 130 after a second signal.
    #[command(after_help = examples::SERVE)]
    Serve(Box<Serve>),
    /// Show what flowtally does, with the flows of a made-up shop.
    ///
    /// Runs a service on a free port of this machine, fills it with the flows of the last 30 days, sends more every two
    /// seconds, prints the page's URL, and opens it where there is a desktop. It uses no other service's data, settings or
    /// variables. Its data are in a temporary directory, and are deleted when it ends. Exit status: 0 after a signal, 1 with a
    /// line that explains why it cannot continue, 130 after a second signal.
    #[command(after_help = examples::DEMO)]
    Demo(Demo),
    /// Send flows to a service: each counts once, however often it has to be sent.
    ///
    /// Reads a JSON array, NDJSON, CSV or AWS VPC Flow Logs, also as gzip or zstd, from a file or a pipe. Retries while
    /// the service is unavailable or overloaded, with one idempotency key for each batch. A file is recognised by its
    /// flows: sent again, under any name and compressed or not, it counts once; of a file that has grown, only the new
    /// flows count. Exit status: 0 when the service has everything, 1 with a line that explains what is missing.
    #[command(after_help = examples::SEND)]
    Send(Send),
    /// Report connections and flows: the commands of flowtally-agent.
    ///
    /// watch reports the TCP connections of this host, listen receives NetFlow, IPFIX and sFlow, and send sends files and
    /// pipes. Exit status: 0 when everything is sent, or after a signal; 1 with a line that explains why not.
    #[command(after_help = examples::AGENT)]
    Agent {
        #[command(subcommand)]
        command: AgentCommand,
    },
    /// Import files of flows, into a stopped service's data directory or through a running service.
    ///
    /// Reads JSON arrays, NDJSON, CSV or AWS VPC Flow Logs, also as gzip or zstd, and Parquet with the columns of flows or
    /// of VPC Flow Logs. A file is recognised by its flows: imported or sent again, under any name and compressed or not,
    /// it counts once; of a file that has grown, or whose import was interrupted, only the new flows count. The service
    /// remembers that for its --import-window (90 days). A line that is not a flow is skipped, counted, and reported with
    /// its file and line number; a row of Parquet is a line.
    ///
    /// From a VPC flow log, a flow takes: the hour since the epoch from start; vpc_id from vpc-id; the applications
    /// from the addresses (pkt-srcaddr and pkt-dstaddr if present, else srcaddr and dstaddr) by --apps; bytes_tx from
    /// bytes. If flow-direction is ingress, source and destination are swapped, and bytes are bytes_rx. Records with
    /// NODATA, SKIPDATA or REJECT represent no traffic; they are skipped and counted.
    ///
    /// Exit status: 0 when everything is imported, 1 with a line that explains what is not, 128 plus the signal's
    /// number after a signal.
    #[command(after_help = examples::IMPORT)]
    Import(Import),
    /// Rewrite the sums of a stopped service, so that each is stored once.
    ///
    /// A service does this gradually by itself; a complete rewrite makes a backup smaller. Exit status: 0 when it is
    /// done, 1 with a line that explains why not.
    #[command(after_help = examples::COMPACT)]
    Compact(Compact),
    /// Check that everything in a stopped service's data directory, or in a backup, is undamaged.
    ///
    /// Reads all rows and the journal, verifies their checksums, and compares the sums of every hour with the ledger, a
    /// separate account of the same flows. Changes nothing. Exit status: 0 when everything agrees, 1 with a line for
    /// each fault.
    #[command(after_help = examples::VERIFY)]
    Verify(Verify),
    /// Take a backup of a running or a stopped service.
    ///
    /// Creates a directory in DIR, named after the time, which is a complete data directory. The next backup into the
    /// same DIR fetches only new files. A running service keeps working. A backup that was interrupted has a name that
    /// ends in .incomplete; it is never restored, and the next backup removes it. Exit status: 0 when the backup is
    /// complete and on disk, 1 with a line that explains why not, 128 plus the signal's number after a signal.
    #[command(after_help = examples::BACKUP)]
    Backup(Backup),
    /// Create a data directory from a backup, and verify it.
    ///
    /// Exit status: 0 when it is complete and verified, 1 with a line that explains why not.
    #[command(after_help = examples::RESTORE)]
    Restore(Restore),
    /// Write the rows of hours to standard output, or to a Parquet file for each day.
    ///
    /// Changes nothing in a data directory. With --format parquet, a file whose hours have not changed since it was written
    /// is left as it is, so the command can be repeated. Exit status: 0 when all rows are written, or the reader has closed
    /// the pipe; 1 with a line that explains why not.
    #[command(after_help = examples::EXPORT)]
    Export(Export),
    /// Print the totals of the stored flows: hours, flows, bytes, space on disk.
    ///
    /// Changes nothing in a data directory. Exit status: 0 when it is printed, 1 with a line that explains why not.
    #[command(after_help = examples::STATS)]
    Stats(Stats),
    /// Print how many bytes went between applications: filtered, grouped, sorted, by steps of time, compared.
    ///
    /// It asks the service what GET /flows can answer; docs/api.md has the meaning of each parameter. Exit status: 0 when the
    /// rows are printed, or the reader has closed the pipe; 1 with a line that explains why not.
    #[command(after_help = examples::QUERY)]
    Query(QueryArgs),
    /// Show the applications with the most traffic in an hour, and their rates, live.
    ///
    /// Keys: up and down select a row, Enter shows the peers of its application, Esc goes back, o opens the same view in a
    /// browser, s sorts, g groups, / searches, [ and ] change the hour, space pauses, ? lists all keys, q quits. It
    /// requests only what it shows. If standard output is not a terminal, --once is needed: it prints the rows and
    /// exits. Exit status: 0 after q, or when the rows are printed; 1 with a line that explains why not; 2 for wrong
    /// arguments; 128 plus the signal's number after a signal. If the service becomes unavailable, it keeps retrying,
    /// except with --once. A wrong token ends it.
    #[command(after_help = examples::TOP)]
    Top(Top),
    /// Print the completions for a shell.
    ///
    /// Exit status: 0 when they are printed, 1 with a line that explains why not.
    #[command(after_help = examples::COMPLETIONS)]
    Completions(Completions),
    /// Print the manual page, or write one for each command into a directory.
    ///
    /// Exit status: 0 when everything is written, 1 with a line that explains why not.
    #[command(after_help = examples::MAN)]
    Man(Man),
}

/// The data directory, for every command that uses one.
#[derive(Clone, Debug, Args)]
pub struct DataDirArgs {
    /// Directory for everything that the service stores.
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

/// The file with the other settings.
#[derive(Clone, Debug, Args)]
pub struct ConfigFile {
    /// TOML file with the service's settings. Its keys are the long flags of flowtally serve, as in memory-max = 1024.
    /// Other commands read data-dir from it.
    #[arg(long, env = "FLOWTALLY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Arguments of `flowtally backup`.
#[derive(Clone, Debug, Args)]
pub struct Backup {
    #[command(flatten)]
    pub location: DataLocation,

    #[command(flatten)]
    pub credentials: Credentials,

    /// Directory that holds the backups, each in a directory of its own.
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,

    /// Remove all but the newest N backups when this one is complete.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep: Option<u32>,
}

/// Arguments of `flowtally restore`.
#[derive(Clone, Debug, Args)]
pub struct Restore {
    /// A backup, or the directory that holds them: then the newest complete one is restored.
    #[arg(long, value_name = "DIR")]
    pub from: PathBuf,

    /// Directory to create; it has to be absent or empty.
    #[arg(long, env = "FLOWTALLY_DATA_DIR", value_name = "DIR")]
    pub data_dir: PathBuf,
}

/// Arguments of `flowtally export`.
#[derive(Clone, Debug, Args)]
pub struct Export {
    #[command(flatten)]
    pub location: DataLocation,

    #[command(flatten)]
    pub credentials: Credentials,

    /// First hour: its number, or a time in UTC if hours are since the epoch, as in 2026-11-29 or 2026-11-29T10. By
    /// default the first hour that has flows.
    #[arg(long, value_name = "HOUR", value_parser = hour)]
    pub from: Option<u32>,

    /// The hour after the last one, in the same forms. By default all hours that have flows.
    #[arg(long, value_name = "HOUR", value_parser = hour)]
    pub to: Option<u32>,

    /// Format of the rows.
    #[arg(long, short = 'o', value_enum, default_value_t = ExportFormat::Ndjson)]
    pub format: ExportFormat,

    /// Directory for the files of --format parquet, which is created if it is absent. A file is called after its day, as in
    /// flows-2026-11-30.parquet, or after its 24 hours where hours are not since the epoch.
    #[arg(long, value_name = "DIR", required_if_eq("format", "parquet"))]
    pub to_dir: Option<PathBuf>,
}

/// `--format` of `flowtally export`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// One JSON object per row and line.
    Ndjson,
    /// A line with the column names, then one line for each row.
    Csv,
    /// One JSON array.
    Json,
    /// Columns, for people.
    Table,
    /// A stream of Arrow, for programs: not to a terminal.
    Arrow,
    /// Parquet files in --to-dir, one for each day.
    Parquet,
}

/// `--format` of the commands that answer with a few numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AnswerFormat {
    /// Text, for people.
    Table,
    /// One JSON object.
    Json,
    /// A line with the column names, and one with the values.
    Csv,
}

/// Arguments of `flowtally stats`.
#[derive(Clone, Debug, Args)]
pub struct Stats {
    #[command(flatten)]
    pub location: DataLocation,

    #[command(flatten)]
    pub credentials: Credentials,

    /// Format of the totals.
    #[arg(long, short = 'o', value_enum, default_value_t = AnswerFormat::Table)]
    pub format: AnswerFormat,

    /// Print one JSON object: the same as --format json.
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
}

impl Stats {
    /// The format that was asked for in either way.
    pub fn answer_format(&self) -> AnswerFormat {
        match self.json {
            true => AnswerFormat::Json,
            false => self.format,
        }
    }
}

/// Arguments of `flowtally compact`.
#[derive(Clone, Debug, Args)]
pub struct Compact {
    #[command(flatten)]
    pub data_dir: DataDirArgs,
}

/// Arguments of `flowtally import`.
#[derive(Clone, Debug, Args)]
pub struct Import {
    /// Files to import; - reads a pipe.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,

    #[command(flatten)]
    pub location: DataLocation,

    #[command(flatten)]
    pub input: Input,

    /// The hour limits of the service that the data directory belongs to. A running service uses its own.
    #[command(flatten)]
    pub hours: HourArgs,

    /// Stop when more flows than this are refused; without it, everything readable is imported.
    #[arg(long, value_name = "N")]
    pub max_rejects: Option<u64>,

    #[command(flatten)]
    pub retry: Retry,

    #[command(flatten)]
    pub credentials: Credentials,
}

/// Arguments of `flowtally verify`.
#[derive(Clone, Debug, Args)]
pub struct Verify {
    #[command(flatten)]
    pub data_dir: DataDirArgs,

    /// Format of the result. Faults are on standard error, one per line; as JSON, the first ones are in the object.
    #[arg(long, short = 'o', value_enum, default_value_t = AnswerFormat::Table)]
    pub format: AnswerFormat,
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
