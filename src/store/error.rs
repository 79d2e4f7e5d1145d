//! Errors of the store. Each message tells an operator what to do.

use std::io;
use std::path::{Path, PathBuf};

use super::codec::{self, Corrupt};
use super::rocks_error;
use super::scan::ScanEnd;
use super::tiers::Tier;
use agent::durable::OutOfSpace;
use flow::Hour;

/// The hint for the directory of a cluster node: the location of its sums.
fn of_a_node(path: &Path) -> &'static str {
    match path.join("partitions").is_dir() {
        true => {
            "; it belongs to a cluster node, whose sums are in partitions/0, partitions/1 and so on"
        }
        false => "",
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "{path} is not a flowtally data directory: it has no valid {} file; \
         give --data-dir one that flowtally made, or, for a new one, an empty or absent directory{}",
        codec::IDENTITY_FILE,
        of_a_node(.path)
    )]
    NotOurs { path: PathBuf },

    #[error(
        "{path} has the sums of {found}, not those of {wanted}; give --data-dir another directory, or the \
         one that belongs to it"
    )]
    WrongPartition {
        path: PathBuf,
        found: String,
        wanted: String,
    },

    #[error("there is no data directory {path}; correct --data-dir")]
    Absent { path: PathBuf },

    #[error(
        "{path} has format {found}, and this flowtally knows formats up to {}; \
         run the version that wrote it, or a newer one",
        codec::FORMAT
    )]
    NewerFormat { path: PathBuf, found: u32 },

    #[error(
        "{path} has format {found}, of a version before the first release, and this flowtally has \
         format {}; start with an empty directory",
        codec::FORMAT
    )]
    OlderFormat { path: PathBuf, found: u32 },

    #[error(
        "{path} holds a restore that was interrupted; run the same restore again, which starts it anew"
    )]
    RestoreInterrupted { path: PathBuf },

    #[error(
        "{path} is a backup that was interrupted: it is incomplete; choose another, or make a new one"
    )]
    BackupInterrupted { path: PathBuf },

    #[error(
        "the data directory {path} has lost its rocks directory, where all sums are; \
         put it back, or restore a backup into another directory"
    )]
    Incomplete { path: PathBuf },

    #[error(
        "the data directory {path} is in use by another flowtally; \
         stop that one, or give --data-dir another directory"
    )]
    InUse { path: PathBuf },

    #[error(
        "cannot use the data directory {path}: {source}; {}",
        directory_remedy(source)
    )]
    Directory { path: PathBuf, source: io::Error },

    #[error(
        "the database in {path} does not open: {source}; {}",
        open_remedy(source)
    )]
    Open {
        path: PathBuf,
        source: rocksdb::Error,
    },

    #[error(
        "the stored data is damaged ({what}), so no sums are returned, since they could be wrong; \
         keep this directory, because it may have flows that no backup has, and restore a backup into another one"
    )]
    Corrupt { what: String },

    #[error(
        "{what}; nothing of it was acknowledged: start the service, which cuts it off (a restore does too)"
    )]
    Torn { what: String },

    #[error(
        "the data directory {path}, or a file in it, was removed, renamed or replaced while it was in use, or its disk is \
         gone; \
         bring it back, or stop the service and restore a backup into another directory"
    )]
    Gone { path: PathBuf },

    #[error("the data directory is open read-only")]
    ReadOnly,

    #[error(
        "before hour {finer_from}, sums are kept only for {0} hours at a time; ask from hour {finer_from} on, or for \
         multiples of {0}: from, to, and step if the rows have an hour",
        tier.hours()
    )]
    TooCoarse { tier: Tier, finer_from: Hour },

    #[error("some hours cannot be read; run flowtally verify, which names them")]
    HoursUnreadable,

    #[error("settling an hour needs {bytes} bytes of free disk space; make space and run it again")]
    NoRoomToSettle { bytes: u64 },

    #[error("{doing} failed: {source}; {}", remedy(rocks_error::shortage(source)))]
    Database {
        doing: &'static str,
        source: rocksdb::Error,
    },

    #[error("{doing} failed: {source}; {}", remedy(OutOfSpace::from_error(source)))]
    Io {
        doing: &'static str,
        source: io::Error,
    },

    #[error(
        "writes come faster than they can be flushed; try again shortly, \
         and if this continues, give the service a faster disk"
    )]
    WriteStalled,

    #[error(
        "compaction failed, and the files are unchanged; the LOG file in the rocks directory \
         has the cause, which is usually a full disk"
    )]
    CompactionFailed,

    #[error("flush failed: {why}; acknowledged flows are safe in the journal")]
    FlushFailed { why: String },

    #[error("too many responses with unflushed rows are being read; try again shortly")]
    ViewMemoryFull,

    #[error("a scan ended early: {0:?}")]
    ScanEnded(ScanEnd),

    #[error("the store is closed after an internal error; restart the service")]
    Closed,
}

fn directory_remedy(error: &io::Error) -> &'static str {
    OutOfSpace::from_error(error).map_or(
        "check that it is a directory that this user may write, on a disk with free space",
        OutOfSpace::remedy,
    )
}

fn remedy(shortage: Option<OutOfSpace>) -> &'static str {
    shortage.map_or("check the disk", OutOfSpace::remedy)
}

fn open_remedy(error: &rocksdb::Error) -> &'static str {
    if let Some(shortage) = rocks_error::shortage(error) {
        return shortage.remedy();
    }
    match error.kind() {
        rocksdb::ErrorKind::Corruption => {
            "its files are damaged: keep this directory, because it may have flows that no backup has, and \
             restore a backup into another one"
        }
        rocksdb::ErrorKind::IOError => {
            "nothing is lost: check that the disk works and has free space, then start again"
        }
        _ => "nothing was changed; see the message from RocksDB",
    }
}

impl From<Corrupt> for StoreError {
    fn from(corrupt: Corrupt) -> StoreError {
        StoreError::Corrupt {
            what: corrupt.to_string(),
        }
    }
}

/// For `map_err`: adds the operation during which RocksDB failed.
pub(super) fn with_context(doing: &'static str) -> impl FnOnce(rocksdb::Error) -> StoreError {
    move |source| StoreError::Database { doing, source }
}
