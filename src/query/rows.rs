//! A response, read row by row.

use std::ops::ControlFlow;

use tokio_util::sync::CancellationToken;

use super::bounds::MemoryReservation;
use super::filtered::FilteredScan;
use super::group::Groups;
use super::merge::MergedRows;
use super::rank::{Page, RankedRow, Ranking};
use super::{Coverage, QueryError, Row, break_if, row};
use flow::codec::FlowKey;
use flow::query::{Columns, Query};
use flow::{Counters, Totals};

/// A response that is read row by row. It shows the state at one moment, however long reading takes.
#[derive(Debug)]
pub struct Rows {
    pub(super) columns: Columns,
    /// The sums of all rows, if the query requested [`Query::other`].
    pub(super) totals: Option<Totals>,
    /// Whether they have [`Row::before`].
    pub(super) is_compared: bool,
    pub(super) stream: Stream,
    pub(super) next_page: Option<String>,
    pub(super) coverage: Coverage,
    pub(super) revocations: Vec<CancellationToken>,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // there are a few of them
pub(super) enum Stream {
    /// Rows of one store.
    Rows(FilteredScan),
    /// Groups of one store.
    Groups(FilteredScan, Groups),
    /// Rows merged from several sources.
    Merged(MergedRows),
    /// Rows in memory.
    Page {
        rows: std::vec::IntoIter<RankedRow>,
        /// The sums of all others.
        other: Option<Counters>,
        rows_read: u64,
        _memory: MemoryReservation,
    },
}

impl Stream {
    /// Reads all of it.
    pub(super) fn rank(&mut self, mut ranking: Ranking) -> Result<Page, QueryError> {
        match self {
            Stream::Rows(matching) => matching.rank(ranking),
            Stream::Groups(matching, groups) => rank_groups(matching, groups, ranking),
            Stream::Merged(merged) => {
                merged.reset_deadline();
                while let Some((key, counters)) = merged.next()? {
                    ranking.push(key, counters)?;
                    if ranking.is_complete() {
                        break;
                    }
                }
                Ok(ranking.finish())
            }
            Stream::Page { .. } => Ok(ranking.finish()),
        }
    }

    pub(super) fn rows_read(&self) -> u64 {
        match self {
            Stream::Rows(matching) | Stream::Groups(matching, _) => matching.rows_read(),
            Stream::Merged(merged) => merged.rows_read(),
            Stream::Page { rows_read, .. } => *rows_read,
        }
    }
}

impl Rows {
    pub(super) fn of_store(query: &Query, stream: Stream) -> Rows {
        Rows {
            columns: query.columns,
            totals: None,
            is_compared: false,
            stream,
            next_page: None,
            coverage: Coverage::default(),
            revocations: Vec::new(),
        }
    }

    /// The columns that identify a row.
    pub fn columns(&self) -> Columns {
        self.columns
    }

    /// The [`Query::cursor`] of the next page, if there are more rows.
    pub fn next_page(&self) -> Option<&str> {
        self.next_page.as_deref()
    }

    /// The sums of all rows, including those that are not in the response, if the query requested [`Query::other`].
    pub fn totals(&self) -> Option<Totals> {
        self.totals
    }

    /// Whether the rows have sums of other hours for comparison.
    pub fn is_compared(&self) -> bool {
        self.is_compared
    }

    /// Whether it holds memory that other queries may wait for, until it is read.
    pub fn holds_memory(&self) -> bool {
        match &self.stream {
            Stream::Rows(_) => false,
            Stream::Groups(_, groups) => groups.needs_table(),
            Stream::Merged(merged) => merged.holds_memory(),
            Stream::Page { .. } => true,
        }
    }

    /// Rows of stores that were read so far.
    pub fn rows_read(&self) -> u64 {
        self.stream.rows_read()
    }

    /// The partitions of the sums that it covers.
    pub fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// Each is cancelled when a store that is being read is revoked. The response must then be aborted.
    pub fn take_revocations(&mut self) -> Vec<CancellationToken> {
        std::mem::take(&mut self.revocations)
    }

    /// Passes rows to `each` until it breaks or the rows end. Returns whether they have ended. Blocks on the disk.
    pub fn read(
        &mut self,
        mut each: impl FnMut(&Row<'_>) -> ControlFlow<()>,
    ) -> Result<bool, QueryError> {
        let columns = self.columns;
        match &mut self.stream {
            Stream::Page { rows, other, .. } => {
                for ranked in rows {
                    let key = row::decode(columns, &ranked.sort_key.key)?;
                    let mut row = key.row(ranked.counters);
                    row.before = ranked.before;
                    if each(&row).is_break() {
                        return Ok(false);
                    }
                }
                if let Some(other) = other.take() {
                    let _last = each(&Row::other(other));
                }
                Ok(true)
            }
            Stream::Merged(merged) => {
                merged.reset_deadline();
                while let Some((key, counters)) = merged.next()? {
                    if each(&row::decode(columns, key)?.row(counters)).is_break() {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Stream::Rows(matching) => {
                matching.reset_deadline();
                matching.for_each_row(|stored| {
                    let key = FlowKey::decode_names(stored.hour, stored.suffix)?;
                    Ok(each(&Row::whole(&key, stored.counters)))
                })
            }
            Stream::Groups(matching, groups) => {
                matching.reset_deadline();
                groups.for_each_group(matching, |key, counters| {
                    Ok(each(&row::decode(columns, key)?.row(counters)))
                })
            }
        }
    }
}

fn rank_groups(
    matching: &mut FilteredScan,
    groups: &mut Groups,
    mut ranking: Ranking,
) -> Result<Page, QueryError> {
    matching.reset_deadline();
    groups.for_each_group(matching, |key, counters| {
        ranking.push(key, counters)?;
        Ok(break_if(ranking.is_complete()))
    })?;
    Ok(ranking.finish())
}
