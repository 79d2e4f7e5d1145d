//! Reads: merges rows on disk with rows in the tallies, counting each flow exactly once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use rocksdb::{DB, DBRawIteratorWithThreadMode, ReadOptions};
use self_cell::self_cell;
use tokio_util::sync::CancellationToken;

use super::codec::{self, FlowKey};
use super::error::{StoreError, with_context};
use super::position::Position;
use super::run::Run;
use super::selection::{KeyPosition, Selection};
use super::tally::Tally;
use super::views::ViewGrant;
use super::{Inner, arena, codec::Corrupt};
use flow::{Counters, Hour};

type RawIterator<'a> = DBRawIteratorWithThreadMode<'a, DB>;

self_cell!(
    /// An iterator together with the database that it reads.
    pub(super) struct OwnedIterator {
        owner: Arc<Inner>,
        #[covariant]
        dependent: RawIterator,
    }
);

impl OwnedIterator {
    /// The current key and value; `None` after the last or on an error.
    pub(super) fn item(&self) -> Option<(&[u8], &[u8])> {
        self.borrow_dependent().item()
    }

    pub(super) fn status(&self) -> Result<(), rocksdb::Error> {
        self.borrow_dependent().status()
    }

    /// The current row: key suffix and sums. `None` after the last row or on an error.
    #[inline]
    fn peek(&self) -> Result<Option<(&[u8], Counters)>, Corrupt> {
        let Some((key, value)) = self.borrow_dependent().item() else {
            return Ok(None);
        };
        Ok(Some((codec::suffix(key)?, codec::decode_counters(value)?)))
    }

    /// The hour of the current row and the rest of its key. `None` after the last row or on an error.
    #[inline]
    fn key_parts(&self) -> Result<Option<(Hour, &[u8])>, Corrupt> {
        let key = self.borrow_dependent().key();
        key.map(codec::split_hour).transpose()
    }

    #[inline]
    pub(super) fn advance(&mut self) {
        self.with_dependent_mut(|_, iterator| iterator.next());
    }

    pub(super) fn seek(&mut self, key: &[u8]) {
        self.with_dependent_mut(|_, iterator| iterator.seek(key));
    }
}

/// A copy of a tally's entries of one hour.
struct HourCopy {
    hour: Hour,
    /// The tally's last position.
    last: Position,
    entries: Vec<u8>,
    rows: usize,
}

/// Memory of an hour's copy without its entries: there may be as many hours as entries.
const HOUR_COPY_BYTES: usize = 2 * size_of::<HourCopy>();

impl HourCopy {
    /// Its memory, including the sort order of its rows.
    fn bytes(&self) -> usize {
        HOUR_COPY_BYTES + self.entries.len() + Run::<Vec<u8>>::order_bytes(self.rows)
    }
}

/// A row as it is stored.
#[derive(Clone, Copy, Debug)]
pub struct StoredRow<'a> {
    pub hour: Hour,
    /// The part of its key after the hour: see [`flow::codec::split_names`].
    pub suffix: &'a [u8],
    pub counters: Counters,
}

impl StoredRow<'_> {
    /// Appends its key.
    #[inline]
    pub fn push_key(&self, key: &mut Vec<u8>) {
        codec::push_hour(key, self.hour);
        key.extend_from_slice(self.suffix);
    }
}

/// The rows of a [`Selection`] in key order, as of one moment between two commits.
///
/// A scan holds the database files that it reads and copies of the unflushed rows, but no lock, so a slow client can
/// keep it open.
pub struct Scan {
    selection: Selection,
    /// Before the first row, any.
    hour: Hour,
    disk: OwnedIterator,
    /// Whether the row on disk belongs to `hour`.
    disk_in_hour: bool,
    /// The hour of the row on disk, and the index of the selection's names that the scan has reached in it.
    disk_at: (Hour, usize),
    /// Copies of rows of `hour`, and their memory.
    runs: Vec<Run<Vec<u8>>>,
    run_bytes: usize,
    /// Copies of later hours, ascending.
    later: VecDeque<HourCopy>,
    /// Sources of the row that was returned last: bit 0 is the disk, bit `1 + i` is `runs[i]`.
    consumed: u32,
    limits: ScanLimits,
    rows: u64,
    grant: ViewGrant,
}

