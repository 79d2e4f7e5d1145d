//! Records of traffic between two addresses, as flow logs have them, and the flows that they become.

mod ends;

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use super::{Apps, Location, SkipReason, Unusable, push_json_string};

pub(super) use ends::Ends;

const SECONDS_PER_HOUR: u64 = 3600;
/// From 2000 to 2100 (exclusive), which excludes other units than seconds.
const SECONDS: Range<u64> = 946_684_800..4_102_444_800;

/// The records that count if both ends of a conversation are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Count {
    /// Those of the sending interface.
    Sender,
    /// Those of the receiving interface.
    Receiver,
    /// All records.
    #[default]
    Both,
}

/// Receives the warning that sums may be misleading.
type Warn = Box<dyn Fn(&str) + Send>;

/// The fields of AWS's records before the first header.
#[derive(Clone, Debug)]
pub(crate) struct GivenFields {
    /// Their names, with blanks between them.
    pub(crate) names: String,
    /// What gave them, for errors: `--fields`.
    pub(crate) origin: &'static str,
}

/// Options for reading such records.
#[derive(Default)]
pub(super) struct TrafficOptions {
    pub(super) apps: Arc<Apps>,
    pub(super) count: Count,
    pub(super) fields: Option<GivenFields>,
    /// Called at most once per input.
    pub(super) warn: Option<Warn>,
}

impl fmt::Debug for TrafficOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrafficOptions")
            .field("count", &self.count)
            .field("fields", &self.fields)
            .finish_non_exhaustive()
    }
}

/// From the point of view of the interface that made the record, which belongs to one of the ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Direction {
    /// The interface is that of the destination.
    Ingress,
    /// The interface is that of the source.
    Egress,
}

/// One end of a conversation.
#[derive(Clone, Debug)]
pub(super) struct End<'a> {
    /// IPv4-mapped addresses are IPv4 here.
    pub(super) address: IpAddr,
    /// Its application, or else its address.
    pub(super) name: Cow<'a, str>,
}

/// The content of a record.
#[derive(Clone, Debug)]
pub(super) struct Traffic<'a> {
    pub(super) source: End<'a>,
    pub(super) destination: End<'a>,
    /// From the source to the destination.
    pub(super) bytes: u64,
    /// From the destination to the source, in formats that have both directions in one record.
    pub(super) bytes_back: u64,
    pub(super) hour: u64,
    pub(super) vpc_id: Cow<'a, str>,
    pub(super) direction: Option<Direction>,
    /// The interface that made the record, as far as it is known.
    pub(super) interface: Cow<'a, str>,
}

impl Count {
    pub(super) fn name(self) -> &'static str {
        match self {
            Count::Sender => "sender",
            Count::Receiver => "receiver",
            Count::Both => "both",
        }
    }

    /// Whether records of this direction count. `field` has the direction in this format.
    pub(super) fn validate(
        self,
        direction: Option<Direction>,
        field: &str,
    ) -> Result<(), Unusable> {
        match (self, direction) {
            (Count::Sender, Some(Direction::Ingress))
            | (Count::Receiver, Some(Direction::Egress)) => {
                Err(Unusable::Skipped(SkipReason::OtherEnd))
            }
            (Count::Sender | Count::Receiver, None) => Err(Unusable::Invalid(format!(
                "{field}: missing, and required for --count {}",
                self.name()
            ))),
            _ => Ok(()),
        }
    }
}

impl<'a> End<'a> {
    /// An end with this address, which is named by the table, or else by `name`, or else by the address.
    pub(super) fn named(address: IpAddr, apps: &'a Apps, name: Option<Cow<'a, str>>) -> End<'a> {
        let known = apps.of(address).map(Cow::Borrowed);
        let address = address.to_canonical();
        End {
            address,
            name: known
                .or(name)
                .unwrap_or_else(|| Cow::Owned(address.to_string())),
        }
    }
}

/// The hour of a time in seconds since 1970; `field` has it in this format.
pub(super) fn hour_of(seconds: u64, field: &str) -> Result<u64, String> {
    match SECONDS.contains(&seconds) {
        true => Ok(seconds / SECONDS_PER_HOUR),
        false => Err(format!(
            "{field}: {seconds} is not a time from 2000 to 2099 in seconds since 1970"
        )),
    }
}

impl Traffic<'_> {
    /// Appends it as a flow in JSON. The end whose interface made the record comes first; its incoming bytes are
    /// `bytes_rx`.
    pub(super) fn write_json(&self, text: &mut String) {
        let (source, destination) = (&self.source.name, &self.destination.name);
        let (apps, [tx, rx]) = match self.direction {
            Some(Direction::Egress) | None => {
                ([source, destination], [self.bytes, self.bytes_back])
            }
            Some(Direction::Ingress) => ([destination, source], [self.bytes_back, self.bytes]),
        };
        text.push_str("{\"src_app\":");
        push_json_string(text, apps[0]);
        text.push_str(",\"dest_app\":");
        push_json_string(text, apps[1]);
        text.push_str(",\"vpc_id\":");
        push_json_string(text, &self.vpc_id);
        let hour = self.hour;
        let _infallible = write!(
            text,
            ",\"bytes_tx\":{tx},\"bytes_rx\":{rx},\"hour\":{hour}}}"
        );
    }
}

impl TrafficOptions {
    /// Warns that both ends count. `remedy` says how to count one of them.
    pub(super) fn warn(&self, traffic: &Traffic<'_>, location: Location, remedy: &str) {
        if let Some(warn) = &self.warn {
            warn(&format!(
                "{location}: traffic from {} to {} is recorded at more than one interface, and counts at each; \
                 {remedy} (docs/directions.md)",
                traffic.source.address, traffic.destination.address
            ));
        }
    }
}

/// The remedy where records have a direction.
pub(super) const COUNT_ONE_END: &str =
    "--count sender or --count receiver counts the records of one end only";
