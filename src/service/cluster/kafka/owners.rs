//! Which node has which partition: a compacted topic of announcements, which every node reads. It also remembers
//! how many partitions the journal has, which must never change, and of which of them Kafka has lost the end.
//!
//! Who owns a partition is the group's decision alone; this only spreads the word. An owner announces
//! itself when it gets a partition, and again every few seconds. **Epochs**: an announcement that begins an
//! ownership has none, and its own offset in the topic becomes its epoch; those that go on with it carry
//! that epoch. The highest epoch counts, and within one the latest announcement. So epochs grow with each
//! change of ownership, whoever's clock is wrong, and even if the group is made anew.
//!
//! A node that stood still and missed the loss of a partition may announce itself after its successor.
//! What it says within its old epoch is older than the successor's, and does not count. Should it begin a new
//! one, then the successor finds itself replaced when it announces next, and begins another; the first
//! learns from the group that the partition is lost, and falls silent. Until then somebody may ask the
//! wrong node, which is why a node answers only for what it owns and has heard of lately.
//!
//! Whom a node asks, it shows its token. So announcements may have a [`Seal`], and those without are not believed. What
//! is to be remembered for ever, every node says again all the time: so it outlives the token that sealed it first, and
//! whoever writes over it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError as Source;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use super::announcement::{Announcement, Lost, Said, Sealed};
use super::error::failed;
use super::settings::{Log, create};
use super::{KafkaError, Producer, Settings};

/// All announcements have to be read by then.
const READ: Duration = Duration::from_secs(10);
/// How long the thread waits for announcements before it looks whether it is to stop.
const POLL: Duration = Duration::from_millis(100);
/// Of those who are not believed, so many are named, by so much of what they say.
const STRANGERS_MAX: usize = 100;
const STRANGER_CHARS_MAX: usize = 200;

const DOING: &str = "reading who owns which partition";

/// The node that has a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub node: String,
    /// Where it answers.
    pub url: String,
    /// Grows whenever the partition changes hands.
    pub epoch: u64,
    /// How far it was when it said so.
    pub offset: u64,
}

/// Tells announcements of nodes from those of strangers.
pub trait Seal: fmt::Debug + Send + Sync {
    /// What only a node can say of `text`; `None` where strangers are believed, too.
    fn seal(&self, text: &str) -> Option<String>;

    /// Whether a node has said `seal` of `text`.
    fn is_sealed(&self, text: &str, seal: Option<&str>) -> bool;
}

/// The end of the topic is no error here.
impl ConsumerContext for Log {}

type Owned = BTreeMap<i32, Owner>;

#[derive(Debug, Default)]
struct Table {
    owners: Owned,
    /// How many the journal had, as the first node said.
    partitions: Option<i32>,
    lost: BTreeMap<i32, Lost>,
}

impl Table {
    /// What is to be remembered whoever owns what.
    fn lasting(&self) -> Vec<Said> {
        let journal = (self.partitions).map(|partitions| Said::Journal { partitions });
        let lost = self.lost.values().map(|lost| Said::Lost(*lost));
        journal.into_iter().chain(lost).collect()
    }
}

