//! The merge operator adds up however it is bracketed, and gives nonsense on as nonsense.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The first byte says how long the values are: mostly that of counters, or that of totals.
fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    let length = match first % 4 {
        0 | 1 => 16,
        2 => 40,
        _ => usize::from(*first).max(1),
    };
    let values: Vec<&[u8]> = rest.chunks(length).take(64).collect();
    flowtally::store::assert_merge_associates(&values);
});
