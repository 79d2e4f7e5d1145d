//! Parsers for sizes, durations, hours and addresses on the command line. A plain number keeps its original
//! unit.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use clap::builder::TypedValueParser;
use flow::NAME_BYTES_MAX;
use ipnet::IpNet;
use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{Span, SpanRelativeTo, Timestamp};

const MIB: f64 = (1 << 20) as f64;
const SECONDS_PER_HOUR: u64 = 3600;
const SECONDS_PER_DAY: u64 = 24 * SECONDS_PER_HOUR;
/// An hour in 1981. Smaller numbers are not hours since the epoch; the web page uses the same limit.
const SINCE_EPOCH_MIN: u64 = 100_000;

/// A size in MiB, or with a unit: `512`, `512M`, `1.5GiB`, `2GB`. Fractions of a MiB are rounded down.
pub fn mib(range: RangeInclusive<u32>) -> impl TypedValueParser<Value = u32> {
    move |text: &str| -> Result<u32, String> {
        let mib = size_mib(text).ok_or("it must be MiB, or a size such as 512M, 1GiB or 2GB")?;
        match range.contains(&mib) {
            true => Ok(mib),
            false => Err(format!(
                "it must be {} to {} MiB",
                range.start(),
                range.end()
            )),
        }
    }
}

fn size_mib(text: &str) -> Option<u32> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let bytes = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "m" | "mi" | "mib" => MIB,
        "b" => 1.0,
        "k" | "ki" | "kib" => 1024.0,
        "g" | "gi" | "gib" => MIB * 1024.0,
        "t" | "ti" | "tib" => MIB * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        _ => return None,
    };
    // A plain number must be an integer.
    if unit.is_empty() {
        return number.parse().ok();
    }
    let mib = (number.parse::<f64>().ok()? * bytes / MIB).floor();
    (mib <= f64::from(u32::MAX)).then_some(mib as u32)
}

/// A name of an application or VPC, as the service takes it.
pub fn name(text: &str) -> Result<String, String> {
    match text.len() <= NAME_BYTES_MAX {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "it has {} bytes; the limit is {NAME_BYTES_MAX}",
            text.len()
        )),
    }
}

/// An address, or a range of addresses: `10.0.0.7`, `10.0.0.0/24`.
pub fn address_range(text: &str) -> Result<IpNet, String> {
    let range = text.parse::<IpNet>().ok();
    let range = range.or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    range.ok_or_else(|| "it must be an address, or a range such as 10.0.0.0/24".into())
}

/// A duration in seconds, or with units: `10`, `10s`, `1h30m`, `30d`.
pub fn seconds(range: RangeInclusive<u64>) -> impl TypedValueParser<Value = Duration> {
    move |text: &str| -> Result<Duration, String> {
        whole(text, 1, "seconds", range.clone()).map(Duration::from_secs)
    }
}

/// A number of days, or a duration: `90`, `90d`.
pub fn days(range: RangeInclusive<u64>) -> impl TypedValueParser<Value = Duration> {
    move |text: &str| -> Result<Duration, String> {
        let days = whole(text, SECONDS_PER_DAY, "days", range.clone())?;
        Ok(Duration::from_secs(days * SECONDS_PER_DAY))
    }
}

/// A number of hours, or a duration: `720`, `720h`, `30d`.
pub fn hours(range: RangeInclusive<u32>) -> impl TypedValueParser<Value = u32> {
    let range = u64::from(*range.start())..=u64::from(*range.end());
    move |text: &str| -> Result<u32, String> {
        let hours = whole(text, SECONDS_PER_HOUR, "hours", range.clone())?;
        u32::try_from(hours).map_err(|e| e.to_string())
    }
}

