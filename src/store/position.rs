//! Positions in the journal.

use std::fmt;

/// A batch's number in the journal.
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
