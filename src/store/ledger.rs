//! The ledger: how many flows and bytes each hour has been given, kept beside the rows.
//!
//! It is a second account of the same flows: counted when a batch is decoded, stored in the batch,
//! added up in the tally and in `flows` beside the rows, in the same atomic steps, and never derived
//! from them. [`verify`](super::verify) holds the two against each other.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::{StoreError, database};
use super::scan::open_cursor;
use super::{Inner, Store, codec};
use crate::domain::{Hour, Totals};

impl Store {
    /// Every hour that holds flows, ascending, and what they add up to, at one moment between two
    /// commits.
    pub fn ledger(&self) -> Result<Vec<(Hour, Totals)>, StoreError> {
        read(&self.inner)
    }
}

fn read(inner: &Arc<Inner>) -> Result<Vec<(Hour, Totals)>, StoreError> {
    // The tallies first, then the disk, and the marker decides: as in a scan.
    let parts: Vec<_> = {
        let tallies = inner.tallies()?;
        let frozen = tallies.frozen.as_deref().into_iter();
        let both = frozen.chain([&tallies.active]);
        both.map(|tally| (tally.last(), tally.ledger())).collect()
    };
    let (lower, upper) = codec::ledger_bounds();
    let (mut disk, marker) = open_cursor(inner, lower, upper)?;
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
    Ok(ledger.into_iter().collect())
}
