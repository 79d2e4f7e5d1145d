//! Receipts record which batch was counted under which idempotency key, so that a repeated batch counts once. Notes
//! are text that senders store beside their batches, under separate keys ([`codec::note_key`]): a note never replaces
//! a receipt, and a batch is refused because of a note only if it names that note's key.
//!
//! Both are written atomically with their batch. Compaction drops old ones; it drops more when a class exceeds its
//! size bound. No request waits for that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rocksdb::compaction_filter::Decision;
use rocksdb::{
    ColumnFamily, CompactOptions, DB, Options, Range, ReadOptions, WriteBatch, properties,
};

use super::codec::{self, Receipt};
use super::error::{StoreError, with_context};
use super::journal::write_log;
use super::tally::Tally;
use super::{Durability, Inner, Store, StoreOptions};
use flow::{IdempotencyKey, ReceiptInfo};

/// Exclusive upper bound of the keys of imports.
const IMPORTS_END: &[u8] = b"import`";
/// Exclusive upper bound of the keys that are made of content.
const CONTENTS_END: &[u8] = b"content`";
/// Receipts of content may take this part of the bound of others, in addition: they are kept for a short time.
const CONTENT_PART: u64 = 4;
/// Exclusive upper bound of the keys of notes.
const NOTES_END: &[u8] = b"\x01";

impl Store {
    /// Looks up each of `keys`: the receipt of the batch that was counted under it, otherwise a note.
    pub fn receipts(
        &self,
        keys: &[IdempotencyKey],
    ) -> Result<Vec<Option<ReceiptInfo>>, StoreError> {
        let read = |key: &IdempotencyKey| {
            let under_key = self.look_up(key.as_bytes())?;
            if matches!(under_key, Some((_, true))) {
                return Ok(under_key);
            }
            // Format 4 stored notes under the key itself.
            let note = self.look_up(&codec::note_key(key.as_bytes()))?;
            Ok(note.or(under_key))
        };
        let kept = |key| read(key).map(|kept| kept.map(|(kept, _)| kept));
        keys.iter().map(kept).collect()
    }

    /// The receipt or note under `key`, and whether it is the receipt of a batch.
    fn look_up(&self, key: &[u8]) -> Result<Option<(ReceiptInfo, bool)>, StoreError> {
        let inner = &*self.inner;
        let value = inner.db.get_pinned_cf(receipts_family(&inner.db)?, key);
        let Some(value) = value.map_err(with_context("reading a receipt"))? else {
            return Ok(None);
        };
        let (receipt, note) = codec::decode_noted_receipt(&value)?;
        if is_expired(&receipt, inner.options.window_of(key), now()) {
            return Ok(None);
        }
        let kept = ReceiptInfo {
            time_s: receipt.time_s,
            note: note.map(Into::into),
        };
        let is_of_batch = codec::decode_batch_receipt(&value)?.is_some();
        Ok(Some((kept, is_of_batch)))
    }
}

impl StoreOptions {
    /// How long the receipt or note under `key` is kept.
    pub(super) fn window_of(&self, key: &[u8]) -> Duration {
        match ReceiptKind::from_key(key) {
            ReceiptKind::Batch => self.idempotency_window,
            ReceiptKind::Import | ReceiptKind::Note => self.import_window,
            ReceiptKind::Content => self.content_window,
        }
    }
}

/// The kind of the value under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReceiptKind {
    /// The receipt of a batch that does not belong to an import.
    Batch,
    /// The receipt of a batch that belongs to an import.
    Import,
    Note,
    /// The receipt of a batch whose key is made of its content.
    Content,
}

impl ReceiptKind {
    const ALL: [ReceiptKind; 4] = [
        ReceiptKind::Batch,
        ReceiptKind::Import,
        ReceiptKind::Note,
        ReceiptKind::Content,
    ];

    fn from_key(stored_key: &[u8]) -> ReceiptKind {
        if stored_key.starts_with(codec::NOTE_PREFIX) {
            ReceiptKind::Note
        } else if stored_key.starts_with(IdempotencyKey::IMPORT_PREFIX.as_bytes()) {
            ReceiptKind::Import
        } else if stored_key.starts_with(IdempotencyKey::CONTENT_PREFIX.as_bytes()) {
            ReceiptKind::Content
        } else {
            ReceiptKind::Batch
        }
    }
}

