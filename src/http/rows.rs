//! Rows, hours or receipts as bytes: JSON, NDJSON or CSV, compressed or not, a chunk at a time.

use std::io::{self, Write};
use std::ops::ControlFlow;

use bytes::Bytes;
use flate2::write::GzEncoder;
use tokio::sync::watch;

use super::negotiate::{Encoding, RowFormat};
use super::receipts_post::Lookup;
use crate::domain::{Field, Hour, Totals};
use crate::query::{Columns, Coverage, Hours, QueryError, Row, Rows, frames};

/// Bytes of rows, before compression, that are made at once: enough that handing a chunk over
/// costs little beside making it, and little for a slow client to hold.
const CHUNK_BYTES: usize = 120 << 10;
/// Levels that compress faster than a gigabit network takes the result.
const GZIP_LEVEL: u32 = 1;
const ZSTD_LEVEL: i32 = 1;
/// 128 KiB, about a chunk: there is an encoder for each slow client, and most of it is its window.
const ZSTD_WINDOW_LOG: u32 = 17;

/// An answer on its way to a client.
pub struct Answer {
    content: Content,
    any_row: bool,
    state: State,
    encoder: Encoder,
    row_bytes_last: usize,
}

/// What it is read from.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // there are a few of them
enum Content {
    Rows(Rows, RowFormat),
    /// As JSON.
    Hours(Hours),
    /// As JSON.
    Receipts(Lookup),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Begin,
    Rows,
    Ended,
}

