//! The partitions that are assigned to this node, and which of them can be read.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::LEADER_CONTACT_AGE_MAX;
use super::kafka::Progress;
use crate::store::{Backlog, Store};
use flow::{Hour, Offset, Partition};

/// The state of a partition.
#[derive(Debug)]
enum State {
    Opening,
    Open {
        store: Arc<Store>,
        /// The sums have reached the end that the partition had when it was assigned. Before that, they may lack
        /// flows that the previous owner had acknowledged as visible.
        caught_up: bool,
        /// Cancelled when the partition is revoked: then this state is dropped.
        revocation: DropGuard,
    },
    /// No more messages are applied, for this reason.
    Failed(String),
}

/// All partitions of this node.
#[derive(Debug, Default)]
pub(super) struct LocalPartitions(Mutex<BTreeMap<Partition, State>>);

/// A partition that can be read.
#[derive(Debug)]
pub(super) struct ReadablePartition {
    pub(super) store: Arc<Store>,
    /// Number of messages in the journal that are not in the sums yet.
    pub(super) lag: u64,
    /// Cancelled when the partition is revoked. Readers then have to release the store, because the next owner waits
    /// for that.
    pub(super) revocation: CancellationToken,
}

impl LocalPartitions {
    pub(super) fn assign(&self, partition: Partition) {
        self.0.lock().insert(partition, State::Opening);
    }

    pub(super) fn set_open(&self, partition: Partition, store: Arc<Store>) {
        self.set(
            partition,
            State::Open {
                store,
                caught_up: false,
                revocation: CancellationToken::new().drop_guard(),
            },
        );
    }

    pub(super) fn set_failed(&self, partition: Partition, why: String) {
        tracing::error!(%partition, why, "partition stopped");
        self.set(partition, State::Failed(why));
    }

    /// Does nothing if the partition has been revoked meanwhile.
    fn set(&self, partition: Partition, state: State) {
        if let Some(known) = self.0.lock().get_mut(&partition) {
            *known = state;
        }
    }

    /// Stops queries of the partition and aborts responses that read it.
    pub(super) fn revoke(&self, partition: Partition) {
        self.0.lock().remove(&partition);
    }

    fn store(&self, partition: Partition) -> Option<Arc<Store>> {
        match self.0.lock().get(&partition) {
            Some(State::Open { store, .. }) => Some(store.clone()),
            _ => None,
        }
    }

    /// Whether the group has assigned it to this node, which may be opening it.
    pub(super) fn is_assigned(&self, partition: Partition) -> bool {
        self.0.lock().contains_key(&partition)
    }

    fn assigned(&self) -> Vec<Partition> {
        self.0.lock().keys().copied().collect()
    }

    /// The position of an open partition: the next offset.
    pub(super) fn position(&self, partition: Partition) -> Option<Offset> {
        let position = self.store(partition)?.position().ok()?;
        position.next_offset().ok()
    }

    /// The positions of all open partitions.
    pub(super) fn positions(&self) -> Vec<(Partition, Offset)> {
        let position = |partition| Some((partition, self.position(partition)?));
        self.assigned().into_iter().filter_map(position).collect()
    }

    /// The newest hour of all open partitions.
    pub(super) fn newest_hour(&self) -> Option<Hour> {
        let newest = |partition| self.store(partition)?.newest_hour();
        self.assigned().into_iter().filter_map(newest).max()
    }

    /// The work that is left for the settlers of the open partitions: of each figure, the largest.
    pub(super) fn backlog(&self) -> Backlog {
        let backlog = |partition| Some(self.store(partition)?.backlog());
        let all = self.assigned().into_iter().filter_map(backlog);
        all.fold(Backlog::default(), Backlog::or_larger)
    }

    /// The partition, if its sums may be shown: they have reached the end that the journal had when the partition
    /// was assigned, and its leader was heard from so recently that no other node can own the partition.
    pub(super) fn readable(
        &self,
        partition: Partition,
        progress: &Progress,
    ) -> Option<ReadablePartition> {
        let store = self.store(partition)?;
        let position = store.position().ok()?.next_offset().ok()?;
        let end = progress.end?;
        let revocation = match self.0.lock().get_mut(&partition)? {
            State::Open {
                caught_up,
                revocation,
                ..
            } => {
                *caught_up |= position >= end;
                caught_up.then(|| revocation.token().clone())?
            }
            _ => return None,
        };
        let is_fresh = progress
            .contact
            .is_some_and(|at| at.elapsed() < LEADER_CONTACT_AGE_MAX);
        is_fresh.then(|| ReadablePartition {
            store,
            lag: end.since(position),
            revocation,
        })
    }

    /// Whether all partitions can be read.
    ///
    /// # Errors
    /// The reason why the first unreadable partition cannot be read.
    pub(super) fn require_readable(
        &self,
        progress: &BTreeMap<Partition, Progress>,
    ) -> Result<(), String> {
        for partition in self.assigned() {
            let of_partition = progress.get(&partition).copied().unwrap_or_default();
            if self.readable(partition, &of_partition).is_some() {
                continue;
            }
            return Err(match self.0.lock().get(&partition) {
                None => continue,
                Some(State::Failed(why)) => format!("partition {partition} stopped: {why}"),
                Some(State::Opening) => format!("partition {partition} is being opened"),
                Some(State::Open {
                    caught_up: false, ..
                }) => format!("partition {partition} is still being read from Kafka"),
                Some(State::Open { .. }) => {
                    format!("no contact with the leader of partition {partition} for too long")
                }
            });
        }
        Ok(())
    }
}
