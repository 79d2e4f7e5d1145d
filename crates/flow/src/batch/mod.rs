//! A batch: the flows of one POST in the encoding that the journal stores. It is built once from the request body and
//! never converted.

mod age;
pub mod codec;
mod split;
mod valid;

use foldhash::SharedSeed;
use foldhash::fast::SeedableRandomState;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};

use crate::{Counters, Hour, IdempotencyKey, Notes, Totals};
use codec::{Corrupt, HOUR_BYTES, Record, Records};
pub use valid::{ValidBatch, ValidRecord};

/// Hashes the part of a flow key after its hour. Seeded randomly in each process, so that no sender can construct names
/// that collide.
#[derive(Clone, Debug)]
pub struct KeyHasher(SeedableRandomState);

impl KeyHasher {
    pub fn of_process() -> KeyHasher {
        static SEED: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
        let seed = *SEED.get_or_init(|| foldhash::fast::RandomState::default().hash_one(0));
        KeyHasher(SeedableRandomState::with_seed(
            seed,
            SharedSeed::global_random(),
        ))
    }

    #[inline]
    pub fn hash(&self, suffix: &[u8]) -> u32 {
        let mut hasher = self.0.build_hasher();
        hasher.write(suffix);
        (hasher.finish() >> 32) as u32
    }
}

/// Validated flows, ready for the journal and the tally.
#[derive(Clone, Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Hashes of the records' keys after their hours: computed while the key is in cache and on the request's thread,
    /// so that the single committer does not need to.
    hashes: Vec<u32>,
    receipt: Option<(IdempotencyKey, u128)>,
    /// Boxed, since most batches have none.
    notes: Option<Box<Notes>>,
    /// Flows that were removed because they are too old.
    too_old: u64,
}

impl Batch {
    /// Sets the idempotency key, under which the batch counts once.
    pub fn with_key(mut self, key: IdempotencyKey) -> Batch {
        let fingerprint = xxhash_rust::xxh3::xxh3_128(&self.bytes);
        self.receipt = Some((key, fingerprint));
        self
    }

    /// Sets a key that is made of the flows, so that equal batches count once. For senders that cannot make keys.
    pub fn with_content_key(mut self) -> Batch {
        let fingerprint = xxhash_rust::xxh3::xxh3_128(&self.bytes);
        self.receipt = Some((IdempotencyKey::of_content(fingerprint), fingerprint));
        self
    }

    /// Like [`Batch::with_content_key`], with a key that is made of `body`, from which the batch was decoded. For bodies
    /// that have more than the flows, such as the times of two reports whose flows are equal.
    pub fn with_content_key_of(self, body: &[u8]) -> Batch {
        let fingerprint = xxhash_rust::xxh3::xxh3_128(body);
        self.with_key(IdempotencyKey::of_content(fingerprint))
    }

    /// Sets the notes to store with the receipt of this batch, which has a key.
    pub fn with_notes(mut self, notes: Notes) -> Batch {
        self.notes = (!notes.is_empty()).then(|| Box::new(notes));
        self
    }

    /// Decodes the [`bytes`](Batch::bytes) of a batch from an external journal.
    ///
    /// # Errors
    /// If they are not a batch, or its flows do not add up to its ledger.
    pub fn decode(bytes: Vec<u8>) -> Result<Batch, Corrupt> {
        let hashes = ValidBatch::validate(&bytes, &KeyHasher::of_process())?.into_hashes();
        Ok(Batch {
            bytes,
            hashes,
            receipt: None,
            notes: None,
            too_old: 0,
        })
    }

    /// Its idempotency key and the fingerprint of its flows.
    pub fn receipt(&self) -> Option<(&IdempotencyKey, u128)> {
        self.receipt
            .as_ref()
            .map(|(key, fingerprint)| (key, *fingerprint))
    }

    /// Notes to store with its receipt.
    pub fn notes(&self) -> Option<&Notes> {
        self.notes.as_deref()
    }

    /// The flows whose numbers, from 0, are in `range`, as a batch without a key.
    ///
    /// # Errors
    /// Cannot fail for a batch that was built or decoded.
    pub fn part(&self, range: std::ops::Range<usize>) -> Result<Batch, Corrupt> {
        let mut builder = BatchBuilder::with_capacity(self.bytes.len());
        let records = Records::new(&self.bytes)?;
        for record in records.skip(range.start).take(range.len()) {
            let Record { key, counters, .. } = record?;
            let key = codec::FlowKey::decode(key)?;
            let names = [&key.src_app, &key.dest_app, &key.vpc_id];
            builder.push(key.hour, names.map(|name| name.as_bytes()), counters);
        }
        Ok(builder.finish())
    }

