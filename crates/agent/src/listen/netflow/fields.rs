//! The fields of a record that matter, of NetFlow version 9 and IPFIX.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use netflow_parser::variable_versions::field_value::DurationValue;
use netflow_parser::variable_versions::ipfix::lookup::{
    IANAIPFixField, IPFixField, ReverseInformationElement,
};
use netflow_parser::{DataNumber, FieldValue, IpfixFieldPair, V9FieldPair};

use super::super::{Direction, Record};

/// NTP counts seconds from 1900.
const NTP_TO_UNIX_SECONDS: u64 = 2_208_988_800;
/// A flow that is said to be longer has no valid start: the time of its export counts.
const FLOW_SECONDS_MAX: u64 = 24 * 3600;
/// The clocks of an exporter's parts may differ.
const CLOCKS_APART_SECONDS_MAX: u64 = 300;

/// Numbers of fields.
mod field {
    pub(super) const OCTETS: u16 = 1;
    pub(super) const SOURCE_PORT: u16 = 7;
    pub(super) const SOURCE_IPV4: u16 = 8;
    pub(super) const DESTINATION_PORT: u16 = 11;
    pub(super) const DESTINATION_IPV4: u16 = 12;
    pub(super) const START_UPTIME: u16 = 22;
    pub(super) const POST_OCTETS: u16 = 23;
    pub(super) const SOURCE_IPV6: u16 = 27;
    pub(super) const DESTINATION_IPV6: u16 = 28;
    pub(super) const SAMPLING_INTERVAL: u16 = 34;
    pub(super) const SAMPLER_ID: u16 = 48;
    pub(super) const SAMPLER_RANDOM_INTERVAL: u16 = 50;
    pub(super) const DIRECTION: u16 = 61;
    pub(super) const OCTETS_TOTAL: u16 = 85;
    pub(super) const START_SECONDS: u16 = 150;
    pub(super) const START_MILLISECONDS: u16 = 152;
    pub(super) const START_MICROSECONDS: u16 = 154;
    pub(super) const START_NANOSECONDS: u16 = 156;
    pub(super) const SYSTEM_INIT: u16 = 160;
    pub(super) const INITIATOR_OCTETS: u16 = 231;
    pub(super) const RESPONDER_OCTETS: u16 = 232;
    pub(super) const SELECTOR_ID: u16 = 302;
    pub(super) const SAMPLING_PACKET_INTERVAL: u16 = 305;
    pub(super) const SAMPLING_PACKET_SPACE: u16 = 306;
    pub(super) const SAMPLING_PROBABILITY: u16 = 311;
}

/// The fields of a record that matter.
#[derive(Debug, Default)]
pub(super) struct Fields {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    source_port: u16,
    destination_port: u16,
    bytes: Option<u64>,
    post_bytes: Option<u64>,
    total_bytes: Option<u64>,
    bytes_back: u64,
    /// Since 1970.
    start: Option<Duration>,
    start_uptime: Option<Duration>,
    pub(super) system_init: Option<Duration>,
    direction: Option<Direction>,
    pub(super) sampler: Option<u64>,
    rate: Option<u64>,
    packet_interval: Option<u64>,
    packet_space: Option<u64>,
}

impl Fields {
    pub(super) fn read_v9(record: &[V9FieldPair]) -> Fields {
        Fields::read(
            record
                .iter()
                .map(|(field, value)| (u16::from(*field), value)),
        )
    }

    pub(super) fn read_ipfix(record: &[IpfixFieldPair]) -> Fields {
        let mut fields = Fields::read(record.iter().filter_map(|(field, value)| match field {
            IPFixField::IANA(field) => Some((ipfix_number(*field)?, value)),
            _ => None,
        }));
        // RFC 5103: the other direction of the same flow.
        for (field, value) in record {
            let octets = ReverseInformationElement::ReverseOctetDeltaCount;
            if *field == IPFixField::ReverseInformationElement(octets) {
                fields.bytes_back = number(value).unwrap_or_default();
            }
        }
        fields
    }

