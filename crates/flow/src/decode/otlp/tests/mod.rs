//! Each case is read in both encodings, which have to give the same: JSON is turned into the binary encoding here.

mod binary;

use serde_json::{Value, json};

use super::*;
use crate::codec::{FlowKey, Records};
use crate::{IdempotencyKey, NAME_BYTES_MAX};
use binary::{binary, varint};

/// An export that OpenTelemetry's own classes have encoded; see `make.py` beside it.
const EXPORT_PB: &[u8] = include_bytes!("../../../../../../tests/data/otlp/export.pb");
const EXPORT_JSON: &[u8] = include_bytes!("../../../../../../tests/data/otlp/export.json");

/// 2026-11-30T10:59:59.5Z.
const TIME: u64 = 1_796_036_399_500_000_000;
const HOUR: u32 = 498_898;

/// Hour, src_app, dest_app, vpc_id, bytes_tx, bytes_rx.
type Row = (u32, String, String, String, u64, u64);

fn row(hour: u32, [src, dest, vpc]: [&str; 3], tx: u64, rx: u64) -> Row {
    (hour, src.into(), dest.into(), vpc.into(), tx, rx)
}

/// How many points were rejected, by reason.
type Rejections = Vec<(Reason, u64)>;

/// The flows of an export, and its rejected data points.
fn read_one(body: &[u8], format: Format) -> Result<(Vec<Row>, Rejections), ExportError> {
    assert_readings_agree(body, format);
    let measured = measure(body, format)?;
    let batch = build(body, format, measured.batch_bytes)?;
    let records = Records::new(batch.bytes()).unwrap();
    let rows = records.map(|record| {
        let record = record.unwrap();
        let key = FlowKey::decode(record.key).unwrap();
        let names = [&*key.src_app, &*key.dest_app, &*key.vpc_id];
        row(
            key.hour.get(),
            names,
            record.counters.tx,
            record.counters.rx,
        )
    });
    Ok((rows.collect(), measured.rejected.reasons().collect()))
}

/// The same in both encodings.
#[track_caller]
fn read(export: &Value) -> Result<(Vec<Row>, Rejections), ExportError> {
    let text = serde_json::to_vec(export).unwrap();
    let from_json = read_one(&text, Format::Json);
    let from_binary = read_one(&binary("Export", export), Format::Protobuf);
    assert_eq!(from_json, from_binary);
    from_json
}

fn attributes(pairs: &[(&str, &str)]) -> Value {
    let pairs = pairs
        .iter()
        .map(|(key, text)| json!({"key": key, "value": {"stringValue": text}}));
    pairs.collect()
}

/// A data point of 5 bytes from a to b, with some of its members replaced.
fn point(changes: Value) -> Value {
    let mut point = json!({
        "attributes": attributes(&[("src.name", "a"), ("dst.name", "b")]),
        "timeUnixNano": TIME.to_string(),
        "asInt": "5",
    });
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(point.as_object_mut().unwrap().remove(name)),
            _ => point[name] = value.clone(),
        }
    }
    point
}

/// A data point of 5 bytes with these attributes.
fn point_of(pairs: &[(&str, &str)]) -> Value {
    point(json!({"attributes": attributes(pairs)}))
}

