//! The ledger: flows and bytes per hour, stored beside the rows.
//!
//! It is an independent account of the same flows: counted when a batch is decoded, stored in the batch, added up in
//! the tally and in `flows` in the same atomic steps as the rows, and never derived from the rows.
//! [`verify`](super::verify) compares the two.
//!
//! It has one entry per hour, possibly millions, so it is read entry by entry.

use std::sync::Arc;
use std::time::Instant;

use rocksdb::{DB, DBRawIteratorWithThreadMode, ReadOptions};
use tokio_util::sync::CancellationToken;

use super::error::{StoreError, with_context};
use super::scan::ScanLimits;
use super::tally::Tally;
use super::tiers::FinestRows;
use super::view::{OwnedIterator, View, ViewSpec};
use super::view_budget::ViewGrant;
use super::{Inner, Store, codec};
use flow::{Hour, HourRange, Totals};

/// The entries of a range of hours in ascending order, as of one moment between two commits.
///
/// Like a [`Scan`](super::Scan), it holds database files and copies of unflushed entries, but no lock.
pub struct Ledger {
    disk: OwnedIterator,
    /// Ascending.
    unflushed: std::iter::Peekable<std::vec::IntoIter<UnflushedEntry>>,
    tag: u64,
    /// May be newer than the entries.
    finest: FinestRows,
    limits: ScanLimits,
    /// Covers `unflushed`.
    _grant: ViewGrant,
}

/// An entry of a tally.
#[derive(Clone, Copy)]
struct UnflushedEntry {
    hour: Hour,
    totals: Totals,
}

impl Store {
    /// The entries of those `hours` that have flows and are not too old.
    pub fn ledger(&self, hours: HourRange) -> Result<Ledger, StoreError> {
        Ledger::open(&self.inner, hours)
    }
}

impl Ledger {
    fn open(inner: &Arc<Inner>, hours: HourRange) -> Result<Ledger, StoreError> {
        let view = View::open(inner, &mut LedgerSpec(hours))?;
        let mut unflushed: Vec<UnflushedEntry> = view.copies.into_iter().flatten().collect();
        unflushed.sort_unstable_by_key(|of| of.hour);
        unflushed.dedup_by(|later, kept| {
            let is_same = later.hour == kept.hour;
            if is_same {
                kept.totals.add(later.totals);
            }
            is_same
        });
        Ok(Ledger {
            disk: view.disk.flows,
            unflushed: unflushed.into_iter().peekable(),
            tag: view.tag,
            finest: inner.finest_rows()?,
            limits: ScanLimits::default(),
            _grant: view.grant,
        })
    }

    /// Identifies the content of the whole ledger: it changes with every commit, dropped hour and changed span, and
    /// differs between processes.
    pub fn tag(&self) -> u64 {
        self.tag
    }

    /// From which hour on rows of hours, and of days, can be read.
    pub fn finest_rows(&self) -> FinestRows {
        self.finest
    }

    /// Makes reads after this time fail.
    pub fn set_deadline(&mut self, time: Option<Instant>) {
        self.limits.set_deadline(time);
    }

    /// Makes reads fail after `cancel` is cancelled.
    pub fn set_cancel(&mut self, cancel: CancellationToken) {
        self.limits.set_cancel(cancel);
    }

    fn next_entry(&mut self) -> Result<Option<(Hour, Totals)>, StoreError> {
        self.limits.step()?;
        let mut next = match self.disk.item() {
            Some((key, value)) => {
                Some((codec::decode_ledger_key(key)?, codec::decode_totals(value)?))
            }
            None => {
                self.disk
                    .status()
                    .map_err(with_context("reading the ledger"))?;
                None
            }
        };
        let on_disk = next.map(|(hour, _)| hour);
        let is_due = |of: &UnflushedEntry| on_disk.is_none_or(|on_disk| of.hour <= on_disk);
        let unflushed = self.unflushed.next_if(is_due);
        let is_on_disk = |of: &UnflushedEntry| on_disk == Some(of.hour);
        if on_disk.is_some() && unflushed.as_ref().is_none_or(is_on_disk) {
            self.disk.advance();
        }
        if let Some(of) = unflushed {
            match &mut next {
                Some((_, totals)) if is_on_disk(&of) => totals.add(of.totals),
                _ => next = Some((of.hour, of.totals)),
            }
        }
        Ok(next)
    }
}

impl Iterator for Ledger {
    type Item = Result<(Hour, Totals), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_entry().transpose()
    }
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger")
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}

/// Copies the unflushed entries of a range of hours.
struct LedgerSpec(HourRange);

impl ViewSpec for LedgerSpec {
    type Copy = Vec<UnflushedEntry>;

    fn copy_bytes(&self, tally: &Tally, cutoff: Hour) -> usize {
        tally.hours_in(self.0.since(cutoff)) * size_of::<UnflushedEntry>()
    }

    fn copy(&self, tally: &Tally, cutoff: Hour) -> Vec<UnflushedEntry> {
        let hours = self.0.since(cutoff);
        let mut copy = Vec::with_capacity(tally.hours_in(hours));
        let entries = tally.ledger().filter(|(hour, _)| hours.contains(*hour));
        copy.extend(entries.map(|(hour, totals)| UnflushedEntry { hour, totals }));
        copy
    }

    fn bounds(&self, cutoff: Hour) -> (Vec<u8>, Vec<u8>) {
        let (lower, upper) = codec::ledger_range_bounds(self.0.since(cutoff));
        (lower.to_vec(), upper.to_vec())
    }

    fn seeks(&self) -> bool {
        false
    }
}

/// The ledger's entries on disk for a range of hours, ascending.
pub(super) struct DiskLedger<'a>(DBRawIteratorWithThreadMode<'a, DB>);

impl Inner {
    /// The entries of these hours on disk.
    pub(super) fn ledger_on_disk(&self, hours: HourRange) -> Result<DiskLedger<'_>, StoreError> {
        let mut options = ReadOptions::default();
        let (lower, upper) = codec::ledger_range_bounds(hours);
        options.set_iterate_lower_bound(lower);
        options.set_iterate_upper_bound(upper);
        options.fill_cache(false);
        let mut disk = self.db.raw_iterator_cf_opt(self.flows()?, options);
        disk.seek_to_first();
        Ok(DiskLedger(disk))
    }

    /// The total of these entries, and their number.
    pub(super) fn sum_on_disk(&self, hours: HourRange) -> Result<(Totals, u64), StoreError> {
        let (mut sum, mut count) = (Totals::default(), 0);
        for entry in self.ledger_on_disk(hours)? {
            sum.add(entry?.1);
            count += 1;
        }
        Ok((sum, count))
    }
}

impl DiskLedger<'_> {
    /// The last hour that has an entry.
    pub(super) fn last_hour(mut self) -> Result<Option<Hour>, StoreError> {
        self.0.seek_to_last();
        Ok(self.next().transpose()?.map(|(hour, _)| hour))
    }
}

impl Iterator for DiskLedger<'_> {
    type Item = Result<(Hour, Totals), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = match self.0.item() {
            Some((key, value)) => codec::decode_ledger_key(key)
                .and_then(|hour| Ok((hour, codec::decode_totals(value)?)))
                .map_err(StoreError::from),
            None => {
                return Some(Err(self
                    .0
                    .status()
                    .err()
                    .map(with_context("reading the ledger"))?));
            }
        };
        self.0.next();
        Some(entry)
    }
}
