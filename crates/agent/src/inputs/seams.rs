//! Concatenated files and unclosed quotes: no flow is read by the columns of another file, and no row becomes
//! part of a name.

use std::ops::ControlFlow;

use super::{Reader, Unusable};

/// The result for each line: the flow's values in the order of the API, or the reason why it is refused; then
/// the final error.
fn read(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let result = Reader::new(text.as_bytes(), None).read(|raw| {
        let location = raw.location;
        lines.push(match raw.unusable {
            Some(Unusable::Invalid(why)) => format!("{location}: {}: {why}", raw.text),
            Some(Unusable::Skipped(why)) => format!("{location}: {why:?}"),
            None => match serde_json::from_str::<serde_json::Value>(raw.text) {
                Ok(flow) => {
                    let names = ["src_app", "dest_app", "vpc_id"];
                    let names = names.map(|name| flow[name].as_str().unwrap().to_owned());
                    let sums = ["bytes_tx", "bytes_rx", "hour"].map(|name| flow[name].to_string());
                    format!("{location}: {} {}", names.join("|"), sums.join(" "))
                }
                Err(error) => format!("{location}: {error}"),
            },
        });
        ControlFlow::Continue(())
    });
    lines.extend(result.err().map(|e| e.to_string()));
    lines
}

fn assert_flows(text: &str, expected: &[&str]) {
    let lines = read(text);
    assert_eq!(lines.len(), expected.len(), "{text}: {lines:#?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{text}: {line}, not {expected}");
    }
}

const CSV: &str = "src_app,dest_app,vpc_id,bytes_tx,bytes_rx,hour\na,b,v,1,2,3";
const TURNED: &str = "hour,bytes_rx,bytes_tx,vpc_id,dest_app,src_app\n3,2,1,v,b,a";
const QUOTED: &str = "\"hour\",\"bytes_rx\",\"bytes_tx\",\"vpc_id\",\"dest_app\",\"src_app\"\r\n\"3\",\"2\",\"1\",\"v\",\
     \"b\",\"a\"";

#[test]
fn csv_after_csv() {
    let parts = [CSV, TURNED, QUOTED];
    for one in parts {
        for other in parts {
            for (seam, line) in [
                ("\n", 4),
                ("\r\n", 4),
                ("\n\n", 5),
                ("\n\u{FEFF}", 4),
                ("\r\n\u{FEFF}", 4),
                ("", 3),
                ("\u{FEFF}", 3),
                ("\r", 3),
            ] {
                let expected = ["line 2: a|b|v 1 2 3", &format!("line {line}: a|b|v 1 2 3")];
                assert_flows(&format!("{one}{seam}{other}\n"), &expected);
                assert_flows(&format!("\u{FEFF}{one}{seam}{other}"), &expected);
            }
        }
    }
}

/// A file may have only a header, without a line end.
#[test]
fn csv_after_a_header_without_rows() {
    let headers = [CSV, TURNED, QUOTED].map(|csv| csv.split(['\r', '\n']).next().unwrap());
    for other in [CSV, TURNED, QUOTED] {
        for mark in ["", "\u{FEFF}"] {
            for header in headers {
                let glued = format!("{header}{mark}{other}");
                assert_flows(&glued, &["line 2: a|b|v 1 2 3"]);
                let thrice = format!("{header}{mark}{header}{mark}{glued}\n");
                assert_flows(&thrice, &["line 2: a|b|v 1 2 3"]);
                let expected = ["line 2: a|b|v 1 2 3", "line 4: a|b|v 1 2 3"];
                assert_flows(&format!("{CSV}\n{glued}"), &expected);
                let expected = ["line 2: a|b|v 1 2 3", "line 3: a|b|v 1 2 3"];
                assert_flows(&format!("{TURNED}{mark}{glued}"), &expected);
            }
        }
    }
    // A line of a mebibyte is read in linear time.
    let headers = headers[0].repeat(20_000);
    assert_flows(&format!("{headers}{TURNED}"), &["line 2: a|b|v 1 2 3"]);
    assert_eq!(read(&format!("x{}{CSV}", &headers[..100])).len(), 1);
}

