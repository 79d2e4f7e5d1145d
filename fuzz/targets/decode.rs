//! The two decoders mean the same by any body that the fast one takes.
#![no_main]

use flow::decode::{Format, check_decoders};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    check_decoders(body, Format::Json);
    check_decoders(body, Format::Ndjson);
});
