//! AWS VPC Flow Logs as text: version 2 to 5 and later, with their fields in any order, by the header
//! line that AWS writes at the top of each file. A file that begins with a digit has none, and the
//! default fields of version 2.
//!
//! What a flow takes from a record:
//!
//! | flow | record |
//! |---|---|
//! | `hour` | `start` / 3600: hours since the epoch |
//! | `vpc_id` | `vpc-id`; empty where there is none |
//! | source, destination | `pkt-srcaddr`, `pkt-dstaddr`, the ends of the way; where there is none of these, `srcaddr`, `dstaddr` |
//! | `src_app`, `dest_app` | source and destination; the other way round where `flow-direction` is `ingress` |
//! | `bytes_tx` | `bytes`; 0 where `flow-direction` is `ingress` |
//! | `bytes_rx` | 0; `bytes` where `flow-direction` is `ingress` |
//!
//! So the instance whose interface it is comes first, and what arrived there is what it received. An
//! address becomes the application that [`Apps`] has for it, or stays as it is. Records with `NODATA`,
//! `SKIPDATA` or `REJECT` stand for no traffic. `-` is AWS's way to write that there is no value.

use std::fmt::Write as _;
use std::io::Read;
use std::net::IpAddr;
use std::ops::{ControlFlow, Range};

use super::window::Window;
use super::{Apps, Fault, InputError, NoTraffic, Place, Sink, Unit, newlines, push_json_string};

const DEFAULT_HEADER: &str = "version account-id interface-id srcaddr dstaddr srcport dstport \
                              protocol packets bytes start end action log-status";

const SECONDS_PER_HOUR: u64 = 3600;
/// From 2000 up to but without 2100: milliseconds are not in there, and no record of AWS's is elsewhere.
const START_SECONDS: Range<u64> = 946_684_800..4_102_444_800;

/// The fields of a record that matter here.
#[derive(Clone, Copy, PartialEq)]
enum Field {
    SrcAddr,
    DstAddr,
    PktSrcAddr,
    PktDstAddr,
    Bytes,
    Start,
    VpcId,
    FlowDirection,
    Action,
    LogStatus,
}

impl Field {
    const ALL: [Field; 10] = [
        Field::SrcAddr,
        Field::DstAddr,
        Field::PktSrcAddr,
        Field::PktDstAddr,
        Field::Bytes,
        Field::Start,
        Field::VpcId,
        Field::FlowDirection,
        Field::Action,
        Field::LogStatus,
    ];

    const fn name(self) -> &'static str {
        match self {
            Field::SrcAddr => "srcaddr",
            Field::DstAddr => "dstaddr",
            Field::PktSrcAddr => "pkt-srcaddr",
            Field::PktDstAddr => "pkt-dstaddr",
            Field::Bytes => "bytes",
            Field::Start => "start",
            Field::VpcId => "vpc-id",
            Field::FlowDirection => "flow-direction",
            Field::Action => "action",
            Field::LogStatus => "log-status",
        }
    }
}

/// Reads from `line` on. A header may come again: files are put one after the other.
pub(super) fn read(
    mut window: Window<impl Read>,
    mut line: u64,
    apps: &Apps,
    sink: &mut dyn Sink,
) -> Result<(), InputError> {
    let mut columns = None;
    let mut json = String::new();
    while let Some(end) = window.fill_lines(line)? {
        let text = &window.text()[..end];
        for (number, record) in (line..).zip(text.split(|&byte| byte == b'\n')) {
            let record = String::from_utf8_lossy(record);
            let record = record.trim();
            if record.is_empty() {
                continue;
            }
            let columns = match &mut columns {
                Some(columns) if !is_header(record) => columns,
                columns => {
                    let has_header = !begins_with_a_digit(record);
                    let header = if has_header { record } else { DEFAULT_HEADER };
                    let header = Columns::read(header).map_err(|why| {
                        InputError::Malformed(format!(
                            "line {number}: read as VPC flow logs, {why}"
                        ))
                    })?;
                    let header = columns.insert(header);
                    if has_header {
                        continue;
                    }
                    header
                }
            };
            json.clear();
            let fault = columns.write_json(record, apps, &mut json).err();
            let unit = Unit {
                place: Place::Line(number),
                text: if fault.is_some() { record } else { &json },
                fault,
            };
            if sink.flow(unit) == ControlFlow::Break(()) {
                return Ok(());
            }
        }
        line += newlines(text);
        window.consume(end);
    }
    Ok(())
}

