//! One node of a cluster whose journal is a topic of Kafka. A batch is split by its flows' names into the partitions
//! of the topic. Each partition's sums are in a store of their own, on the node that the consumer group assigns the
//! partition to. Every node can answer every query.
//!
//! - `service` implements the interface that the API calls.
//! - `kafka_writer` receives batches, splits them with the codec in `message`, and waits until they are visible if the
//!   client asks for that; `batcher` puts parts of many batches into common messages and sends them.
//! - `assignment` follows the consumer group. Each assigned partition has a thread (`partition`): it opens the store,
//!   applies the messages in its `fetch_queue`, and closes the store. `local_partitions` knows which can be read.
//! - `checkpoints` uploads copies of stores, and downloads one where a store is missing.
//! - `scatter_gather` answers queries from the stores of this node and from its `peer`s.
//! - `addresses` shares the agents' claims of addresses among the nodes.
//! - `signer` authenticates the announcements by which nodes find each other.
//! - [`kafka`] is the client of Kafka.
//!
//! The consumer group alone decides which node owns a partition; [`Owners`] only announces it.

mod addresses;
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
use std::fs::TryLockError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Open, Service, ServiceOptions};
use crate::query::Engine;
use crate::store::StoreOptions;
use crate::store::codec::IDENTITY_FILE;
use addresses::Addresses;
use agent::client::ClientError;
use agent::durable::{self, DirLock};
use checkpoints::{CheckpointError, CheckpointStore};
use flow::{Offset, Partition, PartitionCount};
use kafka::{
    Consumer, Control, KafkaError, KafkaSettings, Owners, Producer, Progress, cluster_id,
    ensure_topics,
};
use kafka_writer::KafkaWriter;
use local_partitions::LocalPartitions;
use peer::PeerClient;
pub use peer::PeerTls;
use scatter_gather::ScatterGather;
use signer::TokenSigner;

/// A node loses its partitions if the group does not hear from it for this long.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
/// After this long without contact with a partition's leader, the partition is not read: another node may own it soon.
const LEADER_CONTACT_AGE_MAX: Duration = Duration::from_secs(6);
/// Interval between announcements of the partitions of this node.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(3);
/// A partition whose owner has not announced itself for this long may have none: twice the time after which the group
/// gives the partitions of a dead node to others.
const ORPHAN_TIME: Duration = Duration::from_secs(2 * SESSION_TIMEOUT.as_secs());
/// The pause between two requests for an owner doubles at most so many times, to five minutes.
const ORPHAN_DOUBLINGS_MAX: u32 = 4;
/// Longest wait for room in a store before checking whether its partition was revoked.
const STALL_TIME_MAX: Duration = Duration::from_secs(1);
/// Intervals between attempts to join while Kafka does not respond, and between log lines about it.
const JOIN_INTERVAL: Duration = Duration::from_secs(1);
const JOIN_LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Minimum memory of a store for one purpose, even if many stores share the total.
const SHARE_BYTES_MIN: usize = 1 << 20;

/// Locked by the node that uses a data directory.
const LOCK_FILE: &str = "NODE";

/// The configuration of a node.
#[derive(Clone)]
pub struct NodeConfig {
    /// Some of Kafka's brokers.
    pub brokers: String,
    /// The topic that is the journal.
    pub topic: String,
    /// Partitions of the topic, if it does not exist yet.
    pub partitions: PartitionCount,
    /// Options of librdkafka.
    pub options: Vec<(String, String)>,
    pub name: String,
    /// The URL at which the other nodes reach this one.
    pub url: String,
    /// TLS between the nodes.
    pub tls: PeerTls,
    /// The URL of the checkpoints of partitions; see [`CheckpointStore::open`].
    pub checkpoint_url: Option<String>,
    /// Interval between checkpoints of a partition.
    pub checkpoint_interval: Duration,
    /// Tokens of the nodes. The first one is sent to the others.
    pub token_file: Option<PathBuf>,
}

