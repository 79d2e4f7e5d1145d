//! Bodies of `POST /flows` that resemble flows but are in another format: the error names the format and the remedy.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::support::{Daemon, JSON, NDJSON, Response};

const FLOW: &str =
    r#"{"src_app":"a","dest_app":"b","vpc_id":"c","bytes_tx":1,"bytes_rx":1,"hour":1}"#;

fn text(response: &Response) -> String {
    String::from_utf8(response.body.clone()).unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// Encodes `text` in units of `bytes` bytes, with or without a byte order mark.
fn wide(text: &str, bytes: usize, is_little: bool, has_mark: bool) -> Vec<u8> {
    let mark = has_mark.then_some('\u{feff}');
    let units = mark.into_iter().chain(text.chars()).map(u32::from);
    let of = |unit: u32| match is_little {
        true => unit.to_le_bytes()[..bytes].to_vec(),
        false => unit.to_be_bytes()[4 - bytes..].to_vec(),
    };
    units.flat_map(of).collect()
}

#[test]
fn a_body_that_looks_like_flows_is_refused_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let array = format!("[{FLOW}]");
    let pretty = FLOW
        .replace("{", "{\n  ")
        .replace(',', ",\n  ")
        .replace('}', "\n}");
    let csv = "src_app,dest_app,vpc_id,bytes_tx,bytes_rx,hour\na,b,c,1,1,1\n";
    let (as_gzip, as_zstd) = (("content-encoding", "gzip"), ("content-encoding", "zstd"));
    const GZIP: &str = "Content-Encoding: gzip";
    const ZSTD: &str = "Content-Encoding: zstd";
    let array = array.as_bytes();
    for (what, body, headers, words) in [
        ("gzip", gzip(array), &[JSON][..], GZIP),
        ("gzip of lines", gzip(FLOW.as_bytes()), &[NDJSON], GZIP),
        ("zstd", zstd(array), &[JSON], ZSTD),
        (
            "gzip twice",
            gzip(&gzip(array)),
            &[JSON, as_gzip],
            "compress it once",
        ),
        (
            "zstd twice",
            zstd(&zstd(array)),
            &[JSON, as_zstd],
            "compress it once",
        ),
        (
            "gzip in zstd",
            zstd(&gzip(array)),
            &[NDJSON, as_zstd],
            "compress it once",
        ),
        (
            "zstd as gzip",
            zstd(array),
            &[JSON, as_gzip],
            "it is zstd: send Content-Encoding: zstd",
        ),
        (
            "gzip as zstd",
            gzip(array),
            &[JSON, as_zstd],
            "it is gzip: send Content-Encoding: gzip",
        ),
        (
            "plain as gzip",
            array.to_vec(),
            &[JSON, as_gzip],
            "leave Content-Encoding out",
        ),
        (
            "plain as zstd",
            array.to_vec(),
            &[JSON, as_zstd],
            "leave Content-Encoding out",
        ),
        ("CSV", csv.into(), &[JSON], "this is CSV"),
        (
            "CSV as lines",
            csv.into(),
            &[NDJSON],
            "flowtally send FILE reads it",
        ),
        (
            "semicolons",
            csv.replace(',', ";").into(),
            &[JSON],
            "semicolons",
        ),
        (
            "rows",
            "a,b,c,1,1,1\n".into(),
            &[NDJSON],
            "CSV without a header",
        ),
        (
            "array as lines",
            array.to_vec(),
            &[NDJSON],
            "send it as Content-Type: application/json",
        ),
        (
            "arrays of lines as lines",
            format!("[\n{FLOW},\n{FLOW}\n]").into(),
            &[NDJSON],
            "send it as Content-Type: application/json",
        ),
        (
            "an array a line",
            format!("[{FLOW}]\n[{FLOW}]\n").into(),
            &[NDJSON],
            "jq -c '.[]' FILE",
        ),
        (
            "pretty as lines",
            format!("{pretty}\n{pretty}\n").into(),
            &[NDJSON],
            "an object over several lines",
        ),
        (
            "pretty as JSON",
            format!("{pretty}\n{pretty}\n").into(),
            &[JSON],
            "an object over several lines",
        ),
        (
            "Telegraf",
            format!("{{\"fields\":{{}},\"tags\":{FLOW}}}\n").into(),
            &[NDJSON],
            "Telegraf",
        ),
        (
            "a VPC flow log",
            "version account-id ${srcaddr}\n".into(),
            &[JSON],
            "VPC flow log",
        ),
        (
            "a VPC flow log with its header",
            "version srcaddr dstaddr bytes start\n2 10.0.0.1 10.0.0.2 1 1774746005\n".into(),
            &[JSON],
            "flowtally send FILE",
        ),
        (
            "a VPC flow log as an array",
            r#"[{"srcaddr":"10.0.0.1","dstaddr":"10.0.0.2","bytes":1,"start":1774746005}]"#.into(),
            &[JSON],
            "a VPC flow log as JSON",
        ),
        (
            "lines with commas",
            format!("{FLOW},\n{FLOW}\n").into(),
            &[NDJSON],
            "a comma follows the flow",
        ),
        ("Parquet", b"PAR1\0\0".to_vec(), &[JSON], "Parquet"),
        ("XML", b"<html>".to_vec(), &[JSON], "XML or HTML"),
        (
            "UTF-16",
            wide(FLOW, 2, true, true),
            &[NDJSON],
            "iconv -f UTF-16",
        ),
        (
            "UTF-16 BE",
            wide(FLOW, 2, false, true),
            &[JSON],
            "iconv -f UTF-16",
        ),
        (
            "UTF-16 without a mark",
            wide(FLOW, 2, true, false),
            &[NDJSON],
            "iconv -f UTF-16",
        ),
        (
            "UTF-16 BE without a mark",
            wide(FLOW, 2, false, false),
            &[JSON],
            "iconv -f UTF-16",
        ),
        (
            "UTF-32",
            wide(FLOW, 4, true, true),
            &[NDJSON],
            "iconv -f UTF-32",
        ),
        (
            "UTF-32 BE",
            wide(FLOW, 4, false, true),
            &[JSON],
            "iconv -f UTF-32",
        ),
        (
            "UTF-32 without a mark",
            wide(FLOW, 4, true, false),
            &[NDJSON],
            "iconv -f UTF-32",
        ),
        (
            "UTF-32 BE without a mark",
            wide(FLOW, 4, false, false),
            &[JSON],
            "iconv -f UTF-32",
        ),
    ] {
        let response = daemon.client.post("/flows", headers, &body).unwrap();
        let text = text(&response);
        assert_eq!(response.status, 400, "{what}: {text}");
        let problem: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(
            problem["detail"].as_str().unwrap().contains(words),
            "{what}: {text}"
        );
    }
    assert!(daemon.client.hour(1).is_empty(), "something was counted");

    // Variants that are accepted in files are accepted in bodies too.
    let behind = |mut bytes: Vec<u8>, rest: &[u8]| {
        bytes.extend_from_slice(rest);
        bytes
    };
    let zeros = [0; 700];
    let two = behind(
        behind(gzip(FLOW.as_bytes()), &zeros),
        &gzip(format!("\n{FLOW}").as_bytes()),
    );
    for (what, body, headers, flows) in [
        (
            "two marks",
            format!("\u{feff}\u{feff}[{FLOW}]").into(),
            &[JSON][..],
            1,
        ),
        (
            "two marks of lines",
            format!("\u{feff}\u{feff}{FLOW}\n\u{feff}{FLOW}").into(),
            &[NDJSON],
            2,
        ),
        (
            "zeros behind gzip",
            behind(gzip(array), &zeros),
            &[JSON, as_gzip],
            1,
        ),
        (
            "gzip after gzip",
            behind(two, &zeros),
            &[NDJSON, as_gzip],
            2,
        ),
    ] {
        let response = daemon.client.post("/flows", headers, &body).unwrap();
        let expected = format!("{{\"accepted\":{flows}}}\n");
        assert_eq!(text(&response), expected, "{what}");
    }
    let garbage = behind(gzip(array), b"garbage");
    let response = daemon
        .client
        .post("/flows", &[JSON, as_gzip], &garbage)
        .unwrap();
    assert!(response.status == 400 && text(&response).contains("garbage after the end"));
    daemon.stop();
}
