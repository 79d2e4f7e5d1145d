//! What `flowtally top` is told.

use std::time::Duration;

use clap::{Args, ValueEnum};

use agent::arguments::{Credentials, DEFAULT_URL};
use agent::units;
use agent::units::seconds;

/// What `flowtally top` is told.
#[derive(Clone, Debug, Args)]
pub struct Top {
    /// The service.
    #[arg(
        long,
        env = "FLOWTALLY_URL",
        value_name = "URL",
        default_value = DEFAULT_URL
    )]
    pub url: String,

    /// The hour to show: its number, a time in UTC where hours are since the epoch, as in 2026-11-29T10, or
    /// latest, the newest one that has flows, whichever that becomes.
    #[arg(long, value_name = "HOUR|latest", default_value = "latest", value_parser = hour)]
    pub hour: HourChoice,

    /// What a row stands for.
    #[arg(long, value_enum, default_value_t = GroupBy::Edge)]
    pub group_by: GroupBy,

    /// What comes first: most of this.
    ///
    /// Rates are known of rows that were answered twice; so the fastest are those of the 1,000 rows with
    /// the most bytes. With --once it asks twice for that, --interval-s apart.
    #[arg(long, value_enum, default_value_t = SortBy::Bytes)]
    pub sort: SortBy,

    /// Rows at most; without it, as many as there is room for, and 20 with --once.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: Option<u32>,

    /// Seconds between two looks; longer where the service takes long to answer.
    #[arg(
        long = "interval-s",
        value_name = "DURATION",
        default_value = "2",
        value_parser = seconds(1..=3600)
    )]
    pub interval: Duration,

    #[command(flatten)]
    pub filters: Filters,

    /// Print the rows once and end.
    #[arg(long)]
    pub once: bool,

    /// How rows are printed.
    #[arg(long, value_enum, default_value_t = TopFormat::Table, requires = "once")]
    pub format: TopFormat,

    #[command(flatten)]
    pub credentials: Credentials,
}

/// Which flows to add up.
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

    /// Only flows in this VPC; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub vpc_id: Vec<String>,
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
    /// An application that sends.
    #[value(name = "src_app")]
    SrcApp,
    /// An application that is sent to.
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
    /// Bytes a second.
    Rate,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TopFormat {
    /// Columns, for people.
    Table,
    /// One array.
    Json,
    /// A row a line, as JSON.
    Ndjson,
    /// A line with the names of the columns, then a row a line.
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
