//! The requests between nodes, as paths and parameters.
//!
//! | path | parameters | response |
//! |---|---|---|
//! | `/partitions/rows` | `p=0,3` and those of `GET /flows` | [rows in frames](super::frames) of these partitions, for a response of `GET /flows` |
//! | `/partitions/hours` | `p=0,3` and those of `GET /hours` | JSON as of `GET /hours`, of these partitions; in a header, from which hour on rows of hours and of days can be queried |
//! | `/partitions/applied` | `upto=0:17,3:5` | 204 when the sums of these partitions include everything up to these offsets; 503 if that takes too long |

use crate::service::PEER_PATH_PREFIX;
use flow::query::text::BadQuery;
use flow::query::{HoursQuery, Query, text};
use flow::{HourRange, Offset, Partition};

const ROWS: &str = "rows";
const HOURS: &str = "hours";
const APPLIED: &str = "applied";

const PARTITIONS: &str = "p";
const UPTO: &str = "upto";

/// A request from another node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // there is one for each request
pub enum Request {
    Rows(Query),
    Hours(HoursQuery),
    Applied(Vec<(Partition, Offset)>),
}

impl Request {
    /// The target of a request for the rows that an answer to `query` needs.
    pub fn rows(partitions: &[Partition], query: &Query) -> String {
        let (partitions, query) = (list(partitions), text::write_flows(&for_peer(query)));
        format!("{PEER_PATH_PREFIX}{ROWS}?{PARTITIONS}={partitions}&{query}")
    }

    /// The target of a request for hours.
    pub fn hours(partitions: &[Partition], hours: HourRange) -> String {
        let target = format!(
            "{PEER_PATH_PREFIX}{HOURS}?{PARTITIONS}={}",
            list(partitions)
        );
        match text::write_hours(hours) {
            hours if hours.is_empty() => target,
            hours => format!("{target}&{hours}"),
        }
    }

    /// The target of a request to wait for offsets.
    pub fn applied(upto: &[(Partition, Offset)]) -> String {
        let pair = |(partition, offset): &(Partition, Offset)| format!("{partition}:{offset}");
        let pairs: Vec<_> = upto.iter().map(pair).collect();
        format!("{PEER_PATH_PREFIX}{APPLIED}?{UPTO}={}", pairs.join(","))
    }

    /// Reads a request; `None` if there is no such path.
    pub fn parse(path: &str, query: &str) -> Option<Result<Request, BadQuery>> {
        Some(match path.strip_prefix(PEER_PATH_PREFIX)? {
            ROWS => parse_rows(query),
            HOURS => parse_hours(query),
            APPLIED => parse_applied(query),
            _ => return None,
        })
    }
}

/// The query to send to a peer. Its response contains all rows that may be in the overall response, plus one, which
/// shows whether another page follows.
fn for_peer(query: &Query) -> Query {
    let mut part = query.clone();
    // The response then names the missing partitions.
    part.partial = true;
    part.other = false;
    // A group may have flows in several partitions; a row is in exactly one.
    let chooses = query.sort.is_none() || !query.is_grouped() && !query.other;
    part.limit = query.limit.filter(|_| chooses).map(|limit| limit + 1);
    if part.limit.is_none() {
        (part.sort, part.cursor) = (None, None);
    }
    part
}

fn list(partitions: &[Partition]) -> String {
    let numbers: Vec<_> = partitions.iter().map(Partition::to_string).collect();
    numbers.join(",")
}

fn parse_rows(query: &str) -> Result<Request, BadQuery> {
    let (partitions, rest) = split_partitions(query)?;
    Ok(Request::Rows(Query {
        partitions: Some(partitions),
        // One row more than clients may ask for: see `for_peer`.
        ..text::parse_flows_upto(&rest, text::LIMIT_MAX + 1)?
    }))
}

fn parse_hours(query: &str) -> Result<Request, BadQuery> {
    let (partitions, rest) = split_partitions(query)?;
    Ok(Request::Hours(HoursQuery {
        partitions: Some(partitions),
        // The response then names the missing partitions.
        partial: true,
        ..text::parse_hours(&rest)?
    }))
}

