//! Recognizes input that resembles flows but is in another format: its name, and a command that converts it. One table
//! for files and for bodies of `POST /flows`, where FILE stands for the body.

use std::fmt;

use serde_json::value::RawValue;

use super::validate_flow;
use crate::gzip;

/// A known format that cannot be read.
#[derive(Debug)]
pub struct ForeignFormat {
    what: &'static str,
    next: &'static str,
    signature: Signature,
}

/// How a format is recognized.
#[derive(Debug)]
enum Signature {
    /// By these bytes at this offset.
    Magic(usize, &'static [u8]),
    /// By a JSON value that contains all these texts.
    Json(&'static [&'static str]),
    /// By the first line of CSV, in lower case and without quotes.
    Csv(fn(&str) -> bool),
}

use Signature::{Csv, Json, Magic};

/// The first bytes of a zstd file.
pub(super) const ZSTD: &[u8] = b"\x28\xB5\x2F\xFD";

/// Every flow contains this.
const NAME: &str = "\"src_app\"";

impl fmt::Display for ForeignFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this is {}; {}", self.what, self.next)
    }
}

const fn known(what: &'static str, signature: Signature, next: &'static str) -> ForeignFormat {
    ForeignFormat {
        what,
        next,
        signature,
    }
}

const TWICE: &str =
    "decompress it once: gzip -dc FILE | flowtally import - (of zstd: zstd -dc FILE)";
const TO_UTF_8: &str = "convert it to UTF-8 first: iconv -f UTF-16 -t UTF-8 FILE";
const TO_TEXT: &str =
    "convert it to CSV or NDJSON; AWS can deliver flow logs to S3 as text instead";
const BY_IMPORT: &str = "flowtally import reads it as a file of its own, neither piped nor compressed; others read CSV \
                         and NDJSON";
const TAR: &str = "read the files in it: tar -xOf FILE | flowtally import -";
const MESSAGES: &str = "take the records out: jq -r '.. | objects | (.message, .[\"@message\"], select(.field == \
                        \"@message\").value) | strings' FILE | flowtally import --format vpc-flow-logs -";
const READ_BY_SEND: &str = "flowtally send and flowtally import read it, as a file of its own: a log entry a line (jq -c .), \
                            or an array";
const NO_BYTES: &str =
    "they have no numbers of bytes: run flowtally-agent watch on the nodes instead";
const JQ_NESTED: &str = "take them out: jq -c '.. | objects | select(has(\"src_app\"))' FILE | flowtally \
                         import -";

const MESSAGES_AS_CSV: &str = "the CloudWatch console's CSV, or that of Logs Insights";

