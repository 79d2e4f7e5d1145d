//! NetFlow versions 5 and 9, and IPFIX: the records of a datagram.
//!
//! Fields have the same numbers in version 9 and IPFIX (RFC 3954, RFC 7012 and its registry). Templates belong to the
//! exporter that has sent them, and are kept over a restart of this process: see [`Templates`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use netflow_parser::variable_versions::PendingFlowsConfig;
use netflow_parser::variable_versions::field_value::DurationValue;
use netflow_parser::variable_versions::ipfix::FlowSetBody as IpfixBody;
use netflow_parser::variable_versions::ipfix::lookup::{
    IANAIPFixField, IPFixField, ReverseInformationElement,
};
use netflow_parser::variable_versions::v9::FlowSetBody as V9Body;
use netflow_parser::{AutoScopedParser, DataNumber, FieldValue, NetflowPacket, NetflowParser};

use super::exporters::{Exporter, ExporterId, Exporters, Protocol};
use super::templates::Templates;
use super::{Direction, Record, Totals};

/// Exporters that are remembered; the one that was silent for longest is forgotten first.
const EXPORTERS_MAX: usize = 2_000;
/// Fields of a template, and templates of an exporter.
const FIELDS_MAX: usize = 500;
const TEMPLATES_OF_EXPORTER_MAX: usize = 200;
/// Data whose template has not arrived yet waits, up to this size for each exporter.
const PENDING_BYTES_MAX: usize = 64 << 10;
const PENDING_TIME_MAX: Duration = Duration::from_secs(600);
const PENDING_TEMPLATES_MAX: usize = 16;
/// NTP counts seconds from 1900.
const NTP_TO_UNIX_SECONDS: u64 = 2_208_988_800;
/// A flow that is said to be longer has no valid start: the time of its export counts.
const FLOW_SECONDS_MAX: u64 = 24 * 3600;
/// The clocks of an exporter's parts may differ.
const CLOCKS_APART_SECONDS_MAX: u64 = 300;
/// In the header of version 5, the first two bits are the mode.
const V5_SAMPLING_MASK: u16 = 0x3fff;
const MILLISECONDS_PER_SECOND: u64 = 1000;

/// Sets with lower numbers have templates.
const DATA_SET_ID_MIN: u16 = 256;

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

/// Reads datagrams.
#[derive(Debug)]
pub(super) struct Netflow {
    parser: AutoScopedParser,
    templates: Arc<Templates>,
}

impl Netflow {
    pub(super) fn new(templates: Arc<Templates>) -> Result<Netflow, String> {
        let mut pending = PendingFlowsConfig::with_ttl(PENDING_TEMPLATES_MAX, PENDING_TIME_MAX);
        pending.max_total_bytes = PENDING_BYTES_MAX;
        let builder = NetflowParser::builder()
            .with_template_store(templates.clone())
            .with_max_field_count(FIELDS_MAX)
            .with_cache_size(TEMPLATES_OF_EXPORTER_MAX)
            .with_pending_flows(pending);
        let parser = AutoScopedParser::try_with_builder(builder)
            .and_then(|parser| parser.with_max_sources(EXPORTERS_MAX));
        Ok(Netflow {
            parser: parser.map_err(|e| format!("cannot parse NetFlow: {e}"))?,
            templates,
        })
    }

