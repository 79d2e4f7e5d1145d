//! Guesses the unit of a number that is not an hour since the epoch.

use std::time::{SystemTime, UNIX_EPOCH};

/// A unit that is often used for times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HourUnit {
    name: &'static str,
    per_hour: u128,
    /// Hours from the start of its era to the epoch.
    hours_before_epoch: u128,
}

const fn unit(name: &'static str, per_hour: u128, hours_before_epoch: u128) -> HourUnit {
    HourUnit {
        name,
        per_hour,
        hours_before_epoch,
    }
}

/// Only units whose numbers are larger than hours since the epoch: smaller ones (days, hours since 2000) are valid
/// hours, long ago.
const KNOWN: [HourUnit; 9] = [
    unit("hours times 24", 24, 0),
    unit("minutes", 60, 0),
    unit("seconds", 3_600, 0),
    unit("milliseconds", 3_600_000, 0),
    unit("microseconds", 3_600_000_000, 0),
    unit("nanoseconds", 3_600_000_000_000, 0),
    unit("seconds since 1900 (NTP)", 3_600, 613_608),
    unit("FILETIME of Windows", 36_000_000_000, 3_234_576),
    unit("ticks of .NET", 36_000_000_000, 17_259_888),
];

/// How far a time may be from the clock to be recognized: ten years before it, one year after it.
const HOURS_BEFORE: u128 = 10 * 366 * 24;
const HOURS_AFTER: u128 = 366 * 24;

/// 2000-01-01 00:00 UTC.
const HOUR_OF_2000: u128 = 262_968;

impl HourUnit {
    /// The clock's hour since the epoch.
    pub fn clock_hour() -> u32 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let hours = since.map_or(0, |time| time.as_secs() / 3_600);
        u32::try_from(hours).unwrap_or(u32::MAX)
    }

    /// A hint for the end of an error message: the unit that `value`, which was given as an hour, probably has if the
    /// clock is in hour `now`; empty if unknown.
    pub fn hint(value: u128, now: u32) -> String {
        if let Some(date) = Date::from_number(value) {
            return format!(
                "; it looks like {}, a date: give hours since the epoch, or 0 to 23",
                date.0
            );
        }
        let now = u128::from(now);
        // A clock that was never set does not help.
        let is_set = now >= HOUR_OF_2000;
        let near = now.saturating_sub(HOURS_BEFORE)..=now + HOURS_AFTER;
        let is_near = |hour| is_set && near.contains(&hour);
        let unit = KNOWN.into_iter().find(|unit| {
            let hours = (value / unit.per_hour).checked_sub(unit.hours_before_epoch);
            hours.is_some_and(is_near)
        });
        let Some(unit) = unit else {
            return String::new();
        };
        let (name, divisor) = (unit.name, unit.per_hour);
        let subtract = match unit.hours_before_epoch {
            0 => String::new(),
            hours => format!(" and subtract {hours}"),
        };
        format!("; it looks like {name}: divide by {divisor}{subtract}")
    }
}

/// The form of a date written as one number.
struct Date(&'static str);

impl Date {
    /// Recognizes dates of this century.
    fn from_number(value: u128) -> Option<Date> {
        let is_date = |day: u128| {
            let (month, day) = (day / 100 % 100, day % 100);
            (1..=12).contains(&month) && (1..=31).contains(&day)
        };
        match value {
            20_000_101..=20_991_231 if is_date(value) => Some(Date("YYYYMMDD")),
            2_000_010_100..=2_099_123_123 if is_date(value / 100) && value % 100 < 24 => {
                Some(Date("YYYYMMDDHH"))
            }
            200_001_010_000..=209_912_312_359
                if is_date(value / 10_000) && value / 100 % 100 < 24 && value % 100 < 60 =>
            {
                Some(Date("YYYYMMDDHHMM"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::*;

    #[test]
    fn units_are_recognised_by_size() {
        let now = 492_985; // 2026-03-29
        for (value, word) in [
            (492_985 * 24, "it looks like hours times 24: divide by 24"),
            ((492_985 - 80_000) * 24, "divide by 24"),
            (29_579_100, "it looks like minutes: divide by 60"),
            (1_774_746_000, "it looks like seconds: divide by 3600"),
            (1_774_746_000_123, "milliseconds: divide by 3600000"),
            (1_774_746_000_123_456, "microseconds: divide by 3600000000"),
            (
                1_774_746_000_123_456_789,
                "nanoseconds: divide by 3600000000000",
            ),
            (
                1_774_746_000 + 2_208_988_800,
                "seconds since 1900 (NTP): divide by 3600 and subtract 613608",
            ),
            (
                134_192_196_000_000_000,
                "FILETIME of Windows: divide by 36000000000 and subtract 3234576",
            ),
            (
                639_103_428_000_000_000,
                "ticks of .NET: divide by 36000000000 and subtract 17259888",
            ),
            (20_260_329, "YYYYMMDD, a date"),
            (2_026_032_901, "YYYYMMDDHH, a date"),
            (202_603_290_115, "YYYYMMDDHHMM, a date"),
        ] {
            let hint = HourUnit::hint(value, now);
            assert!(hint.contains(word), "{value}: {hint}");
        }
        for value in [
            0,
            23,
            492_985 / 24,
            493_100,
            1_000_000,
            4_294_967_294,
            u128::MAX,
        ] {
            assert_eq!(HourUnit::hint(value, now), "", "{value}");
        }
        // A machine without a clock.
        assert_eq!(HourUnit::hint(1_774_746_000, 0), "");
    }
}
