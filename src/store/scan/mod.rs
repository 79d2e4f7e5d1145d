//! Reads: merges rows on disk with rows in the tallies, counting each flow exactly once.

mod copies;
mod disk;
mod limits;

pub use limits::ScanEnd;
pub(super) use limits::ScanLimits;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use super::codec::{self, FlowKey};
use super::error::StoreError;
use super::families::HiddenHours;
use super::retention::Cutoffs;
use super::run::SortedRun;
use super::selection::Selection;
use super::tally::Tally;
use super::tiers::{KeyLayout, Segment, Summed, cover};
use super::view::{OnDisk, View, ViewSpec};
use super::view_budget::ViewGrant;
use super::{Inner, arena};
use copies::{HOUR_COPY_BYTES, HourCopy, SharedEntries, cut_copies};
use disk::DiskRows;
use flow::{Counters, Hour};

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
    /// Rows of hours that still grow and late rows; and, if the directory has them, settled rows.
    disks: Vec<DiskRows>,
    /// Copies of rows of `hour`, and their memory.
    runs: Vec<SortedRun<SharedEntries>>,
    run_bytes: usize,
    /// Copies of later hours, ascending.
    later: VecDeque<HourCopy>,
    /// Sources of the row that was returned last: bit `i` is `disks[i]`, bit [`RUNS_BIT`]` + i` is `runs[i]`.
    consumed: u32,
    limits: ScanLimits,
    rows: u64,
    grant: ViewGrant,
}

/// There are at most two families with rows, and settled ones have up to three layouts.
const RUNS_BIT: usize = 4;

impl Scan {
    pub(super) fn open(inner: &Arc<Inner>, selection: Selection) -> Result<Scan, StoreError> {
        let mut of = ScanSpec {
            selection,
            cuts: Vec::new(),
        };
        let view = View::open(inner, &mut of)?;
        let copies = view.copies.into_iter().flatten().collect();
        Ok(Scan::new(of.selection, view.disk, copies, view.grant))
    }

    /// See [`Store::select_parts`](super::Store::select_parts).
    pub(super) fn open_parts(
        inner: &Arc<Inner>,
        with_spans: Selection,
        parts: usize,
    ) -> Result<Vec<Scan>, StoreError> {
        let mut selection = with_spans.clone();
        let hours = inner.retention.cutoffs().clipped(selection.hour_range());
        let summed = inner.summed()?;
        let is_by_hour = || Ok::<_, StoreError>(inner.finest_rows()?.validate(hours, None).is_ok());
        if selection.largest_span().is_some() && !summed.any_overlapping(hours) && is_by_hour()? {
            // Then it can be cut anywhere.
            selection = selection.without_spans();
        }
        let cuts = if parts <= 1 || selection.has_names() {
            Vec::new()
        } else if let Some(largest) = selection.largest_span() {
            let hours = hours.since(selection.first_hour());
            inner.cuts_between_spans(&cover(hours, largest, &summed, &[]), parts)?
        } else {
            let (lower, upper) = selection.key_bounds(Hour::FIRST);
            inner.cuts(&lower, &upper, parts)?
        };
        let mut of = ScanSpec { selection, cuts };
        let view = match View::open(inner, &mut of) {
            // It has just become so.
            Err(StoreError::TooCoarse { .. }) if with_spans != of.selection => {
                return Ok(vec![Scan::open(inner, with_spans)?]);
            }
            view => view?,
        };
        let on_disk: Vec<OnDisk> = [view.disk].into_iter().chain(view.after_cuts).collect();
        let copies = cut_copies(view.copies.into_iter().flatten(), &of.cuts)?;
        let mut grant = view.grant;
        let scans = on_disk.into_iter().zip(copies).map(|(on_disk, copies)| {
            let bytes = copies.iter().map(HourCopy::bytes).sum();
            let grant = grant.split_off(bytes);
            Scan::new(of.selection.clone(), on_disk, copies, grant)
        });
        Ok(scans.collect())
    }

