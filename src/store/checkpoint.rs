//! Checkpoints: a copy of the store at one moment, as a data directory, made while the service runs.
//!
//! Immutable files are hard-linked, so a checkpoint takes milliseconds and little space; it keeps files alive that
//! compaction has replaced since. It is a RocksDB checkpoint plus our identity file.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rocksdb::checkpoint::Checkpoint;

use super::dir::{PARTITION_FILE, ROCKS, remove_all, write_identity};
use super::error::{StoreError, with_context};
use super::position::Position;
use super::{Inner, Store, marker_in};
use agent::durable;

/// Maximum wait for the preceding flush.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(60);

/// A checkpoint, on the same disk as the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreCheckpoint {
    /// Its data directory.
    pub path: PathBuf,
    /// The last position of an external journal that its sums contain.
    pub position: Position,
}

impl Store {
    /// Makes a checkpoint called `name`: a data directory with the state between two commits, including everything
    /// that was acknowledged before the call. Commits continue meanwhile. Blocks on the disk.
    ///
    /// # Errors
    /// Usually a full disk. An incomplete checkpoint is removed.
    pub fn checkpoint(&self, name: &str) -> Result<StoreCheckpoint, StoreError> {
        let path = self.checkpoint_path(name);
        let made = self.make_checkpoint(&path);
        if made.is_err() {
            let _best_effort = remove_all(&path);
        }
        made.map(|position| StoreCheckpoint { path, position })
    }

    fn make_checkpoint(&self, path: &Path) -> Result<Position, StoreError> {
        let failed = |source| StoreError::Io {
            doing: "making a checkpoint",
            source,
        };
        // Flush first, so that the checkpoint has sums instead of a journal to replay. Later commits are in its
        // journal.
        self.flush_tallies(FLUSH_TIME_MAX)?;
        fs::create_dir_all(path).map_err(failed)?;
        let position = {
            // RocksDB lists the files before it copies the log. A flush in between would trim the journal in the log,
            // while its file would be missing from the list.
            let _write_lock = self.inner.flusher.lock_writes();
            if self.inner.dir.has_links() {
                Checkpoint::new(&self.inner.db)
                    .and_then(|checkpoint| checkpoint.create_checkpoint(path.join(ROCKS)))
                    .map_err(with_context("making a checkpoint"))?;
            } else {
                self.inner.copy_database(&path.join(ROCKS))?;
            }
            marker_in(&self.inner.db)?
        };
        let of = self.inner.dir.path().join(PARTITION_FILE);
        if of.exists() {
            fs::copy(of, path.join(PARTITION_FILE)).map_err(failed)?;
        }
        write_identity(path).map_err(failed)?;
        Ok(position)
    }

    /// The path of the checkpoint called `name`, whether it exists or not.
    pub fn checkpoint_path(&self, name: &str) -> PathBuf {
        self.inner.dir.checkpoints().join(name)
    }

    /// Removes the checkpoint called `name` if it exists.
    pub fn remove_checkpoint(&self, name: &str) -> Result<(), StoreError> {
        let path = self.checkpoint_path(name);
        remove_all(&path).map_err(|source| StoreError::Io {
            doing: "removing a checkpoint",
            source,
        })
    }
}

impl Inner {
    /// Copies the database if the file system has no hard links: RocksDB's checkpoint would fail there.
    fn copy_database(&self, to: &Path) -> Result<(), StoreError> {
        const DOING: &str = "copying the database for a checkpoint";
        self.db
            .disable_file_deletions()
            .map_err(with_context(DOING))?;
        let copied = copy_files(&self.dir.rocks(), to).map_err(|source| StoreError::Io {
            doing: DOING,
            source,
        });
        let enabled = self.db.enable_file_deletions().map_err(with_context(DOING));
        copied.and(enabled)
    }
}

/// Copies a database while file deletions are disabled. The MANIFEST is copied first, so that all files that it lists
/// exist when they are copied. Files that are created later are not in it, and are dropped when the copy is opened.
fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    let current = fs::read_to_string(from.join("CURRENT"))?;
    let copy = |name: &OsStr| {
        fs::copy(from.join(name), to.join(name))?;
        File::open(to.join(name))?.sync_all()
    };
    copy(current.trim_end().as_ref())?;
    fs::write(to.join("CURRENT"), &current)?;
    File::open(to.join("CURRENT"))?.sync_all()?;
    for found in fs::read_dir(from)? {
        let name = found?.file_name();
        let is_needed = ["sst", "log"].map(OsStr::new);
        let extension = Path::new(&name).extension();
        let is_options = name.to_string_lossy().starts_with("OPTIONS-");
        if is_options || extension.is_some_and(|e| is_needed.contains(&e)) {
            copy(&name)?;
        }
    }
    copy("IDENTITY".as_ref())?;
    durable::sync_dir(to)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::store::Selection;
    use crate::store::{StoreOptions, verify};
    use flow::BatchBuilder;
    use flow::{Counters, Hour};

    /// Every batch has the same two flows, so in any state between two commits both have equal sums. None that was
    /// acknowledged before may be missing.
    #[test]
    fn a_checkpoint_during_commits_and_flushes_is_consistent() {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            journal_bytes_max: 4096,
            ..StoreOptions::default()
        };
        let (store, _) = Store::open(dir.path(), options).unwrap();
        let hour = Hour::new(7).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let mut batch = BatchBuilder::with_capacity(0);
                    for name in [b"a", b"b"] {
                        batch.push(hour, [name, b"d", b"v"], Counters { tx: 1, rx: 2 });
                    }
                    store.commit(vec![batch.finish()]).unwrap();
                }
            });
            for round in 0..20 {
                let before = rows(&store, hour).first().map_or(0, |c| c.tx);
                let path = store.checkpoint(&format!("{round}")).unwrap().path;
                let verified = verify(&path).unwrap();
                assert!(verified.faults.is_empty(), "{:?}", verified.faults);
                let (copy, _) = Store::open(&path, StoreOptions::default()).unwrap();
                let sums = rows(&copy, hour);
                assert!(before == 0 || sums[0] == sums[1], "{sums:?}");
                assert!(sums.first().map_or(0, |c| c.tx) >= before);
                drop(copy);
                store.remove_checkpoint(&format!("{round}")).unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    /// A flush during a checkpoint would trim batches from the journal that its files lack.
    #[test]
    fn a_checkpoint_waits_for_writers() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let writes = store.inner.flusher.lock_writes();
        std::thread::scope(|scope| {
            let made = scope.spawn(|| store.checkpoint("one"));
            // Time to finish, if it does not wait; a busy machine only weakens this assertion.
            std::thread::sleep(Duration::from_millis(300));
            assert!(!made.is_finished());
            drop(writes);
            made.join().unwrap().unwrap();
        });
    }

    fn rows(store: &Store, hour: Hour) -> Vec<Counters> {
        let mut scan = store.select(Selection::hour(hour)).unwrap();
        let mut rows = Vec::new();
        while let Some((_, counters)) = scan.next().unwrap() {
            rows.push(counters);
        }
        rows
    }
}
