//! Queries as text: the parameters of `GET /flows` and `GET /hours`, as written by clients and between nodes.

use std::fmt::Write as _;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::{Columns, HoursQuery, Query, Sort, SortBy};
use crate::{Field, Hour, HourRange, NAME_BYTES_MAX};

/// Maximum number of rows of a page.
pub const LIMIT_MAX: usize = 100_000;
/// Maximum number of names per filter.
const NAMES_MAX: usize = 64;

/// The parameters of `GET /flows`, in the order of the documentation.
const PARAMETERS: [&str; 12] = [
    "hour", "from", "to", "src_app", "dest_app", "vpc_id", "search", "group_by", "sort", "limit",
    "cursor", "partial",
];

/// Invalid parameters; the text has the error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadQuery(pub String);

fn bad(what: impl Into<String>) -> BadQuery {
    BadQuery(what.into())
}

/// Reads the parameters of `GET /hours`.
pub fn parse_hours(query: &str) -> Result<HoursQuery, BadQuery> {
    let (mut from, mut to, mut partial) = (None, None, None);
    for (name, value) in parse(query)? {
        match &*name {
            "from" => set(&mut from, &name, parse_hour(&name, &value)?)?,
            "to" => set(&mut to, &name, integer(&name, &value, 0, u32::MAX)?)?,
            "partial" => set(&mut partial, &name, flag(&name, &value)?)?,
            "" if value.is_empty() => {}
            _ => {
                return Err(bad(format!(
                    "{name:?} is not a parameter of GET /hours; those are from, to, partial"
                )));
            }
        }
    }
    Ok(HoursQuery {
        hours: range(from, to)?,
        partitions: None,
        partial: partial.unwrap_or(false),
    })
}

/// The hours from `from` to `to` (exclusive).
fn range(from: Option<Hour>, to: Option<u32>) -> Result<HourRange, BadQuery> {
    let from = from.unwrap_or(Hour::FIRST);
    let hours = HourRange::from(from.get()..to.unwrap_or(HourRange::ALL.end()));
    if hours.is_empty() {
        return Err(bad(format!(
            "from is {} and to is {}; to is exclusive, so it has to be greater",
            hours.start(),
            hours.end()
        )));
    }
    Ok(hours)
}

fn flag(name: &str, value: &str) -> Result<bool, BadQuery> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(bad(format!("{name} is {value:?}; it can be true or false"))),
    }
}

/// Reads the parameters of `GET /flows`.
pub fn parse_flows(query: &str) -> Result<Query, BadQuery> {
    parse_flows_upto(query, LIMIT_MAX)
}

