//! The keys that `flows` may have: a Bloom filter for each hour that still grows.
//!
//! A flush writes a key that `flows` has as an operand of a merge, and any other as a plain value, which costs half as
//! much to read, to compact and to settle. To look a key up on disk would cost more. The filter knows all keys that were
//! written since the hour had none, so a key that it does not know is new. It may take a new key for a known one, which
//! only costs time. So does an hour without a filter, whose keys all count as known: after a restart, and when there
//! are too many hours.
//!
//! A key sets bits in one block, which is one cache line, as in RocksDB's own filters (Putze, Sanders and Singler,
//! "Cache-, Hash- and Space-Efficient Bloom Filters", 2007). A full filter is followed by a larger one. Without memory
//! for it, the last one takes more keys, and more and more new keys count as known.

use std::collections::HashMap;
use std::hash::BuildHasher;

use super::arena::PREFETCH_ENTRIES;
use flow::Hour;

/// Bits that a key sets in its block.
const BITS_PER_KEY: usize = 3;
/// A filter is full when it has this many keys for each block of 512 bits: then 4 % of new keys count as known.
const KEYS_PER_BLOCK: usize = 64;
/// Size of the smallest filter.
const BLOCKS_MIN: usize = 128;
/// A filter is this many times as large as the one before it, so a key is looked up in few of them.
const GROWTH: usize = 4;

type Block = [u64; 8];

/// The filters of all hours.
#[derive(Debug)]
pub(super) struct KnownKeys {
    hours: HashMap<Hour, HourKeys>,
    hasher: foldhash::fast::RandomState,
    /// Memory of all filters, and its upper bound.
    bytes: usize,
    bytes_max: usize,
    /// Number of flushes.
    flushes: u64,
    /// Hours that can be evicted during this flush, the one that was written least recently last. `None` before it is
    /// needed.
    evictable: Option<Vec<Hour>>,
}

/// All keys of an hour in `flows`.
#[derive(Debug, Default)]
struct HourKeys {
    filters: Vec<Filter>,
    /// The last flush with rows of the hour.
    flush: u64,
}

#[derive(Debug)]
struct Filter {
    blocks: Vec<Block>,
    keys: usize,
}

/// Up to [`PREFETCH_ENTRIES`] keys: bit `i` is set if key `i` may be known.
pub(super) type KnownBits = u64;
const _: () = assert!(PREFETCH_ENTRIES <= KnownBits::BITS as usize);

impl Filter {
    fn new(blocks: usize) -> Filter {
        Filter {
            blocks: vec![[0; 8]; blocks],
            keys: 0,
        }
    }

    fn is_full(&self) -> bool {
        self.keys >= self.blocks.len() * KEYS_PER_BLOCK
    }

    fn bytes(&self) -> usize {
        self.blocks.len() * size_of::<Block>()
    }

    #[inline]
    fn block_of(&self, hash: u64) -> usize {
        ((u128::from(hash >> 32) * self.blocks.len() as u128) >> 32) as usize
    }

    /// The word and mask of each of its bits.
    #[inline]
    fn bits_of(hash: u64) -> [(usize, u64); BITS_PER_KEY] {
        std::array::from_fn(|i| {
            let bit = hash >> (9 * i) & 511;
            ((bit >> 6) as usize, 1 << (bit & 63))
        })
    }

    #[inline]
    fn contains(&self, hash: u64) -> bool {
        let block = &self.blocks[self.block_of(hash)];
        let bits = Filter::bits_of(hash);
        bits.iter().all(|&(word, mask)| block[word] & mask != 0)
    }

    #[inline]
    fn insert(&mut self, hash: u64) {
        let at = self.block_of(hash);
        for (word, mask) in Filter::bits_of(hash) {
            self.blocks[at][word] |= mask;
        }
        self.keys += 1;
    }
}

impl KnownKeys {
    pub(super) fn new(bytes_max: usize) -> KnownKeys {
        KnownKeys {
            hours: HashMap::new(),
            hasher: foldhash::fast::RandomState::default(),
            bytes: 0,
            bytes_max,
            flushes: 0,
            evictable: None,
        }
    }

    /// A flush begins. Its hours keep their filters.
    pub(super) fn begin_flush(&mut self) {
        self.flushes += 1;
        self.evictable = None;
    }

    /// Call this before `keys` keys of `hour` are written. `is_empty` is whether `flows` has no rows of it.
    pub(super) fn begin_hour(&mut self, hour: Hour, keys: usize, is_empty: bool) {
        if is_empty {
            self.forget(hour);
            let blocks = keys.div_ceil(KEYS_PER_BLOCK).max(BLOCKS_MIN);
            self.make_room(blocks * size_of::<Block>());
            let room = self.bytes_max.saturating_sub(self.bytes) / size_of::<Block>();
            if room >= BLOCKS_MIN {
                let filter = Filter::new(blocks.min(room));
                self.bytes += filter.bytes();
                let filters = vec![filter];
                self.hours.insert(hour, HourKeys { filters, flush: 0 });
            }
        }
        if let Some(of) = self.hours.get_mut(&hour) {
            of.flush = self.flushes;
        }
    }

    /// Call this after the rows of `hour` were deleted from `flows`, to free the memory.
    pub(super) fn forget(&mut self, hour: Hour) {
        for filter in self.hours.remove(&hour).unwrap_or_default().filters {
            self.bytes -= filter.bytes();
        }
    }

