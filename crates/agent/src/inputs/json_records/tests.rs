//! Records as their programs write them, and awkward ones.

use super::super::{InputFormat, Reader};
use super::*;
use std::sync::Arc;

/// A line for each record: the flow's values, the reason to skip it, or the error.
fn read(text: &str, count: Count, apps: &str) -> Vec<String> {
    let apps = Arc::new(Apps::read(apps.as_bytes()).unwrap());
    let mut lines = Vec::new();
    let reader = Reader::new(text.as_bytes(), None);
    let reader = reader.with_apps(apps).with_count(count);
    let result = reader.read(|raw| {
        lines.push(match &raw.unusable {
            Some(Unusable::Skipped(why)) => format!("{why:?}"),
            Some(Unusable::Invalid(why)) => format!("{}: {why}", raw.location),
            None => {
                let flow: Value = serde_json::from_str(raw.text).unwrap();
                let names =
                    ["src_app", "dest_app", "vpc_id"].map(|name| flow[name].as_str().unwrap());
                let numbers = ["bytes_tx", "bytes_rx", "hour"].map(|name| flow[name].to_string());
                format!("{} {}", names.join(" "), numbers.join(" "))
            }
        });
        ControlFlow::Continue(())
    });
    result.unwrap();
    lines
}

const NO_APPS: &str = "address,app\n";
const APPS: &str = "address,app\n10.20.0.0/24,web\n10.20.0.9,db\n";

