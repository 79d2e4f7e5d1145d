//! Valid and invalid inputs in all formats.

use super::*;
use std::io::Write;

type Outcome = (Vec<(String, String, bool)>, Option<String>);

fn read_as(text: &[u8], format: Option<InputFormat>) -> Outcome {
    let mut flows = Vec::new();
    let result = Reader::new(text, format).read(|raw| {
        let location = raw.location.to_string();
        flows.push((location, raw.text.to_owned(), raw.unusable.is_some()));
        ControlFlow::Continue(())
    });
    (flows, result.err().map(|e| e.to_string()))
}

fn read(text: &[u8]) -> Outcome {
    read_as(text, None)
}

fn good(location: &str, text: &str) -> (String, String, bool) {
    (location.into(), text.into(), false)
}

#[test]
fn the_three_formats() {
    let one = r#"{"a":1}"#;
    for (text, locations) in [
        (format!(" [{one},\n {one}]\n"), ["flow 0", "flow 1"]),
        (format!("{one}\r\n\n{one}"), ["line 1", "line 3"]),
        (format!("\u{FEFF}\n\n{one}\n{one}"), ["line 3", "line 4"]),
    ] {
        let (flows, error) = read(text.as_bytes());
        assert_eq!(error, None);
        assert_eq!(flows, locations.map(|location| good(location, one)));
    }
    let (flows, error) =
        read(b"hour,src_app,dest_app,vpc_id,bytes_rx,bytes_tx\n01,\"a,b\",\"c\"\"d\",,2,x\n1,2\n");
    assert_eq!(error, None);
    let flow =
        r#"{"hour":1,"src_app":"a,b","dest_app":"c\"d","vpc_id":"","bytes_rx":2,"bytes_tx":"x"}"#;
    assert_eq!(
        flows,
        [good("line 2", flow), ("line 3".into(), "1,2".into(), true)]
    );
    assert_eq!(read(b""), (Vec::new(), None));
}

#[test]
fn unreadable_inputs_are_errors() {
    for (text, flows, word) in [
        (&b"[{\"a\":1},{\"a\""[..], 1, "EOF"),
        (b"[{\"a\":1},{\"a\"", 1, "the file is incomplete"),
        (b"[{\"a\":1}", 1, "the file is incomplete"),
        (b"src_app,dest_app,vpc_id,", 0, "it may be cut"),
        (b"src_app,dest_app,vpc_id", 0, "it may be cut"),
        (b"\"src_app\",\"de", 0, "it may be cut"),
        (b"src_app,dest_app,vpc_id,\n", 0, "delete that column"),
        (b"version interface-id srcaddr dsta", 0, "it may be cut"),
        (b"version interface-id srcaddr dsta\n", 0, "its header has no dstaddr"),
        (b"[1] 2", 1, "trailing"),
        (b"[1,]", 1, "trailing comma"),
        (b"[1 2]", 0, "expected `,` or `]`"),
        (b"[\n1,\n{a}]", 1, "flow 1, on line 3: key must be a string"),
        (b"[{\"a\":1}", 1, "EOF"),
        (b"[", 0, "EOF"),
        (b"src_app,dest_app\n", 0, "no vpc_id"),
        (b"src_app,colour\n", 0, "\"colour\""),
        (
            b"hour,src_app,dest_app,vpc_id,bytes_tx,bytes_rx,hour\n1\n",
            0,
            "has hour twice",
        ),
        (b"BZh91AY&SY\xa7\x01,\"", 0, "this is bzip2; "),
        (b"\x01\x02\xa7\x01,\"", 0, "not text in UTF-8"),
        (b"PK\x03\x04\n", 0, "a ZIP archive"),
        (
            b"2026-03-29 01:00:00 2 1 eni-1 10.0.0.1 10.0.0.2 1 2 6 1 5 1774746005 1774746064 ACCEPT OK\n",
            0,
            "a date and a time before each line; if it is a VPC flow log, cut off what is before its records: cut -d' ' -f3-",
        ),
        (b"@timestamp,@ptr,@message\n", 0, "cut -d, -f3"),
        (b"@timestamp,@message,@logStream,@log\n", 0, "cut -d, -f2"),
        (b"\"@message\"\n", 0, "cut -d, -f1"),
        (b"@timestamp,@log,@logStream,@message\n", 0, "cut -d, -fN"),
        (b"timestamp,message\n", 0, "cut -d, -f2"),
        (b"timestamps,message\n", 0, "in any order"),
        (b"bytes", 0, "in any order"),
        (b"\xFF\xFEs\0", 0, "UTF-16"),
    ] {
        let (read, error) = read(text);
        assert_eq!(read.len(), flows, "{text:?}");
        let error = error.unwrap();
        assert!(error.contains(word), "{error}");
    }
    let error = read_as(b"{}", Some(InputFormat::Json)).1.unwrap();
    assert!(error.contains("begins with ["), "{error}");
    assert!(read(b"{\"a\":\"\xff\"}\n").0[0].2);
    let long = [b"[\"", &b"x".repeat(3 << 20)[..], b"\"]"].concat();
    assert!(read(&long).1.unwrap().contains("flow 0 has more than"));
}

