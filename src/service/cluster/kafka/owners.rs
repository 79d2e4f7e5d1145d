//! The table of owners: which node owns which partition. It is read from a compacted topic of announcements, which also
//! keeps the number of the journal's partitions, which must never change, and the partitions that Kafka has truncated.
//!
//! The consumer group alone assigns partitions; announcements tell the other nodes. An owner announces itself when it
//! has opened a partition, and again every few seconds. **Epochs**: the announcement that starts an ownership has no
//! epoch, and its offset in the topic becomes the epoch; later announcements of the same ownership carry it. The
//! highest epoch wins, and within an epoch the latest announcement. So the epoch grows with each change of ownership,
//! whatever the clocks are, and even if the group is created anew.
//!
//! A node that was suspended and missed the revocation of a partition may announce itself after its successor. If it
//! announces its old epoch, that is lower than the successor's, and is ignored. If it starts a new epoch, the successor
//! sees that it was replaced, and starts another; then the first node learns from the group that it has lost the
//! partition, and stops. Until then, a query may reach the wrong node. So a node only serves partitions that it owns
//! and with whose leaders it had contact recently.
//!
//! A node sends its token to the peers that it queries. So announcements may be signed ([`Signer`]), and those without
//! a valid signature are rejected. Every node repeats the announcements that have to be kept permanently, so that they
//! outlive the token that signed them first, and messages that overwrite them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError as RdKafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use tokio_util::sync::CancellationToken;

use super::announcement::{Announcement, Ownership, Signed, Truncation};
use super::error::with_context;
use super::settings::{Log, create};
use super::{KafkaError, KafkaSettings, Producer};
use flow::{Offset, Partition, PartitionCount};

/// Maximum time for reading all announcements.
const READ_TIME_MAX: Duration = Duration::from_secs(10);
/// Longest wait for announcements before the thread checks whether it has to stop.
const POLL_TIME_MAX: Duration = Duration::from_millis(100);
/// Rejected announcements that are logged by name, and how much of a name.
const REJECTED_MAX: usize = 100;
const REJECTED_CHARS_MAX: usize = 200;

const CONTEXT: &str = "reading the topic of owners";

/// The node that owns a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub node: String,
    /// The URL at which peers reach it.
    pub url: String,
    /// Grows with each change of ownership: the offset of the announcement that started this one.
    pub epoch: Offset,
    /// The position of its sums when it was announced.
    pub offset: Offset,
}

/// Signs announcements.
pub trait Signer: fmt::Debug + Send + Sync {
    /// The signature of `text`; `None` if announcements are not signed.
    fn sign(&self, text: &str) -> Option<String>;

    /// Whether `signature` of `text` is a node's.
    fn verify(&self, text: &str, signature: Option<&str>) -> bool;
}

impl ConsumerContext for Log {}

type OwnersByPartition = BTreeMap<Partition, Owner>;

#[derive(Debug, Default)]
struct Table {
    owners: OwnersByPartition,
    /// The number that the first node announced.
    partitions: Option<PartitionCount>,
    truncations: BTreeMap<Partition, Truncation>,
    /// When the owner of a partition announced itself last, since this node has read the topic to its end.
    heard: BTreeMap<Partition, Instant>,
}

impl Table {
    /// The announcements that have to be kept permanently.
    fn permanent(&self) -> Vec<Announcement> {
        let journal = (self.partitions).map(|partitions| Announcement::Journal { partitions });
        let truncations = self.truncations.values().copied();
        let truncations = truncations.map(Announcement::Truncation);
        journal.into_iter().chain(truncations).collect()
    }
}

/// The table of owners, kept up to date by a thread.
#[derive(Debug)]
pub struct Owners {
    node: String,
    url: String,
    topic: String,
    producer: Producer,
    signer: Arc<dyn Signer>,
    table: Arc<Mutex<Table>>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
    opened: Instant,
}

