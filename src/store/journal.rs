//! The journal: batches that the sums on disk do not contain yet. They are durable before they are acknowledged. It
//! is a column family, so its file format is RocksDB's write-ahead log.
//!
//! Another journal (a Kafka partition) must provide three operations: append assigns positions, replay reads from a
//! position, trim discards up to a position.

use std::sync::atomic::{AtomicBool, Ordering};

use rocksdb::{ColumnFamily, DB, IteratorMode, ReadOptions, WriteBatch, WriteOptions};

use super::codec::{self, Receipt};
use super::error::{StoreError, with_context};
use super::options::Durability;
use super::position::Position;
use super::receipts::{self, receipts_family};
use flow::Batch;

/// Size of a receipt in a write batch; most are smaller.
const RECEIPT_WRITE_BYTES: usize = 192;
/// Room in a memtable beyond the group that it is sized for.
const MEMTABLE_SLACK_BYTES: usize = 2 << 20;

/// The journal of an open database.
pub(super) struct Journal<'a> {
    db: &'a DB,
    family: &'a ColumnFamily,
}

impl<'a> Journal<'a> {
    pub(super) fn new(db: &'a DB) -> Result<Journal<'a>, StoreError> {
        let family = db.cf_handle(codec::JOURNAL).ok_or(StoreError::Closed)?;
        Ok(Journal { db, family })
    }

    /// Writes `batches` at positions `first`, `first` + 1, … with their receipts and notes, and deletes the receipts
    /// under `orphaned` keys, in one atomic write with the given durability. After an error, the same positions can be
    /// reused: the next write overwrites any records of the failed one.
    pub(super) fn append(
        &self,
        first: Position,
        batches: &[Batch],
        orphaned: &[Vec<u8>],
        durability: Durability,
    ) -> Result<(), StoreError> {
        // Reserve the full size: a vector that grows exists twice for a moment.
        let keys = |batch: &Batch| super::journal::stored_keys(batch).count() * RECEIPT_WRITE_BYTES;
        let bytes: usize = batches.iter().map(|b| b.bytes().len() + keys(b) + 32).sum();
        let mut write = WriteBatch::with_capacity_bytes(bytes + 64);
        for key in orphaned {
            write.delete_cf(receipts_family(self.db)?, key);
        }
        for (number, batch) in (first.get()..).zip(batches) {
            write.put_cf(
                self.family,
                codec::journal_key(Position::new(number)),
                batch.bytes(),
            );
            if let Some((key, fingerprint)) = batch.receipt() {
                let time_s = receipts::now().as_secs();
                let receipt = Receipt {
                    fingerprint,
                    time_s,
                    too_old: batch.too_old(),
                    position: Position::ZERO,
                };
                let (family, notes) = (receipts_family(self.db)?, batch.notes());
                let value = match notes.and_then(|notes| notes.own.as_ref()) {
                    Some(note) => codec::encode_noted_receipt(receipt, note.as_str()),
                    None => codec::encode_receipt(receipt),
                };
                write.put_cf(family, key.as_bytes(), value);
                let of_note = Receipt {
                    fingerprint: 0,
                    too_old: 0,
                    ..receipt
                };
                for (key, note) in notes.iter().flat_map(|notes| &notes.others) {
                    let value = codec::encode_noted_receipt(of_note, note.as_str());
                    write.put_cf(family, codec::note_key(key.as_bytes()), value);
                }
            }
        }
        write_log(self.db, write, durability).map_err(with_context("writing the journal"))
    }

    /// Calls `each` with every batch after `position`, in order.
    ///
    /// # Errors
    /// A gap between positions: acknowledged batches are missing.
    pub(super) fn replay(
        &self,
        position: Position,
        mut each: impl FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(codec::journal_key(position.next()));
        let entries = self
            .db
            .iterator_cf_opt(self.family, options, IteratorMode::Start);
        for (expected, entry) in (position.next().get()..).zip(entries) {
            let (key, batch) = entry.map_err(with_context("reading the journal"))?;
            let found = codec::decode_journal_key(&key)?;
            if found.get() != expected {
                return Err(StoreError::Corrupt {
                    what: format!("the journal has position {found} where {expected} is expected"),
                });
            }
            each(&batch)?;
        }
        Ok(())
    }

    /// Flushes the memtables so that RocksDB can delete the log, and compacts the journal so that RocksDB deletes the
    /// files that contain only trimmed batches. After a trim, little is left to write.
    pub(super) fn release_space(&self) -> Result<(), StoreError> {
        for family in [self.family, receipts_family(self.db)?] {
            self.db
                .flush_cf(family)
                .map_err(with_context("writing out the journal"))?;
        }
        let (from, to) = (None::<&[u8]>, None::<&[u8]>);
        self.db.compact_range_cf(self.family, from, to);
        Ok(())
    }

    /// Deletes everything up to and including `position`. A crash may undo it; the marker then makes replay skip
    /// these batches. It is synced like a batch, because only the last record of a log may be torn after a power cut.
    pub(super) fn trim(
        &self,
        position: Position,
        durability: Durability,
    ) -> Result<(), StoreError> {
        let mut write = WriteBatch::default();
        let (from, to) = (
            codec::journal_key(Position::ZERO),
            codec::journal_key(position.next()),
        );
        write.delete_range_cf(self.family, from, to);
        write_log(self.db, write, durability).map_err(with_context("trimming the journal"))
    }
}

/// Size of the journal's memtable.
#[derive(Debug)]
pub(super) struct JournalMemtable {
    usual_bytes: usize,
    is_grown: AtomicBool,
}

impl JournalMemtable {
    pub(super) fn new(usual_bytes: usize) -> JournalMemtable {
        JournalMemtable {
            usual_bytes,
            is_grown: AtomicBool::new(false),
        }
    }

