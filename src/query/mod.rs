//! Executes queries.
//!
//! ```text
//! scan of a selection ─▶ filter ─▶ groups ─▶ ranking ─▶ rows
//! ```
//!
//! Rows in key order, and groups by the first columns of a key, are streamed, so the memory does not depend on the
//! size of the response. Sorting and pages keep the rows that they return, and other groups are kept in a table; both
//! reserve their memory from a pool that all queries share ([`bounds`]). If there are several sources, their rows are
//! merged ([`merge`]) before they are ranked.

mod bounds;
mod cores;
mod coverage;
mod cursor;
mod encode;
mod group;
mod hours;
mod matcher;
mod merge;
mod parts;
mod rank;
mod row;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use bounds::{QueryLimits, deadline_after};
pub use coverage::Coverage;
pub use encode::{EncodedRows, JsonItems, RowEncoder, RowFormat};
pub use hours::{HourSource, Hours};
pub use merge::{QuerySources, RowSource};
pub use row::Row;

use crate::store::{Scan, ScanEnd, Selection, Store, StoreError, StoredRow};
use bounds::{MemoryPool, MemoryReservation};
use cores::Cores;
use flow::Partition;
use flow::codec::{Corrupt, FlowKey};
use flow::query::{Columns, HoursQuery, Query};
use group::Groups;
use matcher::Matcher;
use merge::{LocalRows, MergedRows};
use rank::{Page, RankedRow, Ranking, SortKey};

