//! The ledger: how many flows and bytes each hour has been given, kept beside the rows.
//!
//! It is a second account of the same flows: counted when a batch is decoded, stored in the batch,
//! added up in the tally and in `flows` beside the rows, in the same atomic steps, and never derived
//! from them. [`verify`](super::verify) holds the two against each other.
//!
//! It has an entry for each hour, and there may be millions of hours: it is read entry by entry.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rocksdb::{DB, DBRawIteratorWithThreadMode, ReadOptions};
use tokio_util::sync::CancellationToken;

use super::error::{StoreError, database};
use super::scan::{Cursor, Patience, open_cursor};
use super::tally::Tally;
use super::views::Grant;
use super::{Inner, Store, codec};
use flow::{Hour, Totals};

/// Pause while hours are being dropped, which takes milliseconds.
const DROP_PAUSE: Duration = Duration::from_millis(1);

/// The entries of a range of hours, ascending, as they were at one moment between two commits.
///
/// Like a [`Scan`](super::Scan), it holds files of the database and copies of what is not flushed, but no
/// lock.
pub struct Ledger {
    disk: Cursor,
    /// Ascending.
    unflushed: std::iter::Peekable<std::vec::IntoIter<Unflushed>>,
    tag: u64,
    patience: Patience,
    /// Covers what is unflushed.
    _grant: Grant,
}

/// An entry of a tally.
#[derive(Clone, Copy)]
struct Unflushed {
    hour: u32,
    of_frozen: bool,
    totals: Totals,
}

/// What the whole ledger adds up to, hours included that are too old and not dropped yet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    pub(super) hours: u64,
    pub(super) totals: Totals,
    /// What it had at the start, and was given since, without what was dropped.
    pub(super) expected: Totals,
}

impl Store {
    /// The entries of `hours`, of those hours that hold flows and are not too old.
    pub fn ledger(&self, hours: Range<u32>) -> Result<Ledger, StoreError> {
        Ledger::open(&self.inner, hours)
    }
}

impl Ledger {
    fn open(inner: &Arc<Inner>, hours: Range<u32>) -> Result<Ledger, StoreError> {
        undisturbed(inner, |drops| {
            // The tallies first, then the disk, and the marker decides: as in a scan.
            let copies = copy_tallies(inner, &hours)?;
            let first = hours.start.max(copies.horizon);
            let end = hours.end.max(first);
            let (lower, upper) = (codec::ledger_key(first), codec::ledger_key(end));
            let (disk, marker) = open_cursor(inner, &lower, &upper, false)?;
            let mut unflushed = copies.entries;
            unflushed.retain(|of| {
                let last = if of.of_frozen {
                    copies.frozen_last
                } else {
                    copies.last
                };
                last > marker && of.hour >= first
            });
            unflushed.sort_unstable_by_key(|of| of.hour);
            unflushed.dedup_by(|later, kept| {
                let is_same = later.hour == kept.hour;
                if is_same {
                    kept.totals.add(later.totals);
                }
                is_same
            });
            Ok(Ledger {
                disk,
                unflushed: unflushed.into_iter().peekable(),
                tag: inner.tag(copies.last, drops),
                patience: Patience::default(),
                _grant: copies.grant,
            })
        })
    }

    /// Names what the ledger holds as a whole: it is another one after every change, and in every process.
    pub fn tag(&self) -> u64 {
        self.tag
    }

    /// Ends it with an error when it is read after this time.
    pub fn until(&mut self, time: Option<Instant>) {
        self.patience.until(time);
    }

    /// Ends it with an error when it is told to.
    pub fn unless(&mut self, cancel: CancellationToken) {
        self.patience.unless(cancel);
    }

