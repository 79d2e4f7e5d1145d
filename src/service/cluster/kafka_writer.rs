//! Batches on their way into Kafka.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::Shared;
use super::batcher::Waiting;
use super::message::{Offsets, Piece};
use crate::ingest::Permit;
use crate::service::cluster::kafka::KafkaError;
use crate::service::{Committed, ServiceError};
use crate::store::Batch;

/// Larger batches are split on a thread where that may take its time.
const SPLIT_INLINE_BYTES_MAX: usize = 512 << 10;
/// A batch has to be visible by then.
const VISIBLE_TIME_MAX: Duration = Duration::from_secs(10);
/// A node that asks whether something is visible gets its answer by then.
const APPLIED_TIME_MAX: Duration = Duration::from_secs(5);
/// Between two looks: a node may have taken a partition over meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The way into the journal.
#[derive(Debug)]
pub(super) struct Inlet {
    pub(super) shared: Arc<Shared>,
    pub(super) gather: mpsc::Sender<Waiting>,
}

impl Inlet {
    /// See [`Service::commit`](crate::service::Service::commit).
    pub(super) async fn commit(
        &self,
        batch: Batch,
        permit: Permit,
        until_visible: bool,
    ) -> Result<Committed, ServiceError> {
        let flows = batch.flows() as u64;
        let metrics = &self.shared.store.metrics;
        let bytes = batch.bytes().len() as u64;
        let offsets = self.send(batch, permit).await?;
        metrics.ingest().batches.inc();
        metrics.ingest().flows.inc_by(flows);
        metrics.ingest().bytes.inc_by(bytes);
        if until_visible && !self.await_visible(offsets).await {
            return Err(ServiceError::NotVisible(format!(
                "the batch is in Kafka, and will count; it was not visible within {} s",
                VISIBLE_TIME_MAX.as_secs()
            )));
        }
        Ok(Committed {
            replayed: false,
            flows,
            expired: 0,
        })
    }

    /// False at once if a partition is not here, since another node has it now.
    pub(super) async fn has_applied(&self, upto: Vec<(i32, u64)>) -> bool {
        let deadline = Instant::now() + APPLIED_TIME_MAX;
        loop {
            let mut applied = true;
            for (partition, offset) in &upto {
                if self.shared.here.position(*partition).is_none() {
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

    /// The task that writes has ended, and nothing more can be written.
    pub(super) fn has_ended(&self) -> bool {
        self.gather.is_closed()
    }

    /// Sends a batch; returns the last offset in each partition when all in-sync replicas have it.
    async fn send(&self, batch: Batch, permit: Permit) -> Result<Offsets, ServiceError> {
        let keyed = batch.receipt().is_some();
        let partitions = self.shared.partitions;
        let pieces = if batch.bytes().len() <= SPLIT_INLINE_BYTES_MAX {
            Piece::of(&batch, partitions)
        } else {
            let split = tokio::task::spawn_blocking(move || Piece::of(&batch, partitions));
            split.await.map_err(|_| ServiceError::Closed)?
        };
        let pieces = pieces.map_err(|error| ServiceError::Store(Arc::new(error)))?;
        let (done, sent) = oneshot::channel();
        let waiting = Waiting {
            pieces,
            permit,
            done,
        };
        let gathered = self.gather.send(waiting).await;
        gathered.map_err(|_| ServiceError::Closed)?;
        let sent = sent.await.map_err(|_| ServiceError::Closed)?;
        sent.map_err(|error| unsure(&error, keyed))
    }

    /// Waits until the owners of all these partitions have these offsets in their sums.
    async fn await_visible(&self, mut offsets: Offsets) -> bool {
        let deadline = Instant::now() + VISIBLE_TIME_MAX;
        loop {
            let mut elsewhere: BTreeMap<String, Vec<(i32, u64)>> = BTreeMap::new();
            let shared = &self.shared;
            offsets.retain(|partition, offset| match shared.owners.owner(*partition) {
                Some(owner) if owner.node != shared.node.name => {
                    elsewhere
                        .entry(owner.url)
                        .or_default()
                        .push((*partition, *offset));
                    true
                }
                Some(_) => !self.is_visible(*partition, *offset),
                None => true,
            });
            // All at once: one that stands still keeps none of the others waiting.
            let asking: Vec<_> = (elsewhere.into_iter())
                .map(|(url, upto)| {
                    let (shared, asked) = (self.shared.clone(), upto.clone());
                    let asked = tokio::task::spawn_blocking(move || {
                        let answer = shared.nodes.await_applied(&url, &asked);
                        answer.inspect_err(|error| tracing::debug!(url, %error, "not visible yet"))
                    });
                    (asked, upto)
                })
                .collect();
            for (asked, upto) in asking {
                if let Ok(Ok(Ok(()))) = tokio::time::timeout_at(deadline.into(), asked).await {
                    for (partition, _) in upto {
                        offsets.remove(&partition);
                    }
                }
            }
            if offsets.is_empty() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            self.pause().await;
        }
    }

    /// Whether answers of this node have it: sums of a partition that may be another node's by now do not count.
    fn is_visible(&self, partition: i32, offset: u64) -> bool {
        let shared = &self.shared;
        let progress = shared.progress().remove(&partition).unwrap_or_default();
        let answering = shared.here.answering(partition, &progress);
        answering.is_some_and(|a| a.store.position().is_ok_and(|position| position > offset))
    }

    /// Until something is applied, or a little while.
    async fn pause(&self) {
        let _either = tokio::time::timeout(LOOK_INTERVAL, self.shared.applied.notified()).await;
    }
}

fn unsure(error: &KafkaError, keyed: bool) -> ServiceError {
    if !error.is_temporary() {
        tracing::error!(%error, "a batch was not written to Kafka");
    }
    ServiceError::Unsure {
        why: match error.is_temporary() {
            true => "Kafka does not answer as it should".into(),
            false => "Kafka did not take the batch; the service's log says why".into(),
        },
        keyed,
    }
}
