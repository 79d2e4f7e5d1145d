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

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::codec;
use super::error::StoreError;
use agent::durable;

/// A data directory that this process holds until the value is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Carries the lock; the system releases it when the process ends, however it ends.
    identity: File,
    /// The directory of the database, as it was when this was opened.
    rocks_id: Option<(u64, u64)>,
    has_links: bool,
}

/// Tells a file or directory from all others: its device and inode.
fn file_id(data: &fs::Metadata) -> (u64, u64) {
    (data.dev(), data.ino())
}

impl DataDir {
    /// Takes the directory at `path`, making it where it is absent or empty.
    ///
    /// # Errors
    /// A directory that is in use, not ours, of a newer format, incomplete, or not usable. Nothing
    /// in it has been changed then.
    pub fn open(path: &Path) -> Result<DataDir, StoreError> {
        DataDir::open_for(path, None)
    }

    /// The same for the sums of one partition of a journal elsewhere, which `of` says: a directory is never
    /// taken for that of another, nor for one with a journal of its own.
    ///
    /// # Errors
    /// As [`DataDir::open`], and for a directory of something else.
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
        let mut identity = match open_identity() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if has_files(path).map_err(failed)? {
                    return Err(StoreError::NotOurs { path: path.into() });
                }
                create(path, &identity_path).map_err(failed)?;
                open_identity()
            }
            opened => opened,
        }
        .map_err(failed)?;
        lock_error(identity.try_lock(), path)?;
        let format = read_format(&mut identity, path)?;
        let mut dir = DataDir {
            path: path.into(),
            identity,
            rocks_id: None,
            has_links: true,
        };
        dir.require_database()?;
        dir.require_owner(of)?;
        if format < codec::FORMAT {
            dir.upgrade().map_err(failed)?;
        }
        // An unnamed file: proves that the directory can be written, and leaves nothing in it.
        tempfile::tempfile_in(path).map_err(failed)?;
        // A start that was killed, or whoever made the directory, may not have.
        dir.sync_names().map_err(failed)?;
        dir.empty_staging().map_err(failed)?;
        remove_all(&dir.checkpoints()).map_err(failed)?;
        dir.has_links = durable::has_links(&dir.staging()).map_err(failed)?;
        let rocks = fs::metadata(dir.rocks()).map_err(failed)?;
        dir.rocks_id = Some(file_id(&rocks));
        Ok(dir)
    }

    /// Takes the directory at `path` to read it, together with others that only read. Needs no right
    /// to write, and changes nothing.
    ///
    /// # Errors
    /// As [`DataDir::open`], and where there is no data directory.
    pub fn open_read_only(path: &Path) -> Result<DataDir, StoreError> {
        refuse_interrupted(path)?;
        let mut identity =
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
        lock_error(identity.try_lock_shared(), path)?;
        read_format(&mut identity, path)?;
        let dir = DataDir {
            path: path.into(),
            identity,
            rocks_id: None,
            has_links: true,
        };
        dir.require_database()?;
        Ok(dir)
    }

    /// The database is made before the identity file; without it, an open would start empty and call
    /// it well.
    fn require_database(&self) -> Result<(), StoreError> {
        if self.rocks().is_dir() {
            Ok(())
        } else {
            Err(StoreError::Incomplete {
                path: self.path.clone(),
            })
        }
    }

    /// Whether it is of the journal that it should be; a fresh one becomes so.
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
                "a service with a journal of its own".into()
            }
        };
        if of == Some(&found) {
            return Ok(());
        }
        Err(StoreError::WrongPartition {
            path: self.path.clone(),
            found,
            wanted: of.unwrap_or("a service with a journal of its own").into(),
        })
    }

    /// Syncs the names of the directory and of all that makes it one of ours.
    fn sync_names(&self) -> io::Result<()> {
        durable::sync_dir(&self.path)?;
        durable::sync_name(&self.path)
    }

    /// Says that the directory has the current format, so that an older flowtally, which would take new
    /// records for damaged ones, leaves it alone. The text has the same length, and is written in place:
    /// the file carries the lock.
    fn upgrade(&self) -> io::Result<()> {
        self.identity
            .write_all_at(codec::encode_identity().as_bytes(), 0)?;
        self.identity.sync_all()?;
        tracing::info!(
            format = codec::FORMAT,
            "the data directory is brought up to date"
        );
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the paths still lead to what was opened.
    pub(super) fn is_in_place(&self) -> io::Result<bool> {
        let identity = fs::metadata(self.path.join(codec::IDENTITY_FILE))?;
        let rocks = fs::metadata(self.rocks())?;
        Ok(file_id(&identity) == file_id(&self.identity.metadata()?)
            && self.rocks_id.is_none_or(|at| at == file_id(&rocks)))
    }

    /// Whether a file here can have a second name.
    pub(super) fn has_links(&self) -> bool {
        self.has_links
    }

    /// Whether RocksDB has never been here, or was killed while it made the database: only then may
    /// it start an empty one. Of a database, `CURRENT` is the last file that is made, and no log and no
    /// sums are there before it is.
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

    /// Whether it has files of sums, receipts or the journal.
    pub(super) fn has_files(&self) -> bool {
        let is_file = |e: fs::DirEntry| e.path().extension().is_some_and(|e| e == "sst");
        fs::read_dir(self.rocks()).is_ok_and(|entries| entries.flatten().any(is_file))
    }

    /// Where the database is.
    pub fn rocks(&self) -> PathBuf {
        self.path.join(ROCKS)
    }

    /// For [`Store::checkpoint`](super::Store::checkpoint); none outlives the process.
    pub(super) fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    pub(super) fn staging(&self) -> PathBuf {
        self.path.join("staging")
    }

    /// What lies there was being written when a process ended: it was never ingested, and what
    /// it held is in the journal.
    fn empty_staging(&self) -> io::Result<()> {
        remove_all(&self.staging())?;
        fs::create_dir(self.staging())
    }
}

