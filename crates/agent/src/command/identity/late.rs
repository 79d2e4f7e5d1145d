//! Flows that were left out of their batch, because their hours are too far ahead of the clock.
//!
//! Whether a flow is left out depends on the clock, but the identity of the file must not. So such a flow is hashed
//! like any other, and the receipt of its batch covers it. A note beside the receipt records the gap: the number of
//! the batch's records, and the earliest hour that was left out. The next command sends the flows of the gap as a
//! batch with a key of its own. If some of them are left out again, a note beside that batch's receipt records it.

use xxhash_rust::xxh3::xxh3_128;

use super::{Chain, key};
use flow::{IdempotencyKey, Note};

/// The flows that were left out of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    /// The end of the batch, with all flows that it has in the file.
    pub(super) end: Chain,
    /// The number of records of that batch.
    pub(super) count: u64,
    /// How often flows of the gap were sent before.
    pub(super) times: u32,
    /// The earliest hour that was left out; 0 if none was yet.
    pub(super) hour: u32,
}

impl Gap {
    /// An empty gap of the batch between two points.
    pub(super) fn empty(end: Chain, before: Chain) -> Gap {
        Gap {
            end,
            count: end.index.saturating_sub(before.index),
            times: 0,
            hour: 0,
        }
    }

    /// The key of the note.
    pub(super) fn note_key(&self) -> Option<IdempotencyKey> {
        self.derive_key("late")
    }

    /// The key of the batch that the flows of the gap are sent in.
    pub(super) fn batch_key(&self) -> Option<IdempotencyKey> {
        self.derive_key("again")
    }

    fn derive_key(&self, kind: &str) -> Option<IdempotencyKey> {
        let text = format!("{kind}\0{:032x}\0{}", self.end.content, self.times);
        key(xxh3_128(text.as_bytes()))
    }

    /// The note without the hour at its end.
    pub(super) fn note_stem(&self) -> String {
        format!("h{}.", self.count)
    }

    pub(super) fn with_note(self, note: &str) -> Option<Gap> {
        let (count, hour) = note.strip_prefix('h')?.split_once('.')?;
        Some(Gap {
            count: count.parse().ok()?,
            hour: hour.parse().ok()?,
            ..self
        })
    }

    pub(super) fn next(self) -> Gap {
        Gap {
            times: self.times + 1,
            ..self
        }
    }

    /// Whether the record with this index, from 1, is in the batch.
    pub(super) fn contains(&self, index: u64) -> bool {
        index <= self.end.index && self.end.index - index < self.count
    }
}

/// The key and note that record that a file with this first record has gaps.
pub(super) fn gaps_note(first: &Chain) -> Option<(IdempotencyKey, Note)> {
    let text = format!("gaps\0{:032x}", first.content);
    key(xxh3_128(text.as_bytes())).zip(Note::new("g"))
}
