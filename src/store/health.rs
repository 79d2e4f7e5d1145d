//! Whether writes can be expected to succeed: by the last one, and by the space on the disk.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rocksdb::DB;

use super::dir::DataDir;
use super::error::StoreError;
use super::live_files::LiveFiles;
use super::{Inner, Store};
use agent::durable::Lack;

/// Pause between two looks at whether the data directory is where it was.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// What RocksDB's text of an error begins with where its subcode is `kNoSpace`: ENOSPC, from whatever call. Of
/// all other errors of the system it gives no class, so those are learned by a write of our own.
const ROCKSDB_NO_SPACE: &str = "IO error: No space left on device";
/// That write's bytes.
const PROBE_BYTES: usize = 1 << 20;

/// Whether a commit can be expected to succeed, judged by the last write to the journal. After one
/// that failed, a probe is written every second until one goes well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum WriteHealth {
    Good,
    /// The disk is full, or nearly: writes go on by themselves when there is space again.
    NoSpace,
    /// The user's quota of the disk is used up.
    OverQuota,
    /// Any other failure. RocksDB refuses writes after some of them until it is opened again.
    Failing,
    /// So it does after the quota was used up, and there is room in it again.
    QuotaRaised,
    /// A file would pass the size that the process may give one.
    FileTooLarge,
    /// The data directory, or a file in it, is not where it was: it was removed or renamed, or its disk is gone.
    /// What is written now, the next start would not find.
    Gone,
}

impl WriteHealth {
    const OF_WRITES: [WriteHealth; 6] = [
        WriteHealth::Good,
        WriteHealth::NoSpace,
        WriteHealth::OverQuota,
        WriteHealth::Failing,
        WriteHealth::QuotaRaised,
        WriteHealth::FileTooLarge,
    ];

    fn from_lack(lack: Option<Lack>) -> WriteHealth {
        match lack {
            Some(Lack::Space) => WriteHealth::NoSpace,
            Some(Lack::Quota) => WriteHealth::OverQuota,
            Some(Lack::FileSize) => WriteHealth::FileTooLarge,
            None => WriteHealth::Failing,
        }
    }

    /// Why no batch is taken for want of space, which may come by itself.
    pub fn lacks_space(self) -> Option<&'static str> {
        match self {
            WriteHealth::NoSpace => Some("less than the reserve is free on the disk"),
            WriteHealth::OverQuota => {
                Some("the quota on the disk of the user whom the service runs as is used up")
            }
            _ => None,
        }
    }

    /// Why no batch is taken until the database is opened again.
    pub fn fails(self) -> Option<&'static str> {
        match self {
            WriteHealth::Failing => Some("the journal could not be written"),
            WriteHealth::FileTooLarge => Some(
                "the journal could not be written, since its file would get larger than the process may make \
                 one (raise ulimit -f, and LimitFSIZE= of a systemd unit),",
            ),
            WriteHealth::QuotaRaised => Some(
                "the disk's quota has room again, and the database takes writes only when it is opened anew; so \
                 the process ends as planned, for its supervisor to start it again (systemd: Restart=on-failure), \
                 after it could not write",
            ),
            _ => None,
        }
    }
}

/// What was seen last.
#[derive(Debug)]
pub(super) struct Health {
    opened: Instant,
    /// When the data directory is looked for next: milliseconds since `opened`.
    next_check_ms: AtomicU64,
    is_gone: AtomicBool,
    live_files: Mutex<LiveFiles>,
    /// How the last write to the journal, a batch or a probe, went: a [`WriteHealth`].
    last_write: AtomicU8,
    /// Less than the reserve is free.
    space_is_low: AtomicBool,
    /// In bytes.
    pub(super) free: AtomicU64,
    pub(super) reserve: AtomicU64,
}

/// What is where the data directory was.
enum DirState {
    /// It, with all that a start needs of its files.
    All,
    /// It, without this file.
    Without(PathBuf),
    Other,
}

impl Store {
    /// See [`WriteHealth`].
    pub fn write_health(&self) -> WriteHealth {
        let health = &self.inner.health;
        match health.last_write() {
            _ if health.is_gone.load(Ordering::Relaxed) => WriteHealth::Gone,
            WriteHealth::Good if health.space_is_low.load(Ordering::Relaxed) => {
                WriteHealth::NoSpace
            }
            last => last,
        }
    }
}

impl Inner {
    /// Looks, once a second at most, whether the data directory is where it was.
    pub(super) fn require_dir(&self) -> Result<(), StoreError> {
        let health = &self.health;
        let now_ms = health.opened.elapsed().as_millis() as u64;
        if now_ms >= health.next_check_ms.load(Ordering::Relaxed) {
            let next_ms = now_ms + CHECK_INTERVAL.as_millis() as u64;
            health.next_check_ms.store(next_ms, Ordering::Relaxed);
            health.check_location(&self.dir, &self.db);
        }
        if health.is_gone.load(Ordering::Relaxed) {
            let path = self.dir.path().to_owned();
            return Err(StoreError::Gone { path });
        }
        Ok(())
    }

