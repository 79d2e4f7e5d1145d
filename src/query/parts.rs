//! Reads the parts of a store's rows on several threads, and unites their groups or their first rows.

use std::thread;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::bounds::MemoryReservation;
use super::group::Groups;
use super::rank::{Page, Ranking};
use super::{FilteredScan, QueryError};
use flow::query::Query;

/// The groups of all parts, sorted.
pub(super) fn group(
    parts: &mut [FilteredScan],
    query: &Query,
    memory: &MemoryReservation,
    stop: &CancellationToken,
) -> Result<Groups, QueryError> {
    let collect = |part: &mut FilteredScan, memory| {
        part.reset_deadline();
        Groups::collect(query, part, memory)
    };
    let mut of_parts = read(parts, memory, stop, collect)?.into_iter();
    let mut groups = of_parts.next().ok_or(QueryError::Cancelled)?;
    for others in of_parts {
        groups.merge_with(&others)?;
    }
    groups.sort();
    Ok(groups)
}

/// The first rows of all parts by the order of `ranking`, which returns an empty ranking.
pub(super) fn rank(
    parts: &mut [FilteredScan],
    memory: &MemoryReservation,
    stop: &CancellationToken,
    ranking: impl Fn(MemoryReservation) -> Ranking + Sync,
) -> Result<Page, QueryError> {
    let first = |part: &mut FilteredScan, memory| part.rank(ranking(memory));
    let mut all = ranking(memory.for_same_query());
    for page in read(parts, memory, stop, first)? {
        all.merge_with(&page)?;
    }
    Ok(all.finish())
}

