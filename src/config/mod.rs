//! Arguments, environment and an optional file, as validated values. Every flag of the service is also
//! a variable, `--data-dir` is `FLOWTALLY_DATA_DIR`, and a key of the file, `data-dir`; the flag comes
//! first, then the variable, then the file. A variable that is set to nothing counts as unset. Sizes,
//! durations and times may have [units], wherever they come from.

#[cfg(feature = "kafka")]
mod cluster;
mod examples;
mod file;
mod hours;
mod location;
mod serve;
mod tips;
mod top;

#[cfg(feature = "kafka")]
pub use cluster::Cluster;
pub use file::{Settings, parse};
pub use hours::Hours;
pub use location::Location;
pub use serve::{Durability, LogFormat, MemoryPlan, Serve};
pub use top::{Filters, GroupBy, HourChoice, SortBy, Top, TopFormat};

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use agent::arguments::{Credentials, Input, Retry, Send};
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

/// What `flowtally backup` is told.
#[derive(Clone, Debug, Args)]
pub struct Backup {
    #[command(flatten)]
    pub location: Location,

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
    pub location: Location,

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
    pub location: Location,

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

/// What `flowtally import` is told.
#[derive(Clone, Debug, Args)]
pub struct Import {
    /// Files to import; - reads a pipe.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,

    #[command(flatten)]
    pub location: Location,

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
