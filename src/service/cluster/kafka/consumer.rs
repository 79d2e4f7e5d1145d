//! A member of the consumer group: hands over what is in the partitions that it is given, in order, from
//! the offsets that their stores ask for.
//!
//! All of it happens on one thread: a handler is called for one thing at a time. What has been fetched of a
//! partition is handed over before the partition is taken away.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError as Source;
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;

use super::error::failed;
use super::member::Member;
use super::settings::{create, log_error};
use super::{KafkaError, Settings};

/// Fetched and not handed over yet, over all partitions.
const FETCHED_KIB_MAX: usize = 32 * 1024;
/// What is there of all partitions together is fetched when it is so much, or so old: an answer for each message
/// would cost more than what is in it.
const FETCH_BYTES_MIN: usize = 1 << 20;
const FETCH_WAIT_MS_MAX: u64 = 20;
/// Until the next look whether there is room for more.
const FETCH_BACKOFF_MS: u64 = 50;
/// By which a member hears that partitions are to move.
const HEARTBEAT_MS: u64 = 1_000;
/// A question to a broker that is not answered by then is left unanswered.
const ASK: Duration = Duration::from_secs(2);
/// Between the moments at which [`Progress`] is taken; the client knows no less than a second.
const STATISTICS_MS: u64 = 1_000;

/// A longer one than this, of a leader or of this process, may have cost the partition.
const SILENCE_MAX: Duration = Duration::from_secs(4);
/// After it, this node has heard from the group whether it is still a member.
const HEARTBEAT_AWAITED: Duration = Duration::from_secs(3);

/// What is done with partitions and what is in them. It is dropped when the consumer's thread ends,
/// also by a panic.
pub trait Handler: Send + 'static {
    /// The partition is this node's from now on. Returns the offset at which its store goes on, or `None`
    /// if that takes a while: then nothing is handed over until [`Control::start`] says it. All partitions
    /// wait while this runs, and while any other of these does.
    fn assigned(&mut self, partition: i32) -> Option<u64>;

    /// The next messages of a partition, in order, about 4 MiB at most. Offsets grow; they may have gaps.
    fn records(&mut self, control: &Control, partition: i32, records: &[Record<'_>]);

    /// Partitions go to other nodes, which get them when this returns; or the consumer was closed.
    fn revoked(&mut self, partitions: &[i32]);

    /// Partitions are gone already, and other nodes may have them: this one was not heard of for too long.
    fn lost(&mut self, partitions: &[i32]);

    /// Something is wrong that the operator should know. After [`KafkaError::OutOfRange`] the partition
    /// stands still; after [`KafkaError::Broken`] all of them are lost, and the thread ends.
    fn failed(&mut self, error: KafkaError);
}

/// A message, as a producer sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub offset: u64,
    /// When it was sent, by the clock of who sent it: seconds since the epoch.
    pub time_s: u64,
    pub key: Option<&'a [u8]>,
    pub payload: &'a [u8],
}

/// How far this node is with a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Everything before it has been handed over. `None` until it has started.
    pub position: Option<u64>,
    /// The partition's end, as the leader said last: the lag is what is between.
    pub end: Option<u64>,
    /// When something came last from the partition's leader, which answers many times a second as long as
    /// something is read from it. What is much older than that may be stale. After a silence, it stays as it
    /// was until the group has had the time to say whose the partition is.
    pub contact: Option<Instant>,
}

/// A partition that is this node's.
#[derive(Debug, Default)]
pub(super) struct Owned {
    pub(super) progress: Progress,
    /// An offset that it is to start from, and has not yet.
    pub(super) wanted: Option<u64>,
    /// The leader did not say where the partition ends, and is not asked again before then.
    pub(super) not_before: Option<Instant>,
    /// Since when the leader has less than is due.
    pub(super) ahead_since: Option<Instant>,
    /// Since when the client does not read it, although it was started. So it is after an error about its range,
    /// for ever, whoever erred.
    pub(super) stopped_since: Option<Instant>,
    /// When the leader was heard of last, also where that is not told yet.
    heard: Option<Instant>,
    /// What was heard after a silence is told from then on.
    suspect_until: Option<Instant>,
}

pub(super) type Partitions = BTreeMap<i32, Owned>;

