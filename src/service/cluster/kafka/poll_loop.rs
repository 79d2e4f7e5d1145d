//! The consumer's thread: polls the client, and calls the handler.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaError as RdKafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};

use super::KafkaError;
use super::consumer::{
    Assigned, Client, ConsumedMessage, ConsumerState, Control, Handler, Rebalance,
};
use super::error::with_context;
use flow::{Offset, Partition};

/// Maximum size of one handover of messages, which a store applies together.
const HANDOVER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest wait for messages before the loop checks whether it has to stop.
const POLL_TIME_MAX: Duration = Duration::from_millis(100);
/// Interval between commits of offsets. They are for tools that show the group's lag; the service does not read them.
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);
/// Longest wait for the coordinator before a commit is skipped.
const COMMIT_TIME_MAX: Duration = Duration::from_secs(1);
/// Pause before a leader that did not report its offsets is queried again; other partitions are read meanwhile.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// If the client has not fetched a started partition for this long, it is started again.
const STOPPED_TIME_MAX: Duration = Duration::from_secs(2);
/// Time for the group to notice a changed subscription, before it is changed back.
const SUBSCRIPTION_TIME: Duration = Duration::from_secs(5);
/// A leader whose end is before the next offset may have been replaced without noticing. If it reports the same for
/// this long, the partition counts as truncated.
pub const TRUNCATION_TIME_MIN: Duration = Duration::from_secs(30);

const CONTEXT: &str = "reading from Kafka";

/// The loop. The handler is dropped first, then the client, which closes its connections.
pub(super) struct PollLoop<H> {
    handler: H,
    client: Arc<Client>,
    control: Control,
    /// When the subscription was changed, until it is changed back.
    subscribed_to_more: Option<Instant>,
}

impl<H> Drop for PollLoop<H> {
    /// Even after a panic of the handler; otherwise the client would wait for the loop forever.
    fn drop(&mut self) {
        self.control.state.closing.cancel();
    }
}

impl<H: Handler> PollLoop<H> {
    pub(super) fn new(client: Arc<Client>, handler: H, control: Control) -> PollLoop<H> {
        PollLoop {
            handler,
            client,
            control,
            subscribed_to_more: None,
        }
    }

    pub(super) fn run(&mut self) {
        let client = self.client.clone();
        let mut committed = Instant::now();
        let mut broken = false;
        while !broken && !self.state().stop.is_cancelled() {
            let (messages, error) = fetch(&client);
            for (partition, messages) in messages {
                self.hand_over(partition, &messages);
            }
            for rebalance in self.state().take_rebalances() {
                match rebalance {
                    Rebalance::Assigned(list) => self.assigned(&list),
                    Rebalance::Revoked(list) => self.revoked(&list),
                }
            }
            self.restart_stopped();
            self.start_requested();
            self.change_subscription();
            if committed.elapsed() >= COMMIT_INTERVAL {
                committed = Instant::now();
                self.commit();
            }
            broken = error.is_some_and(|error| self.report(&error));
        }
        // Not under the lock: the handler waits for threads that may be starting a partition.
        let rest = std::mem::take(&mut *self.state().assignment());
        let rest: Vec<_> = rest.into_keys().collect();
        self.notify_revoked(&rest, broken);
    }

    fn state(&self) -> Arc<ConsumerState> {
        self.control.state.clone()
    }

