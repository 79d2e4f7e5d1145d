//! Reads: rows from disk and from the tallies, each flow counted exactly once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rocksdb::{DB, DBRawIteratorWithThreadMode, ReadOptions};
use self_cell::self_cell;
use tokio_util::sync::CancellationToken;

use super::codec::{self, FlowKey, HOUR_BYTES};
use super::error::{StoreError, database};
use super::run::Run;
use super::selection::{Place, Selection};
use super::tally::Tally;
use super::views::Grant;
use super::{Inner, arena, codec::Corrupt};
use flow::{Counters, Hour};

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

    /// The hour of the current row and the rest of its key. `None` after the last, or at an error.
    #[inline]
    fn place(&self) -> Option<(u32, &[u8])> {
        let (hour, suffix) = self.borrow_dependent().key()?.split_first_chunk()?;
        Some((u32::from_be_bytes(*hour), suffix))
    }

    #[inline]
    pub(super) fn advance(&mut self) {
        self.with_dependent_mut(|_, iterator| iterator.next());
    }

    fn seek(&mut self, key: &[u8]) {
        self.with_dependent_mut(|_, iterator| iterator.seek(key));
    }
}

/// A copy of a tally's entries of an hour.
struct Copied {
    hour: u32,
    /// The tally's last position.
    last: u64,
    entries: Vec<u8>,
    rows: usize,
}

/// What the copy of an hour takes beside its entries: there may be as many hours as entries.
const COPIED_BYTES: usize = 2 * size_of::<Copied>();

impl Copied {
    /// What it takes, together with the order of its rows.
    fn bytes(&self) -> usize {
        COPIED_BYTES + self.entries.len() + Run::<Vec<u8>>::order_bytes(self.rows)
    }
}

/// A row as it is stored.
#[derive(Clone, Copy, Debug)]
pub struct StoredRow<'a> {
    pub hour: Hour,
    /// What follows the hour in its key: see [`codec::split_names`].
    pub suffix: &'a [u8],
    pub counters: Counters,
}

/// The rows of a [`Selection`] in key order, at one moment between two commits.
///
/// Holds files of the database that it reads, and copies of the rows that are not flushed yet, but no
/// lock: it can be kept for as long as a slow client takes.
pub struct Scan {
    selection: Selection,
    hour: Hour,
    disk: Cursor,
    /// The disk's row is one of `hour`.
    disk_here: bool,
    /// The hour of the disk's row, and which of the selection's names it has come to there.
    disk_at: (u32, usize),
    /// Copies of rows of `hour`, and what they take.
    runs: Vec<Run<Vec<u8>>>,
    run_bytes: usize,
    /// Those of later hours, ascending.
    later: VecDeque<Copied>,
    /// Which sources the row given out last came from: bit 0 is the disk, bit `1 + i` is `runs[i]`.
    taken: u32,
    patience: Patience,
    rows: u64,
    grant: Grant,
}

/// Why a scan ended before its last row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanEnd {
    /// [`Scan::until`] has passed.
    TimeOver,
    /// The token of [`Scan::unless`] was cancelled.
    Cancelled,
}

/// Rows and seeks between two looks at the clock: a fraction of a millisecond.
const STEPS_BETWEEN_LOOKS: u32 = 512;

/// How long a scan may go on.
#[derive(Debug)]
pub(super) struct Patience {
    steps_to_look: u32,
    until: Option<Instant>,
    cancel: CancellationToken,
}

impl Default for Patience {
    /// For as long as it takes.
    fn default() -> Patience {
        Patience {
            steps_to_look: STEPS_BETWEEN_LOOKS,
            until: None,
            cancel: CancellationToken::default(),
        }
    }
}

impl Patience {
    pub(super) fn until(&mut self, time: Option<Instant>) {
        self.until = time;
    }

    pub(super) fn unless(&mut self, cancel: CancellationToken) {
        self.cancel = cancel;
    }

    /// To be called for each row and each seek.
    #[inline]
    pub(super) fn step(&mut self) -> Result<(), StoreError> {
        self.steps_to_look -= 1;
        if self.steps_to_look > 0 {
            return Ok(());
        }
        self.look()
    }

    #[cold]
    fn look(&mut self) -> Result<(), StoreError> {
        self.steps_to_look = STEPS_BETWEEN_LOOKS;
        if self.cancel.is_cancelled() {
            return Err(StoreError::ScanEnded(ScanEnd::Cancelled));
        }
        match self.until {
            Some(until) if Instant::now() > until => Err(StoreError::ScanEnded(ScanEnd::TimeOver)),
            _ => Ok(()),
        }
    }
}