/// The first match wins.
const KNOWN: &[ForeignFormat] = &[
    known("compressed twice", Magic(0, b"\x1F\x8B"), TWICE),
    known("compressed twice", Magic(0, b"\x28\xB5\x2F\xFD"), TWICE),
    known(
        "UTF-32",
        Magic(0, b"\xFF\xFE\0\0"),
        "convert it to UTF-8 first: iconv -f UTF-32 -t UTF-8 FILE",
    ),
    known(
        "UTF-32",
        Magic(0, b"\0\0\xFE\xFF"),
        "convert it to UTF-8 first: iconv -f UTF-32 -t UTF-8 FILE",
    ),
    known("UTF-16", Magic(0, b"\xFF\xFE"), TO_UTF_8),
    known("UTF-16", Magic(0, b"\xFE\xFF"), TO_UTF_8),
    known("Parquet", Magic(0, b"PAR1"), BY_IMPORT),
    known("encrypted Parquet", Magic(0, b"PARE"), "decrypt it first"),
    known("Avro", Magic(0, b"Obj\x01"), TO_TEXT),
    known("ORC", Magic(0, b"ORC"), TO_TEXT),
    known("a tar archive", Magic(257, b"ustar"), TAR),
    known(
        "a ZIP archive, as .xlsx workbooks are",
        Magic(0, b"PK\x03\x04"),
        "unzip -p FILE | flowtally import -; or save the sheet as CSV",
    ),
    known(
        "bzip2",
        Magic(0, b"BZh"),
        "bzip2 -dc FILE | flowtally import -",
    ),
    known(
        "xz",
        Magic(0, b"\xFD7zXZ\0"),
        "xz -dc FILE | flowtally import -",
    ),
    known(
        "lz4",
        Magic(0, b"\x04\x22\x4D\x18"),
        "lz4 -dc FILE | flowtally import -",
    ),
    known(
        "compress (.Z)",
        Magic(0, b"\x1F\x9D"),
        "gzip -dc FILE | flowtally import -",
    ),
    known(
        "Snappy",
        Magic(0, b"\xFF\x06\0\0sNaPpY"),
        "decompress it first",
    ),
    known(
        "7-Zip",
        Magic(0, b"7z\xBC\xAF\x27\x1C"),
        "7z x -so FILE | flowtally import -",
    ),
    known(
        "XML or HTML, perhaps the error page of a download",
        Magic(0, b"<"),
        "look at it: head -c 1000 FILE",
    ),
    known(
        "a JSON text sequence (RFC 7464)",
        Magic(0, b"\x1E"),
        "remove its separators: tr -d '\\036' <FILE | flowtally import -",
    ),
    known("an Azure flow log", Json(&["\"flowTuples\""]), READ_BY_SEND),
    known(
        "an Azure flow log",
        Json(&["\"FlowLogFlowEvent\""]),
        READ_BY_SEND,
    ),
    known(
        "an Azure flow log",
        Json(&["\"NetworkSecurityGroupFlowEvent\""]),
        READ_BY_SEND,
    ),
    known(
        "a Google Cloud VPC flow log",
        Json(&["\"jsonPayload\"", "\"connection\""]),
        READ_BY_SEND,
    ),
    known(
        "a Google Cloud VPC flow log",
        Json(&["\"logName\"", "vpc_flows"]),
        READ_BY_SEND,
    ),
    known(
        "Hubble's (Cilium's) flows",
        Json(&["\"flow\"", "\"verdict\""]),
        NO_BYTES,
    ),
    known(
        "Hubble's (Cilium's) flows",
        Json(&["\"IP\"", "\"verdict\""]),
        NO_BYTES,
    ),
    known(
        "the envelope of a CloudWatch subscription",
        Json(&["\"messageType\"", "\"logEvents\""]),
        "take the records out: jq -r 'select(.messageType==\"DATA_MESSAGE\").logEvents[].message' FILE | \
         flowtally import --format vpc-flow-logs - (of a .gz: gzip -dc FILE | jq …)",
    ),
    known(
        "what aws logs prints",
        Json(&["\"events\"", "\"message\"", "\"timestamp\""]),
        "take the records out: jq -r '.events[].message' FILE | flowtally import --format vpc-flow-logs -",
    ),
    known(
        "a flow log's record as a message in JSON",
        Json(&["message\"", " OK\""]),
        MESSAGES,
    ),
    known(
        "a flow log's record as a message in JSON",
        Json(&["message\"", " NODATA\""]),
        MESSAGES,
    ),
    known(
        "a flow log's record as a message in JSON",
        Json(&["message\"", " SKIPDATA\""]),
        MESSAGES,
    ),
    known(
        "a Transit Gateway flow log as JSON, which records what passes at both attachments",
        Json(&["\"srcaddr\"", "\"tgw"]),
        "it is not supported: use the flow logs of the VPCs",
    ),
    known(
        "a VPC flow log as JSON",
        Json(&["\"srcaddr\"", "\"dstaddr\"", "\"bytes\"", "\"start\""]),
        // Without action, log-status and flow-direction, refused traffic would count, and both ends of a flow.
        "convert it to text: (echo srcaddr dstaddr bytes start action log-status flow-direction vpc-id pkt-srcaddr \
         pkt-dstaddr interface-id; jq -r '.. | objects | select(has(\"start\")) | with_entries(.key |= \
         gsub(\"_\"; \"-\")) | [.srcaddr, .dstaddr, .bytes, .start, .action, .[\"log-status\"], \
         .[\"flow-direction\"], .[\"vpc-id\"], .[\"pkt-srcaddr\"], .[\"pkt-dstaddr\"], .[\"interface-id\"]] | \
         map(tostring | if . == \"\" or . == \"null\" then \"-\" else . end) | join(\" \")' FILE) | flowtally \
         import -",
    ),
    known(
        "Telegraf's JSON",
        Json(&["\"tags\"", "\"fields\"", "\"src_app\""]),
        "convert it to flows: jq -c '(.metrics // [.])[] | .tags + .fields' FILE | flowtally import -",
    ),
    known(
        "an object with flows in it",
        Json(&["\"src_app\"", "\"dest_app\""]),
        JQ_NESTED,
    ),
    known(
        "CSV for Excel, with a sep= line first",
        Csv(|line| line.starts_with("sep=")),
        "remove that line: tail -n +2 FILE | flowtally import -",
    ),
    known(
        "CSV with semicolons instead of commas, as spreadsheets write it in many countries",
        Csv(|line| has_columns(line, ';')),
        "replace them with commas: tr ';' ',' <FILE | flowtally import - (if no name has either in it)",
    ),
    known(
        "CSV with tabs instead of commas",
        Csv(|line| has_columns(line, '\t')),
        "replace them with commas: tr '\\t' ',' <FILE | flowtally import - (if no name has either in it)",
    ),
    known(
        "CSV with | instead of commas",
        Csv(|line| has_columns(line, '|')),
        "replace them with commas: tr '|' ',' <FILE | flowtally import - (if no name has either in it)",
    ),
    known(
        "CSV in which a column has no name, as spreadsheets write an empty one",
        Csv(|line| has_columns(line, ',') && line.split(',').any(|name| name.trim().is_empty())),
        "delete that column; of an empty last one: cut -d, -f1-6 FILE | flowtally import - (if no name has a \
         comma in it)",
    ),
    known(
        "CSV without a header",
        Csv(|line| {
            let values = line.split(',').map(|value| value.trim().parse::<u64>());
            values.clone().count() == 6 && values.filter(Result::is_ok).count() >= 3
        }),
        "put one first that has its columns in their order, as in: (echo \
         src_app,dest_app,vpc_id,bytes_tx,bytes_rx,hour; cat FILE) | flowtally import -",
    ),
    known(
        MESSAGES_AS_CSV,
        Csv(|line| has_message(line, |at| at == 0)),
        "take the records out: tail -n +2 FILE | cut -d, -f1 | tr -d '\"' | flowtally import --format \
         vpc-flow-logs -",
    ),
    known(
        MESSAGES_AS_CSV,
        Csv(|line| has_message(line, |at| at == 1)),
        "take the records out: tail -n +2 FILE | cut -d, -f2 | tr -d '\"' | flowtally import --format \
         vpc-flow-logs -",
    ),
    known(
        MESSAGES_AS_CSV,
        Csv(|line| has_message(line, |at| at == 2)),
        "take the records out: tail -n +2 FILE | cut -d, -f3 | tr -d '\"' | flowtally import --format \
         vpc-flow-logs -",
    ),
    known(
        MESSAGES_AS_CSV,
        Csv(|line| has_message(line, |_| true)),
        "take the records out: tail -n +2 FILE | cut -d, -fN | tr -d '\"' | flowtally import --format \
         vpc-flow-logs - (N is the number of the column)",
    ),
    known(
        "a VPC flow log as CSV, as Athena writes it",
        Csv(|line| line.contains("srcaddr") && line.contains("dstaddr") && line.contains(',')),
        "convert it to text: sed 's/\"\"/-/g; s/\"//g; 1s/_/-/g; y/,/ /' FILE | flowtally import -",
    ),
    known(
        "a VPC flow log with its format, ${…}, instead of a header",
        Csv(|line| line.contains("${srcaddr}") || line.contains("${pkt-srcaddr}")),
        "convert that to a header: sed '1s/[${}]//g' FILE | flowtally import -",
    ),
    known(
        "a log with a time before each line",
        Csv(has_time),
        "if it is a VPC flow log, cut off what is before its records: cut -d' ' -f2- FILE | flowtally import \
         --format vpc-flow-logs -; and put a header first where its fields are not the default ones",
    ),
    known(
        "a log with a date and a time before each line",
        Csv(|line| has_form(line, b"dddd-dd-dd dd:dd:dd")),
        "if it is a VPC flow log, cut off what is before its records: cut -d' ' -f3- FILE | flowtally import \
         --format vpc-flow-logs -; and put a header first where its fields are not the default ones",
    ),
    known(
        "a VPC flow log without its header",
        Csv(|line| line.starts_with("2 ") && line.split_ascii_whitespace().count() == 14),
        "if its fields are the default ones: flowtally import --format vpc-flow-logs FILE; else put the header \
         first",
    ),
    known(
        "not text in UTF-8",
        Csv(|line| {
            line.contains(|c: char| {
                c == char::REPLACEMENT_CHARACTER || c.is_control() && !c.is_whitespace()
            })
        }),
        "only gzip and zstd files can be read",
    ),
];

