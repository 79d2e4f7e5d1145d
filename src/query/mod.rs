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

mod arrow;
#[cfg(test)]
mod arrow_tests;
mod bounds;
mod compare;
mod cores;
mod coverage;
mod cursor;
mod encode;
mod filtered;
mod group;
mod hours;
mod matcher;
mod merge;
mod parts;
mod rank;
mod row;
mod rows;
#[cfg(test)]
mod step_tests;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use arrow::{RowBatches, flow_schema};
pub use bounds::{QueryLimits, deadline_after};
pub use coverage::Coverage;
pub use encode::{EncodedRows, JsonItems, RowEncoder, RowFormat};
pub use hours::{HourSource, Hours};
pub use merge::{QuerySources, RowSource};
pub use row::Row;
pub use rows::Rows;

use crate::store::{ScanEnd, Selection, Store, StoreError, Tier};
use bounds::{MemoryPool, MemoryReservation};
use cores::Cores;
use filtered::FilteredScan;
use flow::codec::Corrupt;
use flow::query::{Columns, HoursQuery, Query};
use flow::{Counters, Field, Partition};
use group::Groups;
use matcher::Matcher;
use merge::{LocalRows, MergedRows};
use rank::{Page, RankedRow, Ranking, SortKey};
use rows::Stream;

/// The reason why a query failed, before or during its response.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// Other queries hold the memory that this one needs. It becomes free shortly.
    #[error("{0}")]
    Overloaded(String),
    #[error("groups, sorting or a page would take more than {} MiB", bytes_max >> 20)]
    TooLarge { bytes_max: usize },
    /// The hours are only kept in longer spans.
    #[error("{0}")]
    TooCoarse(String),
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
    /// Cannot happen: rows always fit into the columns that their query has.
    #[error("the rows cannot be encoded: {0}; this is a bug")]
    Encoding(String),
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for QueryError {
    fn from(error: StoreError) -> QueryError {
        match error {
            StoreError::TooCoarse { .. } => QueryError::TooCoarse(error.to_string()),
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
        let mut hours = Hours::new(self.time_max, cancel).in_steps_of(query.step);
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
        if query.compare.is_some() {
            return self.compare(query, |period| self.ask(store, period, cancel.clone()));
        }
        let after = cursor::sort_key(query)?;
        let memory = MemoryReservation::new(&self.pool);
        let mut parts = Vec::new();
        if reads_everything_first(query) {
            let mut threads = self.cores.extra(store.is_ingesting());
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
            totals: None,
            is_compared: false,
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
        let (src_app, dest_app) = (&query.filter.src_app, &query.filter.dest_app);
        // Other conditions on dest_apps are left to the matcher.
        let sought = dest_app
            .prefixes
            .is_empty()
            .then_some(dest_app.names.as_slice());
        let sought = sought.unwrap_or_default();
        let hours = Selection::hours(query.hours);
        let mut selection = hours.between(&src_app.names, &src_app.prefixes, sought);
        if let (Some(after), None) = (after, query.sort) {
            let leading = group::leading(query);
            selection = selection.starting_at(cursor::first_key(query, leading, &after.key));
        }
        if let Some(tier) = largest_span(query) {
            selection = selection.with_spans(tier);
        }
        let scans = store.select_parts(selection, parts)?;
        let filtered = scans.into_iter().map(|mut scan| {
            scan.set_cancel(cancel.clone());
            FilteredScan {
                scan,
                step: query.step,
                rows_of_other_parts: 0,
                matcher: Matcher::new(&query.filter),
                time_max: self.time_max,
            }
        });
        Ok(filtered.collect())
    }
}

/// The largest spans whose sums give the same answer as those of their hours.
fn largest_span(query: &Query) -> Option<Tier> {
    let gives_same = |tier: &Tier| match query.columns.has(Field::Hour) {
        true => query.step.is_multiple_of(tier.hours()),
        false => true,
    };
    let fits = |tier: &Tier| tier.hours() <= query.hours.len() && gives_same(tier);
    Tier::ALL.into_iter().rfind(fits)
}

/// The empty groups of `query`; `None` if it requests rows.
fn new_groups(query: &Query, memory: &MemoryReservation) -> Option<Groups> {
    let groups = || Groups::new(query, memory.for_same_query());
    query.is_grouped().then(groups)
}

/// Whether all rows have to be read before the first row of the response is known.
fn reads_everything_first(query: &Query) -> bool {
    let is_page = query.limit.is_some() || query.cursor.is_some();
    let needs_table = || query.is_grouped() && group::needs_table(query);
    let is_short = query.columns == Columns::NONE || has_few_steps(query) || needs_table();
    query.sort.is_some() || !is_page && is_short
}

/// Maximum number of days that a query by step reads before it responds; longer ranges stream.
const DAYS_MAX: u32 = 2_000;

/// Whether the rows are sums of a few days or longer steps, which several threads can find.
fn has_few_steps(query: &Query) -> bool {
    let by_hour_only = Columns::NONE.with(Field::Hour) == Some(query.columns);
    let days = query.hours.len() / Tier::Day.hours();
    by_hour_only && query.step.is_multiple_of(Tier::Day.hours()) && days <= DAYS_MAX
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
    if !query.is_grouped() {
        let ranking = |memory| {
            let ranking = Ranking::new(query.sort, query.limit, after.clone(), memory);
            ranking.with_totals(query.other)
        };
        let page = parts::rank(&mut parts, memory, stop, ranking)?;
        return Ok(paged(query, Coverage::default(), page, rows_read(&parts)));
    }
    let groups = parts::group(&mut parts, query, memory, stop)?;
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
    let page = rows.stream.rank(ranking.with_totals(query.other))?;
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
    let other = page.totals.map(|all| {
        let shown = |of: fn(Counters) -> u64| {
            let rows = page.rows.iter().map(|row| u128::from(of(row.counters)));
            rows.sum::<u128>()
        };
        let rest = |all: u128, shown| u64::try_from(all - shown).unwrap_or(u64::MAX);
        Counters {
            tx: rest(all.tx, shown(|counters| counters.tx)),
            rx: rest(all.rx, shown(|counters| counters.rx)),
        }
    });
    Rows {
        columns: query.columns,
        totals: page.totals,
        is_compared: query.compare.is_some(),
        stream: Stream::Page {
            rows_read,
            rows: page.rows.into_iter(),
            other: other.filter(|_| page.more),
            _memory: page.memory,
        },
        next_page,
        coverage,
        revocations: Vec::new(),
    }
}

fn break_if(done: bool) -> ControlFlow<()> {
    if done {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}