/// A whole number of `unit`, each `unit_seconds` long, or a duration.
pub fn whole(
    text: &str,
    unit_seconds: u64,
    unit: &str,
    range: RangeInclusive<u64>,
) -> Result<u64, String> {
    let number = match text.trim().parse::<u64>() {
        Ok(number) => number,
        Err(_) => {
            let duration = duration(text).ok_or_else(|| {
                format!("it must be {unit}, or a duration such as 10s, 5m, 12h or 30d")
            })?;
            let seconds = duration.as_secs();
            if duration.subsec_nanos() > 0 || !seconds.is_multiple_of(unit_seconds) {
                return Err(format!("it must be whole {unit}"));
            }
            seconds / unit_seconds
        }
    };
    match range.contains(&number) {
        true => Ok(number),
        false => Err(format!(
            "it must be {} to {} {unit}",
            range.start(),
            range.end()
        )),
    }
}

fn duration(text: &str) -> Option<Duration> {
    let span: Span = text.trim().parse().ok()?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    duration.try_into().ok()
}

/// An hour: its number, or a UTC time if hours are counted since the epoch, as in `2026-11-29` (its first
/// hour) or `2026-11-29T10`.
pub fn hour(text: &str) -> Result<u32, String> {
    if let Ok(hour) = text.trim().parse() {
        return Ok(hour);
    }
    let wrong =
        || "it must be a number, or a time in UTC such as 2026-11-29 or 2026-11-29T10".to_owned();
    let at = timestamp(text.trim()).ok_or_else(wrong)?.as_second();
    let at = u64::try_from(at).map_err(|_| wrong())?;
    match at.is_multiple_of(SECONDS_PER_HOUR) {
        true => u32::try_from(at / SECONDS_PER_HOUR).map_err(|_| wrong()),
        false => Err("it must be the start of an hour in UTC".into()),
    }
}

/// An hour, or a time within or between hours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HourBound {
    /// The hour that contains the time.
    first: u32,
    /// Whether the time is after the start of that hour.
    is_within: bool,
}

impl HourBound {
    /// The hour that contains it.
    pub fn first(self) -> u32 {
        self.first
    }

    /// The first hour that begins at it or later: the end of a range that ends there.
    pub fn end(self) -> u32 {
        self.first.saturating_add(self.is_within.into())
    }
}

/// An hour's number; or, if hours are counted since the epoch, a UTC time as [`hour`] has, `now`, `today`, `yesterday`,
/// `yesterday 10:00`, or a duration before now, as in `3h`, `-7d` or `3h ago`.
pub fn hour_bound(text: &str) -> Result<HourBound, String> {
    hour_bound_at(text, Timestamp::now())
}

fn hour_bound_at(text: &str, now: Timestamp) -> Result<HourBound, String> {
    let text = text.trim();
    if let Ok(first) = text.parse() {
        return Ok(HourBound {
            first,
            is_within: false,
        });
    }
    let wrong = || {
        "it must be a number, or, if hours are since the epoch, a time in UTC such as 2026-11-29, 2026-11-29T10, now, \
         'yesterday 10:00', or 3h ago"
            .to_owned()
    };
    let at = relative(text, now)
        .or_else(|| timestamp(text))
        .ok_or_else(wrong)?;
    let seconds = u64::try_from(at.as_second()).map_err(|_| wrong())?;
    Ok(HourBound {
        first: u32::try_from(seconds / SECONDS_PER_HOUR).map_err(|_| wrong())?,
        is_within: !seconds.is_multiple_of(SECONDS_PER_HOUR) || at.subsec_nanosecond() > 0,
    })
}

