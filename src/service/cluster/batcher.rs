//! Batches that wait go to Kafka together: what a message, a request, a fetch and a wake-up cost is paid once for
//! all of them. Alone, a batch waits for nobody; under load, what comes while one group is on its way makes the
//! next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::Shared;
use super::message::{Message, Offsets, Piece};
use crate::ingest::Permit;
use crate::service::cluster::kafka::KafkaError;

/// Batches that may wait; their bytes are bounded by admission.
const WAITING_MAX: usize = 4096;
/// After a group of several, others are waited for so long: those who have their answer come again.
const GATHER: Duration = Duration::from_millis(5);
/// A group whose brokers take longer than this holds up no other.
const GATHER_MAX: Duration = Duration::from_millis(20);

/// A batch that is to be written.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) pieces: Vec<Piece>,
    /// Covers the batch, also when nobody waits any more.
    pub(super) permit: Permit,
    /// Gets the last offset in each partition when all in-sync replicas have all of it.
    pub(super) done: oneshot::Sender<Result<Offsets, KafkaError>>,
}

/// Starts the gathering; it ends when all senders are gone.
pub(super) fn start(
    shared: Arc<Shared>,
    runtime: &tokio::runtime::Handle,
) -> mpsc::Sender<Waiting> {
    let (sender, waiting) = mpsc::channel(WAITING_MAX);
    runtime.spawn(gather(shared, waiting));
    sender
}

async fn gather(shared: Arc<Shared>, mut waiting: mpsc::Receiver<Waiting>) {
    loop {
        let mut group = Vec::new();
        if waiting.recv_many(&mut group, WAITING_MAX).await == 0 {
            return;
        }
        let busy = group.len() > 1;
        let carried = tokio::spawn(carry(shared.clone(), group));
        let _late_or_not = tokio::time::timeout(GATHER_MAX, carried).await;
        if busy {
            tokio::time::sleep(GATHER).await;
        }
    }
}

/// Sends a group, in as few messages as it fits into, and answers each of its batches.
async fn carry(shared: Arc<Shared>, mut group: Vec<Waiting>) {
    let mut partitions: BTreeMap<i32, Vec<(usize, Piece)>> = BTreeMap::new();
    for (number, waiting) in group.iter_mut().enumerate() {
        for piece in waiting.pieces.drain(..) {
            let pieces = partitions.entry(piece.partition).or_default();
            pieces.push((number, piece));
        }
    }
    let mut sent = Vec::new();
    for (partition, pieces) in partitions {
        let mut left = pieces.iter().map(|(_, piece)| piece);
        let (mut message, mut of) = (Message::with_room(left.clone()), Vec::new());
        for (number, piece) in &pieces {
            if !message.has_room_for(piece) {
                let sending = shared.producer.send(partition, None, message.bytes());
                sent.push((partition, std::mem::take(&mut of), sending));
                message = Message::with_room(left.clone());
            }
            left.next();
            message.push(piece);
            of.push(*number);
        }
        let sending = shared.producer.send(partition, None, message.bytes());
        sent.push((partition, of, sending));
    }
    let mut outcomes: Vec<_> = group.iter().map(|_| Ok(Offsets::new())).collect();
    // The last one first: with it, most of the others are there, and nobody has to be woken for them.
    for (partition, of, sending) in sent.into_iter().rev() {
        let result = sending.await;
        shared.note(&result);
        for number in of {
            match (&result, &mut outcomes[number]) {
                (Ok(offset), Ok(offsets)) => {
                    let last = offsets.entry(partition).or_default();
                    *last = offset.max(last).to_owned();
                }
                (Err(error), outcome) => *outcome = Err(error.clone()),
                (Ok(_), Err(_)) => {}
            }
        }
    }
    for (Waiting { permit, done, .. }, outcome) in group.into_iter().zip(outcomes) {
        drop(permit);
        let _gone = done.send(outcome);
    }
}
