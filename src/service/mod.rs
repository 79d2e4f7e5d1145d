//! The service behind the API. Handlers only use the trait [`Service`]; there are two implementations:
//!
//! - [`Standalone`]: one process with a store of its own;
//! - `cluster`, with the feature `kafka`: one node of many, whose journal is a topic of Kafka.
//!
//! [`prepare`] chooses between them, by the [`Mode`] that the configuration gives. The feature decides only which file
//! is the module `cluster`, here and in the configuration.

#[cfg_attr(not(feature = "kafka"), path = "no_cluster.rs")]
pub mod cluster;
mod error;
mod standalone;

pub use error::ServiceError;
pub use flow::ReceiptInfo;
pub use standalone::Standalone;

use std::fmt::Debug;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backup;
use crate::directory::Directory;
use crate::ingest::Permit;
use crate::query::{Hours, QueryError, QueryLimits, RowFormat, Rows};
use crate::store::{DataDir, StoreError, StoreOptions};
use crate::telemetry::Metrics;
use flow::directory::DirectoryRequest;
use flow::query::text::BadQuery;
use flow::query::{HoursQuery, Query};
use flow::{Batch, Hour, HourRange, IdempotencyKey, Partition, Totals};

/// The result of committing a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// A batch with the same idempotency key was counted before, so this one was not counted again.
    pub replayed: bool,
    /// Flows of it that count.
    pub flows: u64,
    /// Flows of it that were too old to count.
    pub too_old: u64,
}

/// The reason why an agent's claims of addresses were not taken, or not by all nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimsRefused(pub String);

/// Whether the service works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Commits and queries are expected to succeed.
    Ready,
    /// They would fail for now, for this reason. It is temporary, or the log has the remedy.
    NotReady(String),
    /// Batches are refused, and a restart may help. `ready` is for `/readyz`, `cause` completes "… for 10 seconds".
    Failing { ready: String, cause: &'static str },
}

/// Commits batches, answers queries, and manages the store.
pub trait Service: Debug + Send + Sync {
    /// Resolves once every flow of `batch` is durable; with `until_visible`, once every node's next response
    /// includes it, too.
    ///
    /// If the caller drops the future, the batch may still be committed, as if the response had been lost.
    fn commit(
        &self,
        batch: Batch,
        permit: Permit,
        until_visible: bool,
    ) -> BoxFuture<'_, Result<Committed, ServiceError>>;

    /// Called before a batch is received. Cheap.
    ///
    /// # Errors
    /// If [`Service::commit`] would refuse the batch, whatever it has.
    fn admit_batch(&self) -> Result<(), ServiceError> {
        Ok(())
    }

    /// The rows that answer `query`, each store's as of one moment between two commits. Blocks on the disk and on
    /// other nodes; sorting, pages and groups that need a table are complete when it returns.
    fn ask(&self, query: &Query, cancel: CancellationToken) -> Result<Rows, QueryError>;

    /// The hours that hold flows, each store's as of one moment between two commits. Blocks like
    /// [`Service::ask`].
    fn hours(&self, query: &HoursQuery, cancel: CancellationToken) -> Result<Hours, QueryError>;

    /// The flows that were accepted, minus those in the ledger, as they were compared last. Anything but 0 is a fault.
    /// `None` if they have not been compared, or in a mode with many stores. Cheap.
    fn ledger_difference(&self) -> Option<i64> {
        None
    }

    /// The newest hour that has flows; `None` if there is none, or it is not known.
    fn newest_hour(&self) -> Option<Hour>;

    /// The partitions whose rows this node can read itself, for queries that need no other node; `None` if there is only
    /// one store.
    fn readable_partitions(&self) -> Option<Vec<Partition>> {
        None
    }

    /// The receipt or note under each of these idempotency keys. Blocks on the disk.
    fn receipts(&self, keys: &[IdempotencyKey]) -> Result<Vec<Option<ReceiptInfo>>, ServiceError>;

