//! Settling: an hour that has gone cold is rewritten once more, as one sorted run, from `flows` to `settled`.
//!
//! `flows` has the rows of hours that still grow, spread over several runs, which compaction merges again and again.
//! Without settling, these merges would include hours that are over, take ever longer, and need as much free space as
//! all of them have. Settled rows are in the order of their hours, so compaction has nothing to do there.
//!
//! An hour is cold when a later hour has flows and none came for it for [`StoreOptions::cold_after`]. Late flows stay
//! in `flows`, where readers add them to the settled rows, until there are enough of them to be settled too. A
//! settlement of several small hours has the cost of one.

mod backlog;
mod recent;
mod staged;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rocksdb::{ColumnFamily, DB};

use super::codec;
use super::error::{StoreError, with_context};
use super::families::iterate;
use super::tiers::{Span, SpanMerge, Tier};
use super::{Inner, Step, StoreOptions};
pub use backlog::Backlog;
use flow::{Hour, HourRange};
use recent::{RecentHours, RememberHours};
pub(super) use staged::{StagedFiles, StagedRows};

/// Interval between searches for cold hours.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);
/// Flows are coming if the last flush is due again, and not later than this.
const LATE_FLUSH: Duration = Duration::from_secs(10);
/// Pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(60);
/// A settlement has at least this many bytes or [`HOURS_MIN`] hours...
const BYTES_MIN: u64 = 4 << 20;
const HOURS_MIN: usize = 64;
/// ...and takes no further hour once it has this many bytes or hours.
const BYTES_ENOUGH: u64 = 64 << 20;
const HOURS_MAX: usize = 4096;
/// Late rows of a settled hour are settled when they are one eighth of it or more (this is the denominator), or when
/// those of all hours are [`BYTES_ENOUGH`].
const LATE_FRACTION: u64 = 8;
/// Hours of summed spans in one settlement: each has an iterator of its own while they are added to their spans.
const IN_SPANS_MAX: usize = 32;
/// Rows between checks whether the store is closing.
const ROWS_PER_CHECK: u32 = 4096;
/// Hours that are counted for [`Backlog::cold_hours`] beyond those of the next settlement.
const COUNTED_HOURS_MAX: usize = 1000;

/// Requests to the thread that settles, and the hours that are not cold.
#[derive(Debug)]
pub(super) struct Settler {
    recent: Mutex<RecentHours>,
    state: Mutex<State>,
    changed: Condvar,
    /// One settlement at a time.
    running: Mutex<()>,
    backlog: Mutex<Backlog>,
}

#[derive(Debug, Default)]
struct State {
    is_closing: bool,
    /// When flows were last written to `flows`.
    written: Option<Instant>,
}

/// Hours to settle next.
#[derive(Debug, Default)]
struct SettlementPlan {
    ranges: Vec<HourRange>,
    hours: usize,
    /// Hours whose rows are added to spans, too.
    in_spans: usize,
    bytes: u64,
}

impl SettlementPlan {
    /// The first hours of it, at most so many.
    fn first_hours(self, hours_max: usize) -> SettlementPlan {
        let bytes_per_hour = self.bytes / self.hours.max(1) as u64;
        let mut first = SettlementPlan::default();
        let hours = self.ranges.iter().flat_map(|range| range.hours());
        for hour in hours.take(hours_max) {
            first.push(hour, bytes_per_hour, true);
        }
        first
    }

    fn push(&mut self, hour: Hour, bytes: u64, is_in_spans: bool) {
        match self.ranges.last_mut() {
            Some(range) if range.end() == hour.get() => *range = range.until(hour),
            _ => self.ranges.push(hour.into()),
        }
        self.hours += 1;
        self.in_spans += usize::from(is_in_spans);
        self.bytes += bytes;
    }

    fn is_full(&self) -> bool {
        self.bytes >= BYTES_ENOUGH || self.hours >= HOURS_MAX
    }
}

