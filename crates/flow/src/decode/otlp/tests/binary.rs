//! Turns exports in JSON into the binary encoding.

use serde_json::Value;

/// How a field is encoded.
enum Kind {
    Message(&'static str),
    Text,
    Varint,
    Fixed64,
    Double,
    Bool,
}

/// The field of a message.
fn kind_of(message: &str, field: &str) -> (u64, Kind) {
    use Kind::{Bool, Double, Fixed64, Message, Text, Varint};
    match (message, field) {
        ("Export", "resourceMetrics") => (1, Message("ResourceMetrics")),
        ("ResourceMetrics", "resource") => (1, Message("Resource")),
        ("ResourceMetrics", "scopeMetrics") => (2, Message("ScopeMetrics")),
        ("Resource", "attributes") => (1, Message("KeyValue")),
        ("ScopeMetrics", "metrics") => (2, Message("Metric")),
        ("Metric", "name") => (1, Text),
        ("Metric", "gauge") => (5, Message("Data")),
        ("Metric", "sum") => (7, Message("Data")),
        ("Metric", "histogram") => (9, Message("Data")),
        ("Data", "dataPoints") => (1, Message("Point")),
        ("Data", "aggregationTemporality") => (2, Varint),
        ("Data", "isMonotonic") => (3, Bool),
        ("Point", "startTimeUnixNano") => (2, Fixed64),
        ("Point", "timeUnixNano") => (3, Fixed64),
        ("Point", "asDouble") => (4, Double),
        ("Point", "asInt") => (6, Fixed64),
        ("Point", "attributes") => (7, Message("KeyValue")),
        ("Point", "flags") => (8, Varint),
        ("KeyValue", "key") => (1, Text),
        ("KeyValue", "value") => (2, Message("AnyValue")),
        ("AnyValue", "stringValue") => (1, Text),
        ("AnyValue", "boolValue") => (2, Bool),
        (_, "unknown") => (1000, Text),
        _ => panic!("{message}.{field}"),
    }
}

/// The binary encoding of `json` as a `message`.
pub(super) fn binary(message: &str, json: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in json.as_object().unwrap() {
        let (number, kind) = kind_of(message, name);
        let one = [value.clone()];
        for value in value.as_array().map_or(&one[..], Vec::as_slice) {
            let text = value.as_str().map_or(value.to_string(), str::to_owned);
            let bytes = match kind {
                Kind::Message(message) => binary(message, value),
                _ => text.clone().into_bytes(),
            };
            let tag = |wire_type: u64| varint(number << 3 | wire_type);
            match kind {
                Kind::Message(_) | Kind::Text => {
                    out.extend(tag(2));
                    out.extend(varint(bytes.len() as u64));
                    out.extend(bytes);
                }
                Kind::Varint => out.extend([tag(0), varint(text.parse().unwrap())].concat()),
                Kind::Bool => out.extend([tag(0), vec![u8::from(text == "true")]].concat()),
                Kind::Fixed64 => {
                    out.extend(tag(1));
                    // Of values and times.
                    let integer: i128 = text.parse().unwrap();
                    out.extend((integer as u64).to_le_bytes());
                }
                Kind::Double => {
                    out.extend(tag(1));
                    out.extend(text.parse::<f64>().unwrap().to_le_bytes());
                }
            }
        }
    }
    out
}

pub(super) fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 128 {
        out.push((value % 128) as u8 | 128);
        value /= 128;
    }
    out.push(value as u8);
    out
}
