//! The encoding of rows between nodes.
//!
//! ```text
//! row     key bytes u16 LE | bytes_tx u64 LE | bytes_rx u64 LE | key
//! end     FF FF
//! ```
//!
//! A key is that of a stored row, without the columns that are left out. A response without its end is incomplete, and
//! an error.

use std::error::Error;
use std::fmt::Debug;
use std::io::{self, Read};
use std::time::Instant;

use bytes::Bytes;
use hyper::body::{Body, Incoming};

use super::body::PeerBody;
use crate::query::{QueryError, Row, RowEncoder, RowSource};
use flow::Counters;
use flow::codec::KEY_BYTES_MAX;

/// No key is that long.
const END: u16 = u16::MAX;

const _: () = assert!(KEY_BYTES_MAX < END as usize);

/// Writes frames.
#[derive(Debug)]
pub struct FrameEncoder;

impl RowEncoder for FrameEncoder {
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
        let key_bytes = u16::try_from(out.len() - key_at)
            .unwrap_or_else(|_| unreachable!("a key is longer than KEY_BYTES_MAX"));
        out[at..at + 2].copy_from_slice(&key_bytes.to_le_bytes());
    }

    fn end(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&END.to_le_bytes());
    }
}

/// In `Accept` and `Content-Type`.
pub(super) const MEDIA_TYPE: &str = "application/octet-stream";

/// Reads frames.
#[derive(Debug)]
pub(super) struct FrameReader<B = Incoming> {
    body: PeerBody<B>,
    key: Vec<u8>,
    counters: Counters,
    rows: u64,
    has_ended: bool,
}

impl<B> FrameReader<B> {
    pub(super) fn new(body: PeerBody<B>) -> FrameReader<B> {
        FrameReader {
            body,
            key: Vec::new(),
            counters: Counters::default(),
            rows: 0,
            has_ended: false,
        }
    }
}

impl<B> FrameReader<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// Reads a row; returns `false` at the end.
    fn read(&mut self) -> io::Result<bool> {
        let mut key_bytes = [0; 2];
        self.body.read_exact(&mut key_bytes)?;
        let key_bytes = u16::from_le_bytes(key_bytes);
        if key_bytes == END {
            return Ok(false);
        }
        let mut sum = || {
            let mut sum = [0; 8];
            self.body.read_exact(&mut sum)?;
            Ok::<_, io::Error>(u64::from_le_bytes(sum))
        };
        self.counters = Counters {
            tx: sum()?,
            rx: sum()?,
        };
        self.key.resize(usize::from(key_bytes), 0);
        self.body.read_exact(&mut self.key)?;
        Ok(true)
    }
}

impl<B> RowSource for FrameReader<B>
where
    B: Body<Data = Bytes> + Debug + Send + Sync + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    fn advance(&mut self) -> Result<bool, QueryError> {
        if self.has_ended {
            return Ok(false);
        }
        let read = self.read().map_err(|error| self.body.query_error(error))?;
        self.rows += u64::from(read);
        self.has_ended = !read;
        Ok(read)
    }

    fn row(&self) -> (&[u8], Counters) {
        (&self.key, self.counters)
    }

    fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.body.set_deadline(deadline);
    }

    fn rows_read(&self) -> u64 {
        self.rows
    }
}

#[cfg(test)]
mod tests {
    use super::super::body::tests::body_of;
    use super::*;
    use flow::{Hour, NAME_BYTES_MAX};

    #[test]
    fn the_longest_key_has_a_frame() {
        let name = "\0".repeat(NAME_BYTES_MAX);
        let row = Row {
            src_app: Some(&name),
            dest_app: Some(&name),
            vpc_id: Some(&name),
            counters: Counters { tx: 1, rx: 2 },
            before: None,
            hour: Some(Hour::LAST),
            is_other: false,
        };
        let mut bytes = Vec::new();
        FrameEncoder.write(&row, &mut bytes);
        FrameEncoder.end(&mut bytes);
        let (_runtime, body) = body_of(&bytes);
        let mut frames = FrameReader::new(body);
        assert!(frames.advance().unwrap());
        assert_eq!(frames.row().0.len(), KEY_BYTES_MAX);
        assert!(!frames.advance().unwrap());
    }

    #[test]
    fn rows_round_trip_and_a_cut_is_an_error() {
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
                before: None,
                hour: Hour::new(7),
                is_other: false,
            },
            Row {
                src_app: Some("z"),
                dest_app: Some("d"),
                vpc_id: Some("v"),
                counters,
                before: None,
                hour: Hour::new(8),
                is_other: false,
            },
        ];
        let mut bytes = Vec::new();
        rows.iter()
            .for_each(|row| FrameEncoder.write(row, &mut bytes));
        FrameEncoder.end(&mut bytes);
        let (_runtime, body) = body_of(&bytes);
        let mut frames = FrameReader::new(body);
        for row in &rows {
            assert!(frames.advance().unwrap());
            let mut key = Vec::new();
            row.push_key(&mut key);
            assert_eq!(frames.row(), (key.as_slice(), row.counters));
        }
        assert!(!frames.advance().unwrap() && !frames.advance().unwrap());
        for cut in 0..bytes.len() {
            let (_runtime, body) = body_of(&bytes[..cut]);
            let mut frames = FrameReader::new(body);
            let error = loop {
                match frames.advance() {
                    Ok(more) => assert!(more, "the cut was not noticed"),
                    Err(error) => break error,
                }
            };
            assert!(error.to_string().contains("response of b"), "{error}");
        }
    }
}
