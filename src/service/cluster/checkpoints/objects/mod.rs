//! Checkpoints of partitions in an object store, so that a node that lacks a partition need not read all of
//! its topic.
//!
//! ```text
//! URL/TOPIC/3/checkpoint-00000000000000123456-node-1.json   one state: its position, and which files it has
//! URL/TOPIC/3/files/CHECKSUM-UPLOAD                         a file; never changed, and of many checkpoints
//! ```
//!
//! A partition's sums are what the journal up to a position makes of them, so it does not matter which node has
//! written a checkpoint: of two, the one with the higher position has more. The description comes last: a kill
//! at any point leaves files that nothing refers to, or a whole checkpoint.
//!
//! - `put` uploads what is new since the newest checkpoint.
//! - `get` downloads one, and verifies each file.
//! - `prune` removes what is not needed, and says why it never removes what somebody else needs.
//!
//! All of it blocks, on threads of the caller's; the requests run on the runtime.

mod download;
mod proxy;
mod prune;
mod upload;

use std::fmt;
use std::future::Future;
use std::path::Path as FilePath;
use std::pin::pin;
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

use crate::backup::{self, BackupError, Entry};

/// Of descriptions. A later one is not read.
const FORMAT: u32 = 1;
/// Files that are under way at a time, over all partitions.
const FILES_AT_A_TIME: usize = 8;
/// A file is sent and fetched in parts of so much, the least that S3 takes. Two of a file are in memory at most.
const PART_BYTES: usize = 5 << 20;
/// A description has a few hundred bytes for each file.
const DESCRIPTION_BYTES_MAX: u64 = 256 << 20;
/// How soon a request is broken off when it is not wanted any more.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Below a partition's place.
const FILES: &str = "files";
const PREFIX: &str = "checkpoint-";
const SUFFIX: &str = ".json";

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum ObjectsError {
    /// Of the arguments.
    #[error("{0}")]
    Url(String),
    /// The store is away, or refuses.
    #[error(transparent)]
    Away(#[from] object_store::Error),
    #[error("the checkpoint {name} is damaged: {why}")]
    Damaged { name: String, why: String },
    #[error(
        "{place} has checkpoints of {found}, not of {wanted}: give each Kafka and topic a --checkpoint-url of \
         its own"
    )]
    OfAnother {
        place: String,
        found: String,
        wanted: String,
    },
    #[error(transparent)]
    Here(#[from] BackupError),
    #[error("it took longer than {} minutes", .0.as_secs() / 60)]
    TooSlow(Duration),
    #[error("it was broken off")]
    Stopped,
}

/// Says that nobody wants it any more.
pub type Stop<'a> = &'a (dyn Fn() -> bool + Sync);

/// Where the checkpoints of all partitions are.
#[derive(Clone)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    root: Path,
    runtime: Handle,
    /// One for each file that is under way.
    turns: Arc<Semaphore>,
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the store, which may have keys.
        f.debug_tuple("Objects").field(&self.root).finish()
    }
}

impl Objects {
    /// The place that `url` says: `s3://bucket/path`, `gs://bucket/path` or `file:///path`. Keys and endpoints
    /// are in the variables that the vendors' own tools read.
    ///
    /// # Errors
    /// Another URL, or variables that do not fit together.
    pub fn open(url: &str, runtime: Handle) -> Result<Objects, ObjectsError> {
        let wrong =
            |why: &dyn fmt::Display| ObjectsError::Url(format!("--checkpoint-url {url}: {why}"));
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        // Of clients that are made from now on; where there is one already, it is this.
        let _is_there = rustls::crypto::ring::default_provider().install_default();
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
        Ok(Objects {
            store,
            root: Path::parse(path.trim_end_matches('/')).map_err(|e| wrong(&e))?,
            runtime,
            turns: Arc::new(Semaphore::new(FILES_AT_A_TIME)),
        })
    }

    /// Where those of one partition are. `of` says which it is, as the directory's `PARTITION` does; `node` is
    /// who writes.
    pub fn place(&self, topic: &str, partition: i32, of: String, node: String) -> Place {
        let dir = (self.root.clone().join(topic)).join(partition.to_string());
        Place {
            objects: self.clone(),
            dir,
            of,
            node,
        }
    }
}

