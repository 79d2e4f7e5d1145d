//! Finds the first rows in a sort order without keeping the others.

use std::collections::BinaryHeap;

use super::QueryError;
use super::bounds::MemoryReservation;
use flow::query::Sort;
use flow::{Counters, Totals};

/// The sort key of a row: its rank, and among equal ranks its key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SortKey {
    /// 0 if rows are in key order.
    pub(super) rank: u128,
    pub(super) key: Box<[u8]>,
}

#[derive(Debug)]
pub(super) struct RankedRow {
    pub(super) sort_key: SortKey,
    pub(super) counters: Counters,
    /// The sums of the hours that are compared.
    pub(super) before: Option<Counters>,
}

impl PartialEq for RankedRow {
    fn eq(&self, other: &RankedRow) -> bool {
        self.sort_key == other.sort_key
    }
}

impl Eq for RankedRow {}

impl PartialOrd for RankedRow {
    fn partial_cmp(&self, other: &RankedRow) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RankedRow {
    fn cmp(&self, other: &RankedRow) -> std::cmp::Ordering {
        self.sort_key.cmp(&other.sort_key)
    }
}

/// Memory overhead of an allocated key.
const ALLOCATION_BYTES: usize = 16;

/// Keeps the first of the rows that are pushed into it.
#[derive(Debug)]
pub(super) struct Ranking {
    sort: Option<Sort>,
    rows_max: usize,
    /// Rows up to this one were on an earlier page.
    after: Option<SortKey>,
    /// A max-heap: the last row is on top.
    rows: BinaryHeap<RankedRow>,
    key_bytes: usize,
    more: bool,
    /// The sums of all rows, if they are requested.
    totals: Option<Totals>,
    memory: MemoryReservation,
}

/// Rows in order, and whether there are more after them.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) rows: Vec<RankedRow>,
    pub(super) more: bool,
    /// The sums of all rows, if they were requested.
    pub(super) totals: Option<Totals>,
    /// Covers the rows.
    pub(super) memory: MemoryReservation,
}

impl Ranking {
    pub(super) fn new(
        sort: Option<Sort>,
        limit: Option<usize>,
        after: Option<SortKey>,
        memory: MemoryReservation,
    ) -> Ranking {
        Ranking {
            sort,
            rows_max: limit.unwrap_or(usize::MAX),
            after,
            rows: BinaryHeap::new(),
            key_bytes: 0,
            more: false,
            totals: None,
            memory,
        }
    }

    /// Adds up all rows, if `is_requested`.
    pub(super) fn with_totals(mut self, is_requested: bool) -> Ranking {
        self.totals = is_requested.then(Totals::default);
        self
    }

    /// Whether no later row can be among the first, if rows come in key order.
    pub(super) fn is_complete(&self) -> bool {
        self.sort.is_none() && self.more
    }

    #[inline]
    pub(super) fn push(&mut self, key: &[u8], counters: Counters) -> Result<(), QueryError> {
        if let Some(totals) = &mut self.totals {
            totals.count(counters);
        }
        self.rank(key, counters, None)
    }

    /// Adds a row with its sums `before`, of the hours that are compared.
    pub(super) fn push_compared(
        &mut self,
        key: &[u8],
        counters: Counters,
        before: Counters,
    ) -> Result<(), QueryError> {
        self.rank(key, counters, Some(before))
    }

    #[inline]
    fn rank(
        &mut self,
        key: &[u8],
        counters: Counters,
        before: Option<Counters>,
    ) -> Result<(), QueryError> {
        let rank_of = |sort: Sort| sort.rank(counters, before.unwrap_or_default());
        let rank = self.sort.map_or(0, rank_of);
        let candidate = (rank, key);
        let of = |key: &SortKey| key.rank;
        if let Some(after) = &self.after
            && candidate <= (of(after), &after.key)
        {
            return Ok(());
        }
        if self.rows.len() >= self.rows_max {
            self.more = true;
            match self.rows.peek() {
                Some(last) if candidate < (of(&last.sort_key), &last.sort_key.key) => {}
                _ => return Ok(()),
            }
            if let Some(last) = self.rows.pop() {
                self.key_bytes -= last.sort_key.key.len() + ALLOCATION_BYTES;
            }
        }
        self.key_bytes += key.len() + ALLOCATION_BYTES;
        self.rows.push(RankedRow {
            sort_key: SortKey {
                rank,
                key: key.into(),
            },
            counters,
            before,
        });
        let bytes = self.rows.capacity() * size_of::<RankedRow>() + self.key_bytes;
        self.memory.grow_to(bytes)
    }

    /// Adds the first rows of a part of all rows.
    pub(super) fn merge_with(&mut self, page: &Page) -> Result<(), QueryError> {
        self.more |= page.more;
        if let (Some(totals), Some(of_page)) = (&mut self.totals, page.totals) {
            totals.add(of_page);
        }
        let mut rows = page.rows.iter();
        rows.try_for_each(|row| self.rank(&row.sort_key.key, row.counters, row.before))
    }

    pub(super) fn finish(self) -> Page {
        Page {
            rows: self.rows.into_sorted_vec(),
            more: self.more,
            totals: self.totals,
            memory: self.memory,
        }
    }
}
