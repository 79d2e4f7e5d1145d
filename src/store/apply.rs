//! Applies batches from an external journal (a Kafka partition). They are already durable there, so they are only
//! added to the sums, and the marker records the position.
//!
//! Positions increase, possibly with gaps. After a crash, everything beyond the marker is read again, and each batch
//! still counts once: sums and marker are in the same file, and each receipt records the position of its batch.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Store;
use super::commit::hours_bytes;
use super::dedupe::{Arrival, CommitGroup, Outcome};
use super::error::StoreError;
use super::position::Position;
use flow::Batch;

/// A batch at its position in an external journal. Several batches can share a position.
#[derive(Clone, Debug)]
pub struct JournalEntry {
    pub position: Position,
    /// When it was written to the journal, in seconds since the epoch. Every read returns the same time.
    pub time_s: u64,
    pub batch: Batch,
}

/// Counts of what [`Store::apply`] did with its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Batches that were counted, and their flows.
    pub batches: u64,
    pub flows: u64,
    /// Flows of these batches that were too old to count.
    pub too_old: u64,
    /// Batches that had been counted before under their key.
    pub repeated: u64,
    /// Batches whose key had been used for other flows: not counted.
    pub reused: u64,
}

impl Store {
    /// The last position in the sums, in memory or on disk. The journal must be read from the next one.
    pub fn position(&self) -> Result<Position, StoreError> {
        Ok(self.inner.tallies()?.active().last())
    }

    /// The last position in the sums on disk. A restart reads the journal from the next one.
    #[cfg(test)]
    fn position_on_disk(&self) -> Result<Position, StoreError> {
        Ok(self.inner.tallies()?.flushed())
    }

    /// Waits until [`Store::apply`] has room for more entries.
    ///
    /// # Errors
    /// [`StoreError::WriteStalled`] after waiting [`StoreOptions::stall_max`](super::StoreOptions::stall_max) for a
    /// flush.
    pub fn wait_for_room(&self) -> Result<(), StoreError> {
        self.make_room(0).map(drop)
    }

    /// Adds entries to the sums, in order; `entries` must contain all batches of a position. Entries up to
    /// [`Store::position`] are already in the sums and are skipped. All entries become visible together when this
    /// returns.
    ///
    /// # Errors
    /// [`StoreError::WriteStalled`] after waiting [`StoreOptions::stall_max`](super::StoreOptions::stall_max) for a
    /// flush; or a receipt cannot be read. No entry was added then.
    pub fn apply(&self, entries: Vec<JournalEntry>) -> Result<Applied, StoreError> {
        let inner = &*self.inner;
        // Copying a batch takes time, so do it before taking locks.
        let mut entries: Vec<_> = entries
            .into_iter()
            .map(|entry| JournalEntry {
                batch: self.remove_too_old(entry.batch),
                ..entry
            })
            .collect();
        let _one_at_a_time = inner.commit.lock().map_err(|_| StoreError::Closed)?;
        let begun = Instant::now();
        self.make_room(hours_bytes(entries.iter().map(|entry| &entry.batch)))?;
        let mut group = {
            let tallies = inner.tallies()?;
            let before = tallies.active().last();
            entries.retain(|entry| entry.position > before);
            let mut group = CommitGroup::new(self, &tallies);
            group.copy_receipts(&tallies, entries.iter().map(|entry| &entry.batch));
            group
        };
        // First everything that can fail: if only some batches of a position were added, the rest would be skipped when
        // the position is read again. The disk is read without the lock of the tallies.
        let mut applied = Applied::default();
        let mut classified = Vec::with_capacity(entries.len());
        for entry in entries {
            let arrival = Arrival::in_external_journal(entry.position, entry.time_s);
            let (outcome, batch) = group.classify(entry.batch, arrival);
            applied.count(outcome)?;
            classified.push((entry.position, arrival, batch));
        }
        let mut tallies = inner.tallies()?;
        for (position, arrival, batch) in classified {
            let Some(batch) = batch else {
                tallies.active_mut().skip_to(position);
                continue;
            };
            tallies.active_mut().skip_to(position.previous());
            let saturated = tallies.add(&batch);
            inner.saturated.fetch_add(saturated, Ordering::Relaxed);
            if let Some((key, receipt)) = arrival.receipt(&batch) {
                tallies.active_mut().add_receipt(key, receipt);
            }
        }
        inner.retention.update(tallies.newest());
        if inner.is_full(tallies.active()) {
            inner.flusher.wake();
        }
        drop(tallies);
        inner.pace(begun);
        Ok(applied)
    }
}