/// An unusable header ends the reading.
#[test]
fn csv_after_a_header_that_cannot_be_used() {
    for header in [
        "src_app,dest_app,bytes_tx,bytes_rx,hour", // no vpc_id
        "Src_App,dest_app,vpc_id,bytes_rx,bytes_tx,hour",
        "src_app,dest_app,vpc_id,bytes_rx,bytes_tx,hour,note",
        "src_app,dest_app,vpc_id,bytes_rx,bytes_tx,hour,",
        "src_app;dest_app;vpc_id;bytes_rx;bytes_tx;hour",
        "src_app,dest_app,vpc_id,bytes_tx,bytes_tx,hour",
        " src_app, dest_app, vpc_id, bytes_rx, bytes_tx, hour",
    ] {
        for (seam, line) in [("\n", 3), ("", 2), ("\u{FEFF}", 2)] {
            let text = format!("{CSV}{seam}{header}\na,b,v,2,1,3\n");
            let lines = read(&text);
            let last = lines.last().unwrap();
            let expected = format!("line {line}: there is a second header in it");
            assert!(last.starts_with(&expected), "{text}: {lines:#?}");
            assert_eq!(lines.len(), line - 1, "{text}: {lines:#?}");
        }
    }
    // Names of fields are valid names of applications.
    assert_flows(
        &format!("{CSV}\nsrc_app,dest_app,vpc_id,1,2,3\nhour,bytes_tx,,x,2,3"),
        &[
            "line 2: a|b|v",
            "line 3: src_app|dest_app|vpc_id 1 2 3",
            "line 4: hour|bytes_tx| \"x\" 2 3",
        ],
    );
}

/// The previous file is cut inside a row.
#[test]
fn csv_after_half_a_row() {
    for half in ["c,d", "c,\"d", "\"c", "c,d,v,1,2,"] {
        for seam in ["", "\n", "\u{FEFF}"] {
            let lines = read(&format!("{CSV}\n{half}{seam}{TURNED}\n3,2,1,v,b,e"));
            let (first, rest) = lines.split_at(2);
            assert!(first[0].starts_with("line 2: a|b|v 1 2 3"), "{lines:#?}");
            assert!(first[1].starts_with("line 3: c") || first[1].starts_with("line 3: \"c"));
            let line = 4 + usize::from(seam == "\n");
            let expected = [
                format!("line {line}: a|b|v 1 2 3"),
                format!("line {}: e|b|v 1 2 3", line + 1),
            ];
            assert_eq!(rest, expected, "{half}{seam}");
        }
    }
}

/// Text before an opening quote and after a closing one is not part of a record inside them.
#[test]
fn a_comma_before_a_line_break_inside_quotes() {
    let first = "hour,bytes_tx,bytes_rx,vpc_id,src_app,dest_app\n";
    let last = "src_app,dest_app,vpc_id,bytes_tx,bytes_rx,hour\n";
    for (text, expected) in [
        (
            format!("{first}7,1,2,v,\"web, eu\nproxy\",db\n7,1,2,v,web,db"),
            &["line 2: web, eu\nproxy|db|v 1 2 7", "line 4: web|db|v"][..],
        ),
        (
            format!("{last}a,\"web\nproxy, eu\",v,1,2,3\n"),
            &["line 2: a|web\nproxy, eu|v 1 2 3"],
        ),
        (
            format!("{last}\"web\nproxy, eu\",v,1,2,3\n"),
            &["line 2: \"web: part of", "line 3: proxy, eu\",v"],
        ),
        // A quote is missing, and another is one too many.
        (
            format!("{first}7,1,2,v,\"web,db\n8,1,2,v,web\",db\n"),
            &["line 2: 7,1,2,v,\"web,db: part of", "line 3: 8,1"],
        ),
        (
            format!("{last}a,b,\"v,1,2,3\nc,d,v\",1,2,3\n"),
            &["line 2: a,b,\"v,1,2,3: part of", "line 3: c,d"],
        ),
        (
            format!("{first}7,1,2,\"v,\"\"a\"\",b\n8,1,2,v\",a,b\n"),
            &["line 2: 7,1,2,\"v,\"\"a\"\",b: part of", "line 3: 8,1"],
        ),
    ] {
        assert_flows(&text, expected);
    }
    // In every order of the columns, and with the quotes at every column.
    let values = ["a", "b", "v", "1", "2", "3"];
    let names: Vec<&str> = last.trim().split(',').collect();
    for turn in 0..6 {
        let turned = |values: &[&str]| -> Vec<String> {
            let order = (0..6).map(|at| values[(at * 5 + turn) % 6].to_owned());
            order.collect()
        };
        let header = turned(&names).join(",");
        for quote in 0..6 {
            let (mut one, mut other) = (turned(&values), turned(&values));
            one[quote] = format!("\"{}", one[quote]);
            other[quote] = format!("{}\"", other[quote]);
            let text = format!("{header}\n{}\n{}\n", one.join(","), other.join(","));
            let lines = read(&text);
            assert_eq!(lines.len(), 2, "{text}: {lines:?}");
            assert!(lines[0].contains("part of a record"), "{text}: {lines:?}");
        }
    }
}

