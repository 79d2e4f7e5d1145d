//! NetFlow versions 5 and 9, and IPFIX: the records of a datagram.
//!
//! Fields have the same numbers in version 9 and IPFIX (RFC 3954, RFC 7012 and its registry). Templates belong to the
//! exporter that has sent them, and are kept over a restart of this process: see [`Templates`].

mod fields;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use netflow_parser::static_versions::v5::V5;
use netflow_parser::variable_versions::PendingFlowsConfig;
use netflow_parser::variable_versions::ipfix::{FlowSetBody as IpfixBody, IPFix};
use netflow_parser::variable_versions::v9::{FlowSetBody as V9Body, V9};
use netflow_parser::{AutoScopedParser, NetflowPacket, NetflowParser};

use self::fields::Fields;
use super::exporters::{Clock, ExporterId, Exporters, Protocol};
use super::templates::Templates;
use super::{Record, Totals};

/// Exporters that are remembered; the one that was silent for longest is forgotten first.
const EXPORTERS_MAX: usize = 2_000;
/// Fields of a template, and templates of an exporter.
const FIELDS_MAX: usize = 500;
const TEMPLATES_OF_EXPORTER_MAX: usize = 200;
/// Data whose template has not arrived yet waits, up to this size for each exporter.
const PENDING_BYTES_MAX: usize = 64 << 10;
const PENDING_TIME_MAX: Duration = Duration::from_secs(600);
const PENDING_TEMPLATES_MAX: usize = 16;
/// In the header of version 5, the first two bits are the mode.
const V5_SAMPLING_MASK: u16 = 0x3fff;
const MILLISECONDS_PER_SECOND: u64 = 1000;

/// Sets with lower numbers have templates.
const DATA_SET_ID_MIN: u16 = 256;

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
        each: &mut dyn FnMut(Record),
    ) {
        let result = self.parser.parse_from_source(from, datagram);
        if result.error.is_some() {
            totals.malformed.add(1);
        }
        let mut datagram = Datagram {
            from,
            sets: data_sets(datagram),
            exporters,
            templates: &self.templates,
            totals,
            each,
        };
        for packet in result.packets {
            match packet {
                NetflowPacket::V5(packet) => datagram.read_v5(packet),
                NetflowPacket::V9(packet) => datagram.read_v9(packet),
                NetflowPacket::IPFix(packet) => datagram.read_ipfix(packet),
                _ => totals.malformed.add(1),
            }
        }
    }
}

/// A datagram that is being read.
struct Datagram<'a> {
    from: SocketAddr,
    /// Sets with data, in version 9 and IPFIX.
    sets: u64,
    exporters: &'a mut Exporters,
    templates: &'a Templates,
    totals: &'a Totals,
    each: &'a mut dyn FnMut(Record),
}

