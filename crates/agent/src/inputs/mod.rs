//! Reads flows from a file or a pipe: a JSON array, NDJSON, CSV, the flow logs of AWS, Azure and Google Cloud, or records
//! of goflow2 and Akvorado, plain or compressed with gzip or zstd.
//!
//! `Reader::read` passes on flows one at a time, as soon as they arrive, each as JSON text that has not
//! been validated. `Reader::read_batches` cuts the input into batches of about a mebibyte by content alone,
//! so the same file always gives the same batches. In every format, the service's decoder decides which flows
//! are valid.

mod apps;
mod azure_flow_logs;
mod batches;
mod compression;
mod csv;
mod documents;
mod flows;
mod json;
mod json_records;
mod lines;
mod ndjson;
mod pause;
mod pending;
mod records;
mod sniff;
mod traffic;
mod vpc_flow_logs;
mod window;

pub use apps::Apps;
pub(crate) use batches::GIVE_AGAIN;
pub use batches::{Chunk, RejectedFlow};
pub(crate) use compression::{begins_compressed, find_damage};
pub(crate) use flows::Line;
pub(crate) use flows::{RecordHashes, first_to_json, to_json};
pub(crate) use pause::{Idle, Stopped};
pub(crate) use traffic::{Count, GivenFields};
pub use vpc_flow_logs::is_read as is_flow_log_field;

use std::fmt;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::sync::Arc;

use compression::Decompressed;
use flow::Field;
pub use flow::HourLimit;
use flow::decode::Format;
use json_records::Origin;
use traffic::TrafficOptions;
use window::{ReadMode, Tail, Window};

const ARRAY_GROWS: &str = "--growing is for NDJSON, CSV and flow logs, which grow by lines; an array or a document \
    is read without it, once it is complete";
/// The error for a header that ends with the file.
const MAY_BE_CUT: &str = "the file ends within this line, so it may be cut: read it when it is complete, or with --growing";
/// Some editors write it at the start of UTF-8 files.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The format of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InputFormat {
    /// A JSON array of flows.
    Json,
    /// One flow per line.
    Ndjson,
    /// A header with the six names in any order, then one flow per line.
    Csv,
    /// A header with AWS's field names in any order, then one record per line; without a header, records of
    /// version 2.
    VpcFlowLogs,
    /// Documents of Azure with flow tuples.
    AzureFlowLogs,
    /// Google Cloud's VPC flow logs, as log entries.
    GcpFlowLogs,
    /// goflow2's JSON.
    Goflow2,
    /// Rows of Akvorado's table of flows as JSON.
    Akvorado,
}

impl InputFormat {
    /// Whether it consists of lines, each with a record, and not of documents.
    fn has_lines(self) -> bool {
        !matches!(self, InputFormat::Json | InputFormat::AzureFlowLogs)
    }
}

/// A location in an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Location {
    /// The number of a flow, from 0.
    Flow(u64),
    /// The number of a line, from 1.
    Line(u64),
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Flow(number) => write!(f, "flow {number}"),
            Location::Line(number) => write!(f, "line {number}"),
        }
    }
}

/// One flow of an input, not validated yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RawFlow<'a> {
    pub(crate) location: Location,
    /// Its JSON text; with a fault, the original text as far as it is known.
    pub(crate) text: &'a str,
    /// The reason why it is not a flow, if that is known already.
    pub(crate) unusable: Option<Unusable>,
}

/// The reason why a record is not a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// It is invalid, for this reason.
    Invalid(String),
    /// It is valid, but represents no traffic to count.
    Skipped(SkipReason),
}

/// The reason why a record is skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SkipReason {
    /// There was no traffic.
    NoData,
    /// AWS skipped recording, for lack of capacity or because of an internal error.
    SkipData,
    /// The traffic was rejected.
    Reject,
    /// The record of the other end of the conversation counts instead.
    OtherEnd,
}

/// The number of skipped records by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    pub(crate) no_data: u64,
    pub(crate) skip_data: u64,
    pub(crate) reject: u64,
    pub(crate) other_end: u64,
}

impl Skipped {
    pub(crate) fn count(&mut self, why: SkipReason) {
        match why {
            SkipReason::NoData => self.no_data += 1,
            SkipReason::SkipData => self.skip_data += 1,
            SkipReason::Reject => self.reject += 1,
            SkipReason::OtherEnd => self.other_end += 1,
        }
    }

