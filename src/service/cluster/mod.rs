//! Many nodes over one journal, which is in Kafka. A batch is split by its flows' names into the journal's
//! partitions; each partition's sums are on the node that the consumer group gives it to, in a store of its
//! own; and a question that any node is asked is answered from all of them.
//!
//! - `inlet` takes batches, cuts them into `pieces`, and waits until they are visible where that is asked for;
//!   `gather` puts those of many batches into messages, and writes these to Kafka.
//! - `handler` hears which partitions come and go. Each has a thread, `partition`: it opens the store, adds what
//!   comes to its `inbox`, and closes it. `here` knows which of them can be answered for.
//! - `checkpoints` keeps copies of stores elsewhere, and fetches one where a store is missing.
//! - `parts` asks the stores that are here, and `nodes`, over HTTP, those that have the others. Who has what is
//!   announced under the nodes' `seal`.
//!
//! Nothing here decides who has what: the group does, and [`Owners`] spreads the word.

mod assignment;
mod batcher;
mod checkpoints;
mod fetch_queue;
pub mod kafka;
mod kafka_writer;
mod local_partitions;
mod message;
mod partition;
mod peer;
mod scatter_gather;
mod service;
mod signer;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::client::{ClientError, Server};
use crate::durable;
use crate::query::Engine;
use crate::service::Options;
use crate::store::StoreOptions;
use crate::store::codec::IDENTITY_FILE;
use checkpoints::{Objects, ObjectsError};
use kafka::{
    Consumer, Control, KafkaError, Owners, Producer, Progress, Settings, cluster_id, ensure_topics,
};
use local_partitions::Here;
use peer::client::Nodes;

/// A node that is not heard of for so long loses its partitions.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
/// What a node has not heard of for so long, it does not answer for: well before somebody else may have it.
const SILENCE_MAX: Duration = Duration::from_secs(6);
/// Between two announcements of what is here.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(3);
/// A store that cannot take more is asked again after so long; meanwhile its partition may be taken away.
const STALL_MAX: Duration = Duration::from_secs(1);
/// Between two attempts to join while Kafka does not answer, and between two log lines about it.
const JOIN_INTERVAL: Duration = Duration::from_secs(1);
const JOIN_LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Least memory that a store gets for a purpose, in however many parts the whole is cut.
const SHARE_BYTES_MIN: usize = 1 << 20;

/// Held by the node that runs in a data directory.
const LOCK_FILE: &str = "NODE";

/// What a node is told.
#[derive(Clone)]
pub struct Node {
    /// Some of Kafka's brokers.
    pub brokers: String,
    /// The journal.
    pub topic: String,
    /// Partitions of a journal that is made by this node.
    pub partitions: i32,
    /// Options of Kafka's client.
    pub options: Vec<(String, String)>,
    pub name: String,
    /// How nodes reach each other; `url` is this one's.
    pub server: Server,
    /// Where checkpoints of partitions are, as [`Objects::open`] takes it.
    pub checkpoint_url: Option<String>,
    /// Between two of a partition.
    pub checkpoint_interval: Duration,
    /// The first token in it is sent to the others.
    pub token_file: Option<PathBuf>,
}

/// Options may be passwords.
impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("topic", &self.topic)
            .field("name", &self.name)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    #[error(
        "{0} has the sums of a service with a journal of its own; give --data-dir another directory, and \
         export the flows into the cluster"
    )]
    NotOfACluster(PathBuf),
    #[error("{0}: another node, which runs, has this directory; give each its own --data-dir")]
    InUse(PathBuf),
    #[error("{path}: {source}")]
    Directory { path: PathBuf, source: io::Error },
}

impl ClusterError {
    /// Whether a later start may succeed.
    pub fn is_temporary(&self) -> bool {
        matches!(self, ClusterError::Kafka(error) if error.is_temporary())
    }
}

/// This node.
#[derive(Debug)]
pub struct Cluster {
    shared: Arc<Shared>,
    writer: kafka_writer::Inlet,
    parts: scatter_gather::All,
    engine: Engine,
    /// `None` when it is closed.
    consumer: Mutex<Option<Consumer>>,
    tasks: Mutex<JoinSet<()>>,
    /// After the stores.
    _lock: File,
}

