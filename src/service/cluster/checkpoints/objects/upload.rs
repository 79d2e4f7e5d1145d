//! The way there.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::Path as FilePath;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::{ObjectStoreExt, PutPayload, WriteMultipart};
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

use super::{
    Description, Entry, FILES, FORMAT, ObjectsError, PART_BYTES, PREFIX, Place, SUFFIX, Stop,
    Stored, at,
};
use crate::backup::{self, BackupError};
use crate::store::Store;

/// One that takes longer is given up: what it shares with an older one may be pruned then.
const UPLOAD_TIME_MAX: Duration = Duration::from_secs(45 * 60);
/// Parts of a file that are under way while the next is read.
const PARTS_AT_A_TIME: usize = 1;

/// A checkpoint that was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Put {
    pub position: u64,
    pub files: u64,
    pub bytes: u64,
    /// Those of them that were not there yet.
    pub files_sent: u64,
    pub bytes_sent: u64,
}

/// The checkpoint on our own disk.
struct Local<'a> {
    store: &'a Store,
    name: String,
}

impl Drop for Local<'_> {
    fn drop(&mut self) {
        // The next open does it otherwise.
        let _best_effort = self.store.remove_checkpoint(&self.name);
    }
}

impl Place {
    /// Makes a checkpoint of `store`, and sends what the newest one that is there does not have. `None` where that
    /// has all. The store goes on meanwhile.
    ///
    /// # Errors
    /// An object store that is away, a disk that is full, or `stop`. What was sent is pruned later.
    pub fn put(&self, store: &Store, stop: Stop<'_>) -> Result<Option<Put>, ObjectsError> {
        let give_up = Instant::now() + UPLOAD_TIME_MAX;
        let is_late = || Instant::now() >= give_up;
        match self.put_all(store, &|| stop() || is_late()) {
            Err(ObjectsError::Stopped) if is_late() => Err(ObjectsError::TooSlow(UPLOAD_TIME_MAX)),
            other => other,
        }
    }

    fn put_all(&self, store: &Store, stop: Stop<'_>) -> Result<Option<Put>, ObjectsError> {
        let newest = self.newest(stop)?;
        let position = store.position().map_err(BackupError::from)?;
        if position == 0 || newest.as_ref().is_some_and(|n| n.position >= position) {
            return Ok(None);
        }
        let there = match &newest {
            Some(_) => self.sizes(stop)?,
            None => HashMap::new(),
        };
        let mut known: HashMap<Entry, Stored> = HashMap::new();
        for stored in newest.into_iter().flat_map(|newest| newest.files) {
            // What is not there as it should be is sent again.
            let is_there = there.get(&stored.object) == Some(&stored.entry.bytes);
            if is_there && stored.entry.tag.is_some() {
                known.insert(stored.entry.clone(), stored);
            }
        }
        let upload = Uuid::now_v7().simple().to_string();
        let local = Local {
            store,
            name: upload.clone(),
        };
        let made = store.checkpoint(&local.name);
        let made = made.map_err(BackupError::from)?;
        let entries = backup::list_files(&made.path)?;
        let sent = HashSet::<&Entry>::from_iter(entries.iter().filter(|e| !known.contains_key(e)));
        let files = self.each(&entries, stop, |entry| match known.get(entry) {
            Some(stored) => Ok(stored.clone()),
            None => self.send(&made.path, entry, &upload, stop),
        })?;
        let put = Put {
            position: made.position,
            files: files.len() as u64,
            bytes: entries.iter().map(|e| e.bytes).sum(),
            files_sent: sent.len() as u64,
            bytes_sent: sent.iter().map(|e| e.bytes).sum(),
        };
        self.describe_all(made.position, files, stop)?;
        Ok(Some(put))
    }