/// The error names the line, and the rest of the input is read. A growing file gives only whole lines, wherever a read
/// ends.
#[test]
fn the_incomplete_line_of_a_growing_file_is_not_refused() {
    struct Steps<'a>(&'a [u8], usize);
    impl Read for Steps<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let step = self.1.min(self.0.len());
            let read = (&self.0[..step]).read(buffer)?;
            self.0 = &self.0[read..];
            Ok(read)
        }
    }
    let header = "src_app,dest_app,vpc_id,bytes_tx,bytes_rx,hour\n";
    for row in ["c,b,v,1,2,3", "c,\"b", "c,\"b\"x,v"] {
        let text = format!("{header}a,b,v,1,2,3\n{row}");
        for end in header.len()..=text.len() {
            for step in 1..=end {
                let mut lines = Vec::new();
                let reader = Reader::new(Steps(&text.as_bytes()[..end], step), None);
                let read = reader.with_growing(true).read(|raw| {
                    lines.push((raw.text.to_owned(), raw.unusable.clone()));
                    ControlFlow::Continue(())
                });
                let expected = usize::from(end >= header.len() + 12);
                assert_eq!(lines.len(), expected, "{row} {end} {step}: {lines:?}");
                assert!(read.is_ok());
            }
        }
    }
}

#[test]
fn a_line_over_the_limit_does_not_affect_others() {
    let log = "srcaddr dstaddr bytes start";
    let csv = "src_app,dest_app,vpc_id,bytes_tx,bytes_rx,hour";
    for (header, line) in [
        ("{}", "{\"a\":1}"),
        (log, "::1 ::2 5 946684800"),
        (csv, "x,b,c,1,2,3"),
    ] {
        let long = "y".repeat(3 << 20);
        let text = format!("{header}\n{line}\n{long}\r\n{line}\n{long}\n{long}");
        let (flows, error) = read(text.as_bytes());
        assert_eq!(error, None);
        let refused: Vec<_> = flows.iter().filter(|raw| raw.2).collect();
        let locations: Vec<_> = refused.iter().map(|raw| raw.0.as_str()).collect();
        assert_eq!(locations, ["line 3", "line 5", "line 6"], "{header}");
        assert!(refused.iter().all(|raw| raw.1 == long[..1000]));
        let good = flows.iter().filter(|raw| !raw.2);
        let good: Vec<_> = good.map(|raw| raw.0.as_str()).collect();
        assert!(good.ends_with(&["line 2", "line 4"]), "{good:?}");
    }
    // A cut line is not a header.
    let error = read("x".repeat(3 << 20).as_bytes()).1.unwrap();
    assert!(error.starts_with("line 1: more than"), "{error}");
}

