//! Query parameters of `/flows` and `/partitions`: what is asked, as text.

use std::ops::Range;

use percent_encoding::percent_decode_str;
use warp::http::Method;

use super::error::Problem;
use crate::domain::{Field, Hour};
use crate::query::{Columns, HoursQuery, Query, Sort, SortBy};

/// Most rows of a page.
const LIMIT_MAX: usize = 100_000;
/// Most names that a question filters by, of each kind.
const NAMES_MAX: usize = 64;

/// The parameters of `GET /flows`, in the order of the documentation.
const PARAMETERS: [&str; 12] = [
    "hour", "from", "to", "src_app", "dest_app", "vpc_id", "search", "group_by", "sort", "limit",
    "cursor", "partial",
];

fn bad(what: impl Into<String>) -> Problem {
    Problem::BadQuery { what: what.into() }
}

/// The one parameter of `method` on `/flows`, `hour`.
pub(super) fn hour(query: &str, method: &Method) -> Result<Hour, Problem> {
    let mut hour = None;
    for (name, value) in parse(query)? {
        if name != "hour" {
            return Err(bad(format!(
                "{name:?} is not a parameter of {method} /flows; hour is"
            )));
        }
        once(&name, &hour)?;
        hour = Some(parse_hour(&name, &value)?);
    }
    hour.ok_or_else(|| bad("the parameter hour is missing, as in /flows?hour=1"))
}

/// The one parameter of `POST /flows`: whether the answer waits until the flows are visible.
pub(super) fn wait(query: &str) -> Result<bool, Problem> {
    let mut wait = None;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if name != "wait" {
            return Err(bad(format!(
                "{name:?} is not a parameter of POST /flows; wait is"
            )));
        }
        if value != "visible" {
            return Err(bad(format!("wait is {value:?}; it can be visible")));
        }
        set(&mut wait, &name, ())?;
    }
    Ok(wait.is_some())
}

/// Which hours `GET /hours?query` asks for.
pub(super) fn hours(query: &str) -> Result<HoursQuery, Problem> {
    let (mut from, mut to, mut partial) = (None, None, None);
    for (name, value) in parse(query)? {
        match &*name {
            "from" => set(&mut from, &name, parse_hour(&name, &value)?.get())?,
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

/// The hours from `from` up to but without `to`.
fn range(from: Option<u32>, to: Option<u32>) -> Result<Range<u32>, Problem> {
    let hours = from.unwrap_or(0)..to.unwrap_or(u32::MAX);
    if hours.is_empty() {
        return Err(bad(format!(
            "from is {} and to is {}; to is the hour behind the last one, so it has to be greater",
            hours.start, hours.end
        )));
    }
    Ok(hours)
}

fn flag(name: &str, value: &str) -> Result<bool, Problem> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(bad(format!("{name} is {value:?}; it can be true or false"))),
    }
}

/// What `GET /partitions/hours?query` asks for: that of another node, which says by `p` of which partitions.
/// What is missing of them is named.
pub(super) fn hours_of_a_node(query: &str) -> Result<HoursQuery, Problem> {
    let (of, rest) = of_a_node(query)?;
    Ok(HoursQuery {
        partitions: Some(of),
        partial: true,
        ..hours(&rest)?
    })
}

/// The one parameter of `GET /partitions/applied`, `upto`: partitions and offsets.
pub(super) fn offsets(query: &str) -> Result<Vec<(i32, u64)>, Problem> {
    let given = list(query, "upto")?;
    let [text] = &given[..] else {
        return Err(bad(
            "upto is missing: partitions and offsets, as in upto=0:17,3:5",
        ));
    };
    let pair = |pair: &str| match pair.split_once(':') {
        Some((partition, offset)) => Ok((
            integer("upto", partition, 0, i32::MAX)?,
            integer("upto", offset, 0, u64::MAX)?,
        )),
        None => Err(bad(format!("upto has {pair:?}; it has to be as in 3:5"))),
    };
    text.split(',').map(pair).collect()
}

/// The values of `name`, which alone may be given.
fn list(query: &str, name: &str) -> Result<Vec<String>, Problem> {
    let parameters = form_urlencoded::parse(query.as_bytes());
    let one = |(given, value): (std::borrow::Cow<'_, str>, std::borrow::Cow<'_, str>)| match given
        == name
    {
        true => Ok(value.into_owned()),
        false => Err(bad(format!("{given:?} is not a parameter here; {name} is"))),
    };
    parameters.map(one).collect()
}

fn integers(text: &str) -> Result<Vec<i32>, Problem> {
    let number = |number| integer("p", number, 0, i32::MAX);
    text.split(',').map(number).collect()
}

/// The question that `GET /partitions/rows?query` asks: that of another node, which says by `p` which
/// partitions.
pub(super) fn question_of_a_node(query: &str) -> Result<Query, Problem> {
    let (of, rest) = of_a_node(query)?;
    // Nodes ask for one row more.
    let mut asked = question_upto(&rest, LIMIT_MAX + 1)?;
    asked.partitions = Some(of);
    Ok(asked)
}

/// The partitions that `p` says, and the other parameters.
fn of_a_node(query: &str) -> Result<(Vec<i32>, String), Problem> {
    let (mut of, mut rest) = (None, form_urlencoded::Serializer::new(String::new()));
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "p" => set(&mut of, &name, integers(&value)?)?,
            _ => drop(rest.append_pair(&name, &value)),
        }
    }
    let of = of.ok_or_else(|| bad("p is missing: the partitions, as in p=0,3"))?;
    Ok((of, rest.finish()))
}

