//! Settling: an hour that has gone cold is rewritten once more, as one sorted run, from `flows` to `settled`.
//!
//! `flows` has the rows of hours that still grow, spread over several runs, which compaction merges again and again.
//! Without settling, these merges would include hours that are over, take ever longer, and need as much free space as
//! all of them have. Settled rows are in the order of their hours, so compaction has nothing to do there.
//!
//! An hour is cold when a later hour has flows and none came for it for [`StoreOptions::cold_after`]. Late flows stay
//! in `flows`, where readers add them to the settled rows, until there are enough of them to be settled too. A
//! settlement of several small hours has the cost of one.

use std::collections::{HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rocksdb::{ColumnFamily, DB};

use super::codec;
use super::error::{StoreError, with_context};
use super::families::iterate;
use super::staging::WRITING;
use super::{Inner, Step, StoreOptions};
use flow::{Hour, HourRange};

/// Interval between looks for cold hours.
const INTERVAL: Duration = Duration::from_secs(5);
/// Pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(60);
/// A settlement has at least this many bytes or [`HOURS_MIN`] hours...
const BYTES_MIN: u64 = 4 << 20;
const HOURS_MIN: usize = 64;
/// ...and takes no further hour once it has this many bytes or hours.
const BYTES_ENOUGH: u64 = 64 << 20;
const HOURS_MAX: usize = 4096;
/// Late rows of a settled hour are settled when they are this fraction of it...
const LATE_FRACTION: u64 = 8;
/// ...or when those of all hours have this many bytes.
const LATE_BYTES_MAX: u64 = 64 << 20;
/// A staged file is ended at this size.
const FILE_BYTES: u64 = 64 << 20;
/// Rows between two looks at whether the store is closing.
const ROWS_PER_CHECK: u32 = 4096;
/// Upper bound of the hours that are remembered because flows came for them.
const RECENT_HOURS_MAX: usize = 1 << 20;

/// Requests to the thread that settles, and the hours that are not cold.
#[derive(Debug)]
pub(super) struct Settler {
    recent: Mutex<RecentHours>,
    state: Mutex<State>,
    changed: Condvar,
    /// One settlement at a time.
    running: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    is_closing: bool,
    /// When flows were last written to `flows`.
    written: Option<Instant>,
}

/// The hours of recent flushes.
#[derive(Debug, Default)]
struct RecentHours {
    /// Ascending by time, each with its hours in ascending order.
    writes: VecDeque<(Instant, Vec<Hour>)>,
    hours: usize,
    /// There were more hours than can be remembered: all hours count as recent as of this time.
    overflow: Option<Instant>,
    /// When the running settlement began to read rows.
    settling_since: Option<Instant>,
}

impl RecentHours {
    fn add(&mut self, hours: Vec<Hour>, keep: Duration) {
        let now = Instant::now();
        self.hours += hours.len();
        self.writes.push_back((now, hours));
        let settling_since = self.settling_since;
        // A settlement may take longer than hours are kept. It must not miss one that was written meanwhile.
        let is_needed = |at| now - at <= keep || settling_since.is_some_and(|since| at >= since);
        while let Some((at, hours)) = self.writes.front()
            && (!is_needed(*at) || self.hours > RECENT_HOURS_MAX)
        {
            if is_needed(*at) {
                self.overflow = Some(*at);
            }
            self.hours -= hours.len();
            self.writes.pop_front();
        }
    }

    /// Whether `hour` was written at `since` or later.
    fn contains(&self, hour: Hour, since: Instant) -> bool {
        let mut writes = self.writes.iter().rev().take_while(|(at, _)| *at >= since);
        self.overflow.is_some_and(|at| at >= since)
            || writes.any(|(_, hours)| hours.binary_search(&hour).is_ok())
    }
}

/// Remembers all hours that are written while a settlement reads rows.
struct RememberHours<'a>(&'a Mutex<RecentHours>);

