//! Backups. A service provides the files of a checkpoint ([`Sessions`]), [`create`] downloads them into a backup, and
//! [`restore`] turns a backup into a data directory.
//!
//! ```text
//! DIR/2026-11-24T03-00-00Z/             a complete data directory: verify it, or start from a copy of it
//! DIR/2026-11-25T03-00-00Z/             the next; a file that both have is stored once, as a hard link
//! DIR/2026-11-26T03-00-00Z.incomplete/  interrupted: never restored from, removed by the next backup
//! ```
//!
//! The database's files (`*.sst`) are immutable. So a second backup downloads only new ones and links the others. All
//! other files are small and are downloaded every time.

mod create;
mod restore;
mod session;

pub use create::{BackupSource, Created, RemoteSession, create};
pub use restore::{Restored, restore};
pub use session::{Lease, Sessions};

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::store::codec::IDENTITY_FILE;
use crate::store::{PARTITION_FILE, ROCKS, StoreError};
use agent::client::ClientError;

/// Bytes at the end of a file that identify it: RocksDB writes the identity of the file and of its database there.
const TAG_BYTES: u64 = 64 << 10;

/// The files of a backup.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Manifest {
    /// Id of the checkpoint that the files belong to.
    pub id: String,
    pub files: Vec<BackupFile>,
}

/// One file of a backup.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Hash, Serialize)]
pub struct BackupFile {
    /// Relative to the data directory.
    pub name: String,
    pub bytes: u64,
    /// Set for an immutable file: a file with the same name, size and tag is the same file.
    pub tag: Option<String>,
}

/// The reason why a backup or a restore failed.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// Refused; the text has the remedy.
    #[error("{0}")]
    Refused(String),
    /// Another backup is in progress.
    #[error("another backup is in progress; try again when it has ended")]
    Busy,
    /// The session has ended, or has never existed.
    #[error("there is no such backup session; take a new backup")]
    Gone,
}

/// For `map_err`: adds the path.
pub fn with_context(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::Io { path, source }
}

/// Whether `name` can be a file of a backup: one of the data directory or of its database, and no path outside of them.
pub fn is_file_name(name: &str) -> bool {
    let Some((ROCKS, base)) = name.split_once('/') else {
        return name == IDENTITY_FILE || name == PARTITION_FILE;
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !base.is_empty() && !base.starts_with('.') && base.chars().all(plain)
}

/// The tag of the file at `path`.
fn tag(path: &Path, bytes: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(bytes.saturating_sub(TAG_BYTES)))?;
    let mut end = Vec::new();
    file.take(TAG_BYTES).read_to_end(&mut end)?;
    Ok(format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&end)))
}

/// Lists the files of the data directory at `path`. The caller keeps it from changing.
pub fn list_files(path: &Path) -> Result<Vec<BackupFile>, BackupError> {
    let mut entries = Vec::new();
    for (dir, prefix) in [(path.to_owned(), ""), (path.join(ROCKS), "rocks/")] {
        for found in std::fs::read_dir(&dir).map_err(with_context(&dir))? {
            let found = found.map_err(with_context(&dir))?;
            let name = format!("{prefix}{}", found.file_name().to_string_lossy());
            let data = found.metadata().map_err(with_context(&found.path()))?;
            // Skip RocksDB's lock and its info logs.
            let is_kept = data.is_file() && !name.ends_with("/LOCK") && !name.contains("/LOG");
            if !is_kept || !is_file_name(&name) {
                continue;
            }
            let bytes = data.len();
            let tag = match name.ends_with(".sst") {
                true => Some(tag(&found.path(), bytes).map_err(with_context(&found.path()))?),
                false => None,
            };
            entries.push(BackupFile { name, bytes, tag });
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Refuses a target that is `source` or inside it: it would be copied too, or block the copy.
fn require_outside(target: &Path, source: &Path) -> Result<(), BackupError> {
    let absolute = std::path::absolute(target).map_err(with_context(target))?;
    // A path that does not exist yet is resolved by its nearest existing ancestor.
    let real = absolute
        .ancestors()
        .find_map(|path| path.canonicalize().ok());
    let source = source.canonicalize().map_err(with_context(source))?;
    match real {
        Some(real) if real.starts_with(&source) => Err(BackupError::Refused(format!(
            "{} is inside {}; give a directory outside of it",
            target.display(),
            source.display()
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_outside_of_a_backup_are_refused() {
        for good in [
            "FLOWTALLY",
            "PARTITION",
            "rocks/000012.sst",
            "rocks/MANIFEST-000004",
            "rocks/CURRENT",
        ] {
            assert!(is_file_name(good), "{good}");
        }
        for bad in [
            "",
            "/",
            "..",
            "rocks",
            "CURRENT",
            "rocks/",
            "rocks/..",
            "rocks/../x",
            "/etc/passwd",
            "rocks/a/b",
            "staging/x.sst",
            ".hidden",
            "a\0",
            "a b",
            "rocks//x",
        ] {
            assert!(!is_file_name(bad), "{bad}");
        }
    }
}
