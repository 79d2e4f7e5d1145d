//! The merge operator of `flows`: sums add up. Compaction folds operands with it, so aggregation
//! on disk costs the write path nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rocksdb::{MergeOperands, Options};

use super::codec;
use crate::domain::Counters;

/// Installs the operator; `stopped` counts sums that reached `u64::MAX`.
pub(super) fn install(options: &mut Options, stopped: Arc<AtomicU64>) {
    options.set_merge_operator_associative(c"flowtally.add.v1", move |_key, base, operands| {
        merge(base, operands, &stopped)
    });
}

/// Adds the base and all operands.
///
/// Total: it never panics (that would abort the process, from inside RocksDB) and never fails
/// (that would make the database read-only), whatever bytes it is given. Operands that are not
/// counters cannot come from us or past the block checksums; should one appear, the sum would be a
/// guess, so the operand itself becomes the value: readers then refuse it as corrupt, and so does
/// every later merge.
fn merge(base: Option<&[u8]>, operands: &MergeOperands, stopped: &AtomicU64) -> Option<Vec<u8>> {
    Some(fold(base.into_iter().chain(operands), stopped))
}

fn fold<'a>(values: impl Iterator<Item = &'a [u8]>, stopped: &AtomicU64) -> Vec<u8> {
    let mut sum = Counters::default();
    for value in values {
        match codec::decode_counters(value) {
            Ok(counters) => {
                if sum.add(counters) {
                    stopped.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(_) => return value.to_vec(),
        }
    }
    codec::encode_counters(sum).to_vec()
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
        fn total_on_any_bytes(
            values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..10)
        ) {
            let stopped = AtomicU64::new(0);
            let value = fold(values.iter().map(Vec::as_slice), &stopped);
            // Either all were counters, and so is the sum; or what comes out is refused by readers.
            let all_counters = values.iter().all(|v| v.len() == codec::COUNTERS_BYTES);
            prop_assert_eq!(codec::decode_counters(&value).is_ok(), all_counters);
        }

        #[test]
        fn bracketing_never_shows(
            values in prop::collection::vec((any::<u64>(), 0..1000u64), 1..10),
            split in any::<prop::sample::Index>(),
        ) {
            let stopped = AtomicU64::new(0);
            let values: Vec<_> = values.iter().map(|&(tx, rx)| encoded(tx, rx)).collect();
            let whole = fold(values.iter().map(Vec::as_slice), &stopped);
            let (left, right) = values.split_at(split.index(values.len()));
            let left = fold(left.iter().map(Vec::as_slice), &stopped);
            let right = fold(right.iter().map(Vec::as_slice), &stopped);
            prop_assert_eq!(fold([left.as_slice(), &right].into_iter(), &stopped), whole);
        }
    }

    #[test]
    fn saturation_is_counted() {
        let stopped = AtomicU64::new(0);
        let (a, b) = (encoded(u64::MAX, 1), encoded(2, 3));
        let sum = fold([a.as_slice(), &b].into_iter(), &stopped);
        assert_eq!(sum, encoded(u64::MAX, 4));
        assert_eq!(stopped.load(Ordering::Relaxed), 1);
    }
}
