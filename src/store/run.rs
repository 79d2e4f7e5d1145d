//! The rows of one hour, sorted.

use std::ops::Range;

use super::arena::{self, ENTRY_HEADER_BYTES, PREFETCH_ENTRIES};
use flow::Counters;

/// The rows of one hour in key order; `A` holds an [`arena`] of entries. They are sorted lazily: the first few rows for
/// a fast first response, then the rest.
#[derive(Debug)]
pub struct SortedRun<A> {
    arena: A,
    /// An entry's offset in the low 32 bits; above it, the window (part of the suffix) that it is sorted by.
    items: Vec<u128>,
    /// Length of the prefix that all suffixes share, which the windows follow.
    shared: usize,
    sorted: usize,
    next: usize,
}

/// Approximate number of rows that are sorted before the first one is returned.
const FIRST_ROWS: usize = if cfg!(test) { 8 } else { 4096 };
/// Entries that are sampled to find the boundary of these rows.
const SAMPLE: usize = if cfg!(test) { 16 } else { 1024 };

impl<A: AsRef<[u8]>> SortedRun<A> {
    /// Memory of the sort order of `rows` rows.
    pub(super) fn order_bytes(rows: usize) -> usize {
        rows * size_of::<u128>()
    }

    /// The `rows` entries of `arena`.
    pub(super) fn sort(arena: A, rows: usize) -> SortedRun<A> {
        SortedRun::sort_those(arena, rows, |_| true)
    }