/// The question that `GET /flows?query` asks.
pub(super) fn question(query: &str) -> Result<Query, Problem> {
    question_upto(query, LIMIT_MAX)
}

fn question_upto(query: &str, limit_max: usize) -> Result<Query, Problem> {
    let (mut hour, mut from, mut to) = (None, None, None);
    let (mut group_by, mut limit, mut partial) = (None, None, None);
    let mut asked = Query::all_of(0..0);
    for (name, value) in parse(query)? {
        match &*name {
            "hour" => set(&mut hour, &name, parse_hour(&name, &value)?)?,
            "from" => set(&mut from, &name, parse_hour(&name, &value)?.get())?,
            // The hour behind the last one, which need not be an hour itself.
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
        (Some(hour), None, None) => hour.get()..hour.get() + 1,
        (Some(_), ..) => {
            return Err(bad(
                "hour is one hour, from and to are a range of them; give the one or the other",
            ));
        }
        (None, None, None) => {
            return Err(bad(
                "which hours is not said: give hour, as in /flows?hour=1, or from and to, \
                 the hour behind the last one",
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
                "there are {names} of {name}; {NAMES_MAX} are possible"
            )));
        }
        list.sort_unstable();
        list.dedup();
    }
    if asked.cursor.is_some() && limit.is_none() {
        return Err(bad(
            "cursor is for the next page of an answer with a limit; give the limit too",
        ));
    }
    asked.columns = group_by.unwrap_or(Columns::ALL);
    asked.limit = limit;
    asked.partial = partial.unwrap_or(false);
    Ok(asked)
}

/// `query` with `cursor` instead of the one that it has: the link to the next page.
pub(super) fn next_page(query: &str, cursor: &str) -> String {
    let mut next = form_urlencoded::Serializer::new(String::new());
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if name != "cursor" {
            next.append_pair(&name, &value);
        }
    }
    next.append_pair("cursor", cursor);
    format!("</flows?{}>; rel=\"next\"", next.finish())
}

/// Names and values. [`form_urlencoded`] alone would take anything for something.
fn parse(query: &str) -> Result<form_urlencoded::Parse<'_>, Problem> {
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

fn once<T>(name: &str, slot: &Option<T>) -> Result<(), Problem> {
    match slot {
        Some(_) => Err(bad(format!("the parameter {name} is given twice"))),
        None => Ok(()),
    }
}

fn set<T>(slot: &mut Option<T>, name: &str, value: T) -> Result<(), Problem> {
    once(name, slot)?;
    *slot = Some(value);
    Ok(())
}

fn parse_hour(name: &str, value: &str) -> Result<Hour, Problem> {
    let number = integer(name, value, 0, Hour::MAX)?;
    // It is in range.
    Hour::new(u64::from(number)).ok_or(Problem::Internal)
}

fn integer<T>(name: &str, value: &str, min: T, max: T) -> Result<T, Problem>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    // `parse` alone would take a plus sign.
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

fn columns(value: &str) -> Result<Columns, Problem> {
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
                     separated by commas, or nothing for the sums of everything"
                )));
            }
        };
    }
    Ok(columns)
}

fn sort(value: &str) -> Result<Sort, Problem> {
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
                "sort is {value:?}; it can be bytes_tx, bytes_rx or bytes, which is both together: \
                 the largest first, or with a - in front the smallest"
            )));
        }
    };
    Ok(Sort { by, ascending })
}

/// What has to hold of any query: a clear answer. For fuzzing.
#[cfg(fuzzing)]
pub fn check(query: &str) {
    if let Ok(asked) = question(query) {
        assert!(!asked.hours.is_empty());
        let next = next_page(query, "x");
        let next = next.trim_start_matches("</flows?");
        let next = &next[..next.len() - ">; rel=\"next\"".len()];
        let again = question(next);
        assert!(asked.limit.is_none() || again.is_ok_and(|q| q.hours == asked.hours));
    }
}
