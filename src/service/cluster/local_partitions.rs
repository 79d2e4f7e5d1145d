//! The partitions that are this node's, and which of them it can answer for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::SILENCE_MAX;
use crate::domain::Hour;
use crate::service::cluster::kafka::Progress;
use crate::store::Store;

/// How it is with a partition.
#[derive(Debug)]
enum State {
    Opening,
    Open {
        store: Arc<Store>,
        /// It has had everything that was there when it came. Before that, sums would lack what had been
        /// acknowledged, and seen, when the partition was another node's.
        caught_up: bool,
        /// Dropped when it goes.
        leaves: watch::Sender<()>,
    },
    /// It stands still; says why.
    Failed(String),
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Here(Mutex<BTreeMap<i32, State>>);

/// A partition's store, and how many messages it is behind the journal.
#[derive(Debug)]
pub(super) struct Answering {
    pub(super) store: Arc<Store>,
    pub(super) lag: u64,
    /// Closes when the partition goes, and whoever reads has to leave the store.
    pub(super) leaves: watch::Receiver<()>,
}

impl Here {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<i32, State>> {
        // A state is replaced as a whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn comes(&self, partition: i32) {
        self.lock().insert(partition, State::Opening);
    }

    pub(super) fn opened(&self, partition: i32, store: Arc<Store>) {
        self.set(
            partition,
            State::Open {
                store,
                caught_up: false,
                leaves: watch::Sender::new(()),
            },
        );
    }

    pub(super) fn failed(&self, partition: i32, why: String) {
        tracing::error!(partition, why, "a partition stands still");
        self.set(partition, State::Failed(why));
    }

    /// Unless it has been taken away meanwhile.
    fn set(&self, partition: i32, state: State) {
        if let Some(known) = self.lock().get_mut(&partition) {
            *known = state;
        }
    }

    /// Nobody is answered for it from now on.
    pub(super) fn goes(&self, partition: i32) {
        self.lock().remove(&partition);
    }

    fn store(&self, partition: i32) -> Option<Arc<Store>> {
        match self.lock().get(&partition) {
            Some(State::Open { store, .. }) => Some(store.clone()),
            _ => None,
        }
    }

    /// The offset that is due next, of those that are open.
    pub(super) fn position(&self, partition: i32) -> Option<u64> {
        self.store(partition)?.position().ok()
    }

    /// The same of all of them.
    pub(super) fn positions(&self) -> Vec<(i32, u64)> {
        let partitions: Vec<_> = self.lock().keys().copied().collect();
        let position = |partition| Some((partition, self.position(partition)?));
        partitions.into_iter().filter_map(position).collect()
    }

    /// The newest hour of those that are open.
    pub(super) fn newest_hour(&self) -> Option<Hour> {
        let partitions: Vec<_> = self.lock().keys().copied().collect();
        let newest = |partition| self.store(partition)?.newest_hour();
        partitions.into_iter().filter_map(newest).max()
    }

    /// The partition's store, if what it says counts: all is in it that was in the journal when the partition
    /// came, and the journal has been heard of so lately that nobody else has got the partition.
    pub(super) fn answering(&self, partition: i32, progress: &Progress) -> Option<Answering> {
        let store = self.store(partition)?;
        let position = store.position().ok()?;
        let end = progress.end?;
        let leaves = match self.lock().get_mut(&partition)? {
            State::Open {
                caught_up, leaves, ..
            } => {
                *caught_up |= position >= end;
                caught_up.then(|| leaves.subscribe())?
            }
            _ => return None,
        };
        let heard = progress
            .contact
            .is_some_and(|at| at.elapsed() < SILENCE_MAX);
        heard.then(|| Answering {
            store,
            lag: end.saturating_sub(position),
            leaves,
        })
    }

    /// Why the first partition that cannot be answered for cannot.
    pub(super) fn accepts(&self, progress: &BTreeMap<i32, Progress>) -> Result<(), String> {
        let partitions: Vec<_> = self.lock().keys().copied().collect();
        for partition in partitions {
            let of = progress.get(&partition).copied().unwrap_or_default();
            if self.answering(partition, &of).is_some() {
                continue;
            }
            return Err(match self.lock().get(&partition) {
                None => continue,
                Some(State::Failed(why)) => format!("partition {partition} stands still: {why}"),
                Some(State::Opening) => format!("partition {partition} is being opened"),
                Some(State::Open {
                    caught_up: false, ..
                }) => format!("partition {partition} is still being read from Kafka"),
                Some(State::Open { .. }) => {
                    format!("Kafka has not been heard of for too long, for partition {partition}")
                }
            });
        }
        Ok(())
    }
}