impl NodeConfig {
    /// Maximum number of open stores of a node.
    pub fn stores_max(&self) -> usize {
        self.partitions.get() as usize
    }
}

/// Returns the function that joins the cluster.
pub fn prepare(config: NodeConfig, options: ServiceOptions) -> Open {
    Box::new(move |stopping| {
        let joined = ClusterNode::join(&config, &options, stopping)?;
        Ok(joined.map(|node| Arc::new(node) as Arc<dyn Service>))
    })
}

/// Options may be passwords.
impl fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeConfig")
            .field("topic", &self.topic)
            .field("name", &self.name)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// The reason why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Checkpoints(#[from] CheckpointError),
    #[error(
        "{0} has the sums of a service with a journal of its own; give --data-dir another directory, and \
         export the flows into the cluster"
    )]
    NotOfACluster(PathBuf),
    #[error("{0}: another running node uses this directory; give each node its own --data-dir")]
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

/// A node that has joined the cluster.
#[derive(Debug)]
pub struct ClusterNode {
    state: Arc<NodeState>,
    writer: KafkaWriter,
    scatter_gather: ScatterGather,
    engine: Engine,
    addresses: Addresses,
    /// `None` after [`Service::close`](super::Service::close).
    consumer: Mutex<Option<Consumer>>,
    tasks: Mutex<JoinSet<()>>,
    /// Released after the stores.
    _lock: DirLock,
}

/// The state that all threads and tasks of a node share.
#[derive(Debug)]
struct NodeState {
    config: NodeConfig,
    data_dir: PathBuf,
    /// For each partition's store.
    store: StoreOptions,
    partitions: PartitionCount,
    /// The ID of Kafka's cluster.
    kafka_cluster: String,
    local: LocalPartitions,
    producer: Producer,
    owners: Owners,
    signer: Arc<TokenSigner>,
    peers: PeerClient,
    runtime: Handle,
    checkpoint_store: Option<CheckpointStore>,
    /// Locked while a partition makes a checkpoint: one at a time.
    checkpointing: Mutex<()>,
    control: OnceLock<Control>,
    /// Notified when messages were applied to a partition's sums.
    applied: Notify,
    /// Notified when a partition was opened.
    assigned: Notify,
    /// Whether the brokers acknowledged the last message.
    connected: AtomicBool,
    /// A Kafka client has reported a fatal error.
    has_failed: AtomicBool,
}

impl ClusterNode {
    /// Joins the cluster as soon as Kafka responds; `None` if `stopping` is cancelled before that. Blocks.
    ///
    /// # Errors
    /// If the brokers refuse, or an argument is invalid.
    pub fn join(
        config: &NodeConfig,
        options: &ServiceOptions,
        stopping: &CancellationToken,
    ) -> Result<Option<ClusterNode>, ClusterError> {
        let mut warned: Option<Instant> = None;
        while !stopping.is_cancelled() {
            match ClusterNode::try_join(config.clone(), options) {
                Err(error) if error.is_temporary() => {
                    if warned.is_none_or(|at| at.elapsed() >= JOIN_LOG_INTERVAL) {
                        warned = Some(Instant::now());
                        tracing::warn!(%error, "cannot join the cluster yet; trying again");
                    }
                    let pause = tokio::time::timeout(JOIN_INTERVAL, stopping.cancelled());
                    let _either = Handle::current().block_on(pause);
                }
                joined => return Ok(Some(joined?)),
            }
        }
        Ok(None)
    }