impl Datagram<'_> {
    fn id(&self, protocol: Protocol, domain: u32) -> ExporterId {
        ExporterId {
            address: self.from,
            protocol,
            domain,
        }
    }

    fn read_v5(&mut self, packet: V5) {
        let header = packet.header;
        let engine = u32::from(header.engine_type) << 8 | u32::from(header.engine_id);
        let exporter = self.exporters.get(self.id(Protocol::V5, engine));
        exporter.follow(header.flow_sequence, u32::from(header.count), self.totals);
        let clock = exporter.clock(u64::from(header.unix_secs), self.from, self.totals);
        let announced = u64::from(header.sampling_interval & V5_SAMPLING_MASK);
        let rate = exporter.rate(None, Some(announced).filter(|rate| *rate > 0));
        for flow in packet.flowsets {
            let uptime = Duration::from_millis(flow.first.into());
            let start = at_uptime(header.unix_secs, header.sys_up_time, uptime);
            (self.each)(Record {
                source: SocketAddr::new(flow.src_addr.into(), flow.src_port),
                destination: SocketAddr::new(flow.dst_addr.into(), flow.dst_port),
                bytes: u64::from(flow.d_octets).saturating_mul(rate),
                bytes_back: 0,
                seconds: clock.correct(start),
                direction: None,
            });
        }
    }

    fn read_v9(&mut self, packet: V9) {
        let header = packet.header;
        let id = self.id(Protocol::V9, header.source_id);
        let exported = u64::from(header.unix_secs);
        let exporter = self.exporters.get(id);
        // Version 9 numbers its datagrams.
        exporter.follow(header.sequence_number, 1, self.totals);
        let clock = exporter.clock(exported, self.from, self.totals);
        let at = |uptime| at_uptime(header.unix_secs, header.sys_up_time, uptime);
        let mut sets = 0;
        for set in packet.flowsets {
            let is_data = set.header.flowset_id >= DATA_SET_ID_MIN;
            sets += u64::from(is_data && !matches!(set.body, V9Body::NoTemplate(_)));
            match set.body {
                V9Body::Data(data) => {
                    for record in data.fields {
                        let fields = Fields::read_v9(&record);
                        self.pass_on(id, clock, fields.record(exported, at), &fields);
                    }
                }
                V9Body::OptionsData(options) => {
                    for record in options.fields {
                        let fields = Fields::read_v9(&record.options_fields);
                        self.learn_sampling(id, &fields);
                    }
                }
                _ => {}
            }
        }
        let waiting = self.sets.saturating_sub(sets);
        self.totals.without_template.add(waiting);
    }

    fn read_ipfix(&mut self, packet: IPFix) {
        let header = packet.header;
        let id = self.id(Protocol::Ipfix, header.observation_domain_id);
        let exported = u64::from(header.export_time);
        let exporter = self.exporters.get(id);
        let clock = exporter.clock(exported, self.from, self.totals);
        let (mut records, mut sets) = (0, 0);
        for set in packet.flowsets {
            let is_data = set.header.header_id >= DATA_SET_ID_MIN;
            sets += u64::from(is_data && !matches!(set.body, IpfixBody::NoTemplate(_)));
            match set.body {
                IpfixBody::Data(data) => {
                    for record in data.fields {
                        records += 1;
                        let fields = Fields::read_ipfix(&record);
                        // Without the start of the system, the time of the export is the best guess.
                        let start = fields.system_init;
                        let at = |uptime: Duration| match start {
                            Some(start) => start.saturating_add(uptime).as_secs(),
                            None => exported,
                        };
                        self.pass_on(id, clock, fields.record(exported, at), &fields);
                    }
                }
                IpfixBody::OptionsData(options) => {
                    for record in options.fields {
                        records += 1;
                        self.learn_sampling(id, &Fields::read_ipfix(&record));
                    }
                }
                _ => {}
            }
        }
        let waiting = self.sets.saturating_sub(sets);
        self.totals.without_template.add(waiting);
        let exporter = self.exporters.get(id);
        // IPFIX numbers its data records.
        exporter.follow(header.sequence_number, records, self.totals);
        if sets != self.sets {
            // Some wait for their template, or have waited for it: how many records this message has is not known.
            exporter.forget_sequence();
        }
    }

    /// Passes a record on, by the exporter's sampling rate and clock.
    fn pass_on(&mut self, id: ExporterId, clock: Clock, record: Option<Record>, fields: &Fields) {
        let Some(record) = record else {
            self.totals.skipped.add(1);
            return;
        };
        let exporter = self.exporters.get(id);
        let rate = exporter.rate(fields.sampler, fields.sampling_rate());
        (self.each)(Record {
            bytes: record.bytes.saturating_mul(rate),
            bytes_back: record.bytes_back.saturating_mul(rate),
            seconds: clock.correct(record.seconds),
            ..record
        });
    }

    fn learn_sampling(&mut self, id: ExporterId, fields: &Fields) {
        if let Some(rate) = fields.sampling_rate() {
            self.exporters.get(id).learn_rate(fields.sampler, rate);
            self.templates.keep_rate(id, fields.sampler, rate);
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