/// Why a scan ended before its last row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanEnd {
    /// The time set by [`Scan::set_deadline`] has passed.
    DeadlineExceeded,
    /// The token set by [`Scan::set_cancel`] was cancelled.
    Cancelled,
}

/// Rows and seeks between two checks of the clock, which take a fraction of a millisecond.
const STEPS_PER_CHECK: u32 = 512;

/// Deadline and cancellation of a scan.
#[derive(Debug)]
pub(super) struct ScanLimits {
    steps_until_check: u32,
    until: Option<Instant>,
    cancel: CancellationToken,
}

impl Default for ScanLimits {
    /// No limits.
    fn default() -> ScanLimits {
        ScanLimits {
            steps_until_check: STEPS_PER_CHECK,
            until: None,
            cancel: CancellationToken::default(),
        }
    }
}

impl ScanLimits {
    pub(super) fn set_deadline(&mut self, time: Option<Instant>) {
        self.until = time;
    }

    pub(super) fn set_cancel(&mut self, cancel: CancellationToken) {
        self.cancel = cancel;
    }

    /// Call this for each row and each seek.
    #[inline]
    pub(super) fn step(&mut self) -> Result<(), StoreError> {
        self.steps_until_check -= 1;
        if self.steps_until_check > 0 {
            return Ok(());
        }
        self.check_limits()
    }

    #[cold]
    fn check_limits(&mut self) -> Result<(), StoreError> {
        self.steps_until_check = STEPS_PER_CHECK;
        if self.cancel.is_cancelled() {
            return Err(StoreError::ScanEnded(ScanEnd::Cancelled));
        }
        match self.until {
            Some(until) if Instant::now() > until => {
                Err(StoreError::ScanEnded(ScanEnd::DeadlineExceeded))
            }
            _ => Ok(()),
        }
    }
}

impl Scan {
    pub(super) fn open(inner: &Arc<Inner>, selection: Selection) -> Result<Scan, StoreError> {
        loop {
            // Copy the tallies before opening the iterator: a batch that is flushed in between is in both, and the
            // marker tells them apart. In the opposite order, it could be in neither.
            let (mut copies, grant) = copy_tallies(inner, &selection)?;
            // Earlier hours are about to be dropped.
            let cutoff = inner.retention.cutoff();
            copies.retain(|copied| copied.hour >= cutoff);
            let (lower, upper) = selection.bounds(cutoff);
            let (disk, marker) = open_iterator(inner, &lower, &upper, selection.has_names())?;
            let newer = selection.bounds(inner.retention.cutoff());
            if newer.0 != lower {
                // The cutoff has advanced: an hour may be partly dropped in what the iterator sees. Retry.
                continue;
            }
            // The marker is always the last position of some tally. If it is before a tally's last position, the disk
            // has nothing of that tally; otherwise the disk has all of the copy.
            copies.retain(|copied| copied.last > marker);
            copies.sort_by_key(|copied| copied.hour);
            return Ok(Scan {
                hour: Hour::FIRST,
                disk_at: (Hour::FIRST, 0),
                selection,
                disk,
                disk_in_hour: false,
                runs: Vec::new(),
                run_bytes: 0,
                later: copies.into(),
                consumed: 0,
                limits: ScanLimits::default(),
                rows: 0,
                grant,
            });
        }
    }

    /// Makes reads after this time fail.
    pub fn set_deadline(&mut self, time: Option<Instant>) {
        self.limits.set_deadline(time);
    }

