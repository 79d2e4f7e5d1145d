//! Follows the consumer group: opens partitions that are assigned to this node, hands them their messages, and closes
//! those that are revoked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use super::fetch_queue::{FetchQueue, PartitionEnd};
use super::kafka::{ConsumedMessage, Control, Handler, KafkaError, Truncation};
use super::{NodeState, partition};
use crate::store::abort_on_panic;
use flow::{Offset, Partition};

/// The threads of the partitions that are assigned to this node.
pub(super) struct PartitionThreads {
    state: Arc<NodeState>,
    threads: BTreeMap<Partition, (Arc<FetchQueue>, JoinHandle<()>)>,
}

impl PartitionThreads {
    pub(super) fn new(state: Arc<NodeState>) -> PartitionThreads {
        PartitionThreads {
            state,
            threads: BTreeMap::new(),
        }
    }

    /// Closes partitions, all at the same time. Returns when their stores are closed.
    fn close(&mut self, partitions: &[Partition], end: PartitionEnd) {
        let mut threads = Vec::new();
        for partition in partitions {
            self.state.local.revoke(*partition);
            if let Some((queue, thread)) = self.threads.remove(partition) {
                queue.end(end);
                threads.push(thread);
            }
        }
        for thread in threads {
            // If it panics, the process aborts.
            let _ended = thread.join();
        }
    }
}

impl Handler for PartitionThreads {
    /// Always returns `None` and starts the partition later: opening may take long, and other partitions are read
    /// meanwhile.
    fn assigned(&mut self, partition: Partition) -> Option<Offset> {
        if !self.state.partitions.contains(partition) {
            tracing::error!(
                %partition,
                partitions = %self.state.partitions,
                "topic has more partitions than before; messages in the new ones are not counted"
            );
            return None;
        }
        self.state.local.assign(partition);
        let queue = Arc::<FetchQueue>::default();
        let (state, queue_of_thread) = (self.state.clone(), queue.clone());
        let thread = std::thread::Builder::new()
            .name(format!("partition-{partition}"))
            .spawn(move || abort_on_panic(|| partition::run(&state, partition, &queue_of_thread)));
        match thread {
            Ok(thread) => drop(self.threads.insert(partition, (queue, thread))),
            Err(error) => {
                let why = format!("cannot start a thread: {error}");
                self.state.local.set_failed(partition, why);
            }
        }
        None
    }

    fn messages(
        &mut self,
        control: &Control,
        partition: Partition,
        messages: &[ConsumedMessage<'_>],
    ) {
        if let Some((queue, _)) = self.threads.get(&partition) {
            queue.push(control, partition, messages);
        }
    }

    fn revoked(&mut self, partitions: &[Partition]) {
        self.close(partitions, PartitionEnd::Revoked);
    }

    fn lost(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            tracing::warn!(
                %partition,
                "lost a partition: the group did not hear from this node for too long, or another node has its name"
            );
        }
        self.close(partitions, PartitionEnd::Lost);
    }

    fn failed(&mut self, error: KafkaError) {
        match &error {
            &KafkaError::OutOfRange {
                partition,
                offset,
                end,
                ..
            } if offset > end => {
                let truncation = Truncation {
                    partition,
                    sums_to: offset,
                    kafka_to: end,
                };
                self.state.owners.report_truncation(truncation);
                self.state
                    .local
                    .set_failed(partition, truncation.to_string());
            }
            KafkaError::OutOfRange { partition, .. } => {
                self.state.local.set_failed(*partition, error.to_string());
            }
            KafkaError::Fatal { .. } => {
                tracing::error!(%error, "fatal error of the Kafka consumer");
                self.state.has_failed.store(true, Ordering::Relaxed);
            }
            _ => tracing::error!(%error, "error of the Kafka consumer"),
        }
    }
}