    fn new(
        selection: Selection,
        on_disk: OnDisk,
        mut copies: Vec<HourCopy>,
        mut grant: ViewGrant,
    ) -> Scan {
        copies.sort_by_key(|copied| copied.hour);
        grant.shrink_to(copies.iter().map(HourCopy::bytes).sum());
        let flows = DiskRows::new(on_disk.flows, KeyLayout::HOURS, on_disk.hidden);
        let settled = on_disk.settled.into_iter();
        let settled = settled.map(|of| DiskRows::new(of.rows, of.layout, of.hidden));
        Scan {
            hour: Hour::FIRST,
            selection,
            disks: [flows].into_iter().chain(settled).collect(),
            runs: Vec::new(),
            run_bytes: 0,
            later: copies.into(),
            consumed: 0,
            limits: ScanLimits::default(),
            rows: 0,
            grant,
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
        while !self.is_in_hour() {
            if !self.next_hour()? {
                return Ok(None);
            }
        }
        let mut least: Option<(&[u8], Counters)> = None;
        let mut consumed = 0_u32;
        for (i, disk) in self.disks.iter().enumerate() {
            if !disk.in_hour {
                continue;
            }
            let Some((suffix, counters)) = disk.row()? else {
                continue;
            };
            merge_row(&mut least, &mut consumed, 1 << i, (suffix, counters));
        }
        for (i, run) in self.runs.iter().enumerate() {
            if let Some(row) = run.peek() {
                merge_row(&mut least, &mut consumed, 1 << (RUNS_BIT + i), row);
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

    /// Whether there is a row of `hour` left.
    #[inline]
    fn is_in_hour(&self) -> bool {
        self.disks.iter().any(|disk| disk.in_hour)
            || self.runs.iter().any(|run| run.peek().is_some())
    }

    #[inline]
    fn advance_consumed(&mut self) -> Result<(), StoreError> {
        for (i, disk) in self.disks.iter_mut().enumerate() {
            if self.consumed & (1 << i) != 0 {
                disk.advance(&self.selection, self.hour, &mut self.limits)?;
            }
        }
        for (i, run) in self.runs.iter_mut().enumerate() {
            if self.consumed & (1 << (RUNS_BIT + i)) != 0 {
                run.advance();
            }
        }
        self.consumed = 0;
        Ok(())
    }

    /// Moves to the next hour that has rows. Returns whether there is one.
    #[cold]
    fn next_hour(&mut self) -> Result<bool, StoreError> {
        self.runs.clear();
        self.grant.release(std::mem::take(&mut self.run_bytes));
        let mut next = self.later.front().map(|copied| copied.hour);
        let mut on_disk = [None; RUNS_BIT];
        for (disk, found) in self.disks.iter_mut().zip(&mut on_disk) {
            *found = disk.seek_hour(&self.selection, &mut self.limits)?;
            next = next.into_iter().chain(*found).min();
        }
        let Some(hour) = next else {
            return Ok(false);
        };
        self.hour = hour;
        for (disk, found) in self.disks.iter_mut().zip(on_disk) {
            disk.in_hour = found == Some(hour);
        }
        while self.later.front().is_some_and(|copied| copied.hour == hour)
            && let Some(copied) = self.later.pop_front()
        {
            self.run_bytes += copied.bytes();
            self.runs.push(copied.into_run());
        }
        Ok(true)
    }
}

/// Adds a row of source `bit` to the least row so far if their keys are equal, or replaces it if the new key is less.
#[inline]
fn merge_row<'a>(
    least: &mut Option<(&'a [u8], Counters)>,
    consumed: &mut u32,
    bit: u32,
    (suffix, counters): (&'a [u8], Counters),
) {
    match least {
        Some((least, _)) if *least < suffix => {}
        Some((least, sum)) if *least == suffix => {
            sum.add(counters);
            *consumed |= bit;
        }
        _ => {
            *least = Some((suffix, counters));
            *consumed = bit;
        }
    }
}

/// Copies the unflushed rows that match.
struct ScanSpec {
    selection: Selection,
    cuts: Vec<Vec<u8>>,
}

impl ViewSpec for ScanSpec {
    type Copy = Vec<HourCopy>;

    fn copy_bytes(&self, tally: &Tally, cutoff: Hour) -> usize {
        let arenas = tally.hour_arenas(self.selection.hour_range().since(cutoff));
        let bytes = arenas.map(|(_, entries, rows)| {
            HOUR_COPY_BYTES + entries.len() + SortedRun::<Vec<u8>>::order_bytes(rows)
        });
        bytes.sum()
    }

    fn copy(&self, tally: &Tally, cutoff: Hour) -> Vec<HourCopy> {
        let selection = &self.selection;
        let arenas = tally.hour_arenas(selection.hour_range().since(cutoff));
        let copies = arenas.filter_map(|(hour, entries, rows)| {
            if selection.matches_all_of(hour) {
                return Some(HourCopy::new(hour, entries.to_vec(), rows));
            }
            let (entries, rows) = arena::filter(entries, |suffix| selection.matches(hour, suffix));
            (rows > 0).then(|| HourCopy::new(hour, entries, rows))
        });
        copies.collect()
    }

    fn bounds(&self, cutoff: Hour) -> (Vec<u8>, Vec<u8>) {
        self.selection.key_bounds(cutoff)
    }

    fn cuts(&self) -> &[Vec<u8>] {
        &self.cuts
    }

    fn settled_segments(
        &self,
        cutoffs: &Cutoffs,
        summed: &Summed,
        hidden: &HiddenHours,
    ) -> Result<Option<Vec<Vec<Segment>>>, StoreError> {
        let largest = self.selection.largest_span();
        let hours = cutoffs.clipped(self.selection.hour_range());
        cutoffs.finest.and(summed.finest).validate(hours, largest)?;
        let hours = hours.since(self.selection.first_hour());
        let Some(largest) = largest else {
            return Ok(None);
        };
        let cuts: Result<Vec<u32>, _> = (self.cuts.iter())
            .map(|cut| Ok::<_, codec::Corrupt>(codec::split_hour(cut)?.0.get()))
            .collect();
        // No span has hours on both sides of a cut.
        let starts = [hours.start()].into_iter().chain(cuts?);
        let starts: Vec<u32> = starts
            .map(|start| start.clamp(hours.start(), hours.end()))
            .collect();
        let ends = starts[1..].iter().copied().chain([hours.end()]);
        let parts = starts.iter().copied().zip(ends);
        let covered = parts.map(|(start, end)| cover((start..end).into(), largest, summed, hidden));
        Ok(Some(covered.collect()))
    }

    fn seeks(&self) -> bool {
        self.selection.has_names()
    }

    fn reads_rows(&self) -> bool {
        true
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
