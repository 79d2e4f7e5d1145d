//! The codec of messages in the journal. A message has parts of batches, each with the idempotency key under which it
//! counts once, if it has one.
//!
//! ```text
//! version u8 | parts: key bytes u8, 0 without a key | batch bytes u32 LE | key | batch
//! ```

use super::kafka::MESSAGE_BYTES_MAX;
use flow::codec::Corrupt;
use flow::{Batch, IdempotencyKey, Partition, PartitionCount};

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 1;
const PART_HEADER_BYTES: usize = 5;
/// Longest batch of a part, so that it fits into a message, whatever its key.
const BATCH_BYTES_MAX: usize =
    MESSAGE_BYTES_MAX - HEADER_BYTES - PART_HEADER_BYTES - IdempotencyKey::CHARS_MAX;

const _: () = assert!(IdempotencyKey::CHARS_MAX <= u8::MAX as usize);
const _: () = assert!(BATCH_BYTES_MAX <= u32::MAX as usize);

/// The flows of a batch for one partition, or some of them if they do not fit into one message.
#[derive(Debug)]
pub(super) struct PartitionBatch {
    pub(super) partition: Partition,
    key: Option<String>,
    batch: Vec<u8>,
}

impl PartitionBatch {
    /// Splits `batch`. The same batch is always split in the same way.
    pub(super) fn split(batch: &Batch, partitions: PartitionCount) -> Vec<PartitionBatch> {
        let key = batch.receipt().map(|(key, _)| key);
        let mut parts = Vec::new();
        for (partition, batches) in batch.split(partitions, BATCH_BYTES_MAX) {
            for (number, batch) in batches.into_iter().enumerate() {
                parts.push(PartitionBatch {
                    partition,
                    key: key.map(|key| part_key(key, partition, number)),
                    batch,
                });
            }
        }
        parts
    }

    /// Its length in a message.
    fn bytes(&self) -> usize {
        let key = self.key.as_ref().map_or(0, String::len);
        PART_HEADER_BYTES + key + self.batch.len()
    }
}

/// The key of a part: the client's key, or its hash if that would be too long, and the part's partition and number.
fn part_key(key: &IdempotencyKey, partition: Partition, number: usize) -> String {
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
pub(super) struct MessageBuilder(Vec<u8>);

impl MessageBuilder {
    /// Allocates memory for `parts`, or for as many of them as fit into a message.
    pub(super) fn for_parts<'a>(parts: impl Iterator<Item = &'a PartitionBatch>) -> MessageBuilder {
        let bytes: usize = parts.map(PartitionBatch::bytes).sum();
        let mut message = Vec::with_capacity((HEADER_BYTES + bytes).min(MESSAGE_BYTES_MAX));
        message.push(VERSION);
        MessageBuilder(message)
    }

    pub(super) fn has_room_for(&self, part: &PartitionBatch) -> bool {
        self.0.len() + part.bytes() <= MESSAGE_BYTES_MAX
    }

    pub(super) fn push(&mut self, part: &PartitionBatch) {
        let key = part.key.as_deref().unwrap_or_default().as_bytes();
        // A length that is cut off would make the message unreadable, and stop the partition on every node.
        let key_bytes = u8::try_from(key.len())
            .unwrap_or_else(|_| unreachable!("a key is longer than CHARS_MAX"));
        let batch_bytes = u32::try_from(part.batch.len())
            .unwrap_or_else(|_| unreachable!("a part is longer than BATCH_BYTES_MAX"));
        self.0.push(key_bytes);
        self.0.extend_from_slice(&batch_bytes.to_le_bytes());
        self.0.extend_from_slice(key);
        self.0.extend_from_slice(&part.batch);
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The parts of a message, in order.
///
/// # Errors
/// Bytes that are not a message of this version.
pub(super) fn decode(message: &[u8]) -> Result<Vec<Batch>, Corrupt> {
    const CUT: Corrupt = Corrupt("it ends inside a part");
    let mut rest = match message.split_first() {
        Some((&VERSION, rest)) => rest,
        _ => return Err(Corrupt("it is of an unknown version")),
    };
    let mut batches = Vec::new();
    while !rest.is_empty() {
        let (header, after) = rest.split_first_chunk::<PART_HEADER_BYTES>().ok_or(CUT)?;
        let [key_bytes, bytes @ ..] = *header;
        let (key, after) = after.split_at_checked(key_bytes.into()).ok_or(CUT)?;
        let bytes = usize::try_from(u32::from_le_bytes(bytes)).map_err(|_| CUT)?;
        let (batch, after) = after.split_at_checked(bytes).ok_or(CUT)?;
        rest = after;
        let batch = Batch::decode(batch.to_vec())?;
        batches.push(match key_bytes {
            0 => batch,
            _ => batch.with_key(IdempotencyKey::new(key).ok_or(Corrupt("a key is invalid"))?),
        });
    }
    Ok(batches)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow::BatchBuilder;
    use flow::{Counters, Hour};

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
    fn messages_round_trip() {
        let keys = ["k".to_owned(), "l".repeat(IdempotencyKey::CHARS_MAX)];
        let key = |n: usize| IdempotencyKey::new(keys[n].as_bytes()).unwrap();
        let batches = [
            batch(10),
            batch(20).with_key(key(0)),
            batch(30).with_key(key(1)),
        ];
        let four = PartitionCount::try_from(4).unwrap();
        let parts: Vec<_> = batches
            .iter()
            .flat_map(|b| PartitionBatch::split(b, four))
            .collect();
        let mut message = MessageBuilder::for_parts(parts.iter());
        let (mut flows, mut keys_seen) = (0, Vec::new());
        for part in &parts {
            assert!(message.has_room_for(part));
            message.push(part);
        }
        for batch in decode(message.bytes()).unwrap() {
            flows += batch.flows();
            let key = batch.receipt().map(|(key, _)| key.as_bytes().to_vec());
            keys_seen.extend(key.map(|key| String::from_utf8(key).unwrap()));
        }
        assert_eq!(flows, 60);
        assert_eq!(keys_seen[..2], ["k/0/0", "k/1/0"]);
        assert!(keys_seen[4].starts_with("xxh3:") && keys_seen[4].ends_with("/0/0"));
        // A cut anywhere except between two parts is an error.
        let whole = message.bytes();
        let complete = (0..whole.len()).filter(|&cut| decode(&whole[..cut]).is_ok());
        assert_eq!(
            complete.count(),
            12,
            "after the version, and after 11 parts"
        );
        assert!(decode(b"\x02").is_err());
    }
}
