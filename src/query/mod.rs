//! Questions to the store, answered as rows.
//!
//! ```text
//! scan of a selection ─▶ filter ─▶ groups ─▶ ranking ─▶ rows
//! ```
//!
//! Rows in key order, also added up by the first columns of a key, are streamed: such an answer takes no
//! memory, however long it is. Sorting and pages keep as many rows as they give, and groups that do not
//! come together are kept in a table; both take their memory from what all questions share
//! ([`bounds`]). Where sums are in [`parts`], here and on other nodes, their rows are merged before they are
//! ranked.

mod bounds;
mod cursor;
pub mod frames;
mod group;
mod hours;
mod parts;
mod question;
mod rank;
mod row;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

pub use bounds::QueryLimits;
pub use hours::{HourSource, Hours, HoursQuery};
pub use parts::{Coverage, Opened, Parts, Source};
pub use question::{Columns, Filter, Query, Sort, SortBy};
pub use row::Row;

pub use crate::store::Cancel;
use crate::store::codec::{Corrupt, FlowKey};
use crate::store::{Scan, ScanEnd, Selection, Store, StoreError, StoredRow};
use bounds::{Memory, Pool};
use group::Groups;
use parts::{Here, Merged};
use question::Matcher;
use rank::{Page, Position, Ranked, Ranking};

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
    /// Nobody answers for these partitions; that passes when another node has taken them over.
    #[error(
        "no node answers for partition {}; try again shortly, or ask with partial=true for what there is",
        list(_0)
    )]
    Missing(Vec<i32>),
    #[error("{0}")]
    Elsewhere(String),
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

fn list(partitions: &[i32]) -> String {
    let numbers: Vec<_> = partitions.iter().map(i32::to_string).collect();
    numbers.join(", ")
}

/// Answers queries from a store, or from parts of the sums.
#[derive(Clone, Debug)]
pub struct Engine {
    sums: Sums,
    pool: Arc<Pool>,
    time_max: Duration,
}

#[derive(Clone, Debug)]
enum Sums {
    Store(Arc<Store>),
    Parts(Arc<dyn Parts>),
}

impl Engine {
    pub fn new(store: Arc<Store>, limits: QueryLimits) -> Engine {
        Engine::of(Sums::Store(store), limits)
    }

    pub fn of_parts(parts: Arc<dyn Parts>, limits: QueryLimits) -> Engine {
        Engine::of(Sums::Parts(parts), limits)
    }

    fn of(sums: Sums, limits: QueryLimits) -> Engine {
        Engine {
            sums,
            pool: Pool::new(limits.memory_bytes_max),
            time_max: limits.time_max,
        }
    }

    /// Whether sums are in parts, which other nodes may ask for.
    pub fn is_in_parts(&self) -> bool {
        matches!(self.sums, Sums::Parts(_))
    }

    /// The hours that hold flows, each store's as they are at one moment between two commits.
    pub fn hours(&self, query: &HoursQuery, cancel: Cancel) -> Result<Hours, QueryError> {
        let mut hours = Hours::new(self.time_max, cancel);
        match &self.sums {
            Sums::Store(store) => hours.add_store(store, query.hours.clone())?,
            Sums::Parts(parts) => parts.hours(query, &mut hours)?,
        }
        Ok(hours)
    }

    /// The rows that answer `query`, each store's as they are at one moment between two commits. Blocks on
    /// the disk; sorting, pages and groups that do not come together are done when it returns.
    pub fn ask(&self, query: &Query, cancel: Cancel) -> Result<Rows, QueryError> {
        let after = match &query.cursor {
            None => None,
            Some(text) => Some(cursor::decode(query, text).ok_or(QueryError::BadCursor)?),
        };
        let memory = Memory::new(&self.pool);
        let (mut stream, coverage, mut leaves) = match &self.sums {
            Sums::Store(store) => {
                let (matching, groups) = self.rows_of(store, query, &after, &cancel, &memory)?;
                let stream = Stream::Store(matching, groups);
                (stream, Coverage::default(), Vec::new())
            }
            Sums::Parts(parts) => {
                let opened = parts.open(query, self.time_max)?;
                let mut sources = opened.elsewhere;
                for store in &opened.here {
                    let (matching, groups) =
                        self.rows_of(store, query, &after, &cancel, &memory)?;
                    sources.push(Box::new(Here::new(matching, groups)));
                }
                let merged = Merged::new(sources, self.time_max, cancel);
                (Stream::Merged(merged), opened.coverage, opened.leaves)
            }
        };
        let (mut next_page, mut answer) = (None, None);
        if query.sort.is_some() || query.limit.is_some() || after.is_some() {
            let ranking = Ranking::new(query.sort, query.limit, after, memory);
            let mut page = stream.rank(ranking)?;
            let last = page.rows.last().filter(|_| page.more);
            next_page = last.map(|last| cursor::encode(query, &last.position));
            if query.partitions.is_some() && query.sort.is_some() {
                let key = |row: &Ranked| row.position.key.clone();
                page.rows.sort_by_cached_key(key);
            }
            answer = Some(Stream::Page {
                rows: page.rows.into_iter(),
                rows_read: stream.rows_read(),
                _memory: page.memory,
            });
            leaves.clear();
        }
        Ok(Rows {
            columns: query.columns,
            stream: answer.unwrap_or(stream),
            next_page,
            coverage,
            leaves,
        })
    }

