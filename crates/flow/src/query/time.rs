//! Times in queries, for clients that have no hours since the epoch.

/// A time in UTC, as an hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Time {
    /// The hour that it is in, since the epoch.
    pub(super) hour: u32,
    /// Whether it is later than the beginning of that hour.
    pub(super) is_within: bool,
}

impl Time {
    /// Reads a date of the years 1970 to 9999, with or without a time of day: `2026-11-29`, `2026-11-29T10`,
    /// `2026-11-29T10:30`, `2026-11-29T10:30:00.250Z`. It is UTC, also without the `Z`.
    pub(super) fn parse(text: &str) -> Option<Time> {
        let (date, time) = match text.split_once('T') {
            Some((date, time)) => (date, time.strip_suffix('Z').unwrap_or(time)),
            None => (text, "00"),
        };
        let mut parts = date.splitn(3, '-');
        let year = number(parts.next()?, 4)?;
        let month = number(parts.next()?, 2)?;
        let day = number(parts.next()?, 2)?;
        let mut parts = time.splitn(3, ':');
        let hour = number(parts.next()?, 2)?;
        let minute = number(parts.next().unwrap_or("00"), 2)?;
        let seconds = parts.next().unwrap_or("00");
        let (second, fraction) = seconds.split_once('.').unwrap_or((seconds, "0"));
        let (second, fraction) = (number(second, 2)?, fraction.as_bytes());
        let is_valid = year >= 1970
            && (1..=12).contains(&month)
            && (1..=days_of_month(year, month)).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60
            && !fraction.is_empty()
            && fraction.iter().all(u8::is_ascii_digit);
        is_valid.then(|| Time {
            hour: 24 * days_since_epoch(year, month, day) + hour,
            is_within: minute > 0 || second > 0 || fraction.iter().any(|digit| *digit != b'0'),
        })
    }
}

/// A number of exactly so many digits.
fn number(text: &str, digits: usize) -> Option<u32> {
    let is_number = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok())?
}

fn days_of_month(year: u32, month: u32) -> u32 {
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a later date.
fn days_since_epoch(year: u32, month: u32, day: u32) -> u32 {
    // Days from 0000-03-01 to 1970-01-01.
    const EPOCH: u32 = 719_468;
    // In years that begin in March, the leap day is the last one.
    let (year, month) = match month {
        ..=2 => (year - 1, month + 9),
        _ => (year, month - 3),
    };
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    365 * year + year / 4 - year / 100 + year / 400 + day_of_year - EPOCH
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::text::{BadQuery, parse_deletion, parse_flows, parse_hours};

    #[test]
    fn times_are_hours_since_the_epoch() {
        for (text, hour, is_within) in [
            ("1970-01-01", 0, false),
            ("1970-01-01T23:59:59.999Z", 23, true),
            ("2000-02-29T00:00", 264_384, false),
            ("2000-03-01", 264_408, false),
            ("2026-11-29T00:00:00.000Z", 498_864, false),
            ("2026-11-29T10", 498_874, false),
            ("2026-11-29T10:00:00.001Z", 498_874, true),
            ("2026-11-29T10:00:01", 498_874, true),
            ("2026-11-29T10:30", 498_874, true),
            ("9999-12-31T23Z", 70_389_527, false),
        ] {
            assert_eq!(Time::parse(text), Some(Time { hour, is_within }), "{text}");
        }
    }

    #[test]
    fn other_texts_are_no_times() {
        for text in [
            "",
            "2026",
            "2026-11",
            "1969-12-31",
            "2026-13-01",
            "2026-00-01",
            "2026-11-31",
            "2026-02-29",
            "2100-02-29",
            "2026-11-0",
            "2026-1-29",
            "+026-11-29",
            "2026-11-29 10:00",
            "2026-11-29T",
            "2026-11-29T24:00",
            "2026-11-29T10:60",
            "2026-11-29T10:00:60",
            "2026-11-29T10:00:00.Z",
            "2026-11-29T10:00:00.5x",
            "2026-11-29T10:00:00+01:00",
            "2026-11-29T10:00:00:00",
            "2026-11-29Z",
            "２０26-11-29",
        ] {
            assert_eq!(Time::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_range_of_times_has_all_their_hours() {
        let hours = |text: &str| parse_flows(text).map(|query| query.hours);
        for (text, range) in [
            (
                "from=2026-11-29T10:59:59.9Z&to=2026-11-29T12:00:00.000Z",
                498_874..498_876,
            ),
            (
                "from=2026-11-29&to=2026-11-29T00:00:00.001Z",
                498_864..498_865,
            ),
            ("from=498864&to=2026-11-30", 498_864..498_888),
            ("hour=2026-11-29T10:30", 498_874..498_875),
        ] {
            assert_eq!(hours(text), Ok(range.into()), "{text}");
        }
        let of_ledger = parse_hours("from=2026-11-29&to=2026-11-29T01:30").unwrap();
        assert_eq!(of_ledger.hours, (498_864..498_866).into());
        for text in [
            "from=2026-11-31",
            "to=yesterday",
            "hour=2026-11-29T10:00:00%2B01:00",
        ] {
            let BadQuery(refusal) = hours(text).unwrap_err();
            assert!(
                refusal.ends_with("or a time in UTC such as 2026-11-29T10:00Z"),
                "{refusal}"
            );
        }
        assert!(parse_deletion("hour=2026-11-29").is_err());
    }
}
