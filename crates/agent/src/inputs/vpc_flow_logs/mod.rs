//! AWS VPC Flow Logs as text: versions 2 to 5 and later, with fields in any order, according to the header
//! that AWS writes at the start of each file. A file that starts with a digit has no header and the default
//! fields of version 2, or those that are given.
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

mod header;

use std::borrow::Cow;
use std::io::Read;
use std::net::IpAddr;
use std::ops::ControlFlow;

use super::pause::Stopped;
use super::traffic::{
    COUNT_ONE_END, Count, Direction, End, Ends, Traffic, TrafficOptions, hour_of,
};
use super::window::Window;
use super::{
    Apps, InputError, Location, MAY_BE_CUT, RawFlow, RecordText, Sink, SkipReason, Unusable, lines,
};
use header::{Columns, Field, bare, header_in, last_header};

pub(super) use header::begins_with;
pub use header::is_read;

/// No value is a prefix of another.
const FIXED_WORDS: [&str; 8] = [
    "-", "OK", "NODATA", "SKIPDATA", "ACCEPT", "REJECT", "ingress", "egress",
];
/// The remedy if both ends count, and cannot be distinguished.
const NO_DIRECTION: &str = "without flow-direction, its ends cannot be distinguished: add that field to the flow log, or \
                            read the logs of one end only";

/// Reads from line `line` on.
pub(super) fn read(
    window: Window<impl Read>,
    line: u64,
    options: &TrafficOptions,
    sink: &mut dyn Sink,
) -> Result<(), InputError> {
    let mut log = Log {
        options,
        columns: None,
        ends: Ends::default(),
        json: String::new(),
    };
    if let Some(fields) = &options.fields {
        let columns = Columns::read(&fields.names);
        let columns = columns.and_then(|columns| validate(columns, options.count));
        let wrong = |why| InputError::Malformed(format!("{}: {why}", fields.origin));
        let columns = columns.map_err(wrong);
        log.columns = Some(columns?);
    }
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
    options: &'a TrafficOptions,
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
        let count = self.options.count;
        let counted = read.and_then(|traffic| {
            let validated = count.validate(traffic.direction, Field::FlowDirection.name());
            validated.map(|()| traffic)
        });
        let raw = match counted {
            Ok(traffic) => {
                if count == Count::Both && self.ends.notice(&traffic) {
                    let remedy = match traffic.direction {
                        Some(_) => COUNT_ONE_END,
                        None => NO_DIRECTION,
                    };
                    self.options.warn(&traffic, Location::Line(line), remedy);
                }
                self.json.clear();
                traffic.write_json(&mut self.json);
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
        let columns = columns.and_then(|columns| validate(columns, self.options.count));
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

/// Whether the fields are sufficient to select the records of one end.
fn validate(columns: Columns, count: Count) -> Result<Columns, String> {
    match columns.at(Field::FlowDirection) {
        None if count != Count::Both => Err(format!(
            "it has no flow-direction, so the end at which a record was made is unknown, and --count {} \
             cannot be applied; add that field to the flow log, or read the logs of one end only, without \
             --count",
            count.name()
        )),
        _ => Ok(columns),
    }
}

impl<'a> LogRecord<'a> {
    fn flow(&self, options: &'a TrafficOptions) -> Result<Traffic<'a>, Unusable> {
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

    fn read(&self, options: &'a TrafficOptions) -> Result<Traffic<'a>, String> {
        let source = self.end(&options.apps, Field::PktSrcAddr, Field::SrcAddr)?;
        let destination = self.end(&options.apps, Field::PktDstAddr, Field::DstAddr)?;
        let bytes = self.number(Field::Bytes)?;
        let hour = hour_of(self.number(Field::Start)?, Field::Start.name())?;
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
        Ok(Traffic {
            source,
            destination,
            bytes,
            bytes_back: 0,
            hour,
            vpc_id: self.get(Field::VpcId).unwrap_or_default().into(),
            direction,
            interface: self.get(Field::InterfaceId).unwrap_or_default().into(),
        })
    }

    /// An endpoint with its application, or its address in canonical form.
    fn end(&self, apps: &'a Apps, end: Field, or: Field) -> Result<End<'a>, String> {
        let (field, text) = match self.get(end) {
            Some(text) => (end, text),
            None => (or, self.get(or).unwrap_or("-")),
        };
        let address: IpAddr = text
            .parse()
            .map_err(|_| format!("{}: {text:?} is not an address", field.name()))?;
        // IPv4 addresses have only one notation.
        let name = address.is_ipv4().then_some(Cow::Borrowed(text));
        Ok(End::named(address, apps, name))
    }

    fn number(&self, field: Field) -> Result<u64, String> {
        let text = self.get(field).unwrap_or("-");
        text.parse()
            .map_err(|_| format!("{}: {text:?} is not a number", field.name()))
    }
}

#[cfg(test)]
mod tests;