impl Applied {
    fn count(&mut self, outcome: Outcome) -> Result<(), StoreError> {
        match outcome {
            Outcome::Counted { flows, too_old, .. } => {
                self.batches += 1;
                self.flows += flows;
                self.too_old += too_old;
            }
            Outcome::Replayed { .. } => self.repeated += 1,
            // Batches of an external journal have no notes, so none excludes them.
            Outcome::KeyReused | Outcome::ReceiptExists => self.reused += 1,
            Outcome::Unknown(error) => return Err(error),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::store::StoreOptions;
    use flow::BatchBuilder;
    use flow::{Counters, Hour, HourRange, IdempotencyKey};

    fn entry(random: &mut StdRng, position: u64) -> JournalEntry {
        let mut builder = BatchBuilder::with_capacity(0);
        let number = random.random_range(0..40_u32);
        for flow in 0..=number % 5 {
            let name = format!("{}", (number + flow) % 7);
            let hour = Hour::new(u64::from(number % 3)).unwrap();
            let counters = Counters {
                tx: u64::from(number) + 1,
                rx: 1,
            };
            builder.push(hour, [name.as_bytes(), b"d", b"v"], counters);
        }
        let batch = Batch::decode(builder.finish().bytes().to_vec()).unwrap();
        // Equal numbers give equal flows, some of them under the same key.
        let batch = match number % 4 {
            0 => batch,
            _ => batch.with_key(IdempotencyKey::new(format!("k{number}").as_bytes()).unwrap()),
        };
        JournalEntry {
            position: Position::new(position),
            time_s: 1_800_000_000 + position,
            batch,
        }
    }

    type Rows = BTreeMap<(Hour, Vec<u8>), (u64, u64)>;

    /// Counts each batch once; of batches with the same key, only the first.
    fn model(journal: &[JournalEntry]) -> Rows {
        let mut keys = std::collections::BTreeSet::new();
        let mut rows = Rows::new();
        for entry in journal {
            if let Some((key, _)) = entry.batch.receipt()
                && !keys.insert(key.as_bytes().to_vec())
            {
                continue;
            }
            for record in flow::codec::Records::new(entry.batch.bytes()).unwrap() {
                let record = record.unwrap();
                let (hour, suffix) = super::super::codec::split_hour(record.key).unwrap();
                let key = (hour, suffix.to_vec());
                let sums = rows.entry(key).or_default();
                sums.0 += record.counters.tx;
                sums.1 += record.counters.rx;
            }
        }
        rows
    }

    fn rows(store: &Store) -> Rows {
        let mut rows = Rows::new();
        let mut scan = store
            .select(crate::store::Selection::hours(HourRange::ALL))
            .unwrap();
        while let Some(row) = scan.next_row().unwrap() {
            let sums = (row.counters.tx, row.counters.rx);
            rows.insert((row.hour, row.suffix.to_vec()), sums);
        }
        rows
    }

    /// Dropping a store without a flush loses only sums in memory, like a crash: the journal is read again from the
    /// marker.
    #[test]
    fn each_batch_of_an_external_journal_counts_once() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            tally_bytes_max: 16 << 10,
            flush_interval: Duration::from_millis(30),
            ..StoreOptions::default()
        };
        let open = || Store::open(dir.path(), options.clone()).unwrap().0;
        let (mut store, mut journal) = (open(), Vec::<JournalEntry>::new());
        let mut position = 0;
        for _ in 0..400 {
            match random.random_range(0..20) {
                0 => store.flush().unwrap(),
                1 | 2 => {
                    drop(store);
                    store = open();
                }
                _ => {
                    for _ in 0..random.random_range(0..20) {
                        // Kafka skips some offsets.
                        position += random.random_range(1..3);
                        for _ in 0..random.random_range(1..4) {
                            journal.push(entry(&mut random, position));
                        }
                    }
                }
            }
            // Starts somewhat too early, as a consumer may.
            let from = store
                .position()
                .unwrap()
                .get()
                .saturating_sub(random.random_range(0..5));
            let rest = journal.iter().filter(|entry| entry.position.get() > from);
            store.apply(rest.cloned().collect()).unwrap();
            assert_eq!(rows(&store), model(&journal));
        }
        let ledger = store.ledger(HourRange::ALL).unwrap();
        let flows: u64 = ledger.map(|entry| entry.unwrap().1.flows).sum();
        drop(store);
        let verified = crate::store::verify(dir.path()).unwrap();
        assert!(verified.faults.is_empty(), "{:?}", verified.faults);
        assert!(flows > 500);
    }