/// Reads the parameters of `GET /flows`, of which `limit` can be up to `limit_max`.
pub fn parse_flows_upto(query: &str, limit_max: usize) -> Result<Query, BadQuery> {
    let (mut hour, mut from, mut to) = (None, None, None);
    let (mut group_by, mut limit, mut partial) = (None, None, None);
    let mut asked = Query::all_of(HourRange::ALL);
    for (name, value) in parse(query)? {
        match &*name {
            "hour" => set(&mut hour, &name, parse_hour(&name, &value)?)?,
            "from" => set(&mut from, &name, parse_hour(&name, &value)?)?,
            // The end is exclusive, so it need not be a valid hour.
            "to" => set(&mut to, &name, integer(&name, &value, 0, u32::MAX)?)?,
            "src_app" => asked.filter.src_apps.push(value.into()),
            "dest_app" => asked.filter.dest_apps.push(value.into()),
            "vpc_id" => asked.filter.vpc_ids.push(value.into()),
            "search" => set(&mut asked.filter.search, &name, value.into())?,
            "group_by" => set(&mut group_by, &name, columns(&value)?)?,
            "sort" => set(&mut asked.sort, &name, sort(&value)?)?,
            "limit" => set(&mut limit, &name, integer(&name, &value, 1, limit_max)?)?,
            "cursor" => set(&mut asked.cursor, &name, value.into())?,
            "partial" => set(&mut partial, &name, flag(&name, &value)?)?,
            _ => {
                return Err(bad(format!(
                    "{name:?} is not a parameter of GET /flows; those are {}",
                    PARAMETERS.join(", ")
                )));
            }
        }
    }
    asked.hours = match (hour, from, to) {
        (Some(hour), None, None) => hour.into(),
        (Some(_), ..) => {
            return Err(bad(
                "hour selects one hour, from and to select a range; give one or the other",
            ));
        }
        (None, None, None) => {
            return Err(bad(
                "no hours are selected: give hour, as in /flows?hour=1, or from and to \
                 (exclusive)",
            ));
        }
        (None, from, to) => range(from, to)?,
    };
    let filter = &mut asked.filter;
    for (name, list) in [
        ("src_app", &mut filter.src_apps),
        ("dest_app", &mut filter.dest_apps),
        ("vpc_id", &mut filter.vpc_ids),
    ] {
        if list.len() > NAMES_MAX {
            let names = list.len();
            return Err(bad(format!(
                "there are {names} values of {name}; at most {NAMES_MAX} are allowed"
            )));
        }
        if let Some(long) = list.iter().find(|value| value.len() > NAME_BYTES_MAX) {
            let bytes = long.len();
            return Err(bad(format!(
                "a {name} has {bytes} bytes; names of flows have at most {NAME_BYTES_MAX}"
            )));
        }
        list.sort_unstable();
        list.dedup();
    }
    if asked.cursor.is_some() && limit.is_none() {
        return Err(bad(
            "cursor continues a response that had a limit; give limit too",
        ));
    }
    asked.columns = group_by.unwrap_or(Columns::ALL);
    asked.limit = limit;
    asked.partial = partial.unwrap_or(false);
    Ok(asked)
}

/// Characters with a meaning in a query string. All others are kept, so that a query between nodes is no longer than
/// the client's.
const ESCAPED: &AsciiSet = &(CONTROLS.add(b'"').add(b'#').add(b'%').add(b'&'))
    .add(b'+')
    .add(b'<')
    .add(b'>')
    .add(b'`');

/// Writes `query` as parameters that [`parse_flows`] reads.
pub fn write_flows(query: &Query) -> String {
    let mut text = String::new();
    let mut add = |name: &str, value: &str| {
        let value = utf8_percent_encode(value, ESCAPED).to_string();
        let _infallible = write!(text, "{name}={}&", value.replace(' ', "+"));
    };
    add("from", &query.hours.start().to_string());
    add("to", &query.hours.end().to_string());
    let filter = &query.filter;
    for (name, values) in [
        ("src_app", &filter.src_apps),
        ("dest_app", &filter.dest_apps),
        ("vpc_id", &filter.vpc_ids),
    ] {
        for value in values {
            add(name, value);
        }
    }
    if let Some(search) = &filter.search {
        add("search", search);
    }
    let is_of_key = |field: &Field| query.columns.has(*field);
    let columns: Vec<_> = (Field::ALL.into_iter().filter(is_of_key).map(Field::name)).collect();
    add("group_by", &columns.join(","));
    if let Some(sort) = query.sort {
        let by = match sort.by {
            SortBy::BytesTx => "bytes_tx",
            SortBy::BytesRx => "bytes_rx",
            SortBy::Bytes => "bytes",
        };
        let sign = if sort.ascending { "-" } else { "" };
        add("sort", &format!("{sign}{by}"));
    }
    if let Some(limit) = query.limit {
        add("limit", &limit.to_string());
    }
    if let Some(cursor) = &query.cursor {
        add("cursor", cursor);
    }
    add("partial", &query.partial.to_string());
    text.pop();
    text
}

/// Writes the hours of `query` as parameters that [`parse_hours`] reads; nothing for all hours.
pub fn write_hours(hours: HourRange) -> String {
    match hours == HourRange::ALL {
        true => String::new(),
        false => format!("from={}&to={}", hours.start(), hours.end()),
    }
}

/// Splits a query string into names and values. [`form_urlencoded`] would also accept invalid escapes.
pub fn parse(query: &str) -> Result<form_urlencoded::Parse<'_>, BadQuery> {
    for pair in query.split('&') {
        let hex = |digits: &[u8]| digits.len() == 2 && digits.iter().all(u8::is_ascii_hexdigit);
        let mut escapes = pair.split('%').skip(1);
        let whole = escapes.all(|rest| hex(&rest.as_bytes()[..rest.len().min(2)]));
        if !whole || percent_decode_str(pair).decode_utf8().is_err() {
            return Err(bad(format!("{pair:?} is not UTF-8 in percent-encoding")));
        }
    }
    Ok(form_urlencoded::parse(query.as_bytes()))
}

