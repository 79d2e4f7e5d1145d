//! The tally: sums in memory of the flows since the last flush, updated in place.
//!
//! There is one hash table per hour, so a read copies and sorts only its hour. A table uses open addressing with
//! 8-byte slots (32 bits of hash, 32 bits of offset) into one arena of entries. A hit costs two cache misses, growth
//! needs no rehashing, and a copy for a reader is one `memcpy`.

use std::collections::HashMap;
use std::time::Instant;

use super::arena::{self, ENTRY_HEADER_BYTES, PREFETCH_ENTRIES};
use super::codec::{Corrupt, Receipt};
use super::position::Position;
use super::run::SortedRun;
use super::spare::SpareBuffers;
use flow::{Batch, Counters, Hour, HourRange, IdempotencyKey, KeyHasher, Totals, ValidBatch};

/// A tally may have as many hours as flows.
const SLOTS_MIN: usize = 2;

/// Approximate memory of an hour without its names: its element in a vector whose capacity is up to a fourth larger
/// than needed, its map entry, and the allocator's overhead for slots and arena.
pub(super) const HOUR_MEMORY_BYTES: usize = size_of::<HourTally>() * 5 / 4 + 64;

/// Memory of a batch, and approximately its growth of a tally without its keys. If each flow has its own hour, that
/// exceeds the size of the batch.
pub fn batch_memory_bytes(batch: &Batch) -> usize {
    batch.bytes().len() + batch.hour_count() * HOUR_MEMORY_BYTES
}

/// Sums of one hour.
#[derive(Debug)]
struct HourTally {
    hour: Hour,
    /// 0 when free, else hash << 32 | offset + 1. The table's index is the hash's top bits.
    slots: Vec<u64>,
    keys: usize,
    arena: Vec<u8>,
    /// Totals by the ledgers of the batches. Not computed from the arena, so that the two can be compared.
    totals: Totals,
}

impl HourTally {
    fn new(hour: Hour) -> HourTally {
        HourTally {
            hour,
            slots: vec![0; SLOTS_MIN],
            keys: 0,
            arena: Vec::new(),
            totals: Totals::default(),
        }
    }

    fn memory_bytes(&self) -> usize {
        HOUR_MEMORY_BYTES + self.slots.capacity() * 8 + self.arena.capacity()
    }

    #[inline]
    fn first_slot(&self, hash: u32) -> u64 {
        self.slots[(hash >> (32 - self.slots.len().trailing_zeros())) as usize]
    }

    /// Prefetches the entry of `slot`, if there is one.
    #[inline]
    fn prefetch(&self, slot: u64) -> u8 {
        arena::prefetch(&self.arena, (slot as u32).saturating_sub(1) as usize)
    }

    /// Adds `counters` to the entry of `suffix`; a table that grows takes its buffers from `spare`. Adds the growth to
    /// `memory_bytes`. Returns whether a sum saturated.
    #[inline]
    fn add(
        &mut self,
        hash: u32,
        suffix: &[u8],
        counters: Counters,
        (spare, memory_bytes): (&mut SpareBuffers, &mut usize),
    ) -> bool {
        let mask = self.slots.len() - 1;
        let mut index = (hash >> (32 - self.slots.len().trailing_zeros())) as usize;
        loop {
            let slot = self.slots[index];
            if slot == 0 {
                let before = self.memory_bytes();
                self.insert(index, hash, suffix, counters, spare);
                *memory_bytes += self.memory_bytes() - before;
                return false;
            }
            if (slot >> 32) as u32 == hash {
                let entry = &mut self.arena[slot as u32 as usize - 1..];
                if arena::suffix(entry) == suffix {
                    let mut sum = arena::counters(entry);
                    let saturated = sum.add(counters);
                    arena::set_counters(entry, sum);
                    return saturated;
                }
            }
            index = (index + 1) & mask;
        }
    }

    #[cold]
    fn insert(
        &mut self,
        index: usize,
        hash: u32,
        suffix: &[u8],
        counters: Counters,
        spare: &mut SpareBuffers,
    ) {
        let offset = arena::next_offset(&self.arena);
        self.slots[index] = u64::from(hash) << 32 | u64::from(offset);
        if self.arena.capacity() - self.arena.len() < ENTRY_HEADER_BYTES + suffix.len() {
            spare.grow_arena(&mut self.arena);
        }
        arena::push(&mut self.arena, suffix, counters);
        self.keys += 1;
        if self.keys * 8 > self.slots.len() * 5 {
            self.grow(spare);
        }
    }

    fn grow(&mut self, spare: &mut SpareBuffers) {
        let slots = spare.slots(self.slots.len() * 2);
        let old = std::mem::replace(&mut self.slots, slots);
        let (mask, shift) = (self.slots.len() - 1, 32 - self.slots.len().trailing_zeros());
        for &slot in old.iter().filter(|&&slot| slot != 0) {
            let mut index = ((slot >> 32) as u32 >> shift) as usize;
            while self.slots[index] != 0 {
                index = (index + 1) & mask;
            }
            self.slots[index] = slot;
        }
    }
}