enum Encoder {
    Identity,
    Gzip(GzEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Answer {
    pub fn new(rows: Rows, format: RowFormat, encoding: Encoding) -> io::Result<Answer> {
        Answer::of(Content::Rows(rows, format), encoding)
    }

    /// What `GET /hours` answers.
    pub(super) fn of_hours(hours: Hours, encoding: Encoding) -> io::Result<Answer> {
        Answer::of(Content::Hours(hours), encoding)
    }

    /// What `POST /receipts` answers.
    pub(super) fn of_receipts(lookup: Lookup) -> io::Result<Answer> {
        Answer::of(Content::Receipts(lookup), Encoding::Identity)
    }

    fn of(content: Content, encoding: Encoding) -> io::Result<Answer> {
        let encoder = match encoding {
            Encoding::Identity => Encoder::Identity,
            Encoding::Gzip => Encoder::Gzip(GzEncoder::new(
                Vec::new(),
                flate2::Compression::new(GZIP_LEVEL),
            )),
            Encoding::Zstd => {
                let mut zstd = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
                zstd.window_log(ZSTD_WINDOW_LOG)?;
                Encoder::Zstd(zstd)
            }
        };
        Ok(Answer {
            content,
            any_row: false,
            state: State::Begin,
            encoder,
            row_bytes_last: 0,
        })
    }

    /// See [`Rows::next_page`].
    pub(super) fn next_page(&self) -> Option<&str> {
        match &self.content {
            Content::Rows(rows, _) => rows.next_page(),
            Content::Hours(_) | Content::Receipts(_) => None,
        }
    }

    /// See [`Rows::holds_memory`].
    pub(super) fn holds_memory(&self) -> bool {
        match &self.content {
            Content::Rows(rows, _) => rows.holds_memory(),
            Content::Hours(_) => false,
            Content::Receipts(_) => true,
        }
    }

    /// Which parts of the sums it has.
    pub(super) fn coverage(&self) -> Coverage {
        match &self.content {
            Content::Rows(rows, _) => rows.coverage().clone(),
            Content::Hours(hours) => hours.coverage.clone(),
            Content::Receipts(_) => Coverage::default(),
        }
    }

    /// See [`Rows::take_revocations`].
    pub(super) fn take_revocations(&mut self) -> Vec<watch::Receiver<()>> {
        match &mut self.content {
            Content::Rows(rows, _) => rows.take_revocations(),
            Content::Hours(hours) => std::mem::take(&mut hours.revocations),
            Content::Receipts(_) => Vec::new(),
        }
    }

    /// See [`Rows::rows_read`].
    pub(super) fn rows_read(&self) -> u64 {
        match &self.content {
            Content::Rows(rows, _) => rows.rows_read(),
            Content::Hours(_) | Content::Receipts(_) => 0,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// The next bytes of the answer: never empty, `None` at the end. Blocks on the disk.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, QueryError> {
        while self.state != State::Ended {
            let mut plain = Vec::with_capacity(CHUNK_BYTES + 2 * self.row_bytes_last + 64);
            if self.state == State::Begin {
                self.content.begin(&mut plain);
                self.state = State::Rows;
            }
            let ended = self.content.write(&mut self.any_row, &mut plain)?;
            self.row_bytes_last = plain.len().saturating_sub(CHUNK_BYTES);
            if ended {
                self.content.end(&mut plain);
                self.state = State::Ended;
            }
            let chunk = self.encoder.encode(plain, ended);
            if !chunk.is_empty() {
                return Ok(Some(chunk.into()));
            }
        }
        Ok(None)
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer")
            .field("content", &self.content)
            .finish_non_exhaustive()
    }
}

impl Encoder {
    fn encode(&mut self, plain: Vec<u8>, last: bool) -> Vec<u8> {
        // Both encoders write into memory, which does not fail.
        match self {
            Encoder::Identity => plain,
            Encoder::Gzip(gzip) => {
                let _infallible = gzip.write_all(&plain);
                if last {
                    let _infallible = gzip.try_finish();
                }
                std::mem::take(gzip.get_mut())
            }
            Encoder::Zstd(zstd) => {
                let _infallible = zstd.write_all(&plain);
                if last {
                    let _infallible = zstd.do_finish();
                }
                std::mem::take(zstd.get_mut())
            }
        }
    }
}

impl Content {
    fn format(&self) -> RowFormat {
        match self {
            Content::Rows(_, format) => *format,
            Content::Hours(_) | Content::Receipts(_) => RowFormat::Json,
        }
    }

    fn begin(&self, out: &mut Vec<u8>) {
        match self {
            Content::Rows(rows, RowFormat::Csv) => write_header(rows.columns(), out),
            Content::Receipts(_) => out.extend_from_slice(b"{\"receipts\":["),
            other if other.format() == RowFormat::Json => out.push(b'['),
            _ => {}
        }
    }

    /// Appends what comes next until `out` has a chunk; returns whether that was all. `any`: there was
    /// something before it.
    fn write(&mut self, any: &mut bool, out: &mut Vec<u8>) -> Result<bool, QueryError> {
        let is_json = self.format() == RowFormat::Json;
        let mut separate = |out: &mut Vec<u8>| {
            out.extend_from_slice(if is_json && *any { b",\n" } else { b"" });
            *any = true;
        };
        let unless_full = |out: &Vec<u8>| match out.len() < CHUNK_BYTES {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        };
        match self {
            Content::Rows(rows, format) => rows.read(|row| {
                separate(out);
                format.write(row, out);
                unless_full(out)
            }),
            Content::Hours(hours) => hours.read(|hour, totals| {
                separate(out);
                write_hour(hour, totals, out);
                unless_full(out)
            }),
            Content::Receipts(lookup) => {
                let written = lookup.write(out, separate, unless_full);
                written.map_err(|error| QueryError::Peer(error.to_string()))
            }
        }
    }

    fn end(&self, out: &mut Vec<u8>) {
        match self.format() {
            _ if matches!(self, Content::Receipts(_)) => out.extend_from_slice(b"]}\n"),
            RowFormat::Json => out.extend_from_slice(b"]\n"),
            RowFormat::Frames => frames::end(out),
            RowFormat::Ndjson | RowFormat::Csv => {}
        }
    }
}

fn write_header(columns: Columns, out: &mut Vec<u8>) {
    let names: Vec<&str> = columns.fields().map(Field::name).collect();
    out.extend_from_slice(names.join(",").as_bytes());
    out.push(b'\n');
}

fn write_hour(hour: Hour, totals: Totals, out: &mut Vec<u8>) {
    let mut digits = itoa::Buffer::new();
    out.extend_from_slice(b"{\"hour\":");
    out.extend_from_slice(digits.format(hour.get()).as_bytes());
    out.extend_from_slice(b",\"flows\":");
    out.extend_from_slice(digits.format(totals.flows).as_bytes());
    out.extend_from_slice(b",\"bytes_tx\":");
    out.extend_from_slice(digits.format(totals.tx).as_bytes());
    out.extend_from_slice(b",\"bytes_rx\":");
    out.extend_from_slice(digits.format(totals.rx).as_bytes());
    out.push(b'}');
}

impl RowFormat {
    /// Appends one row; what stands between rows of a JSON array is the caller's.
    #[inline]
    pub fn write(self, row: &Row<'_>, out: &mut Vec<u8>) {
        match self {
            RowFormat::Json => write_json(row, out),
            RowFormat::Ndjson => {
                write_json(row, out);
                out.push(b'\n');
            }
            RowFormat::Csv => write_csv(row, out),
            RowFormat::Frames => frames::write(row, out),
        }
    }
}

fn write_json(row: &Row<'_>, out: &mut Vec<u8>) {
    let mut digits = itoa::Buffer::new();
    out.push(b'{');
    for (name, value) in [
        (&b"\"src_app\":"[..], row.src_app),
        (b"\"dest_app\":", row.dest_app),
        (b"\"vpc_id\":", row.vpc_id),
    ] {
        if let Some(value) = value {
            out.extend_from_slice(name);
            write_json_string(value, out);
            out.push(b',');
        }
    }
    out.extend_from_slice(b"\"bytes_tx\":");
    out.extend_from_slice(digits.format(row.counters.tx).as_bytes());
    out.extend_from_slice(b",\"bytes_rx\":");
    out.extend_from_slice(digits.format(row.counters.rx).as_bytes());
    if let Some(hour) = row.hour {
        out.extend_from_slice(b",\"hour\":");
        out.extend_from_slice(digits.format(hour.get()).as_bytes());
    }
    out.push(b'}');
}

fn write_json_string(text: &str, out: &mut Vec<u8>) {
    // Without a way out of the loop, so that it is done sixteen bytes at a time.
    let escapes = text.bytes().fold(false, |any, b| {
        any | (b < 0x20) | (b == b'"') | (b == b'\\')
    });
    if escapes {
        // A string always serialises, and memory takes it.
        let _infallible = serde_json::to_writer(out, text);
    } else {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    }
}

fn write_csv(row: &Row<'_>, out: &mut Vec<u8>) {
    let mut csv = csv::WriterBuilder::new()
        .buffer_capacity(256)
        .from_writer(out);
    let mut digits = [(); 3].map(|()| itoa::Buffer::new());
    let [tx, rx, hour] = &mut digits;
    let sums = [tx.format(row.counters.tx), rx.format(row.counters.rx)];
    let names = [row.src_app, row.dest_app, row.vpc_id]
        .into_iter()
        .flatten();
    let hour = row.hour.map(|of| hour.format(of.get()));
    let _infallible = csv.write_record(names.chain(sums).chain(hour));
}
