//! Reads: the rows of one hour, from disk and from the tallies, each flow counted exactly once.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};

use rocksdb::{DB, DBRawIteratorWithThreadMode, ReadOptions};
use self_cell::self_cell;

use super::codec::{self, FlowKey, HOUR_BYTES};
use super::error::{StoreError, database};
use super::run::Run;
use super::{Inner, codec::Corrupt};
use crate::domain::{Counters, Hour};

type RawIterator<'a> = DBRawIteratorWithThreadMode<'a, DB>;

self_cell!(
    /// An iterator together with the database it reads.
    pub(super) struct Cursor {
        owner: Arc<Inner>,
        #[covariant]
        dependent: RawIterator,
    }
);

impl Cursor {
    /// The current key and value. `None` after the last, or at an error.
    pub(super) fn item(&self) -> Option<(&[u8], &[u8])> {
        self.borrow_dependent().item()
    }

    pub(super) fn status(&self) -> Result<(), rocksdb::Error> {
        self.borrow_dependent().status()
    }

    /// The current row: key suffix and sums. `None` after the last, or at an error.
    #[inline]
    fn peek(&self) -> Result<Option<(&[u8], Counters)>, Corrupt> {
        let Some((key, value)) = self.borrow_dependent().item() else {
            return Ok(None);
        };
        let suffix = key.get(HOUR_BYTES..).ok_or(Corrupt("a key is too short"))?;
        Ok(Some((suffix, codec::decode_counters(value)?)))
    }

    #[inline]
    pub(super) fn advance(&mut self) {
        self.with_dependent_mut(|_, iterator| iterator.next());
    }
}

/// Bounds the memory of all scans' copies together: a client that reads slowly keeps its own.
#[derive(Debug)]
pub(super) struct ViewBudget {
    bytes_max: usize,
    bytes_free: Mutex<usize>,
    given_back: Condvar,
}

impl ViewBudget {
    pub(super) fn new(bytes_max: usize) -> ViewBudget {
        ViewBudget {
            bytes_max,
            bytes_free: Mutex::new(bytes_max),
            given_back: Condvar::new(),
        }
    }
}

/// Bytes of the [`ViewBudget`] that one scan has; given back when it is dropped.
struct Grant {
    inner: Arc<Inner>,
    bytes: usize,
}

impl Grant {
    /// Takes `bytes`, or all there is to have where that is less. Waits for them.
    fn take(inner: &Arc<Inner>, bytes: usize) -> Result<Grant, StoreError> {
        let budget = &inner.views;
        let bytes = bytes.min(budget.bytes_max);
        let free = budget.bytes_free.lock().map_err(|_| StoreError::Closed)?;
        let (mut free, timeout) = budget
            .given_back
            .wait_timeout_while(free, inner.options.stall_max, |free| *free < bytes)
            .map_err(|_| StoreError::Closed)?;
        if timeout.timed_out() {
            return Err(StoreError::Views);
        }
        *free -= bytes;
        Ok(Grant {
            inner: inner.clone(),
            bytes,
        })
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if let Ok(mut free) = self.inner.views.bytes_free.lock() {
            *free += self.bytes;
            self.inner.views.given_back.notify_all();
        }
    }
}

/// A tally's last position, a copy of its entries of an hour, and how many they are.
type Copied = (u64, Vec<u8>, usize);

/// The rows of one hour in key order, at one moment between two commits.
///
/// Holds files of the database that it reads, and copies of the hour's part of both tallies, but no
/// lock: it can be kept for as long as a slow client takes.
pub struct Scan {
    hour: Hour,
    disk: Cursor,
    runs: Vec<Run<Vec<u8>>>,
    /// Which sources the row given out last came from: bit 0 is the disk, bit `1 + i` is `runs[i]`.
    taken: u32,
    disk_ended: bool,
    _grant: Grant,
}

impl Scan {
    pub(super) fn open(inner: &Arc<Inner>, hour: Hour) -> Result<Scan, StoreError> {
        // The tallies first: what is flushed after this moment is in the iterator *and* here, and
        // the marker tells. The other way round, it could be in neither.
        let (mut sources, grant) = tally_rows(inner, hour.get())?;
        let (mut lower, upper) = codec::hour_bounds(hour);
        if hour.get() < inner.horizon.load(Ordering::SeqCst) {
            // Too old, and about to be dropped.
            sources.clear();
            lower = upper;
        }
        let (disk, marker) = open_cursor(inner, &lower, &upper)?;
        if inner.horizon.load(Ordering::SeqCst) > hour.get() && lower != upper {
            // It has become too old meanwhile, and may have been dropped in part of what was seen.
            drop(grant);
            return Scan::open(inner, hour);
        }
        // Markers stand only between tallies. So one that has not reached a tally's last position
        // has reached none of it, and one that has, covers all of what was seen of it above.
        let runs = sources
            .into_iter()
            .filter(|(last, ..)| *last > marker)
            .map(|(_, entries, rows)| Run::sort(entries, rows))
            .collect();
        Ok(Scan {
            hour,
            disk,
            runs,
            taken: 0,
            disk_ended: false,
            _grant: grant,
        })
    }

