//! What the group tells this node: which partitions come and go, and what is in them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use super::fetch_queue::{End, Inbox};
use super::{Shared, partition};
use crate::service::cluster::kafka::{Control, Handler, KafkaError, Lost, Record};
use crate::store::abort_on_panic;

/// The threads of the partitions that are here.
pub(super) struct Partitions {
    shared: Arc<Shared>,
    threads: BTreeMap<i32, (Arc<Inbox>, JoinHandle<()>)>,
}

impl Partitions {
    pub(super) fn new(shared: Arc<Shared>) -> Partitions {
        Partitions {
            shared,
            threads: BTreeMap::new(),
        }
    }

    /// Returns when their stores are closed, which all of them do at the same time.
    fn go(&mut self, partitions: &[i32], end: End) {
        let mut threads = Vec::new();
        for partition in partitions {
            self.shared.here.goes(*partition);
            if let Some((inbox, thread)) = self.threads.remove(partition) {
                inbox.end(end);
                threads.push(thread);
            }
        }
        for thread in threads {
            // A panic of it takes the process down.
            let _ended = thread.join();
        }
    }
}

impl Handler for Partitions {
    /// Always later: opening may take a while, and other partitions are read meanwhile.
    fn assigned(&mut self, partition: i32) -> Option<u64> {
        if !self.shared.all().contains(&partition) {
            tracing::error!(
                partition,
                partitions = self.shared.partitions,
                "the topic has been given more partitions, and nobody may count what is in them"
            );
            return None;
        }
        self.shared.here.comes(partition);
        let inbox = Arc::<Inbox>::default();
        let (shared, of_thread) = (self.shared.clone(), inbox.clone());
        let thread = std::thread::Builder::new()
            .name(format!("partition-{partition}"))
            .spawn(move || abort_on_panic(|| partition::live(&shared, partition, &of_thread)));
        match thread {
            Ok(thread) => drop(self.threads.insert(partition, (inbox, thread))),
            Err(error) => {
                let why = format!("cannot start a thread: {error}");
                self.shared.here.failed(partition, why);
            }
        }
        None
    }

    fn records(&mut self, control: &Control, partition: i32, records: &[Record<'_>]) {
        if let Some((inbox, _)) = self.threads.get(&partition) {
            inbox.put(control, partition, records);
        }
    }

    fn revoked(&mut self, partitions: &[i32]) {
        self.go(partitions, End::InOrder);
    }

    fn lost(&mut self, partitions: &[i32]) {
        for partition in partitions {
            tracing::warn!(
                partition,
                "lost a partition: the group did not hear of this node for too long, or another one has its name"
            );
        }
        self.go(partitions, End::Lost);
    }

    fn failed(&mut self, error: KafkaError) {
        match &error {
            &KafkaError::OutOfRange {
                partition,
                offset,
                end,
                ..
            } if offset > end => {
                let lost = Lost {
                    partition,
                    sums_to: offset,
                    kafka_to: end,
                };
                self.shared.owners.report(lost);
                self.shared.here.failed(partition, lost.to_string());
            }
            KafkaError::OutOfRange { partition, .. } => {
                self.shared.here.failed(*partition, error.to_string());
            }
            KafkaError::Broken { .. } => {
                tracing::error!(%error, "reading from Kafka ends");
                self.shared.broken.store(true, Ordering::Relaxed);
            }
            _ => tracing::error!(%error, "reading from Kafka"),
        }
    }
}
