//! The merge operator of `flows` and `settled`: adds up sums and ledger entries. Compaction applies it to operands, so aggregation
//! on disk costs the write path nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rocksdb::{MergeOperands, Options};

use super::codec;
use flow::{Counters, Totals};

/// Installs the operator; `saturated` counts additions that saturated at `u64::MAX`.
pub(super) fn install(options: &mut Options, saturated: Arc<AtomicU64>) {
    options.set_merge_operator_associative(c"flowtally.add.v1", move |_key, base, operands| {
        merge(base, operands, &saturated)
    });
}

/// Adds the base and all operands.
///
/// It accepts any bytes: it never panics (that would abort the process inside RocksDB) and never fails (that would
/// make the database read-only). An operand that is not a counter cannot come from us or pass the block checksums. If
/// one appears anyway, the sum is unknown, so the operand itself becomes the value: readers and later merges then
/// report it as corrupt.
fn merge(base: Option<&[u8]>, operands: &MergeOperands, saturated: &AtomicU64) -> Option<Vec<u8>> {
    Some(fold(base.into_iter().chain(operands), saturated))
}

fn fold<'a>(values: impl Iterator<Item = &'a [u8]>, saturated: &AtomicU64) -> Vec<u8> {
    let mut values = values.peekable();
    if values
        .peek()
        .is_some_and(|v| v.len() == codec::TOTALS_BYTES)
    {
        return fold_totals(values);
    }
    let mut sum = Counters::default();
    for value in values {
        match codec::decode_counters(value) {
            Ok(counters) => {
                if sum.add(counters) {
                    saturated.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(_) => return value.to_vec(),
        }
    }
    codec::encode_counters(sum).to_vec()
}

/// [`fold`] for ledger entries.
fn fold_totals<'a>(values: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut sum = Totals::default();
    for value in values {
        match codec::decode_totals(value) {
            Ok(totals) => sum.add(totals),
            Err(_) => return value.to_vec(),
        }
    }
    codec::encode_totals(sum).to_vec()
}

/// Checks an invariant for arbitrary values: if all are counters, or all are totals, so is the sum, regardless of
/// grouping; otherwise readers reject the result. For tests and fuzzing.
#[cfg(any(test, fuzzing))]
pub fn assert_merge_associates(values: &[&[u8]]) {
    let saturated = AtomicU64::new(0);
    let whole = fold(values.iter().copied(), &saturated);
    let all = |bytes| values.iter().all(|v| v.len() == bytes);
    if all(codec::COUNTERS_BYTES) || !values.is_empty() && all(codec::TOTALS_BYTES) {
        for split in 1..values.len() {
            let (left, right) = values.split_at(split);
            let left = fold(left.iter().copied(), &saturated);
            let right = fold(right.iter().copied(), &saturated);
            assert_eq!(
                fold([left.as_slice(), &right].into_iter(), &saturated),
                whole
            );
        }
        assert_eq!(
            whole.len(),
            values.first().map_or(codec::COUNTERS_BYTES, |v| v.len())
        );
    } else {
        // The length of a valid result, by the first value.
        let expected = match values[0].len() {
            codec::TOTALS_BYTES => codec::TOTALS_BYTES,
            _ => codec::COUNTERS_BYTES,
        };
        assert_ne!(whole.len(), expected);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(tx: u64, rx: u64) -> Vec<u8> {
        codec::encode_counters(Counters { tx, rx }).to_vec()
    }

    proptest! {
        #[test]
        fn merge_accepts_any_bytes(
            values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..42), 0..10)
        ) {
            assert_merge_associates(&values.iter().map(Vec::as_slice).collect::<Vec<_>>());
        }

        #[test]
        fn the_ledger_adds_up(
            values in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 1..10),
        ) {
            let totals = |(flows, tx, rx): (u64, u64, u64)| Totals {
                flows: flows >> 4,
                tx: u128::from(tx) << 32,
                rx: rx.into(),
            };
            let encoded: Vec<_> = values.iter().map(|v| codec::encode_totals(totals(*v))).collect();
            let mut sum = Totals::default();
            values.iter().for_each(|v| sum.add(totals(*v)));
            let folded = fold(encoded.iter().map(<[u8; _]>::as_slice), &AtomicU64::new(0));
            prop_assert_eq!(codec::decode_totals(&folded), Ok(sum));
            assert_merge_associates(&encoded.iter().map(<[u8; _]>::as_slice).collect::<Vec<_>>());
        }

        #[test]
        fn grouping_does_not_matter(
            values in prop::collection::vec((any::<u64>(), 0..1000u64), 1..10)
        ) {
            let values: Vec<_> = values.iter().map(|&(tx, rx)| encoded(tx, rx)).collect();
            assert_merge_associates(&values.iter().map(Vec::as_slice).collect::<Vec<_>>());
        }
    }

    #[test]
    fn saturation_is_counted() {
        let saturated = AtomicU64::new(0);
        let (a, b) = (encoded(u64::MAX, 1), encoded(2, 3));
        let sum = fold([a.as_slice(), &b].into_iter(), &saturated);
        assert_eq!(sum, encoded(u64::MAX, 4));
        assert_eq!(saturated.load(Ordering::Relaxed), 1);
    }
}
