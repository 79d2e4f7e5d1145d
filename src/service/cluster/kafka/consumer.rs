//! A member of the consumer group: passes the messages of its assigned partitions to a handler, in order, from the
//! offsets that the partitions' stores request.
//!
//! It runs on one thread, so calls of the handler never overlap. Fetched messages are handed over before their
//! partition is revoked.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError as RdKafkaError;
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use tokio_util::sync::CancellationToken;

use super::error::with_context;
use super::poll_loop::PollLoop;
use super::settings::{create, log_error};
use super::{KafkaError, KafkaSettings};
use flow::{Offset, Partition};

/// Maximum size of the messages that were fetched and not handed over yet, over all partitions.
const FETCHED_KIB_MAX: usize = 32 * 1024;
/// A broker responds to a fetch when it has this much of all partitions together, or after this time: a response for
/// each message would cost more than the message.
const FETCH_BYTES_MIN: usize = 1 << 20;
const FETCH_WAIT_MS_MAX: u64 = 20;
/// Pause before the next fetch when there is no room for more.
const FETCH_BACKOFF_MS: u64 = 50;
/// From the response to a heartbeat, a member learns that partitions are about to move.
const HEARTBEAT_MS: u64 = 1_000;
/// Longest wait for a broker's offsets.
const OFFSETS_TIME_MAX: Duration = Duration::from_secs(2);
/// Interval between updates of [`Progress`]. The client's minimum is one second.
const STATISTICS_MS: u64 = 1_000;

/// After a longer silence, of a leader or of this process, the partition may have been assigned to another node.
const GROUP_RECHECK_AFTER: Duration = Duration::from_secs(4);
/// Within this time after a silence, this node has learned from the group whether it is still a member.
const HEARTBEAT_TIME_MAX: Duration = Duration::from_secs(3);

/// Handles partitions and their messages. It is dropped when the consumer's thread ends, even by a panic.
pub trait Handler: Send + 'static {
    /// The partition is assigned to this node. Returns the offset from which to read it, or `None` if that is not
    /// known yet: then [`Control::start`] gives it later. All partitions wait while this or another method runs.
    fn assigned(&mut self, partition: Partition) -> Option<Offset>;

    /// The next messages of a partition, in order, about 4 MiB at most. Offsets grow; they may have gaps.
    fn messages(
        &mut self,
        control: &Control,
        partition: Partition,
        messages: &[ConsumedMessage<'_>],
    );

    /// Partitions are revoked. Other nodes are assigned them when this returns.
    fn revoked(&mut self, partitions: &[Partition]);

    /// Partitions were lost: the group did not hear from this node for too long, and other nodes may have them already.
    fn lost(&mut self, partitions: &[Partition]);

    /// Reports an error to the operator. After [`KafkaError::OutOfRange`] its partition is not read any more;
    /// after [`KafkaError::Fatal`] all partitions are lost, and the thread ends.
    fn failed(&mut self, error: KafkaError);
}

/// A message, as a producer sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsumedMessage<'a> {
    pub offset: Offset,
    /// When it was sent, by the sender's clock: seconds since the epoch.
    pub time_s: u64,
    pub key: Option<&'a [u8]>,
    pub payload: &'a [u8],
}

/// This node's progress in reading a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// All messages before it have been handed over. `None` until reading has started.
    pub position: Option<Offset>,
    /// The end of the partition, as its leader reported last. The lag is the difference.
    pub end: Option<Offset>,
    /// The time of the last contact with the partition's leader. It responds to fetches many times a second, so if this
    /// is much older, the progress may be stale. After a silence, it is not updated until the group has had time to
    /// revoke the partition.
    pub contact: Option<Instant>,
}

/// A partition that is assigned to this node.
#[derive(Debug, Default)]
pub(super) struct Assigned {
    pub(super) progress: Progress,
    /// The offset to start from, until reading has started.
    pub(super) start_at: Option<Offset>,
    /// The leader did not report the partition's end, and is not queried again before then.
    pub(super) not_before: Option<Instant>,
    /// The time since which the leader's end is before the next offset.
    pub(super) ahead_since: Option<Instant>,
    /// The time since which the client does not fetch it, although it was started. After an offset out of range, the
    /// client stops permanently, even if the broker was wrong.
    pub(super) stopped_since: Option<Instant>,
    /// The last contact with the leader, even if `Progress::contact` is not updated yet.
    last_contact: Option<Instant>,
    /// After a silence, `Progress::contact` is updated again from then on.
    suspect_until: Option<Instant>,
}

pub(super) type AssignedPartitions = BTreeMap<Partition, Assigned>;

