//! Flows from a file or a pipe: a JSON array, NDJSON, CSV, or AWS VPC Flow Logs, each plain, as gzip
//! or as zstd.
//!
//! [`Reader::read`] hands flows over one at a time, as they come, each as JSON text that nobody has
//! checked yet. [`Reader::read_batches`] makes batches of them, in blocks of about a mebibyte that
//! are cut by content alone: the same file gives the same batches again. Whatever the format, the
//! service's decoder decides what is a flow.

mod apps;
mod batches;
mod compression;
mod csv;
mod flows;
mod json;
mod lines;
mod ndjson;
mod pause;
mod records;
mod sniff;
mod vpc_flow_logs;
mod window;

pub use apps::Apps;
pub(crate) use batches::GIVE_AGAIN;
pub use batches::{Part, Refused};
pub use compression::begins_compressed;
pub use flows::{Line, Record, first_to_json, to_json};
pub use pause::{Quiet, Stopped};
pub use vpc_flow_logs::Count;

use std::fmt;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::sync::Arc;

use compression::Decompressed;
pub use flow::HourLimit;
use flow::decode::Format;
use vpc_flow_logs::FlowLogs;
use window::{Pace, Tail, Window};

const ARRAY_GROWS: &str = "--growing is for NDJSON, CSV and flow logs, which grow by lines; an array is read without \
    it, once it is complete";
/// Of a header that ends with the file.
const MAY_BE_CUT: &str = "the file ends within this line, so it may be cut: read it when it is complete, or with --growing";
/// What some editors put before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// How flows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputFormat {
    /// One array of flows.
    Json,
    /// A flow a line.
    Ndjson,
    /// A header with the six names, in any order, then a flow a line.
    Csv,
    /// A header with names of AWS's, in any order, then a record a line; without a header, records
    /// of version 2.
    VpcFlowLogs,
}

/// Where in an input something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Counted from 0.
    Flow(u64),
    /// Counted from 1.
    Line(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Flow(number) => write!(f, "flow {number}"),
            Place::Line(number) => write!(f, "line {number}"),
        }
    }
}

/// One flow of an input, not checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit<'a> {
    pub place: Place,
    /// Its JSON text; what there is of it, where there is a fault.
    pub text: &'a str,
    /// Why it is not a flow, where that shows already.
    pub fault: Option<Fault>,
}

/// Why something is not a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Why it cannot be read.
    Wrong(String),
    /// It can be, and says that nothing went over the line.
    NoTraffic(NoTraffic),
}

/// Why a record of a flow log stands for no traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTraffic {
    /// There was none.
    NoData,
    /// AWS recorded none, for lack of capacity or by an error of its own.
    SkipData,
    /// It was not let through.
    Reject,
    /// There was, and the record made at the other end counts.
    OtherEnd,
}

/// How many records were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    pub no_data: u64,
    pub skip_data: u64,
    pub reject: u64,
    pub other_end: u64,
}

impl Skipped {
    pub fn count(&mut self, why: NoTraffic) {
        match why {
            NoTraffic::NoData => self.no_data += 1,
            NoTraffic::SkipData => self.skip_data += 1,
            NoTraffic::Reject => self.reject += 1,
            NoTraffic::OtherEnd => self.other_end += 1,
        }
    }

    pub fn add(&mut self, other: Skipped) {
        self.no_data += other.no_data;
        self.skip_data += other.skip_data;
        self.reject += other.reject;
        self.other_end += other.other_end;
    }

    /// Those that stand for no traffic.
    pub fn without_traffic(&self) -> u64 {
        self.no_data + self.skip_data + self.reject
    }
}

/// Why the rest of an input cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Malformed(String),
}

/// Reads flows from `R`.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    format: Option<InputFormat>,
    flow_logs: FlowLogs,
    hour_limit: Option<HourLimit>,
    is_growing: bool,
    has_lines: bool,
}

/// Takes what is read.
trait Sink {
    /// One flow.
    fn flow(&mut self, unit: Unit<'_>) -> ControlFlow<()>;

    /// The text of the record that the next flow, or the next that is left out, is made of.
    fn text(&mut self, _text: Text<'_>) {}

    /// Something that is none.
    fn refused(&mut self, refused: Refused) -> ControlFlow<()> {
        self.flow(Unit {
            place: refused.place,
            text: &refused.text,
            fault: Some(Fault::Wrong(refused.why)),
        })
    }

    /// Many flows at once: an array or lines, which may turn out not to be. Returns how many there
    /// were, or `None` for those that it wants one by one.
    fn block(&mut self, _block: Block<'_>) -> ControlFlow<(), Option<u64>> {
        ControlFlow::Continue(None)
    }
}

/// The text of a record.
#[derive(Clone, Copy, Debug, Default)]
struct Text<'a> {
    text: &'a str,
    /// Where its last field begins.
    last_field: usize,
    /// Its last field cannot be the beginning of a longer one.
    last_is_whole: bool,
    /// It tells the record from others, rather than the flow that is made of it.
    is_content: bool,
}

/// How an input ends.
#[derive(Clone, Copy, Debug, Default)]
struct End {
    /// Without the end of a line, so that more of it may come some day.
    is_within_a_line: bool,
    is_compressed: bool,
}

/// A stretch of an input, as the body of a request has it.
struct Block<'a> {
    text: &'a [u8],
    format: Format,
    /// Its first flow, or line.
    first: Place,
}

