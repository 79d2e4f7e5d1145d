//! Records as AWS documents them, and invalid ones.

use super::super::{InputFormat, Reader};
use super::header::DEFAULT;
use super::*;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// A line for each record: the flow's values, the reason to skip it, or the error.
fn read(text: &str, apps: &str) -> (Vec<String>, Option<String>) {
    let apps = Arc::new(Apps::read(apps.as_bytes()).unwrap());
    let mut lines = Vec::new();
    let format = Some(InputFormat::VpcFlowLogs);
    let result = Reader::new(text.as_bytes(), format)
        .with_apps(apps)
        .read(|raw| {
            lines.push(match &raw.unusable {
                Some(Unusable::Skipped(why)) => format!("{why:?}"),
                Some(Unusable::Invalid(why)) => format!("{}: {why}", raw.location),
                None => values(raw.text),
            });
            ControlFlow::Continue(())
        });
    (lines, result.err().map(|e| e.to_string()))
}

fn values(flow: &str) -> String {
    let flow: serde_json::Value = serde_json::from_str(flow).unwrap();
    let text = |field: &str| flow[field].as_str().unwrap().to_owned();
    let names = [text("src_app"), text("dest_app"), text("vpc_id")].join(" ");
    format!(
        "{names} {} {} {}",
        flow["bytes_tx"], flow["bytes_rx"], flow["hour"]
    )
}

fn assert_records(text: &str, apps: &str, expected: &[&str]) {
    assert_eq!(
        read(text, apps),
        (expected.iter().map(|&l| l.into()).collect(), None)
    );
}

const NO_APPS: &str = "address,app\n";

/// The examples of "Flow log record examples" in AWS's user guide.
#[test]
fn the_default_format() {
    let log = "\
2 123456789010 eni-1235b8ca123456789 172.31.16.139 172.31.16.21 20641 22 6 20 4249 1418530010 1418530070 ACCEPT OK
2 123456789010 eni-1235b8ca123456789 172.31.9.69 172.31.9.12 49761 3389 6 20 4249 1418530010 1418530070 REJECT OK
2 123456789010 eni-1235b8ca123456789 - - - - - - - 1431280876 1431280934 - NODATA
2 123456789010 eni-11111111aaaaaaaaa - - - - - - - 1431280876 1431280934 - SKIPDATA
2 123456789010 eni-1235b8ca123456789 203.0.113.12 172.31.16.139 0 0 1 4 336 1432917027 1432917142 ACCEPT OK
2 123456789010 eni-1235b8ca123456789 172.31.16.139 203.0.113.12 0 0 1 4 336 1432917094 1432917142 REJECT OK
2 123456789010 eni-1235b8ca123456789 2001:db8:1234:a100:8d6e:3477:df66:f105 2001:db8:1234:a102:3304:8879:34cf:4071 34892 22 6 54 8855 1477913708 1477913820 ACCEPT OK
";
    let expected = [
        "172.31.16.139 172.31.16.21  4249 0 394036",
        "Reject",
        "NoData",
        "SkipData",
        "203.0.113.12 172.31.16.139  336 0 398032",
        "Reject",
        "2001:db8:1234:a100:8d6e:3477:df66:f105 2001:db8:1234:a102:3304:8879:34cf:4071  8855 0 410531",
    ];
    assert_records(log, NO_APPS, &expected);
    assert_records(&format!("{DEFAULT}\r\n{log}"), NO_APPS, &expected);
    // Concatenated files.
    let twice = format!("{DEFAULT}\n{log}{DEFAULT}\n{log}");
    assert_records(&twice, NO_APPS, &[expected, expected].concat());
    let mut mapped = expected;
    mapped[0] = "bastion web  4249 0 394036";
    mapped[4] = "203.0.113.12 bastion  336 0 398032";
    mapped[6] = "v6 2001:db8:1234:a102:3304:8879:34cf:4071  8855 0 410531";
    let apps =
        "address,app\n172.31.16.0/24,web\n172.31.16.139,bastion\n2001:db8:1234:a100::/64,v6\n";
    assert_records(log, apps, &mapped);
}

