//! Reads: merges rows on disk with rows in the tallies, counting each flow exactly once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use super::codec::{self, FlowKey};
use super::error::{StoreError, with_context};
use super::families::HiddenHours;
use super::run::SortedRun;
use super::selection::{KeyPosition, Selection};
use super::tally::Tally;
use super::view::{OnDisk, OwnedIterator, View, ViewOf};
use super::view_budget::ViewGrant;
use super::{Inner, arena, codec::Corrupt};
use flow::{Counters, Hour};

/// The rows of a selection in one column family.
struct DiskRows {
    iterator: OwnedIterator,
    /// Hours whose rows are ignored; almost always none.
    hidden: HiddenHours,
    /// Whether its row belongs to the scan's hour.
    in_hour: bool,
    /// The hour of its row, and the index of the selection's names that it has reached there.
    reached: (Hour, usize),
}

impl DiskRows {
    fn new((iterator, hidden): (OwnedIterator, HiddenHours)) -> DiskRows {
        DiskRows {
            iterator,
            hidden,
            in_hour: false,
            reached: (Hour::FIRST, 0),
        }
    }

    /// Its row: key suffix and sums. `None` after the last row or on an error.
    #[inline]
    fn row(&self) -> Result<Option<(&[u8], Counters)>, Corrupt> {
        let Some((key, value)) = self.iterator.item() else {
            return Ok(None);
        };
        Ok(Some((codec::suffix(key)?, codec::decode_counters(value)?)))
    }

    /// Moves to the next row of `selection`, and sets whether it belongs to `hour`.
    #[inline]
    fn advance(
        &mut self,
        selection: &Selection,
        hour: Hour,
        limits: &mut ScanLimits,
    ) -> Result<(), StoreError> {
        self.iterator.advance();
        let Some(key) = self.iterator.key() else {
            self.in_hour = false;
            // Other sources may have more rows of the hour, and they would lack the sums that cannot be read here.
            let status = self.iterator.status();
            return status.map_err(with_context("reading"));
        };
        self.in_hour = if selection.has_names() {
            self.seek_names(selection, limits)? == Some(hour)
        } else {
            selection.is_one_hour() || codec::split_hour(key)?.0 == hour
        };
        Ok(())
    }

    /// Seeks the next row of `selection`, unless it is at one. Returns its hour.
    #[cold]
    fn seek_hour(
        &mut self,
        selection: &Selection,
        limits: &mut ScanLimits,
    ) -> Result<Option<Hour>, StoreError> {
        let hour = if selection.has_names() {
            self.seek_names(selection, limits)?
        } else {
            self.seek_visible(limits)?
        };
        if hour.is_none() {
            let status = self.iterator.status();
            status.map_err(with_context("reading"))?;
        }
        Ok(hour)
    }

    /// Seeks the next row of an hour that is not hidden, unless it is at one. Returns the hour.
    #[inline]
    fn seek_visible(&mut self, limits: &mut ScanLimits) -> Result<Option<Hour>, StoreError> {
        loop {
            let key = self.iterator.key().map(codec::split_hour).transpose()?;
            let hour = key.map(|(hour, _)| hour);
            let range = hour.and_then(|hour| self.hidden.iter().find(|range| range.contains(hour)));
            let Some(range) = range else {
                return Ok(hour);
            };
            let (_, behind) = codec::range_bounds(*range);
            self.iterator.seek(&behind);
            limits.step()?;
        }
    }

    /// Seeks the next row with one of the selection's names. Returns its hour.
    fn seek_names(
        &mut self,
        selection: &Selection,
        limits: &mut ScanLimits,
    ) -> Result<Option<Hour>, StoreError> {
        while let Some(hour) = self.seek_visible(limits)? {
            if self.reached.0 != hour {
                self.reached = (hour, 0);
            }
            let suffix = self.iterator.key().map(codec::suffix).transpose()?;
            let key = match selection.locate(self.reached.1, suffix.unwrap_or_default()) {
                KeyPosition::Within(at) => {
                    self.reached.1 = at;
                    return Ok(Some(hour));
                }
                KeyPosition::Before(at) => {
                    self.reached.1 = at;
                    selection.seek_key(hour, at)
                }
                KeyPosition::After => match hour.next() {
                    Some(next) => selection.seek_key(next, 0),
                    None => codec::hour_bounds(hour).1.to_vec(),
                },
            };
            self.iterator.seek(&key);
            limits.step()?;
        }
        Ok(None)
    }
}

/// A copy of a tally's entries of one hour, or a part of it.
pub(super) struct HourCopy {
    hour: Hour,
    entries: SharedEntries,
    /// The suffixes of its rows (end exclusive; `None` is the end); `None` for all entries.
    suffixes: Option<(Vec<u8>, Option<Vec<u8>>)>,
    rows: usize,
    /// Memory of the entries; 0 if another part of the copy counts it.
    entry_bytes: usize,
}

