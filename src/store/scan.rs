//! Reads: merges rows on disk with rows in the tallies, counting each flow exactly once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use super::codec::{self, FlowKey};
use super::error::{StoreError, with_context};
use super::run::SortedRun;
use super::selection::{KeyPosition, Selection};
use super::tally::Tally;
use super::view::{OwnedIterator, View, ViewOf};
use super::view_budget::ViewGrant;
use super::{Inner, arena, codec::Corrupt};
use flow::{Counters, Hour};

/// The row at `disk`: key suffix and sums. `None` after the last row or on an error.
#[inline]
fn row_on_disk(disk: &OwnedIterator) -> Result<Option<(&[u8], Counters)>, Corrupt> {
    let Some((key, value)) = disk.item() else {
        return Ok(None);
    };
    Ok(Some((codec::suffix(key)?, codec::decode_counters(value)?)))
}

/// The hour of the row at `disk`, and the rest of its key. `None` after the last row or on an error.
#[inline]
fn key_on_disk(disk: &OwnedIterator) -> Result<Option<(Hour, &[u8])>, Corrupt> {
    disk.key().map(codec::split_hour).transpose()
}

/// A copy of a tally's entries of one hour.
pub(super) struct HourCopy {
    hour: Hour,
    entries: Vec<u8>,
    rows: usize,
}

/// Memory of an hour's copy without its entries: there may be as many hours as entries.
const HOUR_COPY_BYTES: usize = 2 * size_of::<HourCopy>();

impl HourCopy {
    /// Its memory, including the sort order of its rows.
    fn bytes(&self) -> usize {
        HOUR_COPY_BYTES + self.entries.len() + SortedRun::<Vec<u8>>::order_bytes(self.rows)
    }
}

/// A stored row.
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
    runs: Vec<SortedRun<Vec<u8>>>,
    run_bytes: usize,
    /// Copies of later hours, ascending.
    later: VecDeque<HourCopy>,
    /// Sources of the row that was returned last: bit 0 is the disk, bit `1 + i` is `runs[i]`.
    consumed: u32,
    limits: ScanLimits,
    rows: u64,
    grant: ViewGrant,
}

/// The reason why a scan ended before its last row.
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
        self.enforce_limits()
    }

    #[cold]
    fn enforce_limits(&mut self) -> Result<(), StoreError> {
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
    pub(super) fn open(inner: &Arc<Inner>, mut selection: Selection) -> Result<Scan, StoreError> {
        let view = View::open(inner, &mut selection)?;
        let mut copies: Vec<HourCopy> = view.copies.into_iter().flatten().collect();
        copies.sort_by_key(|copied| copied.hour);
        let mut grant = view.grant;
        grant.shrink_to(copies.iter().map(HourCopy::bytes).sum());
        Ok(Scan {
            hour: Hour::FIRST,
            disk_at: (Hour::FIRST, 0),
            selection,
            disk: view.disk,
            disk_in_hour: false,
            runs: Vec::new(),
            run_bytes: 0,
            later: copies.into(),
            consumed: 0,
            limits: ScanLimits::default(),
            rows: 0,
            grant,
        })
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
            least = row_on_disk(&self.disk)?;
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
            self.disk.key().is_some()
        } else {
            key_on_disk(&self.disk)?.map(|(hour, _)| hour) == Some(self.hour)
        };
        Ok(())
    }

    /// Seeks the next row with one of the selection's names. Returns its hour.
    fn seek_names(&mut self) -> Result<Option<Hour>, StoreError> {
        while let Some((hour, suffix)) = key_on_disk(&self.disk)? {
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
            key_on_disk(&self.disk)?.map(|(hour, _)| hour)
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
            self.runs.push(SortedRun::sort(copied.entries, copied.rows));
        }
        Ok(true)
    }
}

/// A scan copies the unflushed rows that match.
impl ViewOf for Selection {
    type Copy = Vec<HourCopy>;

    fn copy_bytes(&self, tally: &Tally, cutoff: Hour) -> usize {
        let arenas = tally.hour_arenas(self.hour_range().since(cutoff));
        let bytes = arenas.map(|(_, entries, rows)| {
            HOUR_COPY_BYTES + entries.len() + SortedRun::<Vec<u8>>::order_bytes(rows)
        });
        bytes.sum()
    }

    fn copy(&self, tally: &Tally, cutoff: Hour) -> Vec<HourCopy> {
        let arenas = tally.hour_arenas(self.hour_range().since(cutoff));
        let copies = arenas.filter_map(|(hour, entries, rows)| {
            let (entries, rows) = if self.matches_all_of(hour) {
                (entries.to_vec(), rows)
            } else {
                arena::filter(entries, |suffix| self.matches(hour, suffix))
            };
            (rows > 0).then_some(HourCopy {
                hour,
                entries,
                rows,
            })
        });
        copies.collect()
    }

    fn bounds(&self, cutoff: Hour) -> (Vec<u8>, Vec<u8>) {
        self.key_bounds(cutoff)
    }

    fn seeks(&self) -> bool {
        self.has_names()
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