    /// The newest one that can be read.
    fn newest(&self, stop: Stop<'_>) -> Result<Option<Description>, ObjectsError> {
        for listed in self.list(stop)? {
            match self.describe(&listed, stop) {
                Ok(description) => return Ok(Some(description)),
                Err(error @ ObjectsError::Damaged { .. }) => tracing::warn!(%error, "passed over"),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// How large the files are that are there.
    pub(super) fn sizes(&self, stop: Stop<'_>) -> Result<HashMap<String, u64>, ObjectsError> {
        let dir = self.dir.clone().join(FILES);
        let list = self.store().list(Some(&dir)).try_fold(
            HashMap::new(),
            |mut sizes, object| async move {
                if let Some(name) = object.location.filename() {
                    sizes.insert(name.to_owned(), object.size);
                }
                Ok(sizes)
            },
        );
        self.wait(stop, list)
    }

    pub(super) fn send(
        &self,
        dir: &FilePath,
        entry: &Entry,
        upload: &str,
        stop: Stop<'_>,
    ) -> Result<Stored, ObjectsError> {
        let path = dir.join(&entry.name);
        let mut hash = Xxh3::new();
        // Its name comes first, so a file that takes several parts is read twice.
        let mut parts = Parts::open(&path)?;
        let first = parts.next()?;
        hash.update(&first);
        let mut more = parts.next()?;
        let is_one = more.is_empty();
        while !more.is_empty() {
            hash.update(&more);
            more = parts.next()?;
        }
        let checksum = format!("{:032x}", hash.digest128());
        let object = format!("{checksum}-{upload}");
        let to = self.file(&object);
        if is_one {
            self.wait(stop, self.store().put(&to, PutPayload::from(first)))?;
        } else {
            let writing = self.wait(stop, self.store().put_multipart(&to))?;
            let mut writing = WriteMultipart::new_with_chunk_size(writing, PART_BYTES);
            let mut send_all = || {
                let mut parts = Parts::open(&path)?;
                loop {
                    let part = parts.next()?;
                    if part.is_empty() {
                        return Ok(());
                    }
                    self.wait(stop, writing.wait_for_capacity(PARTS_AT_A_TIME))?;
                    // It starts requests.
                    let _on_the_runtime = self.objects.runtime.enter();
                    writing.put(part);
                }
            };
            if let Err(error) = send_all() {
                let _best_effort = self.wait(&|| false, writing.abort());
                return Err(error);
            }
            self.wait(stop, writing.finish())?;
        }
        Ok(Stored {
            entry: entry.clone(),
            object,
            checksum,
        })
    }

    /// The last step, that makes a checkpoint of files.
    fn describe_all(
        &self,
        position: u64,
        files: Vec<Stored>,
        stop: Stop<'_>,
    ) -> Result<(), ObjectsError> {
        let name = format!("{PREFIX}{position:020}-{}{SUFFIX}", self.node);
        let description = Description {
            format: FORMAT,
            of: self.of.clone(),
            position,
            node: self.node.clone(),
            files,
        };
        let damaged = |e: serde_json::Error| ObjectsError::Damaged {
            name: name.clone(),
            why: e.to_string(),
        };
        let text = serde_json::to_vec(&description).map_err(damaged)?;
        let path = self.dir.clone().join(name.as_str());
        self.wait(stop, self.store().put(&path, PutPayload::from(text)))?;
        Ok(())
    }
}

/// A file, part by part.
struct Parts<'a> {
    path: &'a FilePath,
    file: File,
}

impl Parts<'_> {
    fn open(path: &FilePath) -> Result<Parts<'_>, ObjectsError> {
        let file = File::open(path).map_err(at(path))?;
        Ok(Parts { path, file })
    }

    /// Empty at the end.
    fn next(&mut self) -> Result<Bytes, ObjectsError> {
        let mut part = Vec::new();
        let limited = (&mut self.file).take(PART_BYTES as u64);
        { limited }.read_to_end(&mut part).map_err(at(self.path))?;
        Ok(part.into())
    }
}
