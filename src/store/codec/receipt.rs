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
    /// Where its batch is in a journal elsewhere; 0 for one that is in the same database. A batch that
    /// is read again from there finds its own receipt, and is not its own duplicate.
    pub position: u64,
}

/// Fixed width, little-endian: 24 bytes, 32 where flows were too old, 40 with a position.
pub fn encode_receipt(receipt: Receipt) -> Vec<u8> {
    let mut value = receipt.fingerprint.to_le_bytes().to_vec();
    value.extend_from_slice(&receipt.time_s.to_le_bytes());
    if receipt.expired > 0 || receipt.position > 0 {
        value.extend_from_slice(&receipt.expired.to_le_bytes());
    }
    if receipt.position > 0 {
        value.extend_from_slice(&receipt.position.to_le_bytes());
    }
    value
}

/// Reads what [`encode_receipt`] wrote.
pub fn decode_receipt(value: &[u8]) -> Result<Receipt, Corrupt> {
    let read = || {
        let (fingerprint, rest) = value.split_first_chunk()?;
        let (time_s, rest) = rest.split_first_chunk()?;
        let (expired, position) = match rest.len() {
            0 => (0, 0),
            8 => (read_u64(rest).filter(|expired| *expired > 0)?, 0),
            _ => {
                let (expired, position) = rest.split_at_checked(8)?;
                let position = read_u64(position).filter(|position| *position > 0)?;
                (read_u64(expired)?, position)
            }
        };
        Some(Receipt {
            fingerprint: u128::from_le_bytes(*fingerprint),
            time_s: u64::from_le_bytes(*time_s),
            expired,
            position,
        })
    };
    read().ok_or(Corrupt("a receipt is not one of 24, 32 or 40 bytes"))
}

/// Eight bytes, and no more.
fn read_u64(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}