    pub fn add(&mut self, other: Skipped) {
        self.no_data += other.no_data;
        self.skip_data += other.skip_data;
        self.reject += other.reject;
        self.other_end += other.other_end;
    }

    /// Records without traffic.
    pub(crate) fn without_traffic(&self) -> u64 {
        self.no_data + self.skip_data + self.reject
    }
}

/// The reason why the rest of an input cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Malformed(String),
}

/// Reads flows from `R`.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    input: R,
    format: Option<InputFormat>,
    traffic: TrafficOptions,
    hour_limit: Option<HourLimit>,
    is_growing: bool,
    is_line_delimited: bool,
}

/// Receives the flows of an input.
trait Sink {
    /// One flow.
    fn flow(&mut self, raw: RawFlow<'_>) -> ControlFlow<()>;

    /// The text of the record of the next flow or the next skipped record.
    fn text(&mut self, _text: RecordText<'_>) {}

    /// Text that is not a flow.
    fn refused(&mut self, refused: RejectedFlow) -> ControlFlow<()> {
        self.flow(RawFlow {
            location: refused.location,
            text: &refused.text,
            unusable: Some(Unusable::Invalid(refused.why)),
        })
    }

    /// A block of flows: an array or lines, which may turn out to be invalid. Returns their number, or `None` to
    /// receive them one by one.
    fn block(&mut self, _block: RawBlock<'_>) -> ControlFlow<(), Option<u64>> {
        ControlFlow::Continue(None)
    }
}

/// The text of a record.
#[derive(Clone, Copy, Debug, Default)]
struct RecordText<'a> {
    text: &'a str,
    /// The offset of its last field.
    last_field: usize,
    /// The last field is known to be complete.
    last_is_whole: bool,
    /// The text identifies the record; otherwise, its flow does.
    is_content: bool,
    /// The field of the flow at the end of the text, unless the text identifies the record.
    last_column: Option<Field>,
}

/// The end of an input.
#[derive(Clone, Copy, Debug, Default)]
struct InputEnd {
    /// It has no line end, so the last line may be continued later.
    is_within_a_line: bool,
    is_compressed: bool,
}

/// A section of an input that can be decoded as a request body.
struct RawBlock<'a> {
    text: &'a [u8],
    format: Format,
    /// The location of its first flow or line.
    first: Location,
}

impl<R: Read> Reader<R> {
    /// Without a `format`, it is detected from the first bytes: `[` is JSON, `{` is NDJSON, a header of a
    /// flow log is a flow log, anything else is CSV.
    pub(crate) fn new(input: R, format: Option<InputFormat>) -> Reader<R> {
        Reader {
            input,
            format,
            traffic: TrafficOptions::default(),
            hour_limit: None,
            is_growing: false,
            is_line_delimited: false,
        }
    }

    /// Replaces addresses in flow logs by the names of these applications.
    pub(crate) fn with_apps(mut self, apps: Arc<Apps>) -> Reader<R> {
        self.traffic.apps = apps;
        self
    }

    /// Counts only those records of flow logs that were recorded at this end of a conversation.
    pub(crate) fn with_count(mut self, count: Count) -> Reader<R> {
        self.traffic.count = count;
        self
    }

    /// The fields of AWS's flow logs without a header.
    pub(crate) fn with_fields(mut self, fields: Option<GivenFields>) -> Reader<R> {
        self.traffic.fields = fields;
        self
    }

    /// Calls `warn`, at most once, if the sums may be misleading.
    pub(crate) fn with_warning(mut self, warn: impl Fn(&str) + Send + 'static) -> Reader<R> {
        self.traffic.warn = Some(Box::new(warn));
        self
    }

    /// Makes [`Reader::read_batches`] refuse flows of later hours.
    pub(crate) fn with_hour_limit(self, hour_limit: Option<HourLimit>) -> Reader<R> {
        Reader { hour_limit, ..self }
    }

    /// If set, a last line without a line end is not read, since the file may still be growing.
    pub(crate) fn with_growing(self, is_growing: bool) -> Reader<R> {
        Reader { is_growing, ..self }
    }

    /// Refuses an array on each line, as NDJSON requires, instead of reading one array after the other.
    pub(crate) fn with_line_delimited(self, is_line_delimited: bool) -> Reader<R> {
        Reader {
            is_line_delimited,
            ..self
        }
    }

