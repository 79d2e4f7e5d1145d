//! Downloads a checkpoint.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path as FilePath;

use object_store::ObjectStoreExt;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::Xxh3;

use super::{
    Checkpoint, CheckpointError, PART_BYTES, PartitionCheckpoints, StoredFile, with_context,
};
use crate::store::codec::IDENTITY_FILE;
use crate::store::{PARTITION_FILE, ROCKS};
use agent::durable;

impl PartitionCheckpoints {
    /// Downloads a checkpoint into the directory `into`, which is replaced, and syncs it to disk. Returns its size in
    /// bytes.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] if another checkpoint should be tried. After an error or a kill, `into` is
    /// incomplete.
    pub fn download(
        &self,
        listed: &Checkpoint,
        into: &FilePath,
        stop: &CancellationToken,
    ) -> Result<u64, CheckpointError> {
        let damaged = |why: String| CheckpointError::Damaged {
            name: listed.path.to_string(),
            why,
        };
        let described = self.describe(listed, stop).map_err(|error| match error {
            CheckpointError::Unavailable(object_store::Error::NotFound { .. }) => {
                damaged("it is gone".into())
            }
            other => other,
        })?;
        for needed in [IDENTITY_FILE, PARTITION_FILE] {
            if !described.files.iter().any(|f| f.entry.name == needed) {
                return Err(damaged(format!("it lacks the file {needed}")));
            }
        }
        // The sizes of all files are checked before the first is downloaded.
        let sizes = self.sizes(stop)?;
        for StoredFile { entry, object, .. } in &described.files {
            match sizes.get(object) {
                None => return Err(damaged(format!("its file {} is gone", entry.name))),
                Some(bytes) if *bytes != entry.bytes => {
                    let (name, expected) = (&entry.name, entry.bytes);
                    let why = format!("its file {name} has {bytes} bytes instead of {expected}");
                    return Err(damaged(why));
                }
                Some(_) => {}
            }
        }
        remove(into)?;
        let rocks = into.join(ROCKS);
        fs::create_dir_all(&rocks).map_err(with_context(&rocks))?;
        self.for_each(&described.files, stop, |file| {
            match self.fetch(file, into, stop) {
                Ok(checksum) if checksum == file.checksum => Ok(()),
                Ok(_) => Err(damaged(format!("its file {} has changed", file.entry.name))),
                // Another node has pruned it meanwhile.
                Err(CheckpointError::Unavailable(object_store::Error::NotFound { .. })) => {
                    Err(damaged(format!("its file {} is gone", file.entry.name)))
                }
                Err(error) => Err(error),
            }
        })?;
        durable::sync_dir(&rocks).map_err(with_context(&rocks))?;
        durable::sync_dir(into).map_err(with_context(into))?;
        Ok(described.files.iter().map(|file| file.entry.bytes).sum())
    }

    /// Downloads a file, and returns its checksum.
    pub(super) fn fetch(
        &self,
        StoredFile { entry, object, .. }: &StoredFile,
        into: &FilePath,
        stop: &CancellationToken,
    ) -> Result<String, CheckpointError> {
        let (from, path) = (self.file(object), into.join(&entry.name));
        let mut file = File::create_new(&path).map_err(with_context(&path))?;
        let mut hash = Xxh3::new();
        let mut done = 0;
        while done < entry.bytes {
            let end = entry.bytes.min(done + PART_BYTES as u64);
            let part = self.wait(stop, self.objects().get_range(&from, done..end))?;
            if part.is_empty() {
                break;
            }
            hash.update(&part);
            file.write_all(&part).map_err(with_context(&path))?;
            done += part.len() as u64;
        }
        file.sync_all().map_err(with_context(&path))?;
        Ok(format!("{:032x}", hash.digest128()))
    }
}

/// Removes a directory, if it is there.
fn remove(dir: &FilePath) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(with_context(dir)(e)),
        _ => Ok(()),
    }
}
