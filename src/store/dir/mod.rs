//! The data directory: its identity, its format version, and the lock that gives it to one process at a time.
//!
//! ```text
//! data/db/FLOWTALLY   identity and format version; locked while a process uses the directory
//! data/db/rocks/      RocksDB
//! data/db/staging/    files being written for ingestion; emptied at open
//! ```
//!
//! Everything is validated before anything is written and before RocksDB sees the directory: RocksDB creates a new
//! log file even if it then fails to take its own lock.

mod create;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

pub(super) use create::write_identity;
use create::{UNFINISHED, create_if_new};

use super::codec;
use super::error::StoreError;
use agent::durable::{self, DirLock};

/// A data directory, locked by this process until the value is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Of the identity file.
    lock: DirLock,
    /// The version in the identity file when this was opened.
    format: u32,
    /// Identity of the database directory when this was opened.
    rocks_id: Option<(u64, u64)>,
    has_links: bool,
}

/// Device and inode, which identify a file or directory.
fn file_id(data: &fs::Metadata) -> (u64, u64) {
    (data.dev(), data.ino())
}

impl DataDir {
    /// Locks the data directory at `path`, and creates it if it is absent or empty.
    ///
    /// # Errors
    /// If the directory is in use, is not a data directory, has a newer format, is incomplete, or cannot be used.
    /// Nothing in it has been changed then.
    pub fn open(path: &Path) -> Result<DataDir, StoreError> {
        DataDir::open_for(path, None)
    }

    /// Opens the directory of one partition of an external journal, identified by `of`. A directory of another
    /// partition, or of a service with its own journal, is refused.
    ///
    /// # Errors
    /// As [`DataDir::open`], and if the directory belongs to another partition or service.
    pub fn open_partition(path: &Path, of: &str) -> Result<DataDir, StoreError> {
        DataDir::open_for(path, Some(of))
    }