/// Which hours to settle, and which spans to sum.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SettleScope {
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
            backlog: Mutex::default(),
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

    pub(super) fn is_closing(&self) -> bool {
        self.state.lock().is_closing
    }

    /// Keeps settlements from running.
    pub(super) fn lock_running(&self) -> parking_lot::MutexGuard<'_, ()> {
        self.running.lock()
    }

    pub(super) fn backlog(&self) -> Backlog {
        *self.backlog.lock()
    }

    pub(super) fn update_backlog(&self, update: impl FnOnce(&mut Backlog)) {
        update(&mut self.backlog.lock());
    }

    /// Whether one of these hours was written within the last `cold_after`.
    pub(super) fn is_recent(&self, hours: HourRange, cold_after: Duration) -> bool {
        let Some(since) = Instant::now().checked_sub(cold_after) else {
            return false;
        };
        let recent = self.recent.lock();
        hours.hours().any(|hour| recent.contains(hour, since))
    }

    /// Whether flows are coming, which are flushed at this interval.
    pub(super) fn is_busy(&self, flush_interval: Duration) -> bool {
        let written = self.state.lock().written;
        written.is_some_and(|at| at.elapsed() <= flush_interval.saturating_add(LATE_FLUSH))
    }

    /// Waits for `time`, or until the store is closing.
    pub(super) fn rest(&self, time: Duration) {
        let mut state = self.state.lock();
        self.changed
            .wait_while_for(&mut state, |state| !state.is_closing, time);
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
        // Those that could not be read stay where they are until the next open.
        let mut unreadable_hours: HashSet<Hour> = HashSet::new();
        let mut unreadable_spans: HashSet<Span> = HashSet::new();
        self.settler.state.lock().written = Some(Instant::now());
        let mut is_work = false;
        while self.settler.wait(pause, is_work, cold_after) {
            let mut work = || {
                if self.awaits_flush()? {
                    return Ok(false);
                }
                Ok(self.settle_hours(SettleScope::Cold, &mut unreadable_hours)?
                    || self.sum_next_spans(
                        SettleScope::Cold,
                        &mut unreadable_spans,
                        &mut unreadable_hours,
                    )?
                    || self.thin()?)
            };
            (pause, is_work) = match work() {
                Ok(true) => (Duration::ZERO, true),
                Ok(false) => (interval, false),
                Err(error) => {
                    let error: StoreError = error;
                    tracing::warn!(%error, "hours not settled, summed or thinned; the service retries");
                    self.options.metrics.store().settle_failures.inc();
                    (RETRY_PAUSE, true)
                }
            };
            self.settler.update_backlog(|backlog| {
                backlog.unreadable_hours = unreadable_hours.len() as u64;
                backlog.unreadable_spans = unreadable_spans.len() as u64;
            });
        }
    }

    /// Settles all hours, whether they are cold or not.
    pub(super) fn settle_all(&self) -> Result<(), StoreError> {
        let (mut unreadable_hours, mut unreadable_spans) = (HashSet::new(), HashSet::new());
        while self.settle_hours(SettleScope::All, &mut unreadable_hours)? {}
        let (spans, hours) = (&mut unreadable_spans, &mut unreadable_hours);
        while self.sum_next_spans(SettleScope::All, spans, hours)? {}
        self.thin()?;
        self.finish_and_see_drops()?;
        match unreadable_hours.is_empty() && unreadable_spans.is_empty() {
            true => Ok(()),
            false => Err(StoreError::HoursUnreadable),
        }
    }

    /// Finishes what an earlier step has left, and returns the number of the last drop: if it is another one when rows
    /// are ingested, those may be of dropped hours.
    pub(super) fn finish_and_see_drops(&self) -> Result<u64, StoreError> {
        let _write_lock = self.flusher.lock_writes();
        self.finish_steps()?;
        Ok(self.families.last_drop())
    }

    /// Settles some hours. Returns whether there may be more. `unreadable` are hours whose rows could not be read.
    fn settle_hours(
        &self,
        scope: SettleScope,
        unreadable: &mut HashSet<Hour>,
    ) -> Result<bool, StoreError> {
        let _one_at_a_time = self.settler.lock_running();
        self.settle_other_hours(scope, unreadable, &[], 0)
    }

    /// The same, without hours of the spans that are being summed, and with room for the `reserved` bytes that these may
    /// still take. The caller has the lock.
    pub(super) fn settle_other_hours(
        &self,
        scope: SettleScope,
        unreadable: &mut HashSet<Hour>,
        being_summed: &[Span],
        reserved: u64,
    ) -> Result<bool, StoreError> {
        if scope == SettleScope::Cold && self.awaits_flush()? {
            return Ok(false);
        }
        // Rows that are settled already must not be settled again.
        let last_drop = self.finish_and_see_drops()?;
        let plan = self.plan_settlement(scope, unreadable, being_summed, reserved)?;
        let is_worth_it =
            plan.bytes >= BYTES_MIN || plan.hours >= HOURS_MIN || plan.in_spans >= IN_SPANS_MAX;
        if plan.hours == 0 || !is_worth_it && scope == SettleScope::Cold {
            return Ok(false);
        }
        let start = Instant::now();
        let _remembers = RememberHours::new(&self.settler.recent, start);
        let Some(files) = self.rewrite(&plan.ranges, unreadable)? else {
            return Ok(!self.settler.is_closing());
        };
        self.step(Step::SettleWritten);
        let _write_lock = self.flusher.lock_writes();
        self.finish_steps()?;
        let has_dropped = self.families.last_drop() != last_drop;
        let recent = self.settler.recent.lock();
        let written = |range: &HourRange| range.hours().any(|hour| recent.contains(hour, start));
        let is_outdated = has_dropped || plan.ranges.iter().any(written);
        drop(recent);
        if is_outdated {
            return Ok(true);
        }
        self.settle(
            plan.ranges.clone(),
            files.paths().to_vec(),
            &files.new_spans,
        )?;
        tracing::debug!(
            hours = plan.hours,
            ranges = plan.ranges.len(),
            bytes = plan.bytes,
            ms = start.elapsed().as_millis() as u64,
            "settled"
        );
        Ok(true)
    }

    /// The next hours in `flows` to settle, in ascending order. Counts the cold ones for operators.
    fn plan_settlement(
        &self,
        scope: SettleScope,
        unreadable: &HashSet<Hour>,
        being_summed: &[Span],
        reserved: u64,
    ) -> Result<SettlementPlan, StoreError> {
        const DOING: &str = "looking for cold hours";
        let Some(settled) = self.settled() else {
            return Ok(SettlementPlan::default());
        };
        let flows = self.flows()?;
        let newest = self.tallies()?.newest();
        let summed = self.summed()?;
        let since = Instant::now().checked_sub(self.options.cold_after);
        let is_due = |hour: Hour| {
            let is_cold = || {
                let is_recent = |since| self.settler.recent.lock().contains(hour, since);
                newest.is_some_and(|newest| hour < newest) && !since.is_some_and(is_recent)
            };
            let is_being_summed = || being_summed.iter().any(|span| span.hours().contains(hour));
            !unreadable.contains(&hour)
                && !is_being_summed()
                && (scope == SettleScope::All || is_cold())
        };
        // The disk has room for a second copy.
        let bytes_max = self.health.room().saturating_sub(reserved) / 2;
        let (mut plan, mut late) = (SettlementPlan::default(), SettlementPlan::default());
        let (mut cold_hours, mut beyond) = (0, 0);
        let mut rows = iterate(&self.db, flows, &[], &codec::META_PREFIX);
        while let Some(key) = rows.key() {
            let (hour, _) = codec::split_hour(key)?;
            let (lower, upper) = codec::hour_bounds(hour);
            if is_due(hour) {
                let is_full = plan.is_full() || late.is_full();
                if is_full && (scope == SettleScope::All || beyond == COUNTED_HOURS_MAX) {
                    break;
                }
                let bytes = self.bytes_in(flows, &lower, &upper);
                // Rows of an hour that is only in longer spans are added to those.
                let is_thinned = hour < summed.finest.hours_from;
                let is_late =
                    is_thinned || self.bytes_in(settled, &lower, &upper) > LATE_FRACTION * bytes;
                cold_hours += u64::from(!is_late);
                if is_full {
                    beyond += 1;
                } else if bytes > bytes_max.saturating_sub(plan.bytes.max(late.bytes)) {
                    if scope == SettleScope::All && plan.hours == 0 {
                        return Err(StoreError::NoRoomToSettle { bytes: 2 * bytes });
                    }
                    tracing::debug!(hour = hour.get(), bytes, "no disk space to settle");
                } else {
                    let is_in_span = |tier: Tier| summed.contains(tier.span_of(hour));
                    let is_in_spans = is_thinned || Tier::ALL.into_iter().any(is_in_span);
                    match is_late && scope == SettleScope::Cold {
                        true => late.push(hour, bytes, is_in_spans),
                        false if is_in_spans && plan.in_spans == IN_SPANS_MAX => {}
                        false => plan.push(hour, bytes, is_in_spans),
                    }
                }
            }
            rows.seek(upper);
        }
        rows.status().map_err(with_context(DOING))?;
        if scope == SettleScope::Cold {
            (self.settler).update_backlog(|backlog| backlog.cold_hours = cold_hours);
        }
        Ok(match late.is_full() {
            true if late.in_spans > IN_SPANS_MAX => late.first_hours(IN_SPANS_MAX),
            true => late,
            false => plan,
        })
    }

    /// Writes files with all rows that `flows` has of these hours. `None` if the store is closing, or if an hour cannot be
    /// read.
    fn rewrite(
        &self,
        ranges: &[HourRange],
        unreadable: &mut HashSet<Hour>,
    ) -> Result<Option<StagedFiles<'_>>, StoreError> {
        let settled = self.settled().ok_or(StoreError::Closed)?;
        let mut staged = StagedRows::new(self, "settled");
        let mut rows_until_check = ROWS_PER_CHECK;
        let mut end: Option<u32> = None;
        let hours_from = self.summed()?.finest.hours_from;
        let by_hour = ranges.iter().map(|range| range.since(hours_from));
        for hour in by_hour.flat_map(HourRange::hours) {
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
                rows_until_check -= 1;
                if rows_until_check == 0 {
                    rows_until_check = ROWS_PER_CHECK;
                    if self.settler.is_closing() {
                        return Ok(None);
                    }
                }
            }
            if let Err(error) = rows.status() {
                tracing::error!(hour = hour.get(), %error, "an hour cannot be read; run flowtally verify");
                unreadable.insert(hour);
                return Ok(None);
            }
        }
        if let Some(span) = self.rewrite_spans(ranges, &mut staged)? {
            let hours = ranges.iter().flat_map(|range| range.hours());
            unreadable.extend(hours.filter(|hour| span.hours().contains(*hour)));
            return Ok(None);
        }
        Ok(Some(staged.finish()?))
    }

    /// Adds the rows that `flows` has of these hours to the spans that are summed already, and to those that are kept
    /// longer than the hours. Returns the first span whose rows cannot be read.
    fn rewrite_spans(
        &self,
        ranges: &[HourRange],
        staged: &mut StagedRows<'_>,
    ) -> Result<Option<Span>, StoreError> {
        let flows = self.flows()?;
        let mut key = Vec::new();
        let summed = self.summed()?;
        let only_in_spans = ranges.iter().flat_map(|range| range.hours());
        let only_in_spans = only_in_spans.take_while(|hour| *hour < summed.finest.hours_from);
        let kept_longer =
            only_in_spans.filter_map(|hour| Some(summed.finest.tier_of(hour)?.span_of(hour)));
        let mut spans = summed.of_hours(ranges);
        spans.extend(kept_longer);
        let mut new = Vec::new();
        for span in spans {
            let of_span = ranges.iter().flat_map(|range| range.hours());
            let of_span = of_span.filter(|hour| span.hours().contains(*hour));
            let parts = of_span.map(|hour| {
                let (lower, upper) = codec::hour_bounds(hour);
                (iterate(&self.db, flows, &lower, &upper), codec::HOUR_BYTES)
            });
            let unreadable = |error: StoreError| {
                tracing::error!(%span, %error, "late rows of a span cannot be read; run flowtally verify");
                Ok(Some(span))
            };
            let mut merged = match SpanMerge::new(parts.collect()) {
                Ok(merged) => merged,
                Err(error) => return unreadable(error),
            };
            // As above, a file must not span other rows.
            staged.end_file()?;
            loop {
                let (suffix, counters) = match merged.next() {
                    Ok(Some(row)) => row,
                    Ok(None) => break,
                    Err(error) => return unreadable(error),
                };
                key.clear();
                key.extend_from_slice(&codec::span_prefix(span));
                key.extend_from_slice(suffix);
                staged.write(&key, &codec::encode_counters(counters), false)?;
            }
            if !summed.contains(span) {
                new.push(span);
            }
        }
        staged.end_file()?;
        for span in new {
            staged.write_record(span)?;
        }
        staged.end_file()?;
        Ok(None)
    }
}

/// Whether there are keys from `lower` to `upper` (exclusive).
pub(super) fn has_rows(
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
