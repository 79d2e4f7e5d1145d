//! Akvorado's flows as JSON, as ClickHouse exports its table `flows` (`FORMAT JSONEachRow`).

use serde_json::Value;

use super::super::Apps;
use super::super::traffic::{End, Traffic, hour_of};
use super::fields::{address, get, number, seconds};

pub(super) fn traffic<'a>(record: &'a Value, apps: &'a Apps) -> Result<Traffic<'a>, String> {
    let end = |name| address(record, &[name]).map(|address| End::named(address, apps, None));
    let sampling_rate = match get(record, &["SamplingRate"]) {
        Some(_) => number(record, &["SamplingRate"])?.max(1),
        None => 1,
    };
    let interface = ["ExporterAddress", "InIfName"].map(|name| match record.get(name) {
        Some(value) => value.to_string(),
        None => String::new(),
    });
    Ok(Traffic {
        source: end("SrcAddr")?,
        destination: end("DstAddr")?,
        bytes: number(record, &["Bytes"])?.saturating_mul(sampling_rate),
        bytes_back: 0,
        hour: hour_of(seconds(record, &["TimeReceived"])?, "TimeReceived")?,
        vpc_id: "".into(),
        direction: None,
        interface: interface.join(" ").into(),
    })
}
