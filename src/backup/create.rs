//! Creates a backup from a service or from the directory of a stopped one.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use jiff::civil::DateTime;
use jiff::tz::Offset;
use jiff::{Timestamp, ToSpan};
use parking_lot::Mutex;

use super::{BackupError, BackupFile, Manifest, list_files, require_outside, tag, with_context};
use crate::store::{DataDir, INCOMPLETE, ROCKS};
use agent::client::{Client, describe_read_error};
use agent::durable::{self, DirLock};

/// Locked by the process that creates a backup in a directory.
const LOCK_FILE: &str = ".lock";
const COPY_BYTES: usize = 1 << 20;
/// Format of a backup's name. Names sort by time.
const NAME: &str = "%Y-%m-%dT%H-%M-%SZ";

/// What to back up.
#[derive(Debug)]
pub enum BackupSource {
    /// A running service.
    Service(Client),
    /// The data directory of a stopped service.
    Directory(PathBuf),
}

/// Result of a backup.
#[derive(Clone, Debug, Default)]
pub struct Created {
    pub path: PathBuf,
    pub files: u64,
    pub bytes: u64,
    /// Bytes that the previous backup did not have.
    pub bytes_fetched: u64,
    /// Older backups that were removed.
    pub removed: u64,
    /// The previous backup's name is in the future, so this one's is too.
    pub of_the_future: bool,
}

/// The backup session on the service, while there is one.
#[derive(Debug, Default)]
pub struct RemoteSession(Mutex<Option<(Client, String)>>);

impl RemoteSession {
    /// Starts a session on the service. A concurrent [`RemoteSession::end_then`] waits for it and ends it.
    fn start(&self, client: &Client) -> Result<Manifest, BackupError> {
        let mut held = self.0.lock();
        let manifest: Manifest = client.post_json("/backups")?;
        *held = Some((client.clone(), manifest.id.clone()));
        Ok(manifest)
    }

    /// Ends the session on the service, so that the next backup need not wait, and then runs `then`, which may end
    /// the process: the lock keeps a failing backup from reporting anything meanwhile.
    pub fn end_then(&self, then: impl FnOnce()) {
        let mut held = self.0.lock();
        if let Some((client, id)) = held.take() {
            // If this fails, the service ends the idle session later.
            let _best_effort = client.delete(&format!("/backups/{id}"));
        }
        then();
    }
}

/// A source from which files are being copied.
enum OpenSource<'a> {
    Service(Client, Manifest, &'a RemoteSession),
    Directory(DataDir, Manifest),
}

impl OpenSource<'_> {
    fn start(source: BackupSource, session: &RemoteSession) -> Result<OpenSource<'_>, BackupError> {
        match source {
            BackupSource::Service(client) => {
                let manifest = session.start(&client)?;
                Ok(OpenSource::Service(client, manifest, session))
            }
            BackupSource::Directory(path) => {
                let dir = DataDir::open_read_only(&path)?;
                let id = String::new();
                let files = list_files(dir.path())?;
                Ok(OpenSource::Directory(dir, Manifest { id, files }))
            }
        }
    }

    fn manifest(&self) -> &Manifest {
        match self {
            OpenSource::Service(_, manifest, _) | OpenSource::Directory(_, manifest) => manifest,
        }
    }

    fn fetch(
        &self,
        entry: &BackupFile,
        into: &Path,
        progress: impl FnMut(u64),
    ) -> Result<(), BackupError> {
        match self {
            OpenSource::Service(client, manifest, _) => {
                let path = format!("/backups/{}/{}", manifest.id, entry.name);
                let response = client.get(&path, "application/octet-stream")?;
                let mut body = response.into_body().into_reader();
                let broken =
                    |e: io::Error| client.unreachable(&path, &describe_read_error(&e)).into();
                copy(&mut body, broken, into, entry, progress)
            }
            OpenSource::Directory(dir, _) => {
                let path = dir.path().join(&entry.name);
                let mut file = File::open(&path).map_err(with_context(&path))?;
                copy(&mut file, with_context(&path), into, entry, progress)
            }
        }
    }
}

impl Drop for OpenSource<'_> {
    fn drop(&mut self) {
        if let OpenSource::Service(_, _, session) = self {
            session.end_then(|| {});
        }
    }
}