    /// Calls `each` with the records of a datagram.
    pub(super) fn read(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        exporters: &mut Exporters,
        totals: &Totals,
        mut each: impl FnMut(Record),
    ) {
        let result = self.parser.parse_from_source(from, datagram);
        let sets_sent = data_sets(datagram);
        if result.error.is_some() {
            totals.malformed.add(1);
        }
        for packet in result.packets {
            match packet {
                NetflowPacket::V5(packet) => {
                    let id = ExporterId {
                        address: from,
                        protocol: Protocol::V5,
                        domain: u32::from(packet.header.engine_type) << 8
                            | u32::from(packet.header.engine_id),
                    };
                    let header = packet.header;
                    let exporter = exporters.get(id);
                    exporter.follow(header.flow_sequence, u32::from(header.count), totals);
                    let clock = exporter.clock(u64::from(header.unix_secs), from, totals);
                    let announced = u64::from(header.sampling_interval & V5_SAMPLING_MASK);
                    let rate = exporter.rate(None, Some(announced).filter(|rate| *rate > 0));
                    for flow in packet.flowsets {
                        let uptime = Duration::from_millis(flow.first.into());
                        let start = at_uptime(header.unix_secs, header.sys_up_time, uptime);
                        each(Record {
                            source: SocketAddr::new(flow.src_addr.into(), flow.src_port),
                            destination: SocketAddr::new(flow.dst_addr.into(), flow.dst_port),
                            bytes: u64::from(flow.d_octets).saturating_mul(rate),
                            bytes_back: 0,
                            seconds: clock.correct(start),
                            direction: None,
                        });
                    }
                }
                NetflowPacket::V9(packet) => {
                    let header = packet.header;
                    let id = ExporterId {
                        address: from,
                        protocol: Protocol::V9,
                        domain: header.source_id,
                    };
                    let exporter = exporters.get(id);
                    // Version 9 numbers its datagrams.
                    exporter.follow(header.sequence_number, 1, totals);
                    let clock = exporter.clock(u64::from(header.unix_secs), from, totals);
                    let mut sets = 0;
                    for set in packet.flowsets {
                        sets += u64::from(set.header.flowset_id >= DATA_SET_ID_MIN);
                        match set.body {
                            V9Body::NoTemplate(_) => sets -= 1,
                            V9Body::Data(data) => {
                                for record in data.fields {
                                    let fields = record.iter();
                                    let fields = Fields::read(
                                        fields.map(|(field, value)| (u16::from(*field), value)),
                                    );
                                    let at = |uptime: Duration| {
                                        at_uptime(header.unix_secs, header.sys_up_time, uptime)
                                    };
                                    let exported = u64::from(header.unix_secs);
                                    match fields.record(exporter, exported, at) {
                                        Some(record) => each(Record {
                                            seconds: clock.correct(record.seconds),
                                            ..record
                                        }),
                                        None => totals.skipped.add(1),
                                    }
                                }
                            }
                            V9Body::OptionsData(options) => {
                                for record in options.fields {
                                    let fields = record.options_fields.iter();
                                    let fields = Fields::read(
                                        fields.map(|(field, value)| (u16::from(*field), value)),
                                    );
                                    fields.learn_sampling(id, exporter, &self.templates);
                                }
                            }
                            _ => {}
                        }
                    }
                    totals.without_template.add(sets_sent.saturating_sub(sets));
                }
                NetflowPacket::IPFix(packet) => {
                    let header = packet.header;
                    let id = ExporterId {
                        address: from,
                        protocol: Protocol::Ipfix,
                        domain: header.observation_domain_id,
                    };
                    let exporter = exporters.get(id);
                    let clock = exporter.clock(u64::from(header.export_time), from, totals);
                    let (mut records, mut sets) = (0, 0);
                    for set in packet.flowsets {
                        sets += u64::from(set.header.header_id >= DATA_SET_ID_MIN);
                        match set.body {
                            IpfixBody::NoTemplate(_) => sets -= 1,
                            IpfixBody::Data(data) => {
                                for record in data.fields {
                                    records += 1;
                                    let fields = Fields::read_ipfix(&record);
                                    let exported = u64::from(header.export_time);
                                    // Without the start of the system, the time of the export is the best guess.
                                    let start = fields.system_init;
                                    let at = |uptime: Duration| match start {
                                        Some(start) => start.saturating_add(uptime).as_secs(),
                                        None => exported,
                                    };
                                    match fields.record(exporter, exported, at) {
                                        Some(record) => each(Record {
                                            seconds: clock.correct(record.seconds),
                                            ..record
                                        }),
                                        None => totals.skipped.add(1),
                                    }
                                }
                            }
                            IpfixBody::OptionsData(options) => {
                                for record in options.fields {
                                    records += 1;
                                    let fields = Fields::read_ipfix(&record);
                                    fields.learn_sampling(id, exporter, &self.templates);
                                }
                            }
                            _ => {}
                        }
                    }
                    totals.without_template.add(sets_sent.saturating_sub(sets));
                    // IPFIX numbers its data records.
                    exporter.follow(header.sequence_number, records, totals);
                    if sets != sets_sent {
                        // Some wait for their template, or have waited for it: how many records this message has is not
                        // known.
                        exporter.forget_sequence();
                    }
                }
                _ => totals.malformed.add(1),
            }
        }
    }
}

