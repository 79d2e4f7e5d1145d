//! Buffers of flushed tallies, which the next tally grows into. Large buffers that are freed go back to the system at
//! once, so without reuse a growing table pays for page faults, and each of the threads for the pages that are unmapped.

use std::collections::BTreeMap;

/// Smaller buffers are not worth it: the allocator keeps those.
const BYTES_MIN: usize = 64 << 10;

#[derive(Debug, Default)]
pub(super) struct SpareBuffers {
    /// By capacity. Those of slots are powers of two.
    arenas: BTreeMap<usize, Vec<Vec<u8>>>,
    slots: BTreeMap<usize, Vec<Vec<u64>>>,
    bytes: usize,
}

impl SpareBuffers {
    /// Moves `arena` into a buffer of at least twice its size.
    pub(super) fn grow_arena(&mut self, arena: &mut Vec<u8>) {
        let wanted = arena.capacity() * 2;
        if wanted < BYTES_MIN {
            return; // `Vec` grows by itself
        }
        // A much larger buffer would make the tally full with less in it.
        let Some(mut larger) = take(&mut self.arenas, wanted, 2 * wanted) else {
            return;
        };
        self.bytes -= larger.capacity();
        larger.extend_from_slice(arena);
        *arena = larger;
    }

    /// A table of `len` free slots.
    pub(super) fn slots(&mut self, len: usize) -> Vec<u64> {
        let mut slots = match take(&mut self.slots, len, len) {
            None => Vec::with_capacity(len),
            Some(slots) => {
                self.bytes -= slots.capacity() * size_of::<u64>();
                slots
            }
        };
        // Writes all pages. With `vec![0; len]`, each would first be mapped for a read and then again for a write, which
        // interrupts the other cores.
        slots.resize(len, 0);
        slots
    }

    pub(super) fn keep_arena(&mut self, mut arena: Vec<u8>) {
        let capacity = arena.capacity();
        if capacity >= BYTES_MIN {
            arena.clear();
            self.bytes += capacity;
            self.arenas.entry(capacity).or_default().push(arena);
        }
    }

    pub(super) fn keep_slots(&mut self, mut slots: Vec<u64>) {
        let capacity = slots.capacity();
        if capacity * size_of::<u64>() >= BYTES_MIN {
            slots.clear();
            self.bytes += capacity * size_of::<u64>();
            self.slots.entry(capacity).or_default().push(slots);
        }
    }

    /// Frees buffers until they have at most `bytes_max`, the smallest first: those are the cheapest to allocate.
    pub(super) fn shrink(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max {
            let arena = self
                .arenas
                .first_key_value()
                .map_or(usize::MAX, |(&c, _)| c);
            let slots = self.slots.first_key_value();
            let slots = slots.map_or(usize::MAX, |(&c, _)| c * size_of::<u64>());
            let freed = if arena < slots {
                take(&mut self.arenas, 0, usize::MAX).map(|arena| arena.capacity())
            } else {
                take(&mut self.slots, 0, usize::MAX).map(|s| s.capacity() * size_of::<u64>())
            };
            self.bytes -= freed.unwrap_or(self.bytes);
        }
    }
}

/// Removes a buffer of the smallest capacity from `min` to `max`.
fn take<T>(buffers: &mut BTreeMap<usize, Vec<Vec<T>>>, min: usize, max: usize) -> Option<Vec<T>> {
    let entry = buffers.range_mut(min..=max).next()?;
    let capacity = *entry.0;
    let buffer = entry.1.pop();
    if entry.1.is_empty() {
        buffers.remove(&capacity);
    }
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_reused_and_bounded() {
        let mut spare = SpareBuffers::default();
        spare.keep_slots(vec![7; 1 << 14]);
        spare.keep_slots(vec![7; 1 << 15]);
        spare.keep_arena(Vec::with_capacity(200_000));
        assert_eq!(spare.bytes, (8 << 14) + (8 << 15) + 200_000);
        let slots = spare.slots(1 << 15);
        assert_eq!(slots, vec![0; 1 << 15]);
        assert_eq!(spare.bytes, (8 << 14) + 200_000);
        let mut arena = vec![1; 70_000];
        spare.grow_arena(&mut arena);
        assert_eq!(arena, vec![1; 70_000]);
        assert!(arena.capacity() >= 140_000);
        assert_eq!(spare.bytes, 8 << 14);
        spare.keep_arena(arena);
        // The smallest is freed first.
        spare.shrink(300_000);
        assert!(spare.slots.is_empty() && !spare.arenas.is_empty());
        spare.shrink(0);
        assert_eq!(spare.bytes, 0);
        assert!(spare.arenas.is_empty() && spare.slots.is_empty());
    }
}