/// Whether `line` is where a flow log begins; one that has no header cannot be told.
pub(super) fn begins_with(line: &str) -> bool {
    line.starts_with("version ") || !line.contains(',') && is_header(line)
}

/// Every header has this in it, or `pkt-srcaddr`, and no record has. No name begins with a digit.
fn is_header(line: &str) -> bool {
    !begins_with_a_digit(line) && line.contains(Field::SrcAddr.name())
}

fn begins_with_a_digit(line: &str) -> bool {
    line.starts_with(|c: char| c.is_ascii_digit())
}

/// Which field is where.
struct Columns {
    /// As in the header, to name what is missing.
    names: Vec<String>,
    at: [Option<usize>; Field::ALL.len()],
}

impl Columns {
    fn read(header: &str) -> Result<Columns, String> {
        let names: Vec<String> = header.split_whitespace().map(str::to_owned).collect();
        let place = |name: &str| names.iter().position(|n| n == name);
        let at = Field::ALL.map(|field| place(field.name()));
        let has = |field: Field| at[field as usize].is_some();
        for (field, or) in [
            (Field::SrcAddr, Field::PktSrcAddr),
            (Field::DstAddr, Field::PktDstAddr),
            (Field::Bytes, Field::Bytes),
            (Field::Start, Field::Start),
        ] {
            if !has(field) && !has(or) {
                return Err(format!(
                    "its header has no {}; the flow log's format has to have srcaddr, dstaddr, bytes \
                     and start, and the header comes first",
                    field.name()
                ));
            }
        }
        Ok(Columns { names, at })
    }

    /// Appends the flow of a record.
    fn write_json(&self, record: &str, apps: &Apps, text: &mut String) -> Result<(), Fault> {
        let mut words = Vec::with_capacity(self.names.len());
        words.extend(record.split_ascii_whitespace());
        match self.names.get(words.len()) {
            Some(missing) => {
                return Err(Fault::Wrong(format!(
                    "{missing}: missing, the record has {} fields and the header {}",
                    words.len(),
                    self.names.len()
                )));
            }
            None if words.len() > self.names.len() => {
                return Err(Fault::Wrong(format!(
                    "{} fields, where the header has {}",
                    words.len(),
                    self.names.len()
                )));
            }
            None => {}
        }
        let record = Record {
            columns: self,
            words: &words,
        };
        record.check_traffic()?;
        record.write_json(apps, text).map_err(Fault::Wrong)
    }
}

/// One record of the right length.
struct Record<'a> {
    columns: &'a Columns,
    words: &'a [&'a str],
}