    /// The `rows` entries of `arena` whose suffix is `wanted`.
    pub(super) fn sort_those(
        arena: A,
        rows: usize,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> SortedRun<A> {
        let entries = arena.as_ref();
        let mut items = Vec::with_capacity(rows);
        let mut offset = 0;
        while offset < entries.len() {
            let suffix = arena::suffix(&entries[offset..]);
            if wanted(suffix) {
                items.push(offset as u128);
            }
            offset += ENTRY_HEADER_BYTES + suffix.len();
        }
        let shared = set_windows(entries, &mut items, 0);
        let mut run = SortedRun {
            arena,
            items,
            shared,
            sorted: 0,
            next: 0,
        };
        let first_rows = run.first_rows_end();
        run.sort_to(first_rows);
        run
    }

    /// Sorts the items up to `end`. No item before `end` is larger than one after it.
    fn sort_to(&mut self, end: usize) {
        let items = &mut self.items[self.sorted..end];
        sort_windows(self.arena.as_ref(), items, self.shared);
        self.sorted = end;
    }

    /// Moves the smallest items, about [`FIRST_ROWS`] of them, to the front and returns their number.
    fn first_rows_end(&mut self) -> usize {
        let rows = self.items.len();
        if rows < 4 * FIRST_ROWS {
            return rows;
        }
        let step = (rows / SAMPLE).max(1);
        let mut sample: Vec<u128> = self.items.iter().step_by(step).map(|i| i >> 32).collect();
        sample.sort_unstable();
        let pivot = sample[FIRST_ROWS / step];
        // Partition by whole windows, so that rows with equal windows stay together. If the pivot is the minimum,
        // move the rows that equal it to the front.
        match self.partition(|window| window < pivot) {
            0 => self.partition(|window| window <= pivot),
            end => end,
        }
    }

    /// Moves the items whose window satisfies `in_front` to the front. Returns their number.
    fn partition(&mut self, in_front: impl Fn(u128) -> bool) -> usize {
        let mut end = 0;
        for i in 0..self.items.len() {
            if in_front(self.items[i] >> 32) {
                self.items.swap(i, end);
                end += 1;
            }
        }
        end
    }

    /// Number of rows, from first to last.
    #[allow(clippy::len_without_is_empty)] // there is no run without rows
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// The current row: key suffix and sums. `None` after the last.
    #[inline]
    pub(super) fn peek(&self) -> Option<(&[u8], Counters)> {
        let entry = &self.arena.as_ref()[*self.items.get(self.next)? as u32 as usize..];
        Some((arena::suffix(entry), arena::counters(entry)))
    }

    /// The suffixes of the current row and some after it, at most [`PREFETCH_ENTRIES`].
    pub(super) fn upcoming(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let end = self.sorted.min(self.next + PREFETCH_ENTRIES);
        let items = self.items[self.next.min(end)..end].iter();
        items.map(|&item| arena::suffix(&self.arena.as_ref()[item as u32 as usize..]))
    }

    #[inline]
    pub(super) fn advance(&mut self) {
        self.next += 1;
        if self.next == self.sorted && self.sorted < self.items.len() {
            self.sort_to(self.items.len());
        }
        if self.next.is_multiple_of(PREFETCH_ENTRIES) {
            self.prefetch();
        }
    }

    /// Prefetches the next entries: in key order they are scattered over the arena.
    fn prefetch(&self) {
        let entries = self.arena.as_ref();
        let end = self.items.len().min(self.next + PREFETCH_ENTRIES);
        let mut any = 0;
        for &item in &self.items[self.next.min(end)..end] {
            any |= arena::prefetch(entries, item as u32 as usize);
        }
        std::hint::black_box(any);
    }
}

/// Bytes of a suffix that are sorted together with its offset.
const WINDOW_BYTES: usize = 12;

/// Sets the window of each item to the twelve bytes after the prefix that all suffixes share, and returns the length
/// of that prefix. All suffixes agree on the first `depth` bytes.
///
/// Comparing suffixes in the arena costs one or two cache misses per comparison; comparing windows costs one
/// instruction.
fn set_windows(entries: &[u8], items: &mut [u128], depth: usize) -> usize {
    let suffix = |item: u128| arena::suffix(&entries[item as u32 as usize..]);
    let Some(&first) = items.first() else {
        return depth;
    };
    let first = &suffix(first)[depth..];
    let mut shared = first.len();
    for &item in &items[1..] {
        let tail = &suffix(item)[depth..];
        shared = shared.min(tail.len());
        if tail[..shared] != first[..shared] {
            shared = common_prefix(tail, &first[..shared]);
        }
    }
    let depth = depth + shared;
    for item in items.iter_mut() {
        let tail = &suffix(*item)[depth..];
        let mut window = [0; 16];
        if let Some(tail) = tail.first_chunk::<WINDOW_BYTES>() {
            window[..WINDOW_BYTES].copy_from_slice(tail);
        } else {
            window[..tail.len()].copy_from_slice(tail);
        }
        *item = u128::from_be_bytes(window) | u128::from(*item as u32);
    }
    depth
}

/// Sorts items by their windows at `depth`: as integers, then ties by windows further in (a radix sort with a wide
/// digit).
fn sort_windows(entries: &[u8], items: &mut [u128], depth: usize) {
    items.sort_unstable();
    for run in equal_windows(items) {
        // A suffix that ends inside the window is padded with zeros and ties with no other: where a name ends, a
        // longer name continues with FF (an escaped NUL). So suffixes that tie fill the window.
        let (depth, ties) = (depth + WINDOW_BYTES, &mut items[run]);
        if ties.len() < 16 {
            let tail = |item: u128| &arena::suffix(&entries[item as u32 as usize..])[depth..];
            ties.sort_unstable_by(|&a, &b| tail(a).cmp(tail(b)));
        } else {
            let depth = set_windows(entries, ties, depth);
            sort_windows(entries, ties, depth);
        }
    }
}

fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Ranges of two or more items that agree on everything above the offset.
fn equal_windows(items: &[u128]) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let mut start = 0;
    for end in 1..=items.len() {
        if end == items.len() || items[end] >> 32 != items[start] >> 32 {
            if end - start > 1 {
                runs.push(start..end);
            }
            start = end;
        }
    }
    runs
}
