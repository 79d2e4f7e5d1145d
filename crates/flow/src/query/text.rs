//! Queries as text: the parameters of `GET /flows` and `GET /hours`, as written by clients and between nodes.

use std::fmt::Write as _;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::time::Time;
use super::{Columns, HoursQuery, Query, Sort, SortBy};
use crate::{Field, Hour, HourRange, NAME_BYTES_MAX};

/// Maximum number of rows of a page.
pub const LIMIT_MAX: usize = 100_000;
/// Maximum number of names per filter.
const NAMES_MAX: usize = 64;

/// The parameters of `GET /flows`, in the order of the documentation.
const PARAMETERS: [&str; 16] = [
    "hour", "from", "to", "src_app", "dest_app", "vpc_id", "peer", "search", "group_by", "step",
    "sort", "limit", "other", "compare", "cursor", "partial",
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
    let (mut from, mut to, mut step, mut partial) = (None, None, None, None);
    for (name, value) in parse(query)? {
        match &*name {
            "from" => set(&mut from, &name, parse_start(&name, &value)?)?,
            "to" => set(&mut to, &name, parse_end(&name, &value)?)?,
            "step" => set(&mut step, &name, integer(&name, &value, 1, Hour::MAX)?)?,
            "partial" => set(&mut partial, &name, flag(&name, &value)?)?,
            "" if value.is_empty() => {}
            _ => {
                return Err(bad(format!(
                    "{name:?} is not a parameter of GET /hours; those are from, to, step, partial"
                )));
            }
        }
    }
    Ok(HoursQuery {
        hours: range(from, to)?,
        step: step.unwrap_or(1),
        partitions: None,
        partial: partial.unwrap_or(false),
    })
}

