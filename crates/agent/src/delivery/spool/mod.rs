//! Batches on disk, in the order in which they are sent: one file each, which is durable before the batch
//! counts as stored.
//!
//! ```text
//! DIR/lock                            held by the process that uses the spool
//! DIR/unfinished                      the start of a flow whose rest is still in the pipe
//! DIR/tmp                             the batch that is being filled: reserved room, later its body
//! DIR/ahead.tmp                       reserved room for the flows that are read next
//! DIR/unfinished.tmp                  reserved room for the start of a flow, later that start
//! DIR/NUMBER-KEY-FLOWS.json.zst       a batch that waits (.json where it is not compressed)
//! DIR/refused/NUMBER-KEY-FLOWS.json…  a batch that the service will never accept
//! DIR/refused/NUMBER-KEY-FLOWS.txt    the reason, and the command that sends it again
//! ```
//!
//! The disk may become full at any time, also because of other programs. So room is allocated before a pipe is read:
//! for the batch that is being filled, for the flows of the next read, and for a flow that this read may cut. All input
//! that was read can be stored.

mod names;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use names::{name, parse_name, stem};

use super::SendError;
use super::queue::{BatchMeta, QueueFull};
use super::reserved::{self, Reserved};
use crate::durable::{self, DirLock};

const LOCK_FILE: &str = "lock";
/// The file for the start of a flow that was read from a pipe.
const UNFINISHED_TEXT: &str = "unfinished";
/// The name of a part of a batch while it is being written.
const PART: &str = "part.tmp";
/// The directory of refused batches in the spool.
const REFUSED: &str = "refused";
/// On most file systems, files occupy whole blocks of this size.
const BLOCK_BYTES: u64 = 4096;

/// A directory of batches.
#[derive(Debug)]
pub(super) struct Spool {
    path: PathBuf,
    bytes_max: u64,
    /// The disk usage of the waiting and the refused batches.
    bytes: u64,
    refused_bytes: u64,
    /// The waiting batches in order: number, metadata and length.
    files: VecDeque<(u64, BatchMeta, u64)>,
    next: u64,
    room: Reserved,
    _lock: DirLock,
}

/// The oldest batch. Its body may be unreadable.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OldestBatch {
    pub(super) meta: BatchMeta,
    pub(super) body: Result<Vec<u8>, String>,
}

