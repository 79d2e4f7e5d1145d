//! Arguments of `flowtally top`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use agent::arguments::{Credentials, ServiceUrl};
use agent::units;
use agent::units::seconds;

/// Arguments of `flowtally top`.
#[derive(Clone, Debug, Args)]
pub struct Top {
    #[command(flatten)]
    pub service: ServiceUrl,

    /// The hour to show: its number, a time in UTC if hours are since the epoch, as in 2026-11-29T10, or latest, which
    /// follows the newest hour that has flows.
    #[arg(long, value_name = "HOUR|latest", default_value = "latest", value_parser = hour)]
    pub hour: HourChoice,

    /// The meaning of a row.
    #[arg(long, value_enum, default_value_t = GroupBy::Edge)]
    pub group_by: GroupBy,

    /// Sort order: largest first.
    ///
    /// A rate needs two responses with the same row, so rate shows the fastest of the 1,000 rows with the most bytes.
    /// With --once, it queries the service twice, --interval-s apart.
    #[arg(long, value_enum, default_value_t = SortBy::Bytes)]
    pub sort: SortBy,

    /// Maximum number of rows to show. By default as many as fit on the screen, and 20 with --once.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: Option<u32>,

    /// Seconds between queries; longer if the service takes long to respond.
    #[arg(
        long = "interval-s",
        value_name = "DURATION",
        default_value = "2",
        value_parser = seconds(1..=3600)
    )]
    pub interval: Duration,

    #[command(flatten)]
    pub filters: Filters,

    /// Print the rows once and exit.
    #[arg(long)]
    pub once: bool,

    /// Format of the rows.
    #[arg(long, short = 'o', value_enum, default_value_t = TopFormat::Table, requires = "once")]
    pub format: TopFormat,

    #[command(flatten)]
    pub credentials: Credentials,
}

/// The flows to add up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct Filters {
    /// Only flows with this text in one of their three names; the case of ASCII letters is ignored.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    pub search: String,

    /// Only flows from this application; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub src_app: Vec<String>,

    /// Only flows to this application; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub dest_app: Vec<String>,

    /// Only flows from or to this application; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub peer: Vec<String>,

    /// Only flows in this VPC; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub vpc_id: Vec<String>,
}

impl Filters {
    /// The names to filter by, with the parameter for each.
    pub fn by_name(&self) -> [(&'static str, &[String]); 4] {
        [
            ("src_app", &self.src_app),
            ("dest_app", &self.dest_app),
            ("peer", &self.peer),
            ("vpc_id", &self.vpc_id),
        ]
    }
}

/// `--hour`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HourChoice {
    Latest,
    At(u64),
}

/// `--group-by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GroupBy {
    /// A source and a destination.
    Edge,
    /// A source.
    #[value(name = "src_app")]
    SrcApp,
    /// A destination.
    #[value(name = "dest_app")]
    DestApp,
    /// A VPC.
    #[value(name = "vpc_id")]
    VpcId,
}

/// `--sort`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SortBy {
    /// Both directions together.
    Bytes,
    /// From source to destination.
    Tx,
    /// From destination to source.
    Rx,
    /// Bytes per second.
    Rate,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TopFormat {
    /// Columns, for people.
    Table,
    /// One JSON array.
    Json,
    /// One JSON object per row and line.
    Ndjson,
    /// A line with the column names, then one line for each row.
    Csv,
}

fn hour(text: &str) -> Result<HourChoice, String> {
    if text == "latest" {
        return Ok(HourChoice::Latest);
    }
    match units::hour(text) {
        Ok(hour) if hour < u32::MAX => Ok(HourChoice::At(hour.into())),
        _ => Err(
            "it has to be latest, a number from 0 to 4294967294, or a time in UTC such as 2026-11-29T10"
                .into(),
        ),
    }
}
