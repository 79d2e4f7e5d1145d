//! The other nodes, over HTTP.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Deserialize;

use crate::client::{Client, ClientError, Items, Server};
use crate::domain::{Field, Hour, Totals};
use crate::query::frames::Frames;
use crate::query::{Coverage, HourSource, HoursQuery, Query, QueryError, RowSource, SortBy};

/// Longest wait for a node that is asked for no rows.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const ROWS: &str = "application/octet-stream";

/// Clients of the other nodes.
#[derive(Debug)]
pub struct Nodes {
    /// How all are reached, but for the token.
    server: Server,
    token_file: Option<PathBuf>,
    clients: Mutex<Clients>,
}

/// Clients by where a node is. They are kept, with their connections; there are as many as nodes.
#[derive(Debug)]
struct Clients {
    server: Server,
    of: BTreeMap<String, Client>,
}

/// What a node has of an answer.
#[derive(Debug)]
pub struct Part {
    pub rows: Box<dyn RowSource>,
    pub coverage: Coverage,
}

/// What a node has of the hours.
#[derive(Debug)]
pub struct HoursPart {
    pub hours: Box<dyn HourSource>,
    pub tag: Option<u64>,
    pub coverage: Coverage,
}

/// Never locked: it makes a reader `Sync` that is not.
#[derive(Debug)]
struct HoursOf(Mutex<Items<HourOf>>);

impl HourSource for HoursOf {
    fn next(&mut self) -> Result<Option<(Hour, Totals)>, QueryError> {
        let items = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        let elsewhere = |error: ClientError| QueryError::Peer(error.to_string());
        let Some(of) = items.next().transpose().map_err(elsewhere)? else {
            return Ok(None);
        };
        let totals = Totals {
            flows: of.flows,
            tx: of.bytes_tx,
            rx: of.bytes_rx,
        };
        let hour = Hour::new(of.hour);
        let hour = hour.ok_or_else(|| QueryError::Peer(format!("there is no hour {}", of.hour)))?;
        Ok(Some((hour, totals)))
    }
}

/// The number in an entity tag of `/partitions/hours`.
fn tag(text: &str) -> Option<u64> {
    let hex = text.strip_prefix("W/\"")?.strip_suffix('"')?;
    u64::from_str_radix(hex, 16).ok()
}

/// An entry of `/hours`.
#[derive(Debug, Deserialize)]
struct HourOf {
    hour: u64,
    flows: u64,
    bytes_tx: u128,
    bytes_rx: u128,
}

impl Clients {
    fn new(server: &Server, token_file: Option<&Path>) -> Result<Clients, ClientError> {
        let mut server = server.clone();
        let tokens = token_file.map(tokens).transpose()?;
        server.token = tokens.and_then(|tokens| tokens.into_iter().next());
        // Only to see that it can be used.
        Client::new(&server)?;
        Ok(Clients {
            server,
            of: BTreeMap::new(),
        })
    }
}

/// Those in a file, of which the first is sent to the others.
///
/// # Errors
/// A file that cannot be read, or has none.
pub fn tokens(path: &Path) -> Result<Vec<String>, ClientError> {
    let unusable =
        |why: &dyn std::fmt::Display| ClientError::Options(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| unusable(&e))?;
    let lines = text.lines().map(str::trim);
    let tokens = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let tokens: Vec<_> = tokens.map(str::to_owned).collect();
    match tokens.is_empty() {
        true => Err(unusable(&"no token is in it; write one to a line")),
        false => Ok(tokens),
    }
}

impl Nodes {
    /// # Errors
    /// A file that cannot be read, or a URL that is none.
    pub fn new(server: Server, token_file: Option<PathBuf>) -> Result<Nodes, ClientError> {
        let clients = Mutex::new(Clients::new(&server, token_file.as_deref())?);
        Ok(Nodes {
            server,
            token_file,
            clients,
        })
    }

