//! Batches on disk: one file each, durable before it counts, in the order in which they are sent.
//!
//! ```text
//! DIR/lock                            held by the process that uses the spool
//! DIR/unfinished                      the beginning of a flow, of which a pipe has the rest
//! DIR/tmp                             the batch that is being filled: its room, later its bytes
//! DIR/NUMBER-KEY-FLOWS.json.zst       a batch that waits (.json where it is not compressed)
//! DIR/refused/NUMBER-KEY-FLOWS.json…  a batch that the service will never take
//! DIR/refused/NUMBER-KEY-FLOWS.txt    why, and the command that sends it again
//! ```
//!
//! The disk may become full at any moment, by others too. So the room for a batch is allocated while it is
//! being filled: a flow that was accepted can always be kept.

use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::SendError;
use super::queue::{Entry, Lack};
use crate::durable;

const LOCK_FILE: &str = "lock";
/// A batch that is being written has this, and is not one yet.
const UNFINISHED: &str = "tmp";
/// What was read from a pipe and is not a whole flow.
const UNFINISHED_TEXT: &str = "unfinished";
/// Below the spool.
const REFUSED: &str = "refused";
/// Files take whole blocks of most disks, however short they are.
const BLOCK_BYTES: u64 = 4096;

/// A directory of batches.
#[derive(Debug)]
pub(super) struct Spool {
    path: PathBuf,
    bytes_max: u64,
    /// On disk, of the batches that wait, and of those that were set aside.
    bytes: u64,
    refused_bytes: u64,
    /// Number, entry and length of each that waits, in order.
    files: VecDeque<(u64, Entry, u64)>,
    next: u64,
    /// Allocated for the batch that is being filled.
    reserved: u64,
    _lock: File,
}

/// The oldest batch; its body may not be readable.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct First {
    pub(super) entry: Entry,
    pub(super) body: Result<Vec<u8>, String>,
}

impl Spool {
    pub(super) fn open(path: &Path, bytes_max: u64) -> Result<Spool, SendError> {
        durable::create_dir_all(path).map_err(|e| error(path, e))?;
        let lock = File::create(path.join(LOCK_FILE)).map_err(|e| error(path, e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let why = "another process is sending from this spool; give each its own";
                return Err(error(path, why));
            }
            Err(TryLockError::Error(e)) => return Err(error(path, e)),
        }
        // Of what a process that was killed left behind, the names may not be on the disk yet.
        durable::sync_dir(path).map_err(|e| error(path, e))?;
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
            } else if file_name != LOCK_FILE
                && file_name != REFUSED
                && file_name != UNFINISHED_TEXT
                && !durable::is_lost_and_found(&found)
            {
                let why =
                    format!("{file_name} is in it, which is not a batch; give an empty directory");
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
    pub(super) fn reserve(&mut self, bytes: u64) -> Result<Option<Lack>, SendError> {
        if self.bytes + self.refused_bytes >= self.bytes_max {
            // Somebody may have taken away what was set aside.
            let refused = self.path.join(REFUSED);
            self.refused_bytes = bytes_below(&refused).map_err(|e| error(&refused, e))?;
            if self.bytes + self.refused_bytes >= self.bytes_max {
                return Ok(Some(Lack::Bytes));
            }
        }
        if bytes <= self.reserved {
            return Ok(None);
        }
        // Twice as much each time, so that it does not take a system call a flow; less where the disk is
        // nearly full.
        let (ample, exact) = (on_disk(bytes.next_power_of_two()), on_disk(bytes));
        let allocated = self.allocate(ample).map(|()| ample);
        match allocated.or_else(|_| self.allocate(exact).map(|()| exact)) {
            Ok(bytes) => {
                self.reserved = bytes;
                Ok(None)
            }
            // A file system that cannot reserve: a full disk is met when the batch is written.
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                self.reserved = u64::MAX;
                Ok(None)
            }
            Err(e) => self.lacks_disk(e).map(Some),
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

    /// The file of the batch that is being filled, with what is allocated for it.
    fn unfinished(&self) -> io::Result<File> {
        let path = self.path.join(UNFINISHED);
        File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
    }

    /// `error`, unless it says that the disk is full.
    fn lacks_disk(&self, error: io::Error) -> Result<Lack, SendError> {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Ok(Lack::Disk),
            _ => Err(self::error(&self.path, error)),
        }
    }

    pub(super) fn push(&mut self, entry: Entry, body: &[u8]) -> Result<Option<Lack>, SendError> {
        let number = self.next;
        if let Err(error) = self.write(number, &entry, body) {
            return self.lacks_disk(error).map(Some);
        }
        let bytes = body.len() as u64;
        self.reserved = 0;
        self.next += 1;
        self.bytes += on_disk(bytes);
        self.files.push_back((number, entry, bytes));
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

    /// Keeps a text in place of the one before, on disk when it returns; none where it is empty.
    pub(super) fn set_unfinished_text(&self, text: &[u8]) -> Result<(), SendError> {
        let path = self.path.join(UNFINISHED_TEXT);
        let set = || {
            if text.is_empty() {
                match fs::remove_file(&path) {
                    Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
                    removed => removed?,
                }
            } else {
                // What a crash leaves of it is removed with the batch that was being filled.
                let begun = self.path.join(format!("{UNFINISHED_TEXT}.{UNFINISHED}"));
                let mut file = File::create(&begun)?;
                file.write_all(text)?;
                file.sync_all()?;
                fs::rename(&begun, &path)?;
            }
            durable::sync_dir(&self.path)
        };
        set().map_err(|e: io::Error| error(&path, e))
    }

    /// On disk, name included, when it returns.
    fn write(&self, number: u64, entry: &Entry, body: &[u8]) -> io::Result<()> {
        let path = self.path.join(name(number, entry));
        let mut file = self.unfinished()?;
        file.write_all(body)?;
        file.set_len(body.len() as u64)?;
        file.sync_all()?;
        fs::rename(self.path.join(UNFINISHED), &path)?;
        durable::sync_dir(&self.path)
    }

    pub(super) fn first(&mut self) -> Result<Option<First>, SendError> {
        while let Some((number, entry, _)) = self.files.front() {
            let body = match fs::read(self.path.join(name(*number, entry))) {
                // Somebody has taken it away.
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    self.forget();
                    continue;
                }
                read => read.map_err(|e| format!("it cannot be read: {e}")),
            };
            let entry = entry.clone();
            return Ok(Some(First { entry, body }));
        }
        Ok(None)
    }

    pub(super) fn pop(&mut self) -> Result<(), SendError> {
        if let Some((number, entry, _)) = self.files.front() {
            let path = self.path.join(name(*number, entry));
            match fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(error(&path, e)),
                _ => self.forget(),
            }
        }
        Ok(())
    }

