//! Checkpoints of a partition: made at an interval, and downloaded by a node that does not have the partition's store, or
//! whose store lacks messages that Kafka has deleted. Nothing else waits for them: failures are logged and counted, and
//! retried when the next checkpoint is due.

mod objects;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

use super::NodeState;
use super::fetch_queue::{FetchQueue, PartitionEnd};
use super::kafka::{Control, TRUNCATION_TIME_MIN, Truncation};
use crate::store::{INCOMPLETE, Store};
use agent::durable;
use flow::{Offset, Partition};
use objects::PartitionCheckpoints;
pub use objects::{CheckpointError, CheckpointStore};

/// A store that lags by less catches up from Kafka. With batches of a thousand flows, that is about a gigabyte.
const LAG_MESSAGES_MAX: u64 = 20_000;
/// Maximum time for the last checkpoint of a revoked partition, for which the next owner waits.
const LAST_CHECKPOINT_TIME_MAX: Duration = Duration::from_secs(2);
/// Interval between attempts to download a checkpoint that is needed to open the partition.
const DOWNLOAD_INTERVAL: Duration = Duration::from_secs(5);
/// Interval between checks whether another partition's checkpoint is done.
const TURN_INTERVAL: Duration = Duration::from_millis(200);

/// The checkpoints of one partition, and its store.
pub(super) struct Checkpoints<'a> {
    state: &'a NodeState,
    partition: Partition,
    remote: PartitionCheckpoints,
}

/// The reason why no checkpoint was downloaded.
enum NoCheckpoint {
    /// None is needed: Kafka has everything that the store lacks.
    NotNeeded(CheckpointError),
    /// One is needed, and the cause may be temporary.
    Retry(String),
    /// A checkpoint includes more than Kafka has. The broker that reported this may have been partitioned from the
    /// others without noticing.
    AheadOfKafka(Truncation),
    /// One is needed, and an operator has to act.
    Fatal(String),
}