/// Sums of the flows at journal positions `first ..= last`.
#[derive(Debug)]
pub struct Tally {
    hours: Vec<HourTally>,
    /// Index in `hours`.
    by_hour: HashMap<Hour, u32, foldhash::fast::RandomState>,
    hasher: KeyHasher,
    /// Its last journal position, or the position before its first batch while it is empty.
    last: Position,
    /// When its oldest flow arrived.
    since: Option<Instant>,
    /// Bytes of its batches: what a restart would replay.
    journal_bytes: usize,
    /// Memory of its tables.
    memory_bytes: usize,
    /// Receipts of batches from an external journal. They are written when the tally is flushed, since they cannot be
    /// written with the journal.
    receipts: HashMap<IdempotencyKey, Receipt>,
    /// Buffers for its tables to grow into. Not part of `memory_bytes`.
    spare: SpareBuffers,
}

/// Memory of a receipt without its key.
const RECEIPT_BYTES: usize = 2 * size_of::<(IdempotencyKey, Receipt)>();

impl Tally {
    /// An empty tally whose first batch will be the one after `last`.
    pub fn new(last: Position) -> Tally {
        Tally {
            hours: Vec::new(),
            by_hour: HashMap::default(),
            hasher: KeyHasher::of_process(),
            last,
            since: None,
            journal_bytes: 0,
            memory_bytes: 0,
            receipts: HashMap::new(),
            spare: SpareBuffers::default(),
        }
    }

    /// Replaces it by an empty one, which inherits its spare buffers. Those and the tally that is returned have at most
    /// `bytes_max` together, or no spare buffers remain.
    pub(super) fn freeze(&mut self, bytes_max: usize) -> Tally {
        let mut spare = std::mem::take(&mut self.spare);
        spare.shrink(bytes_max.saturating_sub(self.memory_bytes));
        let mut fresh = Tally::new(self.last);
        fresh.spare = spare;
        std::mem::replace(self, fresh)
    }

    /// Takes the buffers of a tally that has been flushed, up to `bytes_max` with those that it has.
    pub(super) fn reuse(&mut self, flushed: Tally, bytes_max: usize) {
        for hour in flushed.hours {
            self.spare.keep_slots(hour.slots);
            self.spare.keep_arena(hour.arena);
        }
        self.spare.shrink(bytes_max);
    }

    /// Frees the spare buffers.
    pub(super) fn free_spare(&mut self) {
        self.spare = SpareBuffers::default();
    }

    /// Sets the last position: an external journal may skip positions, or contain batches that do not count.
    pub(super) fn skip_to(&mut self, last: Position) {
        self.last = last;
        // Without a start time, no flush would become due, and callers would wait for one forever.
        self.since.get_or_insert_with(Instant::now);
    }

    pub(super) fn receipts(&self) -> &HashMap<IdempotencyKey, Receipt> {
        &self.receipts
    }

    pub(super) fn add_receipt(&mut self, key: IdempotencyKey, receipt: Receipt) {
        self.memory_bytes += key.as_bytes().len() + RECEIPT_BYTES;
        self.since.get_or_insert_with(Instant::now);
        self.receipts.insert(key, receipt);
    }

    pub(super) fn last(&self) -> Position {
        self.last
    }