/// Calls `work` for each part, on as many threads, and returns the results in their order. The first error cancels `stop`,
/// which all parts check.
fn read<T: Send>(
    parts: &mut [FilteredScan],
    memory: &MemoryReservation,
    stop: &CancellationToken,
    work: impl Fn(&mut FilteredScan, MemoryReservation) -> Result<T, QueryError> + Sync,
) -> Result<Vec<T>, QueryError> {
    let extra = parts.len().saturating_sub(1);
    let queue = Mutex::new(parts.iter_mut().enumerate());
    let results = Mutex::new(Vec::new());
    let next = || queue.lock().next();
    let run_worker = || {
        while let Some((number, part)) = next() {
            let result = work(part, memory.for_same_query());
            if result.is_err() {
                stop.cancel();
            }
            results.lock().push((number, result));
        }
    };
    thread::scope(|scope| {
        for _ in 0..extra {
            let name = "query".to_owned();
            // If the system has no thread, the others have more parts.
            let _best_effort = thread::Builder::new()
                .name(name)
                .spawn_scoped(scope, run_worker);
        }
        run_worker();
    });
    let mut results = results.into_inner();
    results.sort_by_key(|(number, _)| *number);
    let of_stopped = |result: &Result<T, QueryError>| matches!(result, Err(QueryError::Cancelled));
    // The error that stopped the others, not theirs.
    if let Some(at) = results
        .iter()
        .position(|(_, r)| r.is_err() && !of_stopped(r))
    {
        results.swap(0, at);
    }
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::query::{Engine, QueryLimits, Rows, Stream, ask_parts, cursor, ranked};
    use crate::store::{Store, StoreOptions};
    use flow::query::text;
    use flow::{BatchBuilder, Counters, Hour};

    /// Settled rows of hours 0 to 4, then late ones and those of hour 5, of which a third is not flushed.
    fn filled(dir: &std::path::Path) -> Store {
        let (store, _) = Store::open(dir, StoreOptions::default()).unwrap();
        let mut random = StdRng::seed_from_u64(1);
        let mut commit = |flows, hours: std::ops::Range<u64>| {
            let mut batch = BatchBuilder::with_capacity(0);
            for _ in 0..flows {
                let name = |number: u32| format!("a-name-that-many-share-{number}");
                let [src, dest] = [499, 101].map(|names| name(random.random_range(0..names)));
                let counters = Counters {
                    tx: random.random_range(0..1000),
                    rx: 1,
                };
                let hour = Hour::new(random.random_range(hours.clone())).unwrap();
                batch.push(hour, [src.as_bytes(), dest.as_bytes(), b"v"], counters);
            }
            store.commit(vec![batch.finish()]).unwrap();
        };
        commit(30_000, 0..5);
        store.flush().unwrap();
        store.compact().unwrap();
        commit(2_000, 0..6);
        commit(20_000, 5..6);
        store.flush().unwrap();
        commit(10_000, 4..6);
        store
    }

    fn read_all(mut rows: Rows) -> (Vec<String>, Option<String>, u64) {
        let mut all = Vec::new();
        let ended = rows.read(|row| {
            all.push(format!("{row:?}"));
            ControlFlow::Continue(())
        });
        assert!(ended.unwrap());
        let rows_read = rows.rows_read();
        (all, rows.next_page().map(str::to_owned), rows_read)
    }

    fn scanned(store: &Store, query: &Query, parts: usize) -> Vec<usize> {
        let selection = crate::store::Selection::hours(query.hours);
        let scans = store.select_parts(selection, parts).unwrap();
        let rows = scans.into_iter().map(|mut scan| {
            let mut rows = 0;
            while scan.next_row().unwrap().is_some() {
                rows += 1;
            }
            rows
        });
        rows.collect()
    }

    #[test]
    fn several_threads_give_the_answer_of_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = filled(dir.path());
        let engine = Engine::new(QueryLimits::NONE);
        for hours in [
            "hour=5",
            "hour=2",
            "from=0&to=6",
            "from=4&to=6",
            "from=5&to=9",
        ] {
            for rest in [
                "group_by=src_app",
                "group_by=hour",
                "group_by=hour,dest_app",
                "group_by=src_app,dest_app",
                "group_by=dest_app&vpc_id=v&search=-99",
                "group_by=dest_app&sort=bytes&limit=7",
                "sort=bytes_tx&limit=10",
                // In an hour, only one part has such rows.
                "sort=bytes&limit=3&search=share-123",
                "sort=-bytes&limit=100&dest_app=a-name-that-many-share-7",
            ] {
                let mut query = text::parse_flows(&format!("{hours}&{rest}")).unwrap();
                // The first page, and the one after it.
                for _ in 0..2 {
                    let cancel = CancellationToken::new;
                    let after = cursor::sort_key(&query).unwrap();
                    let memory = MemoryReservation::new(&engine.pool);
                    let open = |parts| engine.open_parts(&store, &query, &after, &cancel(), parts);
                    let one = open(1).unwrap().pop().unwrap();
                    let stream = match crate::query::new_groups(&query, &memory) {
                        Some(groups) => Stream::Groups(one, groups),
                        None => Stream::Rows(one),
                    };
                    let rows = Rows::of_store(&query, stream);
                    let rows = ranked(&query, after.clone(), rows, memory.for_same_query());
                    let expected = read_all(rows.unwrap());
                    for parts in [2, 3, 5] {
                        let several = open(parts).unwrap();
                        assert_eq!(several.len(), parts, "{hours}");
                        let rows =
                            ask_parts(&query, after.clone(), several, &memory, &cancel()).unwrap();
                        assert!(read_all(rows) == expected, "{hours}&{rest} in {parts}");
                    }
                    query.cursor = expected.1;
                    if query.cursor.is_none() {
                        break;
                    }
                }
            }
        }
    }

    #[test]
    fn parts_are_of_similar_size() {
        let dir = tempfile::tempdir().unwrap();
        let store = filled(dir.path());
        for hours in ["hour=5", "hour=2", "from=0&to=6"] {
            let query = text::parse_flows(hours).unwrap();
            let all = scanned(&store, &query, 1)[0];
            let rows = scanned(&store, &query, 4);
            assert_eq!(rows.iter().sum::<usize>(), all);
            let is_quarter = |rows: &usize| (all / 6..all * 2 / 5).contains(rows);
            assert!(rows.iter().all(is_quarter), "{hours}: {rows:?} of {all}");
        }
        // Few rows are not worth a thread.
        let few = text::parse_flows("hour=77").unwrap();
        assert_eq!(scanned(&store, &few, 4), [0]);
    }

    #[test]
    fn an_error_of_one_part_is_that_of_the_query() {
        let dir = tempfile::tempdir().unwrap();
        let store = filled(dir.path());
        let limits = QueryLimits {
            memory_bytes_max: 1 << 20,
            ..QueryLimits::NONE
        };
        let engine = Engine::new(limits);
        let query = text::parse_flows("from=0&to=6&group_by=src_app,dest_app").unwrap();
        let memory = MemoryReservation::new(&engine.pool);
        let cancel = CancellationToken::new();
        let parts = engine
            .open_parts(&store, &query, &None, &cancel, 3)
            .unwrap();
        let stop = cancel.child_token();
        let rows = ask_parts(&query, None, parts, &memory, &stop);
        assert!(matches!(rows, Err(QueryError::TooLarge { .. })), "{rows:?}");
        assert!(stop.is_cancelled());
        let parts = engine
            .open_parts(&store, &query, &None, &cancel, 3)
            .unwrap();
        cancel.cancel();
        let rows = ask_parts(&query, None, parts, &memory, &cancel);
        assert!(matches!(rows, Err(QueryError::Cancelled)), "{rows:?}");
    }
}
