//! The journal: batches that the sums on disk do not contain yet, durable before they are
//! acknowledged. A column family of its own, so RocksDB's write-ahead log is the file format.
//!
//! The seam for another journal (a Kafka partition) is three verbs: append gives positions, replay
//! goes on from a position, trim forgets up to a position.

use std::sync::atomic::Ordering;

use rocksdb::{ColumnFamily, DB, IteratorMode, ReadOptions, WriteBatch, WriteOptions};

use super::Inner;
use super::codec::{self, Receipt};
use super::error::{StoreError, database};
use super::options::Durability;
use super::receipts::{self, receipts_family};
use flow::Batch;

/// More than most receipts take in a write.
const RECEIPT_WRITE_BYTES: usize = 192;
/// What a memtable has room for beside what it is made for.
const MEMTABLE_SLACK_BYTES: usize = 2 << 20;

/// A view of the journal in an open database.
pub(super) struct Journal<'a> {
    db: &'a DB,
    family: &'a ColumnFamily,
}

impl<'a> Journal<'a> {
    pub(super) fn new(db: &'a DB) -> Result<Journal<'a>, StoreError> {
        let family = db.cf_handle(codec::JOURNAL).ok_or(StoreError::Closed)?;
        Ok(Journal { db, family })
    }

    /// Writes `batches` at `first`, `first` + 1, … with their receipts and notes, and removes those at the
    /// `revoked` keys: all or none of it, and as durable as that says.
    ///
    /// After an error the same positions can be used again: a write replaces what a failed one
    /// may have left there.
    pub(super) fn append(
        &self,
        first: u64,
        batches: &[Batch],
        revoked: &[Vec<u8>],
        durability: Durability,
    ) -> Result<(), StoreError> {
        // All of it at once: growing, it would be there twice for a while.
        let keys = |batch: &Batch| super::journal::stored_keys(batch).count() * RECEIPT_WRITE_BYTES;
        let bytes: usize = batches.iter().map(|b| b.bytes().len() + keys(b) + 32).sum();
        let mut write = WriteBatch::with_capacity_bytes(bytes + 64);
        for key in revoked {
            write.delete_cf(receipts_family(self.db)?, key);
        }
        for (position, batch) in (first..).zip(batches) {
            write.put_cf(self.family, codec::journal_key(position), batch.bytes());
            if let Some((key, fingerprint)) = batch.receipt() {
                let time_s = receipts::now().as_secs();
                let receipt = Receipt {
                    fingerprint,
                    time_s,
                    expired: batch.expired(),
                    position: 0,
                };
                let (family, notes) = (receipts_family(self.db)?, batch.notes());
                let value = match notes.and_then(|notes| notes.own.as_ref()) {
                    Some(note) => codec::encode_noted_receipt(receipt, note.as_str()),
                    None => codec::encode_receipt(receipt),
                };
                write.put_cf(family, key.as_bytes(), value);
                let of_note = Receipt {
                    fingerprint: 0,
                    expired: 0,
                    ..receipt
                };
                for (key, note) in notes.iter().flat_map(|notes| &notes.others) {
                    let value = codec::encode_noted_receipt(of_note, note.as_str());
                    write.put_cf(family, codec::note_key(key.as_bytes()), value);
                }
            }
        }
        write_log(self.db, write, durability).map_err(database("writing the journal"))
    }

    /// Calls `each` with every batch after `position`, in order.
    ///
    /// Positions follow one another without a gap; a gap means that acknowledged batches are gone,
    /// which is an error.
    pub(super) fn replay(
        &self,
        position: u64,
        mut each: impl FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(codec::journal_key(position + 1));
        let entries = self
            .db
            .iterator_cf_opt(self.family, options, IteratorMode::Start);
        for (expected, entry) in (position + 1..).zip(entries) {
            let (key, batch) = entry.map_err(database("reading the journal"))?;
            let found = codec::decode_journal_key(&key)?;
            if found != expected {
                return Err(StoreError::Corrupt {
                    what: format!("the journal goes on at {found} where {expected} is due"),
                });
            }
            each(&batch)?;
        }
        Ok(())
    }

    /// Writes out what the memtables hold, which for the journal after a trim is next to nothing, so
    /// that RocksDB can delete the log; and has it drop the files that hold only what was trimmed.
    pub(super) fn release(&self) -> Result<(), StoreError> {
        for family in [self.family, receipts_family(self.db)?] {
            self.db
                .flush_cf(family)
                .map_err(database("writing out the journal"))?;
        }
        let (from, to) = (None::<&[u8]>, None::<&[u8]>);
        self.db.compact_range_cf(self.family, from, to);
        Ok(())
    }

    /// Forgets everything up to and with `position`. A crash may bring it back: it is covered by the marker
    /// and skipped. All the same it is synced like a batch: after a power cut, only the last record of a log
    /// may be incomplete.
    pub(super) fn trim(&self, position: u64, durability: Durability) -> Result<(), StoreError> {
        let mut write = WriteBatch::default();
        let (from, to) = (codec::journal_key(0), codec::journal_key(position + 1));
        write.delete_range_cf(self.family, from, to);
        write_log(self.db, write, durability).map_err(database("trimming the journal"))
    }
}

impl Inner {
    /// Has the journal's memtable take a group that is larger than a memtable. By itself, RocksDB would write it
    /// out with the next write, before it is trimmed: as one block, of which it makes two more copies, and which
    /// compaction reads again.
    ///
    /// Such a group is alone in the tallies, so the flush of its tally is what narrows the journal again.
    pub(super) fn widen_journal(&self, group_bytes: usize) {
        let memtable_bytes = self.options.memtable_bytes;
        if group_bytes > memtable_bytes {
            self.journal_is_wide.store(true, Ordering::SeqCst);
            self.set_memtable_bytes(memtable_bytes + group_bytes + MEMTABLE_SLACK_BYTES);
        }
    }

    /// Lets go of a large group that is trimmed.
    pub(super) fn narrow_journal(&self) -> Result<(), StoreError> {
        if self.journal_is_wide.load(Ordering::SeqCst) {
            let journal = Journal::new(&self.db)?;
            let flushed = self.db.flush_cf(journal.family);
            flushed.map_err(database("writing out the journal"))?;
            self.set_memtable_bytes(self.options.memtable_bytes);
            self.journal_is_wide.store(false, Ordering::SeqCst);
        }
        Ok(())
    }

    fn set_memtable_bytes(&self, bytes: usize) {
        let set = Journal::new(&self.db).and_then(|journal| {
            let options = [("write_buffer_size", &*bytes.to_string())];
            let set = self.db.set_options_cf(journal.family, &options);
            set.map_err(database("changing a setting of the journal"))
        });
        if let Err(error) = set {
            // It costs some memory for a moment.
            tracing::debug!(%error, "the journal's memtable stays as large as it was");
        }
    }
}

/// Appends a record to the log. All that goes there goes through here: a record says at its end whether it
/// is synced, and is never zeros there.
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