/// What client, thread and controls share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) topic: String,
    partitions: Mutex<Partitions>,
    /// Changes of ownership that the thread has not dealt with yet.
    changes: Mutex<Vec<Change>>,
    pub(super) stop: AtomicBool,
    pub(super) closing: AtomicBool,
}

#[derive(Debug)]
pub(super) enum Change {
    Assigned(TopicPartitionList),
    Revoked(TopicPartitionList),
}

impl Shared {
    pub(super) fn partitions(&self) -> MutexGuard<'_, Partitions> {
        lock(&self.partitions)
    }

    pub(super) fn take_changes(&self) -> Vec<Change> {
        std::mem::take(&mut *lock(&self.changes))
    }

    fn list(&self, partition: i32) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition);
        list
    }
}

/// Nothing is left half done under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the client calls back, on the thread that polls it.
pub(super) struct Context(Arc<Shared>);

pub(super) type Client = BaseConsumer<Context>;

impl ClientContext for Context {
    fn error(&self, error: Source, reason: &str) {
        log_error(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        let Some(topic) = statistics.topics.get(&self.0.topic) else {
            return;
        };
        let now = Instant::now();
        for (partition, owned) in self.0.partitions().iter_mut() {
            let Some(seen) = topic.partitions.get(partition) else {
                continue;
            };
            let is_stopped = ["none", "stopped"].contains(&&*seen.fetch_state);
            owned.stopped_since = match owned.progress.position {
                Some(_) if is_stopped => owned.stopped_since.or(Some(now)),
                _ => None,
            };
            let progress = &mut owned.progress;
            // The statistics may still have the end of an earlier time as owner. Sums that are so far would be taken
            // for whole, so it counts only beside the one that the leader has named for the start.
            if progress.position.is_some() {
                progress.end = progress.end.max(u64::try_from(seen.hi_offset).ok());
            }
            let leader = statistics
                .brokers
                .values()
                .find(|b| b.nodeid == seen.leader);
            // Negative before the first answer over a new connection.
            let idle = leader.and_then(|b| u64::try_from(b.rxidle).ok());
            let contact = idle.and_then(|idle| now.checked_sub(Duration::from_micros(idle)));
            let Some(contact) = contact else { continue };
            // The partition may be another node's by now; the next heartbeat tells.
            if owned
                .heard
                .is_some_and(|before| contact.saturating_duration_since(before) > SILENCE_MAX)
            {
                owned.suspect_until = Some(now + HEARTBEAT_AWAITED);
            }
            owned.heard = owned.heard.max(Some(contact));
            if owned.suspect_until.is_none_or(|until| now >= until) {
                progress.contact = progress.contact.max(Some(contact));
            }
        }
    }
}

impl ConsumerContext for Context {
    /// The client waits until the list is assigned or given up. The thread does that, once it has handed
    /// over what it holds.
    fn rebalance(&self, client: &Client, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let assigned = code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.0.closing.load(Ordering::Relaxed) {
            // There is no thread any more; the handler has been told.
            let _closing = match assigned {
                true => client.incremental_assign(list),
                false => client.incremental_unassign(list),
            };
            return;
        }
        lock(&self.0.changes).push(match assigned {
            true => Change::Assigned(list.clone()),
            false => Change::Revoked(list.clone()),
        });
    }

    fn commit_callback(&self, result: Result<(), Source>, _: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::debug!(%error, "the group's lag is shown from older offsets");
        }
    }
}

/// What can be asked for from any thread, the handler's included. Clones are for the same consumer.
#[derive(Clone)]
pub struct Control {
    client: Weak<Client>,
    pub(super) shared: Arc<Shared>,
}

impl Control {
    /// Starts a partition from `offset`, for which [`Handler::assigned`] had no answer, or one that is out
    /// of range.
    pub fn start(&self, partition: i32, offset: u64) {
        if let Some(owned) = self.shared.partitions().get_mut(&partition) {
            owned.wanted = Some(offset);
        }
    }

    /// Hands over nothing of a partition from now on, but what is being handed over already. The others
    /// go on.
    pub fn pause(&self, partition: i32) {
        if let Some(client) = self.client.upgrade() {
            let _not_ours_any_more = client.pause(&self.shared.list(partition));
        }
    }