impl<'a> RememberHours<'a> {
    fn new(recent: &'a Mutex<RecentHours>, since: Instant) -> RememberHours<'a> {
        recent.lock().settling_since = Some(since);
        RememberHours(recent)
    }
}

impl Drop for RememberHours<'_> {
    fn drop(&mut self) {
        self.0.lock().settling_since = None;
    }
}

/// Hours to settle next.
#[derive(Debug, Default)]
struct Batch {
    ranges: Vec<HourRange>,
    hours: usize,
    bytes: u64,
}

impl Batch {
    fn push(&mut self, hour: Hour, bytes: u64) {
        match self.ranges.last_mut() {
            Some(range) if range.end() == hour.get() => *range = range.until(hour),
            _ => self.ranges.push(hour.into()),
        }
        self.hours += 1;
        self.bytes += bytes;
    }

    fn is_full(&self) -> bool {
        self.bytes >= BYTES_ENOUGH || self.hours >= HOURS_MAX
    }
}

/// Which hours to settle.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// Those that are cold, once that is worth it.
    Cold,
    All,
}

impl Settler {
    pub(super) fn new() -> Settler {
        Settler {
            recent: Mutex::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
            running: Mutex::default(),
        }
    }

    /// Records that rows of `hours`, ascending, were added to `flows`. Call this with the write lock.
    pub(super) fn hours_written(&self, hours: Vec<Hour>, options: &StoreOptions) {
        self.recent.lock().add(hours, options.cold_after);
        self.state.lock().written = Some(Instant::now());
    }

    pub(super) fn close(&self) {
        self.state.lock().is_closing = true;
        self.changed.notify_all();
    }

    fn is_closing(&self) -> bool {
        self.state.lock().is_closing
    }

    /// Waits for `pause`, and then, unless there `is_work`, until an hour may be cold. Returns false when the store is
    /// closing.
    fn wait(&self, mut pause: Duration, is_work: bool, cold_after: Duration) -> bool {
        let mut state = self.state.lock();
        loop {
            self.changed
                .wait_while_for(&mut state, |state| !state.is_closing, pause);
            if state.is_closing {
                return false;
            }
            if is_work {
                return true;
            }
            let may_be_cold = cold_after.saturating_add(2 * INTERVAL);
            if state.written.is_some_and(|at| at.elapsed() <= may_be_cold) {
                return true;
            }
            pause = INTERVAL;
        }
    }
}

impl Inner {
    /// Body of the thread that settles hours.
    pub(super) fn settle_until_closed(self: &Arc<Inner>) {
        let cold_after = self.options.cold_after;
        let interval = INTERVAL.min(cold_after);
        let mut pause = cold_after;
        // Hours that could not be read; they stay where they are until the next open.
        let mut damaged = HashSet::new();
        self.settler.state.lock().written = Some(Instant::now());
        let mut is_work = false;
        while self.settler.wait(pause, is_work, cold_after) {
            (pause, is_work) = match self.settle_hours(Which::Cold, &mut damaged) {
                Ok(true) => (Duration::ZERO, true),
                Ok(false) => (interval, false),
                Err(error) => {
                    tracing::warn!(%error, "cold hours not settled; the service retries");
                    (RETRY_PAUSE, true)
                }
            };
        }
    }

    /// Settles all hours, whether they are cold or not.
    pub(super) fn settle_all(&self) -> Result<(), StoreError> {
        let mut damaged = HashSet::new();
        while self.settle_hours(Which::All, &mut damaged)? {}
        match damaged.is_empty() {
            true => Ok(()),
            false => Err(StoreError::CompactionFailed),
        }
    }