    /// The rows of one store that answer `query`, in key order, and what adds them up.
    fn rows_of(
        &self,
        store: &Store,
        query: &Query,
        after: &Option<Position>,
        cancel: &Cancel,
        memory: &Memory,
    ) -> Result<(Matching, Option<Groups>), QueryError> {
        let is_one_hour = query.hours.len() == 1;
        let leading = group::leading(query.columns, is_one_hour);
        let mut selection = Selection::hours(query.hours.clone())
            .between(&query.filter.src_apps, &query.filter.dest_apps);
        if let (Some(after), None) = (after, query.sort) {
            selection = selection.starting_at(cursor::first_key(query, leading, &after.key));
        }
        let mut matching = Matching {
            scan: store.select(selection)?,
            matcher: Matcher::new(&query.filter),
            time_max: self.time_max,
        };
        matching.scan.unless(cancel.clone());
        let groups = (query.columns != Columns::ALL)
            .then(|| Groups::new(query.columns, is_one_hour, memory.of_same_question()));
        Ok((matching, groups))
    }
}

/// Ranks all rows, or groups of them.
fn rank_all(
    matching: &mut Matching,
    groups: &mut Option<Groups>,
    mut ranking: Ranking,
) -> Result<Page, QueryError> {
    matching.begin();
    let Some(groups) = groups else {
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
        self.scan.until(bounds::from_now(self.time_max));
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
    stream: Stream,
    next_page: Option<String>,
    coverage: Coverage,
    leaves: Vec<watch::Receiver<()>>,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // there are a few of them
enum Stream {
    /// Rows of one store, or groups of them.
    Store(Matching, Option<Groups>),
    /// Those of several parts.
    Merged(Merged),
    /// Rows in memory.
    Page {
        rows: std::vec::IntoIter<Ranked>,
        rows_read: u64,
        _memory: Memory,
    },
}

impl Stream {
    /// Reads all of it.
    fn rank(&mut self, mut ranking: Ranking) -> Result<Page, QueryError> {
        match self {
            Stream::Store(matching, groups) => rank_all(matching, groups, ranking),
            Stream::Merged(merged) => {
                merged.begin();
                while let Some((key, counters)) = merged.next()? {
                    ranking.offer(key, counters)?;
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
            Stream::Store(matching, _) => matching.scan.rows(),
            Stream::Merged(merged) => merged.rows_read(),
            Stream::Page { rows_read, .. } => *rows_read,
        }
    }
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
        match &self.stream {
            Stream::Store(_, groups) => groups.as_ref().is_some_and(Groups::are_many),
            Stream::Merged(merged) => merged.holds_memory(),
            Stream::Page { .. } => true,
        }
    }

    /// Rows of the store that were read up to now.
    pub fn rows_read(&self) -> u64 {
        self.stream.rows_read()
    }

    /// Which parts of the sums it has.
    pub fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// Each closes when it holds something that others wait for, and has to be broken off.
    pub fn take_leaves(&mut self) -> Vec<watch::Receiver<()>> {
        std::mem::take(&mut self.leaves)
    }

    /// Hands rows to `each` until it breaks or the answer ends; returns whether it has ended.
    /// Blocks on the disk.
    pub fn read(
        &mut self,
        mut each: impl FnMut(&Row<'_>) -> ControlFlow<()>,
    ) -> Result<bool, QueryError> {
        let columns = self.columns;
        match &mut self.stream {
            Stream::Page { rows, .. } => {
                for ranked in rows {
                    let key = row::decode(columns, &ranked.position.key)?;
                    if each(&key.row(ranked.counters)).is_break() {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Stream::Merged(merged) => {
                merged.begin();
                while let Some((key, counters)) = merged.next()? {
                    if each(&row::decode(columns, key)?.row(counters)).is_break() {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Stream::Store(matching, groups) => {
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
