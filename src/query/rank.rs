//! The first rows in some order, without keeping the others.

use std::collections::BinaryHeap;

use super::QueryError;
use super::bounds::Memory;
use flow::Counters;
use flow::query::Sort;

/// Where a row stands: by its rank, and of equal ones by its key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    /// 0 where rows are in key order.
    pub(super) rank: u128,
    pub(super) key: Box<[u8]>,
}

#[derive(Debug)]
pub(super) struct Ranked {
    pub(super) position: Position,
    pub(super) counters: Counters,
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Ranked) -> bool {
        self.position == other.position
    }
}

impl Eq for Ranked {}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Ranked) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Ranked) -> std::cmp::Ordering {
        self.position.cmp(&other.position)
    }
}

/// What a key takes beside its bytes where it is allocated.
const ALLOCATION_BYTES: usize = 16;

/// Takes rows, and keeps the first of them.
#[derive(Debug)]
pub(super) struct Ranking {
    sort: Option<Sort>,
    rows_max: usize,
    /// Rows up to this one were on an earlier page.
    after: Option<Position>,
    /// The last one on top.
    rows: BinaryHeap<Ranked>,
    key_bytes: usize,
    more: bool,
    memory: Memory,
}

/// Rows in order, and whether there are more behind them.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) rows: Vec<Ranked>,
    pub(super) more: bool,
    /// Covers the rows.
    pub(super) memory: Memory,
}

impl Ranking {
    pub(super) fn new(
        sort: Option<Sort>,
        limit: Option<usize>,
        after: Option<Position>,
        memory: Memory,
    ) -> Ranking {
        Ranking {
            sort,
            rows_max: limit.unwrap_or(usize::MAX),
            after,
            rows: BinaryHeap::new(),
            key_bytes: 0,
            more: false,
            memory,
        }
    }

    /// Whether no row that comes later, of those in key order, can be among the first.
    pub(super) fn is_complete(&self) -> bool {
        self.sort.is_none() && self.more
    }

    #[inline]
    pub(super) fn offer(&mut self, key: &[u8], counters: Counters) -> Result<(), QueryError> {
        let rank = self.sort.map_or(0, |sort| sort.rank(counters));
        let place = (rank, key);
        let of = |position: &'_ Position| position.rank;
        if let Some(after) = &self.after
            && place <= (of(after), &after.key)
        {
            return Ok(());
        }
        if self.rows.len() >= self.rows_max {
            self.more = true;
            match self.rows.peek() {
                Some(last) if place < (of(&last.position), &last.position.key) => {}
                _ => return Ok(()),
            }
            if let Some(last) = self.rows.pop() {
                self.key_bytes -= last.position.key.len() + ALLOCATION_BYTES;
            }
        }
        self.key_bytes += key.len() + ALLOCATION_BYTES;
        self.rows.push(Ranked {
            position: Position {
                rank,
                key: key.into(),
            },
            counters,
        });
        let bytes = self.rows.capacity() * size_of::<Ranked>() + self.key_bytes;
        self.memory.hold(bytes)
    }

    pub(super) fn finish(self) -> Page {
        Page {
            rows: self.rows.into_sorted_vec(),
            more: self.more,
            memory: self.memory,
        }
    }
}
