//! AWS VPC Flow Logs as text: versions 2 to 5 and later, with fields in any order, according to the header
//! that AWS writes at the start of each file. A file that starts with a digit has no header and the default
//! fields of version 2.
//!
//! How the fields of a flow are derived from a record:
//!
//! | flow | record |
//! |---|---|
//! | `hour` | `start` / 3600: hours since the epoch |
//! | `vpc_id` | `vpc-id`; empty if there is none |
//! | source, destination | `pkt-srcaddr`, `pkt-dstaddr`, the original endpoints; if absent, `srcaddr`, `dstaddr` |
//! | `src_app`, `dest_app` | source and destination; swapped if `flow-direction` is `ingress` |
//! | `bytes_tx` | `bytes`; 0 if `flow-direction` is `ingress` |
//! | `bytes_rx` | 0; `bytes` if `flow-direction` is `ingress` |
//!
//! So the instance that owns the network interface comes first, and its incoming bytes are `bytes_rx`. An
//! address is replaced by its application in [`Apps`], or else written in canonical form: IPv6 as in RFC
//! 5952, and IPv4-mapped IPv6 as IPv4. Records with `NODATA`, `SKIPDATA` or `REJECT` represent no traffic.
//! AWS writes `-` for a missing value. The timestamp that CloudWatch puts before each record is ignored.
//!
//! Files may be concatenated, so a header may occur again, with fields in another order, and on the same line
//! after a record if the previous file did not end with a line break. Every line that is not a record is
//! checked for a header, so no record is read by the fields of another file.

mod ends;
mod header;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::Read;
use std::net::IpAddr;
use std::ops::{ControlFlow, Range};

use super::pause::Stopped;
use super::window::Window;
use super::{
    Apps, InputError, Location, MAY_BE_CUT, RawFlow, RecordText, Sink, SkipReason, Unusable, lines,
    push_json_string,
};
use ends::Ends;
use header::{Columns, Field, bare, header_in, last_header};

pub(crate) use ends::Count;
pub(super) use ends::FlowLogs;
pub(super) use header::begins_with;

const SECONDS_PER_HOUR: u64 = 3600;
/// No value is a prefix of another.
const FIXED_WORDS: [&str; 8] = [
    "-", "OK", "NODATA", "SKIPDATA", "ACCEPT", "REJECT", "ingress", "egress",
];
/// From 2000 to 2100 (exclusive), which excludes milliseconds and includes every record of AWS.
const START_SECONDS: Range<u64> = 946_684_800..4_102_444_800;

/// Reads from line `line` on.
pub(super) fn read(
    window: Window<impl Read>,
    line: u64,
    options: &FlowLogs,
    sink: &mut dyn Sink,
) -> Result<(), InputError> {
    let mut log = Log {
        options,
        columns: None,
        ends: Ends::default(),
        json: String::new(),
    };
    let read = lines::read(window, line, sink, |text, line, sink| {
        for (number, record) in (line..).zip(text.split(|&byte| byte == b'\n')) {
            let record = String::from_utf8_lossy(record);
            let taken = log.read_line(bare(&record), number, sink);
            let is_cut = log.columns.is_none() && !text.contains(&b'\n');
            let taken = taken.map_err(|error| match error {
                InputError::Malformed(why) if is_cut => {
                    InputError::Malformed(format!("{why}; {MAY_BE_CUT}"))
                }
                error => error,
            });
            if taken?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    });
    read.map_err(|mut error| {
        if let (InputError::Io(error), Some(columns)) = (&mut error, &log.columns) {
            Stopped::prepend_header(error, &columns.names.join(" "));
        }
        error
    })
}

/// A log that is being read.
struct Log<'a> {
    options: &'a FlowLogs,
    /// `None` before the first line.
    columns: Option<Columns>,
    ends: Ends,
    /// The last flow.
    json: String,
}

/// Whether a line that is not a record is a header in another notation: in upper case, quoted, or as a format
/// string.
fn is_like_a_header(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    ["srcaddr", "src_addr", "src-addr"]
        .iter()
        .any(|name| line.contains(name))
}

