//! What is in a message of the journal: pieces of batches, each with the idempotency key that it counts once
//! under, if it has one.
//!
//! ```text
//! version u8 | pieces: key bytes u8, 0 without one | batch bytes u32 LE | key | batch
//! ```

use std::collections::BTreeMap;

use crate::domain::IdempotencyKey;
use crate::service::cluster::kafka::MESSAGE_BYTES_MAX;
use crate::store::codec::Corrupt;
use crate::store::{Batch, StoreError};

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 1;
const PIECE_HEADER_BYTES: usize = 5;
/// Longest batch of a piece, so that it fits into a message, whatever its key.
const BATCH_BYTES_MAX: usize =
    MESSAGE_BYTES_MAX - HEADER_BYTES - PIECE_HEADER_BYTES - IdempotencyKey::CHARS_MAX;

/// What a batch has for one partition, or a part of that.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) partition: i32,
    key: Option<String>,
    batch: Vec<u8>,
}

impl Piece {
    /// All of `batch`. Of the same one, they are always the same.
    pub(super) fn of(batch: &Batch, partitions: u32) -> Result<Vec<Piece>, StoreError> {
        let key = batch.receipt().map(|(key, _)| key);
        let mut pieces = Vec::new();
        for (partition, batches) in batch.split(partitions, BATCH_BYTES_MAX)? {
            let partition = i32::try_from(partition).unwrap_or_default();
            for (number, batch) in batches.into_iter().enumerate() {
                pieces.push(Piece {
                    partition,
                    key: key.map(|key| piece_key(key, partition, number)),
                    batch,
                });
            }
        }
        Ok(pieces)
    }

    /// What it takes in a message.
    fn bytes(&self) -> usize {
        let key = self.key.as_ref().map_or(0, String::len);
        PIECE_HEADER_BYTES + key + self.batch.len()
    }
}

/// The key of a piece says which one it is. One that would be too long has the client's key hashed.
fn piece_key(key: &IdempotencyKey, partition: i32, number: usize) -> String {
    let text = String::from_utf8_lossy(key.as_bytes());
    let whole = format!("{text}/{partition}/{number}");
    if whole.len() <= IdempotencyKey::CHARS_MAX {
        return whole;
    }
    let hash = xxhash_rust::xxh3::xxh3_128(key.as_bytes());
    format!("xxh3:{hash:032x}/{partition}/{number}")
}

/// A message that is being filled.
#[derive(Debug)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// One that has room for `pieces`, or for as many of them as fit.
    pub(super) fn with_room<'a>(pieces: impl Iterator<Item = &'a Piece>) -> Message {
        let bytes: usize = pieces.map(Piece::bytes).sum();
        let mut message = Vec::with_capacity((HEADER_BYTES + bytes).min(MESSAGE_BYTES_MAX));
        message.push(VERSION);
        Message(message)
    }

    pub(super) fn has_room_for(&self, piece: &Piece) -> bool {
        self.0.len() + piece.bytes() <= MESSAGE_BYTES_MAX
    }

    pub(super) fn push(&mut self, piece: &Piece) {
        let key = piece.key.as_deref().unwrap_or_default().as_bytes();
        // Both fit: `piece_key`, `BATCH_BYTES_MAX`.
        self.0.push(key.len() as u8);
        (self.0).extend_from_slice(&(piece.batch.len() as u32).to_le_bytes());
        self.0.extend_from_slice(key);
        self.0.extend_from_slice(&piece.batch);
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The pieces of a message, in order.
///
/// # Errors
/// Bytes that no message of this version has.
pub(super) fn read(message: &[u8]) -> Result<Vec<Batch>, Corrupt> {
    const CUT: Corrupt = Corrupt("it ends inside a piece");
    let mut rest = match message.split_first() {
        Some((&VERSION, rest)) => rest,
        _ => return Err(Corrupt("it is of an unknown version")),
    };
    let mut batches = Vec::new();
    while !rest.is_empty() {
        let (header, after) = rest.split_first_chunk::<PIECE_HEADER_BYTES>().ok_or(CUT)?;
        let [key_bytes, bytes @ ..] = *header;
        let (key, after) = after.split_at_checked(key_bytes.into()).ok_or(CUT)?;
        let bytes = u32::from_le_bytes(bytes) as usize;
        let (batch, after) = after.split_at_checked(bytes).ok_or(CUT)?;
        rest = after;
        let batch = Batch::decode(batch.to_vec())?;
        batches.push(match key_bytes {
            0 => batch,
            _ => batch.with_key(IdempotencyKey::new(key).ok_or(Corrupt("a key is none"))?),
        });
    }
    Ok(batches)
}

/// Offsets by partition.
pub(super) type Offsets = BTreeMap<i32, u64>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Counters, Hour};
    use crate::store::BatchBuilder;

    fn batch(flows: u64) -> Batch {
        let mut builder = BatchBuilder::with_capacity(0);
        for flow in 0..flows {
            let name = flow.to_string();
            let counters = Counters { tx: flow, rx: 1 };
            let hour = Hour::new(flow % 3).unwrap();
            builder.push(hour, [name.as_bytes(), b"d", b"v"], counters);
        }
        builder.finish()
    }

    #[test]
    fn messages_have_the_pieces_that_were_put_into_them() {
        let keys = ["k".to_owned(), "l".repeat(IdempotencyKey::CHARS_MAX)];
        let key = |n: usize| IdempotencyKey::new(keys[n].as_bytes()).unwrap();
        let batches = [
            batch(10),
            batch(20).with_key(key(0)),
            batch(30).with_key(key(1)),
        ];
        let pieces: Vec<_> = batches
            .iter()
            .flat_map(|b| Piece::of(b, 4).unwrap())
            .collect();
        let mut message = Message::with_room(pieces.iter());
        let (mut flows, mut keys_seen) = (0, Vec::new());
        for piece in &pieces {
            assert!(message.has_room_for(piece));
            message.push(piece);
        }
        for batch in read(message.bytes()).unwrap() {
            flows += batch.flows();
            let key = batch.receipt().map(|(key, _)| key.as_bytes().to_vec());
            keys_seen.extend(key.map(|key| String::from_utf8(key).unwrap()));
        }
        assert_eq!(flows, 60);
        assert_eq!(keys_seen[..2], ["k/0/0", "k/1/0"]);
        assert!(keys_seen[4].starts_with("xxh3:") && keys_seen[4].ends_with("/0/0"));
        // Cut anywhere but between two pieces, it is an error.
        let whole = message.bytes();
        let complete = (0..whole.len()).filter(|&cut| read(&whole[..cut]).is_ok());
        assert_eq!(
            complete.count(),
            12,
            "after the version, and after 11 pieces"
        );
        assert!(read(b"\x02").is_err());
    }
}
