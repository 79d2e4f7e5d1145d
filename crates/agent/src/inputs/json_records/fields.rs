//! Values of fields in JSON.

use std::net::IpAddr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::Value;

/// Where a record has a value: the names of the objects around it, and its own.
pub(super) type Path<'a> = &'a [&'a str];

/// The value at `path`; `None` if it is missing or null.
pub(super) fn get<'a>(record: &'a Value, path: Path) -> Option<&'a Value> {
    let value = path.iter().try_fold(record, |value, name| value.get(name));
    value.filter(|value| !value.is_null())
}

pub(super) fn text<'a>(record: &'a Value, path: Path) -> Option<&'a str> {
    get(record, path)?.as_str().filter(|text| !text.is_empty())
}

/// A number, which may be a string.
pub(super) fn number(record: &Value, path: Path) -> Result<u64, String> {
    let value = get(record, path).ok_or_else(|| missing(path))?;
    let number = match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number.ok_or_else(|| {
        format!(
            "{}: {value} is not a number from 0 to 2^64-1",
            path.join(".")
        )
    })
}

pub(super) fn address(record: &Value, path: Path) -> Result<IpAddr, String> {
    let value = get(record, path).ok_or_else(|| missing(path))?;
    let address = value.as_str().and_then(|text| text.parse().ok());
    address.ok_or_else(|| format!("{}: {value} is not an address", path.join(".")))
}

/// A time in seconds since 1970: a number, or text as in RFC 3339 or ClickHouse, which has UTC.
pub(super) fn seconds(record: &Value, path: Path) -> Result<u64, String> {
    let value = get(record, path).ok_or_else(|| missing(path))?;
    let of_text = |text: &str| {
        let time = text.parse::<Timestamp>().ok().or_else(|| {
            let civil: DateTime = text.parse().ok()?;
            TimeZone::UTC.to_timestamp(civil).ok()
        })?;
        u64::try_from(time.as_second()).ok()
    };
    let seconds = match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok().or_else(|| of_text(text)),
        _ => None,
    };
    seconds.ok_or_else(|| format!("{}: {value} is not a time", path.join(".")))
}

fn missing(path: Path) -> String {
    format!("{}: missing", path.join("."))
}
