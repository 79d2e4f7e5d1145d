//! Removes checkpoints and files that no node needs.
//!
//! **A node may prune while another uploads**, since a node behind a network partition may not know that another owns
//! its partition. Pruning never removes a file *X* that a checkpoint *C* refers to, whether *C* exists already or is
//! still being uploaded. This follows from three rules:
//!
//! 1. An upload takes less than [`UNSAFE_MS`]: after that, `upload` fails. The files that it sends have names of their
//!    own; otherwise it refers only to files of the checkpoint that was the newest when it started.
//! 2. A checkpoint is removed only when two newer ones are at least [`UNSAFE_MS`] old. So the checkpoint that was the
//!    newest when an upload started is kept until that upload has ended, whether it succeeds or not.
//! 3. A file is removed only when it is at least [`UNSAFE_MS`] old and none of the checkpoints that are kept refers to
//!    it. Checkpoints are listed before files.
//!
//! If *C* was listed, rule 3 keeps *X*. Otherwise the upload of *C* has not ended, or ended after the listing. If that
//! upload sent *X*, then *X* is too young to be removed, by rule 1. Otherwise *X* belongs to the checkpoint that was the
//! newest when the upload started. If that one was listed, rule 2 keeps it, and so *X* too. If it was not listed either,
//! the same argument applies to it in place of *C*.
//!
//! Ages are differences of the object store's own times, so no node's clock matters. A process that was suspended for an
//! hour between its last file and its description may write a description whose files are gone. A node that downloads
//! this checkpoint finds that it is damaged, and uses the one before, which rule 2 has kept.

use std::collections::HashSet;

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::Error;
use object_store::path::Path;
use tokio_util::sync::CancellationToken;

use super::{Checkpoint, CheckpointError, FILES, PartitionCheckpoints};

/// Number of checkpoints that are always kept.
const KEPT: usize = 2;
/// A younger file may belong to an upload that has not ended.
const UNSAFE_MS: i64 = 60 * 60 * 1_000;

/// The number of objects that were removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    pub checkpoints: u64,
    pub files: u64,
}

impl PartitionCheckpoints {
    /// Removes checkpoints that newer ones replace, and files that belong to no checkpoint.
    ///
    /// # Errors
    /// If the object store is unavailable, or a checkpoint that is kept cannot be read: then no file is removed.
    pub fn prune(&self, stop: &CancellationToken) -> Result<Pruned, CheckpointError> {
        self.prune_older(UNSAFE_MS, stop)
    }

    pub(super) fn prune_older(
        &self,
        unsafe_ms: i64,
        stop: &CancellationToken,
    ) -> Result<Pruned, CheckpointError> {
        let listed = self.list(stop)?;
        let Some(now_ms) = listed.iter().map(|l| l.written_ms).max() else {
            return Ok(Pruned::default());
        };
        let is_old = |written_ms: i64| now_ms.saturating_sub(written_ms) >= unsafe_ms;
        let (stay, go) = split(listed, |listed| is_old(listed.written_ms));
        let mut needed = HashSet::new();
        for listed in &stay {
            let described = self.describe(listed, stop)?;
            needed.extend(described.files.into_iter().map(|file| file.object));
        }
        let dir = self.dir.clone().join(FILES);
        let files: Vec<_> = self.wait(stop, self.objects().list(Some(&dir)).try_collect())?;
        let files = files.into_iter().filter(|object| {
            let is_needed = |name| needed.contains(name);
            is_old(object.last_modified.timestamp_millis())
                && !object.location.filename().is_none_or(is_needed)
        });
        // Remove checkpoints first, so that none refers to deleted files.
        Ok(Pruned {
            checkpoints: self.remove(go.into_iter().map(|listed| listed.path).collect(), stop)?,
            files: self.remove(files.map(|object| object.location).collect(), stop)?,
        })
    }

    fn remove(&self, paths: Vec<Path>, stop: &CancellationToken) -> Result<u64, CheckpointError> {
        let paths = stream::iter(paths.into_iter().map(Ok)).boxed();
        let removing = self.objects().delete_stream(paths);
        let count = removing.try_fold(0, |count, _| async move { Ok(count + 1) });
        match self.wait(stop, count) {
            // Another node prunes at the same time; the next run removes the rest.
            Err(CheckpointError::Unavailable(Error::NotFound { .. })) => Ok(0),
            other => other,
        }
    }
}

/// Splits checkpoints, the newest first, into those to keep and those to remove.
pub(super) fn split(
    listed: Vec<Checkpoint>,
    is_old: impl Fn(&Checkpoint) -> bool,
) -> (Vec<Checkpoint>, Vec<Checkpoint>) {
    let mut newer_and_old = 0;
    listed.into_iter().partition(|listed| {
        let stays = newer_and_old < KEPT;
        newer_and_old += usize::from(is_old(listed));
        stays
    })
}
