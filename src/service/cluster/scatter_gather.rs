//! Questions: to the stores that are here, and to the nodes that have the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::local_partitions::Answering;
use crate::client::ClientError;
use crate::query::{Coverage, Hours, HoursQuery, Parts, Query, QueryError};

/// All partitions, wherever they are.
#[derive(Debug)]
pub(super) struct All(pub(super) Arc<Shared>);

/// Where partitions are.
#[derive(Default)]
struct Places {
    here: Vec<(i32, Answering)>,
    /// By the URL of their node.
    elsewhere: BTreeMap<String, Vec<i32>>,
    missing: Vec<i32>,
}

impl Places {
    /// Together with what other nodes have answered with.
    fn coverage(
        &mut self,
        elsewhere: Vec<Coverage>,
        partial: bool,
    ) -> Result<Coverage, QueryError> {
        let mut all = Coverage {
            missing: std::mem::take(&mut self.missing),
            lag: self.here.iter().map(|(of, a)| (*of, a.lag)).collect(),
        };
        for part in elsewhere {
            all.missing.extend(part.missing);
            all.lag.extend(part.lag);
        }
        all.missing.sort_unstable();
        all.lag.sort_unstable();
        match all.missing.is_empty() || partial {
            true => Ok(all),
            false => Err(QueryError::Missing(all.missing)),
        }
    }
}

/// Who does not answer now may do so shortly; anything else is an error of ours.
const UNAVAILABLE: u16 = 503;

impl All {
    /// Where `of` are, which have to be here; or where all are.
    fn places(&self, of: Option<&[i32]>) -> Places {
        let shared = &self.0;
        let progress = shared.progress();
        let wanted: Vec<i32> = of.map_or_else(|| shared.all().collect(), <[i32]>::to_vec);
        let mut places = Places::default();
        for partition in wanted {
            let answering = progress.get(&partition);
            let answering = answering.and_then(|p| shared.here.answering(partition, p));
            if let Some(answering) = answering {
                places.here.push((partition, answering));
                continue;
            }
            let owner = shared.owners.owner(partition).filter(|_| of.is_none());
            match owner.filter(|owner| owner.node != shared.node.name) {
                Some(owner) => places
                    .elsewhere
                    .entry(owner.url)
                    .or_default()
                    .push(partition),
                None => places.missing.push(partition),
            }
        }
        places
    }

    /// Asks all nodes at once: `ask` is given where one is, and its partitions. Of who does not answer, the
    /// partitions are missing.
    fn ask_nodes<T: Send>(
        places: &mut Places,
        ask: impl Fn(&str, &[i32]) -> Result<T, ClientError> + Sync,
    ) -> Result<Vec<T>, QueryError> {
        let elsewhere = std::mem::take(&mut places.elsewhere);
        let answers: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = elsewhere
                .iter()
                .map(|(url, partitions)| scope.spawn(|| ask(url, partitions)))
                .collect();
            threads.into_iter().map(|thread| thread.join()).collect()
        });
        let mut parts = Vec::new();
        for (answer, (url, partitions)) in answers.into_iter().zip(elsewhere) {
            match answer {
                Ok(Ok(part)) => parts.push(part),
                Ok(Err(
                    error @ (ClientError::Unreachable { .. }
                    | ClientError::Refused {
                        status: UNAVAILABLE,
                        ..
                    }),
                )) => {
                    tracing::debug!(url, ?partitions, %error, "a node does not answer");
                    places.missing.extend(partitions);
                }
                Ok(Err(error)) => return Err(QueryError::Peer(error.to_string())),
                Err(_panicked) => {
                    return Err(QueryError::Peer(format!("{url} could not be asked")));
                }
            }
        }
        Ok(parts)
    }
}

impl All {
    /// The parts that answer `query`: of all partitions, or of those that it names, which have to be on this node.
    /// Other nodes are sent [`Query::of_a_part`], and get `time_max` between two parts of their answer.
    ///
    /// # Errors
    /// [`QueryError::Missing`], unless the query is for what there is.
    pub(super) fn open(&self, query: &Query, time_max: Duration) -> Result<Parts, QueryError> {
        let mut places = self.places(query.partitions.as_deref());
        if !query.partial && !places.missing.is_empty() {
            return Err(QueryError::Missing(places.missing));
        }
        let of_a_part = query.of_a_part();
        let parts = Self::ask_nodes(&mut places, |url, partitions| {
            self.0.nodes.rows(url, partitions, &of_a_part, time_max)
        })?;
        let (mut opened, mut elsewhere) = (Parts::default(), Vec::new());
        for part in parts {
            elsewhere.push(part.coverage);
            opened.remote.push(part.rows);
        }
        opened.coverage = places.coverage(elsewhere, query.partial)?;
        for (_, answering) in places.here {
            opened.stores.push(answering.store);
            opened.revocations.push(answering.leaves);
        }
        Ok(opened)
    }

    /// Adds the parts that answer `query` to `hours`.
    ///
    /// # Errors
    /// [`QueryError::Missing`], unless the query is for what there is.
    pub(super) fn hours(&self, query: &HoursQuery, hours: &mut Hours) -> Result<(), QueryError> {
        let mut places = self.places(query.partitions.as_deref());
        if !query.partial && !places.missing.is_empty() {
            return Err(QueryError::Missing(places.missing));
        }
        let parts = Self::ask_nodes(&mut places, |url, partitions| {
            self.0.nodes.hours(url, partitions, &query.hours)
        })?;
        let mut elsewhere = Vec::new();
        for part in parts {
            hours.add(part.hours, part.tag);
            elsewhere.push(part.coverage);
        }
        hours.coverage = places.coverage(elsewhere, query.partial)?;
        for (_, answering) in places.here {
            hours.add_store(&answering.store, query.hours.clone())?;
            hours.revocations.push(answering.leaves);
        }
        Ok(())
    }
}