fn export_of(metric: Value) -> Value {
    json!({"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]})
}

fn sum(points: &[Value]) -> Value {
    let sum = json!({"dataPoints": points, "aggregationTemporality": 1, "isMonotonic": true});
    json!({"name": "obi.network.flow.bytes", "sum": sum})
}

/// An export of these data points.
fn export(points: &[Value]) -> Value {
    export_of(sum(points))
}

#[test]
fn an_export_of_another_implementation_is_read() {
    let expected = vec![
        row(HOUR, ["web", "db", "prod"], 1000, 0),
        row(HOUR, ["web", "db", "prod"], 0, 5000),
        row(HOUR, ["web", "", "prod"], 10, 0),
        row(HOUR, ["web", "api.example.com", "prod"], 20, 0),
        row(HOUR + 1, ["web", "db", "prod"], 7, 0),
        row(HOUR, ["web", "db", "vpc-1"], 250, 0),
    ];
    for (body, format) in [(EXPORT_PB, Format::Protobuf), (EXPORT_JSON, Format::Json)] {
        let (rows, rejected) = read_one(body, format).unwrap();
        assert_eq!(rows, expected, "{format:?}");
        assert_eq!(rejected, [(Reason::OtherMetric, 6)]);
    }
    // Concatenated messages are one.
    let twice = [EXPORT_PB, EXPORT_PB].concat();
    let (rows, _) = read_one(&twice, Format::Protobuf).unwrap();
    assert_eq!(rows, [&expected[..], &expected].concat());
}

#[test]
fn names_are_chosen_by_preference() {
    let ends = [("src.name", "a"), ("dst.name", "b")];
    let rows = |pairs: &[(&str, &str)]| read(&export(&[point_of(pairs)])).unwrap().0;
    let with = |more: &[(&'static str, &'static str)]| rows(&[&ends[..], more].concat());
    type Pairs = &'static [(&'static str, &'static str)];
    let cases: &[(Pairs, [&str; 3])] = &[
        (&[], ["a", "b", ""]),
        (&[("direction", "request")], ["a", "b", ""]),
        (&[("direction", "egress")], ["a", "b", ""]),
        (&[("k8s.src.owner.name", "A")], ["A", "b", ""]),
        (&[("k8s.src.owner.name", "")], ["a", "b", ""]),
        (&[("src.address", "10.0.0.1")], ["a", "b", ""]),
        (
            &[("src.port", "1"), ("k8s.src.namespace", "n")],
            ["a", "b", ""],
        ),
        (&[("k8s.cluster.name", "c")], ["a", "b", "c"]),
        (
            &[("k8s.cluster.name", "c"), ("vpc.id", "v")],
            ["a", "b", "v"],
        ),
        (
            &[("vpc.id", ""), ("k8s_cluster_name", "c")],
            ["a", "b", "c"],
        ),
        (&[("k8s_dst_owner_name", "B\0")], ["a", "B\0", ""]),
    ];
    for (more, names) in cases {
        assert_eq!(with(more), [row(HOUR, *names, 5, 0)], "{more:?}");
    }
    let response = with(&[("direction", "response")]);
    assert_eq!(response, [row(HOUR, ["b", "a", ""], 0, 5)]);
    // Empty names are names.
    assert_eq!(
        rows(&[("src.name", ""), ("k8s.dst.owner.name", "")]),
        [row(HOUR, ["", "", ""], 5, 0)]
    );
    let longest = "x".repeat(NAME_BYTES_MAX);
    assert_eq!(
        rows(&[("src.address", longest.as_str()), ("dst.cidr", "b")]),
        [row(HOUR, [longest.as_str(), "b", ""], 5, 0)]
    );
}

#[test]
fn attributes_of_the_resource_are_used_too() {
    let resource = |pairs: &[(&str, &str)], point: Value| {
        let resource = json!({
            "scopeMetrics": [{"metrics": [sum(&[point])]}],
            "resource": {"attributes": attributes(pairs), "unknown": "x"},
        });
        read(&json!({"resourceMetrics": [resource]})).unwrap().0
    };
    let vpc = [("vpc.id", "v")];
    let cluster = point(json!({"attributes": attributes(&[
        ("src.name", "a"), ("dst.name", "b"), ("k8s.cluster.name", "c"),
    ])}));
    assert_eq!(
        resource(&vpc, cluster.clone()),
        [row(HOUR, ["a", "b", "v"], 5, 0)]
    );
    assert_eq!(
        resource(&[("k8s.cluster.name", "C")], cluster),
        [row(HOUR, ["a", "b", "c"], 5, 0)]
    );
    let ends = [("src.name", "r"), ("dst.name", "R"), ("vpc.id", "")];
    assert_eq!(
        resource(&ends, point_of(&[("src.name", "a")])),
        [row(HOUR, ["a", "R", ""], 5, 0)]
    );
}

#[test]
fn fields_may_have_any_order() {
    let resource = json!({"attributes": attributes(&[("vpc.id", "v")])});
    let metric = sum(&[point(json!({}))]);
    let expected = vec![row(HOUR, ["a", "b", "v"], 5, 0)];
    let scopes = json!([{"metrics": [metric]}]);
    let parts = [
        binary("ResourceMetrics", &json!({"scopeMetrics": scopes})),
        binary("ResourceMetrics", &json!({"resource": resource})),
    ]
    .concat();
    let body = [vec![0x0A], varint(parts.len() as u64), parts].concat();
    let read = read_one(&body, Format::Protobuf);
    assert_eq!(read, Ok((expected.clone(), vec![])));
    let metric = format!("{{\"sum\":{},\"name\":{}}}", metric["sum"], metric["name"]);
    let body = format!(
        "{{\"resourceMetrics\":[{{\"scopeMetrics\":[{{\"metrics\":[{metric}]}}],\"resource\":{resource}}}]}}"
    );
    let read = read_one(body.as_bytes(), Format::Json);
    assert_eq!(read, Ok((expected, vec![])));
}

#[test]
fn values_are_integers_of_64_bits() {
    for (changes, bytes) in [
        (json!({"asInt": 0}), Some(0)),
        (
            json!({"asInt": "9223372036854775807"}),
            Some(i64::MAX as u64),
        ),
        (json!({"asInt": "-1"}), None),
        (json!({"asInt": null}), None),
        (json!({"asInt": null, "asDouble": 3.0}), Some(3)),
        (json!({"asInt": null, "asDouble": "7"}), Some(7)),
        (json!({"asInt": null, "asDouble": -0.0}), Some(0)),
        (json!({"asInt": null, "asDouble": 0.5}), None),
        (json!({"asInt": null, "asDouble": -1.0}), None),
        (json!({"asInt": null, "asDouble": "NaN"}), None),
        (json!({"asInt": null, "asDouble": "Infinity"}), None),
        (json!({"asInt": null, "asDouble": "-Infinity"}), None),
        (
            json!({"asInt": null, "asDouble": 1.844674407370955e19}),
            Some(18_446_744_073_709_549_568),
        ),
        (
            json!({"asInt": null, "asDouble": 1.8446744073709552e19}),
            None,
        ),
        (json!({"flags": 0}), Some(5)),
        (json!({"flags": 1}), None),
        (json!({"flags": 2}), Some(5)),
    ] {
        let read = read(&export(&[point(changes.clone()), point(json!({}))]));
        let (rows, rejected) = read.unwrap();
        let five = row(HOUR, ["a", "b", ""], 5, 0);
        match bytes {
            Some(bytes) => {
                assert_eq!(
                    rows,
                    [row(HOUR, ["a", "b", ""], bytes, 0), five],
                    "{changes}"
                );
                assert_eq!(rejected, []);
            }
            None => {
                assert_eq!(rows, [five], "{changes}");
                assert_eq!(rejected, [(Reason::BadValue, 1)]);
            }
        }
    }
}

#[test]
fn what_does_not_count_has_a_reason() {
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    let number = json!([{"key": "src.name", "value": {"boolValue": true}}, {"key": "dst.name"}]);
    for (point, reason) in [
        (point(json!({"timeUnixNano": null})), Reason::NoTime),
        (point(json!({"timeUnixNano": 0})), Reason::NoTime),
        (point(json!({"attributes": []})), Reason::NoName),
        (point(json!({"attributes": null})), Reason::NoName),
        (point(json!({"attributes": number})), Reason::NoName),
        (point_of(&[("src.name", "a")]), Reason::NoName),
        (
            point_of(&[("dst.name", "b"), ("source", "a")]),
            Reason::NoName,
        ),
        (
            point_of(&[("src.name", "a"), ("dst.name", long.as_str())]),
            Reason::LongName,
        ),
    ] {
        let (rows, rejected) = read(&export(std::slice::from_ref(&point))).unwrap();
        assert_eq!((rows, rejected), (vec![], vec![(reason, 1)]), "{point}");
    }
    let two = json!({"dataPoints": [point(json!({})), {}], "aggregationTemporality": 2});
    for (name, kind, reason) in [
        ("obi.network.flow.bytes", "gauge", Reason::NotASum),
        ("beyla.network.flow.bytes", "histogram", Reason::NotASum),
        ("obi.network.inter.zone.bytes", "sum", Reason::OtherMetric),
        ("obi.network.flow.packets", "sum", Reason::OtherMetric),
        ("", "gauge", Reason::OtherMetric),
    ] {
        let (rows, rejected) = read(&export_of(json!({"name": name, kind: two}))).unwrap();
        assert_eq!((rows, rejected), (vec![], vec![(reason, 2)]), "{name}");
    }
    for empty in [
        json!({}),
        json!({"resourceMetrics": []}),
        json!({"unknown": "x", "resourceMetrics": [{"unknown": "y", "scopeMetrics": [{}]}, {}]}),
        export(&[]),
    ] {
        assert_eq!(read(&empty), Ok((vec![], vec![])), "{empty}");
    }
}

#[test]
fn only_differences_are_taken() {
    for name in [
        "obi.network.flow.bytes",
        "beyla.network.flow.bytes",
        "obi_network_flow_bytes_total",
    ] {
        let with = |temporality: Value| {
            let point = point(json!({}));
            let mut sum = json!({"dataPoints": [point]});
            if !temporality.is_null() {
                sum["aggregationTemporality"] = temporality;
            }
            read(&export_of(json!({"sum": sum, "name": name})))
        };
        assert_eq!(with(json!(1)).unwrap().0.len(), 1);
        for (temporality, words) in [
            (json!(2), "is cumulative"),
            (json!(0), "no aggregation temporality"),
            (json!(3), "no aggregation temporality"),
            (Value::Null, "no aggregation temporality"),
        ] {
            let error = with(temporality).unwrap_err().to_string();
            for word in [words, name, "cumulativetodelta", "=delta"] {
                assert!(error.contains(word), "{error}");
            }
        }
    }
}

#[test]
fn malformed_json_is_refused() {
    let points = |point: &str| {
        export_of(json!({"name": METRIC, "sum": {"aggregationTemporality": 1}}))
            .to_string()
            .replace("1}", &format!("1,\"dataPoints\":{point}}}"))
    };
    const METRIC: &str = "obi.network.flow.bytes";
    for (body, words) in [
        ("".to_owned(), "not JSON"),
        ("{".into(), "not JSON"),
        ("null".into(), "the body is not an object"),
        ("[]".into(), "the body is not an object"),
        ("{} {}".into(), "not JSON"),
        (
            "{\"resourceMetrics\":{}}".into(),
            "resourceMetrics is not a list",
        ),
        (
            "{\"resourceMetrics\":[null]}".into(),
            "resourceMetrics is not an object",
        ),
        (
            "{\"resourceMetrics\":[[]]}".into(),
            "resourceMetrics is not an object",
        ),
        (
            points("[{\"timeUnixNano\":-1}]"),
            "timeUnixNano is not an integer",
        ),
        (
            points("[{\"timeUnixNano\":\"x\"}]"),
            "timeUnixNano is not an integer",
        ),
        (points("[{\"asInt\":1.5}]"), "asInt is not an integer"),
        (
            points("[{\"asInt\":\"9223372036854775808\"}]"),
            "asInt is not an integer",
        ),
        (points("[{\"asDouble\":{}}]"), "asDouble is not a number"),
        (
            points("[{\"attributes\":[{\"key\":1}]}]"),
            "key is not a string",
        ),
        (
            points("[{\"attributes\":[{\"key\":\"\\ud800\"}]}]"),
            "key is not a string",
        ),
        (points("{}"), "dataPoints is not a list"),
        (
            points("[]").replace(":1,", ":\"AGGREGATION_TEMPORALITY_DELTA\","),
            "aggregationTemporality is not an integer",
        ),
    ] {
        let error = read_one(body.as_bytes(), Format::Json).unwrap_err();
        assert!(error.to_string().contains(words), "{body}: {error}");
    }
    let error = read_one(b"{\"\xFF\":1}", Format::Json).unwrap_err();
    assert!(error.to_string().contains("not UTF-8 at byte 2"), "{error}");
    // Nothing is parsed recursively.
    let deep = format!("{{\"a\":{}", "[".repeat(1 << 20));
    assert!(read_one(deep.as_bytes(), Format::Json).is_err());
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(1 << 20), "]".repeat(1 << 20));
    assert_eq!(
        read_one(deep.as_bytes(), Format::Json),
        Ok((vec![], vec![]))
    );
    // A mark at the start has no meaning, and null stands for what is absent.
    for empty in ["\u{feff}{}", "{\"resourceMetrics\":null}"] {
        assert_eq!(
            read_one(empty.as_bytes(), Format::Json),
            Ok((vec![], vec![]))
        );
    }
}

#[test]
fn malformed_protobuf_is_refused() {
    for (body, words) in [
        (&[0x08][..], "beyond the end"),
        (&[0x0A, 0x01], "beyond the end"),
        (
            &[
                0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1,
            ],
            "beyond the end",
        ),
        (&[0x09, 1, 2, 3], "beyond the end"),
        (&[0x0D, 1, 2, 3], "beyond the end"),
        (&[0x08, 1], "another type"),
        (&[0x09, 1, 2, 3, 4, 5, 6, 7, 8], "another type"),
        (&[0x0D, 1, 2, 3, 4], "another type"),
        (&[0x02, 0], "the number 0"),
        (&[0x0B], "wire type 3"),
        (&[0x0C], "wire type 4"),
        (&[0x0F], "wire type 7"),
        (&[0x80; 10], "more than 64 bits"),
        (
            &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 2],
            "more than 64 bits",
        ),
        // JSON under the wrong Content-Type.
        (b"{\"resourceMetrics\":[]}", "not protobuf"),
    ] {
        let error = read_one(body, Format::Protobuf).unwrap_err();
        assert!(error.to_string().contains(words), "{body:?}: {error}");
    }
    // A cut anywhere is refused, except between the two resources.
    let ends = |end: &usize| read_one(&EXPORT_PB[..*end], Format::Protobuf).is_ok();
    assert_eq!((0..=EXPORT_PB.len()).filter(ends).count(), 3);
    let mut not_text = binary("Export", &export(&[point(json!({}))]));
    let at = not_text.windows(8).position(|part| part == b"src.name");
    not_text[at.unwrap()] = 0xFF;
    let error = read_one(&not_text, Format::Protobuf).unwrap_err();
    assert!(error.to_string().contains("not UTF-8"), "{error}");
}