/// Refuses a repeated parameter.
pub fn once<T>(name: &str, slot: &Option<T>) -> Result<(), BadQuery> {
    match slot {
        Some(_) => Err(bad(format!("the parameter {name} is given twice"))),
        None => Ok(()),
    }
}

pub fn set<T>(slot: &mut Option<T>, name: &str, value: T) -> Result<(), BadQuery> {
    once(name, slot)?;
    *slot = Some(value);
    Ok(())
}

pub fn parse_hour(name: &str, value: &str) -> Result<Hour, BadQuery> {
    let number = integer(name, value, 0, Hour::MAX)?;
    Hour::new(u64::from(number)).ok_or_else(|| bad(format!("there is no hour {number}")))
}

pub fn integer<T>(name: &str, value: &str, min: T, max: T) -> Result<T, BadQuery>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    // `parse` would also accept a plus sign.
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    let number = value.parse().ok().filter(|_| digits);
    number
        .filter(|n| (&min..=&max).contains(&n))
        .ok_or_else(|| {
            bad(format!(
                "{name} is {value:?}; it has to be an integer from {min} to {max}"
            ))
        })
}

fn columns(value: &str) -> Result<Columns, BadQuery> {
    let mut columns = Columns::NONE;
    for name in value.split(',').filter(|_| !value.is_empty()) {
        let with = |field| columns.with(field);
        let more = Field::from_name(name.as_bytes());
        columns = match more.map(with) {
            Some(Some(more)) => more,
            Some(None) if more.is_some_and(|field| columns.has(field)) => {
                return Err(bad(format!("group_by has {name:?} twice")));
            }
            _ => {
                return Err(bad(format!(
                    "group_by has {name:?}; it is a list of src_app, dest_app, vpc_id and hour, \
                     separated by commas, or empty for the sums of everything"
                )));
            }
        };
    }
    Ok(columns)
}

fn sort(value: &str) -> Result<Sort, BadQuery> {
    let (by, ascending) = match value.strip_prefix('-') {
        Some(by) => (by, true),
        None => (value, false),
    };
    let by = match by {
        "bytes_tx" => SortBy::BytesTx,
        "bytes_rx" => SortBy::BytesRx,
        "bytes" => SortBy::Bytes,
        _ => {
            return Err(bad(format!(
                "sort is {value:?}; it can be bytes_tx, bytes_rx or bytes (their sum), \
                 largest first, or smallest first with a leading -"
            )));
        }
    };
    Ok(Sort { by, ascending })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_round_trip() {
        for text in [
            "hour=7",
            "from=1&to=9&src_app=a%26b&src_app=c+d&dest_app=%C3%89%22&vpc_id=&search=%25+x",
            "hour=0&group_by=&sort=-bytes_rx&limit=100000",
            "from=0&group_by=vpc_id,hour&sort=bytes&limit=1&cursor=AbC-_&partial=true",
        ] {
            let query = parse_flows(text).unwrap();
            assert_eq!(parse_flows(&write_flows(&query)), Ok(query), "{text}");
        }
        for text in ["", "from=3", "to=9", "from=3&to=9"] {
            let hours = parse_hours(text).unwrap().hours;
            assert_eq!(parse_hours(&write_hours(hours)).unwrap().hours, hours);
        }
    }

    #[test]
    fn names_longer_than_any_flows_are_refused() {
        for name in ["src_app", "dest_app", "vpc_id"] {
            let query = |bytes| format!("hour=1&{name}=a&{name}={}", "a".repeat(bytes));
            assert!(parse_flows(&query(1024)).is_ok());
            let BadQuery(refusal) = parse_flows(&query(1025)).unwrap_err();
            assert_eq!(
                refusal,
                format!("a {name} has 1025 bytes; names of flows have at most 1024")
            );
        }
    }
}
