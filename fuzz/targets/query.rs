//! Parsing any query succeeds or fails with an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|query: &str| flowtally::http::assert_query_round_trips(query));