/// The reason why a query failed, before or during its response.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// Other queries hold the memory that this one needs. It becomes free shortly.
    #[error("{0}")]
    Overloaded(String),
    #[error("groups, sorting or a page would take more than {} MiB", bytes_max >> 20)]
    TooLarge { bytes_max: usize },
    #[error("it took longer than the time limit")]
    TooLong,
    #[error("the client disconnected")]
    Cancelled,
    #[error("the cursor was not returned for this query")]
    BadCursor,
    /// No node serves these partitions until another node has taken them over.
    #[error(
        "no node answers for partition {}; try again shortly, or query with partial=true to leave it out",
        list(_0)
    )]
    Missing(Vec<Partition>),
    /// A peer failed to respond.
    #[error("{0}")]
    Peer(String),
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for QueryError {
    fn from(error: StoreError) -> QueryError {
        match error {
            StoreError::ViewMemoryFull => QueryError::Overloaded(error.to_string()),
            StoreError::ScanEnded(ScanEnd::DeadlineExceeded) => QueryError::TooLong,
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

fn list(partitions: &[Partition]) -> String {
    let numbers: Vec<_> = partitions.iter().map(Partition::to_string).collect();
    numbers.join(", ")
}

/// Executes queries on one store or on several sources.
#[derive(Clone, Debug)]
pub struct Engine {
    pool: Arc<MemoryPool>,
    cores: Arc<Cores>,
    time_max: Duration,
}

impl Engine {
    pub fn new(limits: QueryLimits) -> Engine {
        Engine {
            pool: MemoryPool::new(limits.memory_bytes_max),
            cores: Cores::of_machine(),
            time_max: limits.time_max,
        }
    }

    /// Time limit for each chunk of a response.
    pub fn time_max(&self) -> Duration {
        self.time_max
    }

    /// The hours of `store` that have flows, as of one moment between two commits.
    pub fn hours(
        &self,
        store: &Store,
        query: &HoursQuery,
        cancel: CancellationToken,
    ) -> Result<Hours, QueryError> {
        let mut hours = Hours::new(self.time_max, cancel);
        hours.add_store(store, query.hours)?;
        Ok(hours)
    }

    /// The rows of `store` that match `query`, as of one moment between two commits. Blocks on the disk; when it
    /// returns, sorting, pages and groups that need a table are complete.
    pub fn ask(
        &self,
        store: &Store,
        query: &Query,
        cancel: CancellationToken,
    ) -> Result<Rows, QueryError> {
        let after = cursor::sort_key(query)?;
        let memory = MemoryReservation::new(&self.pool);
        let mut parts = Vec::new();
        if reads_everything_first(query) {
            let mut threads = self.cores.further(store.is_ingesting());
            // The first part that fails stops the others.
            let stop = cancel.child_token();
            parts = self.open_parts(store, query, &after, &stop, 1 + threads.count())?;
            threads.shrink_to(parts.len() - 1);
            if parts.len() > 1 {
                match ask_parts(query, after.clone(), parts, &memory, &stop) {
                    // Several tables take more memory than one.
                    Err(QueryError::TooLarge { .. } | QueryError::Overloaded(_)) => {}
                    rows => return rows,
                }
                parts = Vec::new();
            }
        }
        if parts.is_empty() {
            parts = self.open_parts(store, query, &after, &cancel, 1)?;
        }
        let matching = parts.pop().ok_or(QueryError::Cancelled)?;
        let stream = match new_groups(query, &memory) {
            Some(groups) => Stream::Groups(matching, groups),
            None => Stream::Rows(matching),
        };
        ranked(query, after, Rows::of_store(query, stream), memory)
    }

    /// Executes `query` on the sources that `open` returns. `open` is not called for a query that is refused anyway.
    pub fn ask_sources(
        &self,
        query: &Query,
        cancel: CancellationToken,
        open: impl FnOnce() -> Result<QuerySources, QueryError>,
    ) -> Result<Rows, QueryError> {
        let after = cursor::sort_key(query)?;
        let memory = MemoryReservation::new(&self.pool);
        let opened = open()?;
        let mut sources = opened.remote;
        for store in &opened.stores {
            for matching in self.open_parts(store, query, &after, &cancel, 1)? {
                let groups = new_groups(query, &memory);
                sources.push(Box::new(LocalRows::new(matching, groups)));
            }
        }
        let rows = Rows {
            columns: query.columns,
            stream: Stream::Merged(MergedRows::new(sources, self.time_max, cancel)),
            next_page: None,
            coverage: opened.coverage,
            revocations: opened.revocations,
        };
        ranked(query, after, rows, memory)
    }

    /// The matching rows of one store in key order, as at most `parts` scans.
    fn open_parts(
        &self,
        store: &Store,
        query: &Query,
        after: &Option<SortKey>,
        cancel: &CancellationToken,
        parts: usize,
    ) -> Result<Vec<FilteredScan>, QueryError> {
        let mut selection =
            Selection::hours(query.hours).between(&query.filter.src_apps, &query.filter.dest_apps);
        if let (Some(after), None) = (after, query.sort) {
            let leading = group::leading(query.columns, is_one_hour(query));
            selection = selection.starting_at(cursor::first_key(query, leading, &after.key));
        }
        let scans = store.select_parts(selection, parts)?;
        let filtered = scans.into_iter().map(|mut scan| {
            scan.set_cancel(cancel.clone());
            FilteredScan {
                scan,
                rows_of_other_parts: 0,
                matcher: Matcher::new(&query.filter),
                time_max: self.time_max,
            }
        });
        Ok(filtered.collect())
    }
}

fn is_one_hour(query: &Query) -> bool {
    query.hours.only().is_some()
}

/// The empty groups of `query`; `None` if it requests rows.
fn new_groups(query: &Query, memory: &MemoryReservation) -> Option<Groups> {
    let columns = query.columns;
    let groups = || Groups::new(columns, is_one_hour(query), memory.for_same_query());
    (columns != Columns::ALL).then(groups)
}

/// Whether all rows have to be read before the first row of the response is known.
fn reads_everything_first(query: &Query) -> bool {
    let is_page = query.limit.is_some() || query.cursor.is_some();
    let needs_table = || group::needs_table(query.columns, is_one_hour(query));
    query.sort.is_some() || !is_page && (query.columns == Columns::NONE || needs_table())
}

/// Executes a query of one store, whose rows are in several `parts`, on as many threads.
fn ask_parts(
    query: &Query,
    after: Option<SortKey>,
    mut parts: Vec<FilteredScan>,
    memory: &MemoryReservation,
    stop: &CancellationToken,
) -> Result<Rows, QueryError> {
    let rows_read = |parts: &[FilteredScan]| parts.iter().map(FilteredScan::rows_read).sum();
    if query.columns == Columns::ALL {
        let ranking = |memory| Ranking::new(query.sort, query.limit, after.clone(), memory);
        let page = parts::rank(&mut parts, memory, stop, ranking)?;
        return Ok(paged(query, Coverage::default(), page, rows_read(&parts)));
    }
    let groups = parts::group(&mut parts, query.columns, memory, stop)?;
    let rows_read: u64 = rows_read(&parts);
    let mut matching = parts.pop().ok_or(QueryError::Cancelled)?;
    matching.rows_of_other_parts = rows_read - matching.rows_read();
    let rows = Rows::of_store(query, Stream::Groups(matching, groups));
    ranked(query, after, rows, memory.for_same_query())
}

/// Reads all rows of `stream` and ranks them if `query` has a sort order or requests a page; otherwise the rows are
/// streamed.
fn ranked(
    query: &Query,
    after: Option<SortKey>,
    mut rows: Rows,
    memory: MemoryReservation,
) -> Result<Rows, QueryError> {
    if query.sort.is_none() && query.limit.is_none() && after.is_none() {
        return Ok(rows);
    }
    let ranking = Ranking::new(query.sort, query.limit, after, memory);
    let page = rows.stream.rank(ranking)?;
    let rows_read = rows.stream.rows_read();
    // The page no longer reads a store, so it needs no revocations.
    Ok(paged(query, rows.coverage, page, rows_read))
}

fn paged(query: &Query, coverage: Coverage, mut page: Page, rows_read: u64) -> Rows {
    let last = page.rows.last().filter(|_| page.more);
    let next_page = last.map(|last| cursor::encode(query, &last.sort_key));
    if query.partitions.is_some() && query.sort.is_some() {
        let key = |row: &RankedRow| row.sort_key.key.clone();
        page.rows.sort_by_cached_key(key);
    }
    Rows {
        columns: query.columns,
        stream: Stream::Page {
            rows_read,
            rows: page.rows.into_iter(),
            _memory: page.memory,
        },
        next_page,
        coverage,
        revocations: Vec::new(),
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

/// The rows of a scan that match a filter.
#[derive(Debug)]
struct FilteredScan {
    scan: Scan,
    /// Rows that other threads read for the same query.
    rows_of_other_parts: u64,
    matcher: Matcher,
    /// Time limit for each chunk of a response.
    time_max: Duration,
}

impl FilteredScan {
    /// Resets the deadline for the next chunk of the response.
    fn reset_deadline(&mut self) {
        self.scan
            .set_deadline(bounds::deadline_after(self.time_max));
    }

    /// Ranks all rows.
    fn rank(&mut self, mut ranking: Ranking) -> Result<Page, QueryError> {
        self.reset_deadline();
        let mut key = Vec::new();
        self.for_each_row(|row| {
            key.clear();
            row.push_key(&mut key);
            ranking.push(&key, row.counters)?;
            Ok(break_if(ranking.is_complete()))
        })?;
        Ok(ranking.finish())
    }

    fn rows_read(&self) -> u64 {
        self.scan.rows() + self.rows_of_other_parts
    }

    /// Passes rows to `each` until it breaks or they end. Returns whether they have ended.
    #[inline]
    fn for_each_row(
        &mut self,
        mut each: impl FnMut(&StoredRow<'_>) -> Result<ControlFlow<()>, QueryError>,
    ) -> Result<bool, QueryError> {
        let matches_all = self.matcher.matches_all();
        while let Some(row) = self.scan.next_row()? {
            if (matches_all || self.matcher.matches(row.suffix)?) && each(&row)?.is_break() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A response that is read row by row. It shows the state at one moment, however long reading takes.
#[derive(Debug)]
pub struct Rows {
    columns: Columns,
    stream: Stream,
    next_page: Option<String>,
    coverage: Coverage,
    revocations: Vec<CancellationToken>,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // there are a few of them
enum Stream {
    /// Rows of one store.
    Rows(FilteredScan),
    /// Groups of one store.
    Groups(FilteredScan, Groups),
    /// Rows merged from several sources.
    Merged(MergedRows),
    /// Rows in memory.
    Page {
        rows: std::vec::IntoIter<RankedRow>,
        rows_read: u64,
        _memory: MemoryReservation,
    },
}

impl Stream {
    /// Reads all of it.
    fn rank(&mut self, mut ranking: Ranking) -> Result<Page, QueryError> {
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

    fn rows_read(&self) -> u64 {
        match self {
            Stream::Rows(matching) | Stream::Groups(matching, _) => matching.rows_read(),
            Stream::Merged(merged) => merged.rows_read(),
            Stream::Page { rows_read, .. } => *rows_read,
        }
    }
}

impl Rows {
    fn of_store(query: &Query, stream: Stream) -> Rows {
        Rows {
            columns: query.columns,
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
            Stream::Page { rows, .. } => {
                for ranked in rows {
                    let key = row::decode(columns, &ranked.sort_key.key)?;
                    if each(&key.row(ranked.counters)).is_break() {
                        return Ok(false);
                    }
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

fn break_if(done: bool) -> ControlFlow<()> {
    if done {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}
