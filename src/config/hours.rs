//! Flags for the hours that are kept, and for those that are accepted.

use std::str::FromStr;

use clap::Args;

use crate::store::RetentionPeriods;
use agent::units;
use agent::units::hours;

/// The default of `--hour-ahead-max` with `--retain-hours`.
const AHEAD_MAX: u32 = 48;

/// Arguments of every command that accepts flows.
#[derive(Clone, Debug, Args)]
pub struct HourArgs {
    /// Hours that the service keeps before the newest one that has flows, as a number or as in 30d. Older hours are
    /// deleted; flows for them are expired, or count only in sums of days with --retain-days or --retain-30days. Without
    /// this, all hours are kept.
    #[arg(
        long,
        env = "FLOWTALLY_RETAIN_HOURS",
        value_name = "HOURS",
        value_parser = hours(1..=u32::MAX)
    )]
    retain_hours: Option<u32>,

    /// Days (of 24 hours) for which the sums of whole days are kept when their hours are deleted, as a number or as in
    /// 365d; all keeps them for ever. By default as long as the hours.
    #[arg(long, env = "FLOWTALLY_RETAIN_DAYS", value_name = "DAYS|all")]
    retain_days: Option<Spans<24>>,

    /// Number of periods of thirty days (720 hours, from multiples of 720 on) whose sums are kept after their days are
    /// deleted, or a time as in 3600d; all keeps them for ever. By default as long as the days.
    #[arg(
        id = "retain_30days",
        long = "retain-30days",
        env = "FLOWTALLY_RETAIN_30DAYS",
        value_name = "NUMBER|all"
    )]
    retain_thirty_days: Option<Spans<720>>,

    /// Refuse flows whose hour is more than N hours ahead of the clock's hour since the epoch; none means no limit.
    /// This protects the retained hours: one hour far in the future would make all others too old. Hours of a
    /// day (0 to 23) are always accepted. By default 48 with --retain-hours, none without.
    #[arg(long, env = "FLOWTALLY_HOUR_AHEAD_MAX", value_name = "N|none")]
    hour_ahead_max: Option<AheadMax>,
}

impl HourArgs {
    /// How long rows are kept.
    ///
    /// # Errors
    /// If longer spans are kept for a shorter time.
    pub fn retention(&self) -> Result<RetentionPeriods, String> {
        let hours = self.retain_hours;
        let days = self.retain_days.map_or(hours, |days| days.0);
        let thirty_days = self.retain_thirty_days.map_or(days, |spans| spans.0);
        let is_shorter = |longer: Option<u32>, finer: Option<u32>| match (longer, finer) {
            (Some(longer), Some(finer)) => longer < finer,
            (Some(_), None) => true,
            (None, _) => false,
        };
        let refuse = |longer: &str, finer: &str| {
            Err(format!(
                "{longer} is shorter than {finer}; raise it, set it to all, or omit it"
            ))
        };
        if is_shorter(days, hours) {
            return refuse("--retain-days", "--retain-hours");
        }
        if is_shorter(thirty_days, days) {
            return refuse("--retain-30days", "--retain-days");
        }
        Ok(RetentionPeriods {
            hours,
            days,
            thirty_days,
        })
    }

    /// Maximum number of hours ahead of the clock; `None` means no limit.
    pub fn ahead_max(&self) -> Option<u32> {
        match self.hour_ahead_max {
            Some(AheadMax(given)) => given,
            None => self.retain_hours.map(|_| AHEAD_MAX),
        }
    }
}

/// `--retain-days` and `--retain-30days`: the number of hours, from a number of spans of this many; `None` keeps all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spans<const HOURS: u32>(Option<u32>);

impl<const HOURS: u32> FromStr for Spans<HOURS> {
    type Err = String;

    fn from_str(text: &str) -> Result<Spans<HOURS>, String> {
        if text.eq_ignore_ascii_case("all") {
            return Ok(Spans(None));
        }
        let (seconds, unit) = match HOURS {
            24 => (24 * 3600, "days"),
            _ => (u64::from(HOURS) * 3600, "periods of thirty days"),
        };
        let range = 1..=u64::from(u32::MAX / HOURS);
        let spans =
            units::whole(text, seconds, unit, range).map_err(|what| format!("{what}, or all"))?;
        let hours = u32::try_from(spans * u64::from(HOURS)).map_err(|e| e.to_string())?;
        Ok(Spans(Some(hours)))
    }
}

/// `--hour-ahead-max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AheadMax(Option<u32>);

impl FromStr for AheadMax {
    type Err = String;

    fn from_str(text: &str) -> Result<AheadMax, String> {
        if text.eq_ignore_ascii_case("none") {
            return Ok(AheadMax(None));
        }
        let hours = units::whole(text, 3600, "hours", 0..=u64::from(u32::MAX))
            .map_err(|what| format!("{what}, or none"))?;
        let hours = u32::try_from(hours).map_err(|e| e.to_string())?;
        Ok(AheadMax(Some(hours)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        hours: HourArgs,
    }

    #[test]
    fn longer_spans_are_kept_as_long_as_shorter_ones_or_longer() {
        let parsed = |arguments: &[&str]| {
            let command = Command::try_parse_from([&["x"], arguments].concat());
            command.map_err(|e| e.to_string())?.hours.retention()
        };
        let kept = |hours, days, thirty_days| {
            Ok(RetentionPeriods {
                hours,
                days,
                thirty_days,
            })
        };
        for (arguments, expected) in [
            (&[][..], kept(None, None, None)),
            (
                &["--retain-hours", "48"],
                kept(Some(48), Some(48), Some(48)),
            ),
            (
                &["--retain-hours", "48", "--retain-days", "3"],
                kept(Some(48), Some(72), Some(72)),
            ),
            (
                &[
                    "--retain-hours",
                    "2d",
                    "--retain-days",
                    "90d",
                    "--retain-30days",
                    "all",
                ],
                kept(Some(48), Some(2160), None),
            ),
            (
                &["--retain-hours", "48", "--retain-30days", "360d"],
                kept(Some(48), Some(48), Some(8640)),
            ),
        ] {
            assert_eq!(parsed(arguments), expected, "{arguments:?}");
        }
        for (arguments, says) in [
            (
                &["--retain-hours", "48", "--retain-days", "1"][..],
                "--retain-days is shorter",
            ),
            (&["--retain-days", "1"], "than --retain-hours"),
            (
                &[
                    "--retain-hours",
                    "9",
                    "--retain-days",
                    "all",
                    "--retain-30days",
                    "5",
                ],
                "than --retain-days",
            ),
            (&["--retain-30days", "31d"], "whole periods of thirty days"),
            (&["--retain-days", "0"], "1 to"),
            (&["--retain-days", "some"], "or all"),
        ] {
            let error = parsed(arguments).unwrap_err();
            assert!(error.contains(says), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn accepted_hours() {
        for (arguments, expected) in [
            (&[][..], None),
            (&["--retain-hours", "48"], Some(48)),
            (&["--retain-hours", "9", "--hour-ahead-max", "none"], None),
            (&["--retain-hours", "9", "--hour-ahead-max", "0"], Some(0)),
            (&["--hour-ahead-max", "7"], Some(7)),
        ] {
            let command = Command::try_parse_from([&["x"], arguments].concat()).unwrap();
            assert_eq!(command.hours.ahead_max(), expected, "{arguments:?}");
        }
        for wrong in ["-1", "2x", "", "4294967296"] {
            let argument = format!("--hour-ahead-max={wrong}");
            assert!(
                Command::try_parse_from(["x", &argument]).is_err(),
                "{wrong}"
            );
        }
    }
}