/// A regression test: each of them used to move a megabyte.
#[test]
fn blanks_before_the_first_flow_cost_little() {
    let text = [&b" \r\n".repeat(3 << 20)[..], b"{\"a\":1}"].concat();
    let start = std::time::Instant::now();
    let location = format!("line {}", (3 << 20) + 1);
    assert_eq!(read(&text), (vec![good(&location, "{\"a\":1}")], None));
    assert!(start.elapsed().as_secs() < 10);
    assert_eq!(read(&text[..text.len() - 7]), (Vec::new(), None));
}

#[test]
fn flow_logs_are_detected_by_their_header() {
    for header in [
        "version account-id srcaddr dstaddr bytes start",
        "start bytes dstaddr srcaddr",
        "\u{FEFF}\n account-id a-field-to-come pkt-srcaddr pkt-dstaddr bytes start\r",
    ] {
        let (flows, error) = read(header.as_bytes());
        assert_eq!((flows.len(), error), (0, None), "{header}");
    }
    // Recognised although a field is missing.
    let error = read(b"srcaddr dstaddr bytes\n1.1.1.1 2.2.2.2 5\n")
        .1
        .unwrap();
    assert!(
        error.contains("VPC flow logs, its header has no start"),
        "{error}"
    );
    for text in ["2 123456789010 eni-1 10.0.0.1", "src_app,srcaddr,hour"] {
        let error = read(text.as_bytes()).1.unwrap();
        assert!(error.contains("read as CSV"), "{error}");
        assert!(error.contains("--format vpc-flow-logs"), "{error}");
    }
}

#[test]
fn reading_stops_when_the_callback_breaks() {
    for text in [&b"[1,2,3]"[..], b"{}\n{}\n{}\n"] {
        let mut seen = 0;
        let result = Reader::new(text, None).read(|_| {
            seen += 1;
            ControlFlow::Break(())
        });
        assert!(result.is_ok());
        assert_eq!(seen, 1);
    }
}