    /// Enlarges the journal's memtable for a group that exceeds it. Otherwise RocksDB would flush it at the next write,
    /// before it is trimmed: as one block, which it copies twice and compaction reads again.
    ///
    /// Such a group is alone in the tallies, so the flush of its tally shrinks the memtable again.
    pub(super) fn grow(&self, db: &DB, group_bytes: usize) {
        if group_bytes > self.usual_bytes {
            self.is_grown.store(true, Ordering::SeqCst);
            set_memtable_bytes(db, self.usual_bytes + group_bytes + MEMTABLE_SLACK_BYTES);
        }
    }

    /// Frees the memory of a large group after it was trimmed.
    pub(super) fn shrink(&self, db: &DB) -> Result<(), StoreError> {
        if self.is_grown.load(Ordering::SeqCst) {
            let journal = Journal::new(db)?;
            let flushed = db.flush_cf(journal.family);
            flushed.map_err(with_context("writing out the journal"))?;
            set_memtable_bytes(db, self.usual_bytes);
            self.is_grown.store(false, Ordering::SeqCst);
        }
        Ok(())
    }
}

fn set_memtable_bytes(db: &DB, bytes: usize) {
    let set = Journal::new(db).and_then(|journal| {
        let options = [("write_buffer_size", &*bytes.to_string())];
        let set = db.set_options_cf(journal.family, &options);
        set.map_err(with_context("changing a setting of the journal"))
    });
    if let Err(error) = set {
        // This costs some memory for a moment.
        tracing::debug!(%error, "the journal's memtable was not shrunk");
    }
}

/// Appends a record to the log. All writes to the log use this function, because each record must end in a mark, which
/// is never zeros and shows whether the record was synced.
pub(super) fn write_log(
    db: &DB,
    mut write: WriteBatch,
    durability: Durability,
) -> Result<(), rocksdb::Error> {
    let sync = durability == Durability::Fsync;
    write.put_log_data(if sync { codec::SYNCED } else { codec::UNSYNCED });
    let mut options = WriteOptions::default();
    options.set_sync(sync);
    db.write_opt(write, &options)
}

/// All keys under which the receipt and the notes of `batch` are stored.
pub(super) fn stored_keys(batch: &Batch) -> impl Iterator<Item = Vec<u8>> {
    let own = batch.receipt().map(|(key, _)| key.as_bytes().to_vec());
    let others = batch.notes().into_iter().flat_map(|notes| &notes.others);
    own.into_iter()
        .chain(others.map(|(key, _)| codec::note_key(key.as_bytes())))
}
