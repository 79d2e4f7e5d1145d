//! Explains a refused body: recognises what the sender probably sent. Reads the body again, which costs valid bodies
//! nothing.

use serde_json::value::RawValue;

use super::lookalikes::{
    ForeignFormat, ZSTD, has_columns, recognize_bytes, recognize_csv, recognize_json,
    recognize_line, recognize_pretty,
};
use super::{BYTE_ORDER_MARK, DecodeError, Format, hints, is_blank, without_mark};
use crate::gzip;

/// UTF-8's byte order mark.
const MARK: &[u8] = BYTE_ORDER_MARK.as_bytes();
/// Bytes of the first line that are examined.
const LINE_BYTES_MAX: usize = 64 << 10;
/// Field names that occur in headers of VPC flow logs.
const OF_FLOW_LOGS: [&str; 6] = [
    "srcaddr",
    "dstaddr",
    "pkt-srcaddr",
    "pkt-dstaddr",
    "interface-id",
    "log-status",
];

/// Adds to `error` what `body` looks like.
pub(super) fn explain(error: DecodeError, body: &[u8], format: Format) -> DecodeError {
    let mut begin = body.trim_ascii_start();
    while let Some(rest) = begin.strip_prefix(MARK) {
        begin = rest.trim_ascii_start();
    }
    let of_all = |what: &str| DecodeError {
        index: None,
        field: None,
        what: suggest_send(what),
        at: None,
    };
    if begin.starts_with(gzip::MAGIC) || begin.starts_with(ZSTD) {
        let is = if begin.starts_with(ZSTD) {
            "zstd"
        } else {
            "gzip"
        };
        return of_all(&format!(
            "this is {is}: compress it once, and send Content-Encoding: {is} with it"
        ));
    }
    if let Some(known) = recognize_bytes(begin) {
        return of_all(&known.to_string());
    }
    let known = match begin.first() {
        None => None,
        Some(b'[') if format == Format::Json => describe_element(begin, error.index),
        Some(b'[') => Some(describe_arrays(begin)),
        Some(b'{') => describe_object(begin, error.index, format),
        Some(_) => match describe_text(begin) {
            Some(what) => return of_all(&what),
            None => None,
        },
    };
    match known {
        Some(known) => DecodeError {
            what: format!("{}; {}", error.what, suggest_send(&known)),
            ..error
        },
        None => error,
    }
}

/// The sender of a POST has no access to the data directory, so suggest `send`.
fn suggest_send(what: &str) -> String {
    what.replace("flowtally import", "flowtally send")
}

/// Describes the element at `index` of an array.
fn describe_element(array: &[u8], index: Option<usize>) -> Option<String> {
    let array = std::str::from_utf8(array).ok()?;
    recognize_json(hints::element(array, index?)?)
}

/// The hint for an array in a body of NDJSON.
fn describe_arrays(arrays: &[u8]) -> String {
    let mut values = serde_json::Deserializer::from_slice(arrays).into_iter::<&RawValue>();
    match values.nth(1).is_none() {
        true => "the body is an array: send it as Content-Type: application/json".into(),
        false => {
            "the body is several arrays: jq -c '.[]' FILE | flowtally import - sends what is in them".into()
        }
    }
}

/// Describes the object at `index`.
fn describe_object(begin: &[u8], index: Option<usize>, format: Format) -> Option<String> {
    let text = std::str::from_utf8(begin).ok()?;
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    let first = values.next()?.ok().map(RawValue::get);
    if let Some(first) = first.filter(|first| first.contains('\n')) {
        return Some(recognize_pretty(first));
    }
    match index {
        // The JSON decoder has already explained several objects.
        None if format == Format::Json => recognize_json(first?),
        _ => {
            let mut lines = text.split('\n').filter(|line| !is_blank(line));
            let line = without_mark(lines.nth(index.unwrap_or(0))?).trim();
            line.starts_with('{').then(|| recognize_line(line))?
        }
    }
}

/// The hint for a body that is not JSON.
fn describe_text(begin: &[u8]) -> Option<String> {
    let end = memchr::memchr2(b'\n', b'\r', begin).unwrap_or(begin.len());
    let line = String::from_utf8_lossy(&begin[..end.min(LINE_BYTES_MAX)]);
    if let Some(known) = recognize_csv(line.trim_end()).map(ForeignFormat::to_string) {
        return Some(known);
    }
    let names = |line: &str| {
        line.split_ascii_whitespace()
            .filter(|name| OF_FLOW_LOGS.contains(name))
            .count()
    };
    let is = if has_columns(&line.to_ascii_lowercase().replace('"', ""), ',') {
        "CSV"
    } else if names(&line) > 1 {
        "a VPC flow log"
    } else {
        return None;
    };
    Some(format!(
        "this is {is}, and a body is JSON: flowtally send FILE reads it"
    ))
}

