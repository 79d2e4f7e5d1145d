//! The entries of a tally, one after another in an arena: what a table's slots point to, what a
//! reader copies with one `memcpy`, and what a [`Run`](super::run::Run) sorts.
//!
//! ```text
//! bytes_tx u64 LE | bytes_rx u64 LE | suffix bytes u16 LE | suffix (the key after its hour)
//! ```

use flow::Counters;

pub(super) const ENTRY_HEADER_BYTES: usize = 18;

/// Entries that are brought into cache at once, when adding and when reading.
///
/// Each entry by itself would be waited for; loads that do not depend on one another are waited for
/// together, so a loop that does nothing but look at the next entries pays for itself many times.
pub(super) const TOUCH_ENTRIES: usize = 64;

pub(super) fn push(arena: &mut Vec<u8>, suffix: &[u8], counters: Counters) {
    arena.extend_from_slice(&counters.tx.to_le_bytes());
    arena.extend_from_slice(&counters.rx.to_le_bytes());
    arena.extend_from_slice(&(suffix.len() as u16).to_le_bytes());
    arena.extend_from_slice(suffix);
}

/// The suffix of the entry that begins with `entry`.
#[inline]
pub(super) fn suffix(entry: &[u8]) -> &[u8] {
    let len = usize::from(u16::from_le_bytes([entry[16], entry[17]]));
    &entry[ENTRY_HEADER_BYTES..ENTRY_HEADER_BYTES + len]
}

/// The counters of the entry that begins with `entry`.
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

/// A copy of the entries whose suffix is `wanted`, and their number.
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

/// Writes the counters of the entry that begins with `entry`.
#[inline]
pub(super) fn set_counters(entry: &mut [u8], counters: Counters) {
    entry[..8].copy_from_slice(&counters.tx.to_le_bytes());
    entry[8..16].copy_from_slice(&counters.rx.to_le_bytes());
}

/// Looks at the entry at `offset`, where it begins and where it usually ends: it lies on one or two
/// cache lines. The result is for [`std::hint::black_box`].
#[inline]
pub(super) fn touch(arena: &[u8], offset: usize) -> u8 {
    let look = |at: usize| arena.get(at).copied().unwrap_or_default();
    look(offset) | look(offset + 40)
}
