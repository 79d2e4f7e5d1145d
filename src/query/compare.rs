//! Compares the sums of two periods.

use std::ops::ControlFlow;

use hashbrown::HashMap;

use super::bounds::MemoryReservation;
use super::rank::Ranking;
use super::{Engine, QueryError, Rows, cursor, paged};
use flow::Counters;
use flow::query::Query;

/// Memory of an entry without its key, in a table that is at least 7/16 full.
const ENTRY_BYTES: usize = 2 * (size_of::<(Box<[u8]>, Pair)>() + 1) + 16;

/// The sums of a group in both periods.
#[derive(Clone, Copy, Debug, Default)]
struct Pair {
    counters: Counters,
    before: Counters,
}

impl Engine {
    /// Executes `query`, which has [`Query::compare`]: `ask` is called for each of the two periods.
    pub fn compare(
        &self,
        query: &Query,
        ask: impl Fn(&Query) -> Result<Rows, QueryError>,
    ) -> Result<Rows, QueryError> {
        let after = cursor::sort_key(query)?;
        let mut memory = MemoryReservation::new(&self.pool);
        let one = Query {
            compare: None,
            sort: None,
            limit: None,
            cursor: None,
            ..query.clone()
        };
        let mut groups: HashMap<Box<[u8]>, Pair, foldhash::fast::RandomState> = HashMap::default();
        let (mut bytes, mut rows_read, mut key) = (0, 0, Vec::new());
        let mut add = |period: &Query, counters_of: fn(&mut Pair) -> &mut Counters| {
            let mut rows = ask(period)?;
            let mut full = Ok(());
            rows.read(|row| {
                key.clear();
                row.push_key(&mut key);
                let pair = match groups.get_mut(key.as_slice()) {
                    Some(pair) => pair,
                    None => {
                        bytes += key.len() + ENTRY_BYTES;
                        full = memory.grow_to(bytes);
                        groups.entry(key.as_slice().into()).or_default()
                    }
                };
                *counters_of(pair) = row.counters;
                match &full {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            })?;
            full?;
            rows_read += rows.rows_read();
            Ok::<_, QueryError>(rows.coverage().clone())
        };
        let before = Query {
            hours: query.compare.unwrap_or(query.hours),
            ..one.clone()
        };
        let mut coverage = add(&one, |pair| &mut pair.counters)?;
        coverage.merge_with(&add(&before, |pair| &mut pair.before)?);
        let of_page = memory.for_same_query();
        let mut ranking = Ranking::new(query.sort, query.limit, after, of_page);
        for (key, pair) in &groups {
            ranking.push_compared(key, pair.counters, pair.before)?;
        }
        Ok(paged(query, coverage, ranking.finish(), rows_read))
    }
}