    fn open_for(path: &Path, of: Option<&str>) -> Result<DataDir, StoreError> {
        let failed = |source| StoreError::Directory {
            path: path.to_owned(),
            source,
        };
        let identity_path = path.join(codec::IDENTITY_FILE);
        let open_identity = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(&identity_path)
        };
        refuse_interrupted(path)?;
        let identity = match open_identity() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                create_if_new(path, &identity_path)?;
                open_identity()
            }
            opened => opened,
        }
        .map_err(failed)?;
        let lock = DirLock::exclusive(identity).map_err(lock_error(path))?;
        let format = read_format(lock.file(), path)?;
        let mut dir = DataDir {
            path: path.into(),
            lock,
            format,
            rocks_id: None,
            has_links: true,
        };
        dir.require_database()?;
        dir.require_owner(of)?;
        // An unnamed file proves that the directory is writable, and leaves nothing behind.
        tempfile::tempfile_in(path).map_err(failed)?;
        // An earlier start, or another program that created the directory, may have been killed before this sync.
        dir.sync_names().map_err(failed)?;
        dir.empty_staging().map_err(failed)?;
        remove_all(&dir.checkpoints()).map_err(failed)?;
        dir.has_links = durable::has_links(&dir.staging()).map_err(failed)?;
        let rocks = fs::metadata(dir.rocks()).map_err(failed)?;
        dir.rocks_id = Some(file_id(&rocks));
        Ok(dir)
    }

    /// Locks the data directory at `path` for reading, shared with other readers. Needs no write permission and
    /// changes nothing.
    ///
    /// # Errors
    /// As [`DataDir::open`], and if there is no data directory.
    pub fn open_read_only(path: &Path) -> Result<DataDir, StoreError> {
        refuse_interrupted(path)?;
        let identity =
            File::open(path.join(codec::IDENTITY_FILE)).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound if path.is_dir() => {
                    StoreError::NotOurs { path: path.into() }
                }
                io::ErrorKind::NotFound => StoreError::Absent { path: path.into() },
                _ => StoreError::Directory {
                    path: path.to_owned(),
                    source,
                },
            })?;
        let lock = DirLock::shared(identity).map_err(lock_error(path))?;
        let format = read_format(lock.file(), path)?;
        let dir = DataDir {
            path: path.into(),
            lock,
            format,
            rocks_id: None,
            has_links: true,
        };
        dir.require_database()?;
        Ok(dir)
    }

    /// The database is created before the identity file. If it is missing, data was lost: opening an empty database
    /// would hide that.
    fn require_database(&self) -> Result<(), StoreError> {
        if self.rocks().is_dir() {
            Ok(())
        } else {
            Err(StoreError::Incomplete {
                path: self.path.clone(),
            })
        }
    }

    /// Verifies that the directory belongs to the partition `of`. A new directory is assigned to it.
    fn require_owner(&self, of: Option<&str>) -> Result<(), StoreError> {
        let file = self.path.join(PARTITION_FILE);
        let failed = |source| StoreError::Directory {
            path: self.path.clone(),
            source,
        };
        let found = match fs::read_to_string(&file) {
            Ok(text) => text.trim_end().to_owned(),
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            Err(_absent) => {
                let Some(of) = of else { return Ok(()) };
                if self.is_fresh().map_err(failed)? {
                    let unfinished = self.path.join(UNFINISHED);
                    let content = format!("{of}\n");
                    return durable::write(&file, &unfinished, content.as_bytes()).map_err(failed);
                }
                "a service without Kafka".into()
            }
        };
        if of == Some(&found) {
            return Ok(());
        }
        Err(StoreError::WrongPartition {
            path: self.path.clone(),
            found,
            wanted: of.unwrap_or("a service without Kafka").into(),
        })
    }

    /// Syncs the directory entries of the directory and of everything that makes it a data directory.
    fn sync_names(&self) -> io::Result<()> {
        durable::sync_dir(&self.path)?;
        durable::sync_name(&self.path)
    }

    /// Writes the current format version, so that an older flowtally, which would report new records as corrupt,
    /// refuses the directory. The text has the same length and is overwritten in place, since the file holds the
    /// lock.
    pub(super) fn upgrade(&self) -> io::Result<()> {
        if self.format == codec::FORMAT {
            return Ok(());
        }
        let identity = self.lock.file();
        identity.write_all_at(codec::encode_identity().as_bytes(), 0)?;
        identity.sync_all()?;
        tracing::info!(format = codec::FORMAT, "data directory upgraded");
        Ok(())
    }

    /// The format version when it was opened.
    pub(super) fn format(&self) -> u32 {
        self.format
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the paths still refer to the files that were opened.
    pub(super) fn is_in_place(&self) -> io::Result<bool> {
        let identity = fs::metadata(self.path.join(codec::IDENTITY_FILE))?;
        let rocks = fs::metadata(self.rocks())?;
        Ok(file_id(&identity) == file_id(&self.lock.file().metadata()?)
            && self.rocks_id.is_none_or(|at| at == file_id(&rocks)))
    }

    /// Whether the file system has hard links.
    pub(super) fn has_links(&self) -> bool {
        self.has_links
    }

    /// Whether RocksDB has not created a database here, or was killed while it did: only then may it start an empty
    /// one. `CURRENT` is the last file of a new database to be created; logs and sums come later.
    pub(super) fn is_fresh(&self) -> io::Result<bool> {
        for entry in fs::read_dir(self.rocks())? {
            let name = entry?.file_name();
            let extension = Path::new(&name).extension();
            if name == "CURRENT" || extension.is_some_and(|e| e == "log" || e == "sst") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether there are files of sums, receipts or the journal.
    pub(super) fn has_files(&self) -> bool {
        let is_file = |e: fs::DirEntry| e.path().extension().is_some_and(|e| e == "sst");
        fs::read_dir(self.rocks()).is_ok_and(|entries| entries.flatten().any(is_file))
    }

    /// Path of the database.
    pub fn rocks(&self) -> PathBuf {
        self.path.join(ROCKS)
    }

    /// The directory of [checkpoints](super::Store::checkpoint), which the next open removes.
    pub(super) fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    pub(super) fn staging(&self) -> PathBuf {
        self.path.join("staging")
    }

    /// Files in it were being written when a process ended. They were never ingested, and their data is in the
    /// journal.
    fn empty_staging(&self) -> io::Result<()> {
        remove_all(&self.staging())?;
        fs::create_dir(self.staging())
    }
}

/// Refuses a directory whose restore or backup was interrupted.
fn refuse_interrupted(path: &Path) -> Result<(), StoreError> {
    if path.join(RESTORING_FILE).exists() {
        return Err(StoreError::RestoreInterrupted { path: path.into() });
    }
    // Resolve the path: it may be spelled in other ways.
    let real = path.canonicalize().unwrap_or_default();
    if real.to_string_lossy().ends_with(INCOMPLETE) {
        return Err(StoreError::BackupInterrupted { path: path.into() });
    }
    Ok(())
}

/// Removes a directory if it exists.
pub(super) fn remove_all(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// For `map_err`.
fn lock_error(path: &Path) -> impl FnOnce(TryLockError) -> StoreError {
    let path = path.to_owned();
    |error| match error {
        TryLockError::WouldBlock => StoreError::InUse { path },
        TryLockError::Error(source) => StoreError::Directory { path, source },
    }
}

fn read_format(identity: &File, path: &Path) -> Result<u32, StoreError> {
    let mut text = Vec::new();
    identity
        .take(1024)
        .read_to_end(&mut text)
        .map_err(|source| StoreError::Directory {
            path: path.to_owned(),
            source,
        })?;
    let path = path.to_owned();
    match std::str::from_utf8(&text)
        .ok()
        .and_then(codec::decode_identity)
    {
        None => Err(StoreError::NotOurs { path }),
        Some(found) if found > codec::FORMAT => Err(StoreError::NewerFormat { path, found }),
        Some(found) if found < codec::FORMAT_MIN => Err(StoreError::OlderFormat { path, found }),
        Some(found) => Ok(found),
    }
}

/// Subdirectory of the database.
pub const ROCKS: &str = "rocks";
/// File that names the partition of an external journal that the sums belong to.
pub const PARTITION_FILE: &str = "PARTITION";
/// File that exists until a restore is complete.
pub const RESTORING_FILE: &str = "RESTORING";
/// Suffix of an incomplete backup.
pub const INCOMPLETE: &str = ".incomplete";
