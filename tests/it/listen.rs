//! `flowtally-agent listen`: what exporters send is counted as it passed them. The exporters are softflowd and pmacctd,
//! which read a capture with known numbers of bytes, and datagrams made here.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::daemon::signal;
use crate::send::url;
use crate::support::{Daemon, has_program};
use crate::wait::{DEADLINE, poll_for, until};

/// Source, destination, and the bytes in both directions.
pub(crate) type Rows = BTreeMap<(String, String), [u64; 2]>;

/// The command, with a service.
pub(crate) struct Listener {
    pub(crate) daemon: Daemon,
    dir: tempfile::TempDir,
    address: SocketAddr,
    pub(crate) child: Option<Child>,
}

impl Listener {
    pub(crate) fn new(arguments: &[&str]) -> Listener {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(&dir.path().join("db"));
        // A port that is free now.
        let address = UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let mut listener = Listener {
            daemon,
            dir,
            address,
            child: None,
        };
        listener.start(arguments);
        listener
    }

    pub(crate) fn start(&mut self, arguments: &[&str]) {
        let metrics = self.dir.path().join("metrics");
        let _there_may_be_none = std::fs::remove_file(&metrics);
        let mut command = Command::new(Daemon::binary());
        command.args([
            "agent",
            "listen",
            "--interval",
            "1",
            "--url",
            &url(&self.daemon),
        ]);
        command.args(["--listen", &self.address.to_string(), "--state-dir"]);
        command
            .arg(self.dir.path().join("state"))
            .arg("--metrics-file")
            .arg(&metrics);
        self.child = Some(command.args(arguments).spawn().unwrap());
        until("it to listen", || metrics.exists());
    }

    pub(crate) fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        signal(&child, "TERM");
        assert!(child.wait().unwrap().success());
    }

    pub(crate) fn rows(&self) -> Rows {
        let path = "/flows?from=0&to=4294967295&group_by=src_app,dest_app";
        let answer = self.daemon.client.get(path, &[]).unwrap();
        let rows: Vec<serde_json::Value> = serde_json::from_slice(&answer.body).unwrap();
        let name = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_owned();
        let rows = rows.iter().map(|row| {
            let bytes = ["bytes_tx", "bytes_rx"].map(|key| row[key].as_u64().unwrap());
            ((name(row, "src_app"), name(row, "dest_app")), bytes)
        });
        rows.collect()
    }

    #[track_caller]
    pub(crate) fn until_rows(&self, expected: &Rows) {
        if poll_for(DEADLINE, || (self.rows() == *expected).then_some(())).is_none() {
            assert_eq!(self.rows(), *expected);
        }
    }

    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(self.dir.path().join("metrics")).unwrap();
        let line = format!("flowtally_agent_{name} ");
        let value = text.lines().find_map(|text| text.strip_prefix(&line));
        value
            .unwrap_or_else(|| panic!("no {name} in {text}"))
            .parse()
            .unwrap()
    }

    pub(crate) fn send(&self, from: &UdpSocket, datagram: &[u8]) {
        from.send_to(datagram, self.address).unwrap();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ended = child.kill();
            let _ended = child.wait();
        }
    }
}

pub(crate) fn now() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs().try_into().unwrap()
}

pub(crate) fn row(
    source: &str,
    destination: &str,
    tx: u64,
    rx: u64,
) -> ((String, String), [u64; 2]) {
    ((source.into(), destination.into()), [tx, rx])
}