    /// Evicts hours that are not part of this flush, those first that were written least recently.
    fn make_room(&mut self, bytes: usize) {
        while self.bytes + bytes > self.bytes_max {
            let (hours, flushes) = (&self.hours, self.flushes);
            let evictable = self.evictable.get_or_insert_with(|| {
                let others = hours.iter().filter(|(_, of)| of.flush < flushes);
                let mut others: Vec<_> = others.map(|(&hour, of)| (of.flush, hour)).collect();
                others.sort_unstable_by(|a, b| b.cmp(a));
                others.into_iter().map(|(_, hour)| hour).collect()
            });
            let Some(oldest) = evictable.pop() else {
                return;
            };
            // This flush may have reached it meanwhile.
            if self
                .hours
                .get(&oldest)
                .is_some_and(|of| of.flush < self.flushes)
            {
                self.forget(oldest);
            }
        }
    }

    /// Adds keys of `hour`, at most [`PREFETCH_ENTRIES`]. Returns which of them `flows` may have already.
    pub(super) fn add<'a>(
        &mut self,
        hour: Hour,
        keys: impl Iterator<Item = &'a [u8]>,
    ) -> KnownBits {
        let Some(of) = self.hours.get_mut(&hour) else {
            return KnownBits::MAX;
        };
        let mut hashes = [0; PREFETCH_ENTRIES];
        let mut len = 0;
        for key in keys.take(PREFETCH_ENTRIES) {
            hashes[len] = self.hasher.hash_one(key);
            len += 1;
        }
        let hashes = &hashes[..len];
        if of.filters.last().is_none_or(Filter::is_full) {
            let blocks = of
                .filters
                .last()
                .map_or(BLOCKS_MIN, |last| GROWTH * last.blocks.len());
            let room = self.bytes_max.saturating_sub(self.bytes) / size_of::<Block>();
            if blocks <= room {
                let filter = Filter::new(blocks);
                self.bytes += filter.bytes();
                of.filters.push(filter);
            }
        }
        let mut known = 0;
        let Some((last, full)) = of.filters.split_last_mut() else {
            return KnownBits::MAX;
        };
        // Prefetches the blocks: independent loads overlap.
        let mut any = 0;
        for filter in full.iter().chain([&*last]) {
            for &hash in hashes {
                any |= filter.blocks[filter.block_of(hash)][0];
            }
        }
        std::hint::black_box(any);
        for (i, &hash) in hashes.iter().enumerate() {
            if full.iter().any(|filter| filter.contains(hash)) || last.contains(hash) {
                known |= 1 << i;
            } else {
                last.insert(hash);
            }
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hour(hour: u64) -> Hour {
        Hour::new(hour).unwrap()
    }

    /// Adds the keys of these numbers and returns how many may have been known.
    fn add(known: &mut KnownKeys, of: u64, numbers: std::ops::Range<u32>, is_empty: bool) -> u32 {
        known.begin_flush();
        known.begin_hour(hour(of), numbers.len(), is_empty);
        let names: Vec<String> = numbers.map(|number| number.to_string()).collect();
        let chunks = names.chunks(PREFETCH_ENTRIES);
        let bits = chunks.map(|chunk| {
            let known = known.add(hour(of), chunk.iter().map(String::as_bytes));
            (known << (64 - chunk.len())).count_ones()
        });
        bits.sum()
    }

    #[test]
    fn a_key_that_was_written_is_known() {
        let mut known = KnownKeys::new(1 << 20);
        let new = add(&mut known, 1, 0..100_000, true);
        assert!(new < 10_000, "{new}");
        assert_eq!(add(&mut known, 1, 0..100_000, false), 100_000);
        // More than fit.
        let new = add(&mut known, 1, 100_000..4_000_000, false);
        assert!(new > 1_000_000, "{new}");
        assert_eq!(add(&mut known, 1, 0..4_000_000, false), 4_000_000);
        assert!(known.bytes <= 1 << 20, "{}", known.bytes);
    }

    #[test]
    fn all_keys_of_an_hour_without_a_filter_are_known() {
        let mut known = KnownKeys::new(64 << 10);
        assert_eq!(add(&mut known, 1, 0..100, false), 100);
        assert!(add(&mut known, 2, 0..100, true) < 10);
        known.forget(hour(2));
        assert_eq!((known.bytes, known.hours.len()), (0, 0));
        assert_eq!(add(&mut known, 2, 0..100, false), 100);
    }

    #[test]
    fn hours_that_no_longer_grow_are_evicted() {
        let mut known = KnownKeys::new(10 * BLOCKS_MIN * size_of::<Block>());
        for of in 0..1_000 {
            assert!(add(&mut known, of, 0..100, true) < 10);
            assert!(known.bytes <= known.bytes_max && known.hours.len() <= 10);
        }
        // Those of the same flush are not.
        known.begin_flush();
        for of in 2_000..2_100 {
            known.begin_hour(hour(of), 1, true);
            known.add(hour(of), [b"a".as_slice()].into_iter());
        }
        assert!(known.bytes <= known.bytes_max && known.hours.len() <= 10);
        assert!(known.hours.contains_key(&hour(2_000)));
    }
}
