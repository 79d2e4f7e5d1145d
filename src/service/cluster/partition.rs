//! The life of a partition on this node, on a thread of its own: its store is opened, what comes is added to
//! it, and when the partition goes, it is closed.

use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use super::checkpoints::Checkpoints;
use super::fetch_queue::{End, Inbox, Message};
use super::{Shared, message};
use crate::service::cluster::kafka::Control;
use crate::store::{DataDir, Entry, Store, StoreError, abort_on_panic};

/// When a partition goes, whoever gets it waits for the flush.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(5);
/// Until the next attempt to open a store: an answer that is still being read may keep it for a while after
/// it was closed.
const OPEN_INTERVAL: Duration = Duration::from_millis(200);

/// Below the data directory.
const PARTITIONS: &str = "partitions";

pub(super) fn live(shared: &Shared, partition: i32, inbox: &Inbox) {
    let control = shared.control.wait();
    let path = (shared.data_dir.join(PARTITIONS)).join(partition.to_string());
    let of = format!(
        "partition {partition} of {} of topic {} in Kafka {}",
        shared.partitions, shared.node.topic, shared.kafka
    );
    let checkpoints = shared.objects.as_ref().map(|objects| {
        let (topic, node) = (&shared.node.topic, shared.node.name.clone());
        Checkpoints::new(
            shared,
            partition,
            objects.place(topic, partition, of.clone(), node),
        )
    });
    let open = || open(shared, &path, &of, inbox).map_err(|e| e.to_string());
    let opened = match (shared.owners.lost(partition), &checkpoints) {
        (Some(lost), _) => Err(lost.to_string()),
        (None, Some(checkpoints)) => checkpoints.restored(&path, inbox, control, open),
        (None, None) => open(),
    };
    let store = match opened {
        Ok(Some(store)) => store,
        Ok(None) => return,
        Err(why) => {
            shared.here.failed(partition, why);
            return inbox.await_end();
        }
    };
    std::thread::scope(|scope| {
        if let Some(checkpoints) = &checkpoints {
            scope.spawn(|| abort_on_panic(|| checkpoints.keep_up(&store, inbox)));
        }
        if let Err(why) = apply_all(shared, control, partition, &store, inbox) {
            shared.here.failed(partition, why);
            control.pause(partition);
            inbox.await_end();
        }
    });
    if inbox.ended() == Some(End::InOrder)
        && let Err(error) = store.flush_within(FLUSH_TIME_MAX)
    {
        // Kafka has it.
        tracing::warn!(partition, %error, "a partition was not flushed");
    }
    if let Some(checkpoints) = &checkpoints {
        checkpoints.end(&store, inbox);
    }
    drop(store);
    tracing::info!(partition, "closed a partition");
}

/// `None` when the partition goes before its store is open.
fn open(
    shared: &Shared,
    path: &Path,
    of: &str,
    inbox: &Inbox,
) -> Result<Option<Arc<Store>>, StoreError> {
    let mut said = false;
    while inbox.ended().is_none() {
        let opened =
            DataDir::open_of(path, of).and_then(|dir| Store::open_dir(dir, shared.store.clone()));
        match opened {
            Ok((store, _nothing_to_replay)) => return Ok(Some(Arc::new(store))),
            Err(error @ StoreError::InUse { .. }) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::info!(%error, "waits until those who read it have left");
                }
                sleep(OPEN_INTERVAL);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Until the partition goes; or says why it stands still.
fn apply_all(
    shared: &Shared,
    control: &Control,
    partition: i32,
    store: &Arc<Store>,
    inbox: &Inbox,
) -> Result<(), String> {
    let position = store.position().map_err(|e| e.to_string())?;
    shared.here.opened(partition, store.clone());
    control.start(partition, position);
    shared.arrived.notify_one();
    tracing::info!(partition, position, "opened a partition");
    while let Some(messages) = inbox.take(control, partition) {
        let mut applying = Vec::new();
        for message in messages {
            applying.extend(entries(&message)?);
        }
        loop {
            match store.wait_for_room() {
                Ok(()) => break,
                Err(StoreError::Behind) if inbox.ended().is_none() => {}
                Err(StoreError::Behind) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
        let applied = store.apply(applying).map_err(|e| e.to_string())?;
        let metrics = shared.store.metrics.cluster();
        metrics.flows_applied.inc_by(applied.flows);
        metrics.batches_repeated.inc_by(applied.repeated);
        metrics.batches_reused.inc_by(applied.reused);
        if applied.reused > 0 {
            tracing::warn!(
                partition,
                batches = applied.reused,
                "not counted: other flows were taken under their idempotency keys"
            );
        }
        shared
            .store
            .metrics
            .ingest()
            .expired
            .inc_by(applied.expired);
        shared.applied.notify_waiters();
    }
    Ok(())
}

/// A message that cannot be read ends the reading: it may be of a newer version, and passing it over would
/// lose it.
fn entries(message: &Message) -> Result<impl Iterator<Item = Entry>, String> {
    let (offset, time_s) = (message.offset, message.time_s);
    let batches = message::read(&message.payload)
        .map_err(|error| format!("the message at offset {offset} is not one of ours: {error}"))?;
    Ok(batches.into_iter().map(move |batch| Entry {
        position: offset + 1,
        time_s,
        batch,
    }))
}