/// A capture of UDP packets, and the bytes of IP that it has.
fn capture(path: &Path) -> Rows {
    let mut bytes: Vec<u8> = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        bytes.extend(word.to_ne_bytes());
    }
    let mut rows = Rows::new();
    for number in 0..200_u16 {
        let (source, destination) = (1 + number % 3, 10 + number % 2);
        let payload = vec![0; usize::from(number) * 5];
        let ip_length = u16::try_from(28 + payload.len()).unwrap();
        let mut packet = vec![0; 12];
        packet.extend([0x08, 0x00, 0x45, 0]);
        packet.extend(ip_length.to_be_bytes());
        packet.extend(number.to_be_bytes());
        packet.extend([0, 0, 64, 17, 0, 0]);
        packet.extend([10, 0, 0, u8::try_from(source).unwrap()]);
        packet.extend([10, 0, 0, u8::try_from(destination).unwrap()]);
        let sum = checksum(&packet[14..34]);
        packet[24..26].copy_from_slice(&sum.to_be_bytes());
        for word in [4000 + source, 53, ip_length - 20, 0] {
            packet.extend(word.to_be_bytes());
        }
        packet.extend(payload);
        let length = u32::try_from(packet.len()).unwrap();
        for word in [now() - 20, u32::from(number), length, length] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(packet);
        let key = (format!("10.0.0.{source}"), format!("10.0.0.{destination}"));
        rows.entry(key).or_default()[0] += u64::from(ip_length);
    }
    std::fs::write(path, bytes).unwrap();
    rows
}

fn checksum(header: &[u8]) -> u16 {
    let words = header
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

#[test]
fn softflowd_exports_what_a_capture_has() {
    if !has_program("softflowd") {
        return;
    }
    for version in ["5", "9", "10"] {
        let listener = Listener::new(&[]);
        let file = listener.dir.path().join("capture");
        let expected = capture(&file);
        let mut exporter = Command::new("timeout");
        exporter.args([
            "60",
            "softflowd",
            "-d",
            "-v",
            version,
            "-c",
            "none",
            "-p",
            "none",
        ]);
        exporter
            .args(["-n", &listener.address.to_string(), "-r"])
            .arg(&file);
        let output = exporter.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        listener.until_rows(&expected);
    }
}

#[test]
fn pmacctd_exports_what_a_capture_has() {
    if !has_program("pmacctd") {
        return;
    }
    for version in ["5", "9", "10"] {
        let listener = Listener::new(&[]);
        let file = listener.dir.path().join("capture");
        let expected = capture(&file);
        let configuration = format!(
            "daemonize: false\npcap_savefile: {}\nplugins: nfprobe\nnfprobe_receiver: {}\nnfprobe_version: {version}\n\
             aggregate: src_host, dst_host, src_port, dst_port, proto\n",
            file.display(),
            listener.address
        );
        let path = listener.dir.path().join("pmacctd.conf");
        std::fs::write(&path, configuration).unwrap();
        let output = Command::new("pmacctd")
            .arg("-f")
            .arg(&path)
            .output()
            .unwrap();
        // At its end, its processes may see each other go, which it reports as a failure. What it has exported counts.
        println!("{output:?}");
        listener.until_rows(&expected);
    }
}

/// A datagram of NetFlow 5 with one flow of 1,000 bytes.
fn v5(sequence: u32, sampling: u16) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend([0, 5, 0, 1]);
    for word in [100_000, now(), 0, sequence] {
        datagram.extend(u32::to_be_bytes(word));
    }
    datagram.extend([0, 0]);
    datagram.extend(sampling.to_be_bytes());
    for word in [
        0x0a00_0001,
        0x0a00_0002,
        0,
        0x0001_0002,
        10,
        1000,
        90_000,
        95_000,
        0x1000_0035,
        0x0000_0600,
        0,
        0,
    ] {
        datagram.extend(u32::to_be_bytes(word));
    }
    datagram
}

#[test]
fn sampling_and_gaps_are_counted() {
    let listener = Listener::new(&["--sampling-rate", "2"]);
    let exporter = UdpSocket::bind("127.0.0.1:0").unwrap();
    listener.send(&exporter, &v5(100, 0));
    listener.send(&exporter, &v5(104, 0x4000 | 10));
    listener.send(&exporter, b"something else");
    listener.until_rows(&[row("10.0.0.1", "10.0.0.2", 2_000 + 10_000, 0)].into());
    until("the metrics", || listener.metric("lost_flows_total") == 3);
    until("the metrics", || {
        listener.metric("malformed_datagrams_total") == 1
    });
    assert_eq!(listener.metric("records_total"), 2);
}

