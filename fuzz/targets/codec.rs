//! No decoder of stored bytes panics, and encoding what a decoder accepts returns the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| flowtally::store::codec::assert_store_codec_round_trips(bytes));