    /// The batch adds nothing, but the position advances.
    #[test]
    fn batches_that_do_not_count_are_flushed_too() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let mut builder = BatchBuilder::with_capacity(0);
        let hour = Hour::new(0).unwrap();
        builder.push(hour, [b"s", b"d", b"v"], Counters { tx: 1, rx: 0 });
        let key = IdempotencyKey::new(b"key").unwrap();
        let batch = builder.finish().with_key(key);
        for position in [1, 5] {
            let entry = JournalEntry {
                position: Position::new(position),
                time_s: 1_800_000_000,
                batch: batch.clone(),
            };
            let applied = store.apply(vec![entry]).unwrap();
            assert_eq!(applied.repeated, u64::from(position == 5));
            store.flush_within(Duration::from_secs(5)).unwrap();
            assert_eq!(store.position_on_disk().unwrap().get(), position);
        }
    }

    /// Receipts that are old by the clock but not by the journal are kept, so a second read gives the same sums.
    #[test]
    fn receipts_expire_by_the_time_of_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let window = Duration::from_secs(3600);
        let options = StoreOptions {
            idempotency_window: window,
            external_journal: true,
            ..StoreOptions::default()
        };
        let (store, _) = Store::open(dir.path(), options).unwrap();
        let apply_under = |key: &[u8], position, time_s| {
            let mut builder = BatchBuilder::with_capacity(0);
            let hour = Hour::new(0).unwrap();
            builder.push(hour, [b"s", b"d", b"v"], Counters { tx: 1, rx: 0 });
            let batch = builder.finish();
            let batch = batch.with_key(IdempotencyKey::new(key).unwrap());
            let entry = JournalEntry {
                position: Position::new(position),
                time_s,
                batch,
            };
            let repeated = store.apply(vec![entry]).unwrap().repeated;
            store.flush_within(Duration::from_secs(5)).unwrap();
            let receipts = super::super::receipts::receipts_family(&store.inner.db).unwrap();
            let all = None::<&[u8]>;
            store.inner.db.compact_range_cf(receipts, all, all);
            repeated
        };
        let apply = |position, time_s| apply_under(b"key", position, time_s);
        // Years ago.
        let then = 1_600_000_000;
        assert_eq!(apply(1, then), 0);
        assert_eq!(apply(2, then + 3600), 1);
        assert_eq!(apply(3, then + 3601), 0, "expired by the journal's time");
        assert_eq!(apply(4, then + 3602), 1);

        // A node whose clock is ahead must not expire the receipts of other nodes' batches.
        let now = super::super::receipts::now().as_secs();
        assert_eq!(apply(5, now), 0);
        assert_eq!(apply_under(b"ahead", 6, now + 86_400), 0);
        assert_eq!(apply(7, now + 1), 1);
    }

    /// A crash after the receipts of a tally were written, and before its sums.
    #[test]
    fn a_batch_is_not_its_own_duplicate() {
        let dir = tempfile::tempdir().unwrap();
        let key = || IdempotencyKey::new(b"key").unwrap();
        let batch = |tx| {
            let mut builder = BatchBuilder::with_capacity(0);
            let hour = Hour::new(0).unwrap();
            builder.push(hour, [b"s", b"d", b"v"], Counters { tx, rx: 0 });
            builder.finish().with_key(key())
        };
        let entry = |position, tx| JournalEntry {
            position: Position::new(position),
            time_s: 1_800_000_000,
            batch: batch(tx),
        };
        let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        store.apply(vec![entry(7, 1)]).unwrap();
        let tally = std::mem::replace(
            store.inner.tallies().unwrap().active_mut(),
            super::super::Tally::new(Position::ZERO),
        );
        store.inner.write_receipts(&tally).unwrap();
        drop(store);
        let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let again = vec![entry(7, 1), entry(7, 1), entry(8, 1), entry(9, 2)];
        let applied = store.apply(again).unwrap();
        let (batches, repeated, reused) = (applied.batches, applied.repeated, applied.reused);
        assert_eq!((batches, repeated, reused), (1, 2, 1));
        assert_eq!(rows(&store).values().next(), Some(&(1, 0)));
        assert_eq!(store.position().unwrap().get(), 9);
    }

    /// Two batches share a position, and the receipt of the second cannot be read. The first must not be counted
    /// alone: when the position is read again, it would be skipped as a whole.
    #[test]
    fn after_an_error_no_batch_at_the_position_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let entry = |name: &[u8], key: Option<&[u8]>| {
            let mut builder = BatchBuilder::with_capacity(0);
            let hour = Hour::new(0).unwrap();
            builder.push(hour, [name, b"d", b"v"], Counters { tx: 1, rx: 0 });
            let batch = builder.finish();
            let key = key.and_then(IdempotencyKey::new);
            JournalEntry {
                position: Position::new(7),
                time_s: 1_800_000_000,
                batch: match key {
                    Some(key) => batch.with_key(key),
                    None => batch,
                },
            }
        };
        let entries = || vec![entry(b"a", None), entry(b"b", Some(b"damaged"))];
        let db = &store.inner.db;
        let receipts = super::super::receipts::receipts_family(db).unwrap();
        db.put_cf(receipts, b"damaged", b"?").unwrap();
        assert!(store.apply(entries()).is_err());
        assert_eq!(store.position().unwrap().get(), 0);
        assert!(rows(&store).is_empty());
        db.delete_cf(receipts, b"damaged").unwrap();
        assert_eq!(store.apply(entries()).unwrap().batches, 2);
        assert_eq!(rows(&store).len(), 2);
    }
}
