//! Batches on their way into Kafka.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::Shared;
use super::gather::Waiting;
use super::pieces::{Offsets, Piece};
use crate::domain::{Hour, Totals};
use crate::ingest::{Answer, Committed, IngestError, Journal, Permit, Promise, Taken};
use crate::kafka::KafkaError;
use crate::store::{Batch, StoreError};

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

impl Journal for Inlet {
    fn commit(&self, batch: Batch, permit: Permit, until_visible: bool) -> Promise<'_, Answer> {
        Box::pin(async move {
            let flows = batch.flows() as u64;
            let metrics = &self.shared.store.metrics;
            let bytes = batch.bytes().len() as u64;
            let offsets = self.send(batch, permit).await?;
            metrics.ingest().batches.inc();
            metrics.ingest().flows.inc_by(flows);
            metrics.ingest().bytes.inc_by(bytes);
            if until_visible && !self.await_visible(offsets).await {
                return Err(IngestError::NotVisible(format!(
                    "the batch is in Kafka, and will count; it was not visible within {} s",
                    VISIBLE_TIME_MAX.as_secs()
                )));
            }
            Ok(Committed {
                taken: Taken::Now,
                flows,
                expired: 0,
            })
        })
    }

    fn accepts(&self) -> Result<(), String> {
        let shared = &self.shared;
        if self.fails().is_some() {
            return Err("the client of Kafka has given up; the log says why".into());
        }
        if !shared.connected.load(Ordering::Relaxed) {
            return Err("Kafka does not answer".into());
        }
        shared.here.accepts(&shared.progress())
    }

    /// Batches go to Kafka, and sums wait there for space.
    fn lacks_space(&self) -> Option<&'static str> {
        None
    }

    fn fails(&self) -> Option<&'static str> {
        let fails = self.shared.broken.load(Ordering::Relaxed) || self.gather.is_closed();
        fails.then_some("the client of Kafka has given up, and the journal could not be used")
    }

    fn delete_hour(&self, _: Hour) -> Result<Option<Totals>, IngestError> {
        Err(IngestError::NotHere(
            "hours of a cluster go by age: start its nodes with --retain-hours",
        ))
    }

    /// Of the partitions that are here: names decide which those are, so their hours are those of all.
    fn newest_hour(&self) -> Option<Hour> {
        self.shared.here.newest_hour()
    }

    fn observe(&self) -> Result<(), StoreError> {
        let shared = &self.shared;
        let metrics = shared.store.metrics.cluster();
        let progress = shared.progress();
        metrics.partitions.set(progress.len() as i64);
        // Those that have gone have no figures any more.
        metrics.position.reset();
        metrics.lag.reset();
        for (partition, position) in shared.here.positions() {
            let label = partition.to_string();
            metrics
                .position
                .with_label_values(&[&label])
                .set(position as i64);
            if let Some(end) = progress.get(&partition).and_then(|p| p.end) {
                let lag = end.saturating_sub(position);
                metrics.lag.with_label_values(&[&label]).set(lag as i64);
            }
        }
        Ok(())
    }

    /// What is sent is acknowledged or not; nothing waits here.
    fn finish(&self) {}

    /// At once where a partition is not here, since somebody else has it now.
    fn has_applied(&self, upto: Vec<(i32, u64)>) -> Promise<'_, bool> {
        Box::pin(async move {
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
        })
    }
}

impl Inlet {
    /// Sends a batch; returns the last offset in each partition when all in-sync replicas have it.
    async fn send(&self, batch: Batch, permit: Permit) -> Result<Offsets, IngestError> {
        let keyed = batch.receipt().is_some();
        let partitions = self.shared.partitions;
        let pieces = if batch.bytes().len() <= SPLIT_INLINE_BYTES_MAX {
            Piece::of(&batch, partitions)
        } else {
            let split = tokio::task::spawn_blocking(move || Piece::of(&batch, partitions));
            split.await.map_err(|_| IngestError::Closed)?
        };
        let pieces = pieces.map_err(|error| IngestError::Store(Arc::new(error)))?;
        let (done, sent) = oneshot::channel();
        let waiting = Waiting {
            pieces,
            permit,
            done,
        };
        let gathered = self.gather.send(waiting).await;
        gathered.map_err(|_| IngestError::Closed)?;
        let sent = sent.await.map_err(|_| IngestError::Closed)?;
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

fn unsure(error: &KafkaError, keyed: bool) -> IngestError {
    if !error.is_temporary() {
        tracing::error!(%error, "a batch was not written to Kafka");
    }
    IngestError::Unsure {
        why: match error.is_temporary() {
            true => "Kafka does not answer as it should".into(),
            false => "Kafka did not take the batch; the service's log says why".into(),
        },
        keyed,
    }
}