    fn hand_over(&mut self, partition: Partition, fetched: &[BorrowedMessage<'_>]) {
        let position = self
            .state()
            .assignment()
            .get(&partition)
            .and_then(|o| o.progress.position);
        let Some(position) = position else { return };
        let mut messages = Vec::with_capacity(fetched.len());
        for message in fetched {
            let Ok(offset) = Offset::try_from(message.offset()) else {
                // Not expected: the client returns no messages without an offset.
                return self.handler.failed(KafkaError::BadOffset {
                    context: CONTEXT,
                    partition,
                    offset: message.offset(),
                });
            };
            if offset >= position {
                messages.push(ConsumedMessage {
                    offset,
                    time_s: message.timestamp().to_millis().map_or(0, seconds),
                    key: message.key(),
                    payload: message.payload().unwrap_or_default(),
                });
            }
        }
        let Some(last) = messages.last() else { return };
        let Ok(next) = last.offset.next() else {
            return self.handler.failed(KafkaError::BadOffset {
                context: CONTEXT,
                partition,
                offset: last.offset.as_i64(),
            });
        };
        self.handler.messages(&self.control, partition, &messages);
        if let Some(assigned) = self.state().assignment().get_mut(&partition) {
            assigned.progress.position = Some(next);
        }
    }

    /// Passes only those partitions to the client whose start is known. For the group, the others are assigned too.
    fn assigned(&mut self, list: &TopicPartitionList) {
        let mut ready = Vec::new();
        for partition in partitions(list, &self.state().topic) {
            // Before the handler is called, so that a start from another thread finds it.
            (self.state().assignment()).insert(partition, Assigned::default());
            // The client remembers a pause from an earlier assignment.
            self.control.resume(partition);
            let start = self.handler.assigned(partition);
            ready.extend(start.map(|offset| (partition, offset)));
        }
        self.start(ready);
    }

    /// Starts to read partitions from offsets. A partition whose offset is out of range is not read; if the leader does
    /// not report its range, the start is retried later.
    fn start(&mut self, mut starts: Vec<(Partition, Offset)>) {
        let state = self.state();
        starts.retain(|(partition, offset)| {
            let is_in_range = self.confirm_in_range(*partition, *offset);
            if is_in_range.is_none() {
                self.start_later(*partition, *offset);
            }
            is_in_range == Some(true)
        });
        let mut list = TopicPartitionList::new();
        for (partition, offset) in &starts {
            add(&mut list, &state, *partition, *offset);
        }
        if let Err(error) = self.client.incremental_assign(&list) {
            self.handler
                .failed(with_context("assigning partitions")(error));
            for (partition, offset) in starts {
                self.start_later(partition, offset);
            }
            return;
        }
        for (partition, offset) in starts {
            if let Some(assigned) = state.assignment().get_mut(&partition) {
                assigned.progress.position = Some(offset);
            }
        }
    }

    fn start_later(&self, partition: Partition, offset: Offset) {
        if let Some(assigned) = self.state().assignment().get_mut(&partition) {
            assigned.start_at = Some(offset);
            assigned.not_before = Some(Instant::now() + RETRY_INTERVAL);
        }
    }

    fn revoked(&mut self, list: &TopicPartitionList) {
        let lost = self.client.assignment_lost();
        let state = self.state();
        let mut started = TopicPartitionList::new();
        let partitions: Vec<_> = partitions(list, &state.topic).collect();
        for &partition in &partitions {
            let assigned = state.assignment().remove(&partition);
            if assigned.is_some_and(|assigned| assigned.progress.position.is_some()) {
                started.add_partition(&state.topic, partition.get());
            }
        }
        self.notify_revoked(&partitions, lost);
        if let Err(error) = self.client.incremental_unassign(&started) {
            self.handler
                .failed(with_context("unassigning partitions")(error));
        }
    }

    fn notify_revoked(&mut self, partitions: &[Partition], lost: bool) {
        match lost {
            true => self.handler.lost(partitions),
            false => self.handler.revoked(partitions),
        }
    }

    /// Starts the partitions for which [`Control::start`] was called.
    fn start_requested(&mut self) {
        let state = self.state();
        let mut starts = Vec::new();
        for (partition, assigned) in state.assignment().iter_mut() {
            if assigned.not_before.is_some_and(|at| Instant::now() < at) {
                continue;
            }
            let start_at = assigned
                .start_at
                .take()
                .filter(|_| assigned.progress.position.is_none());
            starts.extend(start_at.map(|offset| (*partition, offset)));
        }
        if !starts.is_empty() {
            self.start(starts);
        }
    }

    /// Whether a store can continue from `offset`; `None` to retry later. It queries the leader, since the end that the
    /// client remembers may be from an earlier assignment, and sums that reach it may lack flows.
    fn confirm_in_range(&mut self, partition: Partition, offset: Offset) -> Option<bool> {
        let Some((first, end)) = self.control.range(partition) else {
            // A truncation counts only if the leader reports it without interruption.
            if let Some(assigned) = self.state().assignment().get_mut(&partition) {
                assigned.ahead_since = None;
            }
            return None;
        };
        // The end of the partition at its assignment.
        if let Some(assigned) = self.state().assignment().get_mut(&partition) {
            assigned.progress.end = assigned.progress.end.max(Some(end));
            if offset <= end {
                assigned.ahead_since = None;
            } else if (assigned.ahead_since.get_or_insert_with(Instant::now)).elapsed()
                < TRUNCATION_TIME_MIN
            {
                tracing::warn!(
                    %partition,
                    %offset,
                    %end,
                    "broker has fewer messages than were counted; querying again"
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

    /// Subscribes to one more topic for a while, if [`Control::request_assignment`] was called. Its partitions are never
    /// read here.
    fn change_subscription(&mut self) {
        let state = self.state();
        let topics = match self.subscribed_to_more {
            Some(since) if since.elapsed() < SUBSCRIPTION_TIME => return,
            Some(_) => vec![&*state.topic],
            None if state.assignment_requested.swap(false, Ordering::Relaxed) => {
                vec![&*state.topic, &*state.owners_topic]
            }
            None => return,
        };
        self.subscribed_to_more = (topics.len() > 1).then(Instant::now);
        if let Err(error) = self.client.subscribe(&topics) {
            tracing::warn!(%error, "subscription not changed");
        }
    }

    /// Restarts partitions that the client has stopped fetching: either their next message was deleted, which the
    /// restart detects, or their leader was wrong about its range, as one that has just started may be.
    fn restart_stopped(&mut self) {
        let state = self.state();
        let mut list = TopicPartitionList::new();
        for (partition, assigned) in state.assignment().iter_mut() {
            let is_stopped =
                (assigned.stopped_since).is_some_and(|at| at.elapsed() >= STOPPED_TIME_MAX);
            if is_stopped && let Some(position) = assigned.progress.position.take() {
                tracing::warn!(%partition, %position, "fetching stopped; starting again");
                assigned.stopped_since = None;
                assigned.start_at = Some(position);
                // A rebalance that arrived meanwhile is handled first.
                assigned.not_before = Some(Instant::now() + POLL_TIME_MAX);
                list.add_partition(&state.topic, partition.get());
            }
        }
        if list.count() > 0
            && let Err(error) = self.client.incremental_unassign(&list)
        {
            self.handler
                .failed(with_context("stopping partitions")(error));
        }
    }

    /// Reports an error to the handler. Returns whether the loop has to end.
    fn report(&mut self, error: &RdKafkaError) -> bool {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) {
            // It does not name its partition, whose fetching stops: see `restart_stopped`.
            tracing::warn!(%error, "offset not in Kafka");
            return false;
        }
        let error = KafkaError::classify(CONTEXT, error);
        let broken = matches!(error, KafkaError::Fatal { .. });
        // Temporary errors are logged by the client.
        if !error.is_temporary() {
            self.handler.failed(error);
        }
        broken
    }

    /// Commits positions, if the group's coordinator responds. A commit that waits for the coordinator may arrive after
    /// the session has ended, and the coordinator then fences a static member.
    fn commit(&self) {
        let state = self.state();
        let mut list = TopicPartitionList::new();
        for (partition, assigned) in state.assignment().iter() {
            if let Some(position) = assigned.progress.position {
                add(&mut list, &state, *partition, position);
            }
        }
        if list.count() > 0
            && self
                .client
                .committed_offsets(list.clone(), COMMIT_TIME_MAX)
                .is_ok()
        {
            let _only_for_display = self.client.commit(&list, CommitMode::Async);
        }
    }
}

fn seconds(millis: i64) -> u64 {
    u64::try_from(millis).unwrap_or_default() / 1_000
}

type Fetched<'a> = BTreeMap<Partition, Vec<BorrowedMessage<'a>>>;

/// Fetches messages, waiting for the first. Returns early if there is an error.
fn fetch(client: &Client) -> (Fetched<'_>, Option<RdKafkaError>) {
    let mut messages = Fetched::new();
    let mut bytes = 0;
    let mut wait = POLL_TIME_MAX;
    while bytes < HANDOVER_BYTES_MAX {
        match client.poll(wait) {
            Some(Ok(message)) => {
                bytes += message.payload_len();
                match Partition::try_from(message.partition()) {
                    Ok(partition) => messages.entry(partition).or_default().push(message),
                    // Not expected: the client returns messages of assigned partitions only.
                    Err(error) => tracing::error!(%error, "message from Kafka ignored"),
                }
            }
            Some(Err(error)) => return (messages, Some(error)),
            None => break,
        }
        wait = Duration::ZERO;
    }
    (messages, None)
}

/// The partitions of `topic` in a rebalance.
fn partitions<'a>(
    list: &'a TopicPartitionList,
    topic: &str,
) -> impl Iterator<Item = Partition> + use<'a> {
    let elements = list.elements_for_topic(topic).into_iter();
    elements.filter_map(|element| {
        // Not expected: the group assigns partitions of the topic only.
        let invalid = |error: &_| tracing::error!(%error, "assignment of a partition ignored");
        let partition = Partition::try_from(element.partition());
        partition.inspect_err(invalid).ok()
    })
}

fn add(list: &mut TopicPartitionList, state: &ConsumerState, partition: Partition, offset: Offset) {
    let offset = rdkafka::Offset::Offset(offset.as_i64());
    // Fails for negative offsets only.
    let _added = list.add_partition_offset(&state.topic, partition.get(), offset);
}
