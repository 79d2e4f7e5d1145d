//! Deduplication: decides which batches of a group count. Both paths into the sums use it: [`Store::commit`], and
//! [`Store::apply`] for batches from Kafka.

use std::collections::{HashMap, HashSet};

use super::codec::{self, Receipt};
use super::error::{StoreError, with_context};
use super::receipts::{is_expired, receipts_family};
use super::{Inner, Retention, Store};
use flow::{Batch, IdempotencyKey};

/// The outcome of committing a batch.
#[derive(Debug)]
pub enum Outcome {
    /// It was counted.
    Counted {
        /// Flows that were counted.
        flows: u64,
        /// Flows that were too old to count.
        too_old: u64,
        /// Its size in the journal; 0 if nothing was stored.
        bytes: usize,
    },
    /// A batch with the same flows was counted under its key, so this one was not counted again.
    Replayed { flows: u64, too_old: u64 },
    /// Other flows were counted under its key. It was not counted.
    KeyReused,
    /// There is a receipt or a note under the key that excludes the batch (`!KEY` in its notes). It was not counted.
    ReceiptExists,
    /// A receipt cannot be read, so it is unknown whether the batch was counted before. It was not counted now.
    Unknown(StoreError),
}

/// Status of a batch's idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyStatus {
    /// The batch has no key, or one under which no batch was counted within the window.
    New,
    /// The same flows were counted under it, except for those that were too old then.
    Replayed { too_old: u64 },
    /// Other flows were counted under it.
    Reused,
}

impl KeyStatus {
    /// Derives it from the unexpired receipt under a batch's key, if there is one.
    pub(super) fn from_receipt(receipt: Option<Receipt>, fingerprint: u128) -> KeyStatus {
        match receipt {
            None => KeyStatus::New,
            Some(receipt) if receipt.fingerprint == fingerprint => KeyStatus::Replayed {
                too_old: receipt.too_old,
            },
            Some(_) => KeyStatus::Reused,
        }
    }
}

/// The batches of one commit that will be written. A second batch with the same key finds the first one here.
pub(super) struct CommitGroup<'a> {
    store: &'a Store,
    /// The retention cutoff, including the hours of this group.
    retention: Retention,
    pub(super) batches: Vec<Batch>,
    /// Fingerprint and number of too old flows by idempotency key.
    keys: HashMap<IdempotencyKey, (u128, u64)>,
    /// Keys of notes.
    noted: HashSet<IdempotencyKey>,
}

impl CommitGroup<'_> {
    pub(super) fn new(store: &Store) -> Result<CommitGroup<'_>, StoreError> {
        Ok(CommitGroup {
            store,
            retention: store.retention()?,
            batches: Vec::new(),
            keys: HashMap::new(),
            noted: HashSet::new(),
        })
    }

    /// Adds a batch, without its too old flows, if it counts.
    pub(super) fn add(&mut self, batch: Batch) -> Outcome {
        // Some may have been removed already.
        let flows = batch.flows() as u64 + batch.too_old();
        match self.key_status(&batch) {
            Ok(KeyStatus::New) => {}
            Ok(KeyStatus::Replayed { too_old }) => {
                return Outcome::Replayed {
                    flows: flows.saturating_sub(too_old),
                    too_old,
                };
            }
            Ok(KeyStatus::Reused) => return Outcome::KeyReused,
            Err(error) => return Outcome::Unknown(error),
        }
        match self.is_excluded(&batch) {
            Ok(false) => {}
            Ok(true) => return Outcome::ReceiptExists,
            Err(error) => return Outcome::Unknown(error),
        }
        let cutoff = self.retention.advance(&batch);
        let batch = batch.without_hours_before(cutoff);
        let too_old = batch.too_old();
        if let Some((key, fingerprint)) = batch.receipt() {
            self.keys.insert(key.clone(), (fingerprint, too_old));
            let notes = batch.notes().into_iter().flat_map(|notes| &notes.others);
            self.noted.extend(notes.map(|(key, _)| key.clone()));
        }
        let (flows, mut bytes) = (batch.flows() as u64, 0);
        if flows > 0 || batch.receipt().is_some() {
            bytes = batch.bytes().len();
            self.batches.push(batch);
        }
        Outcome::Counted {
            flows,
            too_old,
            bytes,
        }
    }

    fn key_status(&self, batch: &Batch) -> Result<KeyStatus, StoreError> {
        match batch.receipt() {
            None => Ok(KeyStatus::New),
            Some((key, fingerprint)) => match self.keys.get(key) {
                Some(&(first, too_old)) if first == fingerprint => {
                    Ok(KeyStatus::Replayed { too_old })
                }
                Some(_) => Ok(KeyStatus::Reused),
                None => self.store.key_status(batch),
            },
        }
    }

    /// Whether there is a receipt or a note under a key that excludes `batch`.
    fn is_excluded(&self, batch: &Batch) -> Result<bool, StoreError> {
        let keys = match batch.notes() {
            Some(notes) if !notes.excluded_by.is_empty() => &notes.excluded_by,
            _ => return Ok(false),
        };
        if keys
            .iter()
            .any(|key| self.keys.contains_key(key) || self.noted.contains(key))
        {
            return Ok(true);
        }
        let stored = self.store.receipts(keys)?;
        Ok(stored.iter().any(Option::is_some))
    }
}

impl Store {
    /// Whether a batch was counted under the key of `batch`, and whether it had the same flows.
    ///
    /// # Errors
    /// If a receipt cannot be read.
    pub fn key_status(&self, batch: &Batch) -> Result<KeyStatus, StoreError> {
        let Some((key, fingerprint)) = batch.receipt() else {
            return Ok(KeyStatus::New);
        };
        let inner = &*self.inner;
        let receipt = inner.stored_receipt(key)?;
        let receipt =
            receipt.filter(|receipt| !is_expired(key.as_bytes(), receipt, &inner.options));
        Ok(KeyStatus::from_receipt(receipt, fingerprint))
    }
}

impl Inner {
    /// The receipt of the batch that was counted under `key`, whatever its age.
    pub(super) fn stored_receipt(
        &self,
        key: &IdempotencyKey,
    ) -> Result<Option<Receipt>, StoreError> {
        let value = self
            .db
            .get_pinned_cf(receipts_family(&self.db)?, key.as_bytes())
            .map_err(with_context("reading a receipt"))?;
        match value {
            Some(value) => Ok(codec::decode_batch_receipt(&value)?),
            None => Ok(None),
        }
    }
}
