//! goflow2's JSON: NetFlow, IPFIX and sFlow. See its `pb/flow.proto` for the fields of version 2.

use serde_json::Value;

use super::super::Apps;
use super::super::traffic::{End, Traffic, hour_of};
use super::fields::{address, get, number};

const NANOSECONDS_PER_SECOND: u64 = 1_000_000_000;

/// The names of fields.
struct Names {
    start: &'static str,
    received: &'static str,
    /// Of times.
    units_per_second: u64,
    source: &'static str,
    destination: &'static str,
    bytes: &'static str,
    sampling_rate: &'static str,
    sampler: &'static str,
    interface: &'static str,
}

const VERSION_2: Names = Names {
    start: "time_flow_start_ns",
    received: "time_received_ns",
    units_per_second: NANOSECONDS_PER_SECOND,
    source: "src_addr",
    destination: "dst_addr",
    bytes: "bytes",
    sampling_rate: "sampling_rate",
    sampler: "sampler_address",
    interface: "in_if",
};

const VERSION_1: Names = Names {
    start: "TimeFlowStart",
    received: "TimeReceived",
    units_per_second: 1,
    source: "SrcAddr",
    destination: "DstAddr",
    bytes: "Bytes",
    sampling_rate: "SamplingRate",
    sampler: "SamplerAddress",
    interface: "InIf",
};

pub(super) fn traffic<'a>(record: &'a Value, apps: &'a Apps) -> Result<Traffic<'a>, String> {
    let names = match record.get(VERSION_2.received) {
        Some(_) => VERSION_2,
        None => VERSION_1,
    };
    let end = |name| address(record, &[name]).map(|address| End::named(address, apps, None));
    // An exporter that has no time of the flow leaves it at 0.
    let start = match number(record, &[names.start]) {
        Ok(start) if start > 0 => start,
        _ => number(record, &[names.received])?,
    };
    let sampling_rate = match get(record, &[names.sampling_rate]) {
        Some(_) => number(record, &[names.sampling_rate])?.max(1),
        None => 1,
    };
    let interface = [names.sampler, names.interface].map(|name| match record.get(name) {
        Some(value) => value.to_string(),
        None => String::new(),
    });
    Ok(Traffic {
        source: end(names.source)?,
        destination: end(names.destination)?,
        bytes: number(record, &[names.bytes])?.saturating_mul(sampling_rate),
        bytes_back: 0,
        hour: hour_of(start / names.units_per_second, names.start)?,
        vpc_id: "".into(),
        direction: None,
        interface: interface.join(" ").into(),
    })
}
