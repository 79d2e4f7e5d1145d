//! Merges rows of several sources, each a store on this node or on another, in key order. Rows with the same key are
//! added up.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::group::Groups;
use super::{Coverage, FilteredScan, QueryError, bounds, break_if};
use crate::store::Store;
use flow::Counters;

/// The sources that a query reads: stores of this node, and other nodes.
#[derive(Debug, Default)]
pub struct QuerySources {
    pub stores: Vec<Arc<Store>>,
    /// Rows of other nodes.
    pub remote: Vec<Box<dyn RowSource>>,
    pub coverage: Coverage,
    /// Each is cancelled when one of `stores` is revoked. Reading it must then stop, because its next owner waits for
    /// that.
    pub revocations: Vec<CancellationToken>,
}

/// Rows that match a query, filtered and grouped, in key order.
pub trait RowSource: Debug + Send + Sync {
    /// Moves to the next row; `false` after the last.
    fn advance(&mut self) -> Result<bool, QueryError>;

    /// The current row: its key without the omitted columns, and its sums.
    fn row(&self) -> (&[u8], Counters);

    /// Sets the time after which `advance` fails.
    fn set_deadline(&mut self, _deadline: Option<Instant>) {}

    /// Rows of stores that were read so far, if known.
    fn rows_read(&self) -> u64;

    /// Whether it holds memory that other queries may wait for.
    fn holds_memory(&self) -> bool {
        false
    }
}

/// Rows of a store in this process.
#[derive(Debug)]
pub(super) struct LocalRows {
    matching: FilteredScan,
    groups: Option<Groups>,
    key: Vec<u8>,
    counters: Counters,
}

impl LocalRows {
    pub(super) fn new(matching: FilteredScan, groups: Option<Groups>) -> LocalRows {
        LocalRows {
            matching,
            groups,
            key: Vec::new(),
            counters: Counters::default(),
        }
    }
}

impl RowSource for LocalRows {
    fn advance(&mut self) -> Result<bool, QueryError> {
        let (key, counters) = (&mut self.key, &mut self.counters);
        key.clear();
        let Some(groups) = &mut self.groups else {
            let ended = self.matching.for_each_row(|row| {
                row.push_key(key);
                *counters = row.counters;
                Ok(break_if(true))
            })?;
            return Ok(!ended);
        };
        let ended = groups.for_each_group(&mut self.matching, |group, sums| {
            key.extend_from_slice(group);
            *counters = sums;
            Ok(break_if(true))
        })?;
        Ok(!ended)
    }

    fn row(&self) -> (&[u8], Counters) {
        (&self.key, self.counters)
    }

    fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.matching.scan.set_deadline(deadline);
    }

    fn rows_read(&self) -> u64 {
        self.matching.rows_read()
    }

    fn holds_memory(&self) -> bool {
        self.groups.as_ref().is_some_and(Groups::needs_table)
    }
}

/// Number of rows between checks of deadline and cancellation.
const ROWS_PER_CHECK: u32 = 512;

/// Several sources merged into one.
#[derive(Debug)]
pub(super) struct MergedRows {
    sources: Vec<Box<dyn RowSource>>,
    /// Indexes of the sources that have a row, by descending key.
    order: Vec<usize>,
    started: bool,
    key: Vec<u8>,
    /// Time limit for each chunk of a response.
    time_max: Duration,
    deadline: Option<Instant>,
    cancel: CancellationToken,
    rows_until_check: u32,
}

impl MergedRows {
    pub(super) fn new(
        sources: Vec<Box<dyn RowSource>>,
        time_max: Duration,
        cancel: CancellationToken,
    ) -> MergedRows {
        MergedRows {
            sources,
            order: Vec::new(),
            started: false,
            key: Vec::new(),
            time_max,
            deadline: None,
            cancel,
            rows_until_check: ROWS_PER_CHECK,
        }
    }

    /// Resets the deadline for the next chunk of the response.
    pub(super) fn reset_deadline(&mut self) {
        self.deadline = bounds::deadline_after(self.time_max);
        for source in &mut self.sources {
            source.set_deadline(self.deadline);
        }
    }

    /// See [`Rows::holds_memory`](super::Rows::holds_memory).
    pub(super) fn holds_memory(&self) -> bool {
        self.sources.iter().any(|source| source.holds_memory())
    }

    pub(super) fn rows_read(&self) -> u64 {
        self.sources.iter().map(|source| source.rows_read()).sum()
    }

    /// The next row in key order.
    pub(super) fn next(&mut self) -> Result<Option<(&[u8], Counters)>, QueryError> {
        self.enforce_limits()?;
        if !self.started {
            self.started = true;
            for source in 0..self.sources.len() {
                self.advance(source)?;
            }
        }
        let Some(first) = self.order.pop() else {
            return Ok(None);
        };
        let (key, mut sums) = self.sources[first].row();
        self.key.clear();
        self.key.extend_from_slice(key);
        self.advance(first)?;
        while let Some(&next) = self.order.last() {
            let (key, counters) = self.sources[next].row();
            if key != self.key {
                break;
            }
            sums.add(counters);
            self.order.pop();
            self.advance(next)?;
        }
        Ok(Some((&self.key, sums)))
    }

    /// Advances `source` and inserts it into the order by its key.
    fn advance(&mut self, source: usize) -> Result<(), QueryError> {
        if self.sources[source].advance()? {
            let key = |source: usize| self.sources[source].row().0;
            let at = (self.order).partition_point(|other| key(*other) > key(source));
            self.order.insert(at, source);
        }
        Ok(())
    }

    /// Checks deadline and cancellation for rows of other nodes; scans of stores check them themselves.
    fn enforce_limits(&mut self) -> Result<(), QueryError> {
        self.rows_until_check -= 1;
        if self.rows_until_check > 0 {
            return Ok(());
        }
        self.rows_until_check = ROWS_PER_CHECK;
        if self.cancel.is_cancelled() {
            return Err(QueryError::Cancelled);
        }
        match self.deadline {
            Some(deadline) if Instant::now() > deadline => Err(QueryError::TooLong),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Given(std::vec::IntoIter<(&'static str, u64)>, (&'static str, u64));

    impl RowSource for Given {
        fn advance(&mut self) -> Result<bool, QueryError> {
            self.0.next().map_or(Ok(false), |row| {
                self.1 = row;
                Ok(true)
            })
        }

        fn row(&self) -> (&[u8], Counters) {
            let (key, tx) = self.1;
            (key.as_bytes(), Counters { tx, rx: 1 })
        }

        fn rows_read(&self) -> u64 {
            0
        }
    }

    #[test]
    fn rows_with_the_same_key_are_added_up() {
        let sources = [
            vec![("a", 1), ("c", 2), ("d", 3)],
            vec![],
            vec![("b", 4), ("c", 5)],
            vec![("a", 6), ("c", u64::MAX)],
        ];
        let boxed = |rows: Vec<_>| Box::new(Given(rows.into_iter(), ("", 0))) as Box<dyn RowSource>;
        let sources = sources.map(boxed).into_iter().collect();
        let mut merged = MergedRows::new(sources, Duration::MAX, CancellationToken::default());
        let mut rows = Vec::new();
        while let Some((key, sums)) = merged.next().unwrap() {
            rows.push((String::from_utf8(key.to_vec()).unwrap(), sums.tx, sums.rx));
        }
        let expected = [("a", 7, 2), ("b", 4, 1), ("c", u64::MAX, 3), ("d", 3, 1)];
        assert_eq!(rows, expected.map(|(key, tx, rx)| (key.to_owned(), tx, rx)));
    }
}