    /// Number of flows that were removed because they were too old.
    pub fn too_old(&self) -> u64 {
        self.too_old
    }

    /// Its encoding; reading it cannot fail.
    #[inline]
    pub fn valid(&self) -> ValidBatch<'_> {
        ValidBatch::of_parts(&self.bytes, &self.hashes)
    }

    /// The stored encoding (see [`codec`]).
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of flows.
    pub fn flows(&self) -> usize {
        self.hashes.len()
    }

    /// The hours of its flows, each once.
    pub fn hours(&self) -> impl Iterator<Item = Hour> {
        self.ledger().map(|(hour, _)| hour)
    }

    /// The index and hour of the first flow whose hour matches. Reads all flows before it.
    pub fn find_hour(&self, matches: impl Fn(Hour) -> bool) -> Option<(usize, Hour)> {
        let records = Records::new(&self.bytes).ok()?;
        let mut flows = records.enumerate().filter_map(|(index, record)| {
            let hour = codec::validate_key(record.ok()?.key).ok()?;
            Some((index, hour))
        });
        flows.find(|(_, hour)| matches(*hour))
    }

    pub fn hashes(&self) -> &[u32] {
        &self.hashes
    }

    /// Its ledger: totals by hour.
    pub fn ledger(&self) -> impl Iterator<Item = (Hour, Totals)> + use<'_> {
        self.valid().ledger()
    }

    /// Number of different hours.
    pub fn hour_count(&self) -> usize {
        codec::batch_ledger(&self.bytes).map_or(0, |entries| entries.len())
    }
}

/// Builds a [`Batch`] flow by flow.
#[derive(Debug)]
pub struct BatchBuilder {
    bytes: Vec<u8>,
    hashes: Vec<u32>,
    hasher: KeyHasher,
    ledger: BatchLedger,
}

impl BatchBuilder {
    /// Reserves `bytes` bytes for the encoding; it grows if needed.
    pub fn with_capacity(bytes: usize) -> BatchBuilder {
        let mut builder = BatchBuilder {
            bytes: Vec::with_capacity(bytes),
            hashes: Vec::with_capacity(bytes / 40),
            hasher: KeyHasher::of_process(),
            ledger: BatchLedger::default(),
        };
        codec::begin_batch(&mut builder.bytes);
        builder
    }

    /// Upper bound of the bytes that a flow with these names adds to the encoding, if no other flow has its hour.
    pub fn flow_bytes_max(names: [&[u8]; 3]) -> usize {
        let name_bytes = |name: &[u8]| name.len() + memchr::memchr_iter(0, name).count() + 1;
        let key_bytes = HOUR_BYTES + names.map(name_bytes).iter().sum::<usize>();
        codec::RECORD_HEAD_BYTES_MAX + key_bytes + codec::BATCH_TOTALS_BYTES
    }

    /// Number of flows so far.
    pub fn flows(&self) -> usize {
        self.hashes.len()
    }

    /// Adds one flow. The caller has checked that the names are UTF-8 of at most
    /// [`NAME_BYTES_MAX`](crate::NAME_BYTES_MAX) bytes.
    pub fn push(&mut self, hour: Hour, names: [&[u8]; 3], counters: Counters) {
        let escapes: usize = names
            .iter()
            .map(|name| name.iter().filter(|&&byte| byte == 0).count())
            .sum();
        if escapes == 0 {
            return self.push_plain(hour, names, counters);
        }
        let [src_app, dest_app, vpc_id] = names;
        self.ledger.count(hour, counters);
        let key_at = self.push_head(names, escapes, counters);
        codec::push_key(&mut self.bytes, hour, src_app, dest_app, vpc_id);
        self.push_hash(key_at);
    }

    /// Like [`BatchBuilder::push`], for names without a NUL.
    #[inline]
    pub fn push_plain(&mut self, hour: Hour, names: [&[u8]; 3], counters: Counters) {
        self.ledger.count(hour, counters);
        let key_at = self.push_head(names, 0, counters);
        codec::push_plain_key(&mut self.bytes, hour, names);
        self.push_hash(key_at);
    }

