//! The consumer's thread: polls the client, and calls the handler.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaError as Source, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::KafkaError;
use super::consumer::{Change, Client, Control, Handler, Owned, Record, Shared};
use super::error::failed;

/// Handed over at a time, if so much is there: a group that a store commits together.
const HANDOVER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long the thread waits for messages before it looks whether it is to stop.
const POLL: Duration = Duration::from_millis(100);
/// Between commits to the brokers. They are for those who look at the group's lag; nothing is read back.
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);
/// A coordinator that does not answer by then gets no commit.
const COMMIT_MAX: Duration = Duration::from_secs(1);
/// A question to a broker that is not answered is asked again, after a while in which other partitions are read.
const ASK_INTERVAL: Duration = Duration::from_secs(2);
/// What the client does not read for so long although it was told to, is started again.
const STOPPED_MAX: Duration = Duration::from_secs(2);
/// A leader that has less than was read before may have been cut off and replaced, and not know it. For so long.
pub const AHEAD_MAX: Duration = Duration::from_secs(30);

const DOING: &str = "reading from Kafka";

/// What the thread has. The handler goes first, then the client, which leaves the brokers.
pub(super) struct Member<H> {
    handler: H,
    client: Arc<Client>,
    control: Control,
}

impl<H> Drop for Member<H> {
    /// Also after a panic of the handler: the client would wait for ever for the thread.
    fn drop(&mut self) {
        self.control.shared.closing.store(true, Ordering::Relaxed);
    }
}

impl<H: Handler> Member<H> {
    pub(super) fn new(client: Arc<Client>, handler: H, control: Control) -> Member<H> {
        Member {
            handler,
            client,
            control,
        }
    }

    pub(super) fn run(&mut self) {
        let client = self.client.clone();
        let mut committed = Instant::now();
        let mut broken = false;
        while !broken && !self.shared().stop.load(Ordering::Relaxed) {
            let (messages, error) = fetch(&client);
            for (partition, messages) in messages {
                self.hand_over(partition, &messages);
            }
            for change in self.shared().take_changes() {
                match change {
                    Change::Assigned(list) => self.assigned(&list),
                    Change::Revoked(list) => self.revoked(&list),
                }
            }
            self.start_stopped();
            self.start_wanted();
            if committed.elapsed() >= COMMIT_INTERVAL {
                committed = Instant::now();
                self.commit();
            }
            broken = error.is_some_and(|error| self.ends_with(&error));
        }
        // Not under the lock: the handler waits for threads that may be about to start a partition.
        let left = std::mem::take(&mut *self.shared().partitions());
        let left: Vec<_> = left.into_keys().collect();
        self.gone(&left, broken);
    }

    fn shared(&self) -> Arc<Shared> {
        self.control.shared.clone()
    }