/// Parts of a copy share its entries.
#[derive(Clone, Debug)]
struct SharedEntries(Arc<Vec<u8>>);

impl AsRef<[u8]> for SharedEntries {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Memory of an hour's copy without its entries: there may be as many hours as entries.
const HOUR_COPY_BYTES: usize = 2 * size_of::<HourCopy>() + 40;

impl HourCopy {
    fn new(hour: Hour, entries: Vec<u8>, rows: usize) -> HourCopy {
        HourCopy {
            hour,
            entry_bytes: entries.len(),
            entries: SharedEntries(Arc::new(entries)),
            suffixes: None,
            rows,
        }
    }

    /// Its memory, including the sort order of its rows.
    fn bytes(&self) -> usize {
        HOUR_COPY_BYTES + self.entry_bytes + SortedRun::<SharedEntries>::order_bytes(self.rows)
    }

    fn into_run(self) -> SortedRun<SharedEntries> {
        match &self.suffixes {
            None => SortedRun::sort(self.entries, self.rows),
            Some((start, end)) => SortedRun::sort_those(self.entries, self.rows, |suffix| {
                start.as_slice() <= suffix && end.as_ref().is_none_or(|end| suffix < end.as_slice())
            }),
        }
    }

    /// Its parts before, between and behind `cuts`, ascending suffixes; those without rows are left out. Each has its
    /// index.
    fn cut(self, cuts: &[&[u8]]) -> Vec<(usize, HourCopy)> {
        let mut rows = vec![0; cuts.len() + 1];
        for suffix in arena::suffixes(&self.entries.0) {
            rows[cuts.partition_point(|cut| *cut <= suffix)] += 1;
        }
        let mut entry_bytes = self.entry_bytes;
        let with_rows = rows.into_iter().enumerate().filter(|(_, rows)| *rows > 0);
        let parts = with_rows.map(|(index, rows)| {
            let start = index.checked_sub(1).map_or(&[][..], |before| cuts[before]);
            let end = cuts.get(index).map(|end| end.to_vec());
            let part = HourCopy {
                hour: self.hour,
                entries: self.entries.clone(),
                suffixes: Some((start.to_vec(), end)),
                rows,
                entry_bytes: std::mem::take(&mut entry_bytes),
            };
            (index, part)
        });
        parts.collect()
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

/// There are at most two families with rows.
const RUNS_BIT: usize = 2;

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
    pub(super) fn open(inner: &Arc<Inner>, selection: Selection) -> Result<Scan, StoreError> {
        let mut of = ScanOf {
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
        selection: Selection,
        parts: usize,
    ) -> Result<Vec<Scan>, StoreError> {
        let cuts = if parts > 1 && !selection.has_names() {
            let (lower, upper) = selection.key_bounds(Hour::FIRST);
            inner.cuts(&lower, &upper, parts)?
        } else {
            Vec::new()
        };
        let mut of = ScanOf { selection, cuts };
        let view = View::open(inner, &mut of)?;
        let on_disk: Vec<OnDisk> = [view.disk].into_iter().chain(view.behind_cuts).collect();
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
        let disks = [Some((on_disk.flows, on_disk.hidden)), on_disk.settled];
        Scan {
            hour: Hour::FIRST,
            selection,
            disks: disks.into_iter().flatten().map(DiskRows::new).collect(),
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

/// Distributes copies to the parts before, between and behind `cuts`.
fn cut_copies(
    copies: impl Iterator<Item = HourCopy>,
    cuts: &[Vec<u8>],
) -> Result<Vec<Vec<HourCopy>>, Corrupt> {
    let cuts: Vec<(Hour, &[u8])> =
        (cuts.iter().map(|cut| codec::split_hour(cut))).collect::<Result<_, _>>()?;
    let mut of_parts: Vec<Vec<HourCopy>> = (0..=cuts.len()).map(|_| Vec::new()).collect();
    for copied in copies {
        let hour = copied.hour;
        let first = cuts.partition_point(|(of, suffix)| (*of, *suffix) <= (hour, &[]));
        let end = cuts.partition_point(|(of, _)| *of <= hour);
        let inside: Vec<&[u8]> = cuts[first..end].iter().map(|(_, suffix)| *suffix).collect();
        if inside.is_empty() {
            of_parts[first].push(copied);
            continue;
        }
        for (index, part) in copied.cut(&inside) {
            of_parts[first + index].push(part);
        }
    }
    Ok(of_parts)
}

/// Copies the unflushed rows that match.
struct ScanOf {
    selection: Selection,
    cuts: Vec<Vec<u8>>,
}

impl ViewOf for ScanOf {
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
