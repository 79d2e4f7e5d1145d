//! Azure's flow logs, of virtual networks and of network security groups (version 2), as they are in storage accounts: a
//! JSON document with records, in which flows are text with commas (`flowTuples`).
//!
//! | flow | record |
//! |---|---|
//! | `hour` | the tuple's time |
//! | `vpc_id` | the virtual network in `targetResourceID`; empty for network security groups |
//! | source, destination | the tuple's addresses, of the end that has opened the connection and of the other one |
//! | `src_app`, `dest_app` | source and destination; swapped if the tuple is inbound |
//! | `bytes_tx`, `bytes_rx` | the bytes in both directions, of the end that has the network interface |
//!
//! The bytes of a tuple are those since the tuple before it. A tuple of a connection that has just begun has none, and
//! one of a connection that was denied represents no traffic.

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::fmt;
use std::io::Read;
use std::net::IpAddr;
use std::ops::ControlFlow;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::documents::{DocumentEnd, Documents};
use super::traffic::{
    COUNT_ONE_END, Count, Direction, End, Ends, Traffic, TrafficOptions, hour_of,
};
use super::window::Window;
use super::{InputError, Location, RawFlow, RecordText, Sink, SkipReason, Unusable};

const MILLISECONDS_PER_SECOND: u64 = 1000;
/// Texts of which a log has one in its first record.
const MARKS: [&str; 3] = [
    "\"flowTuples\"",
    "\"FlowLogFlowEvent\"",
    "\"NetworkSecurityGroupFlowEvent\"",
];
/// The first member of a log.
const RECORDS: &str = "\"records\"";
const NO_TUPLES: &str = "this looks like an Azure flow log, but it has no flowTuples";
/// The fields of a tuple with byte counts.
const FIELDS: usize = 13;

/// Whether the input begins like a log.
pub(super) fn begins_with(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    let find = |what: &str| memchr::memmem::find(text, what.as_bytes());
    // What is behind it may be anything.
    let Some(records) = find(RECORDS).filter(|_| text.first() == Some(&b'{')) else {
        return false;
    };
    let is_first = text[1..records].iter().all(u8::is_ascii_whitespace);
    is_first && MARKS.iter().any(|mark| find(mark).is_some())
}

/// Reads all documents of an input. The location of a flow is its number.
pub(super) fn read(
    window: Window<impl Read>,
    options: &TrafficOptions,
    sink: &mut dyn Sink,
) -> Result<(), InputError> {
    let mut documents = Documents::new(window);
    let is_stopped = Cell::new(false);
    let mut log = Log {
        options,
        sink,
        ends: Ends::default(),
        interface: String::new(),
        vpc_id: String::new(),
        json: String::new(),
        tuples: 0,
        has_tuples: false,
        is_stopped: &is_stopped,
    };
    loop {
        match documents.next(Walk(&mut log), &is_stopped)? {
            DocumentEnd::Complete if !log.has_tuples => {
                return Err(InputError::Malformed(NO_TUPLES.into()));
            }
            DocumentEnd::Complete => {}
            DocumentEnd::NoMore | DocumentEnd::Stopped => return Ok(()),
        }
    }
}

/// A log that is being read.
struct Log<'a> {
    options: &'a TrafficOptions,
    sink: &'a mut dyn Sink,
    ends: Ends,
    /// Of the record that is being read.
    interface: String,
    vpc_id: String,
    /// The last flow.
    json: String,
    /// Tuples that were read.
    tuples: u64,
    /// There was an array of tuples, which may be empty.
    has_tuples: bool,
    is_stopped: &'a Cell<bool>,
}

impl Log<'_> {
    fn read_tuple(&mut self, text: &str) -> ControlFlow<()> {
        let location = Location::Flow(self.tuples);
        self.tuples += 1;
        match self.read_traffic(text, location) {
            Ok(()) => self.sink.flow(RawFlow {
                location,
                text: &self.json,
                unusable: None,
            }),
            Err(unusable) => self.sink.flow(RawFlow {
                location,
                text,
                unusable: Some(unusable),
            }),
        }
    }

    fn read_traffic(&mut self, text: &str, location: Location) -> Result<(), Unusable> {
        let traffic = traffic(text, &self.interface, &self.vpc_id, self.options)?;
        // The tuples of two interfaces may be equal.
        let record = format!("{} {} {text}", self.interface, self.vpc_id);
        self.sink.text(RecordText {
            text: &record,
            last_is_whole: true,
            is_content: true,
            ..RecordText::default()
        });
        let count = self.options.count;
        count.validate(traffic.direction, "the direction")?;
        if self.options.count == Count::Both && self.ends.notice(&traffic) {
            self.options.warn(&traffic, location, COUNT_ONE_END);
        }
        self.json.clear();
        traffic.write_json(&mut self.json);
        Ok(())
    }
}

