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

use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

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
        let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
        assert_eq!(spool.unfinished_text().unwrap(), b"");
        spool.set_unfinished_text(b"half").unwrap();
        spool.set_unfinished_text(b"{\"src_").unwrap();
        drop(spool);
        fs::write(dir.path().join("unfinished.tmp"), "of a crash").unwrap();
        let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
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

    /// Each read is stored in room that was reserved before it.
    #[test]
    fn room_is_reserved_for_the_next_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
        let length = |name: &str| fs::metadata(dir.path().join(name)).map_or(0, |data| data.len());
        assert_eq!(spool.reserve_ahead(10_000, 5_000).unwrap(), None);
        assert!(length("ahead.tmp") >= 10_000 && length("unfinished.tmp") >= 5_000);
        spool.push(meta("a"), b"one").unwrap();
        assert!(length("ahead.tmp") >= 10_000, "a batch does not use it");
        spool.use_ahead(12_000).unwrap();
        assert!(length("ahead.tmp") == 0 && length("tmp") >= 12_000);
        spool.set_unfinished_text(b"part").unwrap();
        assert_eq!((length("unfinished"), length("unfinished.tmp")), (4, 0));
        spool.reserve_ahead(1, 1).unwrap();
        spool.release();
        for name in ["tmp", "ahead.tmp", "unfinished.tmp"] {
            assert!(!dir.path().join(name).exists(), "{name}");
        }
    }

    #[test]
    fn a_batch_is_split() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
        spool.push(meta("a"), b"[1,2,3]").unwrap();
        spool.push(meta("bb"), b"two").unwrap();
        let part = |flows| BatchMeta { flows, ..meta("a") };
        let why = |path: &Path| format!("because of {}", path.display());
        let aside = spool.add_refused(&part(1), b"[2]", why).unwrap().unwrap();
        assert_eq!(fs::read(&aside).unwrap(), b"[2]");
        assert!(aside.with_extension("txt").exists());
        assert_eq!(spool.replace_first(part(2), b"[1,3]").unwrap(), None);
        assert_eq!(first(&mut spool), Some((part(2), b"[1,3]".to_vec())));
        drop(spool);
        let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
        assert_eq!(spool.len(), 2);
        assert_eq!(first(&mut spool), Some((part(2), b"[1,3]".to_vec())));
    }

    /// Refused batches use room until the operator has removed them.
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