impl Inner {
    /// Writes the receipts of `tally`, synced, before its sums, so that sums never contain a batch without its
    /// receipt. After a crash in between, its batches are read again, and each finds the receipt of its own position.
    pub(super) fn write_receipts(&self, tally: &Tally) -> Result<(), StoreError> {
        if tally.receipts().is_empty() {
            return Ok(());
        }
        let family = receipts_family(&self.db)?;
        let mut write = WriteBatch::default();
        for (key, receipt) in tally.receipts() {
            write.put_cf(family, key.as_bytes(), codec::encode_receipt(*receipt));
        }
        write_log(&self.db, write, Durability::Fsync).map_err(with_context("writing receipts"))
    }
}

/// Decides which receipts compaction drops.
#[derive(Debug)]
pub(super) struct ReceiptExpiry {
    /// In the order of [`ReceiptKind::ALL`].
    classes: [ReceiptClass; ReceiptKind::ALL.len()],
    /// With an external journal, the current time by that journal in seconds since the epoch, up to the sums on disk.
    /// Entries after that may be read again and need earlier receipts.
    journal_s: Option<AtomicU64>,
}

/// One in this many parts of the imports' size bound is reserved for receipts, so that notes cannot displace them.
/// Notes get the other parts, since a batch has about twenty notes and one receipt.
const NOTES_PART: u64 = 4;

/// A class of receipts with its own window and size bound.
#[derive(Debug)]
struct ReceiptClass {
    setting: &'static str,
    window: Duration,
    bytes_max: u64,
    /// Receipts older than this (seconds since the epoch) are dropped even within the window.
    oldest_kept_s: AtomicU64,
}

impl ReceiptClass {
    fn new(setting: &'static str, window: Duration, bytes_max: u64) -> ReceiptClass {
        ReceiptClass {
            setting,
            window,
            bytes_max,
            oldest_kept_s: AtomicU64::new(0),
        }
    }
}

impl ReceiptExpiry {
    pub(super) fn new(options: &StoreOptions) -> ReceiptExpiry {
        let imports_max = options.import_receipts_bytes_max;
        let notes_max = match options.external_journal {
            // An external journal has no notes.
            true => 0,
            false => imports_max / NOTES_PART * (NOTES_PART - 1),
        };
        let of_import =
            |bytes_max| ReceiptClass::new("--import-disk-max", options.import_window, bytes_max);
        ReceiptExpiry {
            classes: [
                ReceiptClass::new(
                    "--idempotency-disk-max",
                    options.idempotency_window,
                    options.receipts_bytes_max,
                ),
                of_import(imports_max - notes_max),
                of_import(notes_max),
                ReceiptClass::new(
                    "--idempotency-disk-max",
                    options.content_window,
                    options.receipts_bytes_max / CONTENT_PART,
                ),
            ],
            journal_s: options.external_journal.then(AtomicU64::default),
        }
    }

    fn class_of(&self, key: &[u8]) -> &ReceiptClass {
        &self.classes[ReceiptKind::from_key(key) as usize]
    }

    /// Receipts of `class` before this time (seconds since the epoch) are dropped.
    fn oldest_kept_s(&self, class: &ReceiptClass) -> u64 {
        let now = match &self.journal_s {
            Some(journal_s) => Duration::from_secs(journal_s.load(Ordering::Relaxed)),
            None => now(),
        };
        let by_window = now.saturating_sub(class.window).as_secs();
        by_window.max(class.oldest_kept_s.load(Ordering::Relaxed))
    }

    /// Advances the journal's time after `tally` was flushed.
    pub(super) fn advance_journal_time(&self, tally: &Tally) {
        let newest = tally
            .receipts()
            .values()
            .map(|receipt| receipt.time_s)
            .max();
        if let (Some(journal_s), Some(newest)) = (&self.journal_s, newest) {
            // A node whose clock is ahead must not make others drop receipts that they still need.
            journal_s.fetch_max(newest.min(now().as_secs()), Ordering::Relaxed);
        }
    }

    /// Installs the compaction filter that drops expired receipts.
    pub(super) fn install(self: &Arc<ReceiptExpiry>, options: &mut Options) {
        let expiry = self.clone();
        options.set_compaction_filter(c"flowtally.expiry.v1", move |_level, key, value| {
            // Keep values that are not receipts: reads report them as corrupt.
            let receipt = codec::decode_receipt(value);
            let oldest = || expiry.oldest_kept_s(expiry.class_of(key));
            if receipt.is_ok_and(|receipt| receipt.time_s < oldest()) {
                Decision::Remove
            } else {
                Decision::Keep
            }
        });
    }
}

