//! Restores a backup into a data directory.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::create::{complete, copy, incomplete};
use super::{BackupError, list_files, require_outside, with_context};
use crate::store::codec::IDENTITY_FILE;
use crate::store::{
    DataDir, INCOMPLETE, RESTORING_FILE, ROCKS, StoreError, Verified, truncate_torn_writes, verify,
};
use agent::durable::{self, DirLock};

/// Result of a restore.
#[derive(Debug)]
pub struct Restored {
    /// The backup that was restored.
    pub from: PathBuf,
    pub bytes: u64,
    /// Torn writes that were truncated, if the backup is of a directory that had them after a power cut.
    pub torn: Option<String>,
    pub verified: Verified,
}

/// Copies a backup into `data_dir`, which must be absent or empty, and verifies the copy. `from` is a backup, or a
/// directory of backups, of which the newest is used. `progress` receives the bytes copied so far and the total.
///
/// # Errors
/// If `from` is not a complete backup or `data_dir` is not empty; nothing is changed then. After any other error,
/// `data_dir` is marked as incomplete, and no service starts from it.
pub fn restore(
    from: &Path,
    data_dir: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<Restored, BackupError> {
    let from = choose(from)?;
    require_outside(data_dir, &from)?;
    // Lock the source, so that no process writes to it meanwhile, whether it is a backup or the directory of a
    // stopped service.
    let source = DataDir::open_read_only(&from)?;
    durable::create_dir_all(data_dir).map_err(with_context(data_dir))?;
    let _lock = lock(data_dir)?;
    prepare(data_dir)?;
    let files = list_files(&from)?;
    let all = files.iter().map(|file| file.bytes).sum();
    let mut bytes = 0;
    for entry in &files {
        let path = from.join(&entry.name);
        let mut file = File::open(&path).map_err(with_context(&path))?;
        let into = data_dir.join(&entry.name);
        copy(&mut file, with_context(&path), &into, entry, |n| {
            progress(bytes + n, all)
        })?;
        bytes += entry.bytes;
        progress(bytes, all);
    }
    drop(source);
    durable::sync_dir(&data_dir.join(ROCKS)).map_err(with_context(&data_dir.join(ROCKS)))?;
    let torn = truncate_torn_writes(&data_dir.join(ROCKS))?;
    // Sync all names first: without the marker, the directory counts as complete.
    durable::sync_dir(data_dir).map_err(with_context(data_dir))?;
    let marker = data_dir.join(RESTORING_FILE);
    fs::remove_file(&marker).map_err(with_context(&marker))?;
    durable::sync_dir(data_dir).map_err(with_context(data_dir))?;
    let verified = verify(data_dir);
    if !verified.as_ref().is_ok_and(|v| v.faults.is_empty()) {
        // With the marker, no service starts from it, and repeating the restore starts over.
        File::create(&marker).map_err(with_context(&marker))?;
        durable::sync_dir(data_dir).map_err(with_context(data_dir))?;
    }
    let verified = verified?;
    Ok(Restored {
        from,
        bytes,
        torn,
        verified,
    })
}

/// The backup at `from`, or the newest one in it.
fn choose(from: &Path) -> Result<PathBuf, BackupError> {
    let refused = |what: &str| Err(BackupError::Refused(format!("{}: {what}", from.display())));
    // Resolve the path: it may be spelled in other ways.
    let from = &from.canonicalize().map_err(with_context(from))?;
    if from.to_string_lossy().ends_with(INCOMPLETE) {
        return Err(StoreError::BackupInterrupted { path: from.into() }.into());
    }
    if from.join(ROCKS).is_dir() {
        return Ok(from.to_owned());
    }
    let all = complete(from)?;
    let whole = all.iter().rfind(|path| path.join(IDENTITY_FILE).is_file());
    match all.last() {
        Some(newest) if whole == Some(newest) => Ok(newest.to_owned()),
        // The newest was emptied, or is not a backup. Do not restore an older one instead: that was not requested.
        Some(newest) => {
            let instead = whole.map_or("there is no other".to_owned(), |whole| {
                format!("the newest backup is {}", whole.display())
            });
            Err(BackupError::Refused(format!(
                "{} has the name of a backup but is not one: it has no {IDENTITY_FILE} file; {instead}",
                newest.display()
            )))
        }
        None if incomplete(from)?.is_empty() => {
            refused("there is no backup; give the directory that flowtally backup --to was given")
        }
        None => refused("all backups here were interrupted; there is none to restore from"),
    }
}

/// Prevents other restores into `data_dir`. The directory itself is locked, since its content changes.
fn lock(data_dir: &Path) -> Result<Option<DirLock>, BackupError> {
    let dir = File::open(data_dir).map_err(with_context(data_dir))?;
    match DirLock::exclusive(dir) {
        Err(TryLockError::WouldBlock) => Err(BackupError::Refused(format!(
            "another restore into {} is in progress",
            data_dir.display()
        ))),
        // Network file systems cannot lock directories; continue without a lock there.
        Err(TryLockError::Error(_)) => Ok(None),
        Ok(lock) => Ok(Some(lock)),
    }
}

/// Empties `data_dir`, which exists, and marks it as being restored.
fn prepare(data_dir: &Path) -> Result<(), BackupError> {
    let marker = data_dir.join(RESTORING_FILE);
    if marker.exists() {
        for found in fs::read_dir(data_dir).map_err(with_context(data_dir))? {
            let found = found.map_err(with_context(data_dir))?;
            let path = found.path();
            match path.is_dir() {
                _ if path == marker || durable::is_lost_and_found(&found) => Ok(()),
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            }
            .map_err(with_context(&path))?;
        }
    } else {
        let mut found = fs::read_dir(data_dir).map_err(with_context(data_dir))?;
        let is_ours = |found: &fs::DirEntry| !durable::is_lost_and_found(found);
        if found.any(|found| found.as_ref().map_or(true, is_ours)) {
            return Err(BackupError::Refused(format!(
                "{} is not empty, and a restore never overwrites anything; give --data-dir an empty \
                 or absent directory",
                data_dir.display()
            )));
        }
        File::create_new(&marker).map_err(with_context(&marker))?;
    }
    // Even if the marker existed: a killed restore may not have synced it.
    durable::sync_dir(data_dir).map_err(with_context(data_dir))?;
    let rocks = data_dir.join(ROCKS);
    fs::create_dir(&rocks).map_err(with_context(&rocks))
}
