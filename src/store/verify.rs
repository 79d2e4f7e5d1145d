//! Verification: reads everything that is stored, changes nothing, and compares the rows of each hour with the
//! ledger.

use std::fmt;
use std::path::Path;

use rocksdb::{DB, DBRawIteratorWithThreadMode, ReadOptions};

use super::codec::{self, Corrupt};
use super::dir::DataDir;
use super::error::StoreError;
use super::families::{Families, Hidden, HiddenHours, iterate};
use super::journal::Journal;
use super::open::open_database_read_only;
use super::receipts::receipts_family;
use super::rocks::RocksOptions;
use super::tally::Tally;
use super::{StoreOptions, flows_family, marker_in};
use flow::{Counters, Hour, Totals};

/// Size of the tallies in which batches are verified.
const TALLY_BYTES: usize = 32 << 20;

/// Maximum number of faults that are reported one by one: a directory may have as many as it has hours.
pub const FAULTS_MAX: usize = 1000;

/// Result of a verification.
#[derive(Debug, Default)]
pub struct Verified {
    pub hours: u64,
    pub rows: u64,
    /// By the ledger.
    pub flows: u64,
    /// Batches in the journal that the sums do not contain yet.
    pub journal_batches: u64,
    /// The first [`FAULTS_MAX`] faults.
    pub faults: Vec<Fault>,
    /// Number of all faults.
    pub faults_found: u64,
}

/// A fault in the stored data.
#[derive(Debug)]
pub enum Fault {
    /// The sums of the hour's rows differ from the ledger.
    Differs {
        hour: Hour,
        ledger: Totals,
        rows: Totals,
    },
    /// The hour's rows cannot be read or decoded.
    Hour { hour: Hour, why: String },
    /// A fault outside of any hour.
    Other { what: &'static str, why: String },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Differs { hour, ledger, rows } => write!(
                f,
                "hour {hour}: the rows add up to bytes_tx {}, bytes_rx {}; the ledger has {} and {}",
                rows.tx, rows.rx, ledger.tx, ledger.rx
            ),
            Fault::Hour { hour, why } => write!(f, "hour {hour}: {why}"),
            Fault::Other { what, why } => write!(f, "{what}: {why}"),
        }
    }
}

/// Verifies the data directory at `path`, which must not be in use.
///
/// Reads every block of the rows, the ledger and the journal, and verifies its checksum. An hour with a sum that
/// saturated at 2^64-1 cannot agree exactly; its rows may add up to less.
///
/// # Errors
/// If the directory is in use or is not a data directory, or if the database does not open. Faults inside are in
/// [`Verified::faults`].
pub fn verify(path: &Path) -> Result<Verified, StoreError> {
    let dir = DataDir::open_read_only(path)?;
    let db = open_database_read_only(&dir, &RocksOptions::new(&StoreOptions::default()))?;
    let mut verified = Verified::default();
    verified.journal(&db);
    verified.hours(&db)?;
    verified.other_keys(&db)?;
    verified.receipts(&db)?;
    Ok(verified)
}

impl Verified {
    /// Verifies every batch that a start would replay: positions have no gap, and each batch adds up.
    fn journal(&mut self, db: &DB) {
        let mut read = || {
            let marker = marker_in(db)?;
            let mut tally = Tally::new(marker);
            Journal::new(db)?.replay(marker, |batch| {
                tally.replay(batch)?;
                self.journal_batches += 1;
                if tally.memory_bytes() > TALLY_BYTES {
                    tally = Tally::new(tally.last());
                }
                Ok(())
            })
        };
        if let Err(error) = read() {
            self.other("the journal", error);
        }
    }