    /// Goes on with a partition that was paused.
    pub fn resume(&self, partition: i32) {
        if let Some(client) = self.client.upgrade() {
            let _not_ours_any_more = client.resume(&self.shared.list(partition));
        }
    }

    /// The offsets of a partition's messages: the first, and the end, which is behind the last. `None` where no
    /// broker says it. Blocks meanwhile.
    pub fn range(&self, partition: i32) -> Option<(u64, u64)> {
        let client = self.client.upgrade()?;
        let range = client.fetch_watermarks(&self.shared.topic, partition, ASK);
        let (first, end) = range.ok()?;
        Some((u64::try_from(first).ok()?, u64::try_from(end).ok()?))
    }

    /// The partitions that are this node's, and how far it is with each.
    pub fn progress(&self) -> BTreeMap<i32, Progress> {
        let partitions = self.shared.partitions();
        partitions.iter().map(|(p, o)| (*p, o.progress)).collect()
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Control").field(&self.progress()).finish()
    }
}

/// A member of the group. Dropping it revokes its partitions and ends its thread, but the group waits for
/// it to come back until its session ends: [`Settings::session_timeout`].
#[derive(Debug)]
pub struct Consumer {
    control: Control,
    thread: Option<JoinHandle<()>>,
}

impl Consumer {
    /// Joins the group that has the topic's name.
    ///
    /// # Errors
    /// An option that is wrong. Brokers that are away are waited for.
    pub fn join(settings: &Settings, handler: impl Handler) -> Result<Consumer, KafkaError> {
        let config = settings.client_by_default(
            &[
                ("fetch.min.bytes", &FETCH_BYTES_MIN.to_string()),
                ("fetch.wait.max.ms", &FETCH_WAIT_MS_MAX.to_string()),
            ],
            &[
                ("group.id", &settings.topic),
                // A node that restarts within its session keeps its partitions, and nobody else notices.
                ("group.instance.id", &settings.node),
                ("heartbeat.interval.ms", &HEARTBEAT_MS.to_string()),
                (
                    "session.timeout.ms",
                    &settings.session_timeout.as_millis().to_string(),
                ),
                // A change of members stops only the partitions that move.
                ("partition.assignment.strategy", "cooperative-sticky"),
                // Where to go on is in the stores. Guessing at an offset would lose or repeat batches.
                ("enable.auto.commit", "false"),
                ("enable.auto.offset.store", "false"),
                ("auto.offset.reset", "error"),
                ("check.crcs", "true"),
                ("queued.max.messages.kbytes", &FETCHED_KIB_MAX.to_string()),
                ("fetch.queue.backoff.ms", &FETCH_BACKOFF_MS.to_string()),
                ("statistics.interval.ms", &STATISTICS_MS.to_string()),
            ],
        );
        let shared = Arc::new(Shared {
            topic: settings.topic.clone(),
            ..Shared::default()
        });
        let client: Client = create(&config, Context(shared.clone()))?;
        let joined = client.subscribe(&[&settings.topic]);
        joined.map_err(failed("joining the group"))?;
        let client = Arc::new(client);
        let control = Control {
            client: Arc::downgrade(&client),
            shared,
        };
        let mut member = Member::new(client, handler, control.clone());
        let thread = std::thread::Builder::new()
            .name("kafka-consumer".into())
            .spawn(move || member.run())
            .map_err(|e| KafkaError::Settings {
                doing: "starting a thread",
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
        self.control.shared.stop.store(true, Ordering::Relaxed);
        let _a_panic_is_printed = self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_earlier_time_does_not_count_before_the_start() {
        let shared = Arc::new(Shared {
            topic: "flows".into(),
            ..Shared::default()
        });
        shared.partitions().insert(3, Owned::default());
        let context = Context(shared.clone());
        let told = |end: i64| {
            let mut statistics = Statistics::default();
            let topic = statistics.topics.entry("flows".into()).or_default();
            topic.partitions.entry(3).or_default().hi_offset = end;
            context.stats(statistics);
            shared.partitions()[&3].progress.end
        };
        assert_eq!(told(5), None);
        // What a start does.
        if let Some(owned) = shared.partitions().get_mut(&3) {
            owned.progress.end = Some(9);
            owned.progress.position = Some(5);
        }
        assert_eq!(told(5), Some(9));
        assert_eq!(told(12), Some(12));
    }
}
