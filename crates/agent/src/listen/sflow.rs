//! sFlow version 5 (<https://sflow.org/sflow_version_5.txt>): the samples of packets in a datagram. Of the records in a
//! sample, those with addresses are read: the sampled header, and the sampled IPv4 and IPv6 data.
//!
//! A sample stands for as many packets as the sampling rate says. Its bytes are those of the IP packet, as in NetFlow.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::exporters::{ExporterId, Exporters, Protocol};
use super::{Record, Totals};

const VERSION: u32 = 5;
const ADDRESS_IPV4: u32 = 1;
const ADDRESS_IPV6: u32 = 2;
const FLOW_SAMPLE: u32 = 1;
const EXPANDED_FLOW_SAMPLE: u32 = 3;
const SAMPLED_HEADER: u32 = 1;
const SAMPLED_IPV4: u32 = 3;
const SAMPLED_IPV6: u32 = 4;
const HEADER_ETHERNET: u32 = 1;
const HEADER_IPV4: u32 = 11;
const HEADER_IPV6: u32 = 12;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// 802.1Q, 802.1ad, and the one before it.
const ETHERTYPE_VLANS: [u16; 3] = [0x8100, 0x88a8, 0x9100];
const IPV6_HEADER_BYTES: u64 = 40;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Whether a datagram is sFlow. NetFlow begins with its version in two bytes, which is never 0.
pub(super) fn is_sflow(datagram: &[u8]) -> bool {
    datagram.starts_with(&VERSION.to_be_bytes())
}

/// Calls `each` with the samples of a datagram, which were taken at `seconds` since 1970.
pub(super) fn read(
    datagram: &[u8],
    seconds: u64,
    exporters: &mut Exporters,
    totals: &Totals,
    each: impl FnMut(Record),
) {
    if read_datagram(datagram, seconds, exporters, totals, each).is_none() {
        totals.malformed.add(1);
    }
}

/// `None` if the datagram ends too early.
fn read_datagram(
    datagram: &[u8],
    seconds: u64,
    exporters: &mut Exporters,
    totals: &Totals,
    mut each: impl FnMut(Record),
) -> Option<()> {
    let mut input = Input(datagram);
    let _version = input.u32()?;
    // Several agents may be behind one address.
    let agent = match input.u32()? {
        ADDRESS_IPV4 => input.ipv4()?,
        ADDRESS_IPV6 => input.ipv6()?,
        _ => return None,
    };
    let sub_agent = input.u32()?;
    let sequence = input.u32()?;
    let _uptime = input.u32()?;
    let id = ExporterId {
        address: SocketAddr::new(agent, 0),
        protocol: Protocol::Sflow,
        domain: sub_agent,
    };
    exporters.get(id).follow(sequence, 1, totals);
    let samples = input.u32()?;
    for _ in 0..samples {
        let format = input.u32()?;
        let mut sample = input.part()?;
        match format {
            FLOW_SAMPLE => sample.take(8)?,
            EXPANDED_FLOW_SAMPLE => sample.take(12)?,
            // Counters of interfaces, for example.
            _ => continue,
        };
        let rate = u64::from(sample.u32()?).max(1);
        // The pool, the drops, and the two interfaces.
        sample.take(if format == FLOW_SAMPLE { 16 } else { 24 })?;
        let records = sample.u32()?;
        let mut is_found = false;
        for _ in 0..records {
            let format = sample.u32()?;
            let record = sample.part()?;
            let packet = match format {
                _ if is_found => None,
                SAMPLED_HEADER => sampled_header(record),
                SAMPLED_IPV4 => sampled_ip(record, Input::ipv4),
                SAMPLED_IPV6 => sampled_ip(record, Input::ipv6),
                _ => None,
            };
            let Some(packet) = packet else { continue };
            is_found = true;
            each(Record {
                source: packet.source,
                destination: packet.destination,
                bytes: packet.bytes.saturating_mul(rate),
                bytes_back: 0,
                seconds,
                direction: None,
            });
        }
        if !is_found {
            totals.skipped.add(1);
        }
    }
    Some(())
}

/// A sampled packet.
struct Packet {
    source: SocketAddr,
    destination: SocketAddr,
    bytes: u64,
}

/// The record that has the beginning of the packet.
fn sampled_header(mut record: Input<'_>) -> Option<Packet> {
    let protocol = record.u32()?;
    let _frame_length = record.u32()?;
    let _stripped = record.u32()?;
    let header = record.part()?;
    match protocol {
        HEADER_ETHERNET => ethernet(header),
        HEADER_IPV4 => ipv4(header),
        HEADER_IPV6 => ipv6(header),
        _ => None,
    }
}

