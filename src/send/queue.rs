//! Batches that wait for delivery, in order: a few in memory, or files in a spool.

use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::SendError;

/// Batches that wait in memory, without a spool.
const IN_MEMORY_MAX: usize = 8;
/// Held by the process that uses a spool.
const LOCK_FILE: &str = "lock";
/// A batch that is being written has this, and is not one yet.
const UNFINISHED: &str = "tmp";

/// What there is to know of a batch besides its body. In a spool it is the file's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    /// What is to be kept beside its receipt. Batches in a spool have none.
    pub(super) notes: String,
    pub(super) flows: usize,
    /// The body is zstd.
    pub(super) compressed: bool,
}

/// A queue of batches.
#[derive(Debug)]
pub(super) enum Queue {
    Memory(VecDeque<(Entry, Vec<u8>)>),
    Spool(Spool),
}

/// A directory of batches: `NUMBER-KEY-FLOWS.json` or `….json.zst`, each durable before it counts.
#[derive(Debug)]
pub(super) struct Spool {
    path: PathBuf,
    bytes_max: u64,
    bytes: u64,
    /// Number, entry and length of each, in order.
    files: VecDeque<(u64, Entry, u64)>,
    next: u64,
    _lock: File,
}

impl Queue {
    pub(super) fn in_memory() -> Queue {
        Queue::Memory(VecDeque::new())
    }

    /// Opens the spool at `path`, or makes one.
    pub(super) fn open(path: &Path, bytes_max: u64) -> Result<Queue, SendError> {
        Spool::open(path, bytes_max).map(Queue::Spool)
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Queue::Memory(batches) => batches.len(),
            Queue::Spool(spool) => spool.files.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn is_full(&self) -> bool {
        match self {
            Queue::Memory(batches) => batches.len() >= IN_MEMORY_MAX,
            Queue::Spool(spool) => spool.bytes >= spool.bytes_max,
        }
    }

    pub(super) fn push(&mut self, entry: Entry, body: Vec<u8>) -> Result<(), SendError> {
        match self {
            Queue::Memory(batches) => {
                batches.push_back((entry, body));
                Ok(())
            }
            Queue::Spool(spool) => {
                let number = spool.next;
                spool
                    .write(number, &entry, &body)
                    .map_err(|e| error(&spool.path, e))?;
                spool.next += 1;
                spool.bytes += body.len() as u64;
                spool.files.push_back((number, entry, body.len() as u64));
                Ok(())
            }
        }
    }

    /// The oldest batch.
    pub(super) fn first(&self) -> Result<Option<(Entry, Vec<u8>)>, SendError> {
        match self {
            Queue::Memory(batches) => Ok(batches.front().cloned()),
            Queue::Spool(spool) => {
                let Some((number, entry, _)) = spool.files.front() else {
                    return Ok(None);
                };
                let path = spool.path.join(name(*number, entry));
                let body = fs::read(&path).map_err(|e| error(&path, e))?;
                Ok(Some((entry.clone(), body)))
            }
        }
    }

    /// Removes the oldest batch. Should the removal get lost in a crash, the batch is sent again, under
    /// its key.
    pub(super) fn pop(&mut self) -> Result<(), SendError> {
        match self {
            Queue::Memory(batches) => drop(batches.pop_front()),
            Queue::Spool(spool) => {
                if let Some((number, entry, bytes)) = spool.files.front() {
                    let path = spool.path.join(name(*number, entry));
                    fs::remove_file(&path).map_err(|e| error(&path, e))?;
                    spool.bytes -= bytes;
                    spool.files.pop_front();
                }
            }
        }
        Ok(())
    }
}

fn error(path: &Path, error: impl std::fmt::Display) -> SendError {
    SendError::Spool {
        path: path.to_owned(),
        why: error.to_string(),
    }
}

fn name(number: u64, entry: &Entry) -> String {
    let end = if entry.compressed { "json.zst" } else { "json" };
    format!("{number:016}-{}-{}.{end}", entry.key, entry.flows)
}

/// Reads what [`name`] wrote.
fn parse_name(name: &str) -> Option<(u64, Entry)> {
    let (stem, compressed) = match name.strip_suffix(".json.zst") {
        Some(stem) => (stem, true),
        None => (name.strip_suffix(".json")?, false),
    };
    let mut parts = stem.split('-');
    let (number, key, flows) = (parts.next()?, parts.next()?, parts.next()?);
    let entry = Entry {
        key: key.to_owned(),
        notes: String::new(),
        flows: flows.parse().ok()?,
        compressed,
    };
    (parts.next().is_none() && !key.is_empty()).then_some((number.parse().ok()?, entry))
}

impl Spool {
    fn open(path: &Path, bytes_max: u64) -> Result<Spool, SendError> {
        fs::create_dir_all(path).map_err(|e| error(path, e))?;
        let lock = File::create(path.join(LOCK_FILE)).map_err(|e| error(path, e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let why = "another process is sending from this spool; give each its own";
                return Err(error(path, why));
            }
            Err(TryLockError::Error(e)) => return Err(error(path, e)),
        }
        let mut files = Vec::new();
        for found in fs::read_dir(path).map_err(|e| error(path, e))? {
            let found = found.map_err(|e| error(path, e))?;
            let file_name = found.file_name();
            let file_name = file_name.to_string_lossy();
            if let Some((number, entry)) = parse_name(&file_name) {
                let bytes = found.metadata().map_err(|e| error(path, e))?.len();
                files.push((number, entry, bytes));
            } else if file_name.ends_with(UNFINISHED) {
                // A crash came in between: whoever pushed it was never told that it is kept.
                fs::remove_file(found.path()).map_err(|e| error(path, e))?;
            } else if file_name != LOCK_FILE {
                let why =
                    format!("{file_name} is in it, which is not a batch; give an empty directory");
                return Err(error(path, why));
            }
        }
        files.sort_by_key(|(number, ..)| *number);
        Ok(Spool {
            path: path.to_owned(),
            bytes_max,
            bytes: files.iter().map(|(.., bytes)| bytes).sum(),
            next: files.last().map_or(0, |(number, ..)| number + 1),
            files: files.into(),
            _lock: lock,
        })
    }

