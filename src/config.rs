//! Arguments and environment, as validated values. Every flag is also a variable: `--data-dir` is
//! `FLOWTALLY_DATA_DIR`, and the flag wins.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::TypedValueParser as _;
use clap::{Args, Parser, Subcommand, ValueEnum};

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
}

/// What `flowtally serve` is told.
#[derive(Clone, Debug, Args)]
pub struct Serve {
    /// Directory that holds everything the service stores; made where it is absent.
    #[arg(
        long,
        env = "FLOWTALLY_DATA_DIR",
        value_name = "DIR",
        default_value = "data/db"
    )]
    pub data_dir: PathBuf,

    /// Address and port to listen on; port 0 picks a free one, which the log shows.
    #[arg(
        long,
        env = "FLOWTALLY_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080"
    )]
    pub listen: String,

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

    /// Largest body of a request in MiB, as sent and after decompression.
    #[arg(
        long,
        env = "FLOWTALLY_BODY_MAX",
        value_name = "MIB",
        default_value = "64",
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    pub body_max: u32,

    /// MiB that all bodies under way may take together; further requests wait, then get a 503.
    #[arg(
        long,
        env = "FLOWTALLY_INFLIGHT_MAX",
        value_name = "MIB",
        default_value = "256",
        value_parser = clap::value_parser!(u32).range(1..=65_536)
    )]
    pub inflight_max: u32,

    /// What to log: error, warn, info, debug, trace, or a filter such as info,flowtally=debug.
    #[arg(
        long,
        env = "FLOWTALLY_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub log: String,
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
