//! Checkpoints of partitions in an object store, so that a node that is assigned a partition need not read its topic
//! from the start.
//!
//! ```text
//! URL/TOPIC/3/checkpoint-00000000000000123456-node-1.json   a checkpoint: its position, and the list of its files
//! URL/TOPIC/3/files/CHECKSUM-UPLOAD                         a file; never changed, and shared by checkpoints
//! ```
//!
//! A partition's sums are determined by the journal up to a position, so it does not matter which node wrote a
//! checkpoint: of two, the one with the higher position includes more. The list of files is written last, so a kill at
//! any point leaves either files that no checkpoint refers to, or a complete checkpoint.
//!
//! - `upload` sends the files that the newest checkpoint does not have.
//! - `download` fetches a checkpoint, and verifies each file.
//! - `prune` removes checkpoints and files that no node needs, and explains why it never removes others.
//!
//! All functions block the calling thread; the requests run on the runtime.

mod download;
mod proxy;
mod prune;
mod upload;

use std::fmt;
use std::future::Future;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::backup::{self, BackupError, BackupFile};
use flow::{Offset, OutOfRange, Partition};

/// Version of descriptions. A later one is not read.
const FORMAT: u32 = 1;
/// Maximum number of files that are transferred at a time, over all partitions.
const FILES_AT_A_TIME: usize = 8;
/// Files are transferred in parts of this size, the minimum of S3. At most two parts of a file are in memory.
const PART_BYTES: usize = 5 << 20;
/// A description has a few hundred bytes for each file.
const DESCRIPTION_BYTES_MAX: u64 = 256 << 20;

/// Below a partition's directory.
const FILES: &str = "files";
const PREFIX: &str = "checkpoint-";
const SUFFIX: &str = ".json";

/// The reason why a checkpoint was not uploaded, downloaded or pruned.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The URL, or a variable of the object store, is invalid.
    #[error("{0}")]
    Url(String),
    /// The object store is unavailable, or refuses.
    #[error(transparent)]
    Unavailable(#[from] object_store::Error),
    #[error("the checkpoint {name} is damaged: {why}")]
    Damaged { name: String, why: String },
    #[error(
        "{location} has checkpoints of {found}, not of {wanted}: give each Kafka cluster and topic a \
         --checkpoint-url of its own"
    )]
    WrongIdentity {
        location: String,
        found: String,
        wanted: String,
    },
    #[error(transparent)]
    Local(#[from] BackupError),
    #[error("the store's position: {0}")]
    Position(OutOfRange),
    #[error("it took longer than {} minutes", .0.as_secs() / 60)]
    TooSlow(Duration),
    #[error("it was stopped")]
    Stopped,
}

/// The object store with the checkpoints of all partitions.
#[derive(Clone)]
pub struct CheckpointStore {
    objects: Arc<dyn ObjectStore>,
    root: Path,
    runtime: Handle,
    /// One permit for each file that is being transferred.
    transfers: Arc<Semaphore>,
}

impl fmt::Debug for CheckpointStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The store may have keys, which must not be logged.
        f.debug_tuple("CheckpointStore").field(&self.root).finish()
    }
}

impl CheckpointStore {
    /// Opens the store at `url`: `s3://bucket/path`, `gs://bucket/path` or `file:///path`. Keys and endpoints are
    /// read from the variables that the vendors' own tools read.
    ///
    /// # Errors
    /// If the URL is of another kind, or the variables contradict each other.
    pub fn open(url: &str, runtime: Handle) -> Result<CheckpointStore, CheckpointError> {
        let wrong =
            |why: &dyn fmt::Display| CheckpointError::Url(format!("--checkpoint-url {url}: {why}"));
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        // Fails if another client has installed it already.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let (store, path): (Arc<dyn ObjectStore>, &str) = match scheme {
            "file" if rest.starts_with('/') => {
                (Arc::new(LocalFileSystem::new().with_fsync(true)), rest)
            }
            "s3" => {
                let bucket = AmazonS3Builder::from_env().with_url(url);
                let bucket = proxy::s3(bucket).map_err(|e| wrong(&e))?.build();
                (Arc::new(bucket.map_err(|e| wrong(&e))?), below_bucket(rest))
            }
            "gs" => {
                let bucket = GoogleCloudStorageBuilder::from_env().with_url(url);
                let bucket = proxy::gcs(bucket).map_err(|e| wrong(&e))?.build();
                (Arc::new(bucket.map_err(|e| wrong(&e))?), below_bucket(rest))
            }
            _ => {
                let why = "it has to be s3://bucket/path, gs://bucket/path or file:///path";
                return Err(wrong(&why));
            }
        };
        Ok(CheckpointStore {
            objects: store,
            root: Path::parse(path.trim_end_matches('/')).map_err(|e| wrong(&e))?,
            runtime,
            transfers: Arc::new(Semaphore::new(FILES_AT_A_TIME)),
        })
    }

    /// The checkpoints of one partition. `identity` names it, as the file `PARTITION` of its store does; `node` is
    /// this node's name.
    pub fn partition(
        &self,
        topic: &str,
        partition: Partition,
        identity: String,
        node: String,
    ) -> PartitionCheckpoints {
        let dir = (self.root.clone().join(topic)).join(partition.to_string());
        PartitionCheckpoints {
            store: self.clone(),
            dir,
            identity,
            node,
        }
    }
}

fn below_bucket(rest: &str) -> &str {
    rest.split_once('/').map_or("", |(_, path)| path)
}

