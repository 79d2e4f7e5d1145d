//! Encodes rows, hours or other items as JSON, NDJSON, CSV or Arrow, optionally compressed, chunk by chunk.

use std::fmt::{self, Debug};
use std::io::{self, Write};
use std::ops::ControlFlow;

use bytes::Bytes;
use flate2::write::GzEncoder;
use tokio_util::sync::CancellationToken;

use super::arrow::ArrowStream;
use super::{Coverage, Hours, QueryError, Row, Rows};
use flow::query::{Columns, HourRow};
use flow::{Encoding, Field, Totals};

/// The format of rows.
#[derive(Clone, Copy, Debug)]
pub enum RowFormat {
    Json,
    Ndjson,
    Csv,
    /// Columns, in batches of rows.
    Arrow,
    /// An internal format that clients cannot request.
    Other(&'static dyn RowEncoder),
}

impl RowFormat {
    /// For `Content-Type`.
    pub fn media_type(self) -> &'static str {
        match self {
            RowFormat::Json => "application/json",
            RowFormat::Ndjson => "application/x-ndjson",
            RowFormat::Csv => "text/csv; charset=utf-8",
            RowFormat::Arrow => "application/vnd.apache.arrow.stream",
            RowFormat::Other(codec) => codec.media_type(),
        }
    }
}

/// A row format that is not part of the API.
pub trait RowEncoder: Debug + Sync {
    fn media_type(&self) -> &'static str;

    /// Appends a row.
    fn write(&self, row: &Row<'_>, out: &mut Vec<u8>);

    /// Appends the bytes after the last row.
    fn end(&self, out: &mut Vec<u8>);
}

/// Items of another kind that are streamed as JSON.
pub trait JsonItems: Debug + Send + Sync {
    /// Bytes before the first item.
    fn head(&self) -> &'static [u8];

    /// Appends the next item, or returns `false` after the last. Blocks on the disk.
    fn write_next(&mut self, out: &mut Vec<u8>) -> Result<bool, QueryError>;

    /// Bytes after the last item.
    fn tail(&self) -> &'static [u8];
}

/// Size of a chunk before compression: large enough that its handover costs little compared with its encoding, and
/// small enough to be held for each slow client. Also the size of a batch of Arrow.
pub(super) const CHUNK_BYTES: usize = 120 << 10;
/// Levels at which compression outpaces a gigabit network.
const GZIP_LEVEL: u32 = 1;
const ZSTD_LEVEL: i32 = 1;
/// 128 KiB, about a chunk. Each slow client has an encoder, most of whose memory is the window.
const ZSTD_WINDOW_LOG: u32 = 17;

/// A response that is read as bytes, chunk by chunk.
pub struct EncodedRows {
    content: Content,
    any_row: bool,
    state: State,
    encoder: Encoder,
    row_bytes_last: usize,
}

/// The source of the bytes.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // there are a few of them
enum Content {
    /// In all formats but Arrow.
    Rows(Rows, RowFormat),
    Arrow(ArrowStream),
    /// As JSON.
    Hours(Hours),
    Items(Box<dyn JsonItems>),
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

impl EncodedRows {
    pub fn new(rows: Rows, format: RowFormat, encoding: Encoding) -> io::Result<EncodedRows> {
        let content = match format {
            RowFormat::Arrow => Content::Arrow(ArrowStream::new(rows).map_err(io::Error::other)?),
            format => Content::Rows(rows, format),
        };
        EncodedRows::from_content(content, encoding)
    }

    /// The response of `GET /hours`.
    pub fn of_hours(hours: Hours, encoding: Encoding) -> io::Result<EncodedRows> {
        EncodedRows::from_content(Content::Hours(hours), encoding)
    }

    /// Other items, as JSON without compression.
    pub fn of_items(items: Box<dyn JsonItems>) -> io::Result<EncodedRows> {
        EncodedRows::from_content(Content::Items(items), Encoding::Identity)
    }

    fn from_content(content: Content, encoding: Encoding) -> io::Result<EncodedRows> {
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
        Ok(EncodedRows {
            content,
            any_row: false,
            state: State::Begin,
            encoder,
            row_bytes_last: 0,
        })
    }

    /// See [`Rows::next_page`].
    pub fn next_page(&self) -> Option<&str> {
        self.content.rows()?.next_page()
    }

