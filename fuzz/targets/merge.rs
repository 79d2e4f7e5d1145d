//! The merge operator gives the same sum for any grouping, and passes invalid operands on, so that readers reject them.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The first byte selects the length of the values: mostly that of counters, or that of totals.
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