#[test]
fn a_record_on_several_lines_is_whole_or_refused() {
    let header = "src_app,dest_app,vpc_id,bytes_tx,bytes_rx,hour\n";
    for (text, expected) in [
        // Complete.
        (
            "\"a\nb\",c,v,1,2,3\nd,e,v,1,2,3",
            &["line 2: a\nb|c|v 1 2 3", "line 4: d|e|v"][..],
        ),
        (
            "a,\"b\"\"\r\n,c\",v,1,2,3\r\n",
            &["line 2: a|b\"\r\n,c|v 1 2 3"],
        ),
        ("a,b,\"\n\n\",1,2,3", &["line 2: a|b|\n\n 1 2 3"]),
        // An unclosed quote, and another quote in a later row.
        (
            "a,\"b,v,1,2,3\nd,e,v,1,2,3\nf,\"g\",v,1,2,3\n",
            &[
                "line 2: a,\"b,v,1,2,3: the quote is not closed",
                "line 3: d|e|v",
                "line 4: f|g|v",
            ],
        ),
        (
            "a,\"b,v,1,2,3\nd,e\",v,1,2,3\nf,g,v,1,2,3",
            &[
                "line 2: a,\"b,v,1,2,3: part of",
                "line 3: d,e\",v,1,2,3: part of",
                "line 4: f|g|v",
            ],
        ),
        (
            "a,b,\"v,1,2,3\nd,e,v,1,2,3\nf,g,v\",1,2,3",
            &[
                "line 2: a,b,\"v",
                "line 3: d,e,v,1,2,3: part of",
                "line 4: f,g,v\"",
            ],
        ),
        // Complete, with fewer or more columns.
        (
            "a,\"b\nc\",v,1,2\nd,e,v,1,2,3",
            &[
                "line 2: a,\"b: part of",
                "line 3: c\",v,1,2: part of",
                "line 4: d|e|v",
            ],
        ),
        (
            "a,\"b\nc\",v,1,2,3,4",
            &["line 2: a,\"b: part of", "line 3: c\",v,1,2,3,4: part of"],
        ),
        (
            "a,\"b\nc\",v,x,2,3",
            &["line 2: a,\"b: part of", "line 3: c\",v,x,2,3: part of"],
        ),
        // Never closed.
        (
            "a,\"b,v,1,2,3\nd,e,v,1,2,3",
            &["line 2: a,\"b,v,1,2,3: the quote is not", "line 3: d|e|v"],
        ),
        // On one line.
        (
            "a,\"b\"c,v,1,2,3\nd,e,v,1,2,3",
            &["line 2: a,\"b\"c,v,1,2,3: text after", "line 3: d|e|v"],
        ),
        ("a,b\"c,v,1,2,3", &["line 2: a|b\"c|v 1 2 3"]),
        (
            ",,,,,\nd,e,v,1,2,3",
            &["line 2: ,,,,,: an empty row", "line 3: d|e|v"],
        ),
        (",,v,1,2,3", &["line 2: ||v 1 2 3"]),
    ] {
        assert_flows(&format!("{header}{text}"), expected);
    }
}