#[test]
fn custom_formats_of_versions_3_to_5() {
    // TCP flag sequence; one of the published records has two spaces in it.
    let log = "\
version vpc-id subnet-id instance-id interface-id account-id type srcaddr dstaddr srcport dstport pkt-srcaddr pkt-dstaddr protocol bytes packets start end action tcp-flags log-status
3 vpc-abcdefab012345678 subnet-aaaaaaaa012345678 i-01234567890123456 eni-1235b8ca123456789 123456789010 IPv4 52.213.180.42 10.0.0.62 43416 5001 52.213.180.42 10.0.0.62 6 568 8 1566848875 1566848933 ACCEPT 2 OK
3 vpc-abcdefab012345678 subnet-aaaaaaaa012345678 i-01234567890123456 eni-1235b8ca123456789 123456789010 IPv4 10.0.0.62 52.213.180.42 5001 43638  10.0.0.62 52.213.180.42 6 967 14 1566933133 1566933193 ACCEPT 19 OK
";
    assert_records(
        log,
        "app,address,note\niperf,10.0.0.62,\n",
        &[
            "52.213.180.42 iperf vpc-abcdefab012345678 568 0 435235",
            "iperf 52.213.180.42 vpc-abcdefab012345678 967 0 435259",
        ],
    );
    // Traffic through a transit gateway, with bytes and start: the original endpoints count.
    let log = "\
version interface-id account-id vpc-id subnet-id instance-id srcaddr dstaddr srcport dstport protocol tcp-flags type pkt-srcaddr pkt-dstaddr bytes start action log-status
3 eni-11111111111111111 123456789010 vpc-abcdefab012345678 subnet-11111111aaaaaaaaa - 10.40.1.175 10.40.2.236 39812 80 6 3 IPv4 10.20.33.164 10.40.2.236 100 1566846000 ACCEPT OK
3 eni-22222222222222222 123456789010 vpc-abcdefab012345678 subnet-22222222bbbbbbbbb - 10.40.2.236 10.40.2.31 80 39812 6 19 IPv4 - 10.20.33.164 200 1566849599 ACCEPT OK
";
    assert_records(
        log,
        NO_APPS,
        &[
            "10.20.33.164 10.40.2.236 vpc-abcdefab012345678 100 0 435235",
            "10.40.2.236 10.20.33.164 vpc-abcdefab012345678 200 0 435235",
        ],
    );
    // To and from S3, with the fields of version 5.
    let log = "\
version srcaddr dstaddr srcport dstport protocol start end type packets bytes account-id vpc-id subnet-id instance-id interface-id region az-id sublocation-type sublocation-id action tcp-flags pkt-srcaddr pkt-dstaddr pkt-src-aws-service pkt-dst-aws-service traffic-path flow-direction log-status
5 52.95.128.179 10.0.0.71 80 34210 6 1616729292 1616729349 IPv4 14 15044 123456789012 vpc-abcdefab012345678 subnet-aaaaaaaa012345678 i-0c50d5961bcb2d47b eni-1235b8ca123456789 ap-southeast-2 apse2-az3 - - ACCEPT 19 52.95.128.179 10.0.0.71 S3 - - ingress OK
5 10.0.0.71 52.95.128.179 34210 80 6 1616729292 1616729349 IPv4 7 471 123456789012 vpc-abcdefab012345678 subnet-aaaaaaaa012345678 i-0c50d5961bcb2d47b eni-1235b8ca123456789 ap-southeast-2 apse2-az3 - - ACCEPT 3 10.0.0.71 52.95.128.179 - S3 8 egress OK
";
    assert_records(
        log,
        "address,app\n10.0.0.0/16,batch\n52.95.0.0/16,s3\n",
        &[
            "batch s3 vpc-abcdefab012345678 0 15044 449091",
            "batch s3 vpc-abcdefab012345678 471 0 449091",
        ],
    );
}

#[test]
fn fields_in_another_order_and_unknown_fields() {
    let log = "\
a-field-of-version-9 start vpc-id bytes dstaddr srcaddr
x 946684800 - 5 ::2 ::1
- 4102444799 - 5 ::2 ::1
- 3600 - - - -
";
    let expected = ["::1 ::2  5 0 262968", "::1 ::2  5 0 1139567", "NoData"];
    assert_records(log, NO_APPS, &expected);
}

#[test]
fn invalid_records_are_named_by_line_and_field() {
    let header = "version vpc-id srcaddr dstaddr bytes start flow-direction action log-status";
    for (record, expected) in [
        (
            "5 v 1.1.1.1 2.2.2.2 5 x egress ACCEPT OK",
            "start: \"x\" is not a number",
        ),
        (
            "5 v 1.1.1.1 2.2.2.2 -5 1 egress ACCEPT OK",
            "bytes: \"-5\" is not a number",
        ),
        (
            "5 v 1.1.1.1 2.2.2.2 - 1 egress ACCEPT OK",
            "bytes: \"-\" is not a number",
        ),
        (
            "5 v 1.1.1 2.2.2.2 5 1 egress ACCEPT OK",
            "srcaddr: \"1.1.1\" is not an address",
        ),
        (
            "5 v 1.1.1.1 - 5 1 egress ACCEPT OK",
            "dstaddr: \"-\" is not an address",
        ),
        (
            "5 v 1.1.1.1 2.2.2.2 5 1616729292 up ACCEPT OK",
            "flow-direction: \"up\" is neither",
        ),
        (
            "5 v 1.1.1.1 2.2.2.2 5 1 egress DROP OK",
            "action: \"DROP\" is not ACCEPT",
        ),
        (
            "5 v 1.1.1.1 2.2.2.2 5 1 egress ACCEPT FINE",
            "log-status: \"FINE\" is not OK",
        ),
        (
            "5 v 1.1.1.1 2.2.2.2 5 1",
            "flow-direction: missing, the record has 6 fields",
        ),
        (
            "5 v 1.1.1.1 2.2.2.2 5 1 egress ACCEPT OK OK",
            "10 fields, but the header has 9",
        ),
        (
            "5 v 1.1.1.1 2.2.2.2 5 18446744073709551615 egress ACCEPT OK",
            "start: 18446744073709551615 is not a time",
        ),
        (
            "5 v 1.1.1.1 2.2.2.2 5 1616729292000 egress ACCEPT OK",
            "start: 1616729292000 is not a time from 2000 to 2099 in seconds",
        ),
        (
            "5 v 1.1.1.1 2.2.2.2 5 4102444800 egress ACCEPT OK",
            "start: 4102444800 is not a time",
        ),
        (
            "5 v 1.1.1.1 2.2.2.2 5 946684799 egress ACCEPT OK",
            "start: 946684799 is not a time",
        ),
    ] {
        let (lines, error) = read(&format!("{header}\n\n{record}\n"), NO_APPS);
        assert_eq!(error, None);
        let expected = format!("line 3: {expected}");
        assert!(
            lines.len() == 1 && lines[0].starts_with(&expected),
            "{lines:?}"
        );
    }
}