    /// The next row, or `None` after the last.
    // Not an `Iterator`: the row borrows from the scan, which saves copying three names a row.
    #[allow(clippy::should_implement_trait)]
    #[inline]
    pub fn next(&mut self) -> Result<Option<(FlowKey<'_>, Counters)>, StoreError> {
        self.advance_taken();
        let mut least: Option<(&[u8], Counters)> = None;
        if !self.disk_ended {
            least = self.disk.peek()?;
            if least.is_none() {
                let iterator = self.disk.borrow_dependent();
                iterator.status().map_err(database("reading"))?;
                self.disk_ended = true;
            }
        }
        let mut taken = u32::from(least.is_some());
        for (i, run) in self.runs.iter().enumerate() {
            let Some((suffix, counters)) = run.peek() else {
                continue;
            };
            match &mut least {
                Some((least_suffix, _)) if *least_suffix < suffix => {}
                Some((least_suffix, sum)) if *least_suffix == suffix => {
                    sum.add(counters);
                    taken |= 2 << i;
                }
                _ => {
                    least = Some((suffix, counters));
                    taken = 2 << i;
                }
            }
        }
        self.taken = taken;
        match least {
            None => Ok(None),
            Some((suffix, sum)) => Ok(Some((FlowKey::decode_names(self.hour, suffix)?, sum))),
        }
    }

    #[inline]
    fn advance_taken(&mut self) {
        if self.taken & 1 != 0 {
            self.disk.advance();
        }
        for (i, run) in self.runs.iter_mut().enumerate() {
            if self.taken & (2 << i) != 0 {
                run.advance();
            }
        }
        self.taken = 0;
    }
}

/// The hour's entries in both tallies, and the grant that covers them. Copies, also of the frozen
/// tally: a slow client that shared it would keep all of its hours in memory.
fn tally_rows(inner: &Arc<Inner>, hour: u32) -> Result<(Vec<Copied>, Grant), StoreError> {
    let mut grant: Option<Grant> = None;
    loop {
        let bytes = {
            let tallies = inner.tallies()?;
            let both = tallies
                .frozen
                .as_deref()
                .into_iter()
                .chain([&tallies.active]);
            let parts = both.filter_map(|tally| {
                let (entries, rows) = tally.entries(hour)?;
                Some((tally.last(), entries, rows))
            });
            let parts: Vec<(u64, &[u8], usize)> = parts.collect();
            let order = |rows| Run::<Vec<u8>>::order_bytes(rows);
            let bytes: usize = parts
                .iter()
                .map(|(_, e, rows)| e.len() + order(*rows))
                .sum();
            if let Some(grant) = grant.take_if(|g| g.bytes >= bytes.min(inner.views.bytes_max)) {
                let copied = parts
                    .into_iter()
                    .map(|(last, e, rows)| (last, e.to_vec(), rows));
                return Ok((copied.collect(), grant));
            }
            bytes
        };
        // Without the lock, since this may wait; with some to spare, since the hour grows.
        drop(grant.take());
        grant = Some(Grant::take(inner, bytes + bytes / 8)?);
    }
}

/// Hours that take up to this part of the block cache on disk, where they are compressed to a fourth or
/// less, are kept in it by those who read them: for a dashboard that asks again and again. A scan of
/// millions of rows would push everything else out of it, and gets along with the page cache.
const CACHED_PART_MAX: usize = 8;

/// An iterator over the keys from `lower` up to `upper`, at the first of them, and the marker as that
/// iterator would see it.
pub(super) fn open_cursor(
    inner: &Arc<Inner>,
    lower: &[u8],
    upper: &[u8],
) -> Result<(Cursor, u64), StoreError> {
    let is_small = inner.bytes_on_disk(lower, upper)?
        <= (inner.options.block_cache_bytes / CACHED_PART_MAX) as u64;
    loop {
        let before = inner.marker()?;
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(lower);
        options.set_iterate_upper_bound(upper);
        options.fill_cache(is_small);
        let mut cursor = Cursor::try_new(inner.clone(), |inner| {
            Ok::<_, StoreError>(inner.db.raw_iterator_cf_opt(inner.flows()?, options))
        })?;
        // The iterator sees the database as it was when it was made. The marker only grows, so
        // when it is the same before and after, it is the same in there. Otherwise a flush came
        // in between, which happens once in seconds.
        if inner.marker()? == before {
            cursor.with_dependent_mut(|_, iterator| iterator.seek_to_first());
            return Ok((cursor, before));
        }
    }
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan")
            .field("hour", &self.hour)
            .finish_non_exhaustive()
    }
}
