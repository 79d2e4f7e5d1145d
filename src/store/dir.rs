//! The data directory: whose it is, which format, and that one process at a time has it.
//!
//! ```text
//! data/db/FLOWTALLY   identity and format version; locked while a process uses the directory
//! data/db/rocks/      RocksDB
//! data/db/staging/    files being written, to be ingested; emptied at open
//! ```
//!
//! All checks come before anything is written, and before RocksDB sees the directory: RocksDB
//! starts a new log file even where it then fails on its own lock.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::codec;
use super::error::StoreError;

/// A data directory that this process holds until the value is dropped.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    /// Carries the lock; the system releases it when the process ends, however it ends.
    identity: File,
}

impl DataDir {
    /// Takes the directory at `path`, making it where it is absent or empty.
    pub(super) fn open(path: &Path) -> Result<DataDir, StoreError> {
        let failed = |source| StoreError::Directory {
            path: path.to_owned(),
            source,
        };
        let identity_path = path.join(codec::IDENTITY_FILE);
        let mut identity = match OpenOptions::new()
            .read(true)
            .write(true)
            .open(&identity_path)
        {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if has_files(path).map_err(failed)? {
                    return Err(StoreError::NotOurs { path: path.into() });
                }
                create(path, &identity_path).map_err(failed)?
            }
            Err(e) => return Err(failed(e)),
        };
        match identity.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::InUse { path: path.into() });
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        let mut text = Vec::new();
        Read::by_ref(&mut identity)
            .take(1024)
            .read_to_end(&mut text)
            .map_err(failed)?;
        let format = std::str::from_utf8(&text)
            .ok()
            .and_then(codec::decode_identity);
        match format {
            None => return Err(StoreError::NotOurs { path: path.into() }),
            Some(found) if found > codec::FORMAT => {
                return Err(StoreError::NewerFormat {
                    path: path.into(),
                    found,
                });
            }
            Some(_) => {}
        }
        // An unnamed file: proves that the directory can be written, and leaves nothing in it.
        tempfile::tempfile_in(path).map_err(failed)?;
        let dir = DataDir {
            path: path.into(),
            identity,
        };
        dir.empty_staging().map_err(failed)?;
        Ok(dir)
    }

    pub(super) fn rocks(&self) -> PathBuf {
        self.path.join("rocks")
    }

    pub(super) fn staging(&self) -> PathBuf {
        self.path.join("staging")
    }

    /// What lies there was being written when a process ended: it was never ingested, and what
    /// it held is in the journal.
    fn empty_staging(&self) -> io::Result<()> {
        let staging = self.staging();
        match fs::remove_dir_all(&staging) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        fs::create_dir(&staging)
    }
}

impl Drop for DataDir {
    /// Closing the file alone would leave the lock to a child process that is just being started,
    /// which has a copy of it until it executes its program.
    fn drop(&mut self) {
        let _unlocked_by_closing_then = self.identity.unlock();
    }
}

/// Whether the directory exists and holds anything but a half-made identity file.
fn has_files(path: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    for entry in entries {
        if entry?.file_name() != HALF_MADE {
            return Ok(true);
        }
    }
    Ok(false)
}

const HALF_MADE: &str = "FLOWTALLY.new";

/// Makes the directory ours. The identity file appears whole or not at all, and it is on disk
/// before anything else is, so a crash leaves an empty directory or one of ours.
fn create(path: &Path, identity_path: &Path) -> io::Result<File> {
    fs::create_dir_all(path)?;
    let half_made = path.join(HALF_MADE);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&half_made)?;
    file.write_all(codec::encode_identity().as_bytes())?;
    file.sync_all()?;
    fs::rename(&half_made, identity_path)?;
    File::open(path)?.sync_all()?;
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        File::open(parent)?.sync_all()?;
    }
    // Read from the start, like a file that was there before.
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(identity_path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_directory_becomes_ours_and_is_held() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a/b");
        let held = DataDir::open(&path).unwrap();
        assert!(matches!(
            DataDir::open(&path),
            Err(StoreError::InUse { .. })
        ));
        drop(held);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn a_crash_while_making_it_leaves_an_empty_directory() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join(HALF_MADE), "flowt").unwrap();
        DataDir::open(temp.path()).unwrap();
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("letter.txt"), "dear").unwrap();
        assert!(matches!(
            DataDir::open(temp.path()),
            Err(StoreError::NotOurs { .. })
        ));
        fs::write(temp.path().join(codec::IDENTITY_FILE), "not us").unwrap();
        assert!(matches!(
            DataDir::open(temp.path()),
            Err(StoreError::NotOurs { .. })
        ));
        let newer = "flowtally data directory, format 99\n";
        fs::write(temp.path().join(codec::IDENTITY_FILE), newer).unwrap();
        assert!(matches!(
            DataDir::open(temp.path()),
            Err(StoreError::NewerFormat { found: 99, .. })
        ));
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 2);
    }
}
