//! The rows of a scan that match a filter.

use std::ops::ControlFlow;
use std::time::Duration;

use super::matcher::Matcher;
use super::rank::{Page, Ranking};
use super::{QueryError, bounds, break_if};
use crate::store::{Scan, StoredRow};

/// The rows of a scan that match a filter.
#[derive(Debug)]
pub(super) struct FilteredScan {
    pub(super) scan: Scan,
    /// See [`Query::step`].
    pub(super) step: u32,
    /// Rows that other threads read for the same query.
    pub(super) rows_of_other_parts: u64,
    pub(super) matcher: Matcher,
    /// Time limit for each chunk of a response.
    pub(super) time_max: Duration,
}

impl FilteredScan {
    /// Resets the deadline for the next chunk of the response.
    pub(super) fn reset_deadline(&mut self) {
        self.scan
            .set_deadline(bounds::deadline_after(self.time_max));
    }

    /// Ranks all rows.
    pub(super) fn rank(&mut self, mut ranking: Ranking) -> Result<Page, QueryError> {
        self.reset_deadline();
        let mut key = Vec::new();
        self.for_each_row(|row| {
            key.clear();
            row.push_key(&mut key);
            ranking.push(&key, row.counters)?;
            Ok(break_if(ranking.is_complete()))
        })?;
        Ok(ranking.finish())
    }

    pub(super) fn rows_read(&self) -> u64 {
        self.scan.rows() + self.rows_of_other_parts
    }

    /// Passes rows to `each` until it breaks or they end. Returns whether they have ended.
    #[inline]
    pub(super) fn for_each_row(
        &mut self,
        mut each: impl FnMut(&StoredRow<'_>) -> Result<ControlFlow<()>, QueryError>,
    ) -> Result<bool, QueryError> {
        let matches_all = self.matcher.matches_all();
        while let Some(mut row) = self.scan.next_row()? {
            if self.step > 1 {
                row.hour = row.hour.minus(row.hour.get() % self.step);
            }
            if (matches_all || self.matcher.matches(row.suffix)?) && each(&row)?.is_break() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