/// The table of owners, kept up to date by a thread.
#[derive(Debug)]
pub struct Owners {
    node: String,
    url: String,
    topic: String,
    producer: Producer,
    seal: Arc<dyn Seal>,
    table: Arc<Mutex<Table>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Owners {
    /// Reads all announcements that there are; blocks meanwhile. This node's own will say that it answers
    /// at `url`. The journal has `partitions`.
    ///
    /// # Errors
    /// Brokers that are away, a topic that is not there, or a journal that had another number of partitions.
    pub fn open(
        settings: &Settings,
        url: &str,
        producer: &Producer,
        seal: Arc<dyn Seal>,
        partitions: i32,
    ) -> Result<Owners, KafkaError> {
        let topic = settings.owners_topic();
        let client: BaseConsumer<Log> = create(
            &settings.client(&[
                // A reader needs a name, but joins nothing and commits nothing.
                ("group.id", &topic),
                ("enable.auto.commit", "false"),
                ("enable.partition.eof", "true"),
                // To read an announcement twice changes nothing.
                ("auto.offset.reset", "earliest"),
            ]),
            Log,
        )?;
        let mut list = TopicPartitionList::new();
        let from_the_start = list.add_partition_offset(&topic, 0, Offset::Beginning);
        let assigned = from_the_start.and_then(|()| client.assign(&list));
        assigned.map_err(failed(DOING))?;

        let (table, stop) = (Arc::default(), Arc::<AtomicBool>::default());
        let (read, all_read) = mpsc::channel();
        let mut reader = Reader {
            client,
            topic: topic.clone(),
            partitions: 0..partitions,
            table: Arc::clone(&table),
            seal: seal.clone(),
            strangers: BTreeSet::new(),
            unbelieved: BTreeMap::new(),
            stop: stop.clone(),
            read: Some(read),
        };
        let thread = std::thread::Builder::new()
            .name("kafka-owners".into())
            .spawn(move || reader.run())
            .map_err(|e| KafkaError::Settings {
                doing: "starting a thread",
                why: e.to_string(),
            })?;
        let owners = Owners {
            node: settings.node.clone(),
            url: url.to_owned(),
            producer: producer.to(topic.clone()),
            topic,
            seal,
            table,
            stop,
            thread: Some(thread),
        };
        match all_read.recv_timeout(READ) {
            Ok(read) => {
                read?;
                owners.hold_against(partitions, &settings.topic)?;
                Ok(owners)
            }
            Err(_) => Err(KafkaError::Away {
                doing: DOING,
                why: format!("it takes more than {} s", READ.as_secs()),
            }),
        }
    }

    /// Remembers the number of partitions, or holds it against the one that is remembered.
    fn hold_against(&self, partitions: i32, topic: &str) -> Result<(), KafkaError> {
        let was = *lock(&self.table).partitions.get_or_insert(partitions);
        if was != partitions {
            return Err(KafkaError::OtherPartitions {
                topic: topic.to_owned(),
                was,
                is: partitions,
            });
        }
        self.remind();
        Ok(())
    }

    /// Says that this node has `partition` and is at `offset`: for the owner to call when it gets it and
    /// every few seconds from then on, as long as it has it. Nothing needs to wait for the result.
    pub fn announce(
        &self,
        partition: i32,
        offset: u64,
    ) -> impl Future<Output = Result<u64, KafkaError>> + Send + use<> {
        let ours = self.owner(partition).filter(|o| o.node == self.node);
        let announcement = Announcement {
            partition,
            url: self.url.clone(),
            node: self.node.clone(),
            epoch: ours.map(|owner| owner.epoch),
            offset,
        };
        self.say(Said::Owner(announcement))
    }

    fn say(&self, said: Said) -> impl Future<Output = Result<u64, KafkaError>> + Send + use<> {
        let (key, seal) = (said.key(), self.seal.seal(&said.text(&self.topic)));
        // Strings and numbers always have a JSON form.
        let json = serde_json::to_vec(&Sealed { said, seal }).unwrap_or_default();
        self.producer.send(0, Some(key.as_bytes()), &json)
    }

    /// Says that Kafka has less of a partition than was counted, for all nodes and for ever.
    pub fn report(&self, lost: Lost) {
        lock(&self.table).lost.insert(lost.partition, lost);
        self.remind();
    }

    /// Says again what is to be remembered for ever: to be called as often as owners announce themselves.
    pub fn remind(&self) {
        let lasting = lock(&self.table).lasting();
        for said in lasting {
            drop(self.say(said));
        }
    }

    /// Whether Kafka has been found to have less of `partition` than was counted.
    pub fn lost(&self, partition: i32) -> Option<Lost> {
        lock(&self.table).lost.get(&partition).copied()
    }

    /// Who has `partition`, as far as it has been announced.
    pub fn owner(&self, partition: i32) -> Option<Owner> {
        lock(&self.table).owners.get(&partition).cloned()
    }

    /// All owners, by partition.
    pub fn table(&self) -> BTreeMap<i32, Owner> {
        lock(&self.table).owners.clone()
    }
}

impl Drop for Owners {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _a_panic_is_printed = self.thread.take().map(JoinHandle::join);
    }
}

/// An announcement is added as a whole.
fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread has.
struct Reader {
    client: BaseConsumer<Log>,
    topic: String,
    /// Those of the journal. Of others nobody can say anything.
    partitions: Range<i32>,
    table: Arc<Mutex<Table>>,
    seal: Arc<dyn Seal>,
    /// Who is not believed, and has been named in the log.
    strangers: BTreeSet<String>,
    /// What was to be remembered, and is not believed, by its key: until all that there was has been read.
    unbelieved: BTreeMap<String, u64>,
    stop: Arc<AtomicBool>,
    /// Hears when all that there was has been read, or cannot be.
    read: Option<mpsc::Sender<Result<(), KafkaError>>>,
}