/// What all parts of it know.
#[derive(Debug)]
struct Shared {
    node: Node,
    data_dir: PathBuf,
    /// What each store gets.
    store: StoreOptions,
    /// How many the journal has.
    partitions: u32,
    /// The name of Kafka's cluster.
    kafka: String,
    here: Here,
    producer: Producer,
    owners: Owners,
    seal: Arc<signer::Tokens>,
    nodes: Nodes,
    objects: Option<Objects>,
    /// Held by the partition of which a checkpoint is being made.
    checkpointing: Mutex<()>,
    control: OnceLock<Control>,
    /// Something has been added to a partition's sums.
    applied: Notify,
    /// A partition has come to this node.
    arrived: Notify,
    /// The brokers took what was sent last.
    connected: AtomicBool,
    /// Kafka's client has given up.
    broken: AtomicBool,
}

impl Cluster {
    /// Joins the cluster as soon as Kafka answers; `None` if `stopping` is set before that. Blocks.
    ///
    /// # Errors
    /// Brokers that refuse, and arguments that cannot be used.
    pub fn join(
        node: &Node,
        options: &Options,
        stopping: &AtomicBool,
    ) -> Result<Option<Cluster>, ClusterError> {
        let mut warned: Option<Instant> = None;
        while !stopping.load(Ordering::Relaxed) {
            match Cluster::start(node.clone(), options) {
                Err(error) if error.is_temporary() => {
                    if warned.is_none_or(|at| at.elapsed() >= JOIN_LOG_INTERVAL) {
                        warned = Some(Instant::now());
                        tracing::warn!(%error, "cannot join the cluster yet, and goes on trying");
                    }
                    std::thread::sleep(JOIN_INTERVAL);
                }
                joined => return Ok(Some(joined?)),
            }
        }
        Ok(None)
    }

    /// Joins the cluster. Its stores share what `options` has. Blocks until the brokers have answered; partitions
    /// are assigned later.
    ///
    /// # Errors
    /// Brokers that are away ([`ClusterError::is_temporary`]) or refuse, and arguments that cannot be used.
    fn start(node: Node, options: &Options) -> Result<Cluster, ClusterError> {
        let runtime = &tokio::runtime::Handle::current();
        let data_dir = options.data_dir.clone();
        let settings = Settings {
            brokers: node.brokers.clone(),
            topic: node.topic.clone(),
            node: node.name.clone(),
            session_timeout: SESSION_TIMEOUT,
            options: node.options.clone(),
        };
        settings.check()?;
        if data_dir.join(IDENTITY_FILE).exists() {
            return Err(ClusterError::NotOfACluster(data_dir));
        }
        let lock = lock(&data_dir)?;
        let nodes = Nodes::new(node.server.clone(), node.token_file.clone())?;
        let open_objects = |url: &String| Objects::open(url, runtime.clone());
        let objects = node.checkpoint_url.as_ref().map(open_objects).transpose()?;
        let partitions = ensure_topics(&settings, node.partitions)?;
        let kafka = cluster_id(&settings)?;
        let producer = Producer::new(&settings)?;
        let seal = Arc::new(signer::Tokens::new(node.token_file.clone())?);
        let url = &node.server.url;
        let owners = Owners::open(&settings, url, &producer, seal.clone(), partitions)?;
        let partitions = u32::try_from(partitions).unwrap_or_default();
        let shared = Arc::new(Shared {
            store: share(options.store.clone(), partitions as usize),
            node,
            data_dir,
            partitions,
            kafka,
            here: Here::default(),
            producer,
            owners,
            seal,
            nodes,
            objects,
            checkpointing: Mutex::new(()),
            control: OnceLock::new(),
            applied: Notify::new(),
            arrived: Notify::new(),
            connected: AtomicBool::new(true),
            broken: AtomicBool::new(false),
        });
        let consumer = Consumer::join(&settings, assignment::Partitions::new(shared.clone()))?;
        let _first = shared.control.set(consumer.control().clone());
        tracing::info!(
            node = settings.node,
            topic = settings.topic,
            partitions,
            kafka = shared.kafka,
            "joined the cluster"
        );
        let mut tasks = JoinSet::new();
        tasks.spawn_on(announce(shared.clone()), runtime);
        tasks.spawn_on(
            reload_secrets(shared.clone(), options.reload.clone()),
            runtime,
        );
        Ok(Cluster {
            writer: kafka_writer::Inlet {
                shared: shared.clone(),
                gather: batcher::start(shared.clone(), runtime),
            },
            parts: scatter_gather::All(shared.clone()),
            engine: Engine::new(options.query),
            shared,
            consumer: Mutex::new(Some(consumer)),
            tasks: Mutex::new(tasks),
            _lock: lock,
        })
    }
}