const LOG: &str = "version interface-id srcaddr dstaddr packets bytes start action log-status\n\
    2 eni-0a 10.0.0.1 10.0.0.2 7 1000 1774746005 ACCEPT OK";
const LOG_TURNED: &str = "start bytes packets dstaddr srcaddr log-status type\n\
    1774746005 1000 7 10.0.0.2 10.0.0.1 OK IPv4";
const LOG_NEW: &str = "a-new-field pkt-srcaddr pkt-dstaddr bytes start srcaddr dstaddr\n\
    x 10.0.0.1 10.0.0.2 1000 1774746005 - -";
const DEFAULT: &str =
    "2 210987654321 eni-0a 10.0.0.1 10.0.0.2 40112 5432 6 7 1000 1774746005 1774746064 ACCEPT OK";

#[test]
fn a_log_after_a_log() {
    let flow = "10.0.0.1|10.0.0.2| 1000 0 492985";
    for one in [LOG, LOG_TURNED, LOG_NEW] {
        for other in [LOG, LOG_TURNED] {
            for (seam, line) in [
                ("\n", 4),
                ("\r\n", 4),
                ("\n\n\n", 6),
                ("\n\u{FEFF}", 4),
                ("", 3),
                ("\u{FEFF}", 3),
                (" ", 3),
                ("\n2026-03-29T01:00:05.000Z ", 4),
            ] {
                let expected = [format!("line 2: {flow}"), format!("line {line}: {flow}")];
                assert_eq!(
                    read(&format!("{one}{seam}{other}\n")),
                    expected,
                    "{one}{seam}{other}"
                );
            }
        }
        let twice = read(&format!("{one}\n{LOG_NEW}"));
        assert_eq!(
            twice,
            [format!("line 2: {flow}"), format!("line 4: {flow}")]
        );
        // A header with unknown names.
        let glued = read(&format!("{one}{LOG_NEW}"));
        assert_eq!(glued.len(), 2, "{glued:#?}");
        assert!(
            glued[1].contains("fields, but the header has"),
            "{glued:#?}"
        );
    }
    // From CloudWatch, without a header.
    let timed = format!("2026-03-29T01:00:05.000Z {DEFAULT}");
    let expected = [format!("line 1: {flow}"), format!("line 2: {flow}")];
    assert_eq!(read(&format!("{timed}{LOG_TURNED}")), expected);
}

/// A file may have only a header, without a line end.
#[test]
fn a_log_after_a_header_without_records() {
    let flow = "10.0.0.1|10.0.0.2| 1000 0 492985";
    let headers = [LOG, LOG_TURNED].map(|log| log.split('\n').next().unwrap());
    for other in [LOG, LOG_TURNED] {
        for mark in ["", "\u{FEFF}"] {
            for header in headers {
                let glued = format!("{header}{mark}{other}");
                assert_eq!(read(&glued), [format!("line 2: {flow}")], "{glued}");
                let thrice = format!("{header}{mark}{header}{mark}{glued}\n");
                assert_eq!(read(&thrice), [format!("line 2: {flow}")], "{thrice}");
                for (seam, line) in [("\n", 4), ("", 3)] {
                    let expected = [format!("line 2: {flow}"), format!("line {line}: {flow}")];
                    let after = format!("{LOG}{seam}{glued}");
                    assert_eq!(read(&after), expected, "{after}");
                }
            }
        }
    }
    // With a blank between them, the boundary is not always known.
    let same = format!("{} {LOG}", headers[0]);
    assert_eq!(read(&same), [format!("line 2: {flow}")]);
    let unknown = "version srcaddr dstaddr bytes start type srcaddr dstaddr bytes start\n";
    assert!(read(unknown)[0].contains("twice"), "{:?}", read(unknown));
}