    /// Settles some hours. Returns whether there may be more.
    fn settle_hours(&self, which: Which, damaged: &mut HashSet<Hour>) -> Result<bool, StoreError> {
        let _one_at_a_time = self.settler.running.lock();
        let last_drop = {
            // Rows that are settled already must not be settled again.
            let _write_lock = self.flusher.lock_writes();
            self.finish_steps()?;
            self.families.last_drop()
        };
        let batch = self.choose(which, damaged)?;
        let is_worth_it = batch.bytes >= BYTES_MIN || batch.hours >= HOURS_MIN;
        if batch.hours == 0 || !is_worth_it && which == Which::Cold {
            return Ok(false);
        }
        let start = Instant::now();
        let _remembers = RememberHours::new(&self.settler.recent, start);
        let Some(files) = self.rewrite(&batch.ranges, damaged)? else {
            return Ok(!self.settler.is_closing());
        };
        self.step(Step::SettleWritten);
        let _write_lock = self.flusher.lock_writes();
        self.finish_steps()?;
        let recent = self.settler.recent.lock();
        let written = |range: &HourRange| range.hours().any(|hour| recent.contains(hour, start));
        let is_outdated =
            self.families.last_drop() != last_drop || batch.ranges.iter().any(written);
        drop(recent);
        if is_outdated {
            return Ok(true);
        }
        self.settle(batch.ranges.clone(), files.paths.clone())?;
        self.compaction_requests.request_dead(&batch.ranges);
        tracing::debug!(
            hours = batch.hours,
            ranges = batch.ranges.len(),
            bytes = batch.bytes,
            ms = start.elapsed().as_millis() as u64,
            "settled"
        );
        Ok(true)
    }

    /// The next hours in `flows` to settle, in ascending order.
    fn choose(&self, which: Which, damaged: &HashSet<Hour>) -> Result<Batch, StoreError> {
        const DOING: &str = "looking for cold hours";
        let Some(settled) = self.settled() else {
            return Ok(Batch::default());
        };
        let flows = self.flows()?;
        let newest = self.tallies()?.newest();
        let since = Instant::now().checked_sub(self.options.cold_after);
        let is_due = |hour: Hour| {
            let is_cold = || {
                let is_recent = |since| self.settler.recent.lock().contains(hour, since);
                newest.is_some_and(|newest| hour < newest) && !since.is_some_and(is_recent)
            };
            !damaged.contains(&hour) && (which == Which::All || is_cold())
        };
        // The disk has room for a second copy.
        let bytes_max = self.health.room() / 2;
        let (mut batch, mut late) = (Batch::default(), Batch::default());
        let mut rows = iterate(&self.db, flows, &[], &codec::META_PREFIX);
        while let Some(key) = rows.key() {
            let (hour, _) = codec::split_hour(key)?;
            let (lower, upper) = codec::hour_bounds(hour);
            if is_due(hour) {
                let bytes = self.bytes_in(flows, &lower, &upper);
                if bytes > bytes_max.saturating_sub(batch.bytes.max(late.bytes)) {
                    if which == Which::All && batch.hours == 0 {
                        return Err(StoreError::CompactionFailed);
                    }
                    tracing::debug!(hour = hour.get(), bytes, "no disk space to settle");
                    rows.seek(upper);
                    continue;
                }
                let is_late = self.bytes_in(settled, &lower, &upper) > LATE_FRACTION * bytes;
                match is_late && which == Which::Cold {
                    true => late.push(hour, bytes),
                    false => batch.push(hour, bytes),
                }
                if batch.is_full() || late.is_full() || late.bytes >= LATE_BYTES_MAX {
                    break;
                }
            }
            rows.seek(upper);
        }
        rows.status().map_err(with_context(DOING))?;
        let has_late = late.is_full() || late.bytes >= LATE_BYTES_MAX;
        Ok(if has_late { late } else { batch })
    }