/// The format of input that starts with these bytes.
pub fn recognize_bytes(begin: &[u8]) -> Option<&'static ForeignFormat> {
    let known = find(|signature| match signature {
        Magic(at, magic) => begin.get(*at..).is_some_and(|rest| rest.starts_with(magic)),
        _ => false,
    });
    // ASCII text in UTF-32 or UTF-16 without a byte order mark.
    let mark: &[u8] = match begin {
        [0, 0, 0, other, ..] | [other, 0, 0, 0, ..] if *other > 0 => b"\xFF\xFE\0\0",
        [0, other, ..] | [other, 0, ..] if *other > 0 => b"\xFF\xFE",
        _ => return known,
    };
    known.or_else(|| find(|signature| matches!(signature, Magic(0, magic) if *magic == mark)))
}

/// The format of CSV with this first line.
pub fn recognize_csv(line: &str) -> Option<&'static ForeignFormat> {
    let line = line.to_ascii_lowercase().replace('"', "");
    find(|signature| matches!(signature, Csv(is) if is(&line)))
}

/// Explains why a JSON value, or the start of one, is not a flow; `None` if it is not recognized.
pub fn recognize_json(value: &str) -> Option<String> {
    if !value.starts_with(['{', '[']) || value.contains(NAME) && has_own_name(value) {
        return None;
    }
    let has_all = |has: &[&str]| has.iter().all(|&has| value.contains(has));
    let found = find(|signature| matches!(signature, Json(has) if has_all(has)));
    // Field names can be written with escapes.
    let is_flow = || validate_flow(value).is_ok();
    found.filter(|_| !is_flow()).map(ForeignFormat::to_string)
}