    /// Passes every flow to `each` as soon as it is read, until `each` breaks.
    ///
    /// # Errors
    /// If the rest cannot be read. The flows before the error were passed on.
    pub(crate) fn read(
        self,
        each: impl FnMut(RawFlow<'_>) -> ControlFlow<()>,
    ) -> Result<(), InputError> {
        struct OneByOne<F>(F);
        impl<F: FnMut(RawFlow<'_>) -> ControlFlow<()>> Sink for OneByOne<F> {
            fn flow(&mut self, raw: RawFlow<'_>) -> ControlFlow<()> {
                self.0(raw)
            }
        }
        self.read_into(ReadMode::AsAvailable, &mut OneByOne(each))
            .map(drop)
    }

    fn read_into(self, mode: ReadMode, sink: &mut dyn Sink) -> Result<InputEnd, InputError> {
        let input = Decompressed::new(self.input)?;
        let is_compressed = !matches!(input, Decompressed::Plain(_));
        let (input, last_byte) = Tail::new(input);
        let mut window = Window::new(input, mode);
        let (mut sniffed, line) = sniff::sniff(&mut window)?;
        if self.is_line_delimited && sniff::is_array_a_line(window.text()) {
            sniffed = InputFormat::Ndjson;
        }
        // Process the bytes that were read for detection before waiting for more.
        window.skip_next_fill();
        let format = self.format.unwrap_or(sniffed);
        if self.is_growing {
            if !format.has_lines() {
                return Err(InputError::Malformed(ARRAY_GROWS.into()));
            }
            window.omit_unfinished_line();
            if window.text().is_empty() && window.has_ended() {
                return Ok(InputEnd::default());
            }
        }
        match format {
            InputFormat::Json => json::read(window, line, sink)?,
            InputFormat::Ndjson => ndjson::read(window, line, sink)?,
            InputFormat::Csv => csv::read(window, line, sink)?,
            InputFormat::VpcFlowLogs => vpc_flow_logs::read(window, line, &self.traffic, sink)?,
            InputFormat::AzureFlowLogs => azure_flow_logs::read(window, &self.traffic, sink)?,
            InputFormat::GcpFlowLogs => {
                json_records::read(window, line, Origin::Gcp, &self.traffic, sink)?
            }
            InputFormat::Goflow2 => {
                json_records::read(window, line, Origin::Goflow2, &self.traffic, sink)?
            }
            InputFormat::Akvorado => {
                json_records::read(window, line, Origin::Akvorado, &self.traffic, sink)?
            }
        }
        let is_ended = matches!(last_byte.get(), None | Some(b'\n' | b'\r'));
        Ok(InputEnd {
            is_within_a_line: !is_ended && format.has_lines() && !self.is_growing,
            is_compressed,
        })
    }
}

/// Appends `value` as a JSON string.
fn push_json_string(text: &mut String, value: &str) {
    if value.bytes().any(|b| b < b' ' || matches!(b, b'"' | b'\\')) {
        text.push_str(&serde_json::Value::from(value).to_string());
    } else {
        text.push('"');
        text.push_str(value);
        text.push('"');
    }
}

/// The number of line ends in `text`.
fn newlines(text: &[u8]) -> u64 {
    // In chunks whose count fits into a byte, so that the compiler can use 16-byte vectors.
    let count = |chunk: &[u8]| chunk.iter().map(|&b| u8::from(b == b'\n')).sum::<u8>();
    text.chunks(255).map(|chunk| u64::from(count(chunk))).sum()
}

/// Reads an input of any format, one flow at a time and in batches. For fuzzing.
///
/// # Panics
/// If the two ways do not give the same number of flows.
#[cfg(fuzzing)]
pub fn read_any(input: &[u8]) {
    let mut flows = 0;
    let one_by_one = Reader::new(input, None).read(|raw| {
        let is_flow = raw.unusable.is_none() && flow::decode::validate_flow(raw.text).is_ok();
        flows += u64::from(is_flow);
        ControlFlow::Continue(())
    });
    let mut in_batches = 0;
    let batches = Reader::new(input, None).read_batches(|chunk| {
        in_batches += chunk.batch.map_or(0, |batch| batch.flows() as u64);
        ControlFlow::Continue(())
    });
    // After an error, the flows of an incomplete batch are not passed on.
    if one_by_one.is_ok() && batches.is_ok() {
        assert_eq!(flows, in_batches);
    }
}

#[cfg(test)]
mod cuts;
#[cfg(test)]
mod seams;
#[cfg(test)]
mod tests;
