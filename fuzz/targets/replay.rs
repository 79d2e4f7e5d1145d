//! Bytes in the journal are refused, or add up to their own ledger.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    flowtally::store::assert_replay_adds_up(bytes);
});
