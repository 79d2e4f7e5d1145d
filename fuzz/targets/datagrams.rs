//! Datagrams of exporters: NetFlow, IPFIX and sFlow, one after another, since templates come before data.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    agent::listen::read_datagrams(input);
});
