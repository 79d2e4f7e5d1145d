//! A partition on this node, from its assignment to its revocation, on a thread of its own: opens the store, applies
//! messages to it, and closes it.

use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use super::checkpoints::Checkpoints;
use super::fetch_queue::{FetchQueue, FetchedMessage, PartitionEnd};
use super::kafka::Control;
use super::{NodeState, message};
use crate::store::{DataDir, JournalEntry, Position, Store, StoreError, abort_on_panic};
use flow::Partition;

/// Maximum time for the last flush of a revoked partition, for which the next owner waits.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(5);
/// Interval between attempts to open a store: a response in progress may hold it for a while after it was closed.
const OPEN_INTERVAL: Duration = Duration::from_millis(200);

/// Directory of the partitions' stores in the data directory.
const PARTITIONS_DIR: &str = "partitions";

/// Runs the partition until it is revoked or lost.
pub(super) fn run(state: &NodeState, partition: Partition, queue: &FetchQueue) {
    let control = state.control.wait();
    let path = (state.data_dir.join(PARTITIONS_DIR)).join(partition.to_string());
    let identity = format!(
        "partition {partition} of {} of topic {} in Kafka {}",
        state.partitions, state.config.topic, state.kafka_cluster
    );
    let checkpoints = state.checkpoint_store.as_ref().map(|store| {
        let (topic, node) = (&state.config.topic, state.config.name.clone());
        let dir = store.partition(topic, partition, identity.clone(), node);
        Checkpoints::new(state, partition, dir)
    });
    let open = || open(state, &path, &identity, queue).map_err(|e| e.to_string());
    let opened = match (state.owners.truncation(partition), &checkpoints) {
        (Some(truncation), _) => Err(truncation.to_string()),
        (None, Some(checkpoints)) => checkpoints.open_newest(&path, queue, control, open),
        (None, None) => open(),
    };
    let store = match opened {
        Ok(Some(store)) => store,
        Ok(None) => return,
        Err(why) => {
            state.local.set_failed(partition, why);
            return queue.await_end();
        }
    };
    std::thread::scope(|scope| {
        if let Some(checkpoints) = &checkpoints {
            scope.spawn(|| abort_on_panic(|| checkpoints.run(&store, queue)));
        }
        if let Err(why) = apply_all(state, control, partition, &store, queue) {
            state.local.set_failed(partition, why);
            control.pause(partition);
            queue.await_end();
        }
    });
    if queue.ended() == Some(PartitionEnd::Revoked)
        && let Err(error) = store.flush_within(FLUSH_TIME_MAX)
    {
        // Nothing is lost: Kafka has the messages.
        tracing::warn!(%partition, %error, "last flush of a partition failed");
    }
    if let Some(checkpoints) = &checkpoints {
        checkpoints.finish(&store, queue);
    }
    drop(store);
    tracing::info!(%partition, "closed a partition");
}

/// Opens the store at `path`. Returns `None` if the partition is revoked or lost before that.
fn open(
    state: &NodeState,
    path: &Path,
    identity: &str,
    queue: &FetchQueue,
) -> Result<Option<Arc<Store>>, StoreError> {
    let mut logged = false;
    while queue.ended().is_none() {
        let opened = DataDir::open_partition(path, identity)
            .and_then(|dir| Store::open_dir(dir, state.store.clone()));
        match opened {
            Ok((store, _nothing_to_replay)) => return Ok(Some(Arc::new(store))),
            Err(error @ StoreError::InUse { .. }) => {
                if !std::mem::replace(&mut logged, true) {
                    tracing::info!(%error, "waiting for responses that still read the store");
                }
                sleep(OPEN_INTERVAL);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Applies messages until the partition is revoked or lost.
///
/// # Errors
/// The reason why no more messages can be applied.
fn apply_all(
    state: &NodeState,
    control: &Control,
    partition: Partition,
    store: &Arc<Store>,
    queue: &FetchQueue,
) -> Result<(), String> {
    let position = store.position().map_err(|e| e.to_string())?;
    let position = position.next_offset().map_err(|e| e.to_string())?;
    state.local.set_open(partition, store.clone());
    control.start(partition, position);
    state.assigned.notify_one();
    tracing::info!(%partition, %position, "opened a partition");
    while let Some(messages) = queue.pop(control, partition) {
        let mut entries = Vec::new();
        for message in messages {
            decode(&message, &mut entries)?;
        }
        loop {
            match store.wait_for_room() {
                Ok(()) => break,
                Err(StoreError::WriteStalled) if queue.ended().is_none() => {}
                Err(StoreError::WriteStalled) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
        let applied = store.apply(entries).map_err(|e| e.to_string())?;
        let metrics = state.store.metrics.cluster();
        metrics.flows_applied.inc_by(applied.flows);
        metrics.batches_repeated.inc_by(applied.repeated);
        metrics.batches_reused.inc_by(applied.reused);
        if applied.reused > 0 {
            tracing::warn!(
                %partition,
                batches = applied.reused,
                "batches not counted: other flows were counted under their idempotency keys"
            );
        }
        let ingest = state.store.metrics.ingest();
        ingest.expired.inc_by(applied.too_old);
        state.applied.notify_waiters();
    }
    Ok(())
}

/// Decodes a message. One that cannot be decoded stops the partition: it may be of a newer version, and skipping it
/// would lose flows.
fn decode(message: &FetchedMessage, entries: &mut Vec<JournalEntry>) -> Result<(), String> {
    let (offset, time_s) = (message.offset, message.time_s);
    let batches = message::decode(&message.payload)
        .map_err(|error| format!("the message at offset {offset} cannot be decoded: {error}"))?;
    let position = Position::after(offset);
    entries.extend(batches.into_iter().map(|batch| JournalEntry {
        position,
        time_s,
        batch,
    }));
    Ok(())
}