    /// Joins the cluster. The stores share the memory in `options`. Blocks until the brokers have responded; partitions
    /// are assigned later.
    ///
    /// # Errors
    /// If the brokers are unavailable ([`ClusterError::is_temporary`]) or refuse, or an argument is invalid.
    fn try_join(config: NodeConfig, options: &ServiceOptions) -> Result<ClusterNode, ClusterError> {
        let runtime = &Handle::current();
        let data_dir = options.data_dir.clone();
        let settings = KafkaSettings {
            brokers: config.brokers.clone(),
            topic: config.topic.clone(),
            node: config.name.clone(),
            session_timeout: SESSION_TIMEOUT,
            options: config.options.clone(),
        };
        settings.validate()?;
        if data_dir.join(IDENTITY_FILE).exists() {
            return Err(ClusterError::NotOfACluster(data_dir));
        }
        let lock = lock(&data_dir)?;
        peer::validate_url(&config.url)?;
        let peers = PeerClient::new(config.tls.clone(), config.token_file.clone())?;
        let open = |url: &String| CheckpointStore::open(url, runtime.clone());
        let checkpoint_store = config.checkpoint_url.as_ref().map(open).transpose()?;
        let partitions = ensure_topics(&settings, config.partitions)?;
        let kafka_cluster = cluster_id(&settings)?;
        let producer = Producer::new(&settings)?;
        let signer = Arc::new(TokenSigner::new(config.token_file.clone())?);
        let url = &config.url;
        let owners = Owners::open(&settings, url, &producer, signer.clone(), partitions)?;
        let addresses = Addresses::open(&settings, options.directory_bytes_max)?;
        let state = Arc::new(NodeState {
            store: share(options.store.clone(), partitions.get() as usize),
            config,
            data_dir,
            partitions,
            kafka_cluster,
            local: LocalPartitions::default(),
            producer,
            owners,
            signer,
            peers,
            runtime: runtime.clone(),
            checkpoint_store,
            checkpointing: Mutex::new(()),
            control: OnceLock::new(),
            applied: Notify::new(),
            assigned: Notify::new(),
            connected: AtomicBool::new(true),
            has_failed: AtomicBool::new(false),
        });
        let consumer = Consumer::join(&settings, assignment::PartitionThreads::new(state.clone()))?;
        let _first = state.control.set(consumer.control().clone());
        tracing::info!(
            node = settings.node,
            topic = settings.topic,
            %partitions,
            kafka = state.kafka_cluster,
            "joined the cluster"
        );
        let mut tasks = JoinSet::new();
        tasks.spawn_on(announce(state.clone()), runtime);
        tasks.spawn_on(
            reload_secrets(state.clone(), options.reload.clone()),
            runtime,
        );
        Ok(ClusterNode {
            writer: KafkaWriter {
                state: state.clone(),
                batcher: batcher::spawn(state.clone(), runtime),
            },
            scatter_gather: ScatterGather(state.clone()),
            engine: Engine::new(options.query),
            addresses,
            state,
            consumer: Mutex::new(Some(consumer)),
            tasks: Mutex::new(tasks),
            _lock: lock,
        })
    }
}

/// Locks the directory for this process.
fn lock(data_dir: &Path) -> Result<DirLock, ClusterError> {
    let path = data_dir.join(LOCK_FILE);
    let failed = |source| ClusterError::Directory {
        path: path.clone(),
        source,
    };
    durable::create_dir_all(data_dir).map_err(failed)?;
    DirLock::create(&path).map_err(|error| match error {
        TryLockError::WouldBlock => ClusterError::InUse(data_dir.to_owned()),
        TryLockError::Error(source) => failed(source),
    })
}

/// The share of each of `stores` stores.
fn share(whole: StoreOptions, stores: usize) -> StoreOptions {
    let part = |bytes: usize| (bytes / stores.max(1)).max(SHARE_BYTES_MIN);
    StoreOptions {
        tally_bytes_max: part(whole.tally_bytes_max),
        view_bytes_max: part(whole.view_bytes_max),
        memtable_bytes: part(whole.memtable_bytes),
        known_keys_bytes: part(whole.known_keys_bytes),
        block_cache_bytes: part(whole.block_cache_bytes),
        journal_bytes_max: part(whole.journal_bytes_max),
        receipts_bytes_max: part(whole.receipts_bytes_max as usize) as u64,
        import_receipts_bytes_max: part(whole.import_receipts_bytes_max as usize) as u64,
        stall_max: STALL_TIME_MAX,
        external_journal: true,
        ..whole
    }
}

