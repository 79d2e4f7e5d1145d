//! No decoder of stored bytes panics, and what one takes, its encoder gives back.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| flowtally::store::codec::assert_store_codec_round_trips(bytes));
