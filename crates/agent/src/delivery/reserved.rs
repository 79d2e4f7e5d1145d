//! Reserves disk space in advance, by files of that size.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::spool::on_disk;
use crate::durable;

/// The suffix of the names of these files.
pub(super) const TMP: &str = "tmp";
/// The batch that is being filled.
const BATCH: &str = "tmp";
/// The flows of the next read.
const AHEAD: &str = "ahead.tmp";
/// A part of a flow.
const TEXT: &str = "unfinished.tmp";

/// The reserved room in a directory, in bytes.
#[derive(Debug)]
pub(super) struct Reserved {
    dir: PathBuf,
    batch: u64,
    ahead: u64,
    text: u64,
}

impl Reserved {
    pub(super) fn new(dir: &Path) -> Reserved {
        Reserved {
            dir: dir.to_owned(),
            batch: 0,
            ahead: 0,
            text: 0,
        }
    }

    /// Reserves room for a batch of `bytes`. Returns false if the disk is full.
    pub(super) fn reserve_batch(&mut self, bytes: u64) -> io::Result<bool> {
        let reserved = self.allocate_more(BATCH, self.batch, bytes)?;
        self.batch = reserved.unwrap_or(self.batch);
        Ok(reserved.is_some())
    }

    /// Reserves room for the next read: `body_bytes` for its flows, as a batch, and `text_bytes` for a flow that it
    /// cuts. Returns false if the disk is full.
    pub(super) fn reserve_ahead(&mut self, body_bytes: u64, text_bytes: u64) -> io::Result<bool> {
        let ahead = self.allocate_more(AHEAD, self.ahead, body_bytes)?;
        self.ahead = ahead.unwrap_or(self.ahead);
        let text = self.allocate_more(TEXT, self.text, text_bytes)?;
        self.text = text.unwrap_or(self.text);
        Ok(ahead.is_some() && text.is_some())
    }

    /// Gives the room for the next read to the batch that is being filled, which may then have `bytes`. If another
    /// program takes the room at this moment, the batch may not fit.
    pub(super) fn use_ahead(&mut self, bytes: u64) -> io::Result<()> {
        if self.ahead > 0 {
            self.remove(AHEAD)?;
            self.ahead = 0;
            self.reserve_batch(bytes)?;
        }
        Ok(())
    }

    /// Frees all room.
    pub(super) fn release(&mut self) {
        for name in [BATCH, AHEAD, TEXT] {
            // Otherwise, the next process removes it.
            let _best_effort = self.remove(name);
        }
        (self.batch, self.ahead, self.text) = (0, 0, 0);
    }

    /// Writes a batch into the room that is reserved for it. The file and its name are durable on return.
    pub(super) fn write_batch(&mut self, path: &Path, body: &[u8]) -> io::Result<()> {
        self.write(BATCH, path, body)?;
        self.batch = 0;
        Ok(())
    }

    /// Writes a part of a flow into the room that is reserved for it, durably.
    pub(super) fn write_text(&mut self, path: &Path, text: &[u8]) -> io::Result<()> {
        let written = self.write(TEXT, path, text);
        self.text = 0;
        written.inspect_err(|_| {
            let _best_effort = self.remove(TEXT);
        })
    }

    fn write(&self, reserved: &str, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut file = self.open(reserved)?;
        file.write_all(content)?;
        file.set_len(content.len() as u64)?;
        file.sync_all()?;
        durable::rename(&self.dir.join(reserved), path)
    }

    /// Makes sure that the file `name`, which has `reserved` bytes, has at least `bytes`. Returns its size, or `None`
    /// if the disk is full.
    fn allocate_more(&self, name: &str, reserved: u64, bytes: u64) -> io::Result<Option<u64>> {
        if bytes <= reserved {
            return Ok(Some(reserved));
        }
        // Doubles the allocation each time, to avoid one system call per flow. Allocates less when the disk
        // is nearly full.
        let (ample, exact) = (on_disk(bytes.next_power_of_two()), on_disk(bytes));
        let allocated = self.allocate(name, ample).map(|()| ample);
        match allocated.or_else(|_| self.allocate(name, exact).map(|()| exact)) {
            Ok(bytes) => Ok(Some(bytes)),
            // The file system cannot preallocate: a full disk is detected when the batch is written.
            Err(e) if e.kind() == ErrorKind::Unsupported => Ok(Some(u64::MAX)),
            Err(e) if is_full(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn allocate(&self, name: &str, bytes: u64) -> io::Result<()> {
        let file = self.open(name)?;
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

    /// Opens a file of reserved room.
    fn open(&self, name: &str) -> io::Result<File> {
        let path = self.dir.join(name);
        File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.dir.join(name)) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.release();
    }
}

/// Whether the disk, or the user's quota on it, is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}
