//! Batches on disk, in the order in which they are sent: one file each, which is durable before the batch
//! counts as stored.
//!
//! ```text
//! DIR/lock                            held by the process that uses the spool
//! DIR/unfinished                      the start of a flow whose rest is still in the pipe
//! DIR/tmp                             the batch that is being filled: reserved room, later its body
//! DIR/NUMBER-KEY-FLOWS.json.zst       a batch that waits (.json where it is not compressed)
//! DIR/refused/NUMBER-KEY-FLOWS.json…  a batch that the service will never take
//! DIR/refused/NUMBER-KEY-FLOWS.txt    why, and the command that sends it again
//! ```
//!
//! The disk may become full at any time, also because of other programs. So room for a batch is allocated
//! while it is being filled, and a flow that was accepted can always be stored.

use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::SendError;
use super::queue::{BatchMeta, QueueFull};
use crate::durable;

const LOCK_FILE: &str = "lock";
/// The name of a batch that is still being written.
const UNFINISHED: &str = "tmp";
/// The file for the start of a flow that was read from a pipe.
const UNFINISHED_TEXT: &str = "unfinished";
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
    /// Bytes allocated for the batch that is being filled.
    reserved: u64,
    _lock: File,
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
        let lock = durable::lock_file(&path.join(LOCK_FILE)).map_err(|e| match e {
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
            } else if file_name.ends_with(UNFINISHED) {
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
            reserved: 0,
            _lock: lock,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// See [`Queue::reserve`](super::queue::Queue::reserve).
    pub(super) fn reserve(&mut self, bytes: u64) -> Result<Option<QueueFull>, SendError> {
        if self.bytes + self.refused_bytes >= self.bytes_max {
            // Somebody may have deleted refused batches.
            let refused = self.path.join(REFUSED);
            self.refused_bytes = bytes_below(&refused).map_err(|e| error(&refused, e))?;
            if self.bytes + self.refused_bytes >= self.bytes_max {
                return Ok(Some(QueueFull::Bytes));
            }
        }
        if bytes <= self.reserved {
            return Ok(None);
        }
        // Doubles the allocation each time, to avoid one system call per flow. Allocates less when the disk
        // is nearly full.
        let (ample, exact) = (on_disk(bytes.next_power_of_two()), on_disk(bytes));
        let allocated = self.allocate(ample).map(|()| ample);
        match allocated.or_else(|_| self.allocate(exact).map(|()| exact)) {
            Ok(bytes) => {
                self.reserved = bytes;
                Ok(None)
            }
            // The file system cannot preallocate: a full disk is detected when the batch is written.
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                self.reserved = u64::MAX;
                Ok(None)
            }
            Err(e) => self.disk_full(e).map(Some),
        }
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let file = self.unfinished()?;
        loop {
            match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    return Err(ErrorKind::Unsupported.into());
                }
                result => return Ok(result?),
            }
        }
    }

    /// The file of the batch that is being filled, including its allocation.
    fn unfinished(&self) -> io::Result<File> {
        let path = self.path.join(UNFINISHED);
        File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
    }

    /// Returns the shortage if `error` is a full disk, otherwise fails.
    fn disk_full(&self, error: io::Error) -> Result<QueueFull, SendError> {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Ok(QueueFull::Disk),
            _ => Err(self::error(&self.path, error)),
        }
    }

    pub(super) fn push(
        &mut self,
        meta: BatchMeta,
        body: &[u8],
    ) -> Result<Option<QueueFull>, SendError> {
        let number = self.next;
        if let Err(error) = self.write(number, &meta, body) {
            return self.disk_full(error).map(Some);
        }
        let bytes = body.len() as u64;
        self.reserved = 0;
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
    pub(super) fn set_unfinished_text(&self, text: &[u8]) -> Result<(), SendError> {
        let path = self.path.join(UNFINISHED_TEXT);
        let set = || {
            if text.is_empty() {
                match fs::remove_file(&path) {
                    Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
                    removed => removed?,
                }
                return durable::sync_dir(&self.path);
            }
            // After a crash, `open` removes this file, as it removes the batch that was being filled.
            let unfinished = self.path.join(format!("{UNFINISHED_TEXT}.{UNFINISHED}"));
            durable::write(&path, &unfinished, text)
        };
        set().map_err(|e: io::Error| error(&path, e))
    }

    /// The file and its name are durable on return.
    fn write(&self, number: u64, meta: &BatchMeta, body: &[u8]) -> io::Result<()> {
        let path = self.path.join(name(number, meta));
        let mut file = self.unfinished()?;
        file.write_all(body)?;
        file.set_len(body.len() as u64)?;
        file.sync_all()?;
        durable::rename(&self.path.join(UNFINISHED), &path)
    }

    pub(super) fn first(&mut self) -> Result<Option<OldestBatch>, SendError> {
        while let Some((number, meta, _)) = self.files.front() {
            let body = match fs::read(self.path.join(name(*number, meta))) {
                // Somebody has deleted it.
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
            let reason = dir.join(stem(*number, meta) + ".txt");
            let mut file = File::create(reason)?;
            file.write_all(why.as_bytes())?;
            file.sync_all()?;
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
}

fn error(path: &Path, error: impl std::fmt::Display) -> SendError {
    SendError::Spool {
        path: path.to_owned(),
        why: error.to_string(),
    }
}

fn on_disk(bytes: u64) -> u64 {
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

fn stem(number: u64, meta: &BatchMeta) -> String {
    format!("{number:016}-{}-{}", meta.key, meta.flows)
}

fn name(number: u64, meta: &BatchMeta) -> String {
    let end = if meta.compressed { "json.zst" } else { "json" };
    format!("{}.{end}", stem(number, meta))
}

/// Parses a name that was made by [`name`].
fn parse_name(name: &str) -> Option<(u64, BatchMeta)> {
    let (stem, compressed) = match name.strip_suffix(".json.zst") {
        Some(stem) => (stem, true),
        None => (name.strip_suffix(".json")?, false),
    };
    let mut parts = stem.split('-');
    let (number, key, flows) = (parts.next()?, parts.next()?, parts.next()?);
    let meta = BatchMeta {
        key: key.to_owned(),
        notes: String::new(),
        if_late: None,
        is_keyed: false,
        flows: flows.parse().ok()?,
        compressed,
    };
    (parts.next().is_none() && !key.is_empty()).then_some((number.parse().ok()?, meta))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(key: &str) -> BatchMeta {
        BatchMeta {
            key: key.into(),
            notes: String::new(),
            if_late: None,
            is_keyed: false,
            flows: 3,
            compressed: key.len().is_multiple_of(2),
        }
    }

    fn first(spool: &mut Spool) -> Option<(BatchMeta, Vec<u8>)> {
        let first = spool.first().unwrap()?;
        Some((first.meta, first.body.unwrap()))
    }

    #[test]
    fn a_spool_survives_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spool");
        let most = 2 * BLOCK_BYTES;
        let mut spool = Spool::open(&path, most).unwrap();
        assert_eq!(spool.reserve(10).unwrap(), None);
        assert_eq!(spool.push(meta("a"), b"one").unwrap(), None);
        assert_eq!(spool.push(meta("bb"), b"twotwotwo").unwrap(), None);
        assert_eq!(spool.reserve(1).unwrap(), Some(QueueFull::Bytes));
        assert!(Spool::open(&path, most).is_err(), "it is in use");
        spool.pop().unwrap();
        drop(spool);
        fs::write(path.join("tmp"), "half").unwrap();

        let mut spool = Spool::open(&path, most).unwrap();
        assert_eq!((spool.len(), spool.reserve(1).unwrap()), (1, None));
        assert_eq!(first(&mut spool), Some((meta("bb"), b"twotwotwo".to_vec())));
        spool.push(meta("ccc"), b"3").unwrap();
        spool.pop().unwrap();
        assert_eq!(first(&mut spool), Some((meta("ccc"), b"3".to_vec())));
        spool.pop().unwrap();
        assert_eq!(first(&mut spool), None);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "the lock");
    }

    #[test]
    fn an_unfinished_flow_survives_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), 1 << 20).unwrap();
        assert_eq!(spool.unfinished_text().unwrap(), b"");
        spool.set_unfinished_text(b"half").unwrap();
        spool.set_unfinished_text(b"{\"src_").unwrap();
        drop(spool);
        fs::write(dir.path().join("unfinished.tmp"), "of a crash").unwrap();
        let spool = Spool::open(dir.path(), 1 << 20).unwrap();
        assert_eq!(
            (spool.len(), spool.unfinished_text().unwrap()),
            (0, b"{\"src_".to_vec())
        );
        for _ in 0..2 {
            spool.set_unfinished_text(b"").unwrap();
        }
        assert_eq!(spool.unfinished_text().unwrap(), b"");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the lock");
    }

    /// Refused batches use room until somebody has dealt with them.
    #[test]
    fn a_refused_batch_is_moved_aside_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 3 * BLOCK_BYTES).unwrap();
        spool.push(meta("a"), b"one").unwrap();
        spool.push(meta("bb"), b"two").unwrap();
        let why = |path: &Path| format!("because of {}", path.display());
        let aside = spool.set_aside(why).unwrap().unwrap();
        assert_eq!(fs::read(&aside).unwrap(), b"one");
        let reason = fs::read_to_string(aside.with_extension("txt")).unwrap();
        assert_eq!(reason, why(&aside));
        assert_eq!(first(&mut spool), Some((meta("bb"), b"two".to_vec())));
        assert_eq!(spool.reserve(1).unwrap(), Some(QueueFull::Bytes));
        drop(spool);
        let mut spool = Spool::open(dir.path(), 3 * BLOCK_BYTES).unwrap();
        assert_eq!(spool.len(), 1);
        assert_eq!(spool.reserve(1).unwrap(), Some(QueueFull::Bytes));
        fs::remove_dir_all(dir.path().join("refused")).unwrap();
        assert_eq!(spool.reserve(1).unwrap(), None);
    }

    #[test]
    fn a_batch_file_that_was_removed_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
        for key in ["a", "bb", "c"] {
            spool.push(meta(key), b"x").unwrap();
        }
        fs::remove_file(dir.path().join(name(0, &meta("a")))).unwrap();
        assert_eq!(first(&mut spool), Some((meta("bb"), b"x".to_vec())));
        fs::remove_file(dir.path().join(name(1, &meta("bb")))).unwrap();
        spool.pop().unwrap();
        assert_eq!(first(&mut spool), Some((meta("c"), b"x".to_vec())));
    }

    #[test]
    fn a_batch_is_moved_to_the_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
        for key in ["a", "bb", "c"] {
            spool.push(meta(key), key.as_bytes()).unwrap();
        }
        spool.move_to_back().unwrap();
        drop(spool);
        let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
        for key in ["bb", "c", "a"] {
            assert_eq!(first(&mut spool), Some((meta(key), key.into())));
            spool.pop().unwrap();
        }
    }

    #[test]
    fn a_directory_with_other_files_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "").unwrap();
        let error = Spool::open(dir.path(), 10).unwrap_err().to_string();
        assert!(error.contains("thesis.txt"), "{error}");
    }
}
