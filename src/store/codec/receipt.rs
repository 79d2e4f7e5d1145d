//! Receipts: values of the column family of idempotency keys.

use super::Corrupt;

/// What is kept of a batch that was taken under an idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// XXH3 of the batch as it came, 128 bits: the same for the same flows in the same order.
    pub fingerprint: u128,
    /// When it was taken: seconds since the epoch.
    pub time_s: u64,
    /// How many of its flows were too old to count.
    pub expired: u64,
}

/// Fixed width, little-endian: 24 bytes, or 32 where flows were too old.
pub fn encode_receipt(receipt: Receipt) -> Vec<u8> {
    let mut value = receipt.fingerprint.to_le_bytes().to_vec();
    value.extend_from_slice(&receipt.time_s.to_le_bytes());
    if receipt.expired > 0 {
        value.extend_from_slice(&receipt.expired.to_le_bytes());
    }
    value
}

/// Reads what [`encode_receipt`] wrote.
pub fn decode_receipt(value: &[u8]) -> Result<Receipt, Corrupt> {
    let read = || {
        let (fingerprint, rest) = value.split_first_chunk()?;
        let (time_s, rest) = rest.split_first_chunk()?;
        let expired = match rest {
            [] => 0,
            rest => u64::from_le_bytes(rest.try_into().ok().filter(|e| *e != [0; 8])?),
        };
        Some(Receipt {
            fingerprint: u128::from_le_bytes(*fingerprint),
            time_s: u64::from_le_bytes(*time_s),
            expired,
        })
    };
    read().ok_or(Corrupt("a receipt is neither 24 nor 32 bytes"))
}
