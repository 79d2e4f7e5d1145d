//! Clients of the other nodes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;

use super::frames::{FrameReader, MEDIA_TYPE};
use super::request::Request;
use crate::query::{Coverage, HourSource, Hours, QueryError, RowSource};
use agent::client::{Client, ClientError, Items, Server, read_first_token};
use flow::query::{HourRow, Query};
use flow::{Hour, Offset, Partition, Totals};

/// Longest wait for an answer that is not rows, and for each part of it.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// HTTP clients of the other nodes, by URL. They are kept with their connections; there are as many as nodes.
#[derive(Debug)]
pub struct PeerClients {
    /// How to reach a node, without URL and token.
    server: Server,
    token_file: Option<PathBuf>,
    clients: Mutex<Clients>,
}

#[derive(Debug)]
struct Clients {
    /// How to reach a node, without URL.
    server: Server,
    by_url: BTreeMap<String, Client>,
}

/// A peer's part of an answer.
#[derive(Debug)]
pub struct PeerRows {
    pub rows: Box<dyn RowSource>,
    pub coverage: Coverage,
}

/// A peer's part of the hours.
#[derive(Debug)]
pub struct PeerHours {
    pub hours: Box<dyn HourSource>,
    pub tag: Option<u64>,
    pub coverage: Coverage,
}

/// Hours as they arrive. The mutex is never locked: it makes a reader `Sync` that is not.
#[derive(Debug)]
struct HourReader(Mutex<Items<HourRow>>);

impl HourSource for HourReader {
    fn next(&mut self) -> Result<Option<(Hour, Totals)>, QueryError> {
        let items = self.0.get_mut();
        let failed = |error: ClientError| QueryError::Peer(error.to_string());
        let Some(row) = items.next().transpose().map_err(failed)? else {
            return Ok(None);
        };
        let totals = Totals {
            flows: row.flows,
            tx: row.bytes_tx,
            rx: row.bytes_rx,
        };
        let hour = Hour::new(row.hour);
        let hour =
            hour.ok_or_else(|| QueryError::Peer(format!("there is no hour {}", row.hour)))?;
        Ok(Some((hour, totals)))
    }
}

impl Clients {
    fn new(server: &Server, token_file: Option<&Path>) -> Result<Clients, ClientError> {
        let mut server = server.clone();
        server.token = token_file.map(read_first_token).transpose()?;
        // Reports files that cannot be used now, and not at the first question.
        Client::new(&server)?;
        Ok(Clients {
            server,
            by_url: BTreeMap::new(),
        })
    }
}

impl PeerClients {
    /// # Errors
    /// A file that cannot be read, or a URL that is none.
    pub fn new(server: Server, token_file: Option<PathBuf>) -> Result<PeerClients, ClientError> {
        let clients = Mutex::new(Clients::new(&server, token_file.as_deref())?);
        Ok(PeerClients {
            server,
            token_file,
            clients,
        })
    }

    /// Reads token and certificates again. After an error, those in use stay in use.
    pub fn reload(&self) -> Result<(), ClientError> {
        let clients = Clients::new(&self.server, self.token_file.as_deref())?;
        *self.clients.lock() = clients;
        Ok(())
    }

    fn client(&self, url: &str) -> Result<Client, ClientError> {
        let clients = &mut *self.clients.lock();
        if let Some(client) = clients.by_url.get(url) {
            return Ok(client.clone());
        }
        let client = Client::new(&Server {
            url: url.to_owned(),
            ..clients.server.clone()
        })?;
        clients.by_url.insert(url.to_owned(), client.clone());
        Ok(client)
    }

    /// Asks the node at `url` for its rows of `partitions`.
    pub fn rows(
        &self,
        url: &str,
        partitions: &[Partition],
        query: &Query,
        time_max: Duration,
    ) -> Result<PeerRows, ClientError> {
        let target = Request::rows(partitions, query);
        let response = (self.client(url)?).get_of_living(&target, MEDIA_TYPE, time_max)?;
        let header = |name| response.headers().get(name)?.to_str().ok();
        Ok(PeerRows {
            coverage: coverage(url, header)?,
            rows: Box::new(FrameReader::new(
                url.to_owned(),
                response.into_body().into_reader(),
            )),
        })
    }

    /// Asks the node at `url` for the ledger of `partitions`.
    pub fn hours(
        &self,
        url: &str,
        partitions: &[Partition],
        hours: &Range<u32>,
    ) -> Result<PeerHours, ClientError> {
        let target = Request::hours(partitions, hours);
        let client = self.client(url)?;
        let response = client.get_within(&target, "application/json", ANSWER_TIME_MAX)?;
        let header = |name| response.headers().get(name)?.to_str().ok();
        Ok(PeerHours {
            coverage: coverage(url, header)?,
            tag: header("etag").and_then(Hours::parse_etag),
            hours: Box::new(HourReader(Mutex::new(client.items(&target, response)))),
        })
    }

    /// Waits until the node's sums include everything up to these offsets.
    pub fn await_applied(
        &self,
        url: &str,
        upto: &[(Partition, Offset)],
    ) -> Result<(), ClientError> {
        let target = Request::applied(upto);
        let response = (self.client(url)?).get_within(&target, "*/*", ANSWER_TIME_MAX);
        response.map(drop)
    }
}

/// What a node's headers say about the partitions that it was asked for.
fn coverage<'a>(
    url: &str,
    header: impl Fn(&'static str) -> Option<&'a str>,
) -> Result<Coverage, ClientError> {
    let unusable = || ClientError::Refused {
        url: url.to_owned(),
        status: 200,
        why: "its answer names partitions that do not exist; it may run another version".into(),
    };
    Coverage::from_headers(header).ok_or_else(unusable)
}