/// The number of sets with data in a datagram of version 9 or IPFIX. The parser keeps those back whose template is
/// missing, and returns them with a later datagram.
fn data_sets(datagram: &[u8]) -> u64 {
    let half = |at: usize| {
        let bytes = datagram.get(at..at + 2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    let mut at = match half(0) {
        Some(9) => 20,
        Some(10) => 16,
        _ => return 0,
    };
    let mut sets = 0;
    while let (Some(id), Some(length)) = (half(at), half(at + 2)) {
        sets += u64::from(id >= DATA_SET_ID_MIN);
        // Its header is in the length.
        at += usize::from(length).max(4);
    }
    sets
}

/// The time at `uptime` of an exporter, in seconds since 1970: the header has both clocks. The uptime begins again after
/// 49.7 days.
fn at_uptime(unix_seconds: u32, header_uptime_ms: u32, uptime: Duration) -> u64 {
    let uptime_ms = u32::try_from(uptime.as_millis()).unwrap_or(header_uptime_ms);
    let ago_ms = header_uptime_ms.wrapping_sub(uptime_ms);
    // A flow that began after the header was written: the clocks of the exporter's cards differ.
    let ago_ms = if ago_ms > u32::MAX / 2 { 0 } else { ago_ms };
    u64::from(unix_seconds).saturating_sub(u64::from(ago_ms) / MILLISECONDS_PER_SECOND)
}

/// The fields of a record that matter.
#[derive(Debug, Default)]
struct Fields {
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
    system_init: Option<Duration>,
    direction: Option<Direction>,
    sampler: Option<u64>,
    rate: Option<u64>,
    packet_interval: Option<u64>,
    packet_space: Option<u64>,
}

impl Fields {
    fn read_ipfix(record: &[(IPFixField, FieldValue)]) -> Fields {
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
    fn sampling_rate(&self) -> Option<u64> {
        let of_packets = || {
            let (taken, left) = (self.packet_interval?, self.packet_space?);
            taken.saturating_add(left).checked_div(taken)
        };
        self.rate.or_else(of_packets)
    }

    fn learn_sampling(&self, id: ExporterId, exporter: &mut Exporter, templates: &Templates) {
        if let Some(rate) = self.sampling_rate() {
            exporter.learn_rate(self.sampler, rate);
            templates.keep_rate(id, self.sampler, rate);
        }
    }

    /// `None` if it is not a flow between addresses. `at` is the time at an uptime of the exporter.
    fn record(
        &self,
        exporter: &Exporter,
        exported_seconds: u64,
        at: impl Fn(Duration) -> u64,
    ) -> Option<Record> {
        let bytes = self.bytes.or(self.post_bytes).or(self.total_bytes)?;
        let rate = exporter.rate(self.sampler, self.sampling_rate());
        let start = self.start.map(|start| start.as_secs());
        let start = start.or_else(|| self.start_uptime.map(at));
        let start = start.filter(|start| is_plausible(*start, exported_seconds));
        Some(Record {
            source: SocketAddr::new(self.source?.to_canonical(), self.source_port),
            destination: SocketAddr::new(self.destination?.to_canonical(), self.destination_port),
            bytes: bytes.saturating_mul(rate),
            bytes_back: self.bytes_back.saturating_mul(rate),
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