/// Reads the hours of `DELETE /flows`: `hour`, or `from` and `to`.
pub fn parse_deletion(query: &str) -> Result<HourRange, BadQuery> {
    let (mut hour, mut from, mut to) = (None, None, None);
    for (name, value) in parse(query)? {
        match &*name {
            "hour" => set(&mut hour, &name, parse_hour(&name, &value)?)?,
            "from" => set(&mut from, &name, parse_hour(&name, &value)?)?,
            "to" => set(&mut to, &name, integer(&name, &value, 0, u32::MAX)?)?,
            _ => {
                return Err(bad(format!(
                    "{name:?} is not a parameter of DELETE /flows; those are hour, or from and to"
                )));
            }
        }
    }
    match (hour, from, to) {
        (Some(hour), None, None) => Ok(hour.into()),
        (None, Some(_), Some(_)) => range(from, to),
        (None, None, None) => Err(bad("the parameter hour is missing, as in /flows?hour=1")),
        _ => Err(bad(
            "hour deletes one hour; from and to (exclusive), given together, delete a range",
        )),
    }
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
    let (mut group_by, mut step, mut limit) = (None, None, None);
    let (mut other, mut compare, mut partial) = (None, None, None);
    let mut asked = Query::all_of(HourRange::ALL);
    for (name, value) in parse(query)? {
        match &*name {
            "hour" => set(&mut hour, &name, parse_start(&name, &value)?)?,
            "from" => set(&mut from, &name, parse_start(&name, &value)?)?,
            "to" => set(&mut to, &name, parse_end(&name, &value)?)?,
            "search" => set(&mut asked.filter.search, &name, value.into())?,
            "group_by" => set(&mut group_by, &name, columns(&value)?)?,
            "step" => set(&mut step, &name, integer(&name, &value, 1, Hour::MAX)?)?,
            "sort" => set(&mut asked.sort, &name, sort(&value)?)?,
            "limit" => set(&mut limit, &name, integer(&name, &value, 1, limit_max)?)?,
            "other" => set(&mut other, &name, flag(&name, &value)?)?,
            "compare" => set(&mut compare, &name, value.into_owned())?,
            "cursor" => set(&mut asked.cursor, &name, value.into())?,
            "partial" => set(&mut partial, &name, flag(&name, &value)?)?,
            _ if asked.filter.push(&name, value.into()) => {}
            _ => {
                return Err(bad(format!(
                    "{name:?} is not a parameter of GET /flows; those are {}; names can also be excluded, as in \
                     src_app!=NAME, or selected by their beginning, as in src_app^=PREFIX",
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
    for (name, filter) in asked.filter.names_mut() {
        for (_, list) in filter.lists_mut() {
            validate_names(name, list)?;
        }
    }
    if asked.cursor.is_some() && limit.is_none() {
        return Err(bad(
            "cursor continues a response that had a limit; give limit too",
        ));
    }
    asked.other = other.unwrap_or(false);
    if asked.other && (asked.sort.is_none() || limit.is_none() || asked.cursor.is_some()) {
        return Err(bad(
            "other=true adds up all rows that are not among the first: give sort and limit too, and no cursor",
        ));
    }
    asked.columns = group_by.unwrap_or(Columns::ALL);
    if step.is_some() && !(group_by.is_some() && asked.columns.has(Field::Hour)) {
        return Err(bad(
            "step adds up hours in steps of that many: give group_by with hour too, as in group_by=hour",
        ));
    }
    asked.step = step.unwrap_or(1);
    if let Some(value) = compare {
        if group_by.is_none() || asked.columns.has(Field::Hour) {
            return Err(bad(
                "compare adds up all hours of each period: give group_by without hour too, as in group_by=src_app",
            ));
        }
        if asked.other {
            return Err(bad("other cannot be combined with compare; leave one out"));
        }
        asked.compare = Some(compared(
            &value,
            asked.hours,
            to.is_some() || hour.is_some(),
        )?);
    } else if asked.sort.is_some_and(|sort| sort.by == SortBy::Change) {
        return Err(bad(
            "sort=change needs compare: previous, or the first hour of the span to compare with",
        ));
    }
    asked.limit = limit;
    asked.partial = partial.unwrap_or(false);
    Ok(asked)
}

/// The hours to compare `hours` with: as many, from the hour `value` on.
fn compared(value: &str, hours: HourRange, has_end: bool) -> Result<HourRange, BadQuery> {
    if !has_end {
        return Err(bad("compare needs the end of the hours: give to"));
    }
    let length = hours.len();
    let start = match value {
        "previous" => hours.start().checked_sub(length).ok_or_else(|| {
            bad(format!(
                "compare=previous: there are no {length} hours before hour {}",
                hours.start()
            ))
        })?,
        _ => integer("compare", value, 0, Hour::MAX)
            .map_err(|BadQuery(why)| bad(format!("{why}, or previous")))?,
    };
    let end = start
        .checked_add(length)
        .filter(|end| *end <= HourRange::ALL.end());
    let end = end.ok_or_else(|| {
        bad(format!(
            "compare: there are no {length} hours from hour {start} on"
        ))
    })?;
    Ok((start..end).into())
}

/// Sorts the values of a parameter.
fn validate_names(name: &str, list: &mut Vec<String>) -> Result<(), BadQuery> {
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
    Ok(())
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
    for (name, of_name) in filter.names() {
        for (operator, values) in of_name.lists() {
            let name = format!("{name}{operator}");
            values.iter().for_each(|value| add(&name, value));
        }
    }
    if let Some(search) = &filter.search {
        add("search", search);
    }
    let is_of_key = |field: &Field| query.columns.has(*field);
    let columns: Vec<_> = (Field::ALL.into_iter().filter(is_of_key).map(Field::name)).collect();
    add("group_by", &columns.join(","));
    if query.step > 1 {
        add("step", &query.step.to_string());
    }
    if let Some(sort) = query.sort {
        let by = match sort.by {
            SortBy::BytesTx => "bytes_tx",
            SortBy::BytesRx => "bytes_rx",
            SortBy::Bytes => "bytes",
            SortBy::Change => "change",
        };
        let sign = if sort.ascending { "-" } else { "" };
        add("sort", &format!("{sign}{by}"));
    }
    if let Some(limit) = query.limit {
        add("limit", &limit.to_string());
    }
    if query.other {
        add("other", "true");
    }
    if let Some(hours) = query.compare {
        add("compare", &hours.start().to_string());
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

/// A number, or the hour of a time.
fn parse_start(name: &str, value: &str) -> Result<Hour, BadQuery> {
    match Time::parse(value).and_then(|time| Hour::new(time.hour.into())) {
        Some(hour) => Ok(hour),
        None => parse_hour(name, value).map_err(or_a_time),
    }
}

/// A number, or the first hour that does not begin before a time. It is exclusive, so it need not be a valid hour.
fn parse_end(name: &str, value: &str) -> Result<u32, BadQuery> {
    match Time::parse(value) {
        Some(time) => Ok(time.hour + u32::from(time.is_within)),
        None => integer(name, value, 0, u32::MAX).map_err(or_a_time),
    }
}

fn or_a_time(BadQuery(why): BadQuery) -> BadQuery {
    bad(format!("{why}, or a time in UTC such as 2026-11-29T10:00Z"))
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
        "change" => SortBy::Change,
        _ => {
            return Err(bad(format!(
                "sort is {value:?}; it can be bytes_tx, bytes_rx, bytes (their sum) or, with compare, change, \
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
            "hour=0&sort=bytes&limit=9&other=true",
            "from=9&to=20&group_by=src_app&compare=3&sort=-change&limit=9",
            "from=0&group_by=vpc_id,hour&sort=bytes&limit=1&cursor=AbC-_&partial=true",
            "from=5&to=99&group_by=hour,src_app&step=24",
            "hour=1&src_app!=a&src_app^=we&dest_app!=&vpc_id^=v&peer=x&peer!=y%3D&peer^=z",
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
    fn filters_have_signs_and_words() {
        for name in ["src_app", "dest_app", "vpc_id", "peer"] {
            let signs = parse_flows(&format!("hour=1&{name}^=a&{name}^=b&{name}!=ab"));
            let words = parse_flows(&format!(
                "hour=1&{name}_prefix=a&{name}_prefix=b&{name}_not=ab"
            ));
            assert!(signs.is_ok());
            assert_eq!(signs, words);
        }
        for name in [
            "search_not",
            "hour_prefix",
            "src_app_",
            "src_app_nots",
            "_not",
        ] {
            let BadQuery(refusal) = parse_flows(&format!("hour=1&{name}=a")).unwrap_err();
            assert!(refusal.contains("is not a parameter"), "{refusal}");
        }
    }

    #[test]
    fn spans_are_compared_with_others_of_their_length() {
        let compared = |text: &str| {
            let query = parse_flows(&format!("group_by=src_app&{text}"));
            query
                .map(|query| query.compare.unwrap())
                .map_err(|BadQuery(why)| why)
        };
        assert_eq!(
            compared("from=10&to=20&compare=previous"),
            Ok((0..10).into())
        );
        assert_eq!(compared("from=10&to=20&compare=15"), Ok((15..25).into()));
        assert_eq!(compared("hour=10&compare=previous"), Ok((9..10).into()));
        for (text, why) in [
            (
                "from=10&to=21&compare=previous",
                "no 11 hours before hour 10",
            ),
            ("from=10&compare=previous", "give to"),
            (
                "from=10&to=20&compare=4294967290",
                "no 10 hours from hour 4294967290 on",
            ),
            ("from=10&to=20&compare=x", "or previous"),
        ] {
            let refusal = compared(text).unwrap_err();
            assert!(refusal.contains(why), "{refusal}");
        }
        for text in [
            "from=9&to=10&compare=previous",
            "from=9&to=10&compare=previous&group_by=hour",
            "from=9&to=10&group_by=src_app&sort=change",
            "from=9&to=10&group_by=src_app&compare=previous&sort=bytes&limit=1&other=true",
        ] {
            assert!(parse_flows(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_other_rows_need_first_ones() {
        for rest in ["limit=3", "sort=bytes", "sort=bytes&limit=3&cursor=x"] {
            let BadQuery(refusal) = parse_flows(&format!("hour=1&other=true&{rest}")).unwrap_err();
            assert!(refusal.contains("give sort and limit"), "{refusal}");
        }
        assert!(!parse_flows("hour=1&other=false").unwrap().other);
    }

    #[test]
    fn a_step_needs_groups_by_hour() {
        for text in ["hour=1&step=24", "from=1&group_by=src_app&step=24"] {
            let BadQuery(refusal) = parse_flows(text).unwrap_err();
            assert!(refusal.contains("group_by=hour"), "{refusal}");
        }
        assert!(parse_flows("from=1&group_by=hour&step=0").is_err());
        assert!(
            !parse_flows("from=1&group_by=hour,src_app,dest_app,vpc_id&step=1")
                .unwrap()
                .is_grouped()
        );
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