    /// Makes reads fail after `cancel` is cancelled.
    pub fn set_cancel(&mut self, cancel: CancellationToken) {
        self.limits.set_cancel(cancel);
    }

    /// Number of rows returned so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The next row, decoded; `None` after the last.
    // Not an `Iterator`: the row borrows from the scan, which saves copying three names per row.
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
        self.advance_consumed()?;
        self.limits.step()?;
        while !self.disk_in_hour && self.runs.iter().all(|run| run.peek().is_none()) {
            if !self.next_hour()? {
                return Ok(None);
            }
        }
        let mut least: Option<(&[u8], Counters)> = None;
        if self.disk_in_hour {
            least = self.disk.peek()?;
        }
        let mut consumed = u32::from(least.is_some());
        for (i, run) in self.runs.iter().enumerate() {
            let Some((suffix, counters)) = run.peek() else {
                continue;
            };
            match &mut least {
                Some((least_suffix, _)) if *least_suffix < suffix => {}
                Some((least_suffix, sum)) if *least_suffix == suffix => {
                    sum.add(counters);
                    consumed |= 2 << i;
                }
                _ => {
                    least = Some((suffix, counters));
                    consumed = 2 << i;
                }
            }
        }
        self.consumed = consumed;
        self.rows += 1;
        Ok(least.map(|(suffix, counters)| StoredRow {
            hour: self.hour,
            suffix,
            counters,
        }))
    }

    #[inline]
    fn advance_consumed(&mut self) -> Result<(), StoreError> {
        if self.consumed & 1 != 0 {
            self.disk.advance();
            self.update_disk_position()?;
        }
        for (i, run) in self.runs.iter_mut().enumerate() {
            if self.consumed & (2 << i) != 0 {
                run.advance();
            }
        }
        self.consumed = 0;
        Ok(())
    }

    /// Call this after moving the iterator: advances it to the next row of the selection, unless it is at one.
    #[inline]
    fn update_disk_position(&mut self) -> Result<(), StoreError> {
        self.disk_in_hour = if self.selection.has_names() {
            self.seek_names()? == Some(self.hour)
        } else if self.selection.is_one_hour() {
            self.disk.borrow_dependent().valid()
        } else {
            self.disk.key_parts()?.map(|(hour, _)| hour) == Some(self.hour)
        };
        Ok(())
    }

    /// Seeks the next row with one of the selection's names. Returns its hour.
    fn seek_names(&mut self) -> Result<Option<Hour>, StoreError> {
        while let Some((hour, suffix)) = self.disk.key_parts()? {
            if self.disk_at.0 != hour {
                self.disk_at = (hour, 0);
            }
            let key = match self.selection.locate(self.disk_at.1, suffix) {
                KeyPosition::Within(at) => {
                    self.disk_at.1 = at;
                    return Ok(Some(hour));
                }
                KeyPosition::Before(at) => {
                    self.disk_at.1 = at;
                    self.selection.seek_key(hour, at)
                }
                KeyPosition::After => match hour.next() {
                    Some(next) => self.selection.seek_key(next, 0),
                    None => codec::hour_bounds(hour).1.to_vec(),
                },
            };
            self.disk.seek(&key);
            self.limits.step()?;
        }
        Ok(None)
    }

    /// Moves to the next hour that has rows. Returns whether there is one.
    #[cold]
    fn next_hour(&mut self) -> Result<bool, StoreError> {
        self.runs.clear();
        self.grant.release(std::mem::take(&mut self.run_bytes));
        let on_disk = if self.selection.has_names() {
            self.seek_names()?
        } else {
            self.disk.key_parts()?.map(|(hour, _)| hour)
        };
        if on_disk.is_none() {
            self.disk.status().map_err(with_context("reading"))?;
        }
        let copied = self.later.front().map(|copied| copied.hour);
        let Some(hour) = on_disk.into_iter().chain(copied).min() else {
            return Ok(false);
        };
        self.hour = hour;
        self.disk_in_hour = on_disk == Some(hour);
        while self.later.front().is_some_and(|copied| copied.hour == hour)
            && let Some(copied) = self.later.pop_front()
        {
            self.run_bytes += copied.bytes();
            self.runs.push(Run::sort(copied.entries, copied.rows));
        }
        Ok(true)
    }
}