#[test]
fn a_log_after_a_header_that_cannot_be_used() {
    for (header, word) in [
        (
            "version interface-id srcaddr dstaddr start",
            "its header has no bytes",
        ),
        (
            "version tgw-id srcaddr dstaddr bytes start",
            "Transit Gateway",
        ),
        ("version bytes bytes srcaddr dstaddr start", "bytes twice"),
    ] {
        for (seam, line) in [("\n", 3), ("", 2), ("\n\u{FEFF}", 3)] {
            let lines = read(&format!(
                "{LOG}{seam}{header}\n2 eni-0a 10.0.0.1 10.0.0.2 7 9 9 ACCEPT OK"
            ));
            assert_eq!(lines.len(), 2, "{lines:#?}");
            let error = &lines[1];
            assert!(
                error.starts_with(&format!("line {line}: read as VPC flow logs, ")),
                "{error}"
            );
            assert!(error.contains(word), "{error}");
        }
    }
}

#[test]
fn a_log_after_half_a_record() {
    let flow = "10.0.0.1|10.0.0.2| 1000 0 492985";
    for half in [
        "2 eni-0a 10.0.0.1 10",
        "2 eni-0a 10.0.0.1 10.0.0.2 7 1000 1774746005 ACCEPT ",
    ] {
        for seam in ["", "\n"] {
            let lines = read(&format!("{LOG}\n{half}{seam}{LOG_TURNED}"));
            assert_eq!(lines.len(), 3, "{lines:#?}");
            assert!(
                lines[1].starts_with("line 3: 2 eni-0a 10.0.0.1 10"),
                "{lines:#?}"
            );
            assert!(lines[2].ends_with(flow), "{lines:#?}");
        }
    }
    // Only a partial record comes before the first header.
    let lines = read(&format!("1774746064 ACCEPT OK{LOG}"));
    assert!(
        lines[0].starts_with("line 1: 1774746064 ACCEPT OK: version: "),
        "{lines:#?}"
    );
    assert_eq!(lines[1..], [format!("line 2: {flow}")]);
}

/// Without a header, only version 2 with its default fields is supported.
#[test]
fn records_of_other_versions_have_a_header() {
    let timed = "2026-03-29T01:00:05.000Z";
    let five = DEFAULT.replacen('2', "5", 1);
    assert_flows(
        &format!("{timed} {DEFAULT}\n{timed} {five}\n"),
        &["line 1: 10.0.0.1|", "line 2: 5 210987654321 eni-0a"],
    );
    assert!(read(&format!("{timed} {DEFAULT}\n{five}"))[1].contains("version: \"5\" is not 2"));
}

#[test]
fn concatenated_ndjson_and_arrays() {
    let flow = |name: &str| {
        format!(
            "{{\"src_app\":\"{name}\",\"dest_app\":\"b\",\"vpc_id\":\"v\",\"bytes_tx\":1,\"bytes_rx\":2,\"hour\":3}}"
        )
    };
    let (a, b) = (flow("a"), flow("b"));
    for seam in ["\n", "\r\n\n", "\n\u{FEFF}", "\u{FEFF}\n"] {
        let lines = read(&format!("\u{FEFF}{a}{seam}{b}\n"));
        match seam {
            "\u{FEFF}\n" => assert!(lines[0].starts_with("line 1:"), "{lines:?}"),
            _ => assert!(lines[0].ends_with("a|b|v 1 2 3"), "{lines:?}"),
        }
        assert!(lines[1].ends_with("b|b|v 1 2 3"), "{lines:?}");
    }
    assert_flows(&format!("{a}{b}\n{b}"), &["line 1: {", "line 2: b|b|v"]);
    assert!(read(&format!("{a}{b}"))[0].contains("several values are on one line"));
    for seam in ["", "\n", " \u{FEFF}\n", "[]", "[ ]\n[]"] {
        assert_flows(
            &format!("[{a}]{seam}[{b},\n{a}]\n"),
            &["flow 0: a|b|v", "flow 1: b|b|v", "flow 2: a|b|v"],
        );
    }
    for wrong in [",", "{", "]", "x", "\u{FEFF}x", "\u{0}"] {
        let lines = read(&format!("[{a}]\n{wrong}[{b}]"));
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(
            lines[1].starts_with("flow 1, on line 2: trailing characters"),
            "{lines:?}"
        );
    }
}
