//! A compressed file whose checksums are checked before any of it is read.
//!
//! gzip has its checksum at the end of a stream, and zstd at the end of a frame. If flows were sent while the file is
//! being decompressed, wrong flows of a damaged file would be counted before the damage is found.

use std::fs::File;
use std::io::{self, Read, Seek};

use indicatif::ProgressBar;

use crate::inputs::{begins_compressed, find_damage};

/// The bytes that show whether a file is compressed.
const BEGIN_BYTES: u64 = 4;

/// A regular file. The first read decompresses all of it, if it is compressed.
#[derive(Debug)]
pub(super) struct CheckedFile {
    file: File,
    bar: ProgressBar,
    /// The number of bytes to read, once they are checked.
    rest: Option<u64>,
}

impl CheckedFile {
    pub(super) fn new(file: File, bar: ProgressBar) -> CheckedFile {
        CheckedFile {
            file,
            bar,
            rest: None,
        }
    }

    /// Returns the number of bytes that were checked, so that no bytes are read that were appended meanwhile.
    fn check(&mut self) -> io::Result<u64> {
        let mut begin = Vec::new();
        (&self.file).take(BEGIN_BYTES).read_to_end(&mut begin)?;
        self.file.rewind()?;
        if !begins_compressed(&begin) {
            return Ok(u64::MAX);
        }
        self.bar.inc_length(self.file.metadata()?.len());
        find_damage(self.bar.wrap_read(&self.file))?;
        let checked = self.file.stream_position()?;
        self.file.rewind()?;
        Ok(checked)
    }
}

impl Read for CheckedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = match self.rest {
            Some(rest) => rest,
            None => self.check()?,
        };
        let read = (&self.file).take(rest).read(buffer)?;
        self.rest = Some(rest - read as u64);
        Ok(read)
    }
}
