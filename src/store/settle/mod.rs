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
mod plan;
mod recent;
mod rewrite;
mod staged;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::error::StoreError;
use super::tiers::Span;
use super::{Inner, Step, StoreOptions};
pub use backlog::Backlog;
use flow::{Hour, HourRange};
use recent::{RecentHours, RememberHours};
pub(super) use rewrite::has_rows;
pub(super) use staged::{StagedFiles, StagedRows};

/// Interval between searches for cold hours.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);
/// Flows are coming if the last flush is due again, and not later than this.
const LATE_FLUSH: Duration = Duration::from_secs(10);
/// Pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(60);

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
        if plan.hours == 0 || !plan.is_worth_it() && scope == SettleScope::Cold {
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
}

#[cfg(test)]
mod tests;
