//! Sums spans whose hours are settled.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

use super::merge::SpanMerge;
use super::{KeyLayout, Span, Tier};
use crate::store::codec::{self, SPAN_PREFIX_BYTES};
use crate::store::error::{StoreError, with_context};
use crate::store::families::iterate;
use crate::store::settle::{INTERVAL, SettleScope, StagedRows, has_rows};
use crate::store::{Inner, Step};
use flow::{Hour, HourRange};

/// Rows between two looks at what else there is to do.
const ROWS_PER_CHECK: u32 = if cfg!(test) { 4 } else { 4096 };
/// While flows come, summing rests this many times as long as it has worked: it can wait, and commits cannot.
const REST: u32 = 7;
/// Interval between settlements while spans are summed.
const SETTLE_INTERVAL: Duration = if cfg!(test) { Duration::ZERO } else { INTERVAL };
/// A rest is no longer than this, however long the disk took.
const REST_MAX: Duration = Duration::from_millis(100);
/// Spans that one ingest adds.
const SPANS_MAX: usize = 64;
/// It adds no further one once it has this many bytes.
const BYTES_ENOUGH: u64 = 64 << 20;

/// The reason why a span was not summed.
enum NotSummed {
    /// Its parts could not be read.
    Unreadable(StoreError),
    /// Its sums could not be written.
    Failed(StoreError),
    /// The store is closing, or has dropped hours, which the sums would still contain.
    Interrupted,
}

/// What the settler does while it sums spans. That takes minutes if each hour has other keys, so hours that go cold
/// meanwhile are settled in between; those of the spans are left alone.
struct Meanwhile<'a> {
    scope: SettleScope,
    spans: &'a [Span],
    unreadable_hours: &'a mut HashSet<Hour>,
    last_drop: u64,
    /// Bytes that the sums may still take.
    reserved: u64,
    settled_at: Instant,
    working_since: Instant,
}

impl Inner {
    /// Sums the next spans that are complete. Returns whether there may be more. `unreadable` are spans whose parts could
    /// not be read; `unreadable_hours` are those of settlements in between.
    pub(in crate::store) fn sum_next_spans(
        &self,
        scope: SettleScope,
        unreadable: &mut HashSet<Span>,
        unreadable_hours: &mut HashSet<Hour>,
    ) -> Result<bool, StoreError> {
        let _one_at_a_time = self.settler.lock_running();
        let last_drop = self.finish_and_see_drops()?;
        let spans = self.next_complete_spans(scope, unreadable)?;
        let mut staged = StagedRows::new(self, "span");
        let mut summed: Vec<Span> = Vec::new();
        // The disk has room for a second copy.
        let mut room = self.health.room() / 2;
        let mut meanwhile = Meanwhile {
            scope,
            spans: &spans,
            unreadable_hours,
            last_drop,
            reserved: 0,
            settled_at: Instant::now(),
            working_since: Instant::now(),
        };
        for &span in &spans {
            let bytes = self.bytes_of_parts(span)?;
            if bytes > room {
                tracing::debug!(?span, bytes, "no disk space to sum a span");
                break;
            }
            room -= bytes;
            meanwhile.reserved += bytes;
            // A file must not span the rows of others.
            if summed
                .last()
                .is_some_and(|last| last.number + 1 < span.number)
            {
                staged.end_file()?;
            }
            match self.sum(span, &mut staged, &mut meanwhile) {
                Ok(()) => summed.push(span),
                Err(NotSummed::Unreadable(error)) => {
                    tracing::error!(%span, %error, "span not summed: its rows cannot be read; run flowtally verify");
                    unreadable.insert(span);
                    return Ok(true);
                }
                Err(NotSummed::Failed(error)) => return Err(error),
                Err(NotSummed::Interrupted) => return Ok(!self.settler.is_closing()),
            }
            if staged.bytes() >= BYTES_ENOUGH {
                break;
            }
        }
        if summed.is_empty() {
            return Ok(false);
        }
        staged.end_file()?;
        // A file of its own, too.
        for span in &summed {
            staged.write_record(*span)?;
        }
        let files = staged.finish()?;
        self.step(Step::SpanWritten);
        let _write_lock = self.flusher.lock_writes();
        self.finish_steps()?;
        // Only drops and settlements change what was read, and settlements have left these spans alone.
        if !self.families.still_has(&mut meanwhile.last_drop, &spans) {
            return Ok(true);
        }
        let ingest = || {
            let settled = self.settled().ok_or(StoreError::Closed)?;
            self.ingest(settled, files.paths(), "ingesting the sums of spans")
        };
        self.change_spans(ingest, |of| of.insert(&summed))?;
        self.step(Step::SpanSummed);
        tracing::debug!(spans = summed.len(), first = ?summed.first(), "summed");
        Ok(true)
    }