    pub(super) fn record_write(&self, written: &Result<(), StoreError>) {
        let health = match written {
            Ok(()) => WriteHealth::Good,
            Err(error) => classify_failure(error, &self.dir.staging()),
        };
        self.health
            .last_write
            .store(health as u8, Ordering::Relaxed);
    }
}

/// After a write that failed. RocksDB repeats the text of some errors for as long as it is open, so whether there
/// is room by now is learned by a write of our own.
fn classify_failure(error: &StoreError, staging: &Path) -> WriteHealth {
    let text = match error {
        StoreError::Database { source, .. } => source.as_ref(),
        StoreError::Io { source, .. } => return WriteHealth::from_lack(Lack::of(source)),
        _ => return WriteHealth::Failing,
    };
    if text.starts_with(ROCKSDB_NO_SPACE) {
        return WriteHealth::NoSpace;
    }
    match probe(staging) {
        Err(error) => WriteHealth::from_lack(Lack::of(&error)),
        Ok(()) if Lack::in_text(text) == Some(Lack::Quota) => WriteHealth::QuotaRaised,
        Ok(()) => WriteHealth::from_lack(Lack::in_text(text)),
    }
}

/// Writes to the disk as RocksDB does, to a file without a name.
fn probe(staging: &Path) -> io::Result<()> {
    let mut file = tempfile::tempfile_in(staging)?;
    file.write_all(&vec![0; PROBE_BYTES])?;
    file.sync_all()
}

impl Health {
    pub(super) fn new() -> Health {
        Health {
            opened: Instant::now(),
            next_check_ms: AtomicU64::new(0),
            is_gone: AtomicBool::new(false),
            live_files: Mutex::default(),
            last_write: AtomicU8::new(WriteHealth::Good as u8),
            space_is_low: AtomicBool::new(false),
            free: AtomicU64::new(0),
            reserve: AtomicU64::new(0),
        }
    }

    /// By the last write alone.
    pub(super) fn last_write(&self) -> WriteHealth {
        let last = self.last_write.load(Ordering::Relaxed);
        let all = WriteHealth::OF_WRITES;
        all.into_iter()
            .find(|h| *h as u8 == last)
            .unwrap_or(WriteHealth::Failing)
    }

    fn check_location(&self, dir: &DataDir, db: &DB) {
        let place = self.dir_state(dir, db);
        let is_gone = !matches!(place, Ok(DirState::All));
        if self.is_gone.swap(is_gone, Ordering::Relaxed) == is_gone {
            return;
        }
        let data_dir = dir.path().display();
        match place {
            Ok(DirState::All) => {
                tracing::info!(%data_dir, "the data directory is back: batches are accepted")
            }
            Ok(DirState::Other) => tracing::error!(
                %data_dir,
                "the data directory was replaced by another one while it was in use: batches are refused"
            ),
            Ok(DirState::Without(file)) => tracing::error!(
                file = %file.display(),
                "a file of the data directory was removed while it was in use: batches are refused"
            ),
            Err(error) => tracing::error!(
                %data_dir,
                %error,
                "the data directory is gone: batches are refused"
            ),
        }
    }

    fn dir_state(&self, dir: &DataDir, db: &DB) -> io::Result<DirState> {
        if !dir.is_in_place()? {
            return Ok(DirState::Other);
        }
        let mut live_files = self.live_files.lock();
        let missing = live_files.missing(&dir.rocks(), db)?;
        Ok(missing.map_or(DirState::All, DirState::Without))
    }

    /// Whether less than the reserve was free at the last look.
    pub(super) fn space_is_low(&self) -> bool {
        self.space_is_low.load(Ordering::Relaxed)
    }

    /// Looks how much space is left on the disk of `path`, and says so where that changes something.
    /// Without a `reserve`, it is a twentieth of the disk, at most 1 GiB; and at least `needed`, what
    /// the next flush may take, as far as that is no more than a quarter of the disk.
    pub(super) fn update_free_space(&self, path: &Path, reserve: Option<u64>, needed: u64) {
        let Ok(disk) = rustix::fs::statvfs(path) else {
            return; // writes will tell
        };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let all = disk.f_blocks.saturating_mul(disk.f_frsize);
        let by_default = || (all / 20).min(1 << 30).max(needed.min(all / 4));
        let reserve = reserve.unwrap_or_else(by_default);
        self.free.store(free, Ordering::Relaxed);
        self.reserve.store(reserve, Ordering::Relaxed);
        let is_low = free < reserve;
        if self.space_is_low.swap(is_low, Ordering::Relaxed) == is_low {
            return;
        }
        let (free_mib, reserve_mib) = (free >> 20, reserve >> 20);
        if is_low {
            tracing::warn!(
                free_mib,
                reserve_mib,
                "the disk is nearly full: batches are refused"
            );
        } else {
            tracing::info!(
                free_mib,
                reserve_mib,
                "the disk has space again: batches are accepted"
            );
        }
    }
}