impl Owners {
    /// Reads all announcements, and follows the topic from then on. This node announces itself with `url`. Blocks until
    /// the topic was read to its end.
    ///
    /// # Errors
    /// If the brokers are unavailable, the topic does not exist, or the journal had another number of partitions.
    pub fn open(
        settings: &KafkaSettings,
        url: &str,
        producer: &Producer,
        signer: Arc<dyn Signer>,
        partitions: PartitionCount,
    ) -> Result<Owners, KafkaError> {
        let topic = settings.owners_topic();
        let client: BaseConsumer<Log> = create(
            &settings.client(&[
                // A client needs a group, but it does not join it, and commits nothing.
                ("group.id", &topic),
                ("enable.auto.commit", "false"),
                ("enable.partition.eof", "true"),
                // Reading an announcement twice changes nothing.
                ("auto.offset.reset", "earliest"),
            ]),
            Log,
        )?;
        let mut list = TopicPartitionList::new();
        let from_the_start = list.add_partition_offset(&topic, 0, rdkafka::Offset::Beginning);
        let assigned = from_the_start.and_then(|()| client.assign(&list));
        assigned.map_err(with_context(CONTEXT))?;

        let (table, stop) = (Arc::default(), CancellationToken::new());
        let (read, all_read) = mpsc::channel();
        let mut reader = Reader {
            client,
            topic: topic.clone(),
            partitions,
            table: Arc::clone(&table),
            signer: signer.clone(),
            rejected_senders: BTreeSet::new(),
            rejected_permanent: BTreeMap::new(),
            stop: stop.clone(),
            read: Some(read),
        };
        let thread = std::thread::Builder::new()
            .name("kafka-owners".into())
            .spawn(move || reader.run())
            .map_err(|e| KafkaError::Settings {
                context: "starting a thread",
                why: e.to_string(),
            })?;
        let owners = Owners {
            node: settings.node.clone(),
            url: url.to_owned(),
            producer: producer.for_topic(topic.clone()),
            topic,
            signer,
            table,
            stop,
            thread: Some(thread),
            opened: Instant::now(),
        };
        match all_read.recv_timeout(READ_TIME_MAX) {
            Ok(read) => {
                read?;
                owners.require_partition_count(partitions, &settings.topic)?;
                Ok(owners)
            }
            Err(_) => Err(KafkaError::Unavailable {
                context: CONTEXT,
                why: format!("not read to its end within {} s", READ_TIME_MAX.as_secs()),
            }),
        }
    }

    /// Publishes the number of partitions, or compares it with the one that was published before.
    fn require_partition_count(
        &self,
        partitions: PartitionCount,
        topic: &str,
    ) -> Result<(), KafkaError> {
        let was = *self.table.lock().partitions.get_or_insert(partitions);
        if was != partitions {
            return Err(KafkaError::PartitionsChanged {
                topic: topic.to_owned(),
                was,
                is: partitions,
            });
        }
        self.publish_permanent();
        Ok(())
    }

    /// Announces that this node owns `partition` and has applied everything before `offset`. The owner calls it when it
    /// has opened the partition, and every few seconds as long as it owns it. The result may be dropped.
    pub fn publish_ownership(
        &self,
        partition: Partition,
        offset: Offset,
    ) -> impl Future<Output = Result<Option<Offset>, KafkaError>> + Send + use<> {
        let ours = self.owner(partition).filter(|o| o.node == self.node);
        let ownership = Ownership {
            partition,
            url: self.url.clone(),
            node: self.node.clone(),
            epoch: ours.map(|owner| owner.epoch),
            offset,
        };
        self.publish(Announcement::Owner(ownership))
    }

    fn publish(
        &self,
        announcement: Announcement,
    ) -> impl Future<Output = Result<Option<Offset>, KafkaError>> + Send + use<> {
        let key = announcement.key();
        let signature = self.signer.sign(&announcement.signed_text(&self.topic));
        let signed = Signed {
            announcement,
            signature,
        };
        // Strings and numbers always serialise.
        let json = serde_json::to_vec(&signed).unwrap_or_default();
        self.producer
            .send(Partition::FIRST, Some(key.as_bytes()), &json)
    }

    /// Announces to all nodes, permanently, that Kafka has fewer messages of a partition than were counted.
    pub fn report_truncation(&self, truncation: Truncation) {
        (self.table.lock().truncations).insert(truncation.partition, truncation);
        self.publish_permanent();
    }