/// Reloads the files of secrets at each notification.
async fn reload_secrets(state: Arc<NodeState>, mut reload: watch::Receiver<()>) {
    while reload.changed().await.is_ok() {
        let state = state.clone();
        let reloaded = tokio::task::spawn_blocking(move || {
            state.signer.reload()?;
            state.peers.reload()
        })
        .await;
        if let Ok(Err(error)) = reloaded {
            tracing::error!(%error, "node tokens and certificates not reloaded; the previous ones remain in use");
        }
    }
}

/// Announces the partitions of this node every few seconds, and when one was opened.
async fn announce(state: Arc<NodeState>) {
    let mut orphans = Orphans::default();
    loop {
        orphans.request_owners(&state);
        state.owners.publish_permanent();
        let positions = state.local.positions();
        // All of them are sent before the first is awaited.
        let sent: Vec<_> = positions
            .into_iter()
            .map(|(partition, position)| state.owners.publish_ownership(partition, position))
            .collect();
        let has_nothing = sent.is_empty();
        for result in sent {
            state.record_result(&result.await);
        }
        // A node that is not ready gets no flows to send, so it has to find out by itself that the brokers are back.
        if has_nothing && !state.connected.load(Ordering::Relaxed) {
            let asking = state.clone();
            let reachable =
                tokio::task::spawn_blocking(move || asking.producer.is_reachable()).await;
            (state.connected).store(
                reachable.is_ok_and(|is_reachable| is_reachable),
                Ordering::Relaxed,
            );
        }
        tokio::select! {
            () = tokio::time::sleep(ANNOUNCE_INTERVAL) => {}
            () = state.assigned.notified() => {}
        }
    }
}

/// Requests a new assignment if partitions have no owner.
#[derive(Debug, Default)]
struct Orphans {
    /// Since when Kafka has been reachable without interruption: announcements arrive only then.
    connected_since: Option<Instant>,
    /// Number of requests since all partitions had an owner, and when the last one was made.
    requests: u32,
    last: Option<Instant>,
}

impl Orphans {
    fn request_owners(&mut self, state: &NodeState) {
        if !state.connected.load(Ordering::Relaxed) {
            *self = Orphans::default();
            return;
        }
        let connected_since = *self.connected_since.get_or_insert_with(Instant::now);
        if connected_since.elapsed() <= ORPHAN_TIME {
            return;
        }
        let is_orphan = |partition: &Partition| {
            state.owners.is_silent(*partition, ORPHAN_TIME) && !state.local.is_assigned(*partition)
        };
        let Some(partition) = state.partitions.partitions().find(is_orphan) else {
            (self.requests, self.last) = (0, None);
            return;
        };
        // An owner that downloads a checkpoint is silent too, possibly for hours.
        let pause = ORPHAN_TIME * 2_u32.pow(self.requests.min(ORPHAN_DOUBLINGS_MAX));
        if self.last.is_some_and(|last| last.elapsed() < pause) {
            return;
        }
        (self.requests, self.last) = (self.requests + 1, Some(Instant::now()));
        if let Some(control) = state.control.get() {
            tracing::warn!(%partition, "no node owns a partition; the group is asked to assign it");
            control.request_assignment();
        }
    }
}

impl NodeState {
    /// Updates the state of the connection by the result of sending a message.
    fn record_result(&self, sent: &Result<Option<Offset>, KafkaError>) {
        match sent {
            Ok(_) => {
                if !self.connected.swap(true, Ordering::Relaxed) {
                    tracing::info!("Kafka accepts messages again");
                }
            }
            Err(KafkaError::Fatal { .. }) => self.has_failed.store(true, Ordering::Relaxed),
            Err(error @ KafkaError::Unavailable { .. }) => {
                if self.connected.swap(false, Ordering::Relaxed) {
                    tracing::warn!(%error, "Kafka does not accept messages");
                }
            }
            Err(_) => {}
        }
    }

    /// The progress of this node's partitions.
    fn progress(&self) -> BTreeMap<Partition, Progress> {
        let control = self.control.get();
        control
            .map(|control| control.progress())
            .unwrap_or_default()
    }
}