/// Creates a backup in a new directory under `to`, and then removes all but the newest `keep` backups, if given.
/// `held` contains the session on the service meanwhile. `progress` receives the bytes copied so far and the total.
///
/// # Errors
/// After an error, `to` has its previous backups, and perhaps an incomplete one, with the suffix `.incomplete`.
pub fn create(
    source: BackupSource,
    to: &Path,
    keep: Option<usize>,
    session: &RemoteSession,
    mut progress: impl FnMut(u64, u64),
) -> Result<Created, BackupError> {
    if let BackupSource::Directory(dir) = &source
        && dir.exists()
    {
        require_outside(to, dir)?;
    }
    durable::create_dir_all(to).map_err(with_context(to))?;
    let _lock = lock(to)?;
    for leftover in incomplete(to)? {
        fs::remove_dir_all(&leftover).map_err(with_context(&leftover))?;
    }
    let before = complete(to)?.pop();
    let now = Offset::UTC.to_datetime(Timestamp::now());
    let newest = before.as_deref().and_then(time_of);
    // The newest backup must have the last name, even if the clock was set back, since `restore` and `keep` rely on
    // the order of names.
    let time = newest.map_or(now, |newest| now.max(newest.saturating_add(1.second())));
    let name = time.strftime(NAME).to_string();
    if let Some(before) = before.as_deref().filter(|b| **b == to.join(&name)) {
        return Err(BackupError::Refused(format!(
            "{} has the last possible name, so no backup can follow it; check the clock, and move that \
             directory away",
            before.display()
        )));
    }
    let unfinished = to.join(name.clone() + INCOMPLETE);
    let open = OpenSource::start(source, session)?;
    fs::create_dir_all(unfinished.join(ROCKS)).map_err(with_context(&unfinished))?;
    let mut created = Created {
        path: to.join(name),
        of_the_future: newest.is_some_and(|newest| newest > now.saturating_add(1.minute())),
        ..Created::default()
    };
    let all = open.manifest().files.iter().map(|file| file.bytes).sum();
    for entry in &open.manifest().files {
        if !super::is_file_name(&entry.name) {
            let what = format!(
                "the service offers a file with the invalid name {:?}",
                entry.name
            );
            return Err(BackupError::Refused(what));
        }
        let into = unfinished.join(&entry.name);
        if !link_if_unchanged(before.as_deref(), entry, &into)? {
            let done = created.bytes;
            open.fetch(entry, &into, |bytes| progress(done + bytes, all))?;
            created.bytes_fetched += entry.bytes;
        }
        created.files += 1;
        created.bytes += entry.bytes;
        progress(created.bytes, all);
    }
    durable::sync_dir(&unfinished.join(ROCKS)).map_err(with_context(&unfinished.join(ROCKS)))?;
    durable::sync_dir(&unfinished).map_err(with_context(&unfinished))?;
    durable::rename(&unfinished, &created.path).map_err(with_context(&unfinished))?;
    if let Some(keep) = keep {
        created.removed = remove_old(to, keep)?;
    }
    Ok(created)
}

fn lock(to: &Path) -> Result<DirLock, BackupError> {
    let path = to.join(LOCK_FILE);
    DirLock::create(&path).map_err(|error| match error {
        TryLockError::WouldBlock => BackupError::Busy,
        TryLockError::Error(e) => with_context(&path)(e),
    })
}

/// Links the file into the new backup if the previous one has the same file.
fn link_if_unchanged(
    before: Option<&Path>,
    entry: &BackupFile,
    into: &Path,
) -> Result<bool, BackupError> {
    let (Some(before), Some(expected)) = (before, &entry.tag) else {
        return Ok(false);
    };
    let old = before.join(&entry.name);
    let same = match fs::metadata(&old) {
        Ok(data) if data.len() == entry.bytes => {
            tag(&old, entry.bytes).map_err(with_context(&old))? == *expected
        }
        _ => false,
    };
    // If the file system has no hard links, the file is copied.
    Ok(same && fs::hard_link(&old, into).is_ok())
}

/// Copies a file and syncs it. `read_error` converts an error of reading.
pub(super) fn copy(
    from: &mut dyn Read,
    read_error: impl FnOnce(io::Error) -> BackupError,
    into: &Path,
    entry: &BackupFile,
    mut progress: impl FnMut(u64),
) -> Result<(), BackupError> {
    let mut file = File::create_new(into).map_err(with_context(into))?;
    let mut part = vec![0; COPY_BYTES];
    let mut copied = 0;
    loop {
        let read = match from.read(&mut part) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(read_error(e)),
            Ok(read) => read,
        };
        if read == 0 {
            break;
        }
        file.write_all(&part[..read]).map_err(with_context(into))?;
        copied += read as u64;
        progress(copied);
    }
    let whole = copied == entry.bytes;
    if !whole {
        let (name, bytes) = (&entry.name, entry.bytes);
        return Err(BackupError::Refused(format!(
            "{name} has {copied} bytes instead of {bytes}; take the backup again"
        )));
    }
    file.sync_all().map_err(with_context(into))
}

/// The time of a backup's creation, from its name; `None` if that is not the name of a backup.
fn time_of(path: &Path) -> Option<DateTime> {
    let name = path.file_name()?.to_str()?;
    let time = DateTime::strptime(NAME, name).ok()?;
    (time.strftime(NAME).to_string() == name).then_some(time)
}

fn is_backup_name(name: &str) -> bool {
    time_of(Path::new(name)).is_some()
}

fn named(to: &Path, fits: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, BackupError> {
    let mut paths = Vec::new();
    for found in fs::read_dir(to).map_err(with_context(to))? {
        let found = found.map_err(with_context(to))?;
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

/// The backups that were interrupted.
pub(super) fn incomplete(to: &Path) -> Result<Vec<PathBuf>, BackupError> {
    named(to, |name| {
        name.strip_suffix(INCOMPLETE).is_some_and(is_backup_name)
    })
}

/// Removes all but the newest `keep` backups. Each is renamed first, so that one that is partly removed does not
/// count as complete.
fn remove_old(to: &Path, keep: usize) -> Result<u64, BackupError> {
    let all = complete(to)?;
    let mut removed = 0;
    for old in &all[..all.len().saturating_sub(keep)] {
        let mut doomed = old.clone().into_os_string();
        doomed.push(INCOMPLETE);
        durable::rename(old, Path::new(&doomed)).map_err(with_context(old))?;
        fs::remove_dir_all(&doomed).map_err(with_context(old))?;
        removed += 1;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_backups() {
        for good in ["2026-11-24T03-00-00Z", "9999-12-31T23-59-59Z"] {
            assert!(is_backup_name(good), "{good}");
        }
        for bad in [
            "",
            "2026-11-24",
            "2026-13-24T03-00-00Z",
            "2026-11-24T3-00-00Z",
            "2026-11-24T03-00-00Z.incomplete",
            "99999-11-24T03-00-00Z",
        ] {
            assert!(!is_backup_name(bad), "{bad}");
        }
    }
}