    /// Reads token and certificates again. After an error, those in use stay in use.
    pub fn reload(&self) -> Result<(), ClientError> {
        let fresh = Clients::new(&self.server, self.token_file.as_deref())?;
        *self.clients() = fresh;
        Ok(())
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self, url: &str) -> Result<Client, ClientError> {
        let clients = &mut *self.clients();
        if let Some(client) = clients.of.get(url) {
            return Ok(client.clone());
        }
        let client = Client::new(&Server {
            url: url.to_owned(),
            ..clients.server.clone()
        })?;
        clients.of.insert(url.to_owned(), client.clone());
        Ok(client)
    }

    /// Rows of `partitions`, which the node at `url` has.
    pub fn rows(
        &self,
        url: &str,
        partitions: &[i32],
        query: &Query,
        time_max: Duration,
    ) -> Result<Part, ClientError> {
        let path = format!("/partitions/rows?p={}&{}", list(partitions), text(query));
        let answer = self.client(url)?.get_of_living(&path, ROWS, time_max)?;
        let coverage = coverage(|name| answer.headers().get(name)?.to_str().ok());
        let reader = answer.into_body().into_reader();
        Ok(Part {
            rows: Box::new(Frames::new(url.to_owned(), reader)),
            coverage,
        })
    }

    /// The ledger of `partitions`, of these hours.
    pub fn hours(
        &self,
        url: &str,
        partitions: &[i32],
        hours: &Range<u32>,
    ) -> Result<HoursPart, ClientError> {
        let of = list(partitions);
        let path = match *hours == HoursQuery::ALL.hours {
            true => format!("/partitions/hours?p={of}"),
            false => format!(
                "/partitions/hours?p={of}&from={}&to={}",
                hours.start, hours.end
            ),
        };
        let client = self.client(url)?;
        let answer = client.get_within(&path, "application/json", ANSWER_MAX)?;
        let header = |name| answer.headers().get(name)?.to_str().ok();
        Ok(HoursPart {
            coverage: coverage(header),
            tag: header("etag").and_then(tag),
            hours: Box::new(HoursOf(Mutex::new(client.items(&path, answer)))),
        })
    }

    /// Waits until the node's sums have everything up to these offsets.
    pub fn await_applied(&self, url: &str, upto: &[(i32, u64)]) -> Result<(), ClientError> {
        let pairs = upto
            .iter()
            .map(|(partition, offset)| format!("{partition}:{offset}"));
        let pairs = pairs.collect::<Vec<_>>().join(",");
        let path = format!("/partitions/applied?upto={pairs}");
        let answer = self.client(url)?.get_within(&path, "*/*", ANSWER_MAX);
        answer.map(drop)
    }
}

/// What a node says, in headers, of the partitions that it was asked for.
fn coverage<'a>(header: impl Fn(&'static str) -> Option<&'a str>) -> Coverage {
    let numbers = |name| header(name).unwrap_or_default().split(',');
    let lag = numbers("flowtally-lag").filter_map(|pair| {
        let (partition, lag) = pair.split_once('=')?;
        Some((partition.parse().ok()?, lag.parse().ok()?))
    });
    let missing = numbers("flowtally-missing").filter_map(|number| number.parse().ok());
    Coverage {
        missing: missing.collect(),
        lag: lag.collect(),
    }
}

fn list(partitions: &[i32]) -> String {
    let numbers: Vec<_> = partitions.iter().map(i32::to_string).collect();
    numbers.join(",")
}

/// What means something else in a query; the rest stays, so that a question is no longer between nodes than it was.
const ESCAPED: &AsciiSet = &(CONTROLS.add(b'"').add(b'#').add(b'%').add(b'&'))
    .add(b'+')
    .add(b'<')
    .add(b'>')
    .add(b'`');

/// `query` as `/partitions/rows` takes it.
fn text(query: &Query) -> String {
    let mut text = String::new();
    let mut add = |name: &str, value: &str| {
        let value = utf8_percent_encode(value, ESCAPED).to_string();
        let _always = write!(text, "{name}={}&", value.replace(' ', "+"));
    };
    add("from", &query.hours.start.to_string());
    add("to", &query.hours.end.to_string());
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