/// The record that has the addresses of the packet.
fn sampled_ip<'a>(
    mut record: Input<'a>,
    address: impl Fn(&mut Input<'a>) -> Option<IpAddr>,
) -> Option<Packet> {
    let bytes = u64::from(record.u32()?);
    let _protocol = record.u32()?;
    let (source, destination) = (address(&mut record)?, address(&mut record)?);
    let mut port = || u16::try_from(record.u32()?).ok();
    Some(Packet {
        source: SocketAddr::new(source, port()?),
        destination: SocketAddr::new(destination, port()?),
        bytes,
    })
}

fn ethernet(mut frame: Input<'_>) -> Option<Packet> {
    frame.take(12)?;
    let mut kind = frame.u16()?;
    while ETHERTYPE_VLANS.contains(&kind) {
        frame.take(2)?;
        kind = frame.u16()?;
    }
    match kind {
        ETHERTYPE_IPV4 => ipv4(frame),
        ETHERTYPE_IPV6 => ipv6(frame),
        _ => None,
    }
}

fn ipv4(mut header: Input<'_>) -> Option<Packet> {
    let first = header.u8()?;
    if first >> 4 != 4 {
        return None;
    }
    let words = usize::from(first & 0x0f);
    let _service = header.u8()?;
    let bytes = u64::from(header.u16()?);
    let _identification = header.u16()?;
    let fragment_offset = header.u16()? & 0x1fff;
    let _time_to_live = header.u8()?;
    let protocol = header.u8()?;
    let _checksum = header.u16()?;
    let (source, destination) = (header.ipv4()?, header.ipv4()?);
    // The options.
    header.take((words * 4).checked_sub(20)?)?;
    let is_first = fragment_offset == 0;
    Some(packet(
        source,
        destination,
        bytes,
        is_first.then_some(protocol),
        header,
    ))
}

fn ipv6(mut header: Input<'_>) -> Option<Packet> {
    if header.u32()? >> 28 != 6 {
        return None;
    }
    let bytes = IPV6_HEADER_BYTES + u64::from(header.u16()?);
    let next = header.u8()?;
    let _hop_limit = header.u8()?;
    let (source, destination) = (header.ipv6()?, header.ipv6()?);
    // Ports behind extension headers are not looked for.
    Some(packet(source, destination, bytes, Some(next), header))
}

/// With the ports, if the header has them.
fn packet(
    source: IpAddr,
    destination: IpAddr,
    bytes: u64,
    protocol: Option<u8>,
    mut rest: Input<'_>,
) -> Packet {
    let has_ports = matches!(protocol, Some(TCP | UDP));
    let mut port = || match has_ports {
        true => rest.u16().unwrap_or_default(),
        false => 0,
    };
    Packet {
        source: SocketAddr::new(source, port()),
        destination: SocketAddr::new(destination, port()),
        bytes,
    }
}