/// A time that depends on the current one.
fn relative(text: &str, now: Timestamp) -> Option<Timestamp> {
    if text == "now" {
        return Some(now);
    }
    let (day, time) = text.split_once(' ').unwrap_or((text, ""));
    let midnight = TimeZone::UTC.to_datetime(now).start_of_day();
    let midnight = match day {
        "today" => Some(midnight),
        "yesterday" => midnight.yesterday().ok(),
        _ => None,
    };
    let Some(midnight) = midnight else {
        let ago = text.strip_suffix("ago").or(text.strip_prefix('-'));
        let ago = duration(ago.unwrap_or(text))?;
        return now.checked_sub(ago).ok();
    };
    let time: Time = match time.trim() {
        "" => Time::midnight(),
        hour if hour.len() <= 2 => Time::new(hour.parse().ok()?, 0, 0, 0).ok()?,
        time => time.parse().ok()?,
    };
    TimeZone::UTC
        .to_timestamp(midnight.date().to_datetime(time))
        .ok()
}

fn timestamp(text: &str) -> Option<Timestamp> {
    // With an offset or Z; otherwise UTC.
    let given = text.parse::<Timestamp>().ok();
    given.or_else(|| {
        let civil: DateTime = text.parse().ok()?;
        TimeZone::UTC.to_timestamp(civil).ok()
    })
}

/// `hour`, followed by its UTC start time if the number is in the range of hours since the epoch.
pub fn hour_name(hour: u64) -> String {
    match hour_start(hour) {
        Some(start) => format!("{hour} = {start} UTC"),
        None => hour.to_string(),
    }
}

/// The UTC time at which `hour` starts, as in `2026-11-29 10:00`; `None` if the number is not in the range of hours since
/// the epoch.
pub fn hour_start(hour: u64) -> Option<String> {
    if hour < SINCE_EPOCH_MIN {
        return None;
    }
    let seconds = i64::try_from(hour.checked_mul(SECONDS_PER_HOUR)?).ok()?;
    let civil = TimeZone::UTC.to_datetime(Timestamp::from_second(seconds).ok()?);
    Some(format!("{} {:02}:00", civil.date(), civil.hour()))
}

/// The UTC date of an hour, as in `2026-11-30`; `None` if the number is not in the range of hours since the epoch.
pub fn utc_date(hour: u32) -> Option<String> {
    let at = Timestamp::from_second(i64::from(hour) * SECONDS_PER_HOUR as i64).ok()?;
    let is_since_epoch = u64::from(hour) >= SINCE_EPOCH_MIN;
    is_since_epoch.then(|| TimeZone::UTC.to_datetime(at).date().to_string())
}