    /// See [`Queue::put_last`](super::queue::Queue::put_last). Whichever name a crash leaves will do.
    pub(super) fn put_last(&mut self) -> Result<(), SendError> {
        if self.files.len() < 2 {
            return Ok(());
        }
        if let Some((number, entry, bytes)) = self.files.pop_front() {
            let path = self.path.join(name(number, &entry));
            let to = self.path.join(name(self.next, &entry));
            self.files.push_back((self.next, entry, bytes));
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

    /// See [`Queue::set_aside`](super::queue::Queue::set_aside). The reason comes first, so that no file is
    /// there without one.
    pub(super) fn set_aside(
        &mut self,
        why: impl FnOnce(&Path) -> String,
    ) -> Result<Option<PathBuf>, SendError> {
        let Some((number, entry, bytes)) = self.files.front() else {
            return Ok(None);
        };
        let dir = self.path.join(REFUSED);
        let name = name(*number, entry);
        let to = dir.join(&name);
        let why = why(&to);
        let moved = || {
            durable::create_dir_all(&dir)?;
            let reason = dir.join(stem(*number, entry) + ".txt");
            let mut file = File::create(reason)?;
            file.write_all(why.as_bytes())?;
            file.sync_all()?;
            fs::rename(self.path.join(&name), &to)?;
            durable::sync_dir(&dir)?;
            durable::sync_dir(&self.path)
        };
        if let Err(error) = moved() {
            return self.lacks_disk(error).map(|_| None);
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

/// Of the files in a directory, which may be absent.
fn bytes_below(dir: &Path) -> io::Result<u64> {
    let found = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
        found => found?,
    };
    found.map(|file| Ok(on_disk(file?.metadata()?.len()))).sum()
}

fn stem(number: u64, entry: &Entry) -> String {
    format!("{number:016}-{}-{}", entry.key, entry.flows)
}

fn name(number: u64, entry: &Entry) -> String {
    let end = if entry.compressed { "json.zst" } else { "json" };
    format!("{}.{end}", stem(number, entry))
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
        if_late: None,
        is_block: false,
        flows: flows.parse().ok()?,
        compressed,
    };
    (parts.next().is_none() && !key.is_empty()).then_some((number.parse().ok()?, entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str) -> Entry {
        Entry {
            key: key.into(),
            notes: String::new(),
            if_late: None,
            is_block: false,
            flows: 3,
            compressed: key.len().is_multiple_of(2),
        }
    }

    fn first(spool: &mut Spool) -> Option<(Entry, Vec<u8>)> {
        let first = spool.first().unwrap()?;
        Some((first.entry, first.body.unwrap()))
    }

    #[test]
    fn a_spool_outlives_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spool");
        let most = 2 * BLOCK_BYTES;
        let mut spool = Spool::open(&path, most).unwrap();
        assert_eq!(spool.reserve(10).unwrap(), None);
        assert_eq!(spool.push(entry("a"), b"one").unwrap(), None);
        assert_eq!(spool.push(entry("bb"), b"twotwotwo").unwrap(), None);
        assert_eq!(spool.reserve(1).unwrap(), Some(Lack::Bytes));
        assert!(Spool::open(&path, most).is_err(), "it is in use");
        spool.pop().unwrap();
        drop(spool);
        fs::write(path.join("tmp"), "half").unwrap();

        let mut spool = Spool::open(&path, most).unwrap();
        assert_eq!((spool.len(), spool.reserve(1).unwrap()), (1, None));
        assert_eq!(
            first(&mut spool),
            Some((entry("bb"), b"twotwotwo".to_vec()))
        );
        spool.push(entry("ccc"), b"3").unwrap();
        spool.pop().unwrap();
        assert_eq!(first(&mut spool), Some((entry("ccc"), b"3".to_vec())));
        spool.pop().unwrap();
        assert_eq!(first(&mut spool), None);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "the lock");
    }

    #[test]
    fn an_unfinished_flow_outlives_its_process() {
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

    /// What is set aside takes room until somebody has looked at it.
    #[test]
    fn a_batch_that_is_set_aside_has_a_reason_and_blocks_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 3 * BLOCK_BYTES).unwrap();
        spool.push(entry("a"), b"one").unwrap();
        spool.push(entry("bb"), b"two").unwrap();
        let why = |path: &Path| format!("because of {}", path.display());
        let aside = spool.set_aside(why).unwrap().unwrap();
        assert_eq!(fs::read(&aside).unwrap(), b"one");
        let reason = fs::read_to_string(aside.with_extension("txt")).unwrap();
        assert_eq!(reason, why(&aside));
        assert_eq!(first(&mut spool), Some((entry("bb"), b"two".to_vec())));
        assert_eq!(spool.reserve(1).unwrap(), Some(Lack::Bytes));
        drop(spool);
        let mut spool = Spool::open(dir.path(), 3 * BLOCK_BYTES).unwrap();
        assert_eq!(spool.len(), 1);
        assert_eq!(spool.reserve(1).unwrap(), Some(Lack::Bytes));
        fs::remove_dir_all(dir.path().join("refused")).unwrap();
        assert_eq!(spool.reserve(1).unwrap(), None);
    }

    #[test]
    fn a_batch_that_somebody_takes_away_is_no_reason_to_stop() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
        for key in ["a", "bb", "c"] {
            spool.push(entry(key), b"x").unwrap();
        }
        fs::remove_file(dir.path().join(name(0, &entry("a")))).unwrap();
        assert_eq!(first(&mut spool), Some((entry("bb"), b"x".to_vec())));
        fs::remove_file(dir.path().join(name(1, &entry("bb")))).unwrap();
        spool.pop().unwrap();
        assert_eq!(first(&mut spool), Some((entry("c"), b"x".to_vec())));
    }

    #[test]
    fn a_batch_is_put_behind_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
        for key in ["a", "bb", "c"] {
            spool.push(entry(key), key.as_bytes()).unwrap();
        }
        spool.put_last().unwrap();
        drop(spool);
        let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
        for key in ["bb", "c", "a"] {
            assert_eq!(first(&mut spool), Some((entry(key), key.into())));
            spool.pop().unwrap();
        }
    }

    #[test]
    fn a_directory_of_something_else_is_no_spool() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "").unwrap();
        let error = Spool::open(dir.path(), 10).unwrap_err().to_string();
        assert!(error.contains("thesis.txt"), "{error}");
    }
}
