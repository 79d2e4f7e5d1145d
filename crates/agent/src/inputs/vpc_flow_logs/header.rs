//! Which field of a record is where: the header says it, which AWS writes at the top of each file.

use flow::decode::lookalikes::has_time;

/// Of a record that has no header: the fields of version 2, which are the default.
pub(super) const DEFAULT: &str = "version account-id interface-id srcaddr dstaddr srcport dstport protocol packets \
                       bytes start end action log-status";
/// All fields of VPC flow logs, up to version 10.
const NAMES: [&str; 42] = [
    "version",
    "account-id",
    "interface-id",
    "srcaddr",
    "dstaddr",
    "srcport",
    "dstport",
    "protocol",
    "packets",
    "bytes",
    "start",
    "end",
    "action",
    "log-status",
    "vpc-id",
    "subnet-id",
    "instance-id",
    "tcp-flags",
    "type",
    "pkt-srcaddr",
    "pkt-dstaddr",
    "region",
    "az-id",
    "sublocation-type",
    "sublocation-id",
    "pkt-src-aws-service",
    "pkt-dst-aws-service",
    "flow-direction",
    "traffic-path",
    "ecs-cluster-arn",
    "ecs-cluster-name",
    "ecs-container-instance-arn",
    "ecs-container-instance-id",
    "ecs-container-id",
    "ecs-second-container-id",
    "ecs-service-name",
    "ecs-task-definition-arn",
    "ecs-task-arn",
    "ecs-task-id",
    "reject-reason",
    "resource-id",
    "encryption-status",
];
/// How fields are called that only the logs of transit gateways have.
const OF_TRANSIT_GATEWAYS: [&str; 3] = ["tgw-", "packets-lost-", "resource-type"];
/// A line with so many names of fields in it is a header, or holds one.
const NAMES_OF_A_HEADER: usize = 2;

/// The fields of a record that matter here.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Field {
    Version,
    InterfaceId,
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
    const ALL: [Field; 12] = [
        Field::Version,
        Field::InterfaceId,
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

    pub(super) const fn name(self) -> &'static str {
        match self {
            Field::Version => "version",
            Field::InterfaceId => "interface-id",
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

/// Which field is where.
#[derive(Debug)]
pub(super) struct Columns {
    /// As in the header, to name what is missing.
    pub(super) names: Vec<String>,
    at: [Option<usize>; Field::ALL.len()],
    /// There is no header, and the fields are taken for the default ones.
    pub(super) are_assumed: bool,
}

impl Columns {
    /// Those of a log without a header.
    pub(super) fn assumed() -> Result<Columns, String> {
        let columns = Columns::read(DEFAULT)?;
        Ok(Columns {
            are_assumed: true,
            ..columns
        })
    }

    pub(super) fn at(&self, field: Field) -> Option<usize> {
        self.at[field as usize]
    }

    pub(super) fn read(header: &str) -> Result<Columns, String> {
        let names: Vec<String> = header.split_whitespace().map(str::to_owned).collect();
        if names.iter().any(|name| is_of_transit_gateways(name)) {
            return Err(
                "this is a Transit Gateway flow log, which records what passes at both attachments, with \
                 its directions turned, and is not read: give the flow logs of the VPCs"
                    .into(),
            );
        }
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
        let count = |field: &Field| names.iter().filter(|&name| name == field.name()).count();
        match Field::ALL.iter().find(|field| count(field) > 1) {
            Some(twice) => Err(format!("its header has {} twice", twice.name())),
            None => Ok(Columns {
                names,
                at,
                are_assumed: false,
            }),
        }
    }
}

fn is_of_transit_gateways(name: &str) -> bool {
    OF_TRANSIT_GATEWAYS.iter().any(|of| name.starts_with(of))
}

/// Where on a line a header begins: at its first byte, or behind a record that has no line break. `None`
/// where there is none. A record has no names of fields in it.
pub(super) fn header_in(line: &str) -> Option<usize> {
    let is_name = |word: &str| NAMES.contains(&word) || is_of_transit_gateways(word);
    let begin_of = |word: &str| word.as_ptr() as usize - line.as_ptr() as usize;
    let words: Vec<&str> = line.split_whitespace().collect();
    if words.iter().filter(|word| is_name(word)).count() < NAMES_OF_A_HEADER {
        return None;
    }
    let first = words.iter().position(|word| is_name(word))?;
    let begin = begin_of(words[first]);
    // Names that are not known yet may come first.
    if words[..first].iter().all(|word| looks_like_a_name(word)) && Columns::read(line).is_ok() {
        return Some(0);
    }
    // The first name may stand behind the last value of the record.
    let Some(before) = first.checked_sub(1).map(|at| words[at]) else {
        return Some(begin);
    };
    let glued = NAMES.iter().filter(|name| before.ends_with(*name));
    let glued = glued.map(|name| name.len()).max();
    Some(glued.map_or(begin, |length| begin_of(before) + before.len() - length))
}

/// Unlike addresses, numbers, and what AWS says of a record, which is in capitals.
fn looks_like_a_name(word: &str) -> bool {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    word.starts_with(|c: char| c.is_ascii_lowercase()) && word.chars().all(is_part)
}

/// Whether `line` is where a flow log begins; one that has no header cannot be told, but for the time
/// that CloudWatch puts first.
pub(in crate::inputs) fn begins_with(line: &str) -> bool {
    let record = bare(line);
    let is_timed = has_time(line.trim_start());
    let is_default = || record.starts_with("2 ") && record.split_whitespace().count() == 14;
    !record.contains(',') && header_in(record).is_some() || is_timed && is_default()
}

/// A line without what can be around a record: white space, byte order marks, and the time at which
/// CloudWatch took it.
pub(super) fn bare(line: &str) -> &str {
    let text = line.trim_matches(|c: char| c.is_whitespace() || c == '\u{FEFF}');
    match text.split_once(char::is_whitespace) {
        Some((_, record)) if has_time(text) => record.trim_start(),
        _ => text,
    }
}