    /// Compares all rows with the ledger, hour by hour. Both ascend, so one entry of each is in memory. An hour that
    /// cannot be read does not hide others.
    fn hours(&mut self, db: &DB) -> Result<(), StoreError> {
        let (lower, upper) = codec::ledger_bounds();
        let mut ledger = iterate(db, flows_family(db)?, lower, upper);
        let mut known = self.next_in_ledger(&mut ledger);
        let hidden = match hidden_hours(db) {
            Ok(hidden) => hidden,
            Err(error) => {
                self.other("the record of the last settlement or drop", error);
                Hidden::default()
            }
        };
        let mut rows = StoredRows::from(db, &hidden, &[])?;
        loop {
            while rows.skip_invalid_key() {
                self.other("the rows", "a key has no hour");
            }
            let found = rows.hour();
            // The ledger may have an earlier hour, whose rows are missing or cannot be read.
            if let (None, Err(error)) = (known, rows.status()) {
                self.other("the rows after the last hour", error);
            }
            let of_both = [found, known.map(|(hour, _)| hour)];
            let Some(hour) = of_both.into_iter().flatten().min() else {
                return Ok(());
            };
            let mut totals = Totals::default();
            if let Some((_, of_ledger)) = known.filter(|(known, _)| *known == hour) {
                totals = of_ledger;
                known = self.next_in_ledger(&mut ledger);
            }
            match self.hour(&mut rows, hour) {
                Err(why) => {
                    self.fault(Fault::Hour { hour, why });
                    let (_, behind) = codec::hour_bounds(hour);
                    rows = StoredRows::from(db, &hidden, &behind)?;
                }
                Ok((sums, saturated)) => {
                    let agrees =
                        |rows: u128, ledger: u128| rows == ledger || saturated && rows < ledger;
                    if !agrees(sums.tx, totals.tx) || !agrees(sums.rx, totals.rx) {
                        let (ledger, rows) = (totals, sums);
                        self.fault(Fault::Differs { hour, ledger, rows });
                    }
                }
            }
            self.hours += 1;
        }
    }

    /// The next ledger entry that can be decoded.
    fn next_in_ledger(
        &mut self,
        ledger: &mut DBRawIteratorWithThreadMode<'_, DB>,
    ) -> Option<(Hour, Totals)> {
        while let Some((key, value)) = ledger.item() {
            let entry = codec::decode_ledger_key(key)
                .and_then(|hour| Ok((hour, codec::decode_totals(value)?)));
            ledger.next();
            match entry {
                Ok((hour, totals)) => {
                    self.flows += totals.flows;
                    return Some((hour, totals));
                }
                Err(error) => self.other("the ledger", error),
            }
        }
        if let Err(error) = ledger.status() {
            self.other("the ledger", error);
        }
        None
    }

    /// The sums of the rows of `hour`, where `rows` is positioned, and whether one is saturated.
    fn hour(&mut self, rows: &mut StoredRows<'_>, hour: Hour) -> Result<(Totals, bool), String> {
        let (mut sums, mut saturated) = (Totals::default(), false);
        while let Some(row) = rows.next_of(hour) {
            let counters = row.map_err(|e| e.to_string())?;
            saturated |= counters.tx == u64::MAX || counters.rx == u64::MAX;
            sums.count(counters);
            self.rows += 1;
        }
        rows.status().map_err(|e| e.to_string())?;
        Ok((sums, saturated))
    }

    /// Verifies that nothing else is stored beside rows, ledger and marker.
    fn other_keys(&mut self, db: &DB) -> Result<(), StoreError> {
        let (ledger, ledger_end) = codec::ledger_bounds();
        let known: [&[u8]; 3] = [&codec::MARKER_KEY, &codec::SETTLEMENT_KEY, &codec::DROP_KEY];
        let families = [Some(flows_family(db)?), db.cf_handle(codec::SETTLED)];
        for family in families.into_iter().flatten() {
            for (lower, upper) in [(&codec::META_PREFIX[..], ledger), (ledger_end, &KEYS_END)] {
                let mut keys = iterate(db, family, lower, upper);
                while let Some(key) = keys.key() {
                    if !known.contains(&key) {
                        self.other("the rows", "a key has no hour");
                    }
                    keys.next();
                }
                if let Err(error) = keys.status() {
                    self.other("what is beside the rows", error);
                }
            }
        }
        Ok(())
    }

