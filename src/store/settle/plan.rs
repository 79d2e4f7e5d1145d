//! Which hours are settled next.

use std::collections::HashSet;
use std::time::Instant;

use super::SettleScope;
use crate::store::error::{StoreError, with_context};
use crate::store::families::iterate;
use crate::store::tiers::{Span, Tier};
use crate::store::{Inner, codec};
use flow::{Hour, HourRange};

/// A settlement has at least this many bytes or [`HOURS_MIN`] hours...
const BYTES_MIN: u64 = 4 << 20;
pub(super) const HOURS_MIN: usize = 64;
/// ...and takes no further hour once it has this many bytes or hours.
const BYTES_ENOUGH: u64 = 64 << 20;
const HOURS_MAX: usize = 4096;
/// Late rows of a settled hour are settled when they are one eighth of it or more (this is the denominator), or when
/// those of all hours are [`BYTES_ENOUGH`].
const LATE_FRACTION: u64 = 8;
/// Hours of summed spans in one settlement: each has an iterator of its own while they are added to their spans.
const IN_SPANS_MAX: usize = 32;
/// Hours that are counted for [`Backlog::cold_hours`](super::Backlog::cold_hours) beyond those of the next settlement.
const COUNTED_HOURS_MAX: usize = 1000;

/// Hours to settle next.
#[derive(Debug, Default)]
pub(super) struct SettlementPlan {
    pub(super) ranges: Vec<HourRange>,
    pub(super) hours: usize,
    /// Hours whose rows are added to spans, too.
    in_spans: usize,
    pub(super) bytes: u64,
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

    /// Whether it is large enough for a settlement of its own.
    pub(super) fn is_worth_it(&self) -> bool {
        self.bytes >= BYTES_MIN || self.hours >= HOURS_MIN || self.in_spans >= IN_SPANS_MAX
    }
}

impl Inner {
    /// The next hours in `flows` to settle, in ascending order. Counts the cold ones for operators.
    pub(super) fn plan_settlement(
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
}
