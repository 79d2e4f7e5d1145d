//! Deduplication: which batches of a group count. Every path into the sums asks here: [`Store::commit`], and
//! [`Store::apply`] for batches from Kafka.

use std::collections::{HashMap, HashSet};

use super::codec::{self, Receipt};
use super::error::{StoreError, database};
use super::receipts::{is_over, receipts_family};
use super::{Inner, Retention, Store};
use flow::{Batch, IdempotencyKey};

/// What became of a batch.
#[derive(Debug)]
pub enum Outcome {
    /// It was counted.
    Counted {
        /// Flows of it that count.
        flows: u64,
        /// Flows of it that were too old to count.
        expired: u64,
        /// Bytes of it in the journal; 0 if it left nothing to store.
        bytes: usize,
    },
    /// A batch with the same flows was counted under its key, so this one was not counted again.
    Replayed { flows: u64, expired: u64 },
    /// Other flows were counted under its key. It was not counted.
    KeyReused,
    /// There is a receipt or a note under the key that excludes the batch (`!KEY` in its notes). It was not counted.
    ReceiptExists,
    /// A receipt cannot be read, so it is unknown whether the batch was counted before. It was not counted now.
    Unknown(StoreError),
}

/// What is known of a batch's idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// The batch has no key, or one under which no batch was counted within the window.
    New,
    /// The same flows were counted under it, except for those that were too old then.
    Replayed { expired: u64 },
    /// Other flows were counted under it.
    Reused,
}

impl Known {
    /// By the receipt under a batch's key, if there is one and its window is not over.
    pub(super) fn by(receipt: Option<Receipt>, fingerprint: u128) -> Known {
        match receipt {
            None => Known::New,
            Some(receipt) if receipt.fingerprint == fingerprint => Known::Replayed {
                expired: receipt.expired,
            },
            Some(_) => Known::Reused,
        }
    }
}

/// The batches of one commit that are to be written. Of two with the same key, the second finds the first.
pub(super) struct Group<'a> {
    store: &'a Store,
    /// Which hours are kept, counting those of this group.
    retention: Retention,
    pub(super) batches: Vec<Batch>,
    /// Fingerprints by idempotency key, and how many flows were too old.
    keys: HashMap<IdempotencyKey, (u128, u64)>,
    /// Keys of notes.
    noted: HashSet<IdempotencyKey>,
}

impl Group<'_> {
    pub(super) fn new(store: &Store) -> Result<Group<'_>, StoreError> {
        Ok(Group {
            store,
            retention: store.retention()?,
            batches: Vec::new(),
            keys: HashMap::new(),
            noted: HashSet::new(),
        })
    }

    /// Adds a batch if it counts, without its flows that are too old.
    pub(super) fn add(&mut self, batch: Batch) -> Outcome {
        let flows = batch.flows() as u64;
        match self.known(&batch) {
            Ok(Known::New) => {}
            Ok(Known::Replayed { expired }) => {
                return Outcome::Replayed {
                    flows: flows.saturating_sub(expired),
                    expired,
                };
            }
            Ok(Known::Reused) => return Outcome::KeyReused,
            Err(error) => return Outcome::Unknown(error),
        }
        match self.is_excluded(&batch) {
            Ok(false) => {}
            Ok(true) => return Outcome::ReceiptExists,
            Err(error) => return Outcome::Unknown(error),
        }
        let batch = match self.retention.expire(batch) {
            Ok(batch) => batch,
            Err(error) => return Outcome::Unknown(error.into()),
        };
        let expired = batch.expired();
        if let Some((key, fingerprint)) = batch.receipt() {
            self.keys.insert(key.clone(), (fingerprint, expired));
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
            expired,
            bytes,
        }
    }

    fn known(&self, batch: &Batch) -> Result<Known, StoreError> {
        match batch.receipt() {
            None => Ok(Known::New),
            Some((key, fingerprint)) => match self.keys.get(key) {
                Some(&(first, expired)) if first == fingerprint => Ok(Known::Replayed { expired }),
                Some(_) => Ok(Known::Reused),
                None => self.store.known(batch),
            },
        }
    }

    /// Whether there is a receipt or a note under the key that excludes `batch`.
    fn is_excluded(&self, batch: &Batch) -> Result<bool, StoreError> {
        let Some(key) = batch.notes().and_then(|notes| notes.unless.as_ref()) else {
            return Ok(false);
        };
        if self.keys.contains_key(key) || self.noted.contains(key) {
            return Ok(true);
        }
        let stored = self.store.receipts(std::slice::from_ref(key))?;
        Ok(stored.iter().any(Option::is_some))
    }
}

impl Store {
    /// Whether a batch was counted under the key of `batch`, and whether it had the same flows.
    ///
    /// # Errors
    /// A receipt that cannot be read.
    pub fn known(&self, batch: &Batch) -> Result<Known, StoreError> {
        let Some((key, fingerprint)) = batch.receipt() else {
            return Ok(Known::New);
        };
        let inner = &*self.inner;
        let receipt = inner.stored_receipt(key)?;
        let receipt = receipt.filter(|receipt| !is_over(key.as_bytes(), receipt, &inner.options));
        Ok(Known::by(receipt, fingerprint))
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
            .map_err(database("reading a receipt"))?;
        match value {
            Some(value) => Ok(codec::decode_batch_receipt(&value)?),
            None => Ok(None),
        }
    }
}
