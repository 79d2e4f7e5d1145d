//! AWS VPC Flow Logs as text: version 2 to 5 and later, with their fields in any order, by the header
//! line that AWS writes at the top of each file. A file that begins with a digit has none, and the
//! default fields of version 2.
//!
//! What a flow takes from a record:
//!
//! | flow | record |
//! |---|---|
//! | `hour` | `start` / 3600: hours since the epoch |
//! | `vpc_id` | `vpc-id`; empty where there is none |
//! | source, destination | `pkt-srcaddr`, `pkt-dstaddr`, the ends of the way; where there is none of these, `srcaddr`, `dstaddr` |
//! | `src_app`, `dest_app` | source and destination; the other way round where `flow-direction` is `ingress` |
//! | `bytes_tx` | `bytes`; 0 where `flow-direction` is `ingress` |
//! | `bytes_rx` | 0; `bytes` where `flow-direction` is `ingress` |
//!
//! So the instance whose interface it is comes first, and what arrived there is what it received. An
//! address becomes the application that [`Apps`] has for it, or stays as it is. Records with `NODATA`,
//! `SKIPDATA` or `REJECT` stand for no traffic. `-` is AWS's way to write that there is no value.

use std::fmt::Write as _;
use std::io::Read;
use std::net::IpAddr;
use std::ops::{ControlFlow, Range};

use super::window::Window;
use super::{Apps, Fault, InputError, NoTraffic, Place, Sink, Unit, lines, push_json_string};

const DEFAULT_HEADER: &str = "version account-id interface-id srcaddr dstaddr srcport dstport \
                              protocol packets bytes start end action log-status";

const SECONDS_PER_HOUR: u64 = 3600;
/// From 2000 up to but without 2100: milliseconds are not in there, and no record of AWS's is elsewhere.
const START_SECONDS: Range<u64> = 946_684_800..4_102_444_800;

/// The fields of a record that matter here.
#[derive(Clone, Copy, PartialEq)]
enum Field {
    SrcAddr,
    DstAddr,
    PktSrcAddr,
    PktDstAddr,
    Bytes,
    Start,
    VpcId,
    FlowDirection,
    Action,
    LogStatus,
}

impl Field {
    const ALL: [Field; 10] = [
        Field::SrcAddr,
        Field::DstAddr,
        Field::PktSrcAddr,
        Field::PktDstAddr,
        Field::Bytes,
        Field::Start,
        Field::VpcId,
        Field::FlowDirection,
        Field::Action,
        Field::LogStatus,
    ];

    const fn name(self) -> &'static str {
        match self {
            Field::SrcAddr => "srcaddr",
            Field::DstAddr => "dstaddr",
            Field::PktSrcAddr => "pkt-srcaddr",
            Field::PktDstAddr => "pkt-dstaddr",
            Field::Bytes => "bytes",
            Field::Start => "start",
            Field::VpcId => "vpc-id",
            Field::FlowDirection => "flow-direction",
            Field::Action => "action",
            Field::LogStatus => "log-status",
        }
    }
}