impl Reader {
    fn run(&mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            let all_read = match self.client.poll(POLL) {
                None => continue,
                Some(Ok(message)) => {
                    let offset = u64::try_from(message.offset()).unwrap_or_default();
                    match serde_json::from_slice(message.payload().unwrap_or_default()) {
                        Ok(sealed) => {
                            drop(message);
                            self.hear(sealed, offset);
                        }
                        Err(error) => {
                            tracing::warn!(%error, offset, "not an announcement of an owner");
                        }
                    }
                    continue;
                }
                Some(Err(Source::PartitionEOF(_))) => Ok(()),
                Some(Err(error)) => match failed(DOING)(error) {
                    error if error.is_temporary() => continue,
                    error => {
                        tracing::error!(%error, "owners of partitions are not known");
                        Err(error)
                    }
                },
            };
            if let Some(read) = self.read.take() {
                self.name_unbelieved();
                let _he_may_have_given_up = read.send(all_read);
            }
        }
    }

    fn hear(&mut self, Sealed { said, seal }: Sealed, offset: u64) {
        if !self
            .seal
            .is_sealed(&said.text(&self.topic), seal.as_deref())
        {
            self.doubt(&said, offset);
            return;
        }
        if said
            .partition()
            .is_some_and(|p| !self.partitions.contains(&p))
        {
            return;
        }
        let mut table = lock(&self.table);
        match said {
            Said::Owner(said) => {
                self.strangers.remove(&said.url);
                add(&mut table.owners, said, offset);
            }
            // What a node began with, it goes on with.
            Said::Journal { partitions } => drop(table.partitions.get_or_insert(partitions)),
            Said::Lost(lost) => drop(table.lost.insert(lost.partition, lost)),
        }
    }

    /// Somebody speaks as a node and has none of their tokens.
    fn doubt(&mut self, said: &Said, offset: u64) {
        let who = match said {
            Said::Owner(Announcement { url, .. }) => url.chars().take(STRANGER_CHARS_MAX).collect(),
            Said::Journal { .. } | Said::Lost(_) => said.key(),
        };
        // What was there before this node may be of tokens that are gone.
        if self.read.is_some() {
            if !matches!(said, Said::Owner(_)) && self.unbelieved.len() < STRANGERS_MAX {
                self.unbelieved.insert(who, offset);
            }
            return;
        }
        if self.strangers.len() < STRANGERS_MAX && self.strangers.insert(who.clone()) {
            tracing::warn!(
                who,
                offset,
                "not believed: it speaks as a node, and has none of the tokens of nodes"
            );
        }
    }

    /// Names what is believed under none of the tokens, though it was to be remembered for ever.
    fn name_unbelieved(&mut self) {
        let remembered = lock(&self.table).lasting();
        for said in remembered {
            self.unbelieved.remove(&said.key());
        }
        for (what, offset) in std::mem::take(&mut self.unbelieved) {
            tracing::warn!(
                what,
                offset,
                "not believed: it was to be remembered, and was said under none of the tokens of nodes"
            );
        }
    }
}

fn add(owners: &mut Owned, said: Announcement, offset: u64) {
    let epoch = said.epoch.unwrap_or(offset);
    let known = owners.get(&said.partition);
    // One that has not begun yet would count for ever.
    if epoch > offset {
        // This topic has been made anew under a node that runs: it begins another.
        if known.is_some_and(|known| known.epoch == epoch && known.node == said.node) {
            owners.remove(&said.partition);
        }
        return;
    }
    if known.is_none_or(|known| known.epoch <= epoch) {
        let owner = Owner {
            node: said.node,
            url: said.url,
            epoch,
            offset: said.offset,
        };
        owners.insert(said.partition, owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(node: &str, epoch: Option<u64>, offset: u64) -> Announcement {
        let url = format!("http://{node}");
        let node = node.to_owned();
        let partition = 3;
        Announcement {
            partition,
            url,
            node,
            epoch,
            offset,
        }
    }

    #[test]
    fn an_owner_that_was_replaced_is_not_heard() {
        let mut table = Owned::new();
        add(&mut table, said("a", None, 5), 10);
        add(&mut table, said("a", Some(10), 7), 11);
        assert_eq!((table[&3].epoch, table[&3].offset), (10, 7));
        add(&mut table, said("b", None, 7), 12);
        add(&mut table, said("a", Some(10), 9), 13);
        assert_eq!((table[&3].node.as_str(), table[&3].epoch), ("b", 12));
        add(&mut table, said("a", None, 9), 14);
        assert_eq!((table[&3].node.as_str(), table[&3].epoch), ("a", 14));
        add(&mut table, said("stranger", Some(u64::MAX), 9), 15);
        assert_eq!((table[&3].node.as_str(), table[&3].epoch), ("a", 14));
        // The topic begins anew.
        add(&mut table, said("b", Some(12), 9), 0);
        assert_eq!((table[&3].node.as_str(), table[&3].epoch), ("a", 14));
        add(&mut table, said("a", Some(14), 9), 1);
        assert!(table.is_empty());
        add(&mut table, said("a", None, 9), 2);
        assert_eq!((table[&3].node.as_str(), table[&3].epoch), ("a", 2));
    }
}
