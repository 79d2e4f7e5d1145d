//! The two decoders return the same batch for any body that the fast one accepts.
#![no_main]

use flow::decode::{Format, assert_decoders_agree};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    assert_decoders_agree(body, Format::Json);
    assert_decoders_agree(body, Format::Ndjson);
});