impl Inner {
    /// Whether a class of receipts exceeds its size bound.
    pub(super) fn receipts_exceed_bound(&self) -> Result<bool, StoreError> {
        let mut classes = self
            .receipt_expiry
            .classes
            .iter()
            .zip(self.receipts_bytes()?);
        Ok(classes.any(|(class, bytes)| bytes > class.bytes_max))
    }

    /// Bytes of each kind, in the order of [`ReceiptKind::ALL`].
    fn receipts_bytes(&self) -> Result<[u64; ReceiptKind::ALL.len()], StoreError> {
        let family = receipts_family(&self.db)?;
        let all = self
            .db
            .property_int_value_cf(family, properties::LIVE_SST_FILES_SIZE)
            .map_err(with_context("reading a property"))?;
        let of_range = |range| {
            let bytes = self.db.get_approximate_sizes_cf(family, &[range]);
            bytes.iter().sum::<u64>()
        };
        let imports = of_range(Range::new(
            IdempotencyKey::IMPORT_PREFIX.as_bytes(),
            IMPORTS_END,
        ));
        let notes = of_range(Range::new(codec::NOTE_PREFIX, NOTES_END));
        let contents = of_range(Range::new(
            IdempotencyKey::CONTENT_PREFIX.as_bytes(),
            CONTENTS_END,
        ));
        let batches = all.unwrap_or(0).saturating_sub(imports + notes + contents);
        Ok([batches, imports, notes, contents])
    }

    /// Drops the oldest receipts of each class that exceeds its bound, until it takes about three quarters of it.
    pub(super) fn drop_old_receipts(&self) -> Result<(), StoreError> {
        let bytes = self.receipts_bytes()?;
        let mut passed = Vec::new();
        for (class, bytes) in self.receipt_expiry.classes.iter().zip(bytes) {
            if bytes > class.bytes_max {
                let part = class.bytes_max as f64 * 0.75 / bytes as f64;
                let oldest = self.time_of_newest_receipts(class, part)?;
                class.oldest_kept_s.fetch_max(oldest, Ordering::Relaxed);
                passed.push(class.setting);
            }
        }
        passed.dedup();
        if passed.is_empty() {
            return Ok(());
        }
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        let all = None::<&[u8]>;
        self.db
            .compact_range_cf_opt(receipts_family(&self.db)?, all, all, &options);
        let bytes_now = self.receipts_bytes()?;
        tracing::info!(
            bytes = bytes.iter().sum::<u64>(),
            bytes_now = bytes_now.iter().sum::<u64>(),
            "idempotency keys exceeded {}; the oldest were dropped",
            passed.join(" and ")
        );
        Ok(())
    }

    /// The time since which this fraction of the receipts of `class` was written. Reads all receipts.
    fn time_of_newest_receipts(&self, class: &ReceiptClass, part: f64) -> Result<u64, StoreError> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        let family = receipts_family(&self.db)?;
        let mut receipts = self.db.raw_iterator_cf_opt(family, options);
        let (mut by_time, mut all) = (BTreeMap::<u64, u64>::new(), 0);
        receipts.seek_to_first();
        while let Some((key, value)) = receipts.item() {
            if std::ptr::eq(self.receipt_expiry.class_of(key), class) {
                *by_time
                    .entry(codec::decode_receipt(value)?.time_s)
                    .or_default() += 1;
                all += 1;
            }
            receipts.next();
        }
        receipts
            .status()
            .map_err(with_context("reading receipts"))?;
        let mut left = (all as f64 * part) as u64;
        for (time_s, count) in by_time.into_iter().rev() {
            if count > left {
                return Ok(time_s + 1);
            }
            left -= count;
        }
        Ok(0)
    }
}

/// Whether a receipt's window has passed at `time`. If the clock was set back, receipts live longer, not shorter.
pub(super) fn is_expired(receipt: &Receipt, window: Duration, time: Duration) -> bool {
    time > Duration::from_secs(receipt.time_s).saturating_add(window)
}

/// Time since the epoch.
pub(super) fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

pub(super) fn receipts_family(db: &DB) -> Result<&ColumnFamily, StoreError> {
    db.cf_handle(codec::RECEIPTS).ok_or(StoreError::Closed)
}

#[cfg(test)]
mod tests;