/// A datagram of NetFlow 9: its template or not, and a flow of `bytes`.
fn v9(sequence: u32, with_template: bool, direction: u8, bytes: u32) -> Vec<u8> {
    let mut sets: Vec<u8> = Vec::new();
    // IPv4 source and destination, bytes, start, direction.
    let fields: [[u16; 2]; 5] = [[8, 4], [12, 4], [1, 4], [22, 4], [61, 1]];
    if with_template {
        let length = u16::try_from(8 + 4 * fields.len()).unwrap();
        for half in [0, length, 256, 5]
            .into_iter()
            .chain(fields.into_iter().flatten())
        {
            sets.extend(half.to_be_bytes());
        }
    }
    for half in [256_u16, 4 + 17 + 3] {
        sets.extend(half.to_be_bytes());
    }
    for word in [0x0a00_0001, 0x0a00_0002, bytes, 90_000] {
        sets.extend(u32::to_be_bytes(word));
    }
    sets.extend([direction, 0, 0, 0]);
    let mut datagram = vec![0, 9, 0, 1 + u8::from(with_template)];
    for word in [100_000, now(), sequence, 7] {
        datagram.extend(u32::to_be_bytes(word));
    }
    datagram.extend(sets);
    datagram
}

#[test]
fn templates_survive_a_restart() {
    let mut listener = Listener::new(&[]);
    let exporter = UdpSocket::bind("127.0.0.1:0").unwrap();
    listener.send(&exporter, &v9(1, true, 0, 100));
    listener.until_rows(&[row("10.0.0.1", "10.0.0.2", 100, 0)].into());
    until("the templates to be kept", || {
        listener.dir.path().join("state/templates").exists()
    });
    listener.stop();
    listener.start(&[]);
    listener.send(&exporter, &v9(2, false, 0, 10));
    listener.until_rows(&[row("10.0.0.1", "10.0.0.2", 110, 0)].into());
}

#[test]
fn records_before_their_template_wait_for_it() {
    let listener = Listener::new(&[]);
    let exporter = UdpSocket::bind("127.0.0.1:0").unwrap();
    listener.send(&exporter, &v9(1, false, 0, 10));
    until("the metrics", || {
        listener.metric("sets_without_template_total") == 1
    });
    listener.send(&exporter, &v9(2, true, 0, 100));
    listener.until_rows(&[row("10.0.0.1", "10.0.0.2", 110, 0)].into());
}

/// One flow, as it enters a router and as it leaves it.
#[test]
fn one_direction_may_count_alone() {
    for (count, bytes) in [("both", 200), ("sender", 100), ("receiver", 100)] {
        let listener = Listener::new(&["--count", count]);
        let exporter = UdpSocket::bind("127.0.0.1:0").unwrap();
        listener.send(&exporter, &v9(1, true, 0, 100));
        listener.send(&exporter, &v9(2, true, 1, 100));
        listener.until_rows(&[row("10.0.0.1", "10.0.0.2", bytes, 0)].into());
        let others = u64::from(count != "both");
        until("the metrics", || {
            listener.metric("other_end_records_total") == others
        });
    }
}

#[test]
fn only_listed_exporters_count() {
    let listener = Listener::new(&["--exporters", "10.0.0.0/8"]);
    let exporter = UdpSocket::bind("127.0.0.1:0").unwrap();
    listener.send(&exporter, &v5(1, 0));
    until("the metrics", || {
        listener.metric("foreign_datagrams_total") == 1
    });
    assert_eq!(listener.metric("datagrams_total"), 0);
}

/// A signal reports what was received, also while the service is down: the next start sends it.
#[test]
fn a_report_waits_for_the_service() {
    let mut listener = Listener::new(&[]);
    let exporter = UdpSocket::bind("127.0.0.1:0").unwrap();
    listener.daemon.kill();
    listener.send(&exporter, &v5(1, 0));
    until("the datagram", || listener.metric("records_total") == 1);
    listener.stop();
    listener.daemon = Daemon::start(&listener.dir.path().join("db"));
    listener.start(&[]);
    listener.until_rows(&[row("10.0.0.1", "10.0.0.2", 1000, 0)].into());
}