#[test]
fn compressed_inputs() {
    let text = "{\"a\":1}\n".repeat(1000);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(text.as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    let mut zstd = zstd::Encoder::new(Vec::new(), 1).unwrap();
    zstd.include_checksum(true).unwrap();
    zstd.write_all(text.as_bytes()).unwrap();
    let zstd = zstd.finish().unwrap();
    for (name, bytes) in [("gzip", gzip), ("zstd", zstd)] {
        // Files with either line end may be concatenated.
        let (flows, error) = read(&[&bytes[..], &bytes].concat());
        assert_eq!((flows.len(), error), (2000, None));
        let error = read(&bytes[..bytes.len() - 3]).1.unwrap();
        let expected = format!("the {name} data ends early");
        assert!(error.starts_with(&expected), "{error}");
        let mut changed = bytes.clone();
        changed[bytes.len() / 2] ^= 0x55;
        let error = read(&changed).1.unwrap();
        assert!(error.starts_with(&format!("the {name} data ")), "{error}");
    }
    assert!(read(b"\x1F\x8B").1.unwrap().contains("ends early"));
}

/// Tapes and disks pad files with zeros; other bytes after the data are an error.
#[test]
fn zeros_may_follow_a_gzip_stream() {
    let text = "{\"a\":1}\n".repeat(1000);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(text.as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    for (zeros, members) in [(1, 1), (10_240, 1), (512, 2)] {
        let padded = [&gzip[..], &vec![0; zeros]].concat().repeat(members);
        let (flows, error) = read(&padded);
        assert_eq!((flows.len(), error), (1000 * members, None));
    }
    for garbage in [&b"x"[..], b"\0\0\0x", b"<html>", b"PK\x03\x04"] {
        let error = read(&[&gzip[..], garbage].concat()).1.unwrap();
        assert!(
            error.contains("garbage after the end of the gzip stream"),
            "{error}"
        );
    }
    let error = read(&[&gzip[..], &gzip[..5]].concat()).1.unwrap();
    assert!(error.contains("ends early"), "{error}");
}

/// The error explains the kind of data and what to do. None is parsed as flows.
#[test]
fn lookalikes_are_named() {
    let utf_16 =
        |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
    let utf_16_be =
        |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_be_bytes).collect() };
    let mut tar = b"flows.json".to_vec();
    tar.resize(257, 0);
    tar.extend(b"ustar\x0000[{}]\n");
    let header = "src_app,dest_app,vpc_id,bytes_tx,bytes_rx,hour";
    let cut_off = format!(
        "{{\n\"records\": [\n{}",
        "{\"flowTuples\":\n1},\n".repeat(10_000)
    );
    for (bytes, word) in [
        (utf_16("[{}]"), "UTF-16; convert it to UTF-8"),
        (utf_16_be("{\"a\":1}"), "UTF-16"),
        (utf_16(header), "UTF-16"),
        (b"\xFF\xFE\0\0[\0\0\0".to_vec(), "UTF-32"),
        (tar, "a tar archive; read the files in it: tar -xOf"),
        (b"PAR1\x15\x04".to_vec(), "Parquet"),
        (b"Obj\x01\x04".to_vec(), "Avro"),
        (b"PK\x03\x04".to_vec(), "a ZIP archive"),
        (b"\xFD7zXZ\0\0".to_vec(), "xz; xz -dc"),
        (b"  <?xml version=\"1.0\"?>".to_vec(), "XML or HTML"),
        (b"\x1E{\"a\":1}\n".to_vec(), "JSON text sequence"),
        (b"a,b,v,1,2,3\n".to_vec(), "CSV without a header"),
        (header.replace(',', ";").into_bytes(), "semicolons"),
        (header.replace(',', "\";\"").into_bytes(), "semicolons"),
        (header.replace(',', "\t").into_bytes(), "tabs"),
        (header.replace(',', "|").into_bytes(), "with | instead"),
        (format!(",{header}").into_bytes(), "a column has no name"),
        (format!("{header}, ,").into_bytes(), "a column has no name"),
        (format!("sep=;\n{header}").into_bytes(), "a sep= line"),
        (
            b"\"@timestamp\",\"@message\"\n".to_vec(),
            "CloudWatch console",
        ),
        (
            b"${version} ${srcaddr} ${dstaddr}\n".to_vec(),
            "its format, ${",
        ),
        (
            b"2026-03-29T01:00:05+00:00 eni-0 2 1 eni".to_vec(),
            "a time before each line",
        ),
        (
            b"{\n\"src_app\":\"a\"\n}".to_vec(),
            "an object over several lines",
        ),
        (cut_off.into_bytes(), "expected an array of flow tuples"),
    ] {
        let (flows, error) = read(&bytes);
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        assert_eq!(flows, [], "{shown}");
        let error = error.unwrap_or_default();
        assert!(error.contains(word), "{shown}: {error}");
    }
}