    /// When its oldest flow arrived; `None` while it is empty.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    pub(super) fn journal_bytes(&self) -> usize {
        self.journal_bytes
    }

    /// Memory of its tables.
    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Number of (hour, key) pairs.
    pub(super) fn keys(&self) -> usize {
        self.hours.iter().map(|h| h.keys).sum()
    }

    /// Adds the batch at the next position. Returns how many additions saturated. It cannot fail, since the batch is
    /// durable by now.
    pub fn add(&mut self, batch: &Batch) -> u64 {
        self.add_valid(&batch.valid())
    }

    /// Like [`Tally::add`], for a batch from the journal: validates every key and compares the batch's ledger with
    /// its records before anything is added. Returns the number of flows.
    pub(super) fn replay(&mut self, bytes: &[u8]) -> Result<usize, Corrupt> {
        let batch = ValidBatch::validate(bytes, &self.hasher)?;
        self.add_valid(&batch);
        Ok(batch.hashes().len())
    }

    fn add_valid(&mut self, batch: &ValidBatch<'_>) -> u64 {
        let mut saturated = 0;
        let mut at = usize::MAX; // of the previous hour: most batches have one or two
        let mut records = batch.records().zip(batch.hashes());
        let mut some = Vec::with_capacity(PREFETCH_ENTRIES);
        loop {
            some.clear();
            for (record, &hash) in records.by_ref().take(PREFETCH_ENTRIES) {
                if self.hours.get(at).is_none_or(|h| h.hour != record.hour) {
                    at = self.hour_at(record.hour);
                }
                some.push((at, hash, record.suffix, record.counters));
            }
            if some.is_empty() {
                break;
            }
            // Prefetch all slots, then all entries: see [`PREFETCH_ENTRIES`].
            let mut any = 0;
            let mut slots = [(0, 0); PREFETCH_ENTRIES];
            for (slot, &(at, hash, ..)) in slots.iter_mut().zip(&some) {
                *slot = (at, self.hours[at].first_slot(hash));
            }
            for &(at, slot) in &slots[..some.len()] {
                any |= self.hours[at].prefetch(slot);
            }
            std::hint::black_box(any);
            for &(at, hash, suffix, counters) in &some {
                let hour = &mut self.hours[at];
                let memory = (&mut self.spare, &mut self.memory_bytes);
                saturated += u64::from(hour.add(hash, suffix, counters, memory));
            }
        }
        for (hour, totals) in batch.ledger() {
            let at = self.hour_at(hour);
            self.hours[at].totals.add(totals);
        }
        self.last = self.last.next();
        self.journal_bytes += batch.bytes().len();
        self.since.get_or_insert_with(Instant::now);
        saturated
    }

    fn hour_at(&mut self, hour: Hour) -> usize {
        let new = self.hours.len();
        let at = *self.by_hour.entry(hour).or_insert(new as u32) as usize;
        if at == new {
            let tally = HourTally::new(hour);
            self.memory_bytes += tally.memory_bytes();
            // With hundreds of thousands of hours, a vector that doubles would take much of a tally.
            if self.hours.capacity() == new {
                self.hours.reserve_exact(new / 4 + 1);
            }
            self.hours.push(tally);
        }
        at
    }

    /// Its hours in ascending order, each with its rows in key order.
    pub fn runs(&self) -> impl Iterator<Item = (Hour, SortedRun<&[u8]>)> {
        let mut hours: Vec<&HourTally> = self.hours.iter().collect();
        hours.sort_unstable_by_key(|h| h.hour);
        hours
            .into_iter()
            .map(|h| (h.hour, SortedRun::sort(h.arena.as_slice(), h.keys)))
    }

    /// Its ledger entries, unordered.
    pub(super) fn ledger(&self) -> impl Iterator<Item = (Hour, Totals)> {
        self.hours.iter().map(|h| (h.hour, h.totals))
    }

    /// Its hours, ascending.
    pub(super) fn hours(&self) -> Vec<Hour> {
        let mut hours: Vec<_> = self.hours.iter().map(|h| h.hour).collect();
        hours.sort_unstable();
        hours
    }

    /// The ledger's totals of `hour`.
    pub(super) fn totals(&self, hour: Hour) -> Totals {
        let at = self.by_hour.get(&hour);
        at.map_or_else(Totals::default, |&at| self.hours[at as usize].totals)
    }

    /// Number of its hours that are in `hours`.
    pub(super) fn hours_in(&self, hours: HourRange) -> usize {
        match hours.only() {
            Some(hour) => usize::from(self.by_hour.contains_key(&hour)),
            None => (self.hours.iter().filter(|h| hours.contains(h.hour))).count(),
        }
    }

    /// For each of `hours` that has rows, in no order: its arena, to be sorted by [`SortedRun::sort`], and the number of
    /// rows.
    pub(super) fn hour_arenas(
        &self,
        hours: HourRange,
    ) -> impl Iterator<Item = (Hour, &[u8], usize)> {
        let some = match hours.only() {
            Some(hour) => match self.by_hour.get(&hour) {
                Some(&at) => std::slice::from_ref(&self.hours[at as usize]),
                None => &[],
            },
            None => self.hours.as_slice(),
        };
        some.iter()
            .filter(move |h| hours.contains(h.hour) && h.keys > 0)
            .map(|h| (h.hour, h.arena.as_slice(), h.keys))
    }
}

/// Checks an invariant for arbitrary bytes: either replay rejects them, or they add up to their own ledger. Returns
/// whether they were accepted. For tests and fuzzing.
#[cfg(any(test, fuzzing))]
pub fn assert_replay_adds_up(bytes: &[u8]) -> bool {
    let mut tally = Tally::new(Position::ZERO);
    let Ok(flows) = tally.replay(bytes) else {
        return false;
    };
    let mut ledger: Vec<_> = tally.ledger().collect();
    ledger.sort_unstable_by_key(|(hour, _)| *hour);
    assert_eq!(
        ledger.iter().map(|(_, t)| t.flows).sum::<u64>(),
        flows as u64
    );
    let (mut rows, mut saturated) = (std::collections::BTreeMap::new(), false);
    for (hour, mut run) in tally.runs() {
        let sums: &mut Totals = rows.entry(hour).or_default();
        while let Some((_, counters)) = run.peek() {
            saturated |= counters.tx == u64::MAX || counters.rx == u64::MAX;
            sums.count(counters);
            run.advance();
        }
    }
    for (hour, totals) in ledger {
        let sums = rows.remove(&hour).unwrap_or_default();
        assert!(
            saturated || (sums.tx, sums.rx) == (totals.tx, totals.rx),
            "hour {hour}"
        );
    }
    assert!(rows.is_empty());
    true
}

#[cfg(test)]
mod tests;
