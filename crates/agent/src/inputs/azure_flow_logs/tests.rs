//! Logs as Microsoft documents them, and awkward ones.

use super::super::{InputFormat, Reader};
use super::*;
use std::sync::Arc;

/// A line for each tuple: the flow's values, the reason to skip it, or the error.
fn read_with(text: &str, count: Count) -> (Vec<String>, Option<String>) {
    let mut lines = Vec::new();
    let result = Reader::new(text.as_bytes(), None)
        .with_count(count)
        .read(|raw| {
            lines.push(match &raw.unusable {
                Some(Unusable::Skipped(why)) => format!("{why:?}"),
                Some(Unusable::Invalid(why)) => format!("{}: {why}", raw.location),
                None => {
                    let flow: Value = serde_json::from_str(raw.text).unwrap();
                    let names =
                        ["src_app", "dest_app", "vpc_id"].map(|name| flow[name].as_str().unwrap());
                    let numbers =
                        ["bytes_tx", "bytes_rx", "hour"].map(|name| flow[name].to_string());
                    format!("{} {}", names.join(" "), numbers.join(" "))
                }
            });
            ControlFlow::Continue(())
        });
    (lines, result.err().map(|error| error.to_string()))
}

fn read(text: &str) -> Vec<String> {
    let (lines, error) = read_with(text, Count::Both);
    assert_eq!(error, None);
    lines
}

fn of_network(tuples: &[&str]) -> String {
    format!(
        "{{\"records\":[{{\"time\":\"2026-03-29T01:00:05Z\",\"flowLogVersion\":4,\"macAddress\":\"002248C31CA3\",\
         \"category\":\"FlowLogFlowEvent\",\"targetResourceID\":\"/subscriptions/s/resourceGroups/g/providers/\
         Microsoft.Network/virtualNetworks/shop\",\"operationName\":\"FlowLogFlowEvent\",\"flowRecords\":{{\"flows\":\
         [{{\"aclID\":\"x\",\"flowGroups\":[{{\"rule\":\"r\",\"flowTuples\":{}}}]}}]}}}}]}}",
        serde_json::to_string(tuples).unwrap()
    )
}

#[test]
fn virtual_networks() {
    let log = of_network(&[
        "1774746005000,10.20.0.5,10.20.0.9,40112,5432,6,O,E,NX,10,8400,8,61000",
        "1774746009000,10.20.0.5,10.20.0.9,40112,5432,6,O,B,NX,,,,",
        "1774746009000,203.0.113.7,10.20.0.5,4011,443,6,I,C,X,1,10,2,20",
        "1774746009000,203.0.113.7,10.20.0.5,4011,22,6,I,D,NX,0,0,0,0",
        "1774746009000,203.0.113.7,10.20.0.5,4011,22,6,I,E,NX,0,many,0,0",
        "1774746009000,203.0.113.7,10.20.0.5,4011",
    ]);
    let expected = [
        "10.20.0.5 10.20.0.9 shop 8400 61000 492985",
        "NoData",
        "10.20.0.5 203.0.113.7 shop 20 10 492985",
        "Reject",
        "flow 4: its bytes sent: \"many\" is not a number",
        "flow 5: a tuple with 4 fields instead of 13",
    ];
    assert_eq!(read(&log), expected);
    let (lines, _) = read_with(&log, Count::Sender);
    assert_eq!(lines[2], "OtherEnd");
    // Pretty-printed, and several in one file.
    let pretty: Value = serde_json::from_str(&log).unwrap();
    let pretty = serde_json::to_string_pretty(&pretty).unwrap();
    let twice = read(&format!("{pretty}\n{log}"));
    assert_eq!(twice.len(), 2 * expected.len());
    assert_eq!(twice[6], expected[0]);
}

#[test]
fn network_security_groups() {
    let log = r#"{"records":[{"time":"2026-03-29T01:00:05Z","systemId":"a","macAddress":"00224871C205",
        "category":"NetworkSecurityGroupFlowEvent","resourceId":"/SUBSCRIPTIONS/S/NETWORKSECURITYGROUPS/N",
        "operationName":"NetworkSecurityGroupFlowEvents","properties":{"Version":2,"flows":[{"rule":"r","flows":[{
        "mac":"00224871C205","flowTuples":["1774746005,10.20.0.5,10.20.0.9,40112,5432,T,O,A,C,1,66,2,100",
        "1774746005,10.20.0.5,10.20.0.9,40112,5432,U,O,A,B,,,,",
        "1774746005,10.20.0.5,10.20.0.9,40112,5432,T,I,D,B,,,,",
        "1774746005,10.20.0.5,10.20.0.9,40112,5432,T,I,A"]}]}]}}]}"#;
    let lines = read(log);
    assert_eq!(
        lines[..3],
        ["10.20.0.5 10.20.0.9  66 100 492985", "NoData", "Reject"]
    );
    assert!(
        lines[3].starts_with("flow 3: a tuple of version 1, which has no bytes"),
        "{}",
        lines[3]
    );
}

/// Nothing of what was read before is lost, and the error says where it breaks off.
#[test]
fn a_log_that_is_cut_off() {
    let log =
        of_network(&["1774746005000,10.20.0.5,10.20.0.9,40112,5432,6,O,E,NX,10,8400,8,61000"]);
    let (lines, error) = read_with(&log[..log.len() - 3], Count::Both);
    assert_eq!(lines.len(), 1);
    assert!(error.unwrap().starts_with("not valid JSON: EOF"));
}

/// A record of a minute may be larger than a line may be.
#[test]
fn a_record_of_many_tuples() {
    let tuple = "1774746005000,10.20.0.5,10.20.0.9,40112,5432,6,O,C,NX,10,1,8,2";
    let log = of_network(&vec![tuple; 40_000]);
    assert!(log.len() > 2 << 20);
    assert_eq!(read(&log).len(), 40_000);
}

/// The same tuple at both interfaces of a conversation.
#[test]
fn both_ends_are_noticed() {
    let warnings = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let to = warnings.clone();
    let log = of_network(&[
        "1774746005000,10.20.0.5,10.20.0.9,40112,5432,6,O,E,NX,10,8400,8,61000",
        "1774746005000,10.20.0.5,10.20.0.9,40112,5432,6,I,E,NX,10,8400,8,61000",
    ]);
    let reader = Reader::new(log.as_bytes(), Some(InputFormat::AzureFlowLogs));
    let reader = reader.with_warning(move |text| to.lock().push(text.to_owned()));
    reader.read(|_| ControlFlow::Continue(())).unwrap();
    assert!(
        warnings.lock()[0].starts_with("flow 1: traffic from"),
        "{warnings:?}"
    );
}