    fn receipts(&mut self, db: &DB) -> Result<(), StoreError> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        let mut receipts = db.raw_iterator_cf_opt(receipts_family(db)?, options);
        receipts.seek_to_first();
        while let Some(value) = receipts.value() {
            if let Err(error) = codec::decode_receipt(value) {
                self.other("the receipts of idempotency keys", error);
            }
            receipts.next();
        }
        if let Err(error) = receipts.status() {
            self.other("the receipts of idempotency keys", error);
        }
        Ok(())
    }

    fn other(&mut self, what: &'static str, why: impl fmt::Display) {
        let why = why.to_string();
        self.fault(Fault::Other { what, why });
    }

    fn fault(&mut self, fault: Fault) {
        self.faults_found += 1;
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(fault);
        }
    }
}

/// Beyond all keys.
const KEYS_END: [u8; 5] = [0xFF; 5];

type RawIterator<'a> = DBRawIteratorWithThreadMode<'a, DB>;

/// The rows of both families in key order.
struct StoredRows<'a> {
    families: Vec<(RawIterator<'a>, HiddenHours)>,
}

impl<'a> StoredRows<'a> {
    /// The rows whose keys are `lower` or more.
    fn from(db: &'a DB, hidden: &Hidden, lower: &[u8]) -> Result<StoredRows<'a>, StoreError> {
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
    fn skip_invalid_key(&mut self) -> bool {
        for (rows, _) in &mut self.families {
            if rows.key().is_some_and(|key| hour_of(key).is_none()) {
                rows.next();
                return true;
            }
        }
        false
    }

    fn skip_hidden(&mut self) {
        for (rows, hidden) in &mut self.families {
            while let Some(hour) = rows.key().and_then(hour_of)
                && let Some(range) = hidden.iter().find(|range| range.contains(hour))
            {
                rows.seek(codec::range_bounds(*range).1);
            }
        }
    }

    /// The hour of the next row.
    fn hour(&mut self) -> Option<Hour> {
        self.skip_hidden();
        let hours = self.families.iter();
        hours
            .filter_map(|(rows, _)| rows.key().and_then(hour_of))
            .min()
    }

    /// The next row of `hour`, the next hour.
    fn next_of(&mut self, hour: Hour) -> Option<Result<Counters, Corrupt>> {
        let (lower, _) = codec::hour_bounds(hour);
        let keys = self.families.iter().filter_map(|(rows, _)| rows.key());
        let least = keys.filter(|key| key.starts_with(&lower)).min()?.to_vec();
        Some(codec::validate_key(&least).and_then(|_| self.add_up(&least)))
    }

    /// Adds up the values of `key`, which is next, and moves behind it.
    fn add_up(&mut self, key: &[u8]) -> Result<Counters, Corrupt> {
        let mut sum = Counters::default();
        for (rows, _) in &mut self.families {
            if let Some((_, value)) = rows.item().filter(|(found, _)| *found == key) {
                sum.add(codec::decode_counters(value)?);
                rows.next();
            }
        }
        Ok(sum)
    }

    fn status(&self) -> Result<(), rocksdb::Error> {
        self.families.iter().try_for_each(|(rows, _)| rows.status())
    }
}

/// What the last steps that changed both families hide.
fn hidden_hours(db: &DB) -> Result<Hidden, StoreError> {
    let steps = Families::read(db)?;
    let hidden = steps.hidden(steps.in_flows(db)?, steps.in_settled(db)?);
    Ok(hidden.ok_or(Corrupt("settled rows and others are from different times"))?)
}

/// The hour at the start of a row's key.
fn hour_of(key: &[u8]) -> Option<Hour> {
    codec::split_hour(key).ok().map(|(hour, _)| hour)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use flow::BatchBuilder;

    /// Two hours on disk, a third in the journal.
    fn stored(dir: &Path) -> Store {
        let (store, _) = Store::open(dir, StoreOptions::default()).unwrap();
        for hour in [7, 8, 9] {
            let mut batch = BatchBuilder::with_capacity(0);
            for name in [b"a", b"b"] {
                let hour = Hour::new(hour).unwrap();
                batch.push(
                    hour,
                    [name, b"d", b"v"],
                    Counters {
                        tx: 1,
                        rx: u64::MAX / 2,
                    },
                );
            }
            store.commit(vec![batch.finish()]).unwrap();
            if hour == 8 {
                store.flush().unwrap();
            }
        }
        store
    }

    #[test]
    fn a_verification_finds_all_flows_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        drop(stored(dir.path()));
        let names = || {
            let entries = std::fs::read_dir(dir.path().join("rocks")).unwrap();
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let before = names();
        let verified = verify(dir.path()).unwrap();
        assert!(verified.faults.is_empty(), "{:?}", verified.faults);
        assert_eq!((verified.hours, verified.rows, verified.flows), (2, 4, 4));
        assert_eq!(verified.journal_batches, 1);
        assert_eq!(names(), before);
    }

    #[test]
    fn an_additional_byte_is_found_in_its_hour() {
        let dir = tempfile::tempdir().unwrap();
        let store = stored(dir.path());
        let mut key = Vec::new();
        flow::codec::push_key(&mut key, Hour::new(8).unwrap(), b"b", b"d", b"v");
        let one = codec::encode_counters(Counters { tx: 1, rx: 0 });
        let inner = &store.inner;
        inner
            .db
            .merge_cf(inner.flows().unwrap(), &key, one)
            .unwrap();
        drop(store);
        let faults = verify(dir.path()).unwrap().faults;
        let [fault] = faults.as_slice() else {
            panic!("{faults:?}")
        };
        let text = fault.to_string();
        assert!(
            text.starts_with("hour 8: the rows add up to bytes_tx 3,"),
            "{text}"
        );
    }

    /// One fault more than the report lists.
    #[test]
    fn faults_beyond_the_list_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let store = stored(dir.path());
        let inner = &store.inner;
        let one = codec::encode_totals(Totals {
            tx: 1,
            ..Totals::default()
        });
        for hour in 100..101 + FAULTS_MAX as u64 {
            let key = codec::ledger_key(Hour::new(hour).unwrap());
            inner.db.merge_cf(inner.flows().unwrap(), key, one).unwrap();
        }
        drop(store);
        let verified = verify(dir.path()).unwrap();
        assert_eq!(verified.faults.len(), FAULTS_MAX);
        assert_eq!(verified.faults_found, FAULTS_MAX as u64 + 1);
        assert_eq!(verified.hours, 2 + FAULTS_MAX as u64 + 1);
    }

    #[test]
    fn a_key_without_an_hour_hides_no_row() {
        let dir = tempfile::tempdir().unwrap();
        let store = stored(dir.path());
        let inner = &store.inner;
        let one = codec::encode_counters(Counters { tx: 1, rx: 0 });
        for key in [&b"\0"[..], b"\xFF\xFF\xFF\xFFa"] {
            inner.db.merge_cf(inner.flows().unwrap(), key, one).unwrap();
        }
        drop(store);
        let verified = verify(dir.path()).unwrap();
        let faults: Vec<_> = verified.faults.iter().map(Fault::to_string).collect();
        assert_eq!(faults, ["the rows: a key has no hour"; 2]);
        assert_eq!((verified.hours, verified.rows), (2, 4));
    }

    #[test]
    fn an_hour_without_rows_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let store = stored(dir.path());
        let inner = &store.inner;
        let (lower, upper) = codec::hour_bounds(Hour::new(8).unwrap());
        inner
            .db
            .delete_range_cf(inner.flows().unwrap(), lower, upper)
            .unwrap();
        drop(store);
        let faults = verify(dir.path()).unwrap().faults;
        assert!(
            matches!(faults.as_slice(), [Fault::Differs { hour, .. }] if hour.get() == 8),
            "{faults:?}"
        );
    }

    #[test]
    fn a_directory_in_use_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _store = stored(dir.path());
        assert!(matches!(verify(dir.path()), Err(StoreError::InUse { .. })));
    }
}
