//! The ledger: how many flows and bytes each hour has been given, kept beside the rows.
//!
//! It is a second account of the same flows: counted when a batch is decoded, stored in the batch,
//! added up in the tally and in `flows` beside the rows, in the same atomic steps, and never derived
//! from them. [`verify`](super::verify) holds the two against each other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rocksdb::ReadOptions;

use super::error::{StoreError, database};
use super::scan::open_cursor;
use super::{Inner, Store, codec};
use crate::domain::{Hour, Totals};

/// Pause while hours are being dropped, which takes milliseconds.
const DROP_PAUSE: Duration = Duration::from_millis(1);

/// The ledger at one moment between two commits, and what it has to add up to.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    /// Ascending; hours that are too old, and not dropped yet, included.
    pub(super) hours: Vec<(Hour, Totals)>,
    /// What it had at the start, and was given since, without what was dropped.
    pub(super) expected: Totals,
}

impl Store {
    /// Every hour that holds flows, ascending, and what they add up to, at one moment between two
    /// commits.
    pub fn ledger(&self) -> Result<Vec<(Hour, Totals)>, StoreError> {
        let mut hours = read(&self.inner)?.hours;
        let horizon = self.inner.horizon.load(Ordering::SeqCst);
        hours.retain(|(hour, _)| hour.get() >= horizon);
        Ok(hours)
    }
}

pub(super) fn read(inner: &Arc<Inner>) -> Result<Ledger, StoreError> {
    loop {
        let drops = inner.drops.load(Ordering::SeqCst);
        let ledger = read_once(inner)?;
        if drops.is_multiple_of(2) && drops == inner.drops.load(Ordering::SeqCst) {
            return Ok(ledger);
        }
        std::thread::sleep(DROP_PAUSE);
    }
}

/// Right unless hours are dropped meanwhile.
fn read_once(inner: &Arc<Inner>) -> Result<Ledger, StoreError> {
    // The tallies first, then the disk, and the marker decides: as in a scan.
    let (parts, expected): (Vec<_>, _) = {
        let tallies = inner.tallies()?;
        let frozen = tallies.frozen.as_deref().into_iter();
        let both = frozen.chain([&tallies.active]);
        let parts = both.map(|tally| (tally.last(), tally.ledger()));
        (parts.collect(), tallies.expected)
    };
    let (lower, upper) = codec::ledger_bounds();
    let (mut disk, marker) = open_cursor(inner, lower, upper, false)?;
    let mut ledger: BTreeMap<Hour, Totals> = BTreeMap::new();
    while let Some((key, value)) = disk.item() {
        ledger.insert(codec::decode_ledger_key(key)?, codec::decode_totals(value)?);
        disk.advance();
    }
    disk.status().map_err(database("reading the ledger"))?;
    let unflushed = parts.into_iter().filter(|(last, _)| *last > marker);
    for (hour, totals) in unflushed.flat_map(|(_, part)| part) {
        let hour = Hour::new(u64::from(hour)).ok_or(codec::Corrupt("an hour is out of range"))?;
        ledger.entry(hour).or_default().add(totals);
    }
    Ok(Ledger {
        hours: ledger.into_iter().collect(),
        expected,
    })
}

impl Inner {
    /// The ledger's entries on disk for the hours from `first` up to but without `end`, ascending.
    pub(super) fn ledger_on_disk(
        &self,
        first: u32,
        end: u32,
    ) -> Result<Vec<(u32, Totals)>, StoreError> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(codec::ledger_key(first));
        options.set_iterate_upper_bound(codec::ledger_key(end));
        let mut disk = self.db.raw_iterator_cf_opt(self.flows()?, options);
        let mut entries = Vec::new();
        disk.seek_to_first();
        while let Some((key, value)) = disk.item() {
            let hour = codec::decode_ledger_key(key)?;
            entries.push((hour.get(), codec::decode_totals(value)?));
            disk.next();
        }
        disk.status().map_err(database("reading the ledger"))?;
        Ok(entries)
    }
}