/// Takes the directory for this process.
fn lock(data_dir: &Path) -> Result<File, ClusterError> {
    let path = data_dir.join(LOCK_FILE);
    let failed = |source| ClusterError::Directory {
        path: path.clone(),
        source,
    };
    durable::create_dir_all(data_dir).map_err(failed)?;
    let file = File::create(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ClusterError::InUse(data_dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// What one of so many stores gets.
fn share(whole: StoreOptions, stores: usize) -> StoreOptions {
    let part = |bytes: usize| (bytes / stores.max(1)).max(SHARE_BYTES_MIN);
    StoreOptions {
        tally_bytes_max: part(whole.tally_bytes_max),
        view_bytes_max: part(whole.view_bytes_max),
        memtable_bytes: part(whole.memtable_bytes),
        block_cache_bytes: part(whole.block_cache_bytes),
        journal_bytes_max: part(whole.journal_bytes_max),
        receipts_bytes_max: part(whole.receipts_bytes_max as usize) as u64,
        import_receipts_bytes_max: part(whole.import_receipts_bytes_max as usize) as u64,
        stall_max: STALL_MAX,
        journal_elsewhere: true,
        ..whole
    }
}

/// Reads what this node shows to the others again, whenever it is told to.
async fn reload_secrets(shared: Arc<Shared>, mut told: watch::Receiver<()>) {
    while told.changed().await.is_ok() {
        let shared = shared.clone();
        let reloaded = tokio::task::spawn_blocking(move || {
            shared.seal.reload()?;
            shared.nodes.reload()
        })
        .await;
        if let Ok(Err(error)) = reloaded {
            tracing::error!(%error, "the token for other nodes stays as it was");
        }
    }
}

/// Says every few seconds, and when a partition comes, what is here.
async fn announce(shared: Arc<Shared>) {
    loop {
        shared.owners.remind();
        let positions = shared.here.positions();
        // All of them are under way before the first is waited for.
        let said: Vec<_> = positions
            .into_iter()
            .map(|(partition, position)| shared.owners.announce(partition, position))
            .collect();
        let is_silent = said.is_empty();
        for result in said {
            shared.note(&result.await);
        }
        // Nobody may send it flows until it says that it can take them.
        if is_silent && !shared.connected.load(Ordering::Relaxed) {
            let asking = shared.clone();
            let answered = tokio::task::spawn_blocking(move || asking.producer.is_answered()).await;
            (shared.connected).store(answered.is_ok_and(|answered| answered), Ordering::Relaxed);
        }
        tokio::select! {
            () = tokio::time::sleep(ANNOUNCE_INTERVAL) => {}
            () = shared.arrived.notified() => {}
        }
    }
}

impl Shared {
    /// Remembers how the brokers are, by what became of a message.
    fn note(&self, sent: &Result<u64, KafkaError>) {
        match sent {
            Ok(_) => {
                if !self.connected.swap(true, Ordering::Relaxed) {
                    tracing::info!("Kafka takes messages again");
                }
            }
            Err(KafkaError::Broken { .. }) => self.broken.store(true, Ordering::Relaxed),
            Err(error @ KafkaError::Away { .. }) => {
                if self.connected.swap(false, Ordering::Relaxed) {
                    tracing::warn!(%error, "Kafka does not take messages");
                }
            }
            Err(_) => {}
        }
    }

    /// How far this node is with its partitions, by Kafka's client.
    fn progress(&self) -> BTreeMap<i32, Progress> {
        let control = self.control.get();
        control
            .map(|control| control.progress())
            .unwrap_or_default()
    }

    /// All partitions of the journal.
    fn all(&self) -> std::ops::Range<i32> {
        0..i32::try_from(self.partitions).unwrap_or(i32::MAX)
    }
}