fn below_bucket(rest: &str) -> &str {
    rest.split_once('/').map_or("", |(_, path)| path)
}

/// Where the checkpoints of one partition are.
#[derive(Clone, Debug)]
pub struct Place {
    objects: Objects,
    dir: Path,
    of: String,
    node: String,
}

/// A checkpoint that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    path: Path,
    /// Up to where its sums go.
    pub position: u64,
    /// By the store's clock, in milliseconds since the epoch.
    written_ms: i64,
}

/// What is in a checkpoint.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
struct Description {
    format: u32,
    of: String,
    position: u64,
    node: String,
    files: Vec<Stored>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
struct Stored {
    #[serde(flatten)]
    entry: Entry,
    /// Its name below `files`.
    object: String,
    /// XXH3 of its content, 128 bits.
    checksum: String,
}

impl Place {
    fn store(&self) -> &dyn ObjectStore {
        &*self.objects.store
    }

    fn file(&self, object: &str) -> Path {
        self.dir.clone().join(FILES).join(object)
    }

    /// Waits for the store until it answers, which it does within minutes, or `stop` says so.
    fn wait<T, E: Into<ObjectsError>>(
        &self,
        stop: Stop<'_>,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, ObjectsError> {
        self.objects.runtime.block_on(async {
            let mut future = pin!(future);
            while !stop() {
                if let Ok(done) = tokio::time::timeout(LOOK_INTERVAL, future.as_mut()).await {
                    return done.map_err(Into::into);
                }
            }
            Err(ObjectsError::Stopped)
        })
    }

    /// The checkpoints that are there, the newest first.
    ///
    /// # Errors
    /// A store that is away.
    pub fn list(&self, stop: Stop<'_>) -> Result<Vec<Listed>, ObjectsError> {
        let found = self.wait(stop, self.store().list_with_delimiter(Some(&self.dir)))?;
        let mut listed: Vec<_> = found.objects.iter().filter_map(listed).collect();
        listed.sort_by(|a, b| (b.position, &b.path).cmp(&(a.position, &a.path)));
        Ok(listed)
    }

    /// Reads what is in a checkpoint.
    fn describe(&self, listed: &Listed, stop: Stop<'_>) -> Result<Description, ObjectsError> {
        let damaged = |why: String| ObjectsError::Damaged {
            name: listed.path.to_string(),
            why,
        };
        let text = self.wait(stop, async {
            let found = self.store().get(&listed.path).await?;
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
        if read.of != self.of {
            return Err(ObjectsError::OfAnother {
                place: self.dir.to_string(),
                found: read.of,
                wanted: self.of.clone(),
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

    /// Does `work` with each of `items`, some at a time, until one of them fails.
    fn each<T: Sync, R: Send>(
        &self,
        items: &[T],
        stop: Stop<'_>,
        work: impl Fn(&T) -> Result<R, ObjectsError> + Sync,
    ) -> Result<Vec<R>, ObjectsError> {
        let next = AtomicUsize::new(0);
        let worker = || {
            let mut done = Vec::new();
            while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                // It is never closed.
                let turn = async {
                    self.objects
                        .turns
                        .acquire()
                        .await
                        .map_err(|_| ObjectsError::Stopped)
                };
                let turn = self.wait(stop, turn);
                match turn.and_then(|_until_it_is_done| work(item)) {
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
            all.extend(result.map_err(|_| ObjectsError::Stopped)??);
        }
        Ok(all)
    }
}

fn listed(object: &ObjectMeta) -> Option<Listed> {
    let name = object.location.filename()?;
    let position = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    Some(Listed {
        position: position.split('-').next()?.parse().ok()?,
        path: object.location.clone(),
        written_ms: object.last_modified.timestamp_millis(),
    })
}

/// For `map_err`.
fn at(path: &FilePath) -> impl FnOnce(std::io::Error) -> ObjectsError {
    let at = backup::at(path);
    move |source| at(source).into()
}

#[cfg(test)]
mod tests;
