//! Creates a data directory.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::ROCKS;
use crate::store::codec;
use crate::store::error::StoreError;
use agent::durable;

/// Prefix of an identity file that is being written.
pub(super) const UNFINISHED: &str = "FLOWTALLY.new";

/// Whether the directory exists and contains more than an interrupted [`create`] leaves.
pub(super) fn has_files(path: &Path) -> io::Result<bool> {
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
pub(super) fn create_if_new(path: &Path, identity_path: &Path) -> Result<(), StoreError> {
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

/// Writes the identity file into `path`, which contains a complete database in `rocks`.
pub(in crate::store) fn write_identity(path: &Path) -> io::Result<()> {
    durable::write(
        &path.join(codec::IDENTITY_FILE),
        &path.join(UNFINISHED),
        codec::encode_identity().as_bytes(),
    )
}
