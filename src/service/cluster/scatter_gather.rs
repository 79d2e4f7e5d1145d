//! Scatter-gather: sends a query to the local stores and to the peers that own the other partitions, and collects their
//! rows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::NodeState;
use super::local_partitions::ReadablePartition;
use super::peer::PeerError;
use crate::query::{Coverage, Hours, QueryError, QuerySources};
use flow::Partition;
use flow::query::{HoursQuery, Query};

/// Scatters queries to the owners of all partitions, and gathers their rows.
#[derive(Debug)]
pub(super) struct ScatterGather(pub(super) Arc<NodeState>);

/// The locations of a query's partitions.
#[derive(Default)]
struct Placement {
    local: Vec<(Partition, ReadablePartition)>,
    /// By the URL of their owner.
    remote: BTreeMap<String, Vec<Partition>>,
    missing: Vec<Partition>,
}

impl Placement {
    /// The coverage of a response from local partitions and these peers.
    fn coverage(&mut self, of_peers: Vec<Coverage>, partial: bool) -> Result<Coverage, QueryError> {
        let local = self.local.iter();
        let mut coverage = Coverage {
            missing: std::mem::take(&mut self.missing),
            lag: local
                .map(|(partition, readable)| (*partition, readable.lag))
                .collect(),
        };
        for of_peer in of_peers {
            coverage.missing.extend(of_peer.missing);
            coverage.lag.extend(of_peer.lag);
        }
        coverage.missing.sort_unstable();
        coverage.lag.sort_unstable();
        match coverage.missing.is_empty() || partial {
            true => Ok(coverage),
            false => Err(QueryError::Missing(coverage.missing)),
        }
    }
}

impl ScatterGather {
    /// Locates the partitions of a query: all, or only the given ones, which have to be on this node.
    fn locate(&self, only: Option<&[Partition]>) -> Placement {
        let state = &self.0;
        let progress = state.progress();
        let wanted = only.map_or_else(|| state.partitions.partitions().collect(), <[_]>::to_vec);
        let mut placement = Placement::default();
        for partition in wanted {
            let readable = progress.get(&partition);
            let readable = readable.and_then(|p| state.local.readable(partition, p));
            if let Some(readable) = readable {
                placement.local.push((partition, readable));
                continue;
            }
            let owner = state.owners.owner(partition).filter(|_| only.is_none());
            match owner.filter(|owner| owner.node != state.config.name) {
                Some(owner) => placement
                    .remote
                    .entry(owner.url)
                    .or_default()
                    .push(partition),
                None => placement.missing.push(partition),
            }
        }
        placement
    }

    /// Sends requests to all peers in parallel, and waits for their responses to begin. `send` gets a peer's URL and
    /// its partitions. The partitions of a peer that does not respond become missing.
    fn ask_peers<T>(
        &self,
        placement: &mut Placement,
        cancel: &CancellationToken,
        ask: impl AsyncFn(&str, &[Partition]) -> Result<T, PeerError>,
    ) -> Result<Vec<T>, QueryError> {
        let remote = std::mem::take(&mut placement.remote);
        let responses = remote.iter().map(|(url, partitions)| ask(url, partitions));
        let responses = cancel.run_until_cancelled(join_all(responses));
        let responses = self.0.runtime.block_on(responses);
        let mut received = Vec::new();
        for (response, (url, partitions)) in responses
            .ok_or(QueryError::Cancelled)?
            .into_iter()
            .zip(&remote)
        {
            match response {
                Ok(response) => received.push(response),
                Err(error @ PeerError::Unavailable { .. }) => {
                    tracing::debug!(url, ?partitions, %error, "no response from a peer");
                    placement.missing.extend(partitions);
                }
                Err(error @ PeerError::Failed { .. }) => {
                    return Err(QueryError::Peer(error.to_string()));
                }
                Err(PeerError::TooCoarse(what)) => return Err(QueryError::TooCoarse(what)),
            }
        }
        Ok(received)
    }

    /// The sources of the rows that answer `query`. Peers get `time_max` for each chunk of their response.
    ///
    /// # Errors
    /// [`QueryError::Missing`], unless the query is partial.
    pub(super) fn rows(
        &self,
        query: &Query,
        time_max: Duration,
        cancel: &CancellationToken,
    ) -> Result<QuerySources, QueryError> {
        let mut placement = self.locate(query.partitions.as_deref());
        if !query.partial && !placement.missing.is_empty() {
            return Err(QueryError::Missing(placement.missing));
        }
        let peers = &self.0.peers;
        let responses = self.ask_peers(&mut placement, cancel, async |url, partitions| {
            let cancel = cancel.clone();
            peers.rows(url, partitions, query, time_max, cancel).await
        })?;
        let (mut sources, mut of_peers) = (QuerySources::default(), Vec::new());
        for response in responses {
            of_peers.push(response.coverage);
            sources.remote.push(response.rows);
        }
        sources.coverage = placement.coverage(of_peers, query.partial)?;
        for (_, readable) in placement.local {
            sources.stores.push(readable.store);
            sources.revocations.push(readable.revocation);
        }
        Ok(sources)
    }

    /// Adds the sources of the hours that answer `query` to `hours`.
    ///
    /// # Errors
    /// [`QueryError::Missing`], unless the query is partial.
    pub(super) fn hours(
        &self,
        query: &HoursQuery,
        hours: &mut Hours,
        cancel: &CancellationToken,
    ) -> Result<(), QueryError> {
        let mut placement = self.locate(query.partitions.as_deref());
        if !query.partial && !placement.missing.is_empty() {
            return Err(QueryError::Missing(placement.missing));
        }
        let peers = &self.0.peers;
        let responses = self.ask_peers(&mut placement, cancel, async |url, partitions| {
            peers
                .hours(url, partitions, query.hours, cancel.clone())
                .await
        })?;
        let mut of_peers = Vec::new();
        for response in responses {
            hours.add(response.hours, response.tag);
            of_peers.push(response.coverage);
        }
        hours.coverage = placement.coverage(of_peers, query.partial)?;
        for (_, readable) in placement.local {
            hours.add_store(&readable.store, query.hours)?;
            hours.revocations.push(readable.revocation);
        }
        Ok(())
    }
}
