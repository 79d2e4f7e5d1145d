//! Files and directories that survive a power failure: each of these functions returns once its changes are
//! on disk, including the names of the files.
//!
//! A file's name is stored in its directory, so a new name is durable only after the *directory* has been
//! synced, even if the file itself was synced.

use std::fs::{self, DirEntry, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Errors of a file system that does not support an operation: FAT, FUSE and SMB refuse hard links, and some
/// cannot sync a directory.
pub fn is_unsupported(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    errno.is_some_and(|errno| {
        [
            Errno::PERM,
            Errno::INVAL,
            Errno::NOTSUP,
            Errno::OPNOTSUPP,
            Errno::NOSYS,
            Errno::XDEV,
            Errno::MLINK,
        ]
        .contains(&errno)
    })
}

/// The resource that a write ran out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutOfSpace {
    Space,
    Quota,
    /// The file size limit.
    FileSize,
}

impl OutOfSpace {
    pub const ALL: [OutOfSpace; 3] = [OutOfSpace::Space, OutOfSpace::Quota, OutOfSpace::FileSize];

    /// The error with which a system call reports it.
    pub fn system_error(self) -> io::Error {
        let errno = match self {
            OutOfSpace::Space => Errno::NOSPC,
            OutOfSpace::Quota => Errno::DQUOT,
            OutOfSpace::FileSize => Errno::FBIG,
        };
        errno.into()
    }

    pub fn from_error(error: &io::Error) -> Option<OutOfSpace> {
        OutOfSpace::from_number(error.raw_os_error()?)
    }

    /// From the number of a system's error.
    pub fn from_number(number: i32) -> Option<OutOfSpace> {
        let is_it = |of: &OutOfSpace| of.system_error().raw_os_error() == Some(number);
        OutOfSpace::ALL.into_iter().find(is_it)
    }

    /// The remedy for the operator.
    pub fn remedy(self) -> &'static str {
        match self {
            OutOfSpace::Space => "the disk is full: make room on it",
            OutOfSpace::Quota => "this user's disk quota is used up: raise it, or make room",
            OutOfSpace::FileSize => {
                "a file would exceed the size limit of this process: raise it (ulimit -f, and \
                 LimitFSIZE= of a systemd unit)"
            }
        }
    }
}

/// Syncs a directory, so that the names in it are durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    match File::open(dir)?.sync_all() {
        Err(error) if is_unsupported(&error) => Ok(()),
        synced => synced,
    }
}

/// Syncs the parent directory of `path`, which must exist, so that the name of `path` is durable.
pub fn sync_name(path: &Path) -> io::Result<()> {
    // Through a symlink, the target has to exist after a crash, so sync the directory of the target's name.
    let real = path.canonicalize()?;
    match real.parent().map_or(Ok(()), sync_dir) {
        // This user cannot read the parent directory, so this process has not created the name.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        synced => synced,
    }
}

/// Creates a directory and its missing parents. Each directory is created only after its parent's name has been synced,
/// so if a call is killed at any point, the next call does the missing syncs.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    let mut missing: Vec<PathBuf> = Vec::new();
    let mut there = std::path::absolute(path)?;
    while !there.is_dir() {
        let Some(parent) = there.parent().map(Path::to_owned) else {
            break;
        };
        missing.push(std::mem::replace(&mut there, parent));
    }
    sync_name(&there)?;
    for dir in missing.into_iter().rev() {
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            made => made?,
        }
        sync_name(&dir)?;
    }
    Ok(())
}

/// Writes a file atomically: under the name `unfinished` first, then renames it to `path` in the same
/// directory. A crash leaves either the old file or the new one.
pub fn write(path: &Path, unfinished: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(unfinished)?;
    file.write_all(content)?;
    file.sync_all()?;
    rename(unfinished, path)
}

/// The lock of a directory, by a file in it or by the directory itself. The operating system releases it when the
/// process ends for any reason.
#[derive(Debug)]
pub struct DirLock(File);

impl DirLock {
    /// Creates the file if it is missing, and locks it for this process.
    ///
    /// # Errors
    /// [`TryLockError::WouldBlock`] if another process holds the lock.
    pub fn create(path: &Path) -> Result<DirLock, TryLockError> {
        DirLock::exclusive(File::create(path).map_err(TryLockError::Error)?)
    }

    /// Locks `file` for this process.
    ///
    /// # Errors
    /// As [`DirLock::create`].
    pub fn exclusive(file: File) -> Result<DirLock, TryLockError> {
        file.try_lock().map(|()| DirLock(file))
    }

    /// Locks `file`, shared with others that do so.
    ///
    /// # Errors
    /// As [`DirLock::create`].
    pub fn shared(file: File) -> Result<DirLock, TryLockError> {
        file.try_lock_shared().map(|()| DirLock(file))
    }

    /// The locked file.
    pub fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for DirLock {
    /// Unlocks explicitly: after a mere close, a child process that is being started would hold the lock through its
    /// copy of the descriptor until it executes its program.
    fn drop(&mut self) {
        let _best_effort = self.0.unlock();
    }
}

/// Renames a file or directory that is already synced; the new name is durable on return.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_name(to)
}

/// Whether the file system of `dir` supports hard links. If not, files are copied.
pub fn has_links(dir: &Path) -> io::Result<bool> {
    let file = tempfile::NamedTempFile::new_in(dir)?;
    let mut second = file.path().as_os_str().to_owned();
    second.push(".link");
    match fs::hard_link(file.path(), &second) {
        Ok(()) => fs::remove_file(&second).map(|()| true),
        Err(error) if is_unsupported(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the entry is the `lost+found` of a fresh ext file system: a directory with only that in it counts
/// as empty.
pub fn is_lost_and_found(entry: &DirEntry) -> bool {
    entry.file_name() == "lost+found" && entry.file_type().is_ok_and(|kind| kind.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_space_is_detected_by_number() {
        for shortage in OutOfSpace::ALL {
            let error = shortage.system_error();
            assert_eq!(OutOfSpace::from_error(&error), Some(shortage));
        }
        assert_eq!(OutOfSpace::from_error(&Errno::IO.into()), None);
    }

    #[test]
    fn missing_parents_are_created() {
        let temp = tempfile::tempdir().unwrap();
        let deep = temp.path().join("a/b/c");
        create_dir_all(&deep).unwrap();
        create_dir_all(&deep).unwrap();
        assert!(deep.is_dir());
        std::os::unix::fs::symlink(&deep, temp.path().join("link")).unwrap();
        create_dir_all(&temp.path().join("link/d")).unwrap();
        assert!(deep.join("d").is_dir());
        fs::write(temp.path().join("file"), "").unwrap();
        assert!(create_dir_all(&temp.path().join("file")).is_err());
        assert!(create_dir_all(&temp.path().join("file/d")).is_err());
    }

    #[test]
    fn a_file_is_written_atomically() {
        let temp = tempfile::tempdir().unwrap();
        let (path, unfinished) = (temp.path().join("file"), temp.path().join("tmp"));
        for content in ["one", "two"] {
            write(&path, &unfinished, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert!(!unfinished.exists() && has_links(temp.path()).unwrap());
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
    }
}
