//! A compressed file whose checksums are verified before any of it is read.
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
    /// The number of bytes to read, once they are verified.
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

    /// Returns the number of verified bytes, so that bytes that were appended meanwhile are not read.
    fn verify_checksums(&mut self) -> io::Result<u64> {
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
            None => self.verify_checksums()?,
        };
        let read = (&self.file).take(rest).read(buffer)?;
        self.rest = Some(rest - read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A file with `bytes`, open for appending and for reading.
    fn file(bytes: &[u8]) -> (File, CheckedFile) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let read = file.reopen().unwrap();
        (
            file.into_file(),
            CheckedFile::new(read, ProgressBar::hidden()),
        )
    }

    /// Wrong bits are found before the first byte is read, in any stream of the file. A file that is cut off is read.
    #[test]
    fn damage_is_found_first() {
        let text = "0123456789".repeat(20_000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
        gzip.write_all(text.as_bytes()).unwrap();
        let gzip = gzip.finish().unwrap();
        let mut zstd = zstd::Encoder::new(Vec::new(), 1).unwrap();
        zstd.include_checksum(true).unwrap();
        zstd.write_all(text.as_bytes()).unwrap();
        let zstd = zstd.finish().unwrap();
        for one in [&gzip, &zstd] {
            let two = [&one[..], one].concat();
            for length in [one.len(), two.len(), two.len() - 9, 5] {
                let (_, mut checked) = file(&two[..length]);
                let mut read = Vec::new();
                checked.read_to_end(&mut read).unwrap();
                assert!(read == two[..length], "{length}");
            }
            let mut changed = two.clone();
            // The checksum is at the end of the first stream.
            changed[one.len() - 2] ^= 1;
            for length in [one.len(), two.len(), two.len() - 9] {
                let (_, mut checked) = file(&changed[..length]);
                let error = checked.read(&mut [0; 10]).unwrap_err().to_string();
                assert!(
                    error.contains("damaged") && error.contains("good copy"),
                    "{error}"
                );
            }
        }
        let (_, mut plain) = file(text.as_bytes());
        assert_eq!(io::read_to_string(&mut plain).unwrap(), text);
        assert_eq!(io::read_to_string(&mut file(b"\x1F").1).unwrap(), "\x1F");
    }

    /// Bytes that are appended after the verification are not read.
    #[test]
    fn only_verified_bytes_are_read() {
        let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let gzip = gzip.finish().unwrap();
        let (mut written, mut checked) = file(&gzip);
        checked.read_exact(&mut [0; 3]).unwrap();
        written.write_all(&gzip).unwrap();
        let mut rest = Vec::new();
        checked.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, gzip[3..]);
    }
}