#[cfg(test)]
mod tests {
    use super::super::{Format, decode};

    const FLOW: &str =
        r#"{"src_app":"a","dest_app":"b","vpc_id":"c","bytes_tx":1,"bytes_rx":1,"hour":1}"#;
    const RECORD: &str =
        r#"{"srcaddr":"10.0.0.1","dstaddr":"10.0.0.2","bytes":5,"start":1774746005}"#;

    fn why(body: &str, format: Format) -> String {
        decode(body.as_bytes(), format).unwrap_err().to_string()
    }

    #[test]
    fn a_refused_body_is_recognised_with_a_command_for_it() {
        let log = "version interface-id srcaddr dstaddr bytes start\n2 eni-1 10.0.0.1 10.0.0.2 5 1774746005\n";
        let record = "2 1 eni-1 10.0.0.1 10.0.0.2 1 2 6 1 5 1774746005 1774746064 ACCEPT OK\n";
        let (json, lines) = (Format::Json, Format::Ndjson);
        for (body, format, words) in [
            (
                log.into(),
                json,
                "a VPC flow log, and a body is JSON: flowtally send FILE",
            ),
            (
                log.into(),
                lines,
                "a VPC flow log, and a body is JSON: flowtally send FILE",
            ),
            (
                record.into(),
                json,
                "flowtally send --format vpc-flow-logs FILE",
            ),
            (
                record.into(),
                lines,
                "flowtally send --format vpc-flow-logs FILE",
            ),
            (format!("[{RECORD}]"), json, "a VPC flow log as JSON"),
            (
                format!("[{FLOW},\n{RECORD}]"),
                json,
                "a VPC flow log as JSON",
            ),
            (format!("{RECORD}\n"), lines, "a VPC flow log as JSON"),
            (format!("{RECORD}\n"), json, "a VPC flow log as JSON"),
            (
                format!("{FLOW}\n{RECORD}\n"),
                lines,
                "a VPC flow log as JSON",
            ),
            (
                format!("{FLOW},\n{FLOW}\n"),
                lines,
                "a comma follows the flow",
            ),
            (
                format!("{FLOW}\n{FLOW},\r\n{FLOW}"),
                lines,
                "a comma follows the flow",
            ),
            (format!("{FLOW},\n{FLOW}\n"), json, "commas between them"),
            (
                format!("{FLOW}{FLOW}\n"),
                lines,
                "several values are on one line",
            ),
            (
                format!("{FLOW}\n{FLOW} {FLOW}\n"),
                json,
                "several values are on one line",
            ),
            (
                format!("{FLOW}\r{FLOW}\r"),
                lines,
                "its lines end with CR alone",
            ),
            (
                "src_app,dest_app,vpc_id,bytes_tx,bytes_rx,hour\ra,b,c,1,1,1\r".into(),
                lines,
                "this is CSV",
            ),
        ] {
            let why = why(&body, format);
            assert!(
                why.contains(words) && !why.contains("flowtally import"),
                "{body}: {why}"
            );
        }
    }

    /// A hint names a field only if it can hold flows.
    #[test]
    fn a_field_that_holds_no_flows_is_not_named() {
        for (body, named) in [
            (r#"{"error":"x","code":5}"#, None),
            (r#"{"error":"x","codes":[5],"at":null}"#, None),
            (r#"{"count":1,"flows":[{"a":1}]}"#, Some("flows")),
            (r#"{"at":1,"data":{"items":[]}}"#, Some("data")),
            (r#"{"meta":{"a":1},"items": [ {"a":1}]}"#, Some("items")),
            (r#"{"items":[]}"#, Some("items")),
        ] {
            for body in [body.to_owned(), format!("{body}\n")] {
                let why = why(&body, Format::Json);
                assert!(why.contains("an array of flows is expected"), "{why}");
                match named {
                    Some(name) => assert!(why.contains(&format!("in its field {name:?}")), "{why}"),
                    None => assert!(!why.contains("in its field"), "{why}"),
                }
            }
        }
    }
}
