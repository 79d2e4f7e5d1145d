//! The entries of a tally, stored consecutively in an arena. Hash slots point into it, readers copy it with one
//! `memcpy`, and a [`Run`](super::run::Run) sorts it.
//!
//! ```text
//! bytes_tx u64 LE | bytes_rx u64 LE | suffix bytes u16 LE | suffix (the key after its hour)
//! ```

use flow::Counters;
use flow::codec::KEY_BYTES_MAX;

pub(super) const ENTRY_HEADER_BYTES: usize = 18;

/// Number of entries that are prefetched together, when adding and when reading. Independent loads overlap, so a loop
/// that only touches the next entries saves far more than it costs.
pub(super) const PREFETCH_ENTRIES: usize = 64;

/// A hash slot has 32 bits for the offset of an entry, plus 1.
const ARENA_BYTES_MAX: usize = u32::MAX as usize - 1;

/// A tally of this size is full, even if the options allow more.
pub(super) const TALLY_BYTES_MAX: usize = 1 << 30;

/// One group of batches may exceed it. The smallest record takes 10 bytes of a batch, and its entry takes 21.
const GROUP_BYTES_MAX: usize = flow::BODY_BYTES_MAX / 10 * 21;

const _: () = assert!(TALLY_BYTES_MAX + GROUP_BYTES_MAX <= ARENA_BYTES_MAX);
const _: () = assert!(KEY_BYTES_MAX <= u16::MAX as usize);

/// The offset of the next entry of `arena`, plus 1.
#[inline]
pub(super) fn next_offset(arena: &[u8]) -> u32 {
    u32::try_from(arena.len() + 1)
        .unwrap_or_else(|_| unreachable!("an hour of a tally exceeds its bound of 4 GiB"))
}

pub(super) fn push(arena: &mut Vec<u8>, suffix: &[u8], counters: Counters) {
    let suffix_bytes = u16::try_from(suffix.len())
        .unwrap_or_else(|_| unreachable!("a suffix is longer than KEY_BYTES_MAX"));
    arena.extend_from_slice(&counters.tx.to_le_bytes());
    arena.extend_from_slice(&counters.rx.to_le_bytes());
    arena.extend_from_slice(&suffix_bytes.to_le_bytes());
    arena.extend_from_slice(suffix);
}

/// The suffix of the entry at the start of `entry`.
#[inline]
pub(super) fn suffix(entry: &[u8]) -> &[u8] {
    let len = usize::from(u16::from_le_bytes([entry[16], entry[17]]));
    &entry[ENTRY_HEADER_BYTES..ENTRY_HEADER_BYTES + len]
}

/// The counters of the entry at the start of `entry`.
#[inline]
pub(super) fn counters(entry: &[u8]) -> Counters {
    let word = |at: usize| {
        entry[at..]
            .first_chunk::<8>()
            .map_or(0, |word| u64::from_le_bytes(*word))
    };
    Counters {
        tx: word(0),
        rx: word(8),
    }
}

/// The suffixes of all entries.
pub(super) fn suffixes(mut entries: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if entries.is_empty() {
            return None;
        }
        let suffix = suffix(entries);
        entries = &entries[ENTRY_HEADER_BYTES + suffix.len()..];
        Some(suffix)
    })
}

/// Copies the entries whose suffix matches `wanted`. Returns the copy and the number of entries.
pub(super) fn filter(entries: &[u8], mut wanted: impl FnMut(&[u8]) -> bool) -> (Vec<u8>, usize) {
    let (mut copy, mut rows, mut at) = (Vec::new(), 0, 0);
    while at < entries.len() {
        let suffix = suffix(&entries[at..]);
        let end = at + ENTRY_HEADER_BYTES + suffix.len();
        if wanted(suffix) {
            copy.extend_from_slice(&entries[at..end]);
            rows += 1;
        }
        at = end;
    }
    (copy, rows)
}

/// Sets the counters of the entry at the start of `entry`.
#[inline]
pub(super) fn set_counters(entry: &mut [u8], counters: Counters) {
    entry[..8].copy_from_slice(&counters.tx.to_le_bytes());
    entry[8..16].copy_from_slice(&counters.rx.to_le_bytes());
}

/// Loads the entry at `offset`, at its start and near its usual end, since it lies on one or two cache lines. Pass
/// the result to [`std::hint::black_box`].
#[inline]
pub(super) fn prefetch(arena: &[u8], offset: usize) -> u8 {
    let byte = |at: usize| arena.get(at).copied().unwrap_or_default();
    byte(offset) | byte(offset + 40)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow::{Hour, NAME_BYTES_MAX};

    #[test]
    fn the_longest_suffix_has_an_entry() {
        let name = [0_u8; NAME_BYTES_MAX];
        let mut key = Vec::new();
        flow::codec::push_key(&mut key, Hour::LAST, &name, &name, &name);
        let longest = crate::store::codec::suffix(&key).unwrap();
        let (first, second) = (Counters { tx: 1, rx: 2 }, Counters { tx: 3, rx: 4 });
        let mut arena = Vec::new();
        push(&mut arena, longest, first);
        push(&mut arena, b"short", second);
        let found: Vec<&[u8]> = suffixes(&arena).collect();
        assert_eq!(found, [longest, b"short"]);
        assert_eq!(counters(&arena), first);
        assert_eq!(
            counters(&arena[ENTRY_HEADER_BYTES + longest.len()..]),
            second
        );
    }
}
