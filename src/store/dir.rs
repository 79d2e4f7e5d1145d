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

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::codec;
use super::error::StoreError;
use agent::durable::{self, DirLock};

/// A data directory, locked by this process until the value is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Of the identity file.
    lock: DirLock,
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
            rocks_id: None,
            has_links: true,
        };
        dir.require_database()?;
        dir.require_owner(of)?;
        if format < codec::FORMAT {
            dir.upgrade().map_err(failed)?;
        }
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
        read_format(lock.file(), path)?;
        let dir = DataDir {
            path: path.into(),
            lock,
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
    fn upgrade(&self) -> io::Result<()> {
        let identity = self.lock.file();
        identity.write_all_at(codec::encode_identity().as_bytes(), 0)?;
        identity.sync_all()?;
        tracing::info!(format = codec::FORMAT, "data directory upgraded");
        Ok(())
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

/// Writes the identity file into `path`, which contains a complete database in `rocks`.
pub(super) fn write_identity(path: &Path) -> io::Result<()> {
    durable::write(
        &path.join(codec::IDENTITY_FILE),
        &path.join(UNFINISHED),
        codec::encode_identity().as_bytes(),
    )
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

const UNFINISHED: &str = "FLOWTALLY.new";

/// Whether the directory exists and contains more than an interrupted [`create`] leaves.
fn has_files(path: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name.to_string_lossy().starts_with(UNFINISHED)
            || durable::is_lost_and_found(&entry)
            || name == codec::IDENTITY_FILE
            || name == ROCKS && fs::read_dir(entry.path())?.next().is_none();
        if !ours {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Creates a data directory where none was found. Another process may have created it since, and opened it already.
fn create_if_new(path: &Path, identity_path: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::Directory {
        path: path.to_owned(),
        source,
    };
    if !has_files(path).map_err(failed)? {
        return create(path, identity_path).map_err(failed);
    }
    match identity_path.exists() {
        true => Ok(()),
        false => Err(StoreError::NotOurs { path: path.into() }),
    }
}

/// Creates a data directory, unless another process is doing so. The identity file is created last, complete, and never
/// replaces an existing one. So a crash leaves an empty directory or a data directory, and if several processes start
/// at the same time, they all lock the same file.
fn create(path: &Path, identity_path: &Path) -> io::Result<()> {
    durable::create_dir_all(path)?;
    durable::create_dir_all(&path.join(ROCKS))?;
    let mut unfinished = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(path)?;
    unfinished.write_all(codec::encode_identity().as_bytes())?;
    unfinished.as_file().sync_all()?;
    match unfinished.persist_noclobber(identity_path) {
        // Some network file systems support neither hard links nor a rename that fails if the target exists.
        Err(e) if durable::is_unsupported(&e.error) && !identity_path.exists() => {
            e.file.persist(identity_path)?;
        }
        Err(e) if e.error.kind() != io::ErrorKind::AlreadyExists => return Err(e.error),
        _ => {}
    }
    durable::sync_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_directory_is_initialised_and_locked() {
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
    fn a_directory_of_another_journal_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let refused = |opened: Result<DataDir, StoreError>| {
            assert!(
                matches!(opened, Err(StoreError::WrongPartition { .. })),
                "{opened:?}"
            );
        };
        let (ours, path) = ("partition 3 of 12", temp.path());
        drop(DataDir::open_partition(path, ours).unwrap());
        drop(DataDir::open_partition(path, ours).unwrap());
        refused(DataDir::open_partition(path, "partition 4 of 12"));
        refused(DataDir::open(path));
        fs::remove_file(path.join(PARTITION_FILE)).unwrap();
        fs::write(path.join(ROCKS).join("CURRENT"), "").unwrap();
        refused(DataDir::open_partition(path, ours));
        drop(DataDir::open(path).unwrap());
    }

    #[test]
    fn a_crash_during_creation_leaves_an_empty_directory() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join(UNFINISHED), "flowt").unwrap();
        fs::create_dir(temp.path().join(ROCKS)).unwrap();
        assert!(DataDir::open(temp.path()).unwrap().is_fresh().unwrap());
    }

    #[test]
    fn a_crash_during_database_creation_leaves_a_fresh_directory() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        let make = |name: &str| fs::write(dir.rocks().join(name), "").unwrap();
        for name in ["LOCK", "LOG", "IDENTITY", "MANIFEST-000001", "000001.dbtmp"] {
            make(name);
        }
        assert!(dir.is_fresh().unwrap());
        for name in ["CURRENT", "000004.log", "000009.sst"] {
            make(name);
            assert!(!dir.is_fresh().unwrap(), "{name}");
            fs::remove_file(dir.rocks().join(name)).unwrap();
        }
    }

    #[test]
    fn one_of_many_concurrent_starts_gets_the_directory() {
        for _ in 0..50 {
            let temp = tempfile::tempdir().unwrap();
            let path = temp.path().join("db");
            let results: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4)
                    .map(|_| scope.spawn(|| DataDir::open(&path)))
                    .collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect()
            });
            assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
            for result in results {
                assert!(
                    matches!(result, Ok(_) | Err(StoreError::InUse { .. })),
                    "{result:?}"
                );
            }
        }
    }

    /// The later process found no identity file at first, and then finds files.
    #[test]
    fn a_directory_created_by_a_concurrent_start_is_not_foreign() {
        let temp = tempfile::tempdir().unwrap();
        let identity = temp.path().join(codec::IDENTITY_FILE);
        let _first = DataDir::open(temp.path()).unwrap();
        assert!(has_files(temp.path()).unwrap());
        create_if_new(temp.path(), &identity).unwrap();
        assert!(matches!(
            DataDir::open(temp.path()),
            Err(StoreError::InUse { .. })
        ));
        fs::remove_file(&identity).unwrap();
        assert!(matches!(
            create_if_new(temp.path(), &identity),
            Err(StoreError::NotOurs { .. })
        ));
    }

    #[test]
    fn a_lost_database_is_not_mistaken_for_an_empty_one() {
        let temp = tempfile::tempdir().unwrap();
        drop(DataDir::open(temp.path()).unwrap());
        fs::remove_dir(temp.path().join(ROCKS)).unwrap();
        let opened = DataDir::open(temp.path());
        assert!(matches!(opened, Err(StoreError::Incomplete { .. })));
    }

    #[test]
    fn foreign_files_are_not_touched() {
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
