//! Decides which batches of a group count, and which of their flows: deduplication and retention. Both paths into the
//! sums use it: [`Store::commit`], and [`Store::apply`] for batches from Kafka.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::codec::{self, Receipt};
use super::error::{StoreError, with_context};
use super::position::Position;
use super::receipts::{self, receipts_family};
use super::retention::Retention;
use super::tallies::Tallies;
use super::{Inner, Store};
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

/// When a batch was accepted, as far as its receipt depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    /// Time since the epoch: of the clock, or of an external journal, since a second read must produce the same sums.
    time: Duration,
    /// Its position in an external journal; otherwise [`Position::ZERO`].
    position: Position,
}

impl Arrival {
    pub(super) fn now() -> Arrival {
        Arrival {
            time: receipts::now(),
            position: Position::ZERO,
        }
    }

    pub(super) fn in_external_journal(position: Position, time_s: u64) -> Arrival {
        Arrival {
            time: Duration::from_secs(time_s),
            position,
        }
    }

    /// The receipt of `batch`, which counts, and its key.
    pub(super) fn receipt(&self, batch: &Batch) -> Option<(IdempotencyKey, Receipt)> {
        let (key, fingerprint) = batch.receipt()?;
        let receipt = Receipt {
            fingerprint,
            time_s: self.time.as_secs(),
            too_old: batch.too_old(),
            position: self.position,
        };
        Some((key.clone(), receipt))
    }

    /// Whether `receipt` on disk is that of an earlier batch. With an external journal, a receipt of this or a later
    /// position was written before a crash, but its sums were not.
    fn is_after(&self, receipt: &Receipt) -> bool {
        self.position == Position::ZERO || receipt.position < self.position
    }
}

/// Classifies the batches of one commit. A second batch with the same key finds the first one here.
pub(super) struct CommitGroup<'a> {
    store: &'a Store,
    /// The retention cutoff, including the hours of this group.
    retention: Retention,
    /// Receipts that are not on disk yet: those of this group and, with an external journal, of the tallies.
    receipts: HashMap<IdempotencyKey, Receipt>,
    /// Keys of notes.
    noted: HashSet<IdempotencyKey>,
}

impl<'a> CommitGroup<'a> {
    pub(super) fn new(store: &'a Store, tallies: &Tallies) -> CommitGroup<'a> {
        CommitGroup {
            store,
            retention: store.inner.retention.as_of(tallies.newest()),
            receipts: HashMap::new(),
            noted: HashSet::new(),
        }
    }

    /// Copies the receipts that `tallies` have for `batches`. Do this before any batch is classified: a flush may move
    /// these receipts to the disk in between, but not back.
    pub(super) fn copy_receipts<'b>(
        &mut self,
        tallies: &Tallies,
        batches: impl Iterator<Item = &'b Batch>,
    ) {
        for (key, _) in batches.filter_map(Batch::receipt) {
            // The active tally's is the later one.
            let unflushed = tallies.both().filter_map(|tally| tally.receipts().get(key));
            if let Some(receipt) = unflushed.last() {
                self.receipts.insert(key.clone(), *receipt);
            }
        }
    }

    /// The outcome of `batch` and, if it is to be added to the sums, the batch without its too old flows. Reads
    /// receipts from the disk.
    pub(super) fn classify(&mut self, batch: Batch, arrival: Arrival) -> (Outcome, Option<Batch>) {
        // Some may have been removed already.
        let flows = batch.flows() as u64 + batch.too_old();
        match self.receipt_before(&batch, arrival) {
            Ok(None) => {}
            Ok(Some((receipt, fingerprint))) if receipt.fingerprint == fingerprint => {
                let replayed = Outcome::Replayed {
                    flows: flows.saturating_sub(receipt.too_old),
                    too_old: receipt.too_old,
                };
                return (replayed, None);
            }
            Ok(Some(_)) => return (Outcome::KeyReused, None),
            Err(error) => return (Outcome::Unknown(error), None),
        }
        match self.is_excluded(&batch) {
            Ok(false) => {}
            Ok(true) => return (Outcome::ReceiptExists, None),
            Err(error) => return (Outcome::Unknown(error), None),
        }
        let cutoff = self.retention.advance(&batch);
        let batch = batch.without_hours_before(cutoff);
        let receipt = arrival.receipt(&batch);
        let is_stored = batch.flows() > 0 || receipt.is_some();
        if let Some((key, receipt)) = receipt {
            self.receipts.insert(key, receipt);
            let notes = batch.notes().into_iter().flat_map(|notes| &notes.others);
            self.noted.extend(notes.map(|(key, _)| key.clone()));
        }
        let counted = Outcome::Counted {
            flows: batch.flows() as u64,
            too_old: batch.too_old(),
            bytes: if is_stored { batch.bytes().len() } else { 0 },
        };
        (counted, is_stored.then_some(batch))
    }

    /// The receipt of the batch that was counted under the key of `batch` within its window, and the fingerprint of
    /// `batch`.
    fn receipt_before(
        &self,
        batch: &Batch,
        arrival: Arrival,
    ) -> Result<Option<(Receipt, u128)>, StoreError> {
        let Some((key, fingerprint)) = batch.receipt() else {
            return Ok(None);
        };
        let inner = &*self.store.inner;
        let receipt = match self.receipts.get(key) {
            Some(receipt) => Some(*receipt),
            None => inner
                .stored_receipt(key)?
                .filter(|receipt| arrival.is_after(receipt)),
        };
        let window = inner.options.window_of(key.as_bytes());
        let within = receipt.filter(|receipt| !receipts::is_expired(receipt, window, arrival.time));
        Ok(within.map(|receipt| (receipt, fingerprint)))
    }

    /// Whether there is a receipt or a note under a key that excludes `batch`.
    fn is_excluded(&self, batch: &Batch) -> Result<bool, StoreError> {
        let keys = match batch.notes() {
            Some(notes) if !notes.excluded_by.is_empty() => &notes.excluded_by,
            _ => return Ok(false),
        };
        if keys
            .iter()
            .any(|key| self.receipts.contains_key(key) || self.noted.contains(key))
        {
            return Ok(true);
        }
        let stored = self.store.receipts(keys)?;
        Ok(stored.iter().any(Option::is_some))
    }
}

impl Inner {
    /// The receipt of the batch that was counted under `key`, whatever its age.
    fn stored_receipt(&self, key: &IdempotencyKey) -> Result<Option<Receipt>, StoreError> {
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