impl Scan {
    pub(super) fn open(inner: &Arc<Inner>, selection: Selection) -> Result<Scan, StoreError> {
        loop {
            // The tallies first: what is flushed after this moment is in the iterator *and* here,
            // and the marker tells. The other way round, it could be in neither.
            let (mut copies, grant) = copy_tallies(inner, &selection)?;
            // What is older is about to be dropped.
            let horizon = inner.horizon.load(Ordering::SeqCst);
            copies.retain(|copied| copied.hour >= horizon);
            let (lower, upper) = selection.bounds(horizon);
            let (disk, marker) = open_cursor(inner, &lower, &upper, selection.has_names())?;
            let newer = selection.bounds(inner.horizon.load(Ordering::SeqCst));
            if newer.0 != lower {
                // An hour has become too old meanwhile, and may have been dropped in part of what
                // was seen.
                continue;
            }
            // Markers stand only between tallies. So one that has not reached a tally's last
            // position has reached none of it, and one that has, covers all of what was seen of it.
            copies.retain(|copied| copied.last > marker);
            copies.sort_by_key(|copied| copied.hour);
            let start = selection.range().start;
            return Ok(Scan {
                hour: Hour::new(u64::from(start)).ok_or(Corrupt("no hour is that late"))?,
                disk_at: (start, 0),
                selection,
                disk,
                disk_here: false,
                runs: Vec::new(),
                run_bytes: 0,
                later: copies.into(),
                taken: 0,
                patience: Patience::default(),
                rows: 0,
                grant,
            });
        }
    }

    /// Ends the scan with an error when it is read after this time.
    pub fn until(&mut self, time: Option<Instant>) {
        self.patience.until(time);
    }

    /// Ends the scan with an error when it is told to.
    pub fn unless(&mut self, cancel: CancellationToken) {
        self.patience.unless(cancel);
    }

    /// Number of rows that were given out.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The next row, decoded; `None` after the last.
    // Not an `Iterator`: the row borrows from the scan, which saves copying three names a row.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<(FlowKey<'_>, Counters)>, StoreError> {
        Ok(match self.next_row()? {
            None => None,
            Some(row) => Some((FlowKey::decode_names(row.hour, row.suffix)?, row.counters)),
        })
    }

    /// The next row, or `None` after the last.
    #[inline]
    pub fn next_row(&mut self) -> Result<Option<StoredRow<'_>>, StoreError> {
        self.advance_taken()?;
        self.patience.step()?;
        while !self.disk_here && self.runs.iter().all(|run| run.peek().is_none()) {
            if !self.next_hour()? {
                return Ok(None);
            }
        }
        let mut least: Option<(&[u8], Counters)> = None;
        if self.disk_here {
            least = self.disk.peek()?;
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
        self.rows += 1;
        Ok(least.map(|(suffix, counters)| StoredRow {
            hour: self.hour,
            suffix,
            counters,
        }))
    }

    #[inline]
    fn advance_taken(&mut self) -> Result<(), StoreError> {
        if self.taken & 1 != 0 {
            self.disk.advance();
            self.settle()?;
        }
        for (i, run) in self.runs.iter_mut().enumerate() {
            if self.taken & (2 << i) != 0 {
                run.advance();
            }
        }
        self.taken = 0;
        Ok(())
    }

    /// After the disk has been moved: on to the next row of the selection, unless it is at one.
    #[inline]
    fn settle(&mut self) -> Result<(), StoreError> {
        self.disk_here = if self.selection.has_names() {
            self.seek_names()? == Some(self.hour.get())
        } else if self.selection.is_one_hour() {
            self.disk.borrow_dependent().valid()
        } else {
            self.disk.place().map(|(hour, _)| hour) == Some(self.hour.get())
        };
        Ok(())
    }

    /// Seeks the next row with one of the selection's names; returns its hour.
    fn seek_names(&mut self) -> Result<Option<u32>, StoreError> {
        while let Some((hour, suffix)) = self.disk.place() {
            if self.disk_at.0 != hour {
                self.disk_at = (hour, 0);
            }
            let key = match self.selection.locate(self.disk_at.1, suffix) {
                Place::Inside(at) => {
                    self.disk_at.1 = at;
                    return Ok(Some(hour));
                }
                Place::Before(at) => {
                    self.disk_at.1 = at;
                    self.selection.key_of(hour, at)
                }
                // No flow has the last `u32` for an hour.
                Place::Behind => self.selection.key_of(hour.saturating_add(1), 0),
            };
            self.disk.seek(&key);
            self.patience.step()?;
        }
        Ok(None)
    }

    /// Goes on to the next hour that has rows; returns whether there is one.
    #[cold]
    fn next_hour(&mut self) -> Result<bool, StoreError> {
        self.runs.clear();
        self.grant.give_back(std::mem::take(&mut self.run_bytes));
        let on_disk = if self.selection.has_names() {
            self.seek_names()?
        } else {
            self.disk.place().map(|(hour, _)| hour)
        };
        if on_disk.is_none() {
            self.disk.status().map_err(database("reading"))?;
        }
        let copied = self.later.front().map(|copied| copied.hour);
        let Some(hour) = on_disk.into_iter().chain(copied).min() else {
            return Ok(false);
        };
        self.hour = Hour::new(u64::from(hour)).ok_or(Corrupt("a key's hour is out of range"))?;
        self.disk_here = on_disk == Some(hour);
        while self.later.front().is_some_and(|copied| copied.hour == hour)
            && let Some(copied) = self.later.pop_front()
        {
            self.run_bytes += copied.bytes();
            self.runs.push(Run::sort(copied.entries, copied.rows));
        }
        Ok(true)
    }
}

