//! The encoding of a batch that is known to be valid.

use std::borrow::Cow;

use super::codec::{self, Corrupt, Record, Records};
use super::{BatchLedger, KeyHasher};
use crate::{Counters, Hour, Totals};

/// The encoding of a batch that a [`BatchBuilder`](super::BatchBuilder) made or that was validated. There is no other
/// way to get one, so reading it cannot fail: once a batch is durable, no error may prevent it from being counted.
#[derive(Clone, Debug)]
pub struct ValidBatch<'a> {
    bytes: &'a [u8],
    hashes: Cow<'a, [u32]>,
}

/// One flow of a [`ValidBatch`].
#[derive(Clone, Copy, Debug)]
pub struct ValidRecord<'a> {
    pub hour: Hour,
    /// The key after its hour.
    pub suffix: &'a [u8],
    pub counters: Counters,
    /// The whole record as stored.
    pub(super) stored: &'a [u8],
}

impl<'a> ValidBatch<'a> {
    /// Validates every key, and that the records add up to the batch's own ledger.
    ///
    /// # Errors
    /// If a key is invalid, or the sums differ.
    pub fn validate(bytes: &'a [u8], hasher: &KeyHasher) -> Result<ValidBatch<'a>, Corrupt> {
        let mut hashes = Vec::with_capacity(bytes.len() / 32);
        let mut counted = BatchLedger::default();
        for record in Records::new(bytes)? {
            let Record { key, counters, .. } = record?;
            let hour = codec::validate_key(key)?;
            counted.count(hour, counters);
            hashes.push(hasher.hash(codec::suffix(key)?));
        }
        let stored = codec::batch_ledger(bytes)?;
        let mut agree = stored.len() == counted.hours();
        for (entry, counted) in stored.zip(counted.entries()) {
            agree &= entry? == counted;
        }
        match agree {
            true => Ok(ValidBatch {
                bytes,
                hashes: Cow::Owned(hashes),
            }),
            false => Err(Corrupt("a batch's flows do not add up to its ledger")),
        }
    }

    /// For the parts of a batch that was built or validated.
    pub(super) fn of_parts(bytes: &'a [u8], hashes: &'a [u32]) -> ValidBatch<'a> {
        ValidBatch {
            bytes,
            hashes: Cow::Borrowed(hashes),
        }
    }

    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Hashes of the records' keys after their hours.
    pub fn hashes(&self) -> &[u32] {
        &self.hashes
    }

    pub(super) fn into_hashes(self) -> Vec<u32> {
        self.hashes.into_owned()
    }

    /// Its flows, in order.
    #[inline]
    pub fn records(&self) -> impl Iterator<Item = ValidRecord<'a>> + use<'a> {
        let records = Records::new(self.bytes).unwrap_or_else(|error| not_valid(error));
        records.map(|record| {
            let record = record.unwrap_or_else(|error| not_valid(error));
            let (hour, suffix) =
                codec::split_hour(record.key).unwrap_or_else(|error| not_valid(error));
            ValidRecord {
                hour,
                suffix,
                counters: record.counters,
                stored: record.stored,
            }
        })
    }

    /// Its ledger: totals by hour.
    pub fn ledger(&self) -> impl Iterator<Item = (Hour, Totals)> + use<'a> {
        let entries = codec::batch_ledger(self.bytes).unwrap_or_else(|error| not_valid(error));
        entries.map(|entry| entry.unwrap_or_else(|error| not_valid(error)))
    }
}

/// Unreachable. If it were reached, a batch could not be counted, and nothing may be acknowledged any more: the
/// threads that commit abort the process when they panic.
#[cold]
fn not_valid(error: Corrupt) -> ! {
    unreachable!("a valid batch is corrupt: {error}")
}
