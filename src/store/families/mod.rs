//! Keeps `flows` and `settled`, the two column families of rows, consistent.
//!
//! RocksDB ingests files into one family atomically, but not into two. So a step that changes both has a number and
//! two ingests. The first one decides: it stores the number together with the hours in its family. The second one
//! stores only the number in the other family. As long as the numbers differ, readers ignore the rows that the second
//! ingest will delete, and it is done before anything else changes these families: at the latest, at the next open.
//!
//! | step | first | second |
//! |---|---|---|
//! | [settlement](super::settle) | `settled` gets the rows | `flows` loses them |
//! | [drop](super::retention) | `flows` loses rows and ledger entries | `settled` loses the rows, and those of spans that contain them |

mod drop;
mod settlement;
mod spans;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rocksdb::{ColumnFamily, DB, DBRawIteratorWithThreadMode, ReadOptions};

use super::error::{StoreError, with_context};
use super::tiers::{Span, Summed};
use super::{Inner, codec, flows_family};
use flow::HourRange;
pub(super) use settlement::write_settled_hours;

/// Value of a cached number while an ingest may be changing it. No store reaches this number.
const NUMBER_UNKNOWN: u64 = u64::MAX;

/// Ranges of hours whose rows readers ignore; almost always empty.
pub(super) type HiddenHours = Arc<[HourRange]>;

/// What readers ignore in each family.
#[derive(Clone, Debug, Default)]
pub(super) struct Hidden {
    pub(super) in_flows: HiddenHours,
    pub(super) in_settled: HiddenHours,
}

/// A numbered step.
#[derive(Clone, Debug, Default)]
pub(super) struct NumberedHours {
    number: u64,
    hours: HiddenHours,
}

impl NumberedHours {
    fn read(db: &DB, family: &ColumnFamily, key: &[u8]) -> Result<NumberedHours, StoreError> {
        let Some(value) = db.get_cf(family, key).map_err(with_context(READING))? else {
            return Ok(NumberedHours::default());
        };
        let (number, hours) = codec::decode_numbered_hours(&value)?;
        Ok(NumberedHours {
            number,
            hours: hours.into(),
        })
    }
}

const READING: &str = "reading the number of a step";

/// The last steps that changed both families.
#[derive(Debug, Default)]
pub(super) struct Families {
    /// Number of the last settlement that `settled` contains, or [`NUMBER_UNKNOWN`].
    in_settled: AtomicU64,
    /// Number of the last settlement that `flows` contains, or [`NUMBER_UNKNOWN`].
    in_flows: AtomicU64,
    /// The settlement that `settled` contains, or will contain next.
    settlement: Mutex<NumberedHours>,
    /// Changes only within [`Visibility::during_change`](super::visibility::Visibility::during_change).
    drops: Mutex<Drops>,
    /// The spans that have rows in `settled`. Changes as `drops` does. `None` after an error: they have to be read again.
    summed: Mutex<Option<Arc<Summed>>>,
}

#[derive(Clone, Debug, Default)]
struct Drops {
    /// The last drop that `flows` contains.
    last: NumberedHours,
    /// Number of the last drop that `settled` contains.
    in_settled: u64,
    /// After an error: `flows` may contain a later drop than `last`.
    is_unknown: bool,
}

impl Drops {
    fn is_finished(&self) -> bool {
        self.last.number == self.in_settled
    }
}

/// The family of settled rows. A directory of an older format, opened read-only, has none.
pub(super) fn settled_family(db: &DB) -> Option<&ColumnFamily> {
    db.cf_handle(codec::SETTLED)
}

/// An iterator for a pass over the keys from `lower` to `upper` (exclusive), at the first of them.
pub(super) fn iterate<'a>(
    db: &'a DB,
    family: &ColumnFamily,
    lower: &[u8],
    upper: &[u8],
) -> DBRawIteratorWithThreadMode<'a, DB> {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(lower);
    options.set_iterate_upper_bound(upper);
    options.fill_cache(false);
    let mut iterator = db.raw_iterator_cf_opt(family, options);
    iterator.seek_to_first();
    iterator
}

fn number_in(db: &DB, family: &ColumnFamily, key: &[u8]) -> Result<u64, StoreError> {
    let value = db
        .get_pinned_cf(family, key)
        .map_err(with_context(READING))?;
    Ok(value.map_or(Ok(0), |value| codec::decode_number(&value))?)
}

