//! Positions in the journal.

use std::fmt;

use flow::{Offset, OutOfRange};

/// A batch's number in the journal. If that is a Kafka partition, the batches of a message share one number: the offset
/// that follows the message's, so that [`Position::ZERO`] is before the first message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(u64);

impl Position {
    /// Before the first batch.
    pub const ZERO: Position = Position(0);

    pub const fn new(number: u64) -> Position {
        Position(number)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// The position of the message at `offset`.
    pub fn after(offset: Offset) -> Position {
        Position(offset.get() + 1)
    }

    /// The offset of the first message after this position.
    ///
    /// # Errors
    /// After the last offset that Kafka can have.
    pub fn next_offset(self) -> Result<Offset, OutOfRange> {
        Offset::try_from(self.0)
    }

    /// Whether the message at `offset` is at or before this position.
    pub fn includes(self, offset: Offset) -> bool {
        self >= Position::after(offset)
    }

    /// The position after it.
    #[must_use]
    pub const fn next(self) -> Position {
        Position(self.0 + 1)
    }

    /// The position before it, which must not be [`Position::ZERO`].
    #[must_use]
    pub(super) const fn previous(self) -> Position {
        Position(self.0 - 1)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
