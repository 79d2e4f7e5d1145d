//! Merges the rows of the parts of a span in the order of their names.

use rocksdb::{DB, DBRawIteratorWithThreadMode};

use crate::store::codec;
use crate::store::error::{StoreError, with_context};
use flow::Counters;

/// The rows of one part of a span: an hour, or a shorter span.
struct MergeInput<'a> {
    rows: DBRawIteratorWithThreadMode<'a, DB>,
    /// Bytes of a key before its suffix.
    prefix_bytes: usize,
    /// A copy of the current row, which is cheaper to compare than the iterator's.
    suffix: Vec<u8>,
    counters: Counters,
}

impl MergeInput<'_> {
    /// Copies the current row. Returns whether there is one.
    fn load(&mut self) -> Result<bool, StoreError> {
        let Some((key, value)) = self.rows.item() else {
            let status = self.rows.status();
            status.map_err(with_context("summing a span"))?;
            return Ok(false);
        };
        self.suffix.clear();
        let suffix = key.get(self.prefix_bytes..).unwrap_or_default();
        self.suffix.extend_from_slice(suffix);
        self.counters = codec::decode_counters(value)?;
        Ok(true)
    }
}

/// The parts of a span, merged. There are at most 720: one for each hour of thirty days.
pub(in crate::store) struct SpanMerge<'a> {
    parts: Vec<MergeInput<'a>>,
    /// The indices of the parts that have a row, in the order of their suffixes.
    order: Vec<usize>,
    /// The parts of the row that was returned last.
    returned: Vec<usize>,
    suffix: Vec<u8>,
}

impl<'a> SpanMerge<'a> {
    /// Each part has the iterator of its rows, at the first of them, and the number of bytes of a key before its suffix.
    pub(in crate::store) fn new(
        parts: Vec<(DBRawIteratorWithThreadMode<'a, DB>, usize)>,
    ) -> Result<SpanMerge<'a>, StoreError> {
        let count = parts.len();
        let part = |(rows, prefix_bytes)| MergeInput {
            rows,
            prefix_bytes,
            suffix: Vec::new(),
            counters: Counters::default(),
        };
        let mut merged = SpanMerge {
            parts: parts.into_iter().map(part).collect(),
            order: Vec::with_capacity(count),
            returned: Vec::with_capacity(count),
            suffix: Vec::new(),
        };
        let mut near = 0;
        for index in 0..count {
            if merged.parts[index].load()? {
                near = merged.insert(index, near);
            }
        }
        Ok(merged)
    }

    /// The next suffix and its sums over all parts; `None` after the last.
    pub(in crate::store) fn next(&mut self) -> Result<Option<(&[u8], Counters)>, StoreError> {
        let mut returned = std::mem::take(&mut self.returned);
        let mut near = 0;
        for index in returned.drain(..) {
            let part = &mut self.parts[index];
            part.rows.next();
            if part.load()? {
                near = self.insert(index, near);
            }
        }
        self.returned = returned;
        let Some(first) = self.order.first() else {
            return Ok(None);
        };
        self.suffix.clear();
        self.suffix.extend_from_slice(&self.parts[*first].suffix);
        let has_it = |index: &&usize| self.parts[**index].suffix == self.suffix;
        let count = self.order.iter().take_while(has_it).count();
        self.returned.extend(self.order.drain(..count));
        let mut sums = Counters::default();
        for index in &self.returned {
            sums.add(self.parts[*index].counters);
        }
        Ok(Some((&self.suffix, sums)))
    }

    /// Inserts a part into the order, and returns its place. Most names are in many parts, so the part `near` which the
    /// one before was inserted often has the same.
    fn insert(&mut self, index: usize, near: usize) -> usize {
        let suffix = &self.parts[index].suffix;
        let of = |at: usize| &self.parts[self.order[at]].suffix;
        let at = match near < self.order.len() && of(near) == suffix {
            true => near,
            false => self
                .order
                .partition_point(|other| self.parts[*other].suffix < *suffix),
        };
        self.order.insert(at, index);
        at
    }
}
