//! Records of other programs that are JSON objects, one a line or in arrays: those of goflow2, of Akvorado, and Google
//! Cloud's VPC flow logs.
//!
//! How the fields of a flow are derived from a record:
//!
//! | flow | goflow2 | Akvorado | Google Cloud |
//! |---|---|---|---|
//! | `hour` | `time_flow_start_ns` | `TimeReceived` | `start_time` |
//! | source, destination | `src_addr`, `dst_addr` | `SrcAddr`, `DstAddr` | `connection` |
//! | bytes | `bytes` × `sampling_rate` | `Bytes` × `SamplingRate` | `bytes_sent`, which is scaled already |
//! | `vpc_id` | empty | empty | `src_vpc` or `dest_vpc`, that of the reporter |
//! | names, unless in `--apps` | addresses | addresses | Kubernetes workload, instance, or address |
//! | reporter comes first | | | `reporter` |
//!
//! goflow2 has other names for its fields before version 2 (`TimeFlowStart`, `SrcAddr`); both are read. Numbers may be
//! strings, as in the JSON of protobuf and of ClickHouse.

mod akvorado;
mod fields;
mod gcp;
mod goflow2;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::fmt;
use std::io::Read;
use std::ops::ControlFlow;

use serde::de::{DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use flow::decode::{self, lookalikes};

use super::documents::{DocumentEnd, Documents};
use super::traffic::{COUNT_ONE_END, Count, Ends, Traffic, TrafficOptions};
use super::window::Window;
use super::{
    Apps, BYTE_ORDER_MARK, InputError, InputFormat, Location, RawFlow, RecordText, Sink, Unusable,
    lines,
};

/// The program that has written the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Goflow2,
    Akvorado,
    Gcp,
}

impl Origin {
    const ALL: [Origin; 3] = [Origin::Goflow2, Origin::Akvorado, Origin::Gcp];

    pub(super) fn format(self) -> InputFormat {
        match self {
            Origin::Goflow2 => InputFormat::Goflow2,
            Origin::Akvorado => InputFormat::Akvorado,
            Origin::Gcp => InputFormat::GcpFlowLogs,
        }
    }

    /// Texts of which a record has all of one line.
    fn marks(self) -> &'static [&'static [&'static str]] {
        match self {
            Origin::Goflow2 => &[
                &["\"sampler_address\"", "\"time_received_ns\""],
                &["\"SamplerAddress\"", "\"TimeReceived\""],
            ],
            Origin::Akvorado => &[
                &["\"ExporterAddress\"", "\"TimeReceived\"", "\"Bytes\""],
                &["\"ExporterName\"", "\"TimeReceived\"", "\"Bytes\""],
            ],
            Origin::Gcp => &[
                &["\"jsonPayload\"", "\"connection\""],
                &["\"logName\"", "vpc_flows"],
            ],
        }
    }

    fn traffic<'a>(self, record: &'a Value, apps: &'a Apps) -> Result<Traffic<'a>, String> {
        match self {
            Origin::Goflow2 => goflow2::traffic(record, apps),
            Origin::Akvorado => akvorado::traffic(record, apps),
            Origin::Gcp => gcp::traffic(record, apps),
        }
    }

    /// The field from which the direction of a record is known.
    fn direction_field(self) -> &'static str {
        match self {
            Origin::Goflow2 | Origin::Akvorado => "the direction of the record",
            Origin::Gcp => "reporter",
        }
    }
}

/// Recognizes records by the start of an input.
pub(super) fn recognize(text: &[u8]) -> Option<Origin> {
    let text = text.trim_ascii_start();
    let line = match text.first()? {
        b'{' => text.split(|&byte| byte == b'\n').next()?,
        b'[' => text,
        _ => return None,
    };
    // Only the first record: what follows may be anything. It may be cut.
    let start = line.iter().position(|&byte| byte == b'{')?;
    let mut values = serde_json::Deserializer::from_slice(&line[start..]).into_iter::<&RawValue>();
    let record = match values.next() {
        Some(Ok(value)) => value.get().as_bytes(),
        _ => &line[start..],
    };
    let record = String::from_utf8_lossy(record);
    // A flow may have other fields, and escapes in its names.
    if lookalikes::has_own_name(&record) || decode::validate_flow(&record).is_ok() {
        return None;
    }
    let mut all = Origin::ALL.into_iter();
    all.find(|origin| {
        let mut marks = origin.marks().iter();
        marks.any(|marks| marks.iter().all(|mark| record.contains(mark)))
    })
}

