//! The temporary directory of a demo, and those that killed demos have left.
//!
//! ```text
//! /tmp/flowtally-demo-XXXXXX/DEMO   says what the directory is; locked by the demo as long as it lives
//! /tmp/flowtally-demo-XXXXXX/db/    data directory of the service
//! ```
//!
//! The kernel releases the lock of a process that has ended, however it ended. So a directory whose `DEMO` can be locked
//! is a dead demo's. The file gets its name after it has been locked: a new demo's directory is never mistaken for a
//! dead one.

use std::fs::{self, DirEntry, File, Metadata, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use agent::durable::DirLock;

const PREFIX: &str = "flowtally-demo-";
const MARK: &str = "DEMO";
/// Name of the mark until it is locked.
const MARK_UNLOCKED: &str = "DEMO.new";
const MARK_TEXT: &str = "the data of a flowtally demo; removed when it ends\n";
const DB: &str = "db";
/// Directories that a start removes; the next one removes more.
const REMOVED_MAX: usize = 100;

/// The directory of this demo.
#[derive(Debug)]
pub(super) struct DemoDir {
    dir: TempDir,
    _lock: DirLock,
}

impl DemoDir {
    /// Creates one in the directory for temporary files.
    pub(super) fn create() -> io::Result<DemoDir> {
        let dir = TempDir::with_prefix(PREFIX)?;
        let unlocked = dir.path().join(MARK_UNLOCKED);
        let mut mark = File::create(&unlocked)?;
        mark.write_all(MARK_TEXT.as_bytes())?;
        let lock = DirLock::exclusive(mark).map_err(|error| match error {
            TryLockError::Error(error) => error,
            TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
        })?;
        fs::rename(&unlocked, dir.path().join(MARK))?;
        Ok(DemoDir { dir, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The data directory of the service.
    pub(super) fn db(&self) -> PathBuf {
        self.dir.path().join(DB)
    }

    /// Removes it and everything in it.
    pub(super) fn remove(self) -> io::Result<()> {
        remove(self.dir.path())
    }

    /// Removes the directories of dead demos of this user, as far as that is possible. Everything else stays.
    pub(super) fn remove_dead(&self) {
        let Some(parent) = self.path().parent() else {
            return;
        };
        let (Ok(own), Ok(entries)) = (self.path().symlink_metadata(), fs::read_dir(parent)) else {
            return;
        };
        let has_name = |entry: &DirEntry| {
            let name = entry.file_name();
            name.to_str().is_some_and(|name| name.starts_with(PREFIX))
        };
        let named = entries.flatten().filter(has_name);
        let dead = named.filter_map(|entry| {
            let lock = lock_of_dead(&entry.path(), &own).ok()??;
            Some((entry.path(), lock))
        });
        for (path, lock) in dead.take(REMOVED_MAX) {
            let _best_effort = remove(&path);
            drop(lock);
        }
    }
}

/// Removes a demo's directory. The mark goes last: if this is interrupted, the rest is still known as a demo's.
fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir.join(DB)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::remove_dir_all(dir)
}

/// The lock of a dead demo's directory at `path`; `None` if it is not one, or is not this user's, whose directory `own`
/// describes.
fn lock_of_dead(path: &Path, own: &Metadata) -> io::Result<Option<DirLock>> {
    let is_own = |found: &Metadata| found.uid() == own.uid();
    let found = path.symlink_metadata()?;
    if !found.is_dir() || !is_own(&found) {
        return Ok(None);
    }
    let mark = path.join(MARK);
    let found = mark.symlink_metadata()?;
    if !found.is_file() || !is_own(&found) {
        return Ok(None);
    }
    let mut only_its_own = fs::read_dir(path)?.flatten();
    if !only_its_own.all(|entry| entry.file_name() == MARK || entry.file_name() == DB) {
        return Ok(None);
    }
    let mark = File::open(&mark)?;
    let mut text = String::new();
    let length_max = MARK_TEXT.len() as u64 + 1;
    (&mark).take(length_max).read_to_string(&mut text)?;
    if text != MARK_TEXT {
        return Ok(None);
    }
    Ok(DirLock::exclusive(mark).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_provably_a_dead_demos_is_removed() {
        let own = DemoDir::create().unwrap();
        let metadata = own.path().symlink_metadata().unwrap();
        let is_dead = |path: &Path| matches!(lock_of_dead(path, &metadata), Ok(Some(_)));
        assert!(!is_dead(own.path()), "it is alive");
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("flowtally-demo-x");
        fs::create_dir_all(dir.join(DB)).unwrap();
        assert!(!is_dead(&dir), "it has no mark");
        fs::write(dir.join(MARK), "something else").unwrap();
        assert!(!is_dead(&dir), "it has another mark");
        fs::write(dir.join(MARK), MARK_TEXT).unwrap();
        assert!(is_dead(&dir));
        fs::write(dir.join("mine"), "").unwrap();
        assert!(!is_dead(&dir), "it has a file of the user's");
        fs::remove_file(dir.join("mine")).unwrap();
        let link = parent.path().join("flowtally-demo-y");
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        assert!(!is_dead(&link), "it is a link");
        let alive = DirLock::exclusive(File::open(dir.join(MARK)).unwrap()).unwrap();
        assert!(!is_dead(&dir), "a process has locked it");
        drop(alive);
        assert!(is_dead(&dir));
        let path = own.path().to_owned();
        fs::create_dir(own.db()).unwrap();
        own.remove().unwrap();
        assert!(!path.exists());
    }
}