#[test]
fn a_header_needs_the_fields_of_a_flow() {
    // The published format for traffic through a NAT gateway has neither bytes nor start.
    for (log, word) in [
        (
            "instance-id interface-id srcaddr dstaddr pkt-srcaddr pkt-dstaddr",
            "no bytes",
        ),
        ("version srcaddr dstaddr bytes\n", "no start"),
        ("srcaddr dstaddr bytes start srcaddr", "has srcaddr twice"),
        (
            "\nsrc_app,dest_app\n",
            "line 2: read as VPC flow logs, its header has no srcaddr",
        ),
    ] {
        let (lines, error) = read(log, NO_APPS);
        let error = error.unwrap();
        assert!(lines.is_empty() && error.contains(word), "{error}");
    }
    assert_records("", NO_APPS, &[]);
}

/// The command in the hint converts records in JSON into the same records as text.
#[test]
fn records_in_json_give_the_same_flows() {
    let header = "version interface-id srcaddr dstaddr bytes start action log-status flow-direction vpc-id pkt-srcaddr \
                  pkt-dstaddr";
    let records = [
        "5 eni-1 10.0.0.1 10.0.0.2 5 1774746005 ACCEPT OK egress vpc-1 10.0.0.1 203.0.113.5",
        "5 eni-1 10.0.0.2 10.0.0.1 7 1774746005 ACCEPT OK ingress vpc-1 203.0.113.5 10.0.0.1",
        "5 eni-1 10.0.0.2 10.0.0.1 9 1774746005 REJECT OK ingress vpc-1 203.0.113.5 10.0.0.1",
        "5 eni-2 - - - 1774746005 - NODATA - vpc-1 - -",
        "5 eni-2 10.0.0.3 10.0.0.4 0 1774746005 ACCEPT OK egress - - -",
    ];
    if Command::new("jq").arg("-V").output().is_err() {
        println!("NOT RUN, there is no jq");
        return;
    }
    // Names as AWS and as Athena spells them; missing values absent, null or "-"; single records and arrays.
    for (underline, no_value, is_array) in [
        (false, Some("\"-\""), false),
        (true, Some("null"), false),
        (true, Some("\"\""), true),
        (false, None, true),
    ] {
        let object = |record: &&str| {
            let fields = header.split_whitespace().zip(record.split(' '));
            let fields = fields.filter_map(|(name, value)| {
                let name = if underline {
                    name.replace('-', "_")
                } else {
                    name.into()
                };
                let number = value.parse::<u64>().map(|number| number.to_string());
                let value = match value {
                    "-" => no_value?.to_owned(),
                    value => number.unwrap_or_else(|_| format!("\"{value}\"")),
                };
                Some(format!("\"{name}\":{value}"))
            });
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        };
        let objects: Vec<String> = records.iter().map(object).collect();
        let json = match is_array {
            true => format!("[{}]", objects.join(",")),
            false => objects.join("\n"),
        };
        let hint = flow::decode::lookalikes::recognize_json(&objects[0]).unwrap();
        let command = hint.split_once("convert it to text: ").unwrap().1;
        let command = command.strip_suffix(" | flowtally import -").unwrap();
        let command = command.replace("FILE", "/dev/stdin");
        let mut shell = Command::new("sh")
            .args(["-c", &command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = shell.stdin.take().unwrap();
        input.write_all(json.as_bytes()).unwrap();
        drop(input);
        let made = String::from_utf8(shell.wait_with_output().unwrap().stdout).unwrap();
        let text = format!("{header}\n{}\n", records.join("\n"));
        let expected = read(&text, NO_APPS);
        assert_eq!(
            expected.0.iter().filter(|line| *line == "Reject").count(),
            1
        );
        assert_eq!(read(&made, NO_APPS), expected, "{made}");
    }
}