/// If only one of many is invalid, it is refused by name.
#[test]
fn values_that_look_like_flows_are_named() {
    let faults = |text: &str| {
        let mut faults = Vec::new();
        let result = Reader::new(text.as_bytes(), None).read(|raw| {
            faults.push(match raw.unusable {
                Some(Unusable::Invalid(why)) => why,
                _ => String::new(),
            });
            ControlFlow::Continue(())
        });
        assert!(result.is_ok(), "{text}: {result:?}");
        faults
    };
    let flow = r#"{"src_app":"a","dest_app":"b","vpc_id":"","bytes_tx":1,"bytes_rx":1,"hour":1"#;
    for (value, word) in [
        (
            r#"{"records":[{"category":"NetworkSecurityGroupFlowEvent"}]}"#,
            "an Azure flow log",
        ),
        (
            r#"{"logName":"x/vpc_flows","insertId":"1"}"#,
            "a Google Cloud VPC flow log",
        ),
        (
            r#"{"verdict":"FORWARDED","IP":{"source":"1.1.1.1"}}"#,
            "Hubble",
        ),
        (
            r#"{"version":2,"srcaddr":"a","dstaddr":"b","bytes":1,"start":1}"#,
            "a VPC flow log as JSON",
        ),
        (
            r#"{"events":[{"timestamp":1,"message":"x"}]}"#,
            "what aws logs prints",
        ),
        (
            r#"{"message":"2 1 eni - NODATA"}"#,
            "as a message in JSON; take the records out: jq -r",
        ),
        (
            r#"{"@timestamp":"2026-03-29 01:00:00.000","@message":"2 1 eni 1 ACCEPT OK"}"#,
            "as a message in JSON; take the records out: jq -r",
        ),
        (
            r#"{"hits":[{"src_app":"a","dest_app":"b"}]}"#,
            "an object with flows in it",
        ),
        (
            r#"{"tags":{"src_app":"a"},"fields":{"hour":1}}"#,
            "Telegraf's JSON",
        ),
    ] {
        // Some are formats that can be read, but not between flows.
        let is_format = word.contains("Azure") || word.contains("Google");
        assert!(
            is_format || faults(value)[0].contains(word),
            "{value}: {:?}",
            faults(value)
        );
        assert!(
            faults(&format!("[{flow}}},{value}]"))[1].contains(word),
            "{value}"
        );
        // A flow may have unknown fields.
        let members = value.trim_start_matches('{');
        assert_eq!(faults(&format!("{flow},{members}")), [""], "{value}");
        assert_eq!(faults(&format!("[{flow},{members}]")), [""], "{value}");
        let escaped = format!("{flow},{members}").replace("\"src_app\"", "\"src\\u005fapp\"");
        assert_eq!(faults(&escaped), [""], "{value}");
    }
    let long = format!(
        "{{\"flows\":[{flow}}}{}]}}",
        format!(",{flow}}}").repeat(20_000)
    );
    assert!(faults(&long)[0].contains("an object with flows in it; "));
    for (line, word) in [
        (
            format!("{flow}}}{flow}}}"),
            "several values are on one line; jq -c .",
        ),
        (
            format!("{flow}}} {flow}}}"),
            "several values are on one line",
        ),
        (
            "{\"message\":\"x OK\"}{\"message\":\"y OK\"}".into(),
            "several values are on one line; this is",
        ),
        (format!("{flow}}},"), "a comma follows the flow"),
    ] {
        assert!(
            faults(&line)[0].contains(word),
            "{line}: {:?}",
            faults(&line)
        );
    }
}

/// A zstd window that exceeds the memory limit.
#[test]
fn zstd_with_a_large_window() {
    // Magic number, no flags, a window of 2^31 bytes, an empty last block.
    let frame = b"\x28\xB5\x2F\xFD\x00\xA8\x01\0\0";
    let error = read(frame).1.unwrap();
    assert!(
        error.contains("more than 128 MiB") && error.contains("zstd -dc --long=31 FILE"),
        "{error}"
    );
    let error = read(&[&b"\x50\x2A\x4D\x18\x01\0\0\0x"[..], frame].concat())
        .1
        .unwrap();
    assert!(error.contains("more than 128 MiB"), "{error}");
}

/// Concatenated arrays are read, but refused if the name of the file promises one flow per line.
#[test]
fn an_array_on_each_line() {
    for (text, is_line_delimited, expected) in [
        ("[1]\n[2]\n", false, ["flow 0", "flow 1"]),
        ("[1]\n[2]\n", true, ["line 1", "line 2"]),
        ("[1] \r\n\n[2]", true, ["line 1", "line 3"]),
        ("[1,\n2]", true, ["flow 0", "flow 1"]),
        ("[1,2]\n", true, ["flow 0", "flow 1"]),
        ("[1][2]\n", true, ["flow 0", "flow 1"]),
    ] {
        let mut locations = Vec::new();
        let reader = Reader::new(text.as_bytes(), None).with_line_delimited(is_line_delimited);
        reader
            .read_batches(|part| {
                locations.extend(
                    part.refused
                        .iter()
                        .map(|refused| refused.location.to_string()),
                );
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(locations, expected, "{text}");
    }
}
