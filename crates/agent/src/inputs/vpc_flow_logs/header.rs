//! Maps fields to columns by the header that AWS writes at the start of each file.

use flow::decode::lookalikes::has_time;

/// The default fields, version 2, for records without a header.
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
/// Names of fields that occur only in logs of transit gateways.
const TRANSIT_GATEWAY_FIELDS: [&str; 3] = ["tgw-", "packets-lost-", "resource-type"];
/// A line with at least this many names of fields contains a header.
const NAMES_OF_A_HEADER: usize = 2;

/// The fields that are needed for flows.
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

/// Whether flows are read from the field with this name, if a log has it.
pub fn is_read(name: &str) -> bool {
    Field::ALL.iter().any(|field| field.name() == name)
}

/// The columns of a log.
#[derive(Debug)]
pub(super) struct Columns {
    /// All names of the header, for error messages.
    pub(super) names: Vec<String>,
    at: [Option<usize>; Field::ALL.len()],
    /// The log has no header, so the default fields are assumed.
    pub(super) are_assumed: bool,
}

impl Columns {
    /// The columns of a log without a header.
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
                "Transit Gateway flow logs are not supported, since they record traffic at both attachments \
                 with opposite directions; give the flow logs of the VPCs"
                    .into(),
            );
        }
        let location = |name: &str| names.iter().position(|n| n == name);
        let at = Field::ALL.map(|field| location(field.name()));
        let has = |field: Field| at[field as usize].is_some();
        for (field, or) in [
            (Field::SrcAddr, Field::PktSrcAddr),
            (Field::DstAddr, Field::PktDstAddr),
            (Field::Bytes, Field::Bytes),
            (Field::Start, Field::Start),
        ] {
            if !has(field) && !has(or) {
                return Err(format!(
                    "its header has no {}; the flow log's format must have srcaddr, dstaddr, bytes \
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
    TRANSIT_GATEWAY_FIELDS.iter().any(|of| name.starts_with(of))
}

/// The position of a header in a line: at its first byte, or after a record without a line break. `None` if
/// there is none. Records do not contain names of fields.
pub(super) fn header_in(line: &str) -> Option<usize> {
    let is_name = |word: &str| NAMES.contains(&word) || is_of_transit_gateways(word);
    let begin_of = |word: &str| word.as_ptr() as usize - line.as_ptr() as usize;
    let words: Vec<&str> = line.split_whitespace().collect();
    if words.iter().filter(|word| is_name(word)).count() < NAMES_OF_A_HEADER {
        return None;
    }
    let first = words.iter().position(|word| is_name(word))?;
    let begin = begin_of(words[first]);
    // Unknown names may come first.
    if words[..first].iter().all(|word| looks_like_a_name(word)) && Columns::read(line).is_ok() {
        return Some(0);
    }
    // The first name may directly follow the last value of the record.
    let Some(before) = first.checked_sub(1).map(|at| words[at]) else {
        return Some(begin);
    };
    let glued = NAMES.iter().filter(|name| before.ends_with(*name));
    let glued = glued.map(|name| name.len()).max();
    Some(glued.map_or(begin, |length| begin_of(before) + before.len() - length))
}

/// The position of the last header in a text that begins with one. Files with only a header and no line break may
/// come before it.
pub(super) fn last_header(text: &str) -> usize {
    let begin_of = |word: &str| word.as_ptr() as usize - text.as_ptr() as usize;
    let mut begin = 0;
    for word in text.split_whitespace() {
        let Some(seam) = seam_in(word) else {
            continue;
        };
        let end = begin_of(word) + seam;
        if !is_one_header(&text[begin..end]) {
            return begin;
        }
        begin = end;
    }
    let rest = &text[begin..];
    let mut words = rest.split_whitespace();
    if words.clone().count() > 2 * NAMES.len() || is_one_header(rest) {
        return begin;
    }
    // With a blank between them. If there are several candidates, the boundary is unknown.
    let is_seam =
        |at: &usize| is_one_header(&text[begin..*at]) && is_one_header(text[*at..].trim_end());
    let mut seams = words.by_ref().map(begin_of).filter(is_seam);
    match (seams.next(), seams.next()) {
        (Some(seam), None) => seam,
        _ => begin,
    }
}

/// The offset of the second name in a word that consists of two.
fn seam_in(word: &str) -> Option<usize> {
    let is_name = |text: &str| NAMES.contains(&text);
    if is_name(word) {
        return None;
    }
    let firsts = NAMES.iter().filter_map(|name| {
        // A byte order mark may be between them.
        let rest = word.strip_prefix(name)?.trim_start_matches('\u{FEFF}');
        is_name(rest).then_some(word.len() - rest.len())
    });
    firsts.max()
}

/// Whether it is a usable header of known names, each once.
fn is_one_header(text: &str) -> bool {
    let text = text.trim_end_matches('\u{FEFF}');
    let names: Vec<&str> = text.split_whitespace().collect();
    names.len() <= NAMES.len()
        && names.iter().all(|name| NAMES.contains(name))
        && (1..names.len()).all(|at| !names[..at].contains(&names[at]))
        && Columns::read(text).is_ok()
}

/// Distinguishes names from addresses, numbers and AWS's status words, which are in upper case.
fn looks_like_a_name(word: &str) -> bool {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    word.starts_with(|c: char| c.is_ascii_lowercase()) && word.chars().all(is_part)
}

/// Whether `line` is the start of a flow log. A log without a header is detected only by the timestamp that
/// CloudWatch adds.
pub(in crate::inputs) fn begins_with(line: &str) -> bool {
    let record = bare(line);
    let is_timed = has_time(line.trim_start());
    let is_default = || record.starts_with("2 ") && record.split_whitespace().count() == 14;
    !record.contains(',') && header_in(record).is_some() || is_timed && is_default()
}

/// Strips what may surround a record: white space, byte order marks, and the timestamp that CloudWatch adds.
pub(super) fn bare(line: &str) -> &str {
    let text = line.trim_matches(|c: char| c.is_whitespace() || c == '\u{FEFF}');
    match text.split_once(char::is_whitespace) {
        Some((_, record)) if has_time(text) => record.trim_start(),
        _ => text,
    }
}
