//! The taking half.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::{BackupError, Entry, INCOMPLETE, Manifest, at, entries, sync_dir, tag};
use crate::client::Client;
use crate::store::{DataDir, ROCKS};

/// Held by the process that takes a backup into a directory.
const LOCK_FILE: &str = ".lock";
const COPY_BYTES: usize = 1 << 20;

/// Where a backup is taken from.
#[derive(Debug)]
pub enum Source {
    /// A running service.
    Service(Client),
    /// A directory that no service is using.
    Stopped(PathBuf),
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    pub path: PathBuf,
    pub files: u64,
    pub bytes: u64,
    /// Bytes of those that the backup before did not have.
    pub bytes_fetched: u64,
    /// Older backups that were removed.
    pub removed: u64,
}

/// A source from which files are being fetched.
enum Open {
    Service(Client, Manifest),
    Stopped(DataDir, Manifest),
}

impl Open {
    fn begin(source: Source) -> Result<Open, BackupError> {
        match source {
            Source::Service(client) => {
                let manifest = client.post_json("/backups")?;
                Ok(Open::Service(client, manifest))
            }
            Source::Stopped(path) => {
                let dir = DataDir::open_to_read(&path)?;
                let id = String::new();
                let files = entries(dir.path())?;
                Ok(Open::Stopped(dir, Manifest { id, files }))
            }
        }
    }

    fn manifest(&self) -> &Manifest {
        match self {
            Open::Service(_, manifest) | Open::Stopped(_, manifest) => manifest,
        }
    }