    /// Publishes the permanent announcements again. Owners call it as often as they announce themselves.
    pub fn publish_permanent(&self) {
        let permanent = self.table.lock().permanent();
        for announcement in permanent {
            drop(self.publish(announcement));
        }
    }

    /// The truncation of `partition` that a node has found, if any.
    pub fn truncation(&self, partition: Partition) -> Option<Truncation> {
        self.table.lock().truncations.get(&partition).copied()
    }

    /// The announced owner of `partition`.
    pub fn owner(&self, partition: Partition) -> Option<Owner> {
        self.table.lock().owners.get(&partition).cloned()
    }

    /// Whether no owner of `partition` has announced itself for `time`, and this node would have noticed.
    pub fn is_silent(&self, partition: Partition, time: Duration) -> bool {
        let heard = self.table.lock().heard.get(&partition).copied();
        heard.unwrap_or(self.opened).elapsed() > time
    }

    /// All owners, by partition.
    pub fn table(&self) -> BTreeMap<Partition, Owner> {
        self.table.lock().owners.clone()
    }
}

impl Drop for Owners {
    fn drop(&mut self) {
        self.stop.cancel();
        let _a_panic_is_printed = self.thread.take().map(JoinHandle::join);
    }
}

/// Reads announcements, on a thread of its own.
struct Reader {
    client: BaseConsumer<Log>,
    topic: String,
    /// Announcements about other partitions are ignored.
    partitions: PartitionCount,
    table: Arc<Mutex<Table>>,
    signer: Arc<dyn Signer>,
    /// Senders of rejected announcements that were logged.
    rejected_senders: BTreeSet<String>,
    /// Rejected permanent announcements by key, with their offsets, until the topic was read to its end.
    rejected_permanent: BTreeMap<String, Offset>,
    stop: CancellationToken,
    /// Notified when the topic was read to its end, or cannot be read.
    read: Option<mpsc::Sender<Result<(), KafkaError>>>,
}

impl Reader {
    fn run(&mut self) {
        while !self.stop.is_cancelled() {
            let all_read = match self.client.poll(POLL_TIME_MAX) {
                None => continue,
                Some(Ok(message)) => {
                    let announcement = parse(&message);
                    drop(message);
                    match announcement {
                        Ok((signed, offset)) => self.receive(signed, offset),
                        Err(error) => {
                            tracing::warn!(error, "message in the topic of owners ignored")
                        }
                    }
                    continue;
                }
                Some(Err(RdKafkaError::PartitionEOF(_))) => Ok(()),
                Some(Err(error)) => match with_context(CONTEXT)(error) {
                    error if error.is_temporary() => continue,
                    error => {
                        tracing::error!(%error, "topic of owners cannot be read");
                        Err(error)
                    }
                },
            };
            if let Some(read) = self.read.take() {
                self.log_rejected_permanent();
                let _receiver_may_have_timed_out = read.send(all_read);
            }
        }
    }

    fn receive(&mut self, signed: Signed, offset: Offset) {
        let Signed {
            announcement,
            signature,
        } = signed;
        let text = announcement.signed_text(&self.topic);
        if !self.signer.verify(&text, signature.as_deref()) {
            self.reject_unverified(&announcement, offset);
            return;
        }
        if announcement
            .partition()
            .is_some_and(|partition| !self.partitions.contains(partition))
        {
            return;
        }
        let mut table = self.table.lock();
        match announcement {
            Announcement::Owner(ownership) => {
                self.rejected_senders.remove(&ownership.url);
                if self.read.is_none() {
                    table.heard.insert(ownership.partition, Instant::now());
                }
                add(&mut table.owners, ownership, offset);
            }
            // The first one counts for as long as this node runs.
            Announcement::Journal { partitions } => {
                table.partitions.get_or_insert(partitions);
            }
            Announcement::Truncation(truncation) => {
                table.truncations.insert(truncation.partition, truncation);
            }
        }
    }