/// Reads from `line` on. A header may come again: files are put one after the other.
pub(super) fn read(
    window: Window<impl Read>,
    line: u64,
    apps: &Apps,
    sink: &mut dyn Sink,
) -> Result<(), InputError> {
    let mut columns = None;
    let mut json = String::new();
    lines::read(window, line, sink, |text, line, sink| {
        for (number, record) in (line..).zip(text.split(|&byte| byte == b'\n')) {
            let record = String::from_utf8_lossy(record);
            let record = record.trim();
            if record.is_empty() {
                continue;
            }
            sink.line(record);
            let columns = match &mut columns {
                Some(columns) if !is_header(record) => columns,
                columns => {
                    let has_header = !begins_with_a_digit(record);
                    let header = if has_header { record } else { DEFAULT_HEADER };
                    let header = Columns::read(header).map_err(|why| {
                        InputError::Malformed(format!(
                            "line {number}: read as VPC flow logs, {why}"
                        ))
                    })?;
                    let header = columns.insert(header);
                    if has_header {
                        continue;
                    }
                    header
                }
            };
            json.clear();
            let fault = columns.write_json(record, apps, &mut json).err();
            let unit = Unit {
                place: Place::Line(number),
                text: if fault.is_some() { record } else { &json },
                fault,
            };
            if sink.flow(unit).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// Whether `line` is where a flow log begins; one that has no header cannot be told.
pub(super) fn begins_with(line: &str) -> bool {
    line.starts_with("version ") || !line.contains(',') && is_header(line)
}

/// Every header has this in it, or `pkt-srcaddr`, and no record has. No name begins with a digit.
fn is_header(line: &str) -> bool {
    !begins_with_a_digit(line) && line.contains(Field::SrcAddr.name())
}

fn begins_with_a_digit(line: &str) -> bool {
    line.starts_with(|c: char| c.is_ascii_digit())
}

/// Which field is where.
struct Columns {
    /// As in the header, to name what is missing.
    names: Vec<String>,
    at: [Option<usize>; Field::ALL.len()],
}

impl Columns {
    fn read(header: &str) -> Result<Columns, String> {
        let names: Vec<String> = header.split_whitespace().map(str::to_owned).collect();
        let place = |name: &str| names.iter().position(|n| n == name);
        let at = Field::ALL.map(|field| place(field.name()));
        let has = |field: Field| at[field as usize].is_some();
        for (field, or) in [
            (Field::SrcAddr, Field::PktSrcAddr),
            (Field::DstAddr, Field::PktDstAddr),
            (Field::Bytes, Field::Bytes),
            (Field::Start, Field::Start),
        ] {
            if !has(field) && !has(or) {
                return Err(format!(
                    "its header has no {}; the flow log's format has to have srcaddr, dstaddr, bytes \
                     and start, and the header comes first",
                    field.name()
                ));
            }
        }
        let count = |field: &Field| names.iter().filter(|&name| name == field.name()).count();
        match Field::ALL.iter().find(|field| count(field) > 1) {
            Some(twice) => Err(format!("its header has {} twice", twice.name())),
            None => Ok(Columns { names, at }),
        }
    }

    /// Appends the flow of a record.
    fn write_json(&self, record: &str, apps: &Apps, text: &mut String) -> Result<(), Fault> {
        let mut words = Vec::with_capacity(self.names.len());
        words.extend(record.split_ascii_whitespace());
        match self.names.get(words.len()) {
            Some(missing) => {
                return Err(Fault::Wrong(format!(
                    "{missing}: missing, the record has {} fields and the header {}",
                    words.len(),
                    self.names.len()
                )));
            }
            None if words.len() > self.names.len() => {
                return Err(Fault::Wrong(format!(
                    "{} fields, where the header has {}",
                    words.len(),
                    self.names.len()
                )));
            }
            None => {}
        }
        let record = Record {
            columns: self,
            words: &words,
        };
        record.check_traffic()?;
        record.write_json(apps, text).map_err(Fault::Wrong)
    }
}

/// One record of the right length.
struct Record<'a> {
    columns: &'a Columns,
    words: &'a [&'a str],
}

impl<'a> Record<'a> {
    /// `None` where the log has no such field, or the record no value.
    fn get(&self, field: Field) -> Option<&'a str> {
        let word = self.words[self.columns.at[field as usize]?];
        (word != "-").then_some(word)
    }

    fn check_traffic(&self) -> Result<(), Fault> {
        let wrong = |field: Field, value: &str, known: &str| {
            Fault::Wrong(format!("{}: {value:?} is not {known}", field.name()))
        };
        match self.get(Field::LogStatus) {
            Some("OK") => {}
            // A log without this field says it by having no values.
            None if self.get(Field::Bytes).is_some() || self.get(Field::SrcAddr).is_some() => {}
            None | Some("NODATA") => return Err(Fault::NoTraffic(NoTraffic::NoData)),
            Some("SKIPDATA") => return Err(Fault::NoTraffic(NoTraffic::SkipData)),
            Some(value) => {
                return Err(wrong(Field::LogStatus, value, "OK, NODATA or SKIPDATA"));
            }
        }
        match self.get(Field::Action) {
            Some("ACCEPT") | None => Ok(()),
            Some("REJECT") => Err(Fault::NoTraffic(NoTraffic::Reject)),
            Some(value) => Err(wrong(Field::Action, value, "ACCEPT or REJECT")),
        }
    }

    fn write_json(&self, apps: &Apps, text: &mut String) -> Result<(), String> {
        let source = self.app(apps, Field::PktSrcAddr, Field::SrcAddr)?;
        let destination = self.app(apps, Field::PktDstAddr, Field::DstAddr)?;
        let bytes = self.number(Field::Bytes)?;
        let start = self.number(Field::Start)?;
        if !START_SECONDS.contains(&start) {
            return Err(format!(
                "start: {start} is not a time from 2000 to 2099 in seconds since 1970"
            ));
        }
        let hour = start / SECONDS_PER_HOUR;
        let (apps, [tx, rx]) = match self.get(Field::FlowDirection) {
            Some("egress") | None => ([source, destination], [bytes, 0]),
            Some("ingress") => ([destination, source], [0, bytes]),
            Some(value) => {
                return Err(format!(
                    "flow-direction: {value:?} is neither ingress nor egress"
                ));
            }
        };
        text.push_str("{\"src_app\":");
        push_json_string(text, apps[0]);
        text.push_str(",\"dest_app\":");
        push_json_string(text, apps[1]);
        text.push_str(",\"vpc_id\":");
        push_json_string(text, self.get(Field::VpcId).unwrap_or_default());
        write!(
            text,
            ",\"bytes_tx\":{tx},\"bytes_rx\":{rx},\"hour\":{hour}}}"
        )
        .map_err(|e| e.to_string()) // never: it is a String
    }

    /// The application at the end of the way, or its address.
    fn app<'b>(&self, apps: &'b Apps, end: Field, or: Field) -> Result<&'b str, String>
    where
        'a: 'b,
    {
        let (field, text) = match self.get(end) {
            Some(text) => (end, text),
            None => (or, self.get(or).unwrap_or("-")),
        };
        let address: IpAddr = text
            .parse()
            .map_err(|_| format!("{}: {text:?} is not an address", field.name()))?;
        Ok(apps.of(address).unwrap_or(text))
    }

    fn number(&self, field: Field) -> Result<u64, String> {
        let text = self.get(field).unwrap_or("-");
        text.parse()
            .map_err(|_| format!("{}: {text:?} is not a number", field.name()))
    }
}

#[cfg(test)]
mod tests;