/// State shared by the client's callbacks, the poll loop and the controls.
#[derive(Debug, Default)]
pub(super) struct ConsumerState {
    pub(super) topic: String,
    /// Another topic that every node may read; see [`Control::request_assignment`].
    pub(super) owners_topic: String,
    pub(super) assignment_requested: AtomicBool,
    assignment: Mutex<AssignedPartitions>,
    /// Rebalances that the poll loop has not handled yet.
    rebalances: Mutex<Vec<Rebalance>>,
    /// Ends the poll loop.
    pub(super) stop: CancellationToken,
    /// The poll loop has ended.
    pub(super) closing: CancellationToken,
}

#[derive(Debug)]
pub(super) enum Rebalance {
    Assigned(TopicPartitionList),
    Revoked(TopicPartitionList),
}

impl ConsumerState {
    pub(super) fn assignment(&self) -> MutexGuard<'_, AssignedPartitions> {
        self.assignment.lock()
    }

    pub(super) fn take_rebalances(&self) -> Vec<Rebalance> {
        std::mem::take(&mut *self.rebalances.lock())
    }

    fn list(&self, partition: Partition) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition.get());
        list
    }
}

/// Callbacks of the client, on the thread that polls it.
pub(super) struct Context(Arc<ConsumerState>);

pub(super) type Client = BaseConsumer<Context>;

impl ClientContext for Context {
    fn error(&self, error: RdKafkaError, reason: &str) {
        log_error(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        let Some(topic) = statistics.topics.get(&self.0.topic) else {
            return;
        };
        let now = Instant::now();
        for (partition, assigned) in self.0.assignment().iter_mut() {
            let Some(seen) = topic.partitions.get(&partition.get()) else {
                continue;
            };
            let is_stopped = ["none", "stopped"].contains(&&*seen.fetch_state);
            assigned.stopped_since = match assigned.progress.position {
                Some(_) if is_stopped => assigned.stopped_since.or(Some(now)),
                _ => None,
            };
            let progress = &mut assigned.progress;
            // The statistics may still have the end from an earlier assignment, and sums that reach it may lack flows.
            // So it counts only after the start, for which the leader has reported the current end.
            if progress.position.is_some() {
                progress.end = progress.end.max(Offset::try_from(seen.hi_offset).ok());
            }
            let leader = statistics
                .brokers
                .values()
                .find(|b| b.nodeid == seen.leader);
            // Negative before the first response over a new connection.
            let idle = leader.and_then(|b| u64::try_from(b.rxidle).ok());
            let contact = idle.and_then(|idle| now.checked_sub(Duration::from_micros(idle)));
            let Some(contact) = contact else { continue };
            // Another node may own the partition by now; the response to the next heartbeat shows it.
            if assigned.last_contact.is_some_and(|before| {
                contact.saturating_duration_since(before) > GROUP_RECHECK_AFTER
            }) {
                assigned.suspect_until = Some(now + HEARTBEAT_TIME_MAX);
            }
            assigned.last_contact = assigned.last_contact.max(Some(contact));
            if assigned.suspect_until.is_none_or(|until| now >= until) {
                progress.contact = progress.contact.max(Some(contact));
            }
        }
    }
}

impl ConsumerContext for Context {
    /// The client waits until the list is assigned or unassigned. The poll loop does that, after it has handed over the
    /// messages that it has.
    fn rebalance(&self, client: &Client, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let assigned = code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.0.closing.is_cancelled() {
            // The poll loop has ended, and the handler has been notified.
            let _closing = match assigned {
                true => client.incremental_assign(list),
                false => client.incremental_unassign(list),
            };
            return;
        }
        self.0.rebalances.lock().push(match assigned {
            true => Rebalance::Assigned(list.clone()),
            false => Rebalance::Revoked(list.clone()),
        });
    }

    fn commit_callback(&self, result: Result<(), RdKafkaError>, _: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::debug!(%error, "offsets not committed; tools show an older lag of the group");
        }
    }
}

/// Controls a consumer, from any thread, even from its handler.
#[derive(Clone)]
pub struct Control {
    client: Weak<Client>,
    pub(super) state: Arc<ConsumerState>,
}

impl Control {
    /// Starts to read a partition from `offset`, if [`Handler::assigned`] returned none, or one out of range.
    pub fn start(&self, partition: Partition, offset: Offset) {
        if let Some(assigned) = self.state.assignment().get_mut(&partition) {
            assigned.start_at = Some(offset);
        }
    }

    /// Pauses a partition. Messages that are being handed over still arrive.
    pub fn pause(&self, partition: Partition) {
        if let Some(client) = self.client.upgrade() {
            let _revoked_meanwhile = client.pause(&self.state.list(partition));
        }
    }

    /// Resumes a paused partition.
    pub fn resume(&self, partition: Partition) {
        if let Some(client) = self.client.upgrade() {
            let _revoked_meanwhile = client.resume(&self.state.list(partition));
        }
    }