#[test]
fn a_batch_may_be_larger_than_its_body() {
    let vpc = "v\0".repeat(NAME_BYTES_MAX / 2);
    let point = point_of(&[("src.name", ""), ("dst.name", "")]);
    let points = vec![point; 100];
    let export = json!({"resourceMetrics": [{
        "resource": {"attributes": attributes(&[("vpc.id", &vpc)])},
        "scopeMetrics": [{"metrics": [sum(&points)]}],
    }]});
    let body = binary("Export", &export);
    let measured = measure(&body, Format::Protobuf).unwrap();
    let batch = build(&body, Format::Protobuf, measured.batch_bytes).unwrap();
    assert!(batch.bytes().len() > 10 * body.len());
    assert!(batch.bytes().len() <= measured.batch_bytes);
}

#[test]
fn the_key_is_made_of_the_body() {
    let key = |export: &Value| {
        let body = binary("Export", export);
        let batch = build(&body, Format::Protobuf, 0).unwrap();
        let batch = batch.with_content_key_of(&body);
        let key: IdempotencyKey = batch.receipt().unwrap().0.clone();
        assert!(key.as_str().starts_with(IdempotencyKey::CONTENT_PREFIX));
        (key, batch.bytes().to_vec())
    };
    let first = export(&[point(json!({}))]);
    // The same flow in the same hour, reported once more.
    let next = export(&[point(json!({"timeUnixNano": TIME + 1}))]);
    assert_eq!(key(&first), key(&first));
    assert_eq!(key(&first).1, key(&next).1);
    assert_ne!(key(&first).0, key(&next).0);
}

#[test]
fn responses_are_encoded() {
    assert_eq!(success(Format::Protobuf, 0, ""), b"");
    assert_eq!(success(Format::Json, 0, ""), b"{}");
    assert_eq!(
        success(Format::Protobuf, 300, "no"),
        b"\x0A\x07\x08\xAC\x02\x12\x02no"
    );
    assert_eq!(
        String::from_utf8(success(Format::Json, 300, "\"no\"")).unwrap(),
        r#"{"partialSuccess":{"rejectedDataPoints":"300","errorMessage":"\"no\""}}"#
    );
    assert_eq!(status(Format::Protobuf, "no"), b"\x12\x02no");
    assert_eq!(status(Format::Json, "no"), b"{\"message\":\"no\"}");
    let rejected = measure(EXPORT_PB, Format::Protobuf).unwrap().rejected;
    assert_eq!(
        rejected.explain(2),
        "data points that do not count: 6 of other metrics; 2 older than everything that is kept"
    );
    assert_eq!(Rejected::default().explain(0), "");
}