impl Families {
    /// The last steps in `db`.
    pub(super) fn read(db: &DB) -> Result<Families, StoreError> {
        let Some(settled) = settled_family(db) else {
            return Ok(Families::default());
        };
        let flows = flows_family(db)?;
        let settlement = NumberedHours::read(db, settled, &codec::SETTLEMENT_KEY)?;
        let in_flows = number_in(db, flows, &codec::SETTLEMENT_KEY)?;
        let drops = Drops {
            last: NumberedHours::read(db, flows, &codec::DROP_KEY)?,
            in_settled: number_in(db, settled, &codec::DROP_KEY)?,
            is_unknown: false,
        };
        Ok(Families {
            in_settled: AtomicU64::new(settlement.number),
            in_flows: AtomicU64::new(in_flows),
            settlement: Mutex::new(settlement),
            drops: Mutex::new(drops),
            summed: Mutex::new(Some(Arc::new(Summed::read(db)?))),
        })
    }

    /// Number of the last settlement that `flows` contains. Reads the database only while it may be changing.
    pub(super) fn in_flows(&self, db: &DB) -> Result<u64, StoreError> {
        match self.in_flows.load(Ordering::SeqCst) {
            NUMBER_UNKNOWN => number_in(db, flows_family(db)?, &codec::SETTLEMENT_KEY),
            number => Ok(number),
        }
    }

    /// Number of the last settlement that `settled` contains. Reads the database only while it may be changing.
    pub(super) fn in_settled(&self, db: &DB) -> Result<u64, StoreError> {
        match self.in_settled.load(Ordering::SeqCst) {
            NUMBER_UNKNOWN => number_of_settlement(db),
            number => Ok(number),
        }
    }

    /// What was read at open.
    pub(super) fn summed_at_open(&self) -> Option<Arc<Summed>> {
        self.summed.lock().clone()
    }

    /// Number of the last drop. Call this with the write lock.
    pub(super) fn last_drop(&self) -> u64 {
        self.drops.lock().last.number
    }

    /// Whether no drop since the last one that was `seen` has an hour of these spans; notes that it has seen the last one.
    pub(super) fn still_has(&self, seen: &mut u64, spans: &[Span]) -> bool {
        let drops = self.drops.lock();
        let last = &drops.last;
        let has_hour = |hours: &HourRange| spans.iter().any(|span| span.overlaps(*hours));
        let is_next = last.number == *seen + 1 && !last.hours.iter().any(has_hour);
        if !drops.is_unknown && is_next {
            *seen = last.number;
        }
        !drops.is_unknown && last.number == *seen
    }

    /// What a reader ignores whose view of `flows` contains settlement `in_flows`, and whose view of `settled`, which
    /// is not older, contains `in_settled`. `None` if the two are too far apart: open them again.
    pub(super) fn hidden(&self, in_flows: u64, in_settled: u64) -> Option<Hidden> {
        let in_flows = if in_flows == in_settled {
            HiddenHours::default()
        } else {
            let settlement = self.settlement.lock();
            let is_last = settlement.number == in_settled && in_flows + 1 == in_settled;
            is_last.then(|| settlement.hours.clone())?
        };
        let drops = self.drops.lock();
        let in_settled = match drops.is_finished() {
            true => HiddenHours::default(),
            false => drops.last.hours.clone(),
        };
        Some(Hidden {
            in_flows,
            in_settled,
        })
    }
}

fn number_of_settlement(db: &DB) -> Result<u64, StoreError> {
    let settled = settled_family(db).ok_or(StoreError::Closed)?;
    Ok(NumberedHours::read(db, settled, &codec::SETTLEMENT_KEY)?.number)
}

/// All methods that change something require the write lock.
impl Inner {
    pub(super) fn settled(&self) -> Option<&ColumnFamily> {
        settled_family(&self.db)
    }

    /// Does the second ingest of the last steps, if it is missing.
    pub(super) fn finish_steps(&self) -> Result<(), StoreError> {
        self.finish_settlement()?;
        self.finish_last_drop()
    }

    /// Frees the space of files that contain only these hours, whose rows are deleted. Files in level 0, and those
    /// with other hours too, remain until compaction.
    ///
    /// Starts after the first key, so that a file with nothing but the range tombstone remains while other files
    /// contain a part of the range.
    pub(super) fn delete_files_of(&self, family: &ColumnFamily, hours: HourRange) {
        let (from, to) = codec::range_bounds(hours);
        let from = [from.as_slice(), &[0]].concat();
        let freed = self
            .db
            .delete_file_in_range_cf(family, from.as_slice(), to.as_slice());
        if let Err(error) = freed {
            tracing::warn!(%error, "files of deleted rows not deleted; compaction removes them");
        }
    }
}