    /// The offset of a partition's first message, and the one after its last. `None` if no broker reports them. Blocks.
    pub fn range(&self, partition: Partition) -> Option<(Offset, Offset)> {
        let client = self.client.upgrade()?;
        let range = client.fetch_watermarks(&self.state.topic, partition.get(), OFFSETS_TIME_MAX);
        let (first, end) = range.ok()?;
        Some((Offset::try_from(first).ok()?, Offset::try_from(end).ok()?))
    }

    /// Makes the group assign all partitions anew: those of its members stay where they are, and those without an owner get
    /// one.
    ///
    /// A group keeps its last assignment when static members come back within their session. If all of them died between
    /// the two halves of a cooperative rebalance, nobody has the partitions that were moving. A new assignment is made
    /// only if a member changes its subscription.
    pub fn request_assignment(&self) {
        self.state
            .assignment_requested
            .store(true, Ordering::Relaxed);
    }

    /// The progress of each assigned partition.
    pub fn progress(&self) -> BTreeMap<Partition, Progress> {
        let assignment = self.state.assignment();
        assignment.iter().map(|(p, a)| (*p, a.progress)).collect()
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Control").field(&self.progress()).finish()
    }
}

/// A member of the group. Dropping it revokes its partitions and ends its thread, but the group keeps them for it until
/// its session ends: [`KafkaSettings::session_timeout`].
#[derive(Debug)]
pub struct Consumer {
    control: Control,
    thread: Option<JoinHandle<()>>,
}

impl Consumer {
    /// Joins the group that has the topic's name. If the brokers are unavailable, the client waits for them.
    ///
    /// # Errors
    /// If an option is invalid.
    pub fn join(settings: &KafkaSettings, handler: impl Handler) -> Result<Consumer, KafkaError> {
        let config = settings.client_with_defaults(
            &[
                ("fetch.min.bytes", &FETCH_BYTES_MIN.to_string()),
                ("fetch.wait.max.ms", &FETCH_WAIT_MS_MAX.to_string()),
            ],
            &[
                ("group.id", &settings.topic),
                // Static membership: a node that restarts within its session keeps its partitions.
                ("group.instance.id", &settings.node),
                ("heartbeat.interval.ms", &HEARTBEAT_MS.to_string()),
                (
                    "session.timeout.ms",
                    &settings.session_timeout.as_millis().to_string(),
                ),
                // When members change, only partitions that move are interrupted.
                ("partition.assignment.strategy", "cooperative-sticky"),
                // Positions are in the stores. Another offset would lose or repeat batches.
                ("enable.auto.commit", "false"),
                ("enable.auto.offset.store", "false"),
                ("auto.offset.reset", "error"),
                ("check.crcs", "true"),
                ("queued.max.messages.kbytes", &FETCHED_KIB_MAX.to_string()),
                ("fetch.queue.backoff.ms", &FETCH_BACKOFF_MS.to_string()),
                ("statistics.interval.ms", &STATISTICS_MS.to_string()),
            ],
        );
        let state = Arc::new(ConsumerState {
            topic: settings.topic.clone(),
            owners_topic: settings.owners_topic(),
            ..ConsumerState::default()
        });
        let client: Client = create(&config, Context(state.clone()))?;
        let joined = client.subscribe(&[&settings.topic]);
        joined.map_err(with_context("joining the group"))?;
        let client = Arc::new(client);
        let control = Control {
            client: Arc::downgrade(&client),
            state,
        };
        let mut poll_loop = PollLoop::new(client, handler, control.clone());
        let thread = std::thread::Builder::new()
            .name("kafka-consumer".into())
            .spawn(move || poll_loop.run())
            .map_err(|e| KafkaError::Settings {
                context: "starting a thread",
                why: e.to_string(),
            })?;
        let thread = Some(thread);
        Ok(Consumer { control, thread })
    }

    pub fn control(&self) -> &Control {
        &self.control
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.control.state.stop.cancel();
        let _a_panic_is_printed = self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_earlier_assignment_does_not_count_before_the_start() {
        let state = Arc::new(ConsumerState {
            topic: "flows".into(),
            ..ConsumerState::default()
        });
        let three = Partition::try_from(3).unwrap();
        let offset = |number: i64| Some(Offset::try_from(number).unwrap());
        state.assignment().insert(three, Assigned::default());
        let context = Context(state.clone());
        let told = |end: i64| {
            let mut statistics = Statistics::default();
            let topic = statistics.topics.entry("flows".into()).or_default();
            topic.partitions.entry(3).or_default().hi_offset = end;
            context.stats(statistics);
            state.assignment()[&three].progress.end
        };
        assert_eq!(told(5), None);
        // As a start does.
        if let Some(assigned) = state.assignment().get_mut(&three) {
            assigned.progress.end = offset(9);
            assigned.progress.position = offset(5);
        }
        assert_eq!(told(5), offset(9));
        assert_eq!(told(12), offset(12));
    }
}