impl<'a> Record<'a> {
    /// `None` where the log has no such field, or the record no value.
    fn get(&self, field: Field) -> Option<&'a str> {
        let word = self.words[self.columns.at[field as usize]?];
        (word != "-").then_some(word)
    }

    fn check_traffic(&self) -> Result<(), Fault> {
        let wrong = |field: Field, value: &str, known: &str| {
            Fault::Wrong(format!("{}: {value:?} is not {known}", field.name()))
        };
        match self.get(Field::LogStatus) {
            Some("OK") => {}
            // A log without this field says it by having no values.
            None if self.get(Field::Bytes).is_some() || self.get(Field::SrcAddr).is_some() => {}
            None | Some("NODATA") => return Err(Fault::NoTraffic(NoTraffic::NoData)),
            Some("SKIPDATA") => return Err(Fault::NoTraffic(NoTraffic::SkipData)),
            Some(value) => {
                return Err(wrong(Field::LogStatus, value, "OK, NODATA or SKIPDATA"));
            }
        }
        match self.get(Field::Action) {
            Some("ACCEPT") | None => Ok(()),
            Some("REJECT") => Err(Fault::NoTraffic(NoTraffic::Reject)),
            Some(value) => Err(wrong(Field::Action, value, "ACCEPT or REJECT")),
        }
    }

    fn write_json(&self, apps: &Apps, text: &mut String) -> Result<(), String> {
        let source = self.app(apps, Field::PktSrcAddr, Field::SrcAddr)?;
        let destination = self.app(apps, Field::PktDstAddr, Field::DstAddr)?;
        let bytes = self.number(Field::Bytes)?;
        let start = self.number(Field::Start)?;
        if !START_SECONDS.contains(&start) {
            return Err(format!(
                "start: {start} is not a time from 2000 to 2099 in seconds since 1970"
            ));
        }
        let hour = start / SECONDS_PER_HOUR;
        let (apps, [tx, rx]) = match self.get(Field::FlowDirection) {
            Some("egress") | None => ([source, destination], [bytes, 0]),
            Some("ingress") => ([destination, source], [0, bytes]),
            Some(value) => {
                return Err(format!(
                    "flow-direction: {value:?} is neither ingress nor egress"
                ));
            }
        };
        text.push_str("{\"src_app\":");
        push_json_string(text, apps[0]);
        text.push_str(",\"dest_app\":");
        push_json_string(text, apps[1]);
        text.push_str(",\"vpc_id\":");
        push_json_string(text, self.get(Field::VpcId).unwrap_or_default());
        write!(
            text,
            ",\"bytes_tx\":{tx},\"bytes_rx\":{rx},\"hour\":{hour}}}"
        )
        .map_err(|e| e.to_string()) // never: it is a String
    }

    /// The application at the end of the way, or its address.
    fn app<'b>(&self, apps: &'b Apps, end: Field, or: Field) -> Result<&'b str, String>
    where
        'a: 'b,
    {
        let (field, text) = match self.get(end) {
            Some(text) => (end, text),
            None => (or, self.get(or).unwrap_or("-")),
        };
        let address: IpAddr = text
            .parse()
            .map_err(|_| format!("{}: {text:?} is not an address", field.name()))?;
        Ok(apps.of(address).unwrap_or(text))
    }

    fn number(&self, field: Field) -> Result<u64, String> {
        let text = self.get(field).unwrap_or("-");
        text.parse()
            .map_err(|_| format!("{}: {text:?} is not a number", field.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{InputFormat, Reader};
    use super::*;
    use std::sync::Arc;

    /// A line for each unit: the flow's values, what was skipped, or what is wrong.
    fn read(text: &str, apps: &str) -> (Vec<String>, Option<String>) {
        let apps = Arc::new(Apps::read(apps.as_bytes()).unwrap());
        let mut lines = Vec::new();
        let format = Some(InputFormat::VpcFlowLogs);
        let result = Reader::new(text.as_bytes(), format)
            .with_apps(apps)
            .read(|unit| {
                lines.push(match &unit.fault {
                    Some(Fault::NoTraffic(why)) => format!("{why:?}"),
                    Some(Fault::Wrong(why)) => format!("{}: {why}", unit.place),
                    None => values(unit.text),
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

    fn check(text: &str, apps: &str, expected: &[&str]) {
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
        check(log, NO_APPS, &expected);
        check(&format!("{DEFAULT_HEADER}\r\n{log}"), NO_APPS, &expected);
        // Files that were put one after the other.
        let twice = format!("{DEFAULT_HEADER}\n{log}{DEFAULT_HEADER}\n{log}");
        check(&twice, NO_APPS, &[expected, expected].concat());
        let mut mapped = expected;
        mapped[0] = "bastion web  4249 0 394036";
        mapped[4] = "203.0.113.12 bastion  336 0 398032";
        mapped[6] = "v6 2001:db8:1234:a102:3304:8879:34cf:4071  8855 0 410531";
        let apps =
            "address,app\n172.31.16.0/24,web\n172.31.16.139,bastion\n2001:db8:1234:a100::/64,v6\n";
        check(log, apps, &mapped);
    }

    #[test]
    fn custom_formats_of_versions_3_to_5() {
        // TCP flag sequence; one of the published records has two spaces in it.
        let log = "\
version vpc-id subnet-id instance-id interface-id account-id type srcaddr dstaddr srcport dstport pkt-srcaddr pkt-dstaddr protocol bytes packets start end action tcp-flags log-status
3 vpc-abcdefab012345678 subnet-aaaaaaaa012345678 i-01234567890123456 eni-1235b8ca123456789 123456789010 IPv4 52.213.180.42 10.0.0.62 43416 5001 52.213.180.42 10.0.0.62 6 568 8 1566848875 1566848933 ACCEPT 2 OK
3 vpc-abcdefab012345678 subnet-aaaaaaaa012345678 i-01234567890123456 eni-1235b8ca123456789 123456789010 IPv4 10.0.0.62 52.213.180.42 5001 43638  10.0.0.62 52.213.180.42 6 967 14 1566933133 1566933193 ACCEPT 19 OK
";
        check(
            log,
            "app,address,note\niperf,10.0.0.62,\n",
            &[
                "52.213.180.42 iperf vpc-abcdefab012345678 568 0 435235",
                "iperf 52.213.180.42 vpc-abcdefab012345678 967 0 435259",
            ],
        );
        // Traffic through a transit gateway, with bytes and start: the ends of the way count.
        let log = "\
version interface-id account-id vpc-id subnet-id instance-id srcaddr dstaddr srcport dstport protocol tcp-flags type pkt-srcaddr pkt-dstaddr bytes start action log-status
3 eni-11111111111111111 123456789010 vpc-abcdefab012345678 subnet-11111111aaaaaaaaa - 10.40.1.175 10.40.2.236 39812 80 6 3 IPv4 10.20.33.164 10.40.2.236 100 1566846000 ACCEPT OK
3 eni-22222222222222222 123456789010 vpc-abcdefab012345678 subnet-22222222bbbbbbbbb - 10.40.2.236 10.40.2.31 80 39812 6 19 IPv4 - 10.20.33.164 200 1566849599 ACCEPT OK
";
        check(
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
        check(
            log,
            "address,app\n10.0.0.0/16,batch\n52.95.0.0/16,s3\n",
            &[
                "batch s3 vpc-abcdefab012345678 0 15044 449091",
                "batch s3 vpc-abcdefab012345678 471 0 449091",
            ],
        );
    }

    #[test]
    fn fields_in_another_order_and_fields_to_come() {
        let log = "\
a-field-of-version-9 start vpc-id bytes dstaddr srcaddr
x 946684800 - 5 ::2 ::1
- 4102444799 - 5 ::2 ::1
- 3600 - - - -
";
        let expected = ["::1 ::2  5 0 262968", "::1 ::2  5 0 1139567", "NoData"];
        check(log, NO_APPS, &expected);
    }

    #[test]
    fn wrong_records_are_named_by_line_and_field() {
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
                "10 fields, where the header has 9",
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
    fn a_header_without_what_is_needed() {
        // The published format for traffic through a NAT gateway has neither bytes nor start.
        for (log, word) in [
            (
                "instance-id interface-id srcaddr dstaddr pkt-srcaddr pkt-dstaddr",
                "no bytes",
            ),
            ("version srcaddr dstaddr bytes\n", "no start"),
            (
                "\nsrc_app,dest_app\n",
                "line 2: read as VPC flow logs, its header has no srcaddr",
            ),
        ] {
            let (lines, error) = read(log, NO_APPS);
            let error = error.unwrap();
            assert!(lines.is_empty() && error.contains(word), "{error}");
        }
        check("", NO_APPS, &[]);
    }
}
