//! Verification: reads everything that is stored, changes nothing, and compares the rows of each hour with the
//! ledger.

mod rows;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use rocksdb::{DB, DBRawIteratorWithThreadMode, ReadOptions};

use super::codec::{self, FlowKey};
use super::dir::DataDir;
use super::error::{StoreError, with_context};
use super::families::{Hidden, iterate, settled_family};
use super::journal::Journal;
use super::open::open_database_read_only;
use super::receipts::receipts_family;
use super::rocks::RocksOptions;
use super::tally::Tally;
use super::tiers::{FinestRows, KeyLayout, Summed, compare_span};
use super::{Span, StoreOptions, Tier, flows_family, marker_in};
use flow::{Hour, HourRange, Totals};
use rows::{StoredRows, hidden_hours};

/// Size of the tallies in which batches are verified.
const TALLY_BYTES: usize = 32 << 20;

/// Maximum number of faults that are reported one by one: a directory may have as many as it has hours.
pub const FAULTS_MAX: usize = 1000;

/// Result of a verification.
#[derive(Debug, Default)]
pub struct Verified {
    pub hours: u64,
    pub rows: u64,
    /// Days, and thirty days, whose sums were compared.
    pub spans: u64,
    /// Those of them that were compared with the ledger.
    thinned: BTreeSet<Span>,
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
    /// The sums of a day or of thirty days differ from those of their hours, or cannot be read.
    Span { span: Span, why: String },
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
            Fault::Span { span, why } => write!(f, "{span}: {why}"),
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
    verified.spans(&db)?;
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
        let finest = match Summed::read(db) {
            Ok(summed) => summed.finest,
            Err(error) => {
                self.other("the records of days", error);
                FinestRows::default()
            }
        };
        let mut rows = StoredRows::from(db, &hidden, &[])?;
        let mut thinned: Option<ThinnedSpan> = None;
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
            let hour = of_both.into_iter().flatten().min();
            let span_of = |hour| Some(finest.tier_of(hour)?.span_of(hour));
            let span = hour.and_then(span_of);
            if let Some(complete) = thinned.take_if(|of| Some(of.span) != span) {
                self.thinned_span(db, complete);
            }
            let Some(hour) = hour else {
                return Ok(());
            };
            let mut totals = Totals::default();
            if let Some((_, of_ledger)) = known.filter(|(known, _)| *known == hour) {
                totals = of_ledger;
                known = self.next_in_ledger(&mut ledger);
            }
            match self.hour(&mut rows, hour) {
                Err(why) => {
                    if let Some(span) = span {
                        // Its rows are missing in the sum, so the sum cannot agree.
                        let of = thinned.get_or_insert_with(|| ThinnedSpan::new(span));
                        of.is_unreadable = true;
                    }
                    self.fault(Fault::Hour { hour, why });
                    let (_, behind) = codec::hour_bounds(hour);
                    rows = StoredRows::from(db, &hidden, &behind)?;
                }
                Ok((sums, saturated)) => {
                    if let Some(span) = span {
                        let of = thinned.get_or_insert_with(|| ThinnedSpan::new(span));
                        of.ledger.add(totals);
                        of.rows.add(sums);
                        of.saturated |= saturated;
                    } else if !agrees(sums, totals, saturated) {
                        let (ledger, rows) = (totals, sums);
                        self.fault(Fault::Differs { hour, ledger, rows });
                    }
                }
            }
            self.hours += 1;
        }
    }

    /// Compares a thinned span, and late rows of its hours, with the ledger entries of its hours.
    fn thinned_span(&mut self, db: &DB, mut of: ThinnedSpan) {
        self.spans += 1;
        let span = of.span;
        self.thinned.insert(span);
        let mut read = || {
            let settled = settled_family(db).ok_or(StoreError::Closed)?;
            let (lower, upper) = codec::span_bounds(span.tier, span.number..span.number + 1);
            let mut rows = iterate(db, settled, &lower, &upper);
            while let Some((key, value)) = rows.item() {
                let (_, suffix) = codec::split_span(key)?;
                FlowKey::decode_names(span.first_hour(), suffix)?;
                let counters = codec::decode_counters(value)?;
                of.saturated |= counters.tx == u64::MAX || counters.rx == u64::MAX;
                of.rows.count(counters);
                rows.next();
            }
            let status = rows.status();
            status.map_err(with_context("reading the rows of a span"))
        };
        let why = match read() {
            Err(error) => error.to_string(),
            Ok(()) if of.is_unreadable || agrees(of.rows, of.ledger, of.saturated) => return,
            Ok(()) => format!(
                "the rows add up to bytes_tx {}, bytes_rx {}; the ledger has {} and {}",
                of.rows.tx, of.rows.rx, of.ledger.tx, of.ledger.rx
            ),
        };
        self.fault(Fault::Span { span, why });
    }

    /// Compares the rows of days and of thirty days with those of their hours.
    fn spans(&mut self, db: &DB) -> Result<(), StoreError> {
        let Some(settled) = db.cf_handle(codec::SETTLED) else {
            return Ok(());
        };
        let (summed, hidden) = match (Summed::read(db), hidden_hours(db)) {
            (Ok(summed), Ok(hidden)) => (summed, hidden),
            (Err(error), _) | (_, Err(error)) => {
                self.other("the records of days", error);
                return Ok(());
            }
        };
        // Some of their hours are being dropped: the next open finishes that.
        let dropped = summed.of_hours(&hidden.in_settled);
        for span in summed.of_hours(&[HourRange::ALL]) {
            let is_thinned = summed.finest.tier_of(span.first_hour()) == Some(span.tier);
            if dropped.contains(&span) {
                continue;
            }
            if is_thinned {
                // `hours` did not see it, since the ledger has none of its hours.
                if !self.thinned.contains(&span) {
                    self.thinned_span(db, ThinnedSpan::new(span));
                }
                continue;
            }
            self.spans += 1;
            let compared = compare_span(db, settled, span, &summed);
            if let Some(why) = compared.unwrap_or_else(|error| Some(error.to_string())) {
                self.fault(Fault::Span { span, why });
            }
        }
        for tier in Tier::ALL {
            let layout = KeyLayout::of(tier);
            let (lower, upper) = layout.bounds(HourRange::ALL);
            let mut rows = iterate(db, settled, &lower, &upper);
            while let Some(key) = rows.key() {
                let Ok((hour, _)) = layout.split(key) else {
                    self.other("the rows of days", "a key cannot be decoded");
                    rows.next();
                    continue;
                };
                let span = tier.span_of(hour);
                if !summed.contains(span) {
                    let why = "it has rows without a record".to_owned();
                    self.fault(Fault::Span { span, why });
                }
                let (_, behind) = layout.bounds(span.hours());
                rows.seek(behind);
            }
            if let Err(error) = rows.status() {
                self.other("the rows of days", error);
            }
        }
        Ok(())
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
                    // Rows and records of spans are verified elsewhere.
                    if let Some(behind) = codec::span_rows_end(key) {
                        keys.seek(behind);
                        continue;
                    }
                    if !known.contains(&key) && !codec::is_record_of_spans(key) {
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

/// A span whose rows are not stored by hour.
struct ThinnedSpan {
    span: Span,
    /// Of its hours.
    ledger: Totals,
    /// Those that are stored by hour nevertheless, since they came late.
    rows: Totals,
    saturated: bool,
    /// An hour of it cannot be read, which was reported.
    is_unreadable: bool,
}

impl ThinnedSpan {
    fn new(span: Span) -> ThinnedSpan {
        ThinnedSpan {
            span,
            ledger: Totals::default(),
            rows: Totals::default(),
            saturated: false,
            is_unreadable: false,
        }
    }
}

/// Whether sums of rows are those of the ledger; less, if one of them saturated.
fn agrees(rows: Totals, ledger: Totals, saturated: bool) -> bool {
    let agrees = |rows: u128, ledger: u128| rows == ledger || saturated && rows < ledger;
    agrees(rows.tx, ledger.tx) && agrees(rows.rx, ledger.rx)
}

/// Beyond all keys.
const KEYS_END: [u8; 5] = [0xFF; 5];

#[cfg(test)]
mod tests;