    /// On disk, name included, when it returns.
    fn write(&self, number: u64, entry: &Entry, body: &[u8]) -> io::Result<()> {
        let path = self.path.join(name(number, entry));
        let unfinished = self.path.join(UNFINISHED);
        let mut file = File::create(&unfinished)?;
        file.write_all(body)?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)?;
        File::open(&self.path)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str) -> Entry {
        Entry {
            key: key.into(),
            notes: String::new(),
            flows: 3,
            compressed: key.len().is_multiple_of(2),
        }
    }

    #[test]
    fn a_spool_outlives_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spool");
        let mut queue = Queue::open(&path, 10).unwrap();
        queue.push(entry("a"), b"one".to_vec()).unwrap();
        queue.push(entry("bb"), b"twotwotwo".to_vec()).unwrap();
        assert!(queue.is_full());
        assert!(Queue::open(&path, 10).is_err(), "it is in use");
        queue.pop().unwrap();
        drop(queue);
        fs::write(path.join("tmp"), "half").unwrap();

        let mut queue = Queue::open(&path, 10).unwrap();
        assert_eq!((queue.len(), queue.is_full()), (1, false));
        assert_eq!(
            queue.first().unwrap(),
            Some((entry("bb"), b"twotwotwo".to_vec()))
        );
        queue.push(entry("ccc"), b"3".to_vec()).unwrap();
        queue.pop().unwrap();
        assert_eq!(queue.first().unwrap(), Some((entry("ccc"), b"3".to_vec())));
        queue.pop().unwrap();
        assert_eq!(queue.first().unwrap(), None);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "the lock");
    }

    #[test]
    fn a_directory_of_something_else_is_no_spool() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "").unwrap();
        let error = Queue::open(dir.path(), 10).unwrap_err().to_string();
        assert!(error.contains("thesis.txt"), "{error}");
    }
}
