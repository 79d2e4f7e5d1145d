//! Rows of a selection on disk.

use super::limits::ScanLimits;
use crate::store::codec::{self, Corrupt};
use crate::store::error::{StoreError, with_context};
use crate::store::families::HiddenHours;
use crate::store::selection::{KeyPosition, Selection};
use crate::store::tiers::KeyLayout;
use crate::store::view::OwnedIterator;
use flow::{Counters, Hour};

/// The rows of a selection in one column family.
pub(super) struct DiskRows {
    iterator: OwnedIterator,
    layout: KeyLayout,
    /// Hours whose rows are ignored, ascending and disjoint; almost always few.
    hidden: HiddenHours,
    /// Whether its row belongs to the scan's hour.
    pub(super) in_hour: bool,
    /// The hour of its row, and the index of the selection's names that it has reached there.
    reached: (Hour, usize),
}

impl DiskRows {
    pub(super) fn new(iterator: OwnedIterator, layout: KeyLayout, hidden: HiddenHours) -> DiskRows {
        DiskRows {
            iterator,
            layout,
            hidden,
            in_hour: false,
            reached: (Hour::FIRST, 0),
        }
    }

    /// Its row: key suffix and sums. `None` after the last row or on an error.
    #[inline]
    pub(super) fn row(&self) -> Result<Option<(&[u8], Counters)>, Corrupt> {
        let Some((key, value)) = self.iterator.item() else {
            return Ok(None);
        };
        let suffix = self.layout.suffix(key)?;
        Ok(Some((suffix, codec::decode_counters(value)?)))
    }

    /// Moves to the next row of `selection`, and sets whether it belongs to `hour`.
    #[inline]
    pub(super) fn advance(
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
            selection.is_one_hour() || self.layout.split(key)?.0 == hour
        };
        Ok(())
    }

    /// Seeks the next row of `selection`, unless it is at one. Returns its hour.
    #[cold]
    pub(super) fn seek_hour(
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
    pub(super) fn seek_visible(
        &mut self,
        limits: &mut ScanLimits,
    ) -> Result<Option<Hour>, StoreError> {
        loop {
            let layout = self.layout;
            let key = self
                .iterator
                .key()
                .map(|key| layout.split(key))
                .transpose()?;
            let hour = key.map(|(hour, _)| hour);
            let range = hour.and_then(|hour| {
                let behind = self
                    .hidden
                    .partition_point(|range| range.start() <= hour.get());
                let last = self.hidden.get(behind.checked_sub(1)?)?;
                last.contains(hour).then_some(last)
            });
            let Some(range) = range else {
                return Ok(hour);
            };
            let (_, behind) = layout.bounds(*range);
            self.iterator.seek(&behind);
            limits.step()?;
        }
    }

    /// Seeks the next row with one of the selection's names. Returns its hour.
    pub(super) fn seek_names(
        &mut self,
        selection: &Selection,
        limits: &mut ScanLimits,
    ) -> Result<Option<Hour>, StoreError> {
        let layout = self.layout;
        while let Some(hour) = self.seek_visible(limits)? {
            if self.reached.0 != hour {
                self.reached = (hour, 0);
            }
            let suffix = self
                .iterator
                .key()
                .map(|key| layout.suffix(key))
                .transpose()?;
            let key = match selection.locate(self.reached.1, suffix.unwrap_or_default()) {
                KeyPosition::Within(at) => {
                    self.reached.1 = at;
                    return Ok(Some(hour));
                }
                KeyPosition::Before(at) => {
                    self.reached.1 = at;
                    selection.seek_key(layout, hour, at)
                }
                KeyPosition::After => match layout.next(hour) {
                    Some(next) => selection.seek_key(layout, next, 0),
                    None => layout.bounds(hour.into()).1,
                },
            };
            self.iterator.seek(&key);
            limits.step()?;
        }
        Ok(None)
    }
}