    fn next_entry(&mut self) -> Result<Option<(Hour, Totals)>, StoreError> {
        self.patience.step()?;
        let mut next = match self.disk.item() {
            Some((key, value)) => {
                Some((codec::decode_ledger_key(key)?, codec::decode_totals(value)?))
            }
            None => {
                self.disk.status().map_err(database("reading the ledger"))?;
                None
            }
        };
        let at = next.map_or(u32::MAX, |(hour, _)| hour.get());
        let unflushed = self.unflushed.next_if(|of| of.hour <= at);
        if next.is_some() && unflushed.is_none_or(|of| of.hour == at) {
            self.disk.advance();
        }
        if let Some(of) = unflushed {
            match &mut next {
                Some((_, totals)) if of.hour == at => totals.add(of.totals),
                _ => next = Some((hour(of.hour)?, of.totals)),
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

fn hour(hour: u32) -> Result<Hour, codec::Corrupt> {
    Hour::new(u64::from(hour)).ok_or(codec::Corrupt("an hour is out of range"))
}

/// Runs `read` with the number of the last drop of hours, until none comes in between.
fn undisturbed<T>(
    inner: &Inner,
    mut read: impl FnMut(u64) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    loop {
        let drops = inner.drops.load(Ordering::SeqCst);
        if drops.is_multiple_of(2) {
            let value = read(drops)?;
            if drops == inner.drops.load(Ordering::SeqCst) {
                return Ok(value);
            }
        }
        std::thread::sleep(DROP_PAUSE);
    }
}

/// Both tallies' entries at one moment between two commits.
struct Copies {
    entries: Vec<Unflushed>,
    /// Last positions of the active and of the frozen tally.
    last: u64,
    frozen_last: u64,
    horizon: u32,
    grant: Grant,
}

fn copy_tallies(inner: &Arc<Inner>, hours: &Range<u32>) -> Result<Copies, StoreError> {
    let copy = |tally: &Tally, of_frozen, to: &mut Vec<Unflushed>| {
        let of_range = tally.ledger().filter(|(hour, _)| hours.contains(hour));
        to.extend(of_range.map(|(hour, totals)| Unflushed {
            hour,
            of_frozen,
            totals,
        }));
    };
    let mut bytes = 0;
    loop {
        // Without the lock, since this may wait.
        let grant = Grant::take(inner, bytes)?;
        let tallies = inner.tallies()?;
        let frozen = tallies.frozen.clone();
        let of_frozen = frozen.as_deref().map_or(0, |tally| tally.hours_in(hours));
        let entries = tallies.active.hours_in(hours) + of_frozen;
        let needed = entries * size_of::<Unflushed>();
        if !grant.covers(needed, &inner.views) {
            // With some to spare, since the hours grow.
            bytes = needed + needed / 8;
            continue;
        }
        let mut copies = Vec::with_capacity(entries);
        copy(&tallies.active, false, &mut copies);
        let last = tallies.active.last();
        let horizon = inner.horizon.load(Ordering::SeqCst);
        drop(tallies);
        let frozen_last = frozen.as_deref().map_or(0, Tally::last);
        frozen
            .iter()
            .for_each(|tally| copy(tally, true, &mut copies));
        return Ok(Copies {
            entries: copies,
            last,
            frozen_last,
            horizon,
            grant,
        });
    }
}

/// What the ledger adds up to. Its time grows with the number of hours, and its memory does not.
pub(super) fn sums(inner: &Arc<Inner>) -> Result<Sums, StoreError> {
    undisturbed(inner, |_| {
        let (parts, expected): (Vec<_>, _) = {
            let tallies = inner.tallies()?;
            let frozen = tallies.frozen.as_deref().into_iter();
            let both = frozen.chain([&tallies.active]);
            let parts = both.map(|tally| (tally.last(), sum(tally.ledger()), tally.hours()));
            (parts.collect(), tallies.expected)
        };
        let (lower, upper) = codec::ledger_bounds();
        let (mut disk, marker) = open_cursor(inner, lower, upper, false)?;
        let mut sums = Sums {
            expected,
            ..Sums::default()
        };
        let mut unflushed: Vec<u32> = Vec::new();
        for (_, totals, hours) in parts.into_iter().filter(|(last, ..)| *last > marker) {
            sums.totals.add(totals);
            unflushed.extend(hours);
        }
        unflushed.sort_unstable();
        unflushed.dedup();
        sums.hours = unflushed.len() as u64;
        while let Some((key, value)) = disk.item() {
            let hour = codec::decode_ledger_key(key)?.get();
            sums.totals.add(codec::decode_totals(value)?);
            sums.hours += u64::from(unflushed.binary_search(&hour).is_err());
            disk.advance();
        }
        disk.status().map_err(database("reading the ledger"))?;
        Ok(sums)
    })
}

pub(super) fn sum(entries: impl Iterator<Item = (u32, Totals)>) -> Totals {
    let mut sum = Totals::default();
    entries.for_each(|(_, totals)| sum.add(totals));
    sum
}

/// The ledger's entries on disk for a range of hours, ascending.
pub(super) struct OnDisk<'a>(DBRawIteratorWithThreadMode<'a, DB>);

impl Inner {
    /// Those from `first` up to but without `end`.
    pub(super) fn ledger_on_disk(&self, first: u32, end: u32) -> Result<OnDisk<'_>, StoreError> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(codec::ledger_key(first));
        options.set_iterate_upper_bound(codec::ledger_key(end));
        options.fill_cache(false);
        let mut disk = self.db.raw_iterator_cf_opt(self.flows()?, options);
        disk.seek_to_first();
        Ok(OnDisk(disk))
    }

    /// What those entries add up to, and their number.
    pub(super) fn sum_on_disk(&self, first: u32, end: u32) -> Result<(Totals, u64), StoreError> {
        let (mut sum, mut hours) = (Totals::default(), 0);
        for entry in self.ledger_on_disk(first, end)? {
            sum.add(entry?.1);
            hours += 1;
        }
        Ok((sum, hours))
    }
}

impl OnDisk<'_> {
    /// The last of them.
    pub(super) fn last_hour(mut self) -> Result<Option<u32>, StoreError> {
        self.0.seek_to_last();
        Ok(self.next().transpose()?.map(|(hour, _)| hour))
    }
}

impl Iterator for OnDisk<'_> {
    type Item = Result<(u32, Totals), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = match self.0.item() {
            Some((key, value)) => codec::decode_ledger_key(key)
                .and_then(|hour| Ok((hour.get(), codec::decode_totals(value)?)))
                .map_err(StoreError::from),
            None => {
                return Some(Err(self
                    .0
                    .status()
                    .err()
                    .map(database("reading the ledger"))?));
            }
        };
        self.0.next();
        Some(entry)
    }
}
