//! Questions to the store, answered as rows.
//!
//! ```text
//! scan of a selection ─▶ filter ─▶ groups ─▶ ranking ─▶ rows
//! ```
//!
//! Rows in key order, also added up by the first columns of a key, are streamed: such an answer takes no
//! memory, however long it is. Sorting and pages keep as many rows as they give, and groups that do not
//! come together are kept in a table; both take their memory from what all questions share
//! ([`bounds`]).

mod bounds;
mod cursor;
mod group;
mod question;
mod rank;
mod row;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use bounds::QueryLimits;
pub use question::{Columns, Filter, Query, Sort, SortBy};
pub use row::Row;

use crate::domain::{Hour, Totals};
pub use crate::store::Cancel;
use crate::store::codec::{Corrupt, FlowKey};
use crate::store::{Scan, ScanEnd, Selection, Store, StoreError, StoredRow};
use bounds::{Memory, Pool};
use group::Groups;
use question::Matcher;
use rank::{Page, Ranked, Ranking};

/// Why there is no answer, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// Other answers hold the memory that this one needs; try again shortly.
    #[error("{0}")]
    Overloaded(String),
    #[error("groups, sorting or a page would take more than {} MiB", bytes_max >> 20)]
    TooLarge { bytes_max: usize },
    #[error("it took longer than it may")]
    TooLong,
    #[error("whoever asked has left")]
    Cancelled,
    #[error("the cursor is not one that was given out for this question")]
    BadCursor,
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for QueryError {
    fn from(error: StoreError) -> QueryError {
        match error {
            StoreError::Views => QueryError::Overloaded(error.to_string()),
            StoreError::ScanEnded(ScanEnd::TimeOver) => QueryError::TooLong,
            StoreError::ScanEnded(ScanEnd::Cancelled) => QueryError::Cancelled,
            error => QueryError::Store(error),
        }
    }
}

impl From<Corrupt> for QueryError {
    fn from(error: Corrupt) -> QueryError {
        QueryError::Store(error.into())
    }
}

/// Answers queries from a store.
#[derive(Clone, Debug)]
pub struct Engine {
    store: Arc<Store>,
    pool: Arc<Pool>,
    time_max: Duration,
}

impl Engine {
    pub fn new(store: Arc<Store>, limits: QueryLimits) -> Engine {
        Engine {
            store,
            pool: Pool::new(limits.memory_bytes_max),
            time_max: limits.time_max,
        }
    }

    /// Every hour that holds flows, ascending, and what they add up to.
    pub fn hours(&self) -> Result<Vec<(Hour, Totals)>, QueryError> {
        Ok(self.store.ledger()?)
    }

    /// The rows that answer `query`, as they are at one moment between two commits. Blocks on the disk;
    /// sorting, pages and groups that do not come together are done when it returns.
    pub fn ask(&self, query: &Query, cancel: Cancel) -> Result<Rows, QueryError> {
        let is_one_hour = query.hours.len() == 1;
        let leading = group::leading(query.columns, is_one_hour);
        let after = match &query.cursor {
            None => None,
            Some(text) => Some(cursor::decode(query, text).ok_or(QueryError::BadCursor)?),
        };
        let mut selection = Selection::hours(query.hours.clone())
            .between(&query.filter.src_apps, &query.filter.dest_apps);
        if let (Some(after), None) = (&after, query.sort) {
            selection = selection.starting_at(cursor::first_key(query, leading, &after.key));
        }
        let mut matching = Matching {
            scan: self.store.select(selection)?,
            matcher: Matcher::new(&query.filter),
            time_max: self.time_max,
        };
        matching.scan.unless(cancel);
        let groups = (query.columns != Columns::ALL)
            .then(|| Groups::new(query.columns, is_one_hour, Memory::new(&self.pool)));
        if query.sort.is_none() && query.limit.is_none() && after.is_none() {
            return Ok(Rows {
                columns: query.columns,
                source: Source::Streamed(matching, groups),
                next_page: None,
            });
        }
        let memory = Memory::new(&self.pool);
        let ranking = Ranking::new(query.sort, query.limit, after, memory);
        let page = rank_all(&mut matching, groups, ranking)?;
        let last = page.rows.last().filter(|_| page.more);
        Ok(Rows {
            columns: query.columns,
            next_page: last.map(|last| cursor::encode(query, &last.position)),
            source: Source::Page {
                rows: page.rows.into_iter(),
                rows_read: matching.scan.rows(),
                _memory: page.memory,
            },
        })
    }
}