/// Explains why a line is not a flow; `None` if it is not recognized, or may be one.
pub fn recognize_line(line: &str) -> Option<String> {
    if line.starts_with('[') {
        return Some(
            "an array, and not a flow; --format json reads arrays one after the other".into(),
        );
    }
    if !line.starts_with('{') {
        return None;
    }
    if line.ends_with(',') {
        return Some(
            "a comma follows the flow, as in an array that has lost its brackets: remove it, or put all \
             in [ ]"
                .into(),
        );
    }
    let mut names = memchr::memmem::find_iter(line.as_bytes(), NAME);
    let first = names.next().map(|at| &line[..at + NAME.len()]);
    if first.is_some_and(has_own_name) && names.next().is_none() {
        return None;
    }
    let mut values = serde_json::Deserializer::from_str(line).into_iter::<&RawValue>();
    let first = values.next()?.ok()?;
    let rest = line[values.byte_offset()..].trim_start();
    let ends_with_cr = line[values.byte_offset()..].starts_with('\r');
    match recognize_json(first.get()) {
        known if !rest.starts_with('{') => known,
        None if ends_with_cr => Some(
            "its lines end with CR alone, as of old Macs: tr '\\r' '\\n' <FILE | flowtally import -".into(),
        ),
        known => Some(format!(
            "several values are on one line; {}",
            known.unwrap_or_else(|| "jq -c . FILE | flowtally import - reads them one a line".into())
        )),
    }
}

/// The hint for an object that spans several lines.
pub fn recognize_pretty(object: &str) -> String {
    recognize_json(object).unwrap_or_else(|| {
        "this is an object over several lines, and a flow has to be on one, or all in [ ]: jq -c . FILE | \
         flowtally import -"
            .into()
    })
}

/// Explains why a body is not compressed with its declared `encoding`, gzip or zstd, and how to send it.
pub fn recognize_encoded(body: &[u8], encoding: &str) -> Option<String> {
    let is = match body {
        _ if body.starts_with(gzip::MAGIC) => "gzip",
        _ if body.starts_with(ZSTD) => "zstd",
        [b'[' | b'{' | b' ' | b'\r' | b'\n' | b'\t', ..] => {
            return Some("it is not compressed: leave Content-Encoding out".into());
        }
        _ => return recognize_bytes(body).map(ForeignFormat::to_string),
    };
    (is != encoding).then(|| format!("it is {is}: send Content-Encoding: {is}"))
}

fn find(is: impl Fn(&Signature) -> bool) -> Option<&'static ForeignFormat> {
    KNOWN.iter().find(|known| is(&known.signature))
}

/// Whether a header has the names of flows in columns separated by `separator`.
pub(super) fn has_columns(line: &str, separator: char) -> bool {
    let names = line.split(separator).map(str::trim);
    names
        .filter(|name| ["src_app", "dest_app", "vpc_id", "hour"].contains(name))
        .count()
        >= 2
}

/// Whether an object has [`NAME`] itself, not inside a value.
pub fn has_own_name(value: &str) -> bool {
    let (mut depth, mut in_string, mut is_escaped) = (0_usize, false, false);
    value.bytes().enumerate().any(|(at, byte)| {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' if depth == 1 && !in_string && value[at..].starts_with(NAME) => return true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        false
    })
}

/// Whether a header has the column of messages, next to a time or under Logs Insights' name, at an index (from 0) for
/// which `is` holds.
fn has_message(line: &str, is: fn(usize) -> bool) -> bool {
    let mut names = line.split(',').map(str::trim);
    let at = names.position(|name| {
        name == "@message"
            || name == "message" && line.split(',').any(|name| name.trim() == "timestamp")
    });
    at.is_some_and(is)
}

/// Whether the text starts like 2026-03-29T01:00:05.000Z.
pub fn has_time(text: &str) -> bool {
    has_form(text, b"dddd-dd-ddTdd:dd:dd")
}

/// Whether the text matches `form`, in which d is a digit, and is longer.
fn has_form(text: &str, form: &[u8]) -> bool {
    text.len() > form.len()
        && text.bytes().zip(form).all(|(byte, form)| match form {
            b'd' => byte.is_ascii_digit(),
            form => byte.eq_ignore_ascii_case(form),
        })
}
