//! Combines waiting batches into messages, so that they share the cost of a message, a request, a fetch and a wake-up.
//! A single batch is sent immediately; under load, batches that arrive while one group is in flight form the next
//! group.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::NodeState;
use super::kafka::KafkaError;
use super::message::{MessageBuilder, PartitionBatch};
use crate::ingest::Permit;
use flow::{Offset, Partition};

/// Maximum number of waiting batches; admission bounds their bytes.
const PENDING_MAX: usize = 4096;
/// Pause after a group of several batches: their clients are about to send the next ones.
const GROUP_PAUSE: Duration = Duration::from_millis(5);
/// A group that takes longer than this does not delay the next one.
const GROUP_TIME_MAX: Duration = Duration::from_millis(20);

/// The offset of the last message of a batch in each partition. `None` if the broker has the message but did not report
/// its offset, as after a retry that it recognised.
pub(super) type Offsets = BTreeMap<Partition, Option<Offset>>;

/// A batch to be written.
#[derive(Debug)]
pub(super) struct PendingBatch {
    pub(super) parts: Vec<PartitionBatch>,
    /// Covers the batch until it is written, even if the client disconnects.
    pub(super) permit: Permit,
    /// Resolves when all in-sync replicas have all messages of the batch.
    pub(super) responder: oneshot::Sender<Result<Offsets, KafkaError>>,
}

/// Spawns the batcher. It ends when all senders are dropped.
pub(super) fn spawn(
    state: Arc<NodeState>,
    runtime: &tokio::runtime::Handle,
) -> mpsc::Sender<PendingBatch> {
    let (sender, pending) = mpsc::channel(PENDING_MAX);
    runtime.spawn(run(state, pending));
    sender
}

async fn run(state: Arc<NodeState>, mut pending: mpsc::Receiver<PendingBatch>) {
    loop {
        let mut group = Vec::new();
        if pending.recv_many(&mut group, PENDING_MAX).await == 0 {
            return;
        }
        let is_busy = group.len() > 1;
        let sent = tokio::spawn(send_group(state.clone(), group));
        let _sent_or_late = tokio::time::timeout(GROUP_TIME_MAX, sent).await;
        if is_busy {
            tokio::time::sleep(GROUP_PAUSE).await;
        }
    }
}

/// Sends a group in as few messages as possible, and responds to each of its batches.
async fn send_group(state: Arc<NodeState>, mut group: Vec<PendingBatch>) {
    let mut partitions: BTreeMap<Partition, Vec<(usize, PartitionBatch)>> = BTreeMap::new();
    for (number, pending) in group.iter_mut().enumerate() {
        for part in pending.parts.drain(..) {
            let parts = partitions.entry(part.partition).or_default();
            parts.push((number, part));
        }
    }
    let mut sent = Vec::new();
    for (partition, parts) in partitions {
        let mut rest = parts.iter().map(|(_, part)| part);
        let (mut message, mut numbers) = (MessageBuilder::for_parts(rest.clone()), Vec::new());
        for (number, part) in &parts {
            if !message.has_room_for(part) {
                let sending = state.producer.send(partition, None, message.bytes());
                sent.push((partition, std::mem::take(&mut numbers), sending));
                message = MessageBuilder::for_parts(rest.clone());
            }
            rest.next();
            message.push(part);
            numbers.push(*number);
        }
        let sending = state.producer.send(partition, None, message.bytes());
        sent.push((partition, numbers, sending));
    }
    let mut results: Vec<_> = group.iter().map(|_| Ok(Offsets::new())).collect();
    // The last one first: when it is acknowledged, most others are, and awaiting them costs no wake-up.
    for (partition, numbers, sending) in sent.into_iter().rev() {
        let result = sending.await;
        state.record_result(&result);
        for number in numbers {
            match (&result, &mut results[number]) {
                (Ok(offset), Ok(offsets)) => {
                    let last = offsets.entry(partition).or_insert(*offset);
                    // The last message of the batch counts; if any offset is unknown, so is the last.
                    *last = last.zip(*offset).map(|(last, offset)| last.max(offset));
                }
                (Err(error), result) => *result = Err(error.clone()),
                (Ok(_), Err(_)) => {}
            }
        }
    }
    for (pending, result) in group.into_iter().zip(results) {
        drop(pending.permit);
        let _disconnected = pending.responder.send(result);
    }
}