/// Parses a tuple, whose fields have commas between them.
fn traffic<'a>(
    tuple: &'a str,
    interface: &'a str,
    vpc_id: &'a str,
    options: &'a TrafficOptions,
) -> Result<Traffic<'a>, Unusable> {
    let invalid = |why: String| Err(Unusable::Invalid(why));
    let fields: Vec<&str> = tuple.split(',').collect();
    if fields.len() == 8 {
        return invalid(
            "a tuple of version 1, which has no bytes: let the flow log have version 2, or make one of the virtual network"
                .into(),
        );
    }
    if fields.len() != FIELDS {
        return invalid(format!(
            "a tuple with {} fields instead of {FIELDS}",
            fields.len()
        ));
    }
    let (time, direction, decision) = (fields[0], fields[6], fields[7]);
    // The logs of network security groups have the protocol as a letter, and the time in seconds.
    let is_of_group = matches!(fields[5], "T" | "U");
    let state = if is_of_group { fields[8] } else { decision };
    match (decision, state) {
        ("D", _) => return Err(Unusable::Skipped(SkipReason::Reject)),
        (_, "B") => return Err(Unusable::Skipped(SkipReason::NoData)),
        (_, "C" | "E") => {}
        _ => return invalid(format!("its state {state:?} is not B, C, D or E")),
    }
    let direction = match direction {
        "O" => Direction::Egress,
        "I" => Direction::Ingress,
        other => return invalid(format!("its direction {other:?} is neither I nor O")),
    };
    let read = || {
        let number = |text: &str, what: &str| {
            text.parse::<u64>()
                .map_err(|_| format!("{what}: {text:?} is not a number"))
        };
        let end = |text: &str, what: &str| {
            let address: IpAddr = text
                .parse()
                .map_err(|_| format!("{what}: {text:?} is not an address"))?;
            Ok::<_, String>(End::named(address, &options.apps, None))
        };
        let time = number(time, "its time")?;
        let seconds = match is_of_group {
            true => time,
            false => time / MILLISECONDS_PER_SECOND,
        };
        Ok(Traffic {
            source: end(fields[1], "its source")?,
            destination: end(fields[2], "its destination")?,
            bytes: number(fields[10], "its bytes sent")?,
            bytes_back: number(fields[12], "its bytes received")?,
            hour: hour_of(seconds, "its time")?,
            vpc_id: vpc_id.into(),
            direction: Some(direction),
            interface: interface.into(),
        })
    };
    read().map_err(Unusable::Invalid)
}

/// The virtual network in the identifier of a resource, as in `/subscriptions/…/virtualNetworks/NAME/subnets/…`.
fn virtual_network(resource: &str) -> &str {
    let mut parts = resource.split('/');
    let is_found = parts.any(|part| part.eq_ignore_ascii_case("virtualNetworks"));
    parts.next().filter(|_| is_found).unwrap_or_default()
}

/// Visits a value, whatever it is, and reads the tuples in it.
struct Walk<'a, 'b>(&'a mut Log<'b>);

impl<'de> DeserializeSeed<'de> for Walk<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<(), D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a flow log")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            let as_text = |value: Value| value.as_str().unwrap_or_default().to_owned();
            match &*key {
                "macAddress" => self.0.interface = as_text(map.next_value()?),
                "targetResourceID" => {
                    self.0.vpc_id = virtual_network(&as_text(map.next_value()?)).to_owned();
                }
                "flowTuples" => {
                    self.0.has_tuples = true;
                    map.next_value_seed(Tuples(self.0))?;
                }
                _ => map.next_value_seed(Walk(self.0))?,
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<(), A::Error> {
        while values.next_element_seed(Walk(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Visits an array of tuples.
struct Tuples<'a, 'b>(&'a mut Log<'b>);

impl<'de> DeserializeSeed<'de> for Tuples<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<(), D::Error> {
        value.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Tuples<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of flow tuples")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut tuples: A) -> Result<(), A::Error> {
        while let Some(tuple) = tuples.next_element::<String>()? {
            if self.0.read_tuple(&tuple).is_break() {
                self.0.is_stopped.set(true);
                return Err(A::Error::custom("no more is wanted"));
            }
        }
        Ok(())
    }
}
