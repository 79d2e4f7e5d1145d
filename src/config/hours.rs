//! Flags for the hours that are kept, and for those that are accepted.

use std::str::FromStr;

use clap::Args;

use agent::units;
use agent::units::hours;

/// The default of `--hour-ahead-max` with `--retain-hours`.
const AHEAD_MAX: u32 = 48;

/// Arguments of every command that accepts flows.
#[derive(Clone, Debug, Args)]
pub struct HourArgs {
    /// Hours that the service keeps before the newest one that has flows, as a number or as in 30d. It deletes older
    /// hours, and counts flows for them as expired. Without it, all hours are kept.
    #[arg(
        long,
        env = "FLOWTALLY_RETAIN_HOURS",
        value_name = "HOURS",
        value_parser = hours(1..=u32::MAX)
    )]
    pub retain_hours: Option<u32>,

    /// Refuse flows whose hour is more than N hours ahead of the clock's hour since the epoch; none means no limit.
    /// This protects the retained hours: a single hour that is far too late would make all others too old. Hours of a
    /// day (0 to 23) are always accepted. By default 48 with --retain-hours, none without.
    #[arg(long, env = "FLOWTALLY_HOUR_AHEAD_MAX", value_name = "N|none")]
    hour_ahead_max: Option<AheadMax>,
}

impl HourArgs {
    /// Maximum number of hours ahead of the clock; `None` means no limit.
    pub fn ahead_max(&self) -> Option<u32> {
        match self.hour_ahead_max {
            Some(AheadMax(given)) => given,
            None => self.retain_hours.map(|_| AHEAD_MAX),
        }
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
