//! Checkpoints of a partition in an object store: made every now and then, and fetched by a node that lacks the
//! partition, or has less of it than Kafka can make good. Nothing waits for them but such a node: what goes wrong
//! is said and counted, and the next one is tried when it is due.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

mod objects;

use objects::Place;
pub use objects::{Objects, ObjectsError};

use super::Shared;
use super::fetch_queue::{End, Inbox};
use crate::durable;
use crate::service::cluster::kafka::{AHEAD_MAX, Control, Lost};
use crate::store::{INCOMPLETE, Store};

/// A store that is behind by less reads on: about a gigabyte of batches of a thousand flows.
const BEHIND_MESSAGES_MAX: u64 = 20_000;
/// When a partition goes, whoever gets it waits for its last checkpoint. What is not sent by then was for nothing.
const LAST_TIME_MAX: Duration = Duration::from_secs(2);
/// Until the next attempt to fetch one without which it does not go on.
const FETCH_INTERVAL: Duration = Duration::from_secs(5);
/// Until the next look whether another partition's is made.
const TURN_INTERVAL: Duration = Duration::from_millis(200);

/// Those of one partition.
pub(super) struct Checkpoints<'a> {
    shared: &'a Shared,
    partition: i32,
    place: Place,
}

/// Why no checkpoint was fetched.
enum Lacking {
    /// Kafka has all that this node lacks.
    ReadOn(ObjectsError),
    /// Nothing else helps, and it may pass.
    Retry(String),
    /// A checkpoint has more than Kafka, which may be a broker's that was cut off and does not know it.
    Ahead(Lost),
    /// Somebody has to do something.
    StandStill(String),
}