/// Bytes that are read from the front, in network order. `None` where there are too few.
#[derive(Clone, Copy)]
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn ipv4(&mut self) -> Option<IpAddr> {
        self.array::<4>().map(|bytes| Ipv4Addr::from(bytes).into())
    }

    fn ipv6(&mut self) -> Option<IpAddr> {
        let address = self
            .array::<16>()
            .map(|bytes| IpAddr::from(Ipv6Addr::from(bytes)));
        address.map(|address| address.to_canonical())
    }

    /// Opaque data, after its length; it is padded to a multiple of four bytes.
    fn part(&mut self) -> Option<Input<'a>> {
        let bytes = usize::try_from(self.u32()?).ok()?;
        let part = self.take(bytes)?;
        let padding = bytes.next_multiple_of(4) - bytes;
        self.take(padding.min(self.0.len()))?;
        Some(Input(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    /// Opaque data with its length and padding.
    fn part(bytes: &[u8]) -> Vec<u8> {
        let length = u32::try_from(bytes.len()).unwrap();
        let padding = vec![0; bytes.len().next_multiple_of(4) - bytes.len()];
        [&length.to_be_bytes()[..], bytes, &padding].concat()
    }

    fn datagram(samples: &[Vec<u8>]) -> Vec<u8> {
        let count = u32::try_from(samples.len()).unwrap();
        let header = words(&[5, 1, 0x7f00_0001, 0, 77, 1000, count]);
        [header, samples.concat()].concat()
    }

    fn flow_sample(rate: u32, records: &[Vec<u8>]) -> Vec<u8> {
        let count = u32::try_from(records.len()).unwrap();
        let head = words(&[1, 3, rate, 1000, 0, 1, 2, count]);
        [words(&[1]), part(&[head, records.concat()].concat())].concat()
    }

    fn record(format: u32, content: &[u8]) -> Vec<u8> {
        [words(&[format]), part(content)].concat()
    }

    fn sampled(protocol: u32, header: &[u8]) -> Vec<u8> {
        let head = words(&[protocol, 1518, 4]);
        record(1, &[head, part(header)].concat())
    }

    /// An IPv4 packet of 1,500 bytes with the ports 443 and 50000, and `options` words of options.
    fn ipv4_header(options: u8) -> Vec<u8> {
        let mut header = vec![0x45 + options, 0, 0x05, 0xdc, 0, 1, 0x40, 0, 64, TCP, 0, 0];
        header.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        header.extend(vec![0; 4 * usize::from(options)]);
        header.extend([0x01, 0xbb, 0xc3, 0x50, 0, 0]);
        header
    }

    fn read_all(datagram: &[u8]) -> (Vec<(String, String, u64)>, Totals) {
        let mut exporters = Exporters::new(1, HashMap::new());
        let totals = Totals::default();
        let mut records = Vec::new();
        read(datagram, 7, &mut exporters, &totals, |record| {
            assert_eq!(record.seconds, 7);
            records.push((
                record.source.to_string(),
                record.destination.to_string(),
                record.bytes,
            ));
        });
        (records, totals)
    }

    #[test]
    fn sampled_headers() {
        let ethernet = [vec![0; 12], vec![0x08, 0x00], ipv4_header(0)].concat();
        let vlan = [vec![0; 12], vec![0x81, 0, 0, 5, 0x08, 0x00], ipv4_header(2)].concat();
        let mut ipv6 = vec![0x60, 0, 0, 0, 0, 100, UDP, 64];
        ipv6.extend(Ipv6Addr::LOCALHOST.octets());
        ipv6.extend(Ipv6Addr::UNSPECIFIED.octets());
        ipv6.extend([0, 53, 0, 54]);
        let arp = [vec![0; 12], vec![0x08, 0x06], vec![0; 28]].concat();
        let (records, totals) = read_all(&datagram(&[
            flow_sample(100, &[record(1001, &[0; 16]), sampled(1, &ethernet)]),
            flow_sample(0, &[sampled(1, &vlan)]),
            flow_sample(10, &[sampled(12, &ipv6)]),
            flow_sample(10, &[sampled(1, &arp)]),
            // Cut off before the ports.
            flow_sample(1, &[sampled(11, &ipv4_header(0)[..20])]),
        ]));
        let expected = [
            ("10.0.0.1:443", "10.0.0.2:50000", 150_000),
            ("10.0.0.1:443", "10.0.0.2:50000", 1500),
            ("[::1]:53", "[::]:54", 1400),
            ("10.0.0.1:0", "10.0.0.2:0", 1500),
        ];
        let expected =
            expected.map(|(source, destination, bytes)| (source.into(), destination.into(), bytes));
        assert_eq!(records, expected);
        assert_eq!((totals.skipped.get(), totals.malformed.get()), (1, 0));
    }

    /// Both records of one packet: it counts once.
    #[test]
    fn sampled_ip_data() {
        let ipv4 = words(&[1500, 6, 0x0a00_0001, 0x0a00_0002, 443, 50000, 0, 0]);
        let sample = flow_sample(10, &[record(3, &ipv4), sampled(11, &ipv4_header(0))]);
        let (records, _) = read_all(&datagram(&[sample]));
        assert_eq!(
            records,
            [("10.0.0.1:443".into(), "10.0.0.2:50000".into(), 15_000)]
        );
    }

    #[test]
    fn expanded_samples_and_counters() {
        let record = sampled(11, &ipv4_header(0));
        let head = words(&[1, 0, 3, 50, 1000, 0, 0, 1, 0, 2, 1]);
        let expanded = [words(&[3]), part(&[head, record].concat())].concat();
        let counters = [words(&[2]), part(&words(&[1, 3, 0]))].concat();
        let (records, totals) = read_all(&datagram(&[counters, expanded]));
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].2, 75_000);
        assert_eq!(totals.malformed.get(), 0);
    }

    /// Whatever is cut off, or wrong, is counted, and nothing panics.
    #[test]
    fn malformed_datagrams() {
        let ethernet = [vec![0; 12], vec![0x08, 0x00], ipv4_header(0)].concat();
        let whole = datagram(&[flow_sample(100, &[sampled(1, &ethernet)])]);
        for length in 4..whole.len() {
            let (_, totals) = read_all(&whole[..length]);
            assert_eq!(totals.malformed.get(), 1, "{length}");
        }
        for at in 4..whole.len() {
            let mut wrong = whole.clone();
            wrong[at] = 0xff;
            let _no_panic = read_all(&wrong);
        }
    }
}
