//! Files and pipes of all formats: one at a time and in batches, which give the same flows.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    agent::inputs::read_any(input);
});