    /// Stages the sums of a span.
    fn sum(
        &self,
        span: Span,
        staged: &mut StagedRows<'_>,
        meanwhile: &mut Meanwhile<'_>,
    ) -> Result<(), NotSummed> {
        let mut parts = self.parts_of(span).map_err(NotSummed::Unreadable)?;
        let mut key = codec::span_prefix(span).to_vec();
        let mut rows_until_check = ROWS_PER_CHECK;
        while let Some((suffix, counters)) = parts.next().map_err(NotSummed::Unreadable)? {
            key.truncate(SPAN_PREFIX_BYTES);
            key.extend_from_slice(suffix);
            let written = staged.write(&key, &codec::encode_counters(counters), true);
            written.map_err(NotSummed::Failed)?;
            rows_until_check -= 1;
            if rows_until_check == 0 {
                rows_until_check = ROWS_PER_CHECK;
                self.do_meanwhile(meanwhile)?;
            }
        }
        Ok(())
    }

    /// Between rows of a span: settles hours that have gone cold, and rests while flows come.
    fn do_meanwhile(&self, meanwhile: &mut Meanwhile<'_>) -> Result<(), NotSummed> {
        let is_outdated = !self
            .families
            .still_has(&mut meanwhile.last_drop, meanwhile.spans);
        if is_outdated || self.settler.is_closing() {
            return Err(NotSummed::Interrupted);
        }
        if meanwhile.scope == SettleScope::All {
            return Ok(());
        }
        if meanwhile.settled_at.elapsed() >= SETTLE_INTERVAL {
            let hours = &mut *meanwhile.unreadable_hours;
            let (scope, spans) = (meanwhile.scope, meanwhile.spans);
            let reserved = meanwhile.reserved;
            let mut settle = || self.settle_other_hours(scope, hours, spans, reserved);
            while settle().map_err(NotSummed::Failed)? {}
            meanwhile.settled_at = Instant::now();
        } else if self.settler.is_busy(self.options.flush_interval) {
            let rest = meanwhile.working_since.elapsed() * REST;
            self.settler.rest(rest.min(REST_MAX));
        }
        meanwhile.working_since = Instant::now();
        Ok(())
    }

    /// Upper bound of the bytes of a span's sums: those of its parts.
    fn bytes_of_parts(&self, span: Span) -> Result<u64, StoreError> {
        let settled = self.settled().ok_or(StoreError::Closed)?;
        let layout = match span.tier {
            Tier::Day => KeyLayout::HOURS,
            Tier::ThirtyDays => KeyLayout::of(Tier::Day),
        };
        let (lower, upper) = layout.bounds(span.hours());
        Ok(self.bytes_in(settled, &lower, &upper))
    }

