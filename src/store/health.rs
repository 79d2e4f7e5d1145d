//! Predicts whether writes will succeed, from the last write and the free space on the disk.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rocksdb::DB;

use super::dir::DataDir;
use super::error::StoreError;
use super::live_files::LiveFiles;
use super::{Durability, Inner, Store, rocks_error};
use agent::durable::OutOfSpace;

/// Interval between checks that the data directory still exists.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Size of the file that is written to find out why a write failed.
const PROBE_BYTES: usize = 1 << 20;

/// Whether a commit can be expected to succeed, judged by the last write to the journal. After a failed write, a
/// probe is written every second until one succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum WriteHealth {
    Good,
    /// The disk is full or nearly full. Writes resume when there is space again.
    NoSpace,
    /// The user's disk quota is used up.
    OverQuota,
    /// Any other failure. After some of them, RocksDB rejects writes until it is reopened.
    Failing,
    /// The quota has room again, but RocksDB rejects writes until it is reopened.
    QuotaRaised,
    /// A file would exceed the process's file size limit.
    FileTooLarge,
    /// The data directory or a file in it was removed or renamed, or its disk is gone. The next start would not find
    /// new writes.
    Gone,
    /// A thread panicked while it changed the sums in memory, so they may lack durable batches. All requests fail from
    /// then on, and a restart recovers the sums from the journal.
    Closed,
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

    fn from_shortage(shortage: Option<OutOfSpace>) -> WriteHealth {
        match shortage {
            Some(OutOfSpace::Space) => WriteHealth::NoSpace,
            Some(OutOfSpace::Quota) => WriteHealth::OverQuota,
            Some(OutOfSpace::FileSize) => WriteHealth::FileTooLarge,
            None => WriteHealth::Failing,
        }
    }

    /// The reason why batches are refused for lack of space; this may resolve by itself.
    pub fn lacks_space(self) -> Option<&'static str> {
        match self {
            WriteHealth::NoSpace => Some("less than the reserve is free on the disk"),
            WriteHealth::OverQuota => Some("the disk quota of the service's user is used up"),
            _ => None,
        }
    }

    /// The reason why batches are refused until the database is reopened.
    pub fn fails(self) -> Option<&'static str> {
        match self {
            WriteHealth::Failing => Some("the journal could not be written"),
            WriteHealth::FileTooLarge => Some(
                "the journal could not be written, because its file would exceed the process's file size \
                 limit (raise ulimit -f, and LimitFSIZE= of a systemd unit),",
            ),
            WriteHealth::QuotaRaised => Some(
                "the disk quota has room again, but the database accepts writes only after it is reopened; so \
                 the process ends as planned, for its supervisor to start it again (systemd: Restart=on-failure), \
                 after it could not write",
            ),
            WriteHealth::Closed => Some(
                "the store has been closed by an internal error (a restart recovers all sums from the journal)",
            ),
            _ => None,
        }
    }
}

/// State of the last checks.
#[derive(Debug)]
pub(super) struct Health {
    opened: Instant,
    /// Time of the next check of the data directory, in milliseconds since `opened`.
    next_check_ms: AtomicU64,
    is_gone: AtomicBool,
    live_files: Mutex<LiveFiles>,
    /// Result of the last write to the journal, a batch or a probe: a [`WriteHealth`].
    last_write: AtomicU8,
    /// Whether less than the reserve is free.
    space_is_low: AtomicBool,
    /// In bytes, at the last check.
    free: AtomicU64,
    reserve: AtomicU64,
}

/// The state of the path of the data directory.
enum DirState {
    /// The same directory, with all files that a start needs.
    All,
    /// The same directory, without this file.
    Without(PathBuf),
    Other,
}

impl Store {
    /// See [`WriteHealth`].
    pub fn write_health(&self) -> WriteHealth {
        let health = &self.inner.health;
        match health.last_write() {
            _ if self.inner.tallies.is_poisoned() => WriteHealth::Closed,
            _ if health.is_gone.load(Ordering::Relaxed) => WriteHealth::Gone,
            WriteHealth::Good if health.space_is_low.load(Ordering::Relaxed) => {
                WriteHealth::NoSpace
            }
            last => last,
        }
    }
}

impl Inner {
    /// Checks, at most once per second, that the data directory still exists.
    pub(super) fn require_dir(&self) -> Result<(), StoreError> {
        let health = &self.health;
        let now_ms = health.opened.elapsed().as_millis() as u64;
        if now_ms >= health.next_check_ms.load(Ordering::Relaxed) {
            let next_ms = now_ms + CHECK_INTERVAL.as_millis() as u64;
            health.next_check_ms.store(next_ms, Ordering::Relaxed);
            health.update_is_gone(&self.dir, &self.db);
        }
        if health.is_gone.load(Ordering::Relaxed) {
            let path = self.dir.path().to_owned();
            return Err(StoreError::Gone { path });
        }
        Ok(())
    }

