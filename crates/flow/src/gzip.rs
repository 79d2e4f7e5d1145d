//! Decodes gzip as `gzip -d` does: concatenated streams, with zero padding between or after them, as tapes and disks
//! leave it.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

/// Magic bytes of gzip.
pub const MAGIC: &[u8] = b"\x1F\x8B";
const GARBAGE: &str = "garbage after the end of the gzip stream";

/// A reader of the decompressed data.
#[derive(Debug)]
pub struct Gzip<R: BufRead> {
    /// `None` only while a stream is being replaced by the next.
    stream: Option<GzDecoder<R>>,
}

impl<R: BufRead> Gzip<R> {
    pub fn new(input: R) -> Gzip<R> {
        Gzip {
            stream: Some(GzDecoder::new(input)),
        }
    }
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(stream) = &mut self.stream {
            let read = stream.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            match past_zeros(stream.get_mut())? {
                None => break,
                Some(first) if first == MAGIC[0] => {
                    let rest = self.stream.take().map(GzDecoder::into_inner);
                    self.stream = rest.map(GzDecoder::new);
                }
                Some(_) => return Err(io::Error::other(GARBAGE)),
            }
        }
        Ok(0)
    }
}

/// Skips zeros and returns the next byte without consuming it.
fn past_zeros(input: &mut impl BufRead) -> io::Result<Option<u8>> {
    loop {
        let bytes = input.fill_buf()?;
        let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        let (next, at_end) = (bytes.get(zeros).copied(), bytes.is_empty());
        input.consume(zeros);
        if next.is_some() || at_end {
            return Ok(next);
        }
    }
}