/// Both tallies' rows that belong to `selection`, and the grant that covers them. Copies, also of the
/// frozen tally: a slow client that shared it would keep all of it in memory.
fn copy_tallies(
    inner: &Arc<Inner>,
    selection: &Selection,
) -> Result<(Vec<Copied>, Grant), StoreError> {
    let hours = selection.range();
    let mut grant: Option<Grant> = None;
    loop {
        let bytes = {
            let tallies = inner.tallies()?;
            let frozen = tallies.frozen.clone();
            let all = frozen.as_deref().into_iter().chain([&tallies.active]);
            let bytes: usize = all
                .flat_map(|tally| tally.parts(hours.clone()))
                .map(|(_, entries, rows)| {
                    COPIED_BYTES + entries.len() + Run::<Vec<u8>>::order_bytes(rows)
                })
                .sum();
            let enough = |grant: &mut Grant| grant.covers(bytes, &inner.views);
            if let Some(mut grant) = grant.take_if(enough) {
                let mut copies: Vec<Copied> = copies(&tallies.active, selection).collect();
                // What is frozen does not change, and waits for no lock.
                drop(tallies);
                copies.extend(
                    frozen
                        .iter()
                        .flat_map(|tally| self::copies(tally, selection)),
                );
                let needed = copies.iter().map(Copied::bytes).sum();
                grant.keep(needed);
                return Ok((copies, grant));
            }
            bytes
        };
        // Without the lock, since this may wait; with some to spare, since the hours grow.
        drop(grant.take());
        grant = Some(Grant::take(inner, bytes + bytes / 8)?);
    }
}

fn copies(tally: &Tally, selection: &Selection) -> impl Iterator<Item = Copied> {
    tally
        .parts(selection.range())
        .filter_map(|(hour, entries, rows)| {
            let (entries, rows) = if selection.takes_whole(hour) {
                (entries.to_vec(), rows)
            } else {
                arena::filter(entries, |suffix| selection.takes(hour, suffix))
            };
            let last = tally.last();
            (rows > 0).then_some(Copied {
                hour,
                last,
                entries,
                rows,
            })
        })
}

/// Hours that take up to this part of the block cache on disk, where they are compressed to a fourth or
/// less, are kept in it by those who read them: for a dashboard that asks again and again. A scan of
/// millions of rows would push everything else out of it, and gets along with the page cache.
const CACHED_PART_MAX: usize = 8;

/// An iterator over the keys from `lower` up to `upper`, at the first of them, and the marker as that
/// iterator would see it. `seeks`: it will be moved about between them, and reads few.
pub(super) fn open_cursor(
    inner: &Arc<Inner>,
    lower: &[u8],
    upper: &[u8],
    seeks: bool,
) -> Result<(Cursor, u64), StoreError> {
    let is_small = seeks
        || inner.bytes_on_disk(lower, upper)?
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
            .field("selection", &self.selection)
            .field("hour", &self.hour)
            .finish_non_exhaustive()
    }
}