/// Reads from line `line` on.
pub(super) fn read(
    window: Window<impl Read>,
    line: u64,
    origin: Origin,
    options: &TrafficOptions,
    sink: &mut dyn Sink,
) -> Result<(), InputError> {
    let mut records = Records {
        origin,
        options,
        ends: Ends::default(),
        json: String::new(),
    };
    if window.text().first() == Some(&b'[') {
        return read_arrays(window, &mut records, sink);
    }
    lines::read(window, line, sink, |text, line, sink| {
        for (number, record) in (line..).zip(text.split(|&byte| byte == b'\n')) {
            let mut record = record.trim_ascii();
            while let Some(rest) = record.strip_prefix(BYTE_ORDER_MARK) {
                record = rest.trim_ascii();
            }
            if record.is_empty() {
                continue;
            }
            let text = String::from_utf8_lossy(record);
            if records.read(&text, Location::Line(number), sink).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// Reads arrays of records, whose elements may span lines. The location of a flow is its number.
fn read_arrays(
    window: Window<impl Read>,
    records: &mut Records<'_>,
    sink: &mut dyn Sink,
) -> Result<(), InputError> {
    let is_stopped = Cell::new(false);
    let mut number = 0;
    let mut documents = Documents::new(window);
    loop {
        let array = Array {
            records: &mut *records,
            sink: &mut *sink,
            number: &mut number,
            is_stopped: &is_stopped,
        };
        match documents.next(array, &is_stopped)? {
            DocumentEnd::Complete => {}
            DocumentEnd::NoMore | DocumentEnd::Stopped => return Ok(()),
        }
    }
}

/// Makes flows of records.
struct Records<'a> {
    origin: Origin,
    options: &'a TrafficOptions,
    ends: Ends,
    /// The last flow.
    json: String,
}

impl Records<'_> {
    fn read(&mut self, text: &str, location: Location, sink: &mut dyn Sink) -> ControlFlow<()> {
        match self.read_traffic(text, location, sink) {
            Ok(()) => sink.flow(RawFlow {
                location,
                text: &self.json,
                unusable: None,
            }),
            Err(unusable) => sink.flow(RawFlow {
                location,
                text,
                unusable: Some(unusable),
            }),
        }
    }

    /// Leaves the flow in `json`.
    fn read_traffic(
        &mut self,
        text: &str,
        location: Location,
        sink: &mut dyn Sink,
    ) -> Result<(), Unusable> {
        let invalid = |why: String| Unusable::Invalid(why);
        let record: Value = serde_json::from_str(text)
            .map_err(|error| invalid(format!("not valid JSON: {error}")))?;
        if !record.is_object() {
            return Err(invalid("not a JSON object".into()));
        }
        let (origin, options) = (self.origin, self.options);
        let traffic = origin.traffic(&record, &options.apps).map_err(invalid)?;
        sink.text(RecordText {
            text,
            last_is_whole: true,
            is_content: true,
            ..RecordText::default()
        });
        options
            .count
            .validate(traffic.direction, origin.direction_field())?;
        if options.count == Count::Both && self.ends.notice(&traffic) {
            let remedy = match traffic.direction {
                Some(_) => COUNT_ONE_END,
                None => "read the records of one exporter only, and of one direction",
            };
            options.warn(&traffic, location, remedy);
        }
        self.json.clear();
        traffic.write_json(&mut self.json);
        Ok(())
    }
}

/// Visits an array of records.
struct Array<'a, 'b> {
    records: &'a mut Records<'b>,
    sink: &'a mut dyn Sink,
    number: &'a mut u64,
    is_stopped: &'a Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for Array<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<(), D::Error> {
        value.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Array<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of records")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<(), A::Error> {
        while let Some(record) = values.next_element::<Value>()? {
            let location = Location::Flow(*self.number);
            *self.number += 1;
            // The same text whatever the white space, so that the record is known again.
            if self
                .records
                .read(&record.to_string(), location, &mut *self.sink)
                .is_break()
            {
                self.is_stopped.set(true);
                return Err(A::Error::custom("no more is wanted"));
            }
        }
        Ok(())
    }
}
