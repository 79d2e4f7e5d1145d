//! Writes batches to Kafka, and waits until they are visible.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};

use super::NodeState;
use super::batcher::{Offsets, PendingBatch};
use super::kafka::KafkaError;
use super::message::PartitionBatch;
use crate::ingest::Permit;
use crate::service::{Committed, ServiceError};
use flow::{Batch, Offset, Partition};

/// Larger batches are split on a thread that may block.
const SPLIT_INLINE_BYTES_MAX: usize = 512 << 10;
/// Maximum wait for a batch to become visible.
const VISIBLE_TIME_MAX: Duration = Duration::from_secs(10);
/// Maximum wait of a peer for offsets.
const APPLIED_TIME_MAX: Duration = Duration::from_secs(5);
/// Interval between checks: another node may have taken over a partition meanwhile.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Writes batches to the journal.
#[derive(Debug)]
pub(super) struct KafkaWriter {
    pub(super) state: Arc<NodeState>,
    pub(super) batcher: mpsc::Sender<PendingBatch>,
}

impl KafkaWriter {
    /// See [`Service::commit`](crate::service::Service::commit).
    pub(super) async fn commit(
        &self,
        batch: Batch,
        permit: Permit,
        until_visible: bool,
    ) -> Result<Committed, ServiceError> {
        let flows = batch.flows() as u64;
        let metrics = self.state.store.metrics.ingest();
        let bytes = batch.bytes().len() as u64;
        let offsets = self.send(batch, permit).await?;
        metrics.batches.inc();
        metrics.flows.inc_by(flows);
        metrics.bytes.inc_by(bytes);
        if until_visible {
            self.await_visible(offsets).await?;
        }
        Ok(Committed {
            replayed: false,
            flows,
            too_old: 0,
        })
    }

    /// Resolves to true when the sums of these partitions include these offsets; to false if that takes too long, or
    /// immediately if one of them is not on this node.
    pub(super) async fn has_applied(&self, upto: Vec<(Partition, Offset)>) -> bool {
        let deadline = Instant::now() + APPLIED_TIME_MAX;
        loop {
            let mut applied = true;
            for (partition, offset) in &upto {
                if self.state.local.position(*partition).is_none() {
                    return false;
                }
                applied &= self.is_visible(*partition, *offset);
            }
            if applied || Instant::now() >= deadline {
                return applied;
            }
            self.pause().await;
        }
    }

    /// The batcher has ended, and nothing more can be written.
    pub(super) fn has_ended(&self) -> bool {
        self.batcher.is_closed()
    }

    /// Sends a batch. Returns when all in-sync replicas have it.
    async fn send(&self, batch: Batch, permit: Permit) -> Result<Offsets, ServiceError> {
        let keyed = batch.receipt().is_some();
        let partitions = self.state.partitions;
        let parts = if batch.bytes().len() <= SPLIT_INLINE_BYTES_MAX {
            PartitionBatch::split(&batch, partitions)
        } else {
            let split =
                tokio::task::spawn_blocking(move || PartitionBatch::split(&batch, partitions));
            split.await.map_err(|_| ServiceError::Closed)?
        };
        let (responder, response) = oneshot::channel();
        let pending = PendingBatch {
            parts,
            permit,
            responder,
        };
        let queued = self.batcher.send(pending).await;
        queued.map_err(|_| ServiceError::Closed)?;
        let sent = response.await.map_err(|_| ServiceError::Closed)?;
        sent.map_err(|error| outcome_unknown(&error, keyed))
    }

    /// Waits until the owners of these partitions have these offsets in their sums.
    async fn await_visible(&self, offsets: Offsets) -> Result<(), ServiceError> {
        let known = |(partition, offset): (_, Option<_>)| Some((partition, offset?));
        let offsets: Option<BTreeMap<_, _>> = offsets.into_iter().map(known).collect();
        let Some(mut offsets) = offsets else {
            return Err(ServiceError::NotVisible(
                "the batch is in Kafka, and will count; the broker did not report its offset, so it is not known \
                 when it will be visible"
                    .into(),
            ));
        };
        let deadline = Instant::now() + VISIBLE_TIME_MAX;
        loop {
            let mut remote: BTreeMap<String, Vec<(Partition, Offset)>> = BTreeMap::new();
            let state = &self.state;
            offsets.retain(|partition, offset| match state.owners.owner(*partition) {
                Some(owner) if owner.node != state.config.name => {
                    let upto = remote.entry(owner.url).or_default();
                    upto.push((*partition, *offset));
                    true
                }
                Some(_) => !self.is_visible(*partition, *offset),
                None => true,
            });
            // All peers in parallel, so that one that does not respond does not delay the others.
            let requests = remote.iter().map(async |(url, upto)| {
                let request = state.peers.await_applied(url, upto);
                let response = tokio::time::timeout_at(deadline.into(), request)
                    .await
                    .ok()?;
                let response =
                    response.inspect_err(|error| tracing::debug!(url, %error, "not visible yet"));
                response.ok().map(|()| upto)
            });
            for (partition, _) in join_all(requests).await.into_iter().flatten().flatten() {
                offsets.remove(partition);
            }
            if offsets.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(ServiceError::NotVisible(format!(
                    "the batch is in Kafka, and will count; it was not visible within {} s",
                    VISIBLE_TIME_MAX.as_secs()
                )));
            }
            self.pause().await;
        }
    }

    /// Whether responses of this node include the message at `offset`. A partition that another node may own by now
    /// does not count.
    fn is_visible(&self, partition: Partition, offset: Offset) -> bool {
        let state = &self.state;
        let progress = state.progress().remove(&partition).unwrap_or_default();
        let readable = state.local.readable(partition, &progress);
        readable.is_some_and(|readable| {
            let position = readable.store.position();
            position.is_ok_and(|position| position.includes(offset))
        })
    }

    /// Waits until a message is applied, [`CHECK_INTERVAL`] at most.
    async fn pause(&self) {
        let _either = tokio::time::timeout(CHECK_INTERVAL, self.state.applied.notified()).await;
    }
}

fn outcome_unknown(error: &KafkaError, keyed: bool) -> ServiceError {
    if !error.is_temporary() {
        tracing::error!(%error, "batch not written to Kafka");
    }
    ServiceError::OutcomeUnknown {
        why: match error.is_temporary() {
            true => "Kafka is not available".into(),
            false => "Kafka did not accept the batch; the service's log has the reason".into(),
        },
        keyed,
    }
}
