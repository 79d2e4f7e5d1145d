//! Arguments of `flowtally query`.

use clap::{Args, ValueEnum};

use agent::arguments::{Credentials, ServiceUrl};
use agent::units::{HourBound, hour_bound};

/// Arguments of `flowtally query`.
#[derive(Clone, Debug, Args)]
pub struct QueryArgs {
    #[command(flatten)]
    pub service: ServiceUrl,

    /// Only rows with these names, as in src_app=web, dest_app!=db, src_app^=web- (the beginning) or peer=web (either
    /// side); search=TEXT finds it in any name.
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,

    /// One hour: its number, or a time in UTC if hours are since the epoch, as in 2026-11-29T10, 'yesterday 10:00', now,
    /// or 3h ago. A day means its first hour.
    #[arg(long, value_name = "HOUR", value_parser = hour_bound, allow_hyphen_values = true, conflicts_with_all = ["from", "to"])]
    pub hour: Option<HourBound>,

    /// The first hour, in the same forms.
    #[arg(long, value_name = "HOUR", value_parser = hour_bound, allow_hyphen_values = true)]
    pub from: Option<HourBound>,

    /// The end of the hours, in the same forms; it is not included. By default, all hours from --from on.
    #[arg(long, value_name = "HOUR", value_parser = hour_bound, allow_hyphen_values = true)]
    pub to: Option<HourBound>,

    /// Add up rows that agree in these columns: any of src_app,dest_app,vpc_id,hour. Empty for the sum of everything.
    #[arg(long, value_name = "COLUMNS")]
    pub group_by: Option<String>,

    /// Add up hours in steps of N, as in 24 for days; needs hour in --group-by. --from and --to are extended to whole steps.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub step: Option<u32>,

    /// The sum to sort by, largest first: bytes, bytes_tx, bytes_rx, or change with --compare. With - in front, smallest
    /// first. A table is sorted by bytes by default, with --compare by change, and by hour if its groups have hours.
    #[arg(long, value_name = "SUM", allow_hyphen_values = true)]
    pub sort: Option<String>,

    /// Maximum number of rows; by default 20 for a table without hours, otherwise all.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: Option<u32>,

    /// Add a last row with the sums of all other rows.
    #[arg(long)]
    pub other: bool,

    /// Compare with as many hours from this one on, or with those just before: previous.
    #[arg(long, value_name = "HOUR|previous", allow_hyphen_values = true)]
    pub compare: Option<String>,

    /// Format of the rows.
    #[arg(long, short = 'o', value_enum, default_value_t = QueryFormat::Table)]
    pub format: QueryFormat,

    #[command(flatten)]
    pub credentials: Credentials,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum QueryFormat {
    /// Aligned columns, for people.
    Table,
    /// A line with the column names, then one line for each row.
    Csv,
    /// A JSON array.
    Json,
    /// One JSON object per row and line.
    Ndjson,
    /// A stream of Arrow, for programs: not to a terminal.
    Arrow,
}
