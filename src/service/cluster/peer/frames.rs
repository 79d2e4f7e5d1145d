//! Rows on their way from one node to another.
//!
//! ```text
//! row     key bytes u16 LE | bytes_tx u64 LE | bytes_rx u64 LE | key
//! end     FF FF
//! ```
//!
//! A key is that of a stored row, without the columns that are left out. An answer without its end is incomplete, and
//! an error.

use std::fmt;
use std::io::{BufReader, Read};

use parking_lot::Mutex;

use crate::query::{QueryError, Row, RowCodec, RowSource};
use flow::Counters;

/// No key is that long.
const END: u16 = u16::MAX;
/// Read from the connection at once.
const READ_BYTES: usize = 64 << 10;

/// Writes frames.
pub const FRAMES: &Frames = &Frames;

#[derive(Debug)]
pub struct Frames;

impl RowCodec for Frames {
    fn media_type(&self) -> &'static str {
        MEDIA_TYPE
    }

    fn write(&self, row: &Row<'_>, out: &mut Vec<u8>) {
        let at = out.len();
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&row.counters.tx.to_le_bytes());
        out.extend_from_slice(&row.counters.rx.to_le_bytes());
        let key_at = out.len();
        row.push_key(out);
        let key_bytes = (out.len() - key_at) as u16; // a key has at most `KEY_BYTES_MAX`
        out[at..at + 2].copy_from_slice(&key_bytes.to_le_bytes());
    }

    fn end(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&END.to_le_bytes());
    }
}

/// In `Accept` and `Content-Type`.
pub(super) const MEDIA_TYPE: &str = "application/octet-stream";

/// Reads frames.
pub struct FrameReader<R> {
    /// The node that writes them, for errors.
    from: String,
    /// Never locked: it makes a reader `Sync` that is not.
    reader: Mutex<BufReader<R>>,
    key: Vec<u8>,
    counters: Counters,
    rows: u64,
    ended: bool,
}

impl<R: Read + Send> FrameReader<R> {
    pub fn new(from: String, reader: R) -> FrameReader<R> {
        FrameReader {
            from,
            reader: Mutex::new(BufReader::with_capacity(READ_BYTES, reader)),
            key: Vec::new(),
            counters: Counters::default(),
            rows: 0,
            ended: false,
        }
    }

    fn read(&mut self) -> std::io::Result<bool> {
        let reader = self.reader.get_mut();
        let mut two = [0; 2];
        reader.read_exact(&mut two)?;
        let key_bytes = u16::from_le_bytes(two);
        if key_bytes == END {
            return Ok(false);
        }
        let mut sum = || {
            let mut eight = [0; 8];
            reader.read_exact(&mut eight)?;
            Ok::<_, std::io::Error>(u64::from_le_bytes(eight))
        };
        self.counters = Counters {
            tx: sum()?,
            rx: sum()?,
        };
        self.key.resize(usize::from(key_bytes), 0);
        reader.read_exact(&mut self.key)?;
        Ok(true)
    }
}

impl<R: Read + Send> RowSource for FrameReader<R> {
    fn advance(&mut self) -> Result<bool, QueryError> {
        if self.ended {
            return Ok(false);
        }
        let read = self.read().map_err(|error| {
            QueryError::Peer(format!("the answer of {} ended early: {error}", self.from))
        })?;
        self.rows += u64::from(read);
        self.ended = !read;
        Ok(read)
    }

    fn row(&self) -> (&[u8], Counters) {
        (&self.key, self.counters)
    }

    fn rows_read(&self) -> u64 {
        self.rows
    }
}

impl<R> fmt::Debug for FrameReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameReader")
            .field("from", &self.from)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow::Hour;

    #[test]
    fn rows_are_read_as_they_were_written_and_a_cut_is_an_error() {
        let counters = Counters {
            tx: u64::MAX,
            rx: 7,
        };
        let rows = [
            Row {
                src_app: Some("a\0b"),
                dest_app: Some(""),
                vpc_id: Some("vpc-É"),
                counters,
                hour: Hour::new(7),
            },
            Row {
                src_app: Some("z"),
                dest_app: Some("d"),
                vpc_id: Some("v"),
                counters,
                hour: Hour::new(8),
            },
        ];
        let mut bytes = Vec::new();
        rows.iter().for_each(|row| FRAMES.write(row, &mut bytes));
        FRAMES.end(&mut bytes);
        let mut frames = FrameReader::new("b".into(), &bytes[..]);
        for row in &rows {
            assert!(frames.advance().unwrap());
            let mut key = Vec::new();
            row.push_key(&mut key);
            assert_eq!(frames.row(), (key.as_slice(), row.counters));
        }
        assert!(!frames.advance().unwrap() && !frames.advance().unwrap());
        for cut in 0..bytes.len() {
            let mut frames = FrameReader::new("b".into(), &bytes[..cut]);
            let error = loop {
                match frames.advance() {
                    Ok(more) => assert!(more, "the cut was not noticed"),
                    Err(error) => break error,
                }
            };
            assert!(error.to_string().contains("answer of b"), "{error}");
        }
    }
}