/// A listen address: `127.0.0.1:8080`, or `:8080` for all addresses of the machine.
pub fn listen(text: &str) -> Result<String, String> {
    let example = "as in 127.0.0.1:8080, or :8080 for all addresses of this machine";
    if text.contains("://") {
        return Err(format!("it must be an address and a port, {example}"));
    }
    let is_number = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    match text.rsplit_once(':') {
        Some((_, port)) if is_number(port) => match port.parse::<u16>() {
            Ok(_) => Ok(text.to_owned()),
            Err(_) => Err(format!("ports end at 65535, {example}")),
        },
        None if text.parse::<u16>().is_ok() => Err(format!("the address is missing, {example}")),
        _ => Err(format!("the port is missing, {example}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("512", Some(512)),
            ("512M", Some(512)),
            ("512m", Some(512)),
            ("512MiB", Some(512)),
            ("512 MiB", Some(512)),
            ("1G", Some(1024)),
            ("1GiB", Some(1024)),
            ("1.5g", Some(1536)),
            ("2TiB", Some(2 << 20)),
            ("2048K", Some(2)),
            ("1500MB", Some(1430)),
            ("2GB", Some(1907)),
            ("10b", Some(0)),
            ("1.5", None),
            ("", None),
            ("M", None),
            ("-1", None),
            ("1..5G", None),
            ("5X", None),
            ("5 apples", None),
            ("99999999999", None),
            ("9999999999T", None),
        ] {
            assert_eq!(size_mib(text), expected, "{text}");
        }
    }

    #[test]
    fn durations() {
        let of = |text| whole(text, 1, "seconds", 0..=86_400 * 365).ok();
        for (text, expected) in [
            ("10", Some(10)),
            ("10s", Some(10)),
            ("10 s", Some(10)),
            ("10sec", Some(10)),
            ("5m", Some(300)),
            ("5min", Some(300)),
            ("1h30m", Some(5400)),
            ("1.5h", Some(5400)),
            ("30d", Some(30 * 86_400)),
            ("2w", Some(14 * 86_400)),
            ("0", Some(0)),
            ("500ms", None),
            ("-5s", None),
            ("5s ago", None),
            ("1mo", None),
            ("400d", None),
            ("ten", None),
            ("", None),
        ] {
            assert_eq!(of(text), expected, "{text}");
        }
        let hours = |text| whole(text, SECONDS_PER_HOUR, "hours", 1..=u64::from(u32::MAX)).ok();
        for (text, expected) in [
            ("720", Some(720)),
            ("30d", Some(720)),
            ("2h", Some(2)),
            ("90m", None),
            ("0", None),
        ] {
            assert_eq!(hours(text), expected, "{text}");
        }
    }

    #[test]
    fn times() {
        for (text, expected) in [
            ("0", Some(0)),
            ("492985", Some(492_985)),
            ("4294967295", Some(u32::MAX)),
            ("1970-01-01", Some(0)),
            ("2026-11-29", Some(498_864)),
            ("2026-11-29T10", Some(498_874)),
            ("2026-11-29 10:00", Some(498_874)),
            ("2026-11-29T10:00:00Z", Some(498_874)),
            ("2026-11-29T10:00+02:00", Some(498_872)),
            ("2026-11-29T10:30", None),
            ("2026-11-29T10:00+05:30", None),
            ("1969-12-31", None),
            ("2026-13-01", None),
            ("4294967296", None),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(hour(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn times_that_depend_on_the_current_one() {
        // 498,879 is 2026-11-29 15:00.
        let now: Timestamp = "2026-11-29T15:20:00Z".parse().unwrap();
        for (text, expected) in [
            ("7", Some((7, 7))),
            ("now", Some((498_879, 498_880))),
            ("today", Some((498_864, 498_864))),
            ("yesterday", Some((498_840, 498_840))),
            ("yesterday 10:00", Some((498_850, 498_850))),
            ("yesterday 10", Some((498_850, 498_850))),
            ("today 9:30", None),
            ("today 09:30", Some((498_873, 498_874))),
            ("today 25", None),
            ("-3h", Some((498_876, 498_877))),
            ("3h ago", Some((498_876, 498_877))),
            ("1d", Some((498_855, 498_856))),
            ("2026-11-29T10", Some((498_874, 498_874))),
            ("2026-11-29T10:30", Some((498_874, 498_875))),
            ("2026-11-29", Some((498_864, 498_864))),
            ("tomorrow", None),
            ("", None),
            ("-1", None),
            ("99999999999h", None),
        ] {
            let bound = hour_bound_at(text, now).map(|at| (at.first(), at.end()));
            assert_eq!(bound.ok(), expected, "{text}");
        }
    }

    #[test]
    fn names_of_hours() {
        assert_eq!(hour_name(23), "23");
        assert_eq!(hour_name(498_879), "498879 = 2026-11-29 15:00 UTC");
        assert_eq!(hour_name(u64::MAX), u64::MAX.to_string());
    }

    #[test]
    fn addresses() {
        for text in ["127.0.0.1:8080", ":8080", "[::1]:0", "localhost:80"] {
            assert_eq!(listen(text).as_deref(), Ok(text));
        }
        for (text, word) in [
            ("8080", "address is missing"),
            ("localhost", "port is missing"),
            ("127.0.0.1:", "port is missing"),
            ("127.0.0.1:+80", "port is missing"),
            ("127.0.0.1:99999", "ports end at 65535"),
            ("http://127.0.0.1:8080", "address and a port"),
        ] {
            assert!(listen(text).unwrap_err().contains(word), "{text}");
        }
    }
}