    /// Deletes a range of hours, and returns their totals; `None` if they had no flows. Blocks on the disk.
    fn delete_hours(&self, hours: HourRange) -> Result<Option<Totals>, ServiceError>;

    /// Called once, when the API serves requests: logs how the service was opened.
    fn log_ready(&self) {}

    fn health(&self) -> Health;

    /// Sets the gauges.
    fn observe(&self) -> Result<(), StoreError>;

    /// The directory of the fleet's addresses, with the claims that this node knows.
    fn directory(&self) -> &Arc<Directory>;

    /// Whether the directory has what other nodes know.
    fn is_directory_current(&self) -> bool {
        true
    }

    /// Replaces the claims of an agent, on all nodes. Questions in the request are ignored.
    ///
    /// # Errors
    /// If this node has no room for them, or cannot tell the others.
    fn renew_claims(&self, request: DirectoryRequest) -> BoxFuture<'_, Result<(), ClaimsRefused>>;

    /// The backup sessions of its store.
    ///
    /// # Errors
    /// [`ServiceError::Unsupported`] in a mode without backups.
    fn backups(&self) -> Result<Arc<backup::Sessions>, ServiceError>;

    /// Commits all batches that it has received, refuses further ones, and writes all sums to their final files, so
    /// that the next start has nothing to replay. The last flush gets `time_max`. Blocks.
    fn close(&self, time_max: Duration) -> Result<(), StoreError>;

    /// Reads a request from another node of the cluster; `None` if there is no such path.
    fn peer_request(&self, _path: &str, _query: &str) -> Option<Result<PeerRequest<'_>, BadQuery>> {
        None
    }
}

/// Paths of the requests between nodes start with this.
pub const PEER_PATH_PREFIX: &str = "/partitions/";

/// A request from another node of the cluster, with its response in progress.
#[allow(missing_debug_implementations)] // it has a future
#[allow(clippy::large_enum_variant)] // there is one for each request
pub enum PeerRequest<'a> {
    /// The result of [`Service::ask`], in this format.
    Rows(Query, RowFormat),
    /// The result of [`Service::hours`].
    Hours(HoursQuery),
    /// Resolves to true when the sums include the requested offsets; to false if that takes too long.
    Applied(BoxFuture<'a, bool>),
}

/// The mode of the service.
#[derive(Clone, Debug)]
pub enum Mode {
    Standalone,
    Cluster(Box<cluster::NodeConfig>),
}

impl Mode {
    /// Maximum number of open stores of the process.
    pub fn stores_max(&self) -> usize {
        match self {
            Mode::Standalone => 1,
            Mode::Cluster(config) => config.stores_max(),
        }
    }
}

/// Options for both implementations.
#[derive(Clone, Debug)]
pub struct ServiceOptions {
    pub data_dir: PathBuf,
    pub store: StoreOptions,
    pub query: QueryLimits,
    /// Maximum memory of the directory of addresses.
    pub directory_bytes_max: usize,
    pub metrics: Metrics,
    /// Notified when the files of secrets have to be read again.
    pub reload: watch::Receiver<()>,
}

/// The reason why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    #[error(transparent)]
    Cluster(#[from] cluster::ClusterError),
}

/// Opens the service, on a thread that may block. Returns `None` if the token was cancelled before it was open.
pub type Open = Box<
    dyn FnOnce(&CancellationToken) -> Result<Option<Arc<dyn Service>>, OpenError> + Send + 'static,
>;

/// Returns the function that opens the service. The data directory of a standalone service is locked here, so that one
/// that is in use or has another format is reported before anything else happens.
///
/// # Errors
/// If the data directory cannot be used.
pub fn prepare(mode: Mode, options: ServiceOptions) -> Result<Open, OpenError> {
    match mode {
        Mode::Standalone => {
            let dir = DataDir::open(&options.data_dir)?;
            Ok(Box::new(move |_| {
                let service = Standalone::open(dir, &options)?;
                Ok(Some(Arc::new(service)))
            }))
        }
        Mode::Cluster(config) => Ok(cluster::prepare(*config, options)),
    }
}