/// Ranks all rows, or groups of them.
fn rank_all(
    matching: &mut Matching,
    groups: Option<Groups>,
    mut ranking: Ranking,
) -> Result<Page, QueryError> {
    matching.begin();
    let Some(mut groups) = groups else {
        let mut key = Vec::new();
        matching.each(|row| {
            key.clear();
            key.extend_from_slice(&row.hour.get().to_be_bytes());
            key.extend_from_slice(row.suffix);
            ranking.offer(&key, row.counters)?;
            Ok(unless(ranking.is_complete()))
        })?;
        return Ok(ranking.finish());
    };
    loop {
        let ended = matching.each(|row| groups.add(row))?;
        groups.complete(ended);
        while let Some((key, counters)) = groups.give() {
            ranking.offer(key, counters)?;
        }
        if groups.have_ended() || ranking.is_complete() {
            return Ok(ranking.finish());
        }
        groups.begin()?;
    }
}

/// The rows of a scan that pass a filter.
#[derive(Debug)]
struct Matching {
    scan: Scan,
    matcher: Matcher,
    /// For each part of an answer.
    time_max: Duration,
}

impl Matching {
    /// Its time begins anew.
    fn begin(&mut self) {
        // What is too far off to be said is no limit.
        self.scan.until(Instant::now().checked_add(self.time_max));
    }

    /// Hands rows to `each` until it breaks or they end; returns whether they have ended.
    #[inline]
    fn each(
        &mut self,
        mut each: impl FnMut(&StoredRow<'_>) -> Result<ControlFlow<()>, QueryError>,
    ) -> Result<bool, QueryError> {
        let takes_all = self.matcher.takes_all();
        while let Some(row) = self.scan.next_row()? {
            if (takes_all || self.matcher.takes(row.suffix)?) && each(&row)?.is_break() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// An answer that is read row by row; it shows one moment, however long the reading takes.
#[derive(Debug)]
pub struct Rows {
    columns: Columns,
    source: Source,
    next_page: Option<String>,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // there are a few of them
enum Source {
    /// Rows as they are stored, or groups of them.
    Streamed(Matching, Option<Groups>),
    /// Rows in memory.
    Page {
        rows: std::vec::IntoIter<Ranked>,
        rows_read: u64,
        _memory: Memory,
    },
}

impl Rows {
    /// What identifies a row.
    pub fn columns(&self) -> Columns {
        self.columns
    }

    /// The [`Query::cursor`] of the page behind this one, if there are rows behind it.
    pub fn next_page(&self) -> Option<&str> {
        self.next_page.as_deref()
    }

    /// Whether it holds memory that other questions may wait for, until it is read.
    pub fn holds_memory(&self) -> bool {
        match &self.source {
            Source::Page { .. } => true,
            Source::Streamed(_, groups) => groups.as_ref().is_some_and(Groups::are_many),
        }
    }

    /// Rows of the store that were read up to now.
    pub fn rows_read(&self) -> u64 {
        match &self.source {
            Source::Streamed(matching, _) => matching.scan.rows(),
            Source::Page { rows_read, .. } => *rows_read,
        }
    }

    /// Hands rows to `each` until it breaks or the answer ends; returns whether it has ended.
    /// Blocks on the disk.
    pub fn read(
        &mut self,
        mut each: impl FnMut(&Row<'_>) -> ControlFlow<()>,
    ) -> Result<bool, QueryError> {
        let columns = self.columns;
        match &mut self.source {
            Source::Page { rows, .. } => {
                for ranked in rows {
                    let key = row::decode(columns, &ranked.position.key)?;
                    if each(&key.row(ranked.counters)).is_break() {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Source::Streamed(matching, groups) => {
                matching.begin();
                match groups {
                    None => matching.each(|stored| {
                        let key = FlowKey::decode_names(stored.hour, stored.suffix)?;
                        Ok(each(&Row::whole(&key, stored.counters)))
                    }),
                    Some(groups) => stream(columns, matching, groups, each),
                }
            }
        }
    }
}

/// [`Rows::read`] of groups.
fn stream(
    columns: Columns,
    matching: &mut Matching,
    groups: &mut Groups,
    mut each: impl FnMut(&Row<'_>) -> ControlFlow<()>,
) -> Result<bool, QueryError> {
    loop {
        while let Some((key, counters)) = groups.give() {
            if each(&row::decode(columns, key)?.row(counters)).is_break() {
                return Ok(false);
            }
        }
        if groups.have_ended() {
            return Ok(true);
        }
        groups.begin()?;
        let ended = matching.each(|row| groups.add(row))?;
        groups.complete(ended);
    }
}

fn unless(done: bool) -> ControlFlow<()> {
    if done {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}