impl<'a> Checkpoints<'a> {
    pub(super) fn new(shared: &'a Shared, partition: i32, place: Place) -> Checkpoints<'a> {
        Checkpoints {
            shared,
            partition,
            place,
        }
    }

    /// The store that `open` opens, replaced by a checkpoint where that is better. `None` when the partition goes
    /// before. Nobody else has a store that is replaced: it is shown to nobody before this returns.
    pub(super) fn restored(
        &self,
        path: &Path,
        inbox: &Inbox,
        control: &Control,
        open: impl Fn() -> Result<Option<Arc<Store>>, String>,
    ) -> Result<Option<Arc<Store>>, String> {
        let partition = self.partition;
        let (mut store, mut ahead_since) = (None, None::<Instant>);
        if path.exists() {
            let Some(opened) = open()? else {
                return Ok(None);
            };
            store = Some(opened);
        }
        loop {
            let position = store.as_ref().map(|s| s.position()).transpose();
            let position = position.map_err(|e| e.to_string())?;
            let lacking = match self.fetch(path, position, inbox, control) {
                Ok(None) => break,
                Ok(Some(fetched)) => {
                    drop(store.take());
                    replace(path, &fetched).map_err(|e| format!("{}: {e}", path.display()))?;
                    self.shared
                        .store
                        .metrics
                        .cluster()
                        .checkpoint_restores
                        .inc();
                    break;
                }
                Err(lacking) => lacking,
            };
            if inbox.ended().is_some() {
                return Ok(None);
            }
            self.failed();
            match lacking {
                Lacking::ReadOn(error) => {
                    tracing::error!(partition, %error, "no checkpoint; Kafka has what is needed");
                    break;
                }
                Lacking::Retry(why) => {
                    ahead_since = None;
                    tracing::error!(partition, why, "waits for a checkpoint");
                    if inbox.ends_within(FETCH_INTERVAL) {
                        return Ok(None);
                    }
                }
                Lacking::Ahead(lost) => {
                    if ahead_since.get_or_insert_with(Instant::now).elapsed() >= AHEAD_MAX {
                        self.shared.owners.report(lost);
                        return Err(lost.to_string());
                    }
                    if inbox.ends_within(FETCH_INTERVAL) {
                        return Ok(None);
                    }
                }
                Lacking::StandStill(why) => return Err(why),
            }
        }
        // Of one that was not usable.
        let _is_rarely_there = fs::remove_dir_all(beside(path, "new"));
        self.set_time(SystemTime::now());
        match store {
            None => open(),
            some => Ok(some),
        }
    }

    /// Fetches the best checkpoint, if one is needed or much better than the store, which is at `position`. Returns
    /// where it is.
    fn fetch(
        &self,
        path: &Path,
        position: Option<u64>,
        inbox: &Inbox,
        control: &Control,
    ) -> Result<Option<PathBuf>, Lacking> {
        let partition = self.partition;
        let Some((first, end)) = control.range(partition) else {
            return Err(Lacking::Retry("no broker says what Kafka has".into()));
        };
        let here = position.unwrap_or(0);
        let is_needed = here < first;
        // Then nobody waits for the object store.
        if position.is_some() && !is_needed && end.saturating_sub(here) <= BEHIND_MESSAGES_MAX {
            return Ok(None);
        }
        let lacking = |error: ObjectsError| match error {
            ObjectsError::OfAnother { .. } if is_needed || position.is_none() => {
                Lacking::StandStill(error.to_string())
            }
            error if is_needed => Lacking::Retry(error.to_string()),
            error => Lacking::ReadOn(error),
        };
        let stop = || inbox.ended().is_some();
        let listed = self.place.list(&stop).map_err(lacking)?;
        let into = beside(path, "new");
        let mut unusable = None;
        for checkpoint in &listed {
            let at = checkpoint.position;
            if at > end {
                return Err(Lacking::Ahead(Lost {
                    partition,
                    sums_to: at,
                    kafka_to: end,
                }));
            }
            let is_better = position.is_none() || at > here.saturating_add(BEHIND_MESSAGES_MAX);
            if !is_needed && !is_better {
                return Ok(None);
            }
            if at < first {
                let why = format!("its position is {at}, and Kafka has {first} to before {end}");
                tracing::warn!(partition, why, "passed over a checkpoint");
                unusable.get_or_insert(why);
                continue;
            }
            let start = Instant::now();
            match self.place.get(checkpoint, &into, &stop) {
                Ok(bytes) => {
                    let ms = start.elapsed().as_millis() as u64;
                    tracing::info!(partition, position = at, bytes, ms, "fetched a checkpoint");
                    return Ok(Some(into));
                }
                Err(error @ ObjectsError::Damaged { .. }) => {
                    tracing::error!(partition, %error, "passed over a checkpoint");
                    self.failed();
                    unusable.get_or_insert(error.to_string());
                }
                Err(error) => return Err(lacking(error)),
            }
        }
        if is_needed {
            let count = listed.len();
            let newest = unusable.map_or(String::new(), |why| format!("; of the newest: {why}"));
            return Err(Lacking::StandStill(format!(
                "Kafka has the offsets from {first}, the store goes to before {here}, and of {count} checkpoints \
                 none can be used{newest}"
            )));
        }
        Ok(None)
    }

    /// Makes one whenever it is due, until the partition goes.
    pub(super) fn keep_up(&self, store: &Store, inbox: &Inbox) {
        let interval = self.shared.node.checkpoint_interval;
        // Those of a node are not all due at once.
        let share = f64::from(self.partition + 1) / f64::from(self.shared.partitions.max(1));
        let mut pause = interval.mul_f64(share.min(1.0));
        while !inbox.ends_within(pause) {
            pause = TURN_INTERVAL;
            let Some(turn) = self.shared.checkpointing.try_lock() else {
                continue;
            };
            pause = interval;
            let stop = || inbox.ended().is_some();
            self.make(store, &stop);
            if let Err(error) = self.place.prune(&stop)
                && !stop()
            {
                self.failed();
                tracing::error!(partition = self.partition, %error, "checkpoints were not pruned");
            }
            drop(turn);
        }
    }

    /// Makes a last one, if that is quick, and ends.
    pub(super) fn end(&self, store: &Store, inbox: &Inbox) {
        if inbox.ended() == Some(End::InOrder) {
            let give_up = Instant::now() + LAST_TIME_MAX;
            self.make(store, &|| Instant::now() >= give_up);
        }
        let metrics = self.shared.store.metrics.cluster();
        let label = [self.partition.to_string()];
        for gauge in [&metrics.checkpoint_time, &metrics.checkpoint_position] {
            let _may_never_have_been_set = gauge.remove_label_values(&[&label[0]]);
        }
    }

    fn make(&self, store: &Store, stop: &(dyn Fn() -> bool + Sync)) {
        let partition = self.partition;
        let (start, started) = (Instant::now(), SystemTime::now());
        let before = store.position().unwrap_or_default();
        match self.place.put(store, stop) {
            Ok(put) => {
                let metrics = self.shared.store.metrics.cluster();
                // Where nothing is to be sent, another process has made one of all that was here.
                let position = put.map_or(before, |put| put.position);
                let gauge = &metrics.checkpoint_position;
                let gauge = gauge.with_label_values(&[partition.to_string()]);
                gauge.set(position as i64);
                if let Some(put) = put {
                    metrics.checkpoint_bytes.inc_by(put.bytes_sent);
                    metrics.checkpoint_files.inc_by(put.files_sent);
                    tracing::info!(
                        partition,
                        position = put.position,
                        files = put.files,
                        bytes = put.bytes,
                        files_sent = put.files_sent,
                        bytes_sent = put.bytes_sent,
                        ms = start.elapsed().as_millis() as u64,
                        "made a checkpoint"
                    );
                }
                self.set_time(started);
            }
            Err(ObjectsError::Stopped) => {
                tracing::debug!(partition, "a checkpoint was broken off");
            }
            Err(error) => {
                self.failed();
                tracing::error!(partition, %error, "a checkpoint was not made");
            }
        }
    }

    fn failed(&self) {
        self.shared
            .store
            .metrics
            .cluster()
            .checkpoint_failures
            .inc();
    }

    fn set_time(&self, at: SystemTime) {
        let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let gauge = &self.shared.store.metrics.cluster().checkpoint_time;
        let gauge = gauge.with_label_values(&[self.partition.to_string()]);
        gauge.set(seconds as i64);
    }
}

/// A name next to `path` that nothing is opened under.
fn beside(path: &Path, what: &str) -> PathBuf {
    path.with_extension(format!("{what}{INCOMPLETE}"))
}

/// Puts `new`, which is complete, into the place of `path`. A kill leaves the one there, or the other, or none,
/// and never a part of one.
fn replace(path: &Path, new: &Path) -> std::io::Result<()> {
    let old = beside(path, "old");
    let absent = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(e),
    };
    fs::remove_dir_all(&old).or_else(absent)?;
    fs::rename(path, &old).or_else(absent)?;
    durable::rename(new, path)?;
    fs::remove_dir_all(&old).or_else(absent)
}