impl Log<'_> {
    fn read_line(
        &mut self,
        text: &str,
        line: u64,
        sink: &mut dyn Sink,
    ) -> Result<ControlFlow<()>, InputError> {
        if text.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let Some(columns) = &self.columns else {
            return self.read_first_line(text, line, sink);
        };
        let mut words = Vec::with_capacity(columns.names.len());
        words.extend(text.split_ascii_whitespace());
        let record = LogRecord {
            columns,
            words: &words,
        };
        let read = record.flow(self.options);
        let is_flow = read.is_ok();
        let counted =
            read.and_then(|flow| self.options.count.validate(flow.direction).map(|()| flow));
        let raw = match counted {
            Ok(flow) => {
                if self.options.count == Count::Both && self.ends.notice(&flow) {
                    self.options.warn(&flow, line);
                }
                self.json.clear();
                flow.write_json(&mut self.json);
                RawFlow {
                    location: Location::Line(line),
                    text: &self.json,
                    unusable: None,
                }
            }
            Err(unusable) => {
                if let (Unusable::Invalid(_), Some(begin)) = (&unusable, header_in(text)) {
                    return self.read_header(text, begin, line, sink);
                }
                // An unusable header. The following records must not be read by the previous fields.
                if matches!(unusable, Unusable::Invalid(_)) && is_like_a_header(text) {
                    self.set_columns(Columns::read(text), line)?;
                    return Ok(ControlFlow::Continue(()));
                }
                RawFlow {
                    location: Location::Line(line),
                    text,
                    unusable: Some(unusable),
                }
            }
        };
        if is_flow {
            // Blanks and tabs are equivalent separators.
            let is_normal = !text.contains('\t') && !text.contains("  ");
            let text = match is_normal {
                true => Cow::Borrowed(text),
                false => Cow::Owned(words.join(" ")),
            };
            sink.text(RecordText {
                text: &text,
                last_field: text.rfind(' ').map_or(0, |at| at + 1),
                last_is_whole: words.last().is_some_and(|word| FIXED_WORDS.contains(word)),
                is_content: true,
                last_column: None,
            });
        }
        Ok(sink.flow(raw))
    }

    /// The first line that is not blank: a header, or a record of a log without one.
    fn read_first_line(
        &mut self,
        text: &str,
        line: u64,
        sink: &mut dyn Sink,
    ) -> Result<ControlFlow<()>, InputError> {
        match header_in(text) {
            Some(begin) => self.read_header(text, begin, line, sink),
            None if text.starts_with(|c: char| c.is_ascii_digit()) => {
                self.set_columns(Columns::assumed(), line)?;
                self.read_line(text, line, sink)
            }
            None => {
                self.set_columns(Columns::read(text), line)?;
                Ok(ControlFlow::Continue(()))
            }
        }
    }

    /// The text before a header on its line is a record with the previous fields.
    fn read_header(
        &mut self,
        text: &str,
        begin: usize,
        line: u64,
        sink: &mut dyn Sink,
    ) -> Result<ControlFlow<()>, InputError> {
        let before = bare(&text[..begin]);
        let step = match before {
            "" => ControlFlow::Continue(()),
            _ => {
                if self.columns.is_none() {
                    self.set_columns(Columns::assumed(), line)?;
                }
                self.read_line(before, line, sink)?
            }
        };
        let header = &text[begin..];
        self.set_columns(Columns::read(&header[last_header(header)..]), line)?;
        Ok(step)
    }

    /// Switches to the fields of a header.
    fn set_columns(
        &mut self,
        columns: Result<Columns, String>,
        line: u64,
    ) -> Result<(), InputError> {
        let columns = columns.and_then(|columns| self.options.validate(columns));
        let wrong =
            |why| InputError::Malformed(format!("line {line}: read as VPC flow logs, {why}"));
        self.columns = Some(columns.map_err(wrong)?);
        Ok(())
    }
}

/// One record, which may have too few or too many fields.
struct LogRecord<'a> {
    columns: &'a Columns,
    words: &'a [&'a str],
}

/// The content of a record.
struct Flow<'a> {
    /// The original endpoints, each with its application or its address as text.
    source: (IpAddr, Cow<'a, str>),
    destination: (IpAddr, Cow<'a, str>),
    bytes: u64,
    hour: u64,
    vpc_id: &'a str,
    direction: Option<Direction>,
    interface: &'a str,
}

/// From the point of view of the network interface.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Direction {
    Ingress,
    Egress,
}

impl<'a> LogRecord<'a> {
    fn flow(&self, options: &'a FlowLogs) -> Result<Flow<'a>, Unusable> {
        self.validate_fields().map_err(Unusable::Invalid)?;
        self.validate_traffic()?;
        self.read(options).map_err(Unusable::Invalid)
    }

    fn validate_fields(&self) -> Result<(), String> {
        let (columns, words) = (self.columns, self.words);
        if columns.are_assumed && words[0] != "2" {
            return Err(format!(
                "version: {:?} is not 2, the only version that can be read without a header: put \
                 the header first",
                words[0]
            ));
        }
        match columns.names.get(words.len()) {
            Some(missing) => Err(format!(
                "{missing}: missing, the record has {} fields and the header {}",
                words.len(),
                columns.names.len()
            )),
            None if words.len() > columns.names.len() => Err(format!(
                "{} fields, but the header has {}",
                words.len(),
                columns.names.len()
            )),
            None => Ok(()),
        }
    }

    /// `None` if the log has no such field, or the record has no value.
    fn get(&self, field: Field) -> Option<&'a str> {
        let word = self.words[self.columns.at(field)?];
        (word != "-").then_some(word)
    }
    fn validate_traffic(&self) -> Result<(), Unusable> {
        let wrong = |field: Field, value: &str, known: &str| {
            Unusable::Invalid(format!("{}: {value:?} is not {known}", field.name()))
        };
        match self.get(Field::LogStatus) {
            Some("OK") => {}
            // In a log without this field, a record without traffic has no values.
            None if self.get(Field::Bytes).is_some() || self.get(Field::SrcAddr).is_some() => {}
            None | Some("NODATA") => return Err(Unusable::Skipped(SkipReason::NoData)),
            Some("SKIPDATA") => return Err(Unusable::Skipped(SkipReason::SkipData)),
            Some(value) => {
                return Err(wrong(Field::LogStatus, value, "OK, NODATA or SKIPDATA"));
            }
        }
        match self.get(Field::Action) {
            Some("ACCEPT") | None => Ok(()),
            Some("REJECT") => Err(Unusable::Skipped(SkipReason::Reject)),
            Some(value) => Err(wrong(Field::Action, value, "ACCEPT or REJECT")),
        }
    }