    fn file(&self, name: &str) -> Result<Box<dyn Read>, BackupError> {
        match self {
            Open::Service(client, manifest) => {
                let path = format!("/backups/{}/{name}", manifest.id);
                let answer = client.get(&path, "application/octet-stream")?;
                Ok(Box::new(answer.into_body().into_reader()))
            }
            Open::Stopped(dir, _) => {
                let path = dir.path().join(name);
                Ok(Box::new(File::open(&path).map_err(at(&path))?))
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Open::Service(client, manifest) = self {
            // Otherwise the service lets it go after a while.
            let _best_effort = client.delete(&format!("/backups/{}", manifest.id));
        }
    }
}

/// Takes a backup into a new directory under `to`, and then removes all but the newest `keep`, if that
/// is given. `progress` is told the bytes that are done, and all of them.
///
/// # Errors
/// After one, `to` has the backups it had before, and perhaps an incomplete one, which is named so.
pub fn take(
    source: Source,
    to: &Path,
    keep: Option<usize>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Taken, BackupError> {
    fs::create_dir_all(to).map_err(at(to))?;
    let _lock = lock(to)?;
    for leftover in incomplete(to)? {
        fs::remove_dir_all(&leftover).map_err(at(&leftover))?;
    }
    let before = complete(to)?.pop();
    let name = Timestamp::now().strftime("%Y-%m-%dT%H-%M-%SZ").to_string();
    let path = to.join(&name);
    if before.as_ref().is_some_and(|before| *before >= path) {
        return Err(BackupError::Refused(format!(
            "{} has a backup of this second or of the future; check the clock",
            to.display()
        )));
    }
    let unfinished = to.join(name + INCOMPLETE);
    let open = Open::begin(source)?;
    fs::create_dir_all(unfinished.join(ROCKS)).map_err(at(&unfinished))?;
    let mut taken = Taken {
        path,
        ..Taken::default()
    };
    let all = open.manifest().files.iter().map(|file| file.bytes).sum();
    for entry in &open.manifest().files {
        if !super::is_file_name(&entry.name) {
            let what = format!("the service offers a file named {:?}", entry.name);
            return Err(BackupError::Refused(what));
        }
        let into = unfinished.join(&entry.name);
        if !linked(before.as_deref(), entry, &into)? {
            let done = taken.bytes;
            let mut file = open.file(&entry.name)?;
            copy(&mut file, &into, entry, |bytes| progress(done + bytes, all))?;
            taken.bytes_fetched += entry.bytes;
        }
        taken.files += 1;
        taken.bytes += entry.bytes;
        progress(taken.bytes, all);
    }
    sync_dir(&unfinished.join(ROCKS))?;
    sync_dir(&unfinished)?;
    fs::rename(&unfinished, &taken.path).map_err(at(&unfinished))?;
    sync_dir(to)?;
    if let Some(keep) = keep {
        taken.removed = remove_old(to, keep)?;
    }
    Ok(taken)
}

fn lock(to: &Path) -> Result<File, BackupError> {
    let path = to.join(LOCK_FILE);
    let file = File::create(&path).map_err(at(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(BackupError::Busy),
        Err(TryLockError::Error(e)) => Err(at(&path)(e)),
    }
}

/// Gives the file another name in the new backup, if the one before has the same.
fn linked(before: Option<&Path>, entry: &Entry, into: &Path) -> Result<bool, BackupError> {
    let (Some(before), Some(expected)) = (before, &entry.tag) else {
        return Ok(false);
    };
    let old = before.join(&entry.name);
    let same = match fs::metadata(&old) {
        Ok(data) if data.len() == entry.bytes => {
            tag(&old, entry.bytes).map_err(at(&old))? == *expected
        }
        _ => false,
    };
    // A file system without links gets a copy.
    Ok(same && fs::hard_link(&old, into).is_ok())
}

/// Copies a file, whole and on disk when it returns.
pub(super) fn copy(
    from: &mut dyn Read,
    into: &Path,
    entry: &Entry,
    mut progress: impl FnMut(u64),
) -> Result<(), BackupError> {
    let mut file = File::create_new(into).map_err(at(into))?;
    let mut part = vec![0; COPY_BYTES];
    let mut copied = 0;
    loop {
        let read = match from.read(&mut part) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(at(into))?,
        };
        if read == 0 {
            break;
        }
        file.write_all(&part[..read]).map_err(at(into))?;
        copied += read as u64;
        progress(copied);
    }
    let whole = copied == entry.bytes;
    if !whole {
        let (name, bytes) = (&entry.name, entry.bytes);
        return Err(BackupError::Refused(format!(
            "{name} has {copied} bytes, and {bytes} were announced; take the backup again"
        )));
    }
    file.sync_all().map_err(at(into))
}

/// Whether a directory has the name of a backup.
fn is_backup_name(name: &str) -> bool {
    let pattern = "0000-00-00T00-00-00Z";
    name.len() == pattern.len()
        && name.bytes().zip(pattern.bytes()).all(|(c, p)| match p {
            b'0' => c.is_ascii_digit(),
            p => c == p,
        })
}

fn named(to: &Path, fits: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, BackupError> {
    let mut paths = Vec::new();
    for found in fs::read_dir(to).map_err(at(to))? {
        let found = found.map_err(at(to))?;
        if fits(&found.file_name().to_string_lossy()) {
            paths.push(found.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// The complete backups under `to`, oldest first.
pub(super) fn complete(to: &Path) -> Result<Vec<PathBuf>, BackupError> {
    named(to, is_backup_name)
}

/// Those that were interrupted.
pub(super) fn incomplete(to: &Path) -> Result<Vec<PathBuf>, BackupError> {
    named(to, |name| {
        name.strip_suffix(INCOMPLETE).is_some_and(is_backup_name)
    })
}

/// Removes all but the newest `keep`. Renamed first, so that half of one is not taken for a whole.
fn remove_old(to: &Path, keep: usize) -> Result<u64, BackupError> {
    let all = complete(to)?;
    let mut removed = 0;
    for old in &all[..all.len().saturating_sub(keep)] {
        let mut doomed = old.clone().into_os_string();
        doomed.push(INCOMPLETE);
        fs::rename(old, &doomed).map_err(at(old))?;
        fs::remove_dir_all(&doomed).map_err(at(old))?;
        removed += 1;
    }
    Ok(removed)
}
