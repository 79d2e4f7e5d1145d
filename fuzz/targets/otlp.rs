//! Exports of OpenTelemetry, in both encodings: refused, or read twice with the same result.
#![no_main]

use flow::decode::otlp::{Format, assert_readings_agree};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    assert_readings_agree(body, Format::Protobuf);
    assert_readings_agree(body, Format::Json);
});