/// Copies the rows of both tallies that match `selection`, and returns them with the grant that covers them. The
/// frozen tally is copied too: a slow client that shared it would keep all of it in memory.
fn copy_tallies(
    inner: &Arc<Inner>,
    selection: &Selection,
) -> Result<(Vec<HourCopy>, ViewGrant), StoreError> {
    let hours = selection.hour_range();
    let mut grant: Option<ViewGrant> = None;
    loop {
        let bytes = {
            let tallies = inner.tallies()?;
            let frozen = tallies.frozen().cloned();
            let bytes: usize = tallies
                .both()
                .flat_map(|tally| tally.hour_arenas(hours))
                .map(|(_, entries, rows)| {
                    HOUR_COPY_BYTES + entries.len() + Run::<Vec<u8>>::order_bytes(rows)
                })
                .sum();
            let enough = |grant: &mut ViewGrant| grant.covers(bytes, &inner.views);
            if let Some(mut grant) = grant.take_if(enough) {
                let mut copies: Vec<HourCopy> = copies(tallies.active(), selection).collect();
                // The frozen tally does not change, so it is copied without the lock.
                drop(tallies);
                copies.extend(
                    frozen
                        .iter()
                        .flat_map(|tally| self::copies(tally, selection)),
                );
                let needed = copies.iter().map(HourCopy::bytes).sum();
                grant.shrink_to(needed);
                return Ok((copies, grant));
            }
            bytes
        };
        // Reserve without the lock, since this may block; reserve more than needed, since the tallies grow meanwhile.
        drop(grant.take());
        grant = Some(ViewGrant::reserve(inner, bytes + bytes / 8)?);
    }
}

fn copies(tally: &Tally, selection: &Selection) -> impl Iterator<Item = HourCopy> {
    tally
        .hour_arenas(selection.hour_range())
        .filter_map(|(hour, entries, rows)| {
            let (entries, rows) = if selection.matches_all_of(hour) {
                (entries.to_vec(), rows)
            } else {
                arena::filter(entries, |suffix| selection.matches(hour, suffix))
            };
            let last = tally.last();
            (rows > 0).then_some(HourCopy {
                hour,
                last,
                entries,
                rows,
            })
        })
}

/// Blocks of hours whose size on disk is at most this fraction of the block cache are cached when they are read, for
/// dashboards that ask repeatedly. (On disk they are compressed to a quarter or less.) A scan of millions of rows
/// would evict everything else; the page cache serves it well enough.
const CACHED_PART_MAX: usize = 8;

/// Opens an iterator over the keys from `lower` to `upper` (exclusive), positioned at the first, and returns it with
/// the marker that it sees. Set `seeks` if the caller will seek and read few keys.
pub(super) fn open_iterator(
    inner: &Arc<Inner>,
    lower: &[u8],
    upper: &[u8],
    seeks: bool,
) -> Result<(OwnedIterator, Position), StoreError> {
    let is_small = seeks
        || inner.bytes_on_disk(lower, upper)?
            <= (inner.options.block_cache_bytes / CACHED_PART_MAX) as u64;
    loop {
        let before = inner.marker()?;
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(lower);
        options.set_iterate_upper_bound(upper);
        options.fill_cache(is_small);
        let mut cursor = OwnedIterator::try_new(inner.clone(), |inner| {
            Ok::<_, StoreError>(inner.db.raw_iterator_cf_opt(inner.flows()?, options))
        })?;
        // The iterator sees a snapshot from its creation. The marker only increases, so if it is the same before and
        // after, it is the same in the snapshot. Otherwise a flush happened in between, which is rare: retry.
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
