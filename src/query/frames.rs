//! Rows on their way from one node to another.
//!
//! ```text
//! a row     key bytes u16 LE | bytes_tx u64 LE | bytes_rx u64 LE | key
//! the end   FF FF
//! ```
//!
//! A key is that of a stored row, without the columns that are left out. Without the end, an answer is not
//! whole.

use std::fmt;
use std::io::{BufReader, Read};
use std::sync::{Mutex, PoisonError};

use super::merge::RowSource;
use super::{QueryError, Row};
use crate::domain::Counters;

/// No key is that long.
const END: u16 = u16::MAX;
/// What is read from the connection at once.
const READ_BYTES: usize = 64 << 10;

/// Appends a row.
pub fn write(row: &Row<'_>, out: &mut Vec<u8>) {
    let at = out.len();
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&row.counters.tx.to_le_bytes());
    out.extend_from_slice(&row.counters.rx.to_le_bytes());
    let key_at = out.len();
    row.push_key(out);
    let key_bytes = (out.len() - key_at) as u16; // a key has at most `KEY_BYTES_MAX`
    out[at..at + 2].copy_from_slice(&key_bytes.to_le_bytes());
}

/// Appends the end.
pub fn end(out: &mut Vec<u8>) {
    out.extend_from_slice(&END.to_le_bytes());
}

/// Reads what another node writes.
pub struct Frames<R> {
    /// Says in errors which node it is.
    from: String,
    /// Never locked: it makes a reader `Sync` that is not.
    reader: Mutex<BufReader<R>>,
    key: Vec<u8>,
    counters: Counters,
    rows: u64,
    ended: bool,
}

impl<R: Read + Send> Frames<R> {
    pub fn new(from: String, reader: R) -> Frames<R> {
        Frames {
            from,
            reader: Mutex::new(BufReader::with_capacity(READ_BYTES, reader)),
            key: Vec::new(),
            counters: Counters::default(),
            rows: 0,
            ended: false,
        }
    }

    fn read(&mut self) -> std::io::Result<bool> {
        let reader = self
            .reader
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
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

impl<R: Read + Send> RowSource for Frames<R> {
    fn advance(&mut self) -> Result<bool, QueryError> {
        if self.ended {
            return Ok(false);
        }
        let read = self.read().map_err(|error| {
            QueryError::Peer(format!("the answer of {} broke off: {error}", self.from))
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

impl<R> fmt::Debug for Frames<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames")
            .field("from", &self.from)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Hour;
    use crate::query::Columns;
    use crate::query::row::decode;

    #[test]
    fn rows_come_as_they_were_and_a_part_is_not_the_whole() {
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
        rows.iter().for_each(|row| write(row, &mut bytes));
        end(&mut bytes);
        let mut frames = Frames::new("b".into(), &bytes[..]);
        for row in &rows {
            assert!(frames.advance().unwrap());
            let (key, counters) = frames.row();
            assert_eq!(decode(Columns::ALL, key).unwrap().row(counters), *row);
        }
        assert!(!frames.advance().unwrap() && !frames.advance().unwrap());
        for cut in 0..bytes.len() {
            let mut frames = Frames::new("b".into(), &bytes[..cut]);
            let error = loop {
                match frames.advance() {
                    Ok(more) => assert!(more, "a part is taken for the whole"),
                    Err(error) => break error,
                }
            };
            assert!(error.to_string().contains("answer of b"), "{error}");
        }
    }
}