    #[inline]
    fn push_head(&mut self, names: [&[u8]; 3], escapes: usize, counters: Counters) -> usize {
        let [src_app, dest_app, vpc_id] = names;
        let key_bytes =
            HOUR_BYTES + src_app.len() + dest_app.len() + vpc_id.len() + names.len() + escapes;
        codec::push_record_head(&mut self.bytes, key_bytes, counters);
        self.bytes.len()
    }

    #[inline]
    fn push_hash(&mut self, key_at: usize) {
        let hash = self.hasher.hash(&self.bytes[key_at + HOUR_BYTES..]);
        self.hashes.push(hash);
    }

    pub fn finish(mut self) -> Batch {
        codec::end_batch(
            &mut self.bytes,
            self.hashes.len() as u32,
            self.ledger.entries(),
        );
        Batch {
            bytes: self.bytes,
            hashes: self.hashes,
            receipt: None,
            notes: None,
            too_old: 0,
        }
    }
}

/// Totals by hour, each hour once, in the order of their first flows.
#[derive(Debug)]
pub struct BatchLedger {
    entries: Vec<HourTotals>,
    /// Index of an hour's entry by the last bits of the hour: a guess that the entry itself confirms.
    guesses: [u32; GUESSES],
    by_hour: HashMap<Hour, u32, foldhash::fast::RandomState>,
}

/// [`Totals`] of an hour in half the memory, since a body may have as many hours as flows. A batch has fewer than
/// 2^32 flows.
#[derive(Clone, Copy, Debug)]
struct HourTotals {
    hour: Hour,
    flows: u32,
    tx: u64,
    rx: u64,
    /// Number of times that each sum has overflowed 2^64.
    tx_high: u32,
    rx_high: u32,
}

impl HourTotals {
    #[inline]
    fn count(&mut self, flow: Counters) {
        let (tx, tx_over) = self.tx.overflowing_add(flow.tx);
        let (rx, rx_over) = self.rx.overflowing_add(flow.rx);
        self.flows += 1;
        (self.tx, self.rx) = (tx, rx);
        self.tx_high += u32::from(tx_over);
        self.rx_high += u32::from(rx_over);
    }

    fn totals(&self) -> Totals {
        let original = |high: u32, low: u64| u128::from(high) << 64 | u128::from(low);
        Totals {
            flows: u64::from(self.flows),
            tx: original(self.tx_high, self.tx),
            rx: original(self.rx_high, self.rx),
        }
    }
}

/// Hours of a batch are mostly near one another.
const GUESSES: usize = 64;

impl Default for BatchLedger {
    fn default() -> BatchLedger {
        BatchLedger {
            entries: Vec::new(),
            guesses: [0; GUESSES],
            by_hour: HashMap::default(),
        }
    }
}

impl BatchLedger {
    pub fn hours(&self) -> usize {
        self.entries.len()
    }

    pub fn entries(&self) -> impl Iterator<Item = (Hour, Totals)> {
        self.entries.iter().map(|of| (of.hour, of.totals()))
    }

    #[inline]
    pub fn count(&mut self, hour: Hour, counters: Counters) {
        let guess = self.guesses[hour.get() as usize % GUESSES] as usize;
        match self.entries.get_mut(guess) {
            Some(of) if of.hour == hour => of.count(counters),
            _ => self.count_slow(hour, counters),
        }
    }

    #[cold]
    fn count_slow(&mut self, hour: Hour, counters: Counters) {
        let at = *self.by_hour.entry(hour).or_insert_with(|| {
            self.entries.push(HourTotals {
                hour,
                flows: 0,
                tx: 0,
                rx: 0,
                tx_high: 0,
                rx_high: 0,
            });
            self.entries.len() as u32 - 1
        });
        self.guesses[hour.get() as usize % GUESSES] = at;
        self.entries[at as usize].count(counters);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_an_hour_may_exceed_64_bits() {
        let mut ledger = BatchLedger::default();
        let flow = |tx, rx| Counters { tx, rx };
        let hour = |hour| Hour::new(hour).unwrap();
        let mut expected = Totals::default();
        for counters in [flow(u64::MAX, 1), flow(u64::MAX, u64::MAX), flow(2, 3)] {
            ledger.count(hour(7), counters);
            expected.count(counters);
        }
        ledger.count(hour(8), flow(1, 1));
        let entries: Vec<_> = ledger.entries().collect();
        assert_eq!(entries[0], (hour(7), expected));
        assert_eq!((entries[1].0, entries[1].1.flows), (hour(8), 1));
        assert_eq!(size_of::<HourTotals>(), 32);
    }
}