    /// See [`Rows::holds_memory`].
    pub fn holds_memory(&self) -> bool {
        match &self.content {
            Content::Hours(_) => false,
            Content::Items(_) => true,
            content => content.rows().is_some_and(Rows::holds_memory),
        }
    }

    /// The partitions of the sums that it covers.
    pub fn coverage(&self) -> Coverage {
        match &self.content {
            Content::Hours(hours) => hours.coverage.clone(),
            content => {
                let coverage = content.rows().map(Rows::coverage);
                coverage.cloned().unwrap_or_default()
            }
        }
    }

    /// See [`Rows::totals`].
    pub fn totals(&self) -> Option<Totals> {
        self.content.rows()?.totals()
    }

    /// See [`Rows::take_revocations`].
    pub fn take_revocations(&mut self) -> Vec<CancellationToken> {
        match &mut self.content {
            Content::Rows(rows, _) => rows.take_revocations(),
            Content::Arrow(stream) => stream.rows_mut().take_revocations(),
            Content::Hours(hours) => std::mem::take(&mut hours.revocations),
            Content::Items(_) => Vec::new(),
        }
    }

    /// See [`Rows::rows_read`].
    pub fn rows_read(&self) -> u64 {
        self.content.rows().map_or(0, Rows::rows_read)
    }