    /// Logs an announcement that no token of the nodes has signed.
    fn reject_unverified(&mut self, announcement: &Announcement, offset: Offset) {
        let sender = match announcement {
            Announcement::Owner(Ownership { url, .. }) => {
                url.chars().take(REJECTED_CHARS_MAX).collect()
            }
            Announcement::Journal { .. } | Announcement::Truncation(_) => announcement.key(),
        };
        // Those from before this node's start may be signed by tokens that were replaced since.
        if self.read.is_some() {
            if !matches!(announcement, Announcement::Owner(_))
                && self.rejected_permanent.len() < REJECTED_MAX
            {
                self.rejected_permanent.insert(sender, offset);
            }
            return;
        }
        if self.rejected_senders.len() < REJECTED_MAX
            && self.rejected_senders.insert(sender.clone())
        {
            tracing::warn!(
                sender,
                %offset,
                "announcement rejected: no token of the nodes has signed it"
            );
        }
    }

    /// Logs permanent announcements of which no verified copy exists.
    fn log_rejected_permanent(&mut self) {
        let permanent = self.table.lock().permanent();
        for announcement in permanent {
            self.rejected_permanent.remove(&announcement.key());
        }
        for (key, offset) in std::mem::take(&mut self.rejected_permanent) {
            tracing::warn!(
                key,
                %offset,
                "permanent announcement rejected: no token of the nodes has signed it"
            );
        }
    }
}

/// The announcement in a message, and its offset.
fn parse(message: &BorrowedMessage<'_>) -> Result<(Signed, Offset), String> {
    let offset = Offset::try_from(message.offset()).map_err(|e| e.to_string())?;
    let signed = serde_json::from_slice(message.payload().unwrap_or_default());
    let signed = signed.map_err(|e| format!("at offset {offset}: {e}"))?;
    Ok((signed, offset))
}

/// Adds an ownership that was announced at `offset` of the topic.
fn add(owners: &mut OwnersByPartition, ownership: Ownership, offset: Offset) {
    let epoch = ownership.epoch.unwrap_or(offset);
    let known = owners.get(&ownership.partition);
    // An epoch cannot be later than its announcement. Such an epoch would win permanently.
    if epoch > offset {
        // The topic was created anew while that node was running, which starts a new epoch then.
        if known.is_some_and(|known| known.epoch == epoch && known.node == ownership.node) {
            owners.remove(&ownership.partition);
        }
        return;
    }
    if known.is_none_or(|known| known.epoch <= epoch) {
        let owner = Owner {
            node: ownership.node,
            url: ownership.url,
            epoch,
            offset: ownership.offset,
        };
        owners.insert(ownership.partition, owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(number: u64) -> Offset {
        Offset::try_from(number).unwrap()
    }

    fn ownership(node: &str, epoch: Option<u64>, position: u64) -> Ownership {
        Ownership {
            partition: three(),
            url: format!("http://{node}"),
            node: node.to_owned(),
            epoch: epoch.map(offset),
            offset: offset(position),
        }
    }

    fn three() -> Partition {
        Partition::try_from(3).unwrap()
    }

    #[test]
    fn an_owner_that_was_replaced_is_ignored() {
        let mut table = OwnersByPartition::new();
        let owner = |table: &OwnersByPartition| {
            let owner = &table[&three()];
            (owner.node.clone(), owner.epoch.get())
        };
        let add = |table: &mut _, ownership, at| add(table, ownership, offset(at));
        add(&mut table, ownership("a", None, 5), 10);
        add(&mut table, ownership("a", Some(10), 7), 11);
        assert_eq!(owner(&table), ("a".into(), 10));
        assert_eq!(table[&three()].offset.get(), 7);
        add(&mut table, ownership("b", None, 7), 12);
        add(&mut table, ownership("a", Some(10), 9), 13);
        assert_eq!(owner(&table), ("b".into(), 12));
        add(&mut table, ownership("a", None, 9), 14);
        assert_eq!(owner(&table), ("a".into(), 14));
        add(
            &mut table,
            ownership("stranger", Some(u64::MAX >> 1), 9),
            15,
        );
        assert_eq!(owner(&table), ("a".into(), 14));
        // The topic is created anew.
        add(&mut table, ownership("b", Some(12), 9), 0);
        assert_eq!(owner(&table), ("a".into(), 14));
        add(&mut table, ownership("a", Some(14), 9), 1);
        assert!(table.is_empty());
        add(&mut table, ownership("a", None, 9), 2);
        assert_eq!(owner(&table), ("a".into(), 2));
    }
}
