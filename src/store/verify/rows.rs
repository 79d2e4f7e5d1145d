//! The rows of both families, hour by hour.

use rocksdb::{DB, DBRawIteratorWithThreadMode};

use crate::store::codec::{self, Corrupt};
use crate::store::error::StoreError;
use crate::store::families::{Families, Hidden, HiddenHours, iterate};
use crate::store::flows_family;
use flow::{Counters, Hour};

type RawIterator<'a> = DBRawIteratorWithThreadMode<'a, DB>;

/// The rows of both families in key order.
pub(super) struct StoredRows<'a> {
    families: Vec<(RawIterator<'a>, HiddenHours)>,
}

impl<'a> StoredRows<'a> {
    /// The rows whose keys are `lower` or more.
    pub(super) fn from(
        db: &'a DB,
        hidden: &Hidden,
        lower: &[u8],
    ) -> Result<StoredRows<'a>, StoreError> {
        let of = |family| iterate(db, family, lower, &codec::META_PREFIX);
        let mut families = vec![(of(flows_family(db)?), hidden.in_flows.clone())];
        if let Some(settled) = db.cf_handle(codec::SETTLED) {
            families.push((of(settled), hidden.in_settled.clone()));
        }
        let mut rows = StoredRows { families };
        rows.skip_hidden();
        Ok(rows)
    }

    /// Skips a key that has no hour. Returns whether there was one.
    pub(super) fn skip_invalid_key(&mut self) -> bool {
        for (rows, _) in &mut self.families {
            if rows.key().is_some_and(|key| hour_of(key).is_none()) {
                rows.next();
                return true;
            }
        }
        false
    }

    pub(super) fn skip_hidden(&mut self) {
        for (rows, hidden) in &mut self.families {
            while let Some(hour) = rows.key().and_then(hour_of)
                && let Some(range) = hidden.iter().find(|range| range.contains(hour))
            {
                rows.seek(codec::range_bounds(*range).1);
            }
        }
    }

    /// The hour of the next row.
    pub(super) fn hour(&mut self) -> Option<Hour> {
        self.skip_hidden();
        let hours = self.families.iter();
        hours
            .filter_map(|(rows, _)| rows.key().and_then(hour_of))
            .min()
    }

    /// The next row of `hour`, the next hour.
    pub(super) fn next_of(&mut self, hour: Hour) -> Option<Result<Counters, Corrupt>> {
        let (lower, _) = codec::hour_bounds(hour);
        let keys = self.families.iter().filter_map(|(rows, _)| rows.key());
        let least = keys.filter(|key| key.starts_with(&lower)).min()?.to_vec();
        Some(codec::validate_key(&least).and_then(|_| self.add_up(&least)))
    }

    /// Adds up the values of `key`, which is next, and moves behind it.
    pub(super) fn add_up(&mut self, key: &[u8]) -> Result<Counters, Corrupt> {
        let mut sum = Counters::default();
        for (rows, _) in &mut self.families {
            if let Some((_, value)) = rows.item().filter(|(found, _)| *found == key) {
                sum.add(codec::decode_counters(value)?);
                rows.next();
            }
        }
        Ok(sum)
    }

    pub(super) fn status(&self) -> Result<(), rocksdb::Error> {
        self.families.iter().try_for_each(|(rows, _)| rows.status())
    }
}

/// What the last steps that changed both families hide.
pub(super) fn hidden_hours(db: &DB) -> Result<Hidden, StoreError> {
    let steps = Families::read(db)?;
    let hidden = steps.hidden(steps.in_flows(db)?, steps.in_settled(db)?);
    Ok(hidden.ok_or(Corrupt("settled rows and others are from different times"))?)
}

/// The hour at the start of a row's key.
pub(super) fn hour_of(key: &[u8]) -> Option<Hour> {
    codec::split_hour(key).ok().map(|(hour, _)| hour)
}
