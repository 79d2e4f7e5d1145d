//! Whether writes can be expected to succeed: by the last one, and by the space on the disk.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use super::Store;
use super::error::StoreError;

/// Whether a commit can be expected to succeed, judged by the last write to the journal. After one
/// that failed, a probe is written every second until one goes well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum WriteHealth {
    Good,
    /// The disk is full, or nearly: writes go on by themselves when there is space again.
    NoSpace,
    /// Any other failure. RocksDB refuses writes after some of them until it is opened again.
    Failing,
}

/// What was seen last.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// How the last write to the journal, a batch or a probe, went: a [`WriteHealth`].
    last_write: AtomicU8,
    /// Less than the reserve is free.
    space_is_low: AtomicBool,
    /// In bytes.
    pub(super) free: AtomicU64,
    pub(super) reserve: AtomicU64,
}

impl Store {
    /// See [`WriteHealth`].
    pub fn write_health(&self) -> WriteHealth {
        let health = &self.inner.health;
        match health.last_write() {
            WriteHealth::Good if health.space_is_low.load(Ordering::Relaxed) => {
                WriteHealth::NoSpace
            }
            last => last,
        }
    }
}

impl Health {
    /// By the last write alone.
    pub(super) fn last_write(&self) -> WriteHealth {
        let last = self.last_write.load(Ordering::Relaxed);
        let all = [
            WriteHealth::Good,
            WriteHealth::NoSpace,
            WriteHealth::Failing,
        ];
        all.into_iter()
            .find(|h| *h as u8 == last)
            .unwrap_or(WriteHealth::Failing)
    }

    pub(super) fn note_write(&self, written: &Result<(), StoreError>) {
        let health = match written {
            Ok(()) => WriteHealth::Good,
            // RocksDB gives the system's words on; its kinds of errors do not tell.
            Err(e) if e.to_string().contains("No space left") => WriteHealth::NoSpace,
            Err(_) => WriteHealth::Failing,
        };
        self.last_write.store(health as u8, Ordering::Relaxed);
    }

    /// Whether less than the reserve was free at the last look.
    pub(super) fn space_is_low(&self) -> bool {
        self.space_is_low.load(Ordering::Relaxed)
    }

    /// Looks how much space is left on the disk of `path`, and says so where that changes something.
    /// Without a `reserve`, it is a twentieth of the disk, at most 1 GiB; and at least `needed`, what
    /// the next flush may take, as far as that is no more than a quarter of the disk.
    pub(super) fn note_space(&self, path: &Path, reserve: Option<u64>, needed: u64) {
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