/// The checkpoints of one partition.
#[derive(Clone, Debug)]
pub struct PartitionCheckpoints {
    store: CheckpointStore,
    dir: Path,
    identity: String,
    node: String,
}

/// A checkpoint in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    path: Path,
    /// The offset after the last message in its sums.
    pub position: Offset,
    /// By the store's clock, in milliseconds since the epoch.
    written_ms: i64,
}

/// The content of a checkpoint's description.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
struct Description {
    format: u32,
    of: String,
    position: Offset,
    node: String,
    files: Vec<StoredFile>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
struct StoredFile {
    #[serde(flatten)]
    entry: BackupFile,
    /// Its name below `files`.
    object: String,
    /// XXH3 of its content, 128 bits.
    checksum: String,
}

impl PartitionCheckpoints {
    fn objects(&self) -> &dyn ObjectStore {
        &*self.store.objects
    }

    fn file(&self, object: &str) -> Path {
        self.dir.clone().join(FILES).join(object)
    }

    /// Waits for the store, which responds within minutes, or until `stop` is cancelled.
    fn wait<T, E: Into<CheckpointError>>(
        &self,
        stop: &CancellationToken,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, CheckpointError> {
        if stop.is_cancelled() {
            return Err(CheckpointError::Stopped);
        }
        let done = self
            .store
            .runtime
            .block_on(stop.run_until_cancelled(future));
        done.ok_or(CheckpointError::Stopped)?.map_err(Into::into)
    }

    /// A token that is cancelled with `stop`, or after `time_max`.
    pub fn limited(&self, stop: &CancellationToken, time_max: Duration) -> DropGuard {
        let limited = stop.child_token();
        let token = limited.clone();
        self.store.runtime.spawn(async move {
            let _either = tokio::time::timeout(time_max, token.cancelled()).await;
            token.cancel();
        });
        limited.drop_guard()
    }

    /// The checkpoints in the store, the newest first.
    ///
    /// # Errors
    /// If the object store is unavailable.
    pub fn list(&self, stop: &CancellationToken) -> Result<Vec<Checkpoint>, CheckpointError> {
        let found = self.wait(stop, self.objects().list_with_delimiter(Some(&self.dir)))?;
        let mut listed: Vec<_> = found.objects.iter().filter_map(listed).collect();
        listed.sort_by(|a, b| (b.position, &b.path).cmp(&(a.position, &a.path)));
        Ok(listed)
    }

    /// Reads the description of a checkpoint.
    fn describe(
        &self,
        listed: &Checkpoint,
        stop: &CancellationToken,
    ) -> Result<Description, CheckpointError> {
        let damaged = |why: String| CheckpointError::Damaged {
            name: listed.path.to_string(),
            why,
        };
        let text = self.wait(stop, async {
            let found = self.objects().get(&listed.path).await?;
            match found.meta.size > DESCRIPTION_BYTES_MAX {
                true => Err(damaged("it is too large".into())),
                false => Ok(found.bytes().await?),
            }
        })?;
        let read: Description =
            serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
        if read.format != FORMAT {
            return Err(damaged(format!(
                "its format is {}, not {FORMAT}",
                read.format
            )));
        }
        if read.of != self.identity {
            return Err(CheckpointError::WrongIdentity {
                location: self.dir.to_string(),
                found: read.of,
                wanted: self.identity.clone(),
            });
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let odd = read.files.iter().find(|file| {
            !backup::is_file_name(&file.entry.name) || !file.object.chars().all(is_plain)
        });
        match odd {
            Some(file) => Err(damaged(format!("it has a file {:?}", file.entry.name))),
            None if read.position != listed.position => {
                Err(damaged("its name has another position".into()))
            }
            None => Ok(read),
        }
    }

    /// Runs `work` for each of `items`, several at a time, until one of them fails.
    fn for_each<T: Sync, R: Send>(
        &self,
        items: &[T],
        stop: &CancellationToken,
        work: impl Fn(&T) -> Result<R, CheckpointError> + Sync,
    ) -> Result<Vec<R>, CheckpointError> {
        let next = AtomicUsize::new(0);
        let worker = || {
            let mut done = Vec::new();
            while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                // The semaphore is never closed.
                let transfer = async {
                    self.store
                        .transfers
                        .acquire()
                        .await
                        .map_err(|_| CheckpointError::Stopped)
                };
                let transfer = self.wait(stop, transfer);
                match transfer.and_then(|_until_it_is_done| work(item)) {
                    Ok(result) => done.push(result),
                    Err(error) => {
                        next.store(items.len(), Ordering::Relaxed);
                        return Err(error);
                    }
                }
            }
            Ok(done)
        };
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..FILES_AT_A_TIME.min(items.len()))
                .map(|_| scope.spawn(worker))
                .collect();
            threads.into_iter().map(|t| t.join()).collect()
        });
        let mut all = Vec::new();
        for result in results {
            // A panic has been printed.
            all.extend(result.map_err(|_| CheckpointError::Stopped)??);
        }
        Ok(all)
    }
}

fn listed(object: &ObjectMeta) -> Option<Checkpoint> {
    let name = object.location.filename()?;
    let position = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    Some(Checkpoint {
        position: position.split('-').next()?.parse().ok()?,
        path: object.location.clone(),
        written_ms: object.last_modified.timestamp_millis(),
    })
}

/// For `map_err`.
fn with_context(path: &FilePath) -> impl FnOnce(std::io::Error) -> CheckpointError {
    let at = backup::with_context(path);
    move |source| at(source).into()
}

#[cfg(test)]
mod tests;