fn parse_applied(query: &str) -> Result<Request, BadQuery> {
    let mut upto = None;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if name != UPTO {
            let what = format!("{name:?} is not a parameter here; {UPTO} is");
            return Err(BadQuery(what));
        }
        text::set(&mut upto, UPTO, value)?;
    }
    let Some(upto) = upto else {
        return Err(BadQuery(format!(
            "{UPTO} is missing: partitions and offsets, as in {UPTO}=0:17,3:5"
        )));
    };
    let pair = |pair: &str| {
        let (partition, offset) = pair.split_once(':')?;
        Some((partition.parse().ok()?, offset.parse().ok()?))
    };
    let pairs = upto.split(',').map(|text| {
        let wrong = || BadQuery(format!("{UPTO} has {text:?}; it has to be as in 3:5"));
        pair(text).ok_or_else(wrong)
    });
    Ok(Request::Applied(pairs.collect::<Result<_, _>>()?))
}

/// The partitions that the request is about, and the other parameters.
fn split_partitions(query: &str) -> Result<(Vec<Partition>, String), BadQuery> {
    let (mut partitions, mut rest) = (None, form_urlencoded::Serializer::new(String::new()));
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            PARTITIONS => text::set(&mut partitions, &name, parse_list(&value)?)?,
            _ => drop(rest.append_pair(&name, &value)),
        }
    }
    let missing = || {
        let what = format!("{PARTITIONS} is missing: the partitions, as in {PARTITIONS}=0,3");
        BadQuery(what)
    };
    Ok((partitions.ok_or_else(missing)?, rest.finish()))
}

fn parse_list(text: &str) -> Result<Vec<Partition>, BadQuery> {
    let wrong = |number: &str| {
        BadQuery(format!(
            "{PARTITIONS} has {number:?}, which is no partition"
        ))
    };
    let partition = |number: &str| number.parse().map_err(|_| wrong(number));
    text.split(',').map(partition).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(target: &str) -> Result<Request, BadQuery> {
        let (path, query) = target.split_once('?').unwrap();
        Request::parse(path, query).unwrap()
    }

    #[test]
    fn requests_round_trip() {
        let partitions = [0_u32, 3].map(|number| Partition::try_from(number).unwrap());
        let offsets = [17_u64, 5].map(|number| Offset::try_from(number).unwrap());
        let query = "from=1&to=9&src_app=a%26b&sort=-bytes&limit=100000";
        let query = text::parse_flows(query).unwrap();
        let rows = Request::rows(&partitions, &query);
        let expected = Query {
            partitions: Some(partitions.to_vec()),
            limit: Some(100_001),
            partial: true,
            ..query
        };
        assert_eq!(parse(&rows), Ok(Request::Rows(expected)));
        for hours in [HourRange::ALL, (3..9).into()] {
            let expected = Request::Hours(HoursQuery {
                hours,
                step: 1,
                partitions: Some(partitions.to_vec()),
                partial: true,
            });
            assert_eq!(parse(&Request::hours(&partitions, hours)), Ok(expected));
        }
        let upto: Vec<_> = partitions.into_iter().zip(offsets).collect();
        assert_eq!(Request::applied(&upto), "/partitions/applied?upto=0:17,3:5");
        assert_eq!(parse(&Request::applied(&upto)), Ok(Request::Applied(upto)));
    }

    #[test]
    fn invalid_queries_of_peers_are_refused() {
        assert_eq!(Request::parse("/partitions/other", ""), None);
        for wrong in [
            "/partitions/rows?hour=1",
            "/partitions/rows?p=&hour=1",
            "/partitions/rows?p=-1&hour=1",
            "/partitions/rows?p=2147483648&hour=1",
            "/partitions/rows?p=1&p=2&hour=1",
            "/partitions/rows?p=1",
            "/partitions/hours?p=1,",
            "/partitions/applied?",
            "/partitions/applied?upto=1",
            "/partitions/applied?upto=1:",
            "/partitions/applied?upto=1:9223372036854775808",
            "/partitions/applied?upto=1:1&upto=2:2",
            "/partitions/applied?p=1",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