    fn read<'a>(values: impl Iterator<Item = (u16, &'a FieldValue)>) -> Fields {
        let mut fields = Fields::default();
        for (field, value) in values {
            match field {
                field::SOURCE_IPV4 | field::SOURCE_IPV6 => {
                    fields.source = address(value).or(fields.source);
                }
                field::DESTINATION_IPV4 | field::DESTINATION_IPV6 => {
                    fields.destination = address(value).or(fields.destination);
                }
                field::SOURCE_PORT => fields.source_port = port(value),
                field::DESTINATION_PORT => fields.destination_port = port(value),
                field::OCTETS | field::INITIATOR_OCTETS => fields.bytes = number(value),
                field::POST_OCTETS => fields.post_bytes = number(value),
                field::OCTETS_TOTAL => fields.total_bytes = number(value),
                field::RESPONDER_OCTETS => fields.bytes_back = number(value).unwrap_or_default(),
                field::START_SECONDS => fields.start = time(value, Duration::from_secs),
                field::START_MILLISECONDS => fields.start = time(value, Duration::from_millis),
                field::START_MICROSECONDS | field::START_NANOSECONDS => {
                    fields.start = time(value, of_ntp);
                }
                field::START_UPTIME => fields.start_uptime = time(value, Duration::from_millis),
                field::SYSTEM_INIT => fields.system_init = time(value, Duration::from_millis),
                field::DIRECTION => {
                    fields.direction = match number(value) {
                        Some(0) => Some(Direction::Ingress),
                        Some(1) => Some(Direction::Egress),
                        _ => None,
                    }
                }
                field::SAMPLER_ID | field::SELECTOR_ID => fields.sampler = number(value),
                field::SAMPLING_INTERVAL | field::SAMPLER_RANDOM_INTERVAL => {
                    fields.rate = number(value).filter(|rate| *rate > 0);
                }
                field::SAMPLING_PACKET_INTERVAL => fields.packet_interval = number(value),
                field::SAMPLING_PACKET_SPACE => fields.packet_space = number(value),
                field::SAMPLING_PROBABILITY => {
                    if let FieldValue::Float64(probability) = value
                        && (0.0..=1.0).contains(probability)
                        && *probability > 0.0
                    {
                        fields.rate = Some((1.0 / probability).round() as u64);
                    }
                }
                _ => {}
            }
        }
        fields
    }

    /// One packet of how many, where an exporter says it (RFC 5476: `interval` packets are taken, then `space` are not).
    pub(super) fn sampling_rate(&self) -> Option<u64> {
        let of_packets = || {
            let (taken, left) = (self.packet_interval?, self.packet_space?);
            taken.saturating_add(left).checked_div(taken)
        };
        self.rate.or_else(of_packets)
    }

    /// Not scaled, and by the exporter's clock. `None` if it is not a flow between addresses. `at` is the time at an uptime
    /// of the exporter.
    pub(super) fn record(
        &self,
        exported_seconds: u64,
        at: impl Fn(Duration) -> u64,
    ) -> Option<Record> {
        let bytes = self.bytes.or(self.post_bytes).or(self.total_bytes)?;
        let start = self.start.map(|start| start.as_secs());
        let start = start.or_else(|| self.start_uptime.map(at));
        let start = start.filter(|start| is_plausible(*start, exported_seconds));
        Some(Record {
            source: SocketAddr::new(self.source?.to_canonical(), self.source_port),
            destination: SocketAddr::new(self.destination?.to_canonical(), self.destination_port),
            bytes,
            bytes_back: self.bytes_back,
            seconds: start.unwrap_or(exported_seconds),
            direction: self.direction,
        })
    }
}

/// Whether a flow may have begun at `start` that was exported at `exported`: exporters report long flows each half hour or
/// more often.
fn is_plausible(start: u64, exported: u64) -> bool {
    let earliest = exported.saturating_sub(FLOW_SECONDS_MAX);
    (earliest..=exported.saturating_add(CLOCKS_APART_SECONDS_MAX)).contains(&start)
}

