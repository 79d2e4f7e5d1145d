//! `flowtally-agent listen`: hours, names, sampling, both directions, and what was lost, of datagrams made here.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, UdpSocket};

use crate::daemon::signal;
use crate::listen::{Listener, now, row};
use crate::wait::until;

/// The destination of most flows: 10.0.0.2, at port 53.
const SERVER: u32 = 0x0a00_0002;
const SECONDS_PER_HOUR: u32 = 3600;
/// The private number under which RFC 5103 has the fields of the other direction.
const REVERSE: u32 = 29_305;

fn exporter() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").unwrap()
}

fn halves(halves: &[u16]) -> Vec<u8> {
    halves.iter().flat_map(|half| half.to_be_bytes()).collect()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// A set of NetFlow 9 or IPFIX, padded to a multiple of four bytes.
fn set(id: u16, content: &[u8]) -> Vec<u8> {
    let padded = content.len().next_multiple_of(4);
    let head = halves(&[id, u16::try_from(4 + padded).unwrap()]);
    let padding = vec![0; padded - content.len()];
    [&head[..], content, &padding].concat()
}

/// A datagram of NetFlow 5 with so many flows of 1,000 bytes, which began some seconds before the export.
fn v5(exported: u32, ago: u32, sequence: u32, flows: u16, destination: u32) -> Vec<u8> {
    let uptime_ms = 10_000_000;
    let start_ms = uptime_ms - 1000 * ago;
    let flow = words(&[
        0x0a00_0001,
        destination,
        0,
        0x0001_0002,
        10,
        1000,
        start_ms,
        start_ms + 500,
        0x1000_0035,
        0x0000_0600,
        0,
        0,
    ]);
    let header = words(&[uptime_ms, exported, 0, sequence, 0]);
    [halves(&[5, flows]), header, flow.repeat(flows.into())].concat()
}

/// A message of IPFIX with a flow over IPv6, which began some seconds before the export: 2,000 bytes, and 30 back.
fn ipfix(exported: u32, ago: u32) -> Vec<u8> {
    // Source, destination, their ports, bytes, start in milliseconds, and the bytes back.
    let fields = [27, 16, 28, 16, 7, 2, 11, 2, 1, 8, 152, 8, 0x8001, 8];
    let template = [halves(&[256, 7]), halves(&fields), words(&[REVERSE])].concat();
    let addresses = ["fd00::1", "fd00::2"].map(|address| address.parse::<Ipv6Addr>().unwrap());
    let mut record: Vec<u8> = addresses
        .iter()
        .flat_map(|address| address.octets())
        .collect();
    record.extend(halves(&[443, 50_000]));
    for number in [2000, 1000 * u64::from(exported - ago), 30] {
        record.extend(u64::to_be_bytes(number));
    }
    let sets = [set(2, &template), set(256, &record)].concat();
    let length = u16::try_from(16 + sets.len()).unwrap();
    [halves(&[10, length]), words(&[exported, 0, 7]), sets].concat()
}

/// A datagram of NetFlow 9.
fn v9(sequence: u32, sets: &[Vec<u8>]) -> Vec<u8> {
    let count = u16::try_from(sets.len()).unwrap();
    let header = words(&[100_000, now(), sequence, 7]);
    [halves(&[9, count]), header, sets.concat()].concat()
}

/// A datagram of sFlow with a sample of a packet of 1,500 bytes, one of a hundred.
fn sflow(sequence: u32) -> Vec<u8> {
    let opaque = |content: &[u8]| {
        let length = words(&[u32::try_from(content.len()).unwrap()]);
        [&length[..], content].concat()
    };
    // IPv4, 1,500 bytes, UDP, from port 50000 to 53.
    let packet = words(&[
        0x4500_05dc,
        0x0001_4000,
        0x4011_0000,
        0x0a00_0001,
        SERVER,
        0xc350_0035,
    ]);
    let header = [words(&[11, 1518, 4]), opaque(&packet)].concat();
    let record = [words(&[1]), opaque(&header)].concat();
    let sample = [words(&[1, 3, 100, 1000, 0, 1, 2, 1]), record].concat();
    let head = words(&[5, 1, 0x7f00_0001, 0, sequence, 1000, 1]);
    [head, words(&[1]), opaque(&sample)].concat()
}

#[test]
fn flows_count_in_the_hour_of_their_start() {
    let listener = Listener::new(&[]);
    let (right, wrong) = (exporter(), exporter());
    let (now, ago) = (now(), 2 * SECONDS_PER_HOUR);
    listener.send(&right, &v5(now, ago, 1, 1, SERVER));
    listener.send(&right, &ipfix(now, ago));
    let rows = || {
        let rows = listener.daemon.client.hour((now - ago) / SECONDS_PER_HOUR);
        let rows = rows
            .into_iter()
            .map(|((_, source, destination, vpc), bytes)| {
                assert_eq!(vpc, "");
                row(&source, &destination, bytes.tx, bytes.rx)
            });
        rows.collect::<Vec<_>>()
    };
    let expected = [
        row("10.0.0.1", "10.0.0.2", 1000, 0),
        row("fd00::1", "fd00::2", 2000, 30),
    ];
    until("the flows to be counted", || rows() == expected);
    // The clock of another exporter is three hours behind.
    listener.send(&wrong, &v5(now - 3 * SECONDS_PER_HOUR, 0, 1, 1, SERVER));
    let hour = now / SECONDS_PER_HOUR;
    until("its flow to be counted now", || {
        // Another hour may have begun.
        let rows = [hour, hour + 1].map(|hour| listener.daemon.client.hour(hour));
        rows.concat().iter().map(|(_, bytes)| bytes.tx).eq([1000])
    });
    until("the metrics", || {
        listener.metric("wrong_clock_datagrams_total") == 1
    });
    assert_eq!(rows(), expected);
}

#[test]
fn ends_have_the_names_of_the_table() {
    let dir = tempfile::tempdir().unwrap();
    let apps = dir.path().join("apps");
    let table = "address,app\n10.0.0.1,web\n10.0.0.2:53,dns\n";
    std::fs::write(&apps, table).unwrap();
    let apps_argument = apps.to_str().unwrap();
    let arguments = ["--vpc-id", "vpc-7", "--unattributed", "unknown"];
    let listener = Listener::new(&[&arguments[..], &["--apps", apps_argument]].concat());
    let exporter = exporter();
    let named = || {
        let path = "/flows?from=0&to=4294967295&group_by=src_app,dest_app,vpc_id";
        let rows = listener.daemon.client.get(path, &[]).unwrap().json();
        let text = |row: &serde_json::Value, field: &str| row[field].as_str().unwrap().to_owned();
        let rows = rows.as_array().unwrap().iter().map(|row| {
            let names = ["src_app", "dest_app", "vpc_id"].map(|field| text(row, field));
            (names, row["bytes_tx"].as_u64().unwrap())
        });
        rows.collect::<BTreeMap<_, _>>()
    };
    let names = |dest: &str| ["web", dest, "vpc-7"].map(str::to_owned);
    listener.send(&exporter, &v5(now(), 0, 1, 1, SERVER));
    listener.send(&exporter, &v5(now(), 0, 2, 1, SERVER + 1));
    let expected = BTreeMap::from([(names("dns"), 1000), (names("unknown"), 1000)]);
    until("the flows to be counted", || named() == expected);
    // The table is read again.
    std::fs::write(&apps, format!("{table}10.0.0.3,new\n")).unwrap();
    let mut sequence = 3;
    until("the new name", || {
        listener.send(&exporter, &v5(now(), 0, sequence, 1, SERVER + 1));
        sequence += 1;
        named().contains_key(&names("new"))
    });
}

#[test]
fn samples_of_sflow_are_counted() {
    let listener = Listener::new(&[]);
    let exporter = exporter();
    for sequence in [77, 78, 80] {
        listener.send(&exporter, &sflow(sequence));
    }
    listener.until_rows(&[row("10.0.0.1", "10.0.0.2", 3 * 150_000, 0)].into());
    until("the metrics", || listener.metric("lost_flows_total") == 1);
}

#[test]
fn an_announced_sampling_rate_survives_a_restart() {
    let mut listener = Listener::new(&[]);
    let exporter = exporter();
    // Of an options template: the scope is the system; the sampler, and its rate.
    let options_template = halves(&[257, 4, 8, 1, 4, 48, 2, 50, 4]);
    let options = [words(&[0]), halves(&[5]), words(&[1000])].concat();
    // Source, destination, bytes, start and sampler.
    let template = halves(&[256, 5, 8, 4, 12, 4, 1, 4, 22, 4, 48, 2]);
    let record = [words(&[0x0a00_0001, SERVER, 7, 90_000]), halves(&[5])].concat();
    let sets = [
        set(1, &options_template),
        set(257, &options),
        set(0, &template),
        set(256, &record),
    ];
    listener.send(&exporter, &v9(1, &sets));
    listener.until_rows(&[row("10.0.0.1", "10.0.0.2", 7000, 0)].into());
    listener.stop();
    listener.start(&[]);
    listener.send(&exporter, &v9(2, &sets[3..]));
    listener.until_rows(&[row("10.0.0.1", "10.0.0.2", 14_000, 0)].into());
}

/// Each datagram is read, or is counted as dropped; and by the exporter's numbers, just those are missing.
#[test]
fn what_the_kernel_drops_is_known() {
    const DATAGRAMS: u32 = 20_000;
    const FLOWS: u32 = 30;
    let listener = Listener::new(&[]);
    let exporter = exporter();
    let send = |number: u32| {
        let flows = u16::try_from(FLOWS).unwrap();
        let datagram = v5(now(), 0, FLOWS * number, flows, SERVER);
        listener.send(&exporter, &datagram);
    };
    let metrics =
        || ["datagrams_total", "dropped_datagrams_total"].map(|name| listener.metric(name));
    send(1);
    until("a datagram to be read", || metrics() == [1, 0]);
    let process = listener.child.as_ref().unwrap();
    signal(process, "STOP");
    for number in 0..DATAGRAMS {
        send(2 + number);
    }
    signal(process, "CONT");
    let all = |sent: u32| move |[read, dropped]: [u64; 2]| read + dropped == u64::from(sent);
    until(
        "all to be read or dropped",
        || all(1 + DATAGRAMS)(metrics()),
    );
    // It shows the gap.
    send(2 + DATAGRAMS);
    until("the last one", || all(2 + DATAGRAMS)(metrics()));
    let [read, dropped] = metrics();
    assert!(dropped > 0, "{read}");
    let flows = u64::from(FLOWS);
    assert_eq!(listener.metric("lost_flows_total"), flows * dropped);
    assert_eq!(listener.metric("records_total"), flows * read);
    listener.until_rows(&[row("10.0.0.1", "10.0.0.2", 1000 * flows * read, 0)].into());
}