    pub fn has_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// The next chunk, never empty; `None` at the end. Blocks on the disk.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, QueryError> {
        while self.state != State::Ended {
            let mut plain = Vec::with_capacity(CHUNK_BYTES + 2 * self.row_bytes_last + 64);
            if self.state == State::Begin {
                self.content.write_head(&mut plain);
                self.state = State::Rows;
            }
            let ended = self.content.write(&mut self.any_row, &mut plain)?;
            self.row_bytes_last = plain.len().saturating_sub(CHUNK_BYTES);
            if ended {
                self.content.write_tail(&mut plain)?;
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

impl Debug for EncodedRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncodedRows")
            .field("content", &self.content)
            .finish_non_exhaustive()
    }
}

impl Encoder {
    fn encode(&mut self, plain: Vec<u8>, last: bool) -> Vec<u8> {
        // Both encoders write to memory, which does not fail.
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
    fn rows(&self) -> Option<&Rows> {
        match self {
            Content::Rows(rows, _) => Some(rows),
            Content::Arrow(stream) => Some(stream.rows()),
            Content::Hours(_) | Content::Items(_) => None,
        }
    }

    fn is_json(&self) -> bool {
        matches!(
            self,
            Content::Rows(_, RowFormat::Json) | Content::Hours(_) | Content::Items(_)
        )
    }

    fn write_head(&mut self, out: &mut Vec<u8>) {
        match self {
            Content::Arrow(stream) => stream.write_schema(out),
            Content::Rows(rows, RowFormat::Csv) => write_header(rows, out),
            Content::Items(items) => out.extend_from_slice(items.head()),
            content if content.is_json() => out.push(b'['),
            _ => {}
        }
    }

    /// Appends rows until `out` contains a chunk. Returns whether the rows have ended. `any` is true if a row was
    /// written before.
    fn write(&mut self, any: &mut bool, out: &mut Vec<u8>) -> Result<bool, QueryError> {
        let is_json = self.is_json();
        let mut separate = |out: &mut Vec<u8>| {
            out.extend_from_slice(if is_json && *any { b",\n" } else { b"" });
            *any = true;
        };
        let unless_full = |out: &Vec<u8>| match out.len() < CHUNK_BYTES {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        };
        match self {
            Content::Arrow(stream) => stream.write_batch(out),
            Content::Rows(rows, RowFormat::Csv)
                if rows.totals().is_some() || rows.is_compared() =>
            {
                let (columns, has_other) = (rows.columns(), rows.totals().is_some());
                rows.read(|row| {
                    write_csv_with_more(row, columns, has_other, out);
                    unless_full(out)
                })
            }
            Content::Rows(rows, format) => rows.read(|row| {
                separate(out);
                format.write(row, out);
                unless_full(out)
            }),
            Content::Hours(hours) => hours.read(|of| {
                separate(out);
                HourRow::new(of).write(out);
                unless_full(out)
            }),
            Content::Items(items) => {
                while unless_full(out).is_continue() {
                    let before = out.len();
                    separate(out);
                    if !items.write_next(out)? {
                        out.truncate(before);
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    fn write_tail(&mut self, out: &mut Vec<u8>) -> Result<(), QueryError> {
        match self {
            Content::Arrow(stream) => stream.write_end(out)?,
            Content::Items(items) => out.extend_from_slice(items.tail()),
            content if content.is_json() => out.extend_from_slice(b"]\n"),
            Content::Rows(_, RowFormat::Other(codec)) => codec.end(out),
            _ => {}
        }
        Ok(())
    }
}

fn write_header(rows: &Rows, out: &mut Vec<u8>) {
    let names = rows.columns().fields().map(Field::name);
    let before = rows.is_compared().then_some(BEFORE).into_iter().flatten();
    let other = rows.totals().map(|_| OTHER);
    let names: Vec<&str> = names.chain(before).chain(other).collect();
    out.extend_from_slice(names.join(",").as_bytes());
    out.push(b'\n');
}

impl RowFormat {
    /// Appends one row. The caller writes the separators of a JSON array. Arrow has batches instead of rows: nothing is
    /// appended.
    #[inline]
    pub fn write(self, row: &Row<'_>, out: &mut Vec<u8>) {
        match self {
            RowFormat::Json => write_json(row, out),
            RowFormat::Ndjson => {
                write_json(row, out);
                out.push(b'\n');
            }
            RowFormat::Csv => write_csv(row, out),
            RowFormat::Arrow => {}
            RowFormat::Other(codec) => codec.write(row, out),
        }
    }
}

fn write_json(row: &Row<'_>, out: &mut Vec<u8>) {
    let mut digits = itoa::Buffer::new();
    out.push(b'{');
    if row.is_other {
        out.extend_from_slice(b"\"other\":true,");
    }
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
    if let Some(before) = row.before {
        for (name, sum) in BEFORE.into_iter().zip([before.tx, before.rx]) {
            out.extend_from_slice(b",\"");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
            out.extend_from_slice(digits.format(sum).as_bytes());
        }
    }
    if let Some(hour) = row.hour {
        out.extend_from_slice(b",\"hour\":");
        out.extend_from_slice(digits.format(hour.get()).as_bytes());
    }
    out.push(b'}');
}

fn write_json_string(text: &str, out: &mut Vec<u8>) {
    // No early exit, so that the loop is vectorized.
    let escapes = text.bytes().fold(false, |any, b| {
        any | (b < 0x20) | (b == b'"') | (b == b'\\')
    });
    if escapes {
        // Serializing a string to memory does not fail.
        let _infallible = serde_json::to_writer(out, text);
    } else {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    }
}

/// The field of the row that has the sums of all others.
pub(super) const OTHER: &str = "other";

/// The fields of the sums of the hours that are compared.
pub(super) const BEFORE: [&str; 2] = ["bytes_tx_before", "bytes_rx_before"];

/// Like [`write_csv`], with the sums of the hours that are compared, and with a column that tells the row of all others from
/// one with empty names.
fn write_csv_with_more(row: &Row<'_>, columns: Columns, has_other: bool, out: &mut Vec<u8>) {
    let mut digits = [(); 5].map(|()| itoa::Buffer::new());
    let [tx, rx, hour, tx_before, rx_before] = &mut digits;
    let sums = [tx.format(row.counters.tx), rx.format(row.counters.rx)];
    let hour = row.hour.map(|of| hour.format(of.get()));
    let before = row
        .before
        .map(|before| [tx_before.format(before.tx), rx_before.format(before.rx)]);
    let field = |field| match field {
        Field::SrcApp => row.src_app,
        Field::DestApp => row.dest_app,
        Field::VpcId => row.vpc_id,
        Field::BytesTx => Some(sums[0]),
        Field::BytesRx => Some(sums[1]),
        Field::Hour => hour,
    };
    let fields = columns.fields().map(|of| field(of).unwrap_or(""));
    let other = has_other.then_some(if row.is_other { "true" } else { "" });
    let mut csv = csv::WriterBuilder::new()
        .buffer_capacity(256)
        .from_writer(out);
    let more = before.into_iter().flatten().chain(other);
    let _infallible = csv.write_record(fields.chain(more));
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
