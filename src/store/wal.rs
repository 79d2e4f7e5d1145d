//! Validates RocksDB's write-ahead logs and its MANIFEST before RocksDB opens them.
//!
//! A power cut can leave the last write of a log torn: some of its sectors are missing ([`torn`] detects this).
//! RocksDB would report it as corruption, so it is truncated here. Any other unreadable data is corruption: an
//! acknowledged record may be lost, and sums that lack it must not be returned.
//!
//! The MANIFEST, which lists the files of the database, is a log of the same format. If the length of a record reaches
//! past the end of the file, RocksDB treats this as the end, opens the state before it, and deletes the files that are
//! unknown there. Such a changed byte is detected here.
//!
//! A killed process leaves writes that are not on disk yet, and RocksDB continues from them. So all logs are synced
//! first: data written after them must not survive a power cut without them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::error::StoreError;
use super::torn::{Damage, LogEnd, LogKind, find_end};
use agent::durable;

/// Torn writes that a power cut left in logs. They were never acknowledged.
#[derive(Debug)]
pub(super) struct TornWrites(Vec<TornWrite>);

#[derive(Debug)]
struct TornWrite {
    path: PathBuf,
    keep: u64,
    bytes: u64,
}

impl std::fmt::Display for TornWrites {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (n, cut) in self.0.iter().enumerate() {
            let (and, path) = (if n > 0 { "; " } else { "" }, cut.path.display());
            let bytes = cut.bytes;
            write!(
                f,
                "{and}{path}: the last {bytes} bytes belong to a write that a power cut interrupted"
            )?;
        }
        Ok(())
    }
}

/// Prepares the logs of the database in `rocks` for RocksDB: truncates torn writes at their ends, returns a
/// description of them, and syncs the logs.
///
/// # Errors
/// As [`find_torn_writes`], and if a log cannot be written.
pub fn truncate_torn_writes(rocks: &Path) -> Result<Option<String>, StoreError> {
    let torn = find_torn_writes(rocks)?;
    let sync = || {
        for TornWrite { path, keep, .. } in torn.iter().flat_map(|torn| &torn.0) {
            File::options().write(true).open(path)?.set_len(*keep)?;
        }
        for (path, _) in logs(rocks)? {
            File::open(path)?.sync_all()?;
        }
        durable::sync_dir(rocks)
    };
    sync().map_err(|source| StoreError::Io {
        doing: "syncing the journal's logs",
        source,
    })?;
    Ok(torn.map(|torn| format!("{torn}; nothing of it was acknowledged, and it is cut off")))
}

/// Reads the MANIFEST and the logs of the database in `rocks` and returns the torn writes at their ends.
///
/// # Errors
/// If a log is corrupt in any other way.
pub(super) fn find_torn_writes(rocks: &Path) -> Result<Option<TornWrites>, StoreError> {
    let failed = |source| StoreError::Io {
        doing: "reading the journal's logs or the MANIFEST",
        source,
    };
    let mut cuts = Vec::new();
    let mut is_over = false;
    for (path, of) in logs(rocks).map_err(failed)? {
        let mut log = File::open(&path).map_err(failed)?;
        let keep = match find_end(&mut log, of).map_err(failed)? {
            // Without per-record syncs, nothing after a lost record counts.
            _ if is_over => 0,
            Ok(LogEnd::Good) => continue,
            Ok(LogEnd::Torn { keep, unsynced }) => {
                is_over = unsynced;
                keep
            }
            Err(Damage { at }) => {
                return Err(StoreError::Corrupt {
                    what: format!("{} at byte {at}", path.display()),
                });
            }
        };
        let (keep, length) = (keep as u64, log.metadata().map_err(failed)?.len());
        if keep < length {
            cuts.push(TornWrite {
                path,
                keep,
                bytes: length - keep,
            });
        }
    }
    Ok((!cuts.is_empty()).then_some(TornWrites(cuts)))
}

/// The current MANIFEST, and the journal's logs, oldest first.
fn logs(rocks: &Path) -> io::Result<Vec<(PathBuf, LogKind)>> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(rocks)? {
        let path = entry?.path();
        let is_log = path.extension().is_some_and(|e| e == "log");
        let number = path.file_stem().filter(|_| is_log);
        let number: Option<u64> = number.and_then(|stem| stem.to_str()?.parse().ok());
        if let Some(number) = number {
            logs.push((number, path));
        }
    }
    logs.sort();
    let mut logs: Vec<_> = logs
        .into_iter()
        .map(|(_, path)| (path, LogKind::Journal))
        .collect();
    // If it is missing, RocksDB reports that.
    if let Ok(current) = fs::read_to_string(rocks.join("CURRENT")) {
        let manifest = rocks.join(current.trim_end());
        if manifest.is_file() {
            logs.insert(0, (manifest, LogKind::Manifest));
        }
    }
    Ok(logs)
}