    /// Writes files with all rows that `flows` has of these hours. `None` if the store is closing, or if an hour is
    /// damaged.
    fn rewrite(
        &self,
        ranges: &[HourRange],
        damaged: &mut HashSet<Hour>,
    ) -> Result<Option<StagedFiles<'_>>, StoreError> {
        let settled = self.settled().ok_or(StoreError::Closed)?;
        let mut staged = StagedRows::new(self);
        let mut steps_until_check = ROWS_PER_CHECK;
        let mut end: Option<u32> = None;
        for hour in ranges.iter().flat_map(|range| range.hours()) {
            let (lower, upper) = codec::hour_bounds(hour);
            // A file must not span rows that are settled already: compaction would rewrite those with it.
            if let Some(end) = end.replace(hour.get() + 1)
                && end < hour.get()
            {
                let (from, to) = codec::range_bounds((end..hour.get()).into());
                if has_rows(&self.db, settled, &from, &to)? {
                    staged.end_file()?;
                }
            }
            // Plain values are cheaper to read than operands of a merge.
            let is_new = !has_rows(&self.db, settled, &lower, &upper)?;
            let mut rows = iterate(&self.db, self.flows()?, &lower, &upper);
            while let Some((key, value)) = rows.item() {
                staged.write(key, value, is_new)?;
                rows.next();
                steps_until_check -= 1;
                if steps_until_check == 0 {
                    steps_until_check = ROWS_PER_CHECK;
                    if self.settler.is_closing() {
                        return Ok(None);
                    }
                }
            }
            if let Err(error) = rows.status() {
                tracing::error!(hour = hour.get(), %error, "an hour cannot be read; run verify");
                damaged.insert(hour);
                return Ok(None);
            }
        }
        Ok(Some(staged.finish()?))
    }
}

/// Files in the staging directory, which are removed unless they were ingested.
struct StagedFiles<'a> {
    inner: &'a Inner,
    paths: Vec<PathBuf>,
}

impl Drop for StagedFiles<'_> {
    fn drop(&mut self) {
        for path in &self.paths {
            // The next open removes what remains.
            let _best_effort = self.inner.remove_staged(path);
        }
    }
}

/// The rows of a settlement, in files of [`FILE_BYTES`].
struct StagedRows<'a> {
    files: StagedFiles<'a>,
    writer: Option<rocksdb::SstFileWriter<'a>>,
    rows: u32,
}

impl<'a> StagedRows<'a> {
    fn new(inner: &'a Inner) -> StagedRows<'a> {
        StagedRows {
            files: StagedFiles {
                inner,
                paths: Vec::new(),
            },
            writer: None,
            rows: 0,
        }
    }

    #[inline]
    fn write(&mut self, key: &[u8], value: &[u8], is_new: bool) -> Result<(), StoreError> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => {
                let StagedFiles { inner, paths } = &mut self.files;
                let name = format!("settled-{}", paths.len());
                let (path, writer) = inner.open_staged(&inner.settled_options, &name)?;
                paths.push(path);
                none.insert(writer)
            }
        };
        let written = if is_new {
            writer.put(key, value)
        } else {
            writer.merge(key, value)
        };
        written.map_err(with_context(WRITING))?;
        self.rows += 1;
        if self.rows.is_multiple_of(ROWS_PER_CHECK) && writer.file_size() >= FILE_BYTES {
            self.end_file()?;
        }
        Ok(())
    }

    fn end_file(&mut self) -> Result<(), StoreError> {
        match self.writer.take() {
            Some(mut writer) => writer.finish().map_err(with_context(WRITING)),
            None => Ok(()),
        }
    }

    fn finish(mut self) -> Result<StagedFiles<'a>, StoreError> {
        self.end_file()?;
        Ok(self.files)
    }
}

/// Whether there are keys from `lower` to `upper` (exclusive).
fn has_rows(
    db: &DB,
    family: &ColumnFamily,
    lower: &[u8],
    upper: &[u8],
) -> Result<bool, StoreError> {
    let rows = iterate(db, family, lower, upper);
    rows.status()
        .map_err(with_context("reading settled rows"))?;
    Ok(rows.key().is_some())
}

#[cfg(test)]
mod tests;