/// Refuses what was being written when a restore or a backup was interrupted.
fn refuse_interrupted(path: &Path) -> Result<(), StoreError> {
    if path.join(RESTORING_FILE).exists() {
        return Err(StoreError::RestoreInterrupted { path: path.into() });
    }
    // However it is spelled.
    let real = path.canonicalize().unwrap_or_default();
    if real.to_string_lossy().ends_with(INCOMPLETE) {
        return Err(StoreError::BackupInterrupted { path: path.into() });
    }
    Ok(())
}

/// Removes a directory, if it is there.
pub(super) fn remove_all(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Makes the directory at `path`, which holds a whole database in `rocks`, one of ours.
pub(super) fn write_identity(path: &Path) -> io::Result<()> {
    durable::write(
        &path.join(codec::IDENTITY_FILE),
        &path.join(UNFINISHED),
        codec::encode_identity().as_bytes(),
    )
}

fn lock_error(lock: Result<(), TryLockError>, path: &Path) -> Result<(), StoreError> {
    lock.map_err(|error| match error {
        TryLockError::WouldBlock => StoreError::InUse { path: path.into() },
        TryLockError::Error(source) => StoreError::Directory {
            path: path.to_owned(),
            source,
        },
    })
}

fn read_format(identity: &mut File, path: &Path) -> Result<u32, StoreError> {
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

impl Drop for DataDir {
    /// Closing the file alone would leave the lock to a child process that is just being started,
    /// which has a copy of it until it executes its program.
    fn drop(&mut self) {
        let _unlocked_by_closing_then = self.identity.unlock();
    }
}

/// The database, in a data directory.
pub const ROCKS: &str = "rocks";
/// Says of which partition of a journal elsewhere the sums are, where they are.
pub const PARTITION_FILE: &str = "PARTITION";
/// Is in a data directory until all of a backup is there.
pub const RESTORING_FILE: &str = "RESTORING";
/// End of the name of a backup that is not complete.
pub const INCOMPLETE: &str = ".incomplete";

const UNFINISHED: &str = "FLOWTALLY.new";

/// Whether the directory exists and holds anything but what [`create`] leaves when it is cut short.
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

/// Makes the directory ours, unless another process just does. The identity file comes last, whole,
/// and never replaces one that is there: so a crash leaves an empty directory or one of ours, and
/// of several processes that start at once, all lock the same file.
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
        // Some network file systems can neither link nor rename to a name that has to be free.
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
    fn a_directory_is_not_taken_for_that_of_another_journal() {
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
    fn a_crash_while_making_it_leaves_an_empty_directory() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join(UNFINISHED), "flowt").unwrap();
        fs::create_dir(temp.path().join(ROCKS)).unwrap();
        assert!(DataDir::open(temp.path()).unwrap().is_fresh().unwrap());
    }

    #[test]
    fn a_crash_while_the_database_is_made_leaves_a_fresh_one() {
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
    fn of_many_that_start_at_once_one_gets_it() {
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

    #[test]
    fn a_lost_database_is_not_taken_for_an_empty_one() {
        let temp = tempfile::tempdir().unwrap();
        drop(DataDir::open(temp.path()).unwrap());
        fs::remove_dir(temp.path().join(ROCKS)).unwrap();
        let opened = DataDir::open(temp.path());
        assert!(matches!(opened, Err(StoreError::Incomplete { .. })));
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