    fn read(&self, options: &'a FlowLogs) -> Result<Flow<'a>, String> {
        let source = self.end(&options.apps, Field::PktSrcAddr, Field::SrcAddr)?;
        let destination = self.end(&options.apps, Field::PktDstAddr, Field::DstAddr)?;
        let bytes = self.number(Field::Bytes)?;
        let start = self.number(Field::Start)?;
        if !START_SECONDS.contains(&start) {
            return Err(format!(
                "start: {start} is not a time from 2000 to 2099 in seconds since 1970"
            ));
        }
        let direction = match self.get(Field::FlowDirection) {
            None => None,
            Some("egress") => Some(Direction::Egress),
            Some("ingress") => Some(Direction::Ingress),
            Some(value) => {
                return Err(format!(
                    "flow-direction: {value:?} is neither ingress nor egress"
                ));
            }
        };
        Ok(Flow {
            source,
            destination,
            bytes,
            hour: start / SECONDS_PER_HOUR,
            vpc_id: self.get(Field::VpcId).unwrap_or_default(),
            direction,
            interface: self.get(Field::InterfaceId).unwrap_or_default(),
        })
    }

    /// An endpoint with its application, or its address in canonical form.
    fn end(&self, apps: &'a Apps, end: Field, or: Field) -> Result<(IpAddr, Cow<'a, str>), String> {
        let (field, text) = match self.get(end) {
            Some(text) => (end, text),
            None => (or, self.get(or).unwrap_or("-")),
        };
        let address: IpAddr = text
            .parse()
            .map_err(|_| format!("{}: {text:?} is not an address", field.name()))?;
        let name = match (apps.of(address), address) {
            (Some(app), _) => Cow::Borrowed(app),
            // IPv4 addresses have only one notation.
            (None, IpAddr::V4(_)) => Cow::Borrowed(text),
            (None, IpAddr::V6(_)) => Cow::Owned(address.to_canonical().to_string()),
        };
        Ok((address.to_canonical(), name))
    }

    fn number(&self, field: Field) -> Result<u64, String> {
        let text = self.get(field).unwrap_or("-");
        text.parse()
            .map_err(|_| format!("{}: {text:?} is not a number", field.name()))
    }
}

impl Count {
    /// Whether records of this direction count.
    fn validate(self, direction: Option<Direction>) -> Result<(), Unusable> {
        match (self, direction) {
            (Count::Sender, Some(Direction::Ingress))
            | (Count::Receiver, Some(Direction::Egress)) => {
                Err(Unusable::Skipped(SkipReason::OtherEnd))
            }
            (Count::Sender | Count::Receiver, None) => Err(Unusable::Invalid(format!(
                "flow-direction: missing, and required for --count {}",
                self.name()
            ))),
            _ => Ok(()),
        }
    }
}

impl Flow<'_> {
    /// Appends it as JSON; the instance that owns the interface comes first.
    fn write_json(&self, text: &mut String) {
        let (source, destination) = (&self.source.1, &self.destination.1);
        let (apps, [tx, rx]) = match self.direction {
            Some(Direction::Egress) | None => ([source, destination], [self.bytes, 0]),
            Some(Direction::Ingress) => ([destination, source], [0, self.bytes]),
        };
        text.push_str("{\"src_app\":");
        push_json_string(text, apps[0]);
        text.push_str(",\"dest_app\":");
        push_json_string(text, apps[1]);
        text.push_str(",\"vpc_id\":");
        push_json_string(text, self.vpc_id);
        let hour = self.hour;
        let _infallible = write!(
            text,
            ",\"bytes_tx\":{tx},\"bytes_rx\":{rx},\"hour\":{hour}}}"
        );
    }
}

#[cfg(test)]
mod tests;
