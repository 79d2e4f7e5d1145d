//! Receipts and notes: keys and values of the `receipts` column family.

use super::Corrupt;
use crate::store::Position;

/// Proof that a batch was counted under an idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// XXH3 (128 bits) of the batch as received: equal for equal flows in equal order. 0 for a note, which belongs to
    /// no batch.
    pub fingerprint: u128,
    /// When it was accepted: seconds since the epoch.
    pub time_s: u64,
    /// Number of its flows that were too old to count.
    pub too_old: u64,
    /// Position of the batch in an external journal; 0 if the journal is in the same database. A batch that is read
    /// again recognizes its own receipt by it, and is not mistaken for a duplicate.
    pub position: Position,
}

/// Key under which the note for `key` is stored. It starts with NUL, as no idempotency key does, so a note never
/// replaces a receipt, and a batch never finds a note instead of a receipt.
pub fn note_key(key: &[u8]) -> Vec<u8> {
    [NOTE_PREFIX, key].concat()
}

/// See [`note_key`].
pub const NOTE_PREFIX: &[u8] = b"\0";

/// Size of a receipt with all its fields.
const WHOLE: usize = 40;

/// Fixed width, little-endian: 24 bytes, 32 if flows were too old, 40 with a position.
pub fn encode_receipt(receipt: Receipt) -> Vec<u8> {
    let mut value = encode_whole(receipt);
    if receipt.position == Position::ZERO {
        value.truncate(if receipt.too_old > 0 { 32 } else { 24 });
    }
    value
}

/// A receipt with a note, which follows the first 40 bytes.
pub fn encode_noted_receipt(receipt: Receipt, note: &str) -> Vec<u8> {
    let mut value = encode_whole(receipt);
    value.extend_from_slice(note.as_bytes());
    value
}

fn encode_whole(receipt: Receipt) -> Vec<u8> {
    let mut value = receipt.fingerprint.to_le_bytes().to_vec();
    value.extend_from_slice(&receipt.time_s.to_le_bytes());
    value.extend_from_slice(&receipt.too_old.to_le_bytes());
    value.extend_from_slice(&receipt.position.get().to_le_bytes());
    value
}

/// Reads what [`encode_receipt`] or [`encode_noted_receipt`] wrote.
pub fn decode_receipt(value: &[u8]) -> Result<Receipt, Corrupt> {
    decode_noted_receipt(value).map(|(receipt, _)| receipt)
}

/// The receipt of a batch; `None` for a note, which format 4 stored under the key itself.
pub fn decode_batch_receipt(value: &[u8]) -> Result<Option<Receipt>, Corrupt> {
    let (receipt, note) = decode_noted_receipt(value)?;
    let is_note = receipt.fingerprint == 0 && note.is_some();
    Ok((!is_note).then_some(receipt))
}

/// A receipt and its note, if there is one.
pub fn decode_noted_receipt(value: &[u8]) -> Result<(Receipt, Option<&str>), Corrupt> {
    let read = || {
        let (whole, note) = match value.split_at_checked(WHOLE) {
            Some((whole, note)) if !note.is_empty() => (whole, Some(note)),
            _ => (value, None),
        };
        let (fingerprint, rest) = whole.split_first_chunk()?;
        let (time_s, rest) = rest.split_first_chunk()?;
        let (too_old, position) = match rest.len() {
            0 => (0, 0),
            8 => (read_u64(rest).filter(|too_old| *too_old > 0)?, 0),
            _ => {
                let (too_old, position) = rest.split_at_checked(8)?;
                let position = read_u64(position)?;
                // Without a note, the encoder omits a position of 0.
                (note.is_some() || position > 0).then_some((read_u64(too_old)?, position))?
            }
        };
        let note = note.map(std::str::from_utf8).transpose().ok()?;
        let receipt = Receipt {
            fingerprint: u128::from_le_bytes(*fingerprint),
            time_s: u64::from_le_bytes(*time_s),
            too_old,
            position: Position::new(position),
        };
        Some((receipt, note))
    };
    read().ok_or(Corrupt(
        "a receipt is not one of 24, 32 or 40 bytes, or of 40 and a note",
    ))
}

/// Decodes exactly eight bytes.
fn read_u64(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}