    /// Counts a write to the journal as an fsync, unless commits do not wait for it.
    pub(super) fn count_sync(&self, written: &Result<(), StoreError>) {
        if written.is_ok() && self.options.durability == Durability::Fsync {
            self.options.metrics.store().journal_syncs.inc();
        }
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

/// Classifies a failed write. RocksDB repeats some errors for as long as it is open, so a write of our own shows
/// whether there is space now.
fn classify_failure(error: &StoreError, staging: &Path) -> WriteHealth {
    let error = match error {
        StoreError::Database { source, .. } => source,
        StoreError::Io { source, .. } => {
            return WriteHealth::from_shortage(OutOfSpace::from_error(source));
        }
        _ => return WriteHealth::Failing,
    };
    if rocks_error::is_no_space(error) {
        return WriteHealth::NoSpace;
    }
    match (probe(staging), rocks_error::shortage(error)) {
        (Err(error), _) => WriteHealth::from_shortage(OutOfSpace::from_error(&error)),
        (Ok(()), Some(OutOfSpace::Quota)) => WriteHealth::QuotaRaised,
        (Ok(()), shortage) => WriteHealth::from_shortage(shortage),
    }
}

/// Writes to the disk as RocksDB does, to an unnamed file.
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

    /// Health by the last write alone.
    pub(super) fn last_write(&self) -> WriteHealth {
        let last = self.last_write.load(Ordering::Relaxed);
        let all = WriteHealth::OF_WRITES;
        all.into_iter()
            .find(|h| *h as u8 == last)
            .unwrap_or(WriteHealth::Failing)
    }

    fn update_is_gone(&self, dir: &DataDir, db: &DB) {
        let place = self.dir_state(dir, db);
        let is_gone = !matches!(place, Ok(DirState::All));
        if self.is_gone.swap(is_gone, Ordering::Relaxed) == is_gone {
            return;
        }
        let data_dir = dir.path().display();
        match place {
            Ok(DirState::All) => {
                tracing::info!(%data_dir, "the data directory is available again: batches are accepted")
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

    /// Whether less than the reserve was free at the last check.
    pub(super) fn space_is_low(&self) -> bool {
        self.space_is_low.load(Ordering::Relaxed)
    }

    /// Free bytes of the disk at the last check, and how many of them are the reserve.
    pub(super) fn free_and_reserve(&self) -> (u64, u64) {
        let of = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed);
        (of(&self.free), of(&self.reserve))
    }

    /// Bytes that may be written before the reserve is touched; `u64::MAX` before the first check.
    pub(super) fn room(&self) -> u64 {
        match self.free_and_reserve() {
            (0, 0) => u64::MAX,
            (free, reserve) => free.saturating_sub(reserve),
        }
    }

    /// Updates the free space of the disk of `path`, and logs changes. The default `reserve` is a twentieth of the
    /// disk, at most 1 GiB, but at least `needed` (what the next flush may take) if that is at most a quarter of the
    /// disk.
    pub(super) fn update_free_space(&self, path: &Path, reserve: Option<u64>, needed: u64) {
        let Ok(disk) = rustix::fs::statvfs(path) else {
            return; // a failed write will report it
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Selection;
    use crate::store::StoreOptions;
    use flow::{BatchBuilder, Counters, Hour};

    /// A panic may have left a durable batch out of the sums, so all requests fail after it, and the service asks for a
    /// restart.
    #[test]
    fn a_store_whose_sums_may_be_wrong_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let hour = Hour::new(7).unwrap();
        let commit = |store: &Store| {
            let mut batch = BatchBuilder::with_capacity(0);
            batch.push(hour, [b"a", b"b", b"c"], Counters { tx: 1, rx: 2 });
            store.commit(vec![batch.finish()])
        };
        commit(&store).unwrap();
        assert_eq!(store.write_health(), WriteHealth::Good);
        std::thread::scope(|scope| {
            let panics = scope.spawn(|| {
                let _tallies = store.inner.tallies().unwrap();
                panic!("while the sums change");
            });
            assert!(panics.join().is_err());
        });
        assert!(store.write_health().fails().is_some());
        assert!(matches!(commit(&store), Err(StoreError::Closed)));
        assert!(store.select(Selection::hour(hour)).is_err());
        drop(store);
        let (store, recovery) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        assert_eq!(recovery.flows, 1);
        commit(&store).unwrap();
    }
}