    fn hand_over(&mut self, partition: i32, messages: &[BorrowedMessage<'_>]) {
        let position = self
            .shared()
            .partitions()
            .get(&partition)
            .and_then(|o| o.progress.position);
        let Some(position) = position else { return };
        let records: Vec<_> = messages
            .iter()
            .map(|message| Record {
                offset: u64::try_from(message.offset()).unwrap_or_default(),
                time_s: message.timestamp().to_millis().map_or(0, seconds),
                key: message.key(),
                payload: message.payload().unwrap_or_default(),
            })
            .filter(|record| record.offset >= position)
            .collect();
        let Some(last) = records.last() else { return };
        self.handler.records(&self.control, partition, &records);
        if let Some(owned) = self.shared().partitions().get_mut(&partition) {
            owned.progress.position = Some(last.offset + 1);
        }
    }

    /// The client is told of those partitions only whose start is known. The group counts the others as ours
    /// all the same.
    fn assigned(&mut self, list: &TopicPartitionList) {
        let mut ready = Vec::new();
        for partition in list.elements().iter().map(|e| e.partition()) {
            // First, so that a start from another thread finds it.
            (self.shared().partitions()).insert(partition, Owned::default());
            // The client remembers a pause from an earlier time.
            self.control.resume(partition);
            let start = self.handler.assigned(partition);
            ready.extend(start.map(|offset| (partition, offset)));
        }
        self.start(ready);
    }

    /// Reads partitions from offsets. Where an offset is out of range, its partition stands still; where the leader
    /// does not say, it is asked again later.
    fn start(&mut self, mut starts: Vec<(i32, u64)>) {
        let shared = self.shared();
        starts.retain(|(partition, offset)| {
            let is_in_range = self.is_in_range(*partition, *offset);
            if is_in_range.is_none() {
                self.start_later(*partition, *offset);
            }
            is_in_range == Some(true)
        });
        let mut list = TopicPartitionList::new();
        for (partition, offset) in &starts {
            add(&mut list, &shared, *partition, *offset);
        }
        if let Err(error) = self.client.incremental_assign(&list) {
            self.handler.failed(failed("taking partitions")(error));
            for (partition, offset) in starts {
                self.start_later(partition, offset);
            }
            return;
        }
        for (partition, offset) in starts {
            if let Some(owned) = shared.partitions().get_mut(&partition) {
                owned.progress.position = Some(offset);
            }
        }
    }

    fn start_later(&self, partition: i32, offset: u64) {
        if let Some(owned) = self.shared().partitions().get_mut(&partition) {
            owned.wanted = Some(offset);
            owned.not_before = Some(Instant::now() + ASK_INTERVAL);
        }
    }

    fn revoked(&mut self, list: &TopicPartitionList) {
        let lost = self.client.assignment_lost();
        let shared = self.shared();
        let mut started = TopicPartitionList::new();
        let partitions: Vec<_> = list.elements().iter().map(|e| e.partition()).collect();
        for &partition in &partitions {
            let owned = shared.partitions().remove(&partition);
            if owned.is_some_and(|owned| owned.progress.position.is_some()) {
                started.add_partition(&shared.topic, partition);
            }
        }
        self.gone(&partitions, lost);
        if let Err(error) = self.client.incremental_unassign(&started) {
            self.handler.failed(failed("giving up partitions")(error));
        }
    }

    fn gone(&mut self, partitions: &[i32], lost: bool) {
        match lost {
            true => self.handler.lost(partitions),
            false => self.handler.revoked(partitions),
        }
    }

    /// Starts the partitions for which [`Control::start`] has been called.
    fn start_wanted(&mut self) {
        let shared = self.shared();
        let mut starts = Vec::new();
        for (partition, owned) in shared.partitions().iter_mut() {
            if owned.not_before.is_some_and(|at| Instant::now() < at) {
                continue;
            }
            let wanted = owned
                .wanted
                .take()
                .filter(|_| owned.progress.position.is_none());
            starts.extend(wanted.map(|offset| (*partition, offset)));
        }
        if !starts.is_empty() {
            self.start(starts);
        }
    }

    /// Whether a store at `offset` can go on; `None` to ask again later. What the client believes to be the
    /// end will not do: it may be of an earlier time as owner, and sums that reach it are not all that was there.
    fn is_in_range(&mut self, partition: i32, offset: u64) -> Option<bool> {
        let Some((first, end)) = self.control.range(partition) else {
            // Only a leader that goes on saying it is believed.
            if let Some(owned) = self.shared().partitions().get_mut(&partition) {
                owned.ahead_since = None;
            }
            return None;
        };
        // What is read up to here, was there when the partition came to this node.
        if let Some(owned) = self.shared().partitions().get_mut(&partition) {
            owned.progress.end = owned.progress.end.max(Some(end));
            if offset <= end {
                owned.ahead_since = None;
            } else if (owned.ahead_since.get_or_insert_with(Instant::now)).elapsed() < AHEAD_MAX {
                tracing::warn!(
                    partition,
                    offset,
                    end,
                    "a broker has less than was counted, and is asked again"
                );
                return None;
            }
        }
        let is_in_range = (first..=end).contains(&offset);
        if !is_in_range {
            self.handler.failed(KafkaError::OutOfRange {
                partition,
                offset,
                first,
                end,
            });
        }
        Some(is_in_range)
    }

    /// Starts partitions again that the client has stopped: their next message has been deleted, which shows then, or
    /// their leader was wrong about what it has, as one may be that has just come up.
    fn start_stopped(&mut self) {
        let shared = self.shared();
        let mut list = TopicPartitionList::new();
        for (partition, owned) in shared.partitions().iter_mut() {
            let is_stopped = (owned.stopped_since).is_some_and(|at| at.elapsed() >= STOPPED_MAX);
            if is_stopped && let Some(position) = owned.progress.position.take() {
                tracing::warn!(
                    partition,
                    position,
                    "reading has stopped, and is begun again"
                );
                owned.stopped_since = None;
                owned.wanted = Some(position);
                // The group may have spoken meanwhile, and is heard first.
                owned.not_before = Some(Instant::now() + POLL);
                list.add_partition(&shared.topic, *partition);
            }
        }
        if list.count() > 0
            && let Err(error) = self.client.incremental_unassign(&list)
        {
            self.handler.failed(failed("stopping partitions")(error));
        }
    }

    /// Tells the handler of an error; whether it is the end.
    fn ends_with(&mut self, error: &Source) -> bool {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) {
            // It does not say of which partition; that one stops.
            tracing::warn!(%error, "Kafka has not what is due");
            return false;
        }
        let error = KafkaError::of(DOING, error);
        let broken = matches!(error, KafkaError::Broken { .. });
        // What passes by itself has been logged.
        if !error.is_temporary() {
            self.handler.failed(error);
        }
        broken
    }

    /// Only while the group's coordinator answers: a commit that has to wait for it may arrive when the
    /// session is over, and a static member is thrown out for that.
    fn commit(&self) {
        let shared = self.shared();
        let mut list = TopicPartitionList::new();
        for (partition, owned) in shared.partitions().iter() {
            if let Some(position) = owned.progress.position {
                add(&mut list, &shared, *partition, position);
            }
        }
        if list.count() > 0
            && self
                .client
                .committed_offsets(list.clone(), COMMIT_MAX)
                .is_ok()
        {
            let _only_for_display = self.client.commit(&list, CommitMode::Async);
        }
    }
}

fn seconds(millis: i64) -> u64 {
    u64::try_from(millis).unwrap_or_default() / 1_000
}

type Fetched<'a> = BTreeMap<i32, Vec<BorrowedMessage<'a>>>;

/// Takes what is there, waiting a little for the first. Ends early where something else has happened.
fn fetch(client: &Client) -> (Fetched<'_>, Option<Source>) {
    let mut messages = Fetched::new();
    let mut bytes = 0;
    let mut wait = POLL;
    while bytes < HANDOVER_BYTES_MAX {
        match client.poll(wait) {
            Some(Ok(message)) => {
                bytes += message.payload_len();
                messages
                    .entry(message.partition())
                    .or_default()
                    .push(message);
            }
            Some(Err(error)) => return (messages, Some(error)),
            None => break,
        }
        wait = Duration::ZERO;
    }
    (messages, None)
}

fn add(list: &mut TopicPartitionList, shared: &Shared, partition: i32, offset: u64) {
    let offset = Offset::Offset(i64::try_from(offset).unwrap_or(i64::MAX));
    // An error is for offsets below 0.
    let _added = list.add_partition_offset(&shared.topic, partition, offset);
}