    /// The parts of a span, each with its rows in `settled`.
    fn parts_of(&self, span: Span) -> Result<SpanMerge<'_>, StoreError> {
        let settled = self.settled().ok_or(StoreError::Closed)?;
        let hours = span.hours();
        let part = |layout: KeyLayout, hours: HourRange| {
            let (lower, upper) = layout.bounds(hours);
            let rows = iterate(&self.db, settled, &lower, &upper);
            (rows, layout.prefix_bytes())
        };
        let parts = match span.tier {
            Tier::Day => {
                let hours = hours.hours();
                hours
                    .map(|hour| part(KeyLayout::HOURS, hour.into()))
                    .collect()
            }
            Tier::ThirtyDays => {
                let summed = self.summed()?;
                let days = summed.overlapping(Tier::Day, hours);
                let day = KeyLayout::of(Tier::Day);
                days.map(|span| part(day, span.hours())).collect()
            }
        };
        SpanMerge::new(parts)
    }

    /// The first spans that are not summed yet and complete: days, or, if there are none, thirty days. Counts all that are
    /// not summed for operators.
    fn next_complete_spans(
        &self,
        scope: SettleScope,
        unreadable: &HashSet<Span>,
    ) -> Result<Vec<Span>, StoreError> {
        let mut complete = Vec::new();
        let Some(newest) = self.tallies()?.newest() else {
            return Ok(complete);
        };
        let settled = self.settled().ok_or(StoreError::Closed)?;
        let summed = self.summed()?;
        let cutoffs = self.retention.cutoffs();
        // A later hour has flows. The sums of a span that has hours before the cutoff would be incomplete.
        let is_over = |span: Span| {
            let hours = span.hours();
            hours.start() >= cutoffs.all.get() && hours.end() <= newest.get()
        };
        let is_next = |span: Span| {
            let is_due = is_over(span) && !unreadable.contains(&span);
            Ok::<_, StoreError>(is_due && self.is_complete(span, scope)?)
        };
        let mut unsummed_days = 0;
        // Those that contain days which are not summed.
        let mut incomplete = HashSet::new();
        let mut rows = iterate(&self.db, settled, &[], &codec::META_PREFIX);
        while let Some(key) = rows.key() {
            let (hour, _) = codec::split_hour(key)?;
            let [day, thirty_days] = Tier::ALL.map(|tier| tier.span_of(hour));
            // A day that got its first flows after its thirty days were summed stays in hours, for as long as those are kept.
            let passed = if summed.contains(thirty_days) && hour >= cutoffs.finest.hours_from {
                thirty_days
            } else {
                if !summed.contains(day) {
                    unsummed_days += u64::from(is_over(day));
                    if complete.len() < SPANS_MAX && is_next(day)? {
                        complete.push(day);
                    }
                    incomplete.insert(thirty_days);
                }
                day
            };
            rows.seek(passed.hours().end().to_be_bytes());
        }
        let read = rows
            .status()
            .map_err(with_context("looking for complete spans"));
        if complete.is_empty() {
            // Otherwise, those that were found are summed first.
            read?;
        }
        let of_days = summed.overlapping(Tier::Day, HourRange::ALL);
        let of_days = of_days.map(|day| Tier::ThirtyDays.span_of(day.first_hour()));
        let unsummed: BTreeSet<Span> = (of_days.chain(incomplete.iter().copied()))
            .filter(|thirty_days| !summed.contains(*thirty_days) && is_over(*thirty_days))
            .collect();
        if scope == SettleScope::Cold {
            self.settler.update_backlog(|backlog| {
                backlog.unsummed_days = unsummed_days;
                backlog.unsummed_thirty_days = unsummed.len() as u64;
            });
        }
        if !complete.is_empty() {
            return Ok(complete);
        }
        for thirty_days in unsummed {
            if !incomplete.contains(&thirty_days) && is_next(thirty_days)? {
                complete.push(thirty_days);
                if complete.len() == SPANS_MAX {
                    break;
                }
            }
        }
        Ok(complete)
    }

    /// Whether the hours of `span`, which are over, can be summed: with [`SettleScope::Cold`], none of them was written within
    /// `StoreOptions::cold_after`; no tally has one of them; and `flows` has only late rows of them.
    fn is_complete(&self, span: Span, scope: SettleScope) -> Result<bool, StoreError> {
        let hours = span.hours();
        let cold_after = self.options.cold_after;
        if scope == SettleScope::Cold && self.settler.is_recent(hours, cold_after) {
            return Ok(false);
        }
        if self
            .tallies()?
            .both()
            .any(|tally| tally.hours_in(hours) > 0)
        {
            return Ok(false);
        }
        let hours_from = self.summed()?.finest.hours_from;
        let (lower, upper) = codec::range_bounds(hours);
        let mut rows = iterate(&self.db, self.flows()?, &lower, &upper);
        while let Some(key) = rows.key() {
            let (hour, _) = codec::split_hour(key)?;
            let (lower, upper) = codec::hour_bounds(hour);
            let settled = self.settled().ok_or(StoreError::Closed)?;
            // Rows of an hour that is only in longer spans are late ones of those.
            if hour >= hours_from && !has_rows(&self.db, settled, &lower, &upper)? {
                return Ok(false);
            }
            rows.seek(upper);
        }
        let status = rows.status();
        status.map_err(with_context("looking for complete spans"))?;
        Ok(true)
    }
}