impl<R: Read> Reader<R> {
    /// Without a `format`, the beginning tells: `[` is JSON, `{` NDJSON, a flow log's header a flow
    /// log, anything else CSV.
    pub fn new(input: R, format: Option<InputFormat>) -> Reader<R> {
        Reader {
            input,
            format,
            flow_logs: FlowLogs::default(),
            hour_limit: None,
            is_growing: false,
            has_lines: false,
        }
    }

    /// Has addresses in flow logs replaced by the names of these applications.
    pub fn with_apps(mut self, apps: Arc<Apps>) -> Reader<R> {
        self.flow_logs.apps = apps;
        self
    }

    /// Has only those records of flow logs counted that were made at this end of a conversation.
    pub fn with_count(mut self, count: Count) -> Reader<R> {
        self.flow_logs.count = count;
        self
    }

    /// Has `warn` told, at most once, where sums may not be what was meant.
    pub fn with_warning(mut self, warn: impl Fn(&str) + Send + 'static) -> Reader<R> {
        self.flow_logs.warn = Some(Box::new(warn));
        self
    }

    /// Has [`Reader::read_batches`] refuse flows of later hours.
    pub fn with_hour_limit(self, hour_limit: Option<HourLimit>) -> Reader<R> {
        Reader { hour_limit, ..self }
    }

    /// Has a last line that has no end left unread, where more of it is still to be written.
    pub fn with_growing(self, is_growing: bool) -> Reader<R> {
        Reader { is_growing, ..self }
    }

    /// Has an array on each line refused, as lines of NDJSON are, rather than read as arrays one after the other.
    pub fn with_lines(self, has_lines: bool) -> Reader<R> {
        Reader { has_lines, ..self }
    }

    /// Hands every flow to `each` as soon as it comes, until that breaks.
    ///
    /// # Errors
    /// Where the rest cannot be read. What came before has been handed over.
    pub fn read(self, each: impl FnMut(Unit<'_>) -> ControlFlow<()>) -> Result<(), InputError> {
        struct OneByOne<F>(F);
        impl<F: FnMut(Unit<'_>) -> ControlFlow<()>> Sink for OneByOne<F> {
            fn flow(&mut self, unit: Unit<'_>) -> ControlFlow<()> {
                self.0(unit)
            }
        }
        self.read_into(Pace::AsItComes, &mut OneByOne(each))
            .map(drop)
    }

    fn read_into(self, pace: Pace, sink: &mut dyn Sink) -> Result<End, InputError> {
        let input = Decompressed::new(self.input)?;
        let is_compressed = !matches!(input, Decompressed::Plain(_));
        let (input, last_byte) = Tail::new(input);
        let mut window = Window::new(input, pace);
        let (mut sniffed, line) = sniff::sniff(&mut window)?;
        if self.has_lines && sniff::is_array_a_line(window.text()) {
            sniffed = InputFormat::Ndjson;
        }
        // What told the format is looked at before more is waited for.
        window.keep_what_is_here();
        let format = self.format.unwrap_or(sniffed);
        if self.is_growing {
            if format == InputFormat::Json {
                return Err(InputError::Malformed(ARRAY_GROWS.into()));
            }
            window.leave_unfinished_line();
            if window.text().is_empty() && window.has_ended() {
                return Ok(End::default());
            }
        }
        match format {
            InputFormat::Json => json::read(window, line, sink)?,
            InputFormat::Ndjson => ndjson::read(window, line, sink)?,
            InputFormat::Csv => csv::read(window, line, sink)?,
            InputFormat::VpcFlowLogs => vpc_flow_logs::read(window, line, &self.flow_logs, sink)?,
        }
        let is_ended = matches!(last_byte.get(), None | Some(b'\n' | b'\r'));
        Ok(End {
            is_within_a_line: !is_ended && format != InputFormat::Json && !self.is_growing,
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

/// How many lines end in `text`.
fn newlines(text: &[u8]) -> u64 {
    // In chunks that a byte can count, so that it is done sixteen bytes at a time.
    let count = |chunk: &[u8]| chunk.iter().map(|&b| u8::from(b == b'\n')).sum::<u8>();
    text.chunks(255).map(|chunk| u64::from(count(chunk))).sum()
}

#[cfg(test)]
mod cuts;
#[cfg(test)]
mod seams;
#[cfg(test)]
mod tests;