/// The number of a field that matters.
fn ipfix_number(field: IANAIPFixField) -> Option<u16> {
    Some(match field {
        IANAIPFixField::OctetDeltaCount => field::OCTETS,
        IANAIPFixField::SourceTransportPort => field::SOURCE_PORT,
        IANAIPFixField::SourceIpv4address => field::SOURCE_IPV4,
        IANAIPFixField::DestinationTransportPort => field::DESTINATION_PORT,
        IANAIPFixField::DestinationIpv4address => field::DESTINATION_IPV4,
        IANAIPFixField::FlowStartSysUpTime => field::START_UPTIME,
        IANAIPFixField::PostOctetDeltaCount => field::POST_OCTETS,
        IANAIPFixField::SourceIpv6address => field::SOURCE_IPV6,
        IANAIPFixField::DestinationIpv6address => field::DESTINATION_IPV6,
        IANAIPFixField::SamplingInterval => field::SAMPLING_INTERVAL,
        IANAIPFixField::SamplerId => field::SAMPLER_ID,
        IANAIPFixField::SamplerRandomInterval => field::SAMPLER_RANDOM_INTERVAL,
        IANAIPFixField::FlowDirection => field::DIRECTION,
        IANAIPFixField::OctetTotalCount => field::OCTETS_TOTAL,
        IANAIPFixField::FlowStartSeconds => field::START_SECONDS,
        IANAIPFixField::FlowStartMilliseconds => field::START_MILLISECONDS,
        IANAIPFixField::FlowStartMicroseconds => field::START_MICROSECONDS,
        IANAIPFixField::FlowStartNanoseconds => field::START_NANOSECONDS,
        IANAIPFixField::SystemInitTimeMilliseconds => field::SYSTEM_INIT,
        IANAIPFixField::InitiatorOctets => field::INITIATOR_OCTETS,
        IANAIPFixField::ResponderOctets => field::RESPONDER_OCTETS,
        IANAIPFixField::SelectorId => field::SELECTOR_ID,
        IANAIPFixField::SamplingPacketInterval => field::SAMPLING_PACKET_INTERVAL,
        IANAIPFixField::SamplingPacketSpace => field::SAMPLING_PACKET_SPACE,
        IANAIPFixField::SamplingProbability => field::SAMPLING_PROBABILITY,
        _ => return None,
    })
}

fn address(value: &FieldValue) -> Option<IpAddr> {
    match value {
        FieldValue::Ip4Addr(address) => Some(IpAddr::V4(*address)),
        FieldValue::Ip6Addr(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn number(value: &FieldValue) -> Option<u64> {
    match value {
        // Of 5 to 7 bytes, or of a field that the parser does not know.
        FieldValue::DataNumber(DataNumber::Vec(bytes)) | FieldValue::Vec(bytes)
            if bytes.len() <= size_of::<u64>() =>
        {
            Some(
                bytes
                    .iter()
                    .fold(0, |number, byte| number << 8 | u64::from(*byte)),
            )
        }
        FieldValue::DataNumber(number) => number.as_u64(),
        _ => None,
    }
}

fn port(value: &FieldValue) -> u16 {
    number(value)
        .and_then(|port| u16::try_from(port).ok())
        .unwrap_or_default()
}

/// A time, which is a number in older versions.
fn time(value: &FieldValue, of_number: impl Fn(u64) -> Duration) -> Option<Duration> {
    match value {
        FieldValue::Duration(
            time @ (DurationValue::MicrosNtp { .. } | DurationValue::NanosNtp { .. }),
        ) => time
            .as_duration()
            .checked_sub(Duration::from_secs(NTP_TO_UNIX_SECONDS)),
        FieldValue::Duration(time) => Some(time.as_duration()),
        value => number(value).map(of_number),
    }
}

/// From the format of NTP: seconds since 1900, and a fraction.
fn of_ntp(number: u64) -> Duration {
    Duration::from_secs((number >> 32).saturating_sub(NTP_TO_UNIX_SECONDS))
}
