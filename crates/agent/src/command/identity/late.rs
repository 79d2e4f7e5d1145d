//! Flows that were left out of their batch, since their hours are too far ahead of the clock.
//!
//! Whether a flow is left out depends on the clock, and what the file is does not. So such a flow is hashed like
//! any other, and the receipt of its batch covers it. What was left out is noted with the batch: flows of an
//! hour and of all later ones, among its last so many records. They are a batch of their own the next time,
//! under a key of its own. If some of them are left out once more, that is noted with this batch in turn.

use xxhash_rust::xxh3::xxh3_128;

use super::{Chain, key};
use flow::{IdempotencyKey, Note};

/// What was left out of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    /// Of the batch as it was in the file.
    pub(super) end: Chain,
    /// How many records that has.
    pub(super) count: u64,
    /// How often its flows were left out before.
    pub(super) times: u32,
    /// Of the earliest flow that was left out; 0 where none was yet.
    pub(super) hour: u32,
}

impl Gap {
    /// Nothing is left out so far.
    pub(super) fn of_batch(end: Chain, before: Chain) -> Gap {
        Gap {
            end,
            count: end.index.saturating_sub(before.index),
            times: 0,
            hour: 0,
        }
    }

    /// Under which key it is noted.
    pub(super) fn note_key(&self) -> Option<IdempotencyKey> {
        self.hashed("late")
    }

    /// Of the batch that the flows are in the next time.
    pub(super) fn batch_key(&self) -> Option<IdempotencyKey> {
        self.hashed("again")
    }

    fn hashed(&self, kind: &str) -> Option<IdempotencyKey> {
        let text = format!("{kind}\0{:032x}\0{}", self.end.content, self.times);
        key(xxh3_128(text.as_bytes()))
    }

    /// Without the hour, which comes last.
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

    /// Whether the record with this index, from 1, may be one that was left out.
    pub(super) fn has(&self, index: u64) -> bool {
        index <= self.end.index && self.end.index - index < self.count
    }
}

/// What says that there are gaps in a file which begins with this record.
pub(super) fn mark(first: &Chain) -> Option<(IdempotencyKey, Note)> {
    let text = format!("gaps\0{:032x}", first.content);
    key(xxh3_128(text.as_bytes())).zip(Note::new("g"))
}