impl<'a> Checkpoints<'a> {
    pub(super) fn new(
        state: &'a NodeState,
        partition: Partition,
        remote: PartitionCheckpoints,
    ) -> Checkpoints<'a> {
        Checkpoints {
            state,
            partition,
            remote,
        }
    }

    /// Opens the store with `open`; if a checkpoint is needed, or much newer, it replaces the store first. Returns `None`
    /// if the partition is revoked or lost before that. Nothing else uses the store that is replaced, since it is
    /// published after this.
    pub(super) fn open_newest(
        &self,
        path: &Path,
        queue: &FetchQueue,
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
            let position = match &store {
                Some(store) => Some(position(store)?),
                None => None,
            };
            let missing = match self.download(path, position, queue, control) {
                Ok(None) => break,
                Ok(Some(downloaded)) => {
                    drop(store.take());
                    replace(path, &downloaded).map_err(|e| format!("{}: {e}", path.display()))?;
                    let metrics = self.state.store.metrics.cluster();
                    metrics.checkpoint_restores.inc();
                    break;
                }
                Err(missing) => missing,
            };
            if queue.ended().is_some() {
                return Ok(None);
            }
            self.count_failure();
            match missing {
                NoCheckpoint::NotNeeded(error) => {
                    tracing::error!(%partition, %error, "no checkpoint; Kafka has what is needed");
                    break;
                }
                NoCheckpoint::Retry(why) => {
                    ahead_since = None;
                    tracing::error!(%partition, why, "waiting for a checkpoint");
                    if queue.ends_within(DOWNLOAD_INTERVAL) {
                        return Ok(None);
                    }
                }
                NoCheckpoint::AheadOfKafka(truncation) => {
                    if ahead_since.get_or_insert_with(Instant::now).elapsed() >= TRUNCATION_TIME_MIN
                    {
                        self.state.owners.report_truncation(truncation);
                        return Err(truncation.to_string());
                    }
                    if queue.ends_within(DOWNLOAD_INTERVAL) {
                        return Ok(None);
                    }
                }
                NoCheckpoint::Fatal(why) => return Err(why),
            }
        }
        // A download that failed may have left a directory.
        let _rarely_there = fs::remove_dir_all(sibling(path, "new"));
        self.set_time(SystemTime::now());
        match store {
            None => open(),
            some => Ok(some),
        }
    }

    /// Downloads the newest usable checkpoint, if it is needed or much newer than the store, which is at `position`.
    /// Returns its directory.
    fn download(
        &self,
        path: &Path,
        position: Option<Offset>,
        queue: &FetchQueue,
        control: &Control,
    ) -> Result<Option<PathBuf>, NoCheckpoint> {
        let partition = self.partition;
        let Some((first, end)) = control.range(partition) else {
            return Err(NoCheckpoint::Retry(
                "no broker reports the offsets that Kafka has".into(),
            ));
        };
        let due = position.unwrap_or(Offset::ZERO);
        let is_needed = due < first;
        // The usual case. It does not wait for the object store.
        if position.is_some() && !is_needed && end.since(due) <= LAG_MESSAGES_MAX {
            return Ok(None);
        }
        let missing = |error: CheckpointError| match error {
            CheckpointError::WrongIdentity { .. } if is_needed || position.is_none() => {
                NoCheckpoint::Fatal(error.to_string())
            }
            error if is_needed => NoCheckpoint::Retry(error.to_string()),
            error => NoCheckpoint::NotNeeded(error),
        };
        let stop = queue.stop_token();
        let listed = self.remote.list(stop).map_err(missing)?;
        let into = sibling(path, "new");
        let mut unusable = None;
        for checkpoint in &listed {
            let at = checkpoint.position;
            if at > end {
                return Err(NoCheckpoint::AheadOfKafka(Truncation {
                    partition,
                    sums_to: at,
                    kafka_to: end,
                }));
            }
            let is_better = position.is_none() || at.since(due) > LAG_MESSAGES_MAX;
            if !is_needed && !is_better {
                return Ok(None);
            }
            if at < first {
                let why = format!("its position is {at}, and Kafka has {first} to before {end}");
                tracing::warn!(%partition, why, "skipped a checkpoint");
                unusable.get_or_insert(why);
                continue;
            }
            let start = Instant::now();
            match self.remote.download(checkpoint, &into, stop) {
                Ok(bytes) => {
                    let ms = start.elapsed().as_millis() as u64;
                    tracing::info!(%partition, position = %at, bytes, ms, "downloaded a checkpoint");
                    return Ok(Some(into));
                }
                Err(error @ CheckpointError::Damaged { .. }) => {
                    tracing::error!(%partition, %error, "skipped a checkpoint");
                    self.count_failure();
                    unusable.get_or_insert(error.to_string());
                }
                Err(error) => return Err(missing(error)),
            }
        }
        if is_needed {
            let count = listed.len();
            let newest = unusable.map_or(String::new(), |why| format!("; of the newest: {why}"));
            return Err(NoCheckpoint::Fatal(format!(
                "Kafka has the offsets from {first}, the store goes to before {due}, and of {count} checkpoints \
                 none can be used{newest}"
            )));
        }
        Ok(None)
    }

    /// Makes checkpoints whenever they are due, until the partition is revoked or lost.
    pub(super) fn run(&self, store: &Store, queue: &FetchQueue) {
        let interval = self.state.config.checkpoint_interval;
        // Spread over the interval, so that the partitions are not all due at the same time.
        let number = f64::from(self.partition.get()) + 1.0;
        let share = number / f64::from(self.state.partitions.get());
        let mut pause = interval.mul_f64(share.min(1.0));
        while !queue.ends_within(pause) {
            pause = TURN_INTERVAL;
            let Some(turn) = self.state.checkpointing.try_lock() else {
                continue;
            };
            pause = interval;
            let stop = queue.stop_token();
            self.upload(store, stop);
            if let Err(error) = self.remote.prune(stop)
                && !stop.is_cancelled()
            {
                self.count_failure();
                tracing::error!(partition = %self.partition, %error, "checkpoints not pruned");
            }
            drop(turn);
        }
    }

    /// Makes a last checkpoint, if that takes less than [`LAST_CHECKPOINT_TIME_MAX`], and removes the partition's gauges.
    pub(super) fn finish(&self, store: &Store, queue: &FetchQueue) {
        if queue.ended() == Some(PartitionEnd::Revoked) {
            let stop = CancellationToken::new();
            let limited = self.remote.limited(&stop, LAST_CHECKPOINT_TIME_MAX);
            self.upload(store, limited.token());
        }
        let metrics = self.state.store.metrics.cluster();
        let label = [self.partition.to_string()];
        for gauge in [&metrics.checkpoint_time, &metrics.checkpoint_position] {
            let _may_never_have_been_set = gauge.remove_label_values(&[&label[0]]);
        }
    }

    fn upload(&self, store: &Store, stop: &CancellationToken) {
        let partition = self.partition;
        let (start, started) = (Instant::now(), SystemTime::now());
        let before = position(store).ok();
        match self.remote.upload(store, stop) {
            Ok(uploaded) => {
                let metrics = self.state.store.metrics.cluster();
                // If nothing was uploaded, another process has made a checkpoint with the same messages.
                if let Some(position) = uploaded.map(|uploaded| uploaded.position).or(before) {
                    let gauge = &metrics.checkpoint_position;
                    let gauge = gauge.with_label_values(&[partition.to_string()]);
                    gauge.set(position.as_i64());
                }
                if let Some(uploaded) = uploaded {
                    metrics.checkpoint_bytes.inc_by(uploaded.bytes_sent);
                    metrics.checkpoint_files.inc_by(uploaded.files_sent);
                    tracing::info!(
                        %partition,
                        position = %uploaded.position,
                        files = uploaded.files,
                        bytes = uploaded.bytes,
                        files_sent = uploaded.files_sent,
                        bytes_sent = uploaded.bytes_sent,
                        ms = start.elapsed().as_millis() as u64,
                        "made a checkpoint"
                    );
                }
                self.set_time(started);
            }
            Err(CheckpointError::Stopped) => {
                tracing::debug!(%partition, "checkpoint stopped");
            }
            Err(error) => {
                self.count_failure();
                tracing::error!(%partition, %error, "checkpoint failed");
            }
        }
    }

    fn count_failure(&self) {
        let metrics = self.state.store.metrics.cluster();
        metrics.checkpoint_failures.inc();
    }

    fn set_time(&self, at: SystemTime) {
        let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let gauge = &self.state.store.metrics.cluster().checkpoint_time;
        let gauge = gauge.with_label_values(&[self.partition.to_string()]);
        gauge.set(seconds as i64);
    }
}

fn position(store: &Store) -> Result<Offset, String> {
    let position = store.position().map_err(|e| e.to_string())?;
    position.next_offset().map_err(|e| e.to_string())
}

/// A path next to `path`, at which no store is opened.
fn sibling(path: &Path, what: &str) -> PathBuf {
    path.with_extension(format!("{what}{INCOMPLETE}"))
}

/// Replaces `path` by `new`, which is complete. After a kill, `path` is the previous store, the new one, or absent, but
/// never incomplete.
fn replace(path: &Path, new: &Path) -> std::io::Result<()> {
    let old = sibling(path, "old");
    let absent = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(e),
    };
    fs::remove_dir_all(&old).or_else(absent)?;
    fs::rename(path, &old).or_else(absent)?;
    durable::rename(new, path)?;
    fs::remove_dir_all(&old).or_else(absent)
}