#[test]
fn goflow2() {
    let records = "\
{\"type\":\"SFLOW_5\",\"time_received_ns\":1774746005081863000,\"sequence_num\":2998,\"sampling_rate\":100,\"sampler_address\":\"127.0.0.1\",\"time_flow_start_ns\":1774746005081863000,\"time_flow_end_ns\":1774746005081863000,\"bytes\":1500,\"packets\":1,\"src_addr\":\"10.20.0.5\",\"dst_addr\":\"10.20.0.9\",\"etype\":\"IPv4\",\"proto\":\"TCP\",\"src_port\":40112,\"dst_port\":5432,\"in_if\":1,\"out_if\":2}
{\"type\":\"IPFIX\",\"time_received_ns\":1774746005081863000,\"sampling_rate\":0,\"sampler_address\":\"127.0.0.1\",\"time_flow_start_ns\":0,\"bytes\":7,\"src_addr\":\"::ffff:10.20.0.5\",\"dst_addr\":\"2001:DB8::1\"}
{\"type\":\"IPFIX\",\"time_received_ns\":1774746005081863000,\"sampler_address\":\"127.0.0.1\",\"bytes\":7,\"src_addr\":\"\",\"dst_addr\":\"2001:db8::1\"}
{\"type\":\"IPFIX\",\"time_received_ns\":1774746005081863000,\"sampler_address\":\"127.0.0.1\",\"src_addr\":\"10.20.0.5\",\"dst_addr\":\"2001:db8::1\"}
{\"type\":\"IPFIX\",\"time_rec
";
    let expected = [
        "web db  150000 0 492985",
        "web 2001:db8::1  7 0 492985",
        "line 3: src_addr: \"\" is not an address",
        "line 4: bytes: missing",
        "line 5: not valid JSON: ",
    ];
    let lines = read(records, Count::Both, APPS);
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}");
    }
    assert_eq!(lines.len(), expected.len());
}

#[test]
fn goflow2_before_version_2() {
    let record = r#"{"Type":"NETFLOW_V5","TimeFlowEnd":1774746010,"TimeFlowStart":1774746005,"TimeReceived":1774746020,"Bytes":70,"Packets":1,"SamplingRate":10,"SamplerAddress":"192.168.1.254","DstAddr":"10.20.0.9","SrcAddr":"10.20.0.5","InIf":1}"#;
    assert_eq!(
        read(record, Count::Both, NO_APPS),
        ["10.20.0.5 10.20.0.9  700 0 492985"]
    );
}

#[test]
fn akvorado() {
    let records = r#"{"TimeReceived":"2026-03-29 01:00:05","SamplingRate":"1000","ExporterAddress":"::ffff:192.0.2.1","ExporterName":"r1","SrcAddr":"::ffff:10.20.0.5","DstAddr":"::ffff:10.20.0.9","Bytes":"1500","Packets":"1"}
{"TimeReceived":1774746005,"SamplingRate":1,"ExporterAddress":"192.0.2.1","SrcAddr":"10.20.0.5","DstAddr":"10.20.0.9","Bytes":18446744073709551615}
{"TimeReceived":"2026-03-29 01:00:05","SamplingRate":2,"ExporterAddress":"192.0.2.1","SrcAddr":"10.20.0.5","DstAddr":"10.20.0.9","Bytes":18446744073709551615}
{"TimeReceived":"yesterday","SamplingRate":2,"ExporterAddress":"192.0.2.1","SrcAddr":"10.20.0.5","DstAddr":"10.20.0.9","Bytes":1}
"#;
    let expected = [
        "10.20.0.5 10.20.0.9  1500000 0 492985",
        "10.20.0.5 10.20.0.9  18446744073709551615 0 492985",
        "10.20.0.5 10.20.0.9  18446744073709551615 0 492985",
        "line 4: TimeReceived: \"yesterday\" is not a time",
    ];
    assert_eq!(read(records, Count::Both, NO_APPS), expected);
}

fn gcp(reporter: &str, more: &str) -> String {
    format!(
        "{{\"insertId\":\"1a\",\"jsonPayload\":{{\"bytes_sent\":\"8400\",\"connection\":{{\"src_ip\":\"10.20.0.5\",\
         \"dest_ip\":\"10.20.0.9\",\"protocol\":6}},\"reporter\":\"{reporter}\",\"start_time\":\"2026-03-29T01:00:05Z\"\
         {more}}},\"logName\":\"projects/p/logs/compute.googleapis.com%2Fvpc_flows\"}}\n"
    )
}

/// The reporter is the source application, whichever direction the bytes have.
#[test]
fn google_cloud() {
    let details = ",\"src_vpc\":{\"vpc_name\":\"a\"},\"dest_vpc\":{\"vpc_name\":\"b\"},\
                   \"src_instance\":{\"vm_name\":\"vm-1\"},\"dest_gke_details\":{\"pod\":{\"pod_name\":\"db-0\",\
                   \"pod_workload\":{\"workload_name\":\"postgres\"}}},\"dest_instance\":{\"vm_name\":\"gke-1\"}";
    let records = gcp("SRC", details) + &gcp("DEST", details) + &gcp("MIDDLE", "");
    let expected = [
        "vm-1 postgres a 8400 0 492985",
        "postgres vm-1 b 0 8400 492985",
        "line 3: jsonPayload.reporter: \"MIDDLE\" is neither SRC nor DEST",
    ];
    assert_eq!(read(&records, Count::Both, NO_APPS), expected);
    // The table comes before the names of the record.
    assert_eq!(
        read(&records, Count::Both, APPS)[0],
        "web db a 8400 0 492985"
    );
    let sender = ["vm-1 postgres a 8400 0 492985", "OtherEnd"];
    assert_eq!(read(&records, Count::Sender, NO_APPS)[..2], sender);
    let receiver = ["OtherEnd", "postgres vm-1 b 0 8400 492985"];
    assert_eq!(read(&records, Count::Receiver, NO_APPS)[..2], receiver);
}

/// As the console downloads them.
#[test]
fn an_array_of_records() {
    let records: Vec<Value> = [gcp("SRC", ""), gcp("MIDDLE", ""), gcp("DEST", "")]
        .iter()
        .map(|record| serde_json::from_str(record).unwrap())
        .collect();
    let lines = read(
        &serde_json::to_string_pretty(&records).unwrap(),
        Count::Both,
        NO_APPS,
    );
    assert_eq!(lines[0], "10.20.0.5 10.20.0.9  8400 0 492985");
    assert!(
        lines[1].starts_with("flow 1: jsonPayload.reporter"),
        "{}",
        lines[1]
    );
    assert_eq!(lines[2], "10.20.0.9 10.20.0.5  0 8400 492985");
}

/// Traffic that both ends have recorded counts twice, with a warning.
#[test]
fn both_ends_are_noticed() {
    let warnings = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let to = warnings.clone();
    let records = gcp("SRC", "") + &gcp("DEST", "");
    let reader = Reader::new(records.as_bytes(), Some(InputFormat::GcpFlowLogs));
    let reader = reader.with_warning(move |text| to.lock().push(text.to_owned()));
    reader.read(|_| ControlFlow::Continue(())).unwrap();
    let warnings = warnings.lock();
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].starts_with("line 2: traffic from 10.20.0.5 to 10.20.0.9"),
        "{warnings:?}"
    );
}