impl Spool {
    pub(super) fn open(path: &Path, bytes_max: u64) -> Result<Spool, SendError> {
        durable::create_dir_all(path).map_err(|e| error(path, e))?;
        let lock = DirLock::create(&path.join(LOCK_FILE)).map_err(|e| match e {
            TryLockError::WouldBlock => {
                let why = "another process is using this spool; give each process its own";
                error(path, why)
            }
            TryLockError::Error(e) => error(path, e),
        })?;
        // Names that a killed process left may not be durable yet.
        durable::sync_dir(path).map_err(|e| error(path, e))?;
        let mut files = Vec::new();
        for found in fs::read_dir(path).map_err(|e| error(path, e))? {
            let found = found.map_err(|e| error(path, e))?;
            let file_name = found.file_name();
            let file_name = file_name.to_string_lossy();
            if let Some((number, meta)) = parse_name(&file_name) {
                let bytes = found.metadata().map_err(|e| error(path, e))?.len();
                files.push((number, meta, bytes));
            } else if file_name.ends_with(reserved::TMP) {
                // A crash interrupted the write. The caller was never told that the batch is stored.
                fs::remove_file(found.path()).map_err(|e| error(path, e))?;
            } else if file_name != LOCK_FILE
                && file_name != REFUSED
                && file_name != UNFINISHED_TEXT
                && !durable::is_lost_and_found(&found)
            {
                let why = format!(
                    "it contains {file_name}, which is not a batch; give an empty directory"
                );
                return Err(error(path, why));
            }
        }
        files.sort_by_key(|(number, ..)| *number);
        let refused_bytes = bytes_below(&path.join(REFUSED)).map_err(|e| error(path, e))?;
        Ok(Spool {
            path: path.to_owned(),
            bytes_max,
            bytes: files.iter().map(|(.., bytes)| on_disk(*bytes)).sum(),
            refused_bytes,
            next: files.last().map_or(0, |(number, ..)| number + 1),
            files: files.into(),
            room: Reserved::new(path),
            _lock: lock,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// See [`Queue::reserve`](super::queue::Queue::reserve).
    pub(super) fn reserve(&mut self, bytes: u64) -> Result<Option<QueueFull>, SendError> {
        if self.bytes + self.refused_bytes >= self.bytes_max {
            // The operator may have deleted refused batches.
            let refused = self.path.join(REFUSED);
            self.refused_bytes = bytes_below(&refused).map_err(|e| error(&refused, e))?;
            if self.bytes + self.refused_bytes >= self.bytes_max {
                return Ok(Some(QueueFull::Bytes));
            }
        }
        let is_reserved = self.room.reserve_batch(bytes);
        self.shortage(is_reserved)
    }

    /// See [`Queue::reserve_ahead`](super::queue::Queue::reserve_ahead).
    pub(super) fn reserve_ahead(
        &mut self,
        body_bytes: u64,
        text_bytes: u64,
    ) -> Result<Option<QueueFull>, SendError> {
        let is_reserved = self.room.reserve_ahead(body_bytes, text_bytes);
        self.shortage(is_reserved)
    }

    /// See [`Reserved::use_ahead`].
    pub(super) fn use_ahead(&mut self, bytes: u64) -> Result<(), SendError> {
        self.room.use_ahead(bytes).map_err(|e| error(&self.path, e))
    }

    /// Frees the room that is reserved.
    pub(super) fn release(&mut self) {
        self.room.release();
    }

    fn shortage(&self, is_reserved: io::Result<bool>) -> Result<Option<QueueFull>, SendError> {
        match is_reserved {
            Ok(true) => Ok(None),
            Ok(false) => Ok(Some(QueueFull::Disk)),
            Err(e) => Err(error(&self.path, e)),
        }
    }

    /// Returns the shortage if `error` is a full disk, otherwise fails.
    fn disk_full(&self, error: io::Error) -> Result<QueueFull, SendError> {
        match reserved::is_full(&error) {
            true => Ok(QueueFull::Disk),
            false => Err(self::error(&self.path, error)),
        }
    }

    pub(super) fn push(
        &mut self,
        meta: BatchMeta,
        body: &[u8],
    ) -> Result<Option<QueueFull>, SendError> {
        let number = self.next;
        let path = self.path.join(name(number, &meta));
        if let Err(error) = self.room.write_batch(&path, body) {
            return self.disk_full(error).map(Some);
        }
        let bytes = body.len() as u64;
        self.next += 1;
        self.bytes += on_disk(bytes);
        self.files.push_back((number, meta, bytes));
        Ok(None)
    }

    /// See [`Sender::unfinished`](super::Sender::unfinished).
    pub(super) fn unfinished_text(&self) -> Result<Vec<u8>, SendError> {
        let path = self.path.join(UNFINISHED_TEXT);
        match fs::read(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            read => read.map_err(|e| error(&path, e)),
        }
    }

    /// Replaces the unfinished text; an empty one removes it. Durable on return.
    pub(super) fn set_unfinished_text(&mut self, text: &[u8]) -> Result<(), SendError> {
        let path = self.path.join(UNFINISHED_TEXT);
        let set = match text.is_empty() {
            true => match fs::remove_file(&path) {
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
                removed => removed.and_then(|()| durable::sync_dir(&self.path)),
            },
            // After a crash, `open` removes this file, as it removes the batch that was being filled.
            false => self.room.write_text(&path, text),
        };
        set.map_err(|e| error(&path, e))
    }

    pub(super) fn first(&mut self) -> Result<Option<OldestBatch>, SendError> {
        while let Some((number, meta, _)) = self.files.front() {
            let body = match fs::read(self.path.join(name(*number, meta))) {
                // The operator has deleted it.
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    self.forget();
                    continue;
                }
                read => read.map_err(|e| format!("it cannot be read: {e}")),
            };
            let meta = meta.clone();
            return Ok(Some(OldestBatch { meta, body }));
        }
        Ok(None)
    }

    pub(super) fn pop(&mut self) -> Result<(), SendError> {
        if let Some((number, meta, _)) = self.files.front() {
            let path = self.path.join(name(*number, meta));
            match fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(error(&path, e)),
                _ => self.forget(),
            }
        }
        Ok(())
    }

    /// See [`Queue::move_to_back`](super::queue::Queue::move_to_back). After a crash, either name is valid.
    pub(super) fn move_to_back(&mut self) -> Result<(), SendError> {
        if self.files.len() < 2 {
            return Ok(());
        }
        if let Some((number, meta, bytes)) = self.files.pop_front() {
            let path = self.path.join(name(number, &meta));
            let to = self.path.join(name(self.next, &meta));
            self.files.push_back((self.next, meta, bytes));
            self.next += 1;
            fs::rename(&path, to).map_err(|e| error(&path, e))?;
        }
        Ok(())
    }

    fn forget(&mut self) {
        if let Some((.., bytes)) = self.files.pop_front() {
            self.bytes -= on_disk(bytes);
        }
    }

    /// See [`Queue::set_aside`](super::queue::Queue::set_aside). The reason is written first, so that no
    /// batch is without one.
    pub(super) fn set_aside(
        &mut self,
        why: impl FnOnce(&Path) -> String,
    ) -> Result<Option<PathBuf>, SendError> {
        let Some((number, meta, bytes)) = self.files.front() else {
            return Ok(None);
        };
        let dir = self.path.join(REFUSED);
        let name = name(*number, meta);
        let to = dir.join(&name);
        let why = why(&to);
        let moved = || {
            durable::create_dir_all(&dir)?;
            write_reason(&dir, *number, meta, &why)?;
            durable::rename(&self.path.join(&name), &to)?;
            durable::sync_dir(&self.path)
        };
        if let Err(error) = moved() {
            return self.disk_full(error).map(|_| None);
        }
        self.refused_bytes += on_disk(*bytes) + on_disk(why.len() as u64);
        self.forget();
        Ok(Some(to))
    }

    /// See [`Queue::replace_first`](super::queue::Queue::replace_first). If a crash leaves both batches, the service
    /// refuses the whole one as before, and the part has its key.
    pub(super) fn replace_first(
        &mut self,
        meta: BatchMeta,
        body: &[u8],
    ) -> Result<Option<QueueFull>, SendError> {
        let Some((number, whole, bytes)) = self.files.front() else {
            return Ok(None);
        };
        let (number, bytes) = (*number, *bytes);
        let from = self.path.join(name(number, whole));
        let to = self.path.join(name(number, &meta));
        if let Err(error) = durable::write(&to, &self.path.join(PART), body) {
            let _best_effort = fs::remove_file(self.path.join(PART));
            return self.disk_full(error).map(Some);
        }
        if from != to
            && let Err(e) = fs::remove_file(&from)
            && e.kind() != ErrorKind::NotFound
        {
            return Err(error(&from, e));
        }
        self.bytes = self.bytes + on_disk(body.len() as u64) - on_disk(bytes);
        self.files[0] = (number, meta, body.len() as u64);
        Ok(None)
    }

    /// See [`Queue::add_refused`](super::queue::Queue::add_refused).
    pub(super) fn add_refused(
        &mut self,
        meta: &BatchMeta,
        body: &[u8],
        why: impl FnOnce(&Path) -> String,
    ) -> Result<Option<PathBuf>, SendError> {
        let Some((number, ..)) = self.files.front() else {
            return Ok(None);
        };
        let dir = self.path.join(REFUSED);
        let to = dir.join(name(*number, meta));
        let why = why(&to);
        let written = durable::create_dir_all(&dir).and_then(|()| {
            write_reason(&dir, *number, meta, &why)?;
            durable::write(&to, &self.path.join(PART), body)
        });
        if let Err(error) = written {
            let _best_effort = fs::remove_file(self.path.join(PART));
            return self.disk_full(error).map(|_| None);
        }
        self.refused_bytes += on_disk(body.len() as u64) + on_disk(why.len() as u64);
        Ok(Some(to))
    }
}

/// Whether the spool in `dir`, which may not exist, holds a batch with this key. Only while no process uses the spool.
pub(crate) fn spool_holds(dir: &Path, key: &str) -> io::Result<bool> {
    let found = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        found => found?,
    };
    for file in found {
        let name = file?.file_name();
        let batch = parse_name(&name.to_string_lossy());
        if batch.is_some_and(|(_, meta)| meta.key == key) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn error(path: &Path, error: impl std::fmt::Display) -> SendError {
    SendError::Spool {
        path: path.to_owned(),
        why: error.to_string(),
    }
}

pub(super) fn on_disk(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(BLOCK_BYTES)
}

/// Total size of the files in a directory, which may not exist.
fn bytes_below(dir: &Path) -> io::Result<u64> {
    let found = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
        found => found?,
    };
    found.map(|file| Ok(on_disk(file?.metadata()?.len()))).sum()
}

/// Writes the reason why a batch is refused.
fn write_reason(dir: &Path, number: u64, meta: &BatchMeta, why: &str) -> io::Result<()> {
    let mut file = File::create(dir.join(stem(number, meta) + ".txt"))?;
    file.write_all(why.as_bytes())?;
    file.sync_all()
}
