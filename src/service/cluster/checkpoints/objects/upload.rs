//! Uploads a checkpoint.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::Path as FilePath;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::{ObjectStoreExt, PutPayload, WriteMultipart};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

use super::{
    BackupFile, CheckpointError, Description, FILES, FORMAT, PART_BYTES, PREFIX,
    PartitionCheckpoints, SUFFIX, StoredFile, with_context,
};
use crate::backup::{self, BackupError};
use crate::store::Store;
use flow::Offset;

/// An upload that takes longer is aborted, because files that it shares with an older checkpoint may be pruned then.
const UPLOAD_TIME_MAX: Duration = Duration::from_secs(45 * 60);
/// Parts of a file that are being sent while the next is read.
const PARTS_AT_A_TIME: usize = 1;

/// A checkpoint that was uploaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upload {
    pub position: Offset,
    pub files: u64,
    pub bytes: u64,
    /// Files that were not in the store yet.
    pub files_sent: u64,
    pub bytes_sent: u64,
}

/// The checkpoint on the local disk.
struct LocalCheckpoint<'a> {
    store: &'a Store,
    name: String,
}

impl Drop for LocalCheckpoint<'_> {
    fn drop(&mut self) {
        // If it fails, the next open removes it.
        let _best_effort = self.store.remove_checkpoint(&self.name);
    }
}

impl PartitionCheckpoints {
    /// Makes a checkpoint of `store`, and uploads the files that the newest uploaded one does not have. Returns `None` if
    /// that one has the same position or a later one. The store can be used meanwhile.
    ///
    /// # Errors
    /// If the object store is unavailable, the disk is full, or `stop` is cancelled. Files that were sent are pruned
    /// later.
    pub fn upload(
        &self,
        store: &Store,
        stop: &CancellationToken,
    ) -> Result<Option<Upload>, CheckpointError> {
        let limited = self.limited(stop, UPLOAD_TIME_MAX);
        match self.upload_all(store, limited.token()) {
            Err(CheckpointError::Stopped) if !stop.is_cancelled() => {
                Err(CheckpointError::TooSlow(UPLOAD_TIME_MAX))
            }
            other => other,
        }
    }

    fn upload_all(
        &self,
        store: &Store,
        stop: &CancellationToken,
    ) -> Result<Option<Upload>, CheckpointError> {
        let newest = self.newest(stop)?;
        let position = store.position().map_err(BackupError::from)?;
        let position = position.next_offset().map_err(CheckpointError::Position)?;
        if position == Offset::ZERO || newest.as_ref().is_some_and(|n| n.position >= position) {
            return Ok(None);
        }
        let there = match &newest {
            Some(_) => self.sizes(stop)?,
            None => HashMap::new(),
        };
        let mut known: HashMap<BackupFile, StoredFile> = HashMap::new();
        for stored in newest.into_iter().flat_map(|newest| newest.files) {
            // A file that is missing or incomplete is sent again.
            let is_there = there.get(&stored.object) == Some(&stored.entry.bytes);
            if is_there && stored.entry.tag.is_some() {
                known.insert(stored.entry.clone(), stored);
            }
        }
        let upload = Uuid::now_v7().simple().to_string();
        let local = LocalCheckpoint {
            store,
            name: upload.clone(),
        };
        let made = store.checkpoint(&local.name);
        let made = made.map_err(BackupError::from)?;
        let entries = backup::list_files(&made.path)?;
        let sent =
            HashSet::<&BackupFile>::from_iter(entries.iter().filter(|e| !known.contains_key(e)));
        let files = self.for_each(&entries, stop, |entry| match known.get(entry) {
            Some(stored) => Ok(stored.clone()),
            None => self.send(&made.path, entry, &upload, stop),
        })?;
        let uploaded = Upload {
            position: made
                .position
                .next_offset()
                .map_err(CheckpointError::Position)?,
            files: files.len() as u64,
            bytes: entries.iter().map(|e| e.bytes).sum(),
            files_sent: sent.len() as u64,
            bytes_sent: sent.iter().map(|e| e.bytes).sum(),
        };
        self.write_description(uploaded.position, files, stop)?;
        Ok(Some(uploaded))
    }

    /// The newest checkpoint that can be read.
    fn newest(&self, stop: &CancellationToken) -> Result<Option<Description>, CheckpointError> {
        for listed in self.list(stop)? {
            match self.describe(&listed, stop) {
                Ok(description) => return Ok(Some(description)),
                Err(error @ CheckpointError::Damaged { .. }) => {
                    tracing::warn!(%error, "skipped a checkpoint")
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The sizes of the files in the store.
    pub(super) fn sizes(
        &self,
        stop: &CancellationToken,
    ) -> Result<HashMap<String, u64>, CheckpointError> {
        let dir = self.dir.clone().join(FILES);
        let list = self.objects().list(Some(&dir)).try_fold(
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
        entry: &BackupFile,
        upload: &str,
        stop: &CancellationToken,
    ) -> Result<StoredFile, CheckpointError> {
        let path = dir.join(&entry.name);
        let mut hash = Xxh3::new();
        // The object's name contains the checksum, so a file of several parts is read twice.
        let mut parts = PartReader::open(&path)?;
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
            self.wait(stop, self.objects().put(&to, PutPayload::from(first)))?;
        } else {
            let writing = self.wait(stop, self.objects().put_multipart(&to))?;
            let mut writing = WriteMultipart::new_with_chunk_size(writing, PART_BYTES);
            let mut send_all = || {
                let mut parts = PartReader::open(&path)?;
                loop {
                    let part = parts.next()?;
                    if part.is_empty() {
                        return Ok(());
                    }
                    self.wait(stop, writing.wait_for_capacity(PARTS_AT_A_TIME))?;
                    // `put` starts requests.
                    let _on_the_runtime = self.store.runtime.enter();
                    writing.put(part);
                }
            };
            if let Err(error) = send_all() {
                let _best_effort = self.wait(&CancellationToken::new(), writing.abort());
                return Err(error);
            }
            self.wait(stop, writing.finish())?;
        }
        Ok(StoredFile {
            entry: entry.clone(),
            object,
            checksum,
        })
    }

    /// Writes the list of files, which makes them a checkpoint.
    fn write_description(
        &self,
        position: Offset,
        files: Vec<StoredFile>,
        stop: &CancellationToken,
    ) -> Result<(), CheckpointError> {
        let name = format!("{PREFIX}{:020}-{}{SUFFIX}", position.get(), self.node);
        let description = Description {
            format: FORMAT,
            of: self.identity.clone(),
            position,
            node: self.node.clone(),
            files,
        };
        let damaged = |e: serde_json::Error| CheckpointError::Damaged {
            name: name.clone(),
            why: e.to_string(),
        };
        let text = serde_json::to_vec(&description).map_err(damaged)?;
        let path = self.dir.clone().join(name.as_str());
        self.wait(stop, self.objects().put(&path, PutPayload::from(text)))?;
        Ok(())
    }
}

/// The parts of a file.
struct PartReader<'a> {
    path: &'a FilePath,
    file: File,
}

impl PartReader<'_> {
    fn open(path: &FilePath) -> Result<PartReader<'_>, CheckpointError> {
        let file = File::open(path).map_err(with_context(path))?;
        Ok(PartReader { path, file })
    }

    /// The next part; empty at the end.
    fn next(&mut self) -> Result<Bytes, CheckpointError> {
        let mut part = Vec::new();
        let limited = (&mut self.file).take(PART_BYTES as u64);
        { limited }
            .read_to_end(&mut part)
            .map_err(with_context(self.path))?;
        Ok(part.into())
    }
}
