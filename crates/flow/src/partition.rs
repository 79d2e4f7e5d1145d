//! Partitions and offsets of a journal, numbered as in Kafka: both start at 0.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number that is not a valid partition, offset or partition count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfRange {
    #[error("there is no partition {0}")]
    Partition(i64),
    #[error("there is no offset {0}")]
    Offset(i128),
    #[error("a journal cannot have {0} partitions")]
    Count(i64),
    #[error("not a number, or too large")]
    Text,
}

/// A partition of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "i32", into = "i32")]
pub struct Partition(i32);

impl Partition {
    /// The only partition of a topic with one partition.
    pub const FIRST: Partition = Partition(0);

    /// Kafka's partition number.
    pub fn get(self) -> i32 {
        self.0
    }
}

impl TryFrom<i32> for Partition {
    type Error = OutOfRange;

    fn try_from(number: i32) -> Result<Partition, OutOfRange> {
        match number {
            0.. => Ok(Partition(number)),
            _ => Err(OutOfRange::Partition(number.into())),
        }
    }
}

impl TryFrom<u32> for Partition {
    type Error = OutOfRange;

    fn try_from(number: u32) -> Result<Partition, OutOfRange> {
        let partition = i32::try_from(number).map(Partition);
        partition.map_err(|_| OutOfRange::Partition(number.into()))
    }
}

impl From<Partition> for i32 {
    fn from(partition: Partition) -> i32 {
        partition.0
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Decimal digits.
impl FromStr for Partition {
    type Err = OutOfRange;

    fn from_str(text: &str) -> Result<Partition, OutOfRange> {
        let number = digits(text).and_then(|digits| digits.parse().ok());
        number.map(Partition).ok_or(OutOfRange::Text)
    }
}

/// The offset of a message in its partition. As the position of a store, it is the offset of the next message:
/// everything before it is in the sums.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "u64", into = "u64")]
pub struct Offset(u64);

impl Offset {
    /// The offset of a partition's first message.
    pub const ZERO: Offset = Offset(0);
    const MAX: u64 = i64::MAX as u64;

    pub fn get(self) -> u64 {
        self.0
    }

    /// The offset after this one.
    ///
    /// # Errors
    /// After the last offset that Kafka can have.
    pub fn next(self) -> Result<Offset, OutOfRange> {
        Offset::try_from(self.0 + 1)
    }

    /// Number of offsets from `earlier` to this one; 0 if `earlier` is later.
    pub fn since(self, earlier: Offset) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// As encoded in Kafka's protocol.
    pub fn as_i64(self) -> i64 {
        // At most `MAX`.
        self.0 as i64
    }
}

impl TryFrom<u64> for Offset {
    type Error = OutOfRange;

    fn try_from(number: u64) -> Result<Offset, OutOfRange> {
        match number {
            0..=Offset::MAX => Ok(Offset(number)),
            _ => Err(OutOfRange::Offset(number.into())),
        }
    }
}

/// Negative numbers have special meanings in Kafka's protocol, such as "unknown".
impl TryFrom<i64> for Offset {
    type Error = OutOfRange;

    fn try_from(number: i64) -> Result<Offset, OutOfRange> {
        let offset = u64::try_from(number).map(Offset);
        offset.map_err(|_| OutOfRange::Offset(number.into()))
    }
}

impl From<Offset> for u64 {
    fn from(offset: Offset) -> u64 {
        offset.0
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Decimal digits.
impl FromStr for Offset {
    type Err = OutOfRange;

    fn from_str(text: &str) -> Result<Offset, OutOfRange> {
        let number = digits(text).and_then(|digits| digits.parse::<u64>().ok());
        Offset::try_from(number.ok_or(OutOfRange::Text)?)
    }
}

/// `parse` would also accept a plus sign.
fn digits(text: &str) -> Option<&str> {
    text.bytes().all(|b| b.is_ascii_digit()).then_some(text)
}

/// Number of partitions of a journal, at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i32", into = "i32")]
pub struct PartitionCount(i32);

impl PartitionCount {
    pub fn get(self) -> u32 {
        // It is positive.
        self.0 as u32
    }

    /// All partitions of the journal.
    pub fn partitions(self) -> impl Iterator<Item = Partition> {
        (0..self.0).map(Partition)
    }

    /// The partition of names with this hash.
    #[inline]
    pub fn of_hash(self, hash: u64) -> Partition {
        // Less than the number of partitions.
        Partition((hash % u64::from(self.get())) as i32)
    }

    pub fn contains(self, partition: Partition) -> bool {
        partition.0 < self.0
    }
}

impl TryFrom<usize> for PartitionCount {
    type Error = OutOfRange;

    fn try_from(number: usize) -> Result<PartitionCount, OutOfRange> {
        let invalid = |_| OutOfRange::Count(i64::try_from(number).unwrap_or(i64::MAX));
        PartitionCount::try_from(i32::try_from(number).map_err(invalid)?)
    }
}

impl TryFrom<i32> for PartitionCount {
    type Error = OutOfRange;

    fn try_from(number: i32) -> Result<PartitionCount, OutOfRange> {
        match number {
            1.. => Ok(PartitionCount(number)),
            _ => Err(OutOfRange::Count(number.into())),
        }
    }
}

impl From<PartitionCount> for i32 {
    fn from(count: PartitionCount) -> i32 {
        count.0
    }
}

impl fmt::Display for PartitionCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_range_are_errors() {
        assert_eq!(Partition::try_from(-1_i32), Err(OutOfRange::Partition(-1)));
        assert!(Partition::try_from(1_u32 << 31).is_err());
        assert_eq!(Partition::try_from(7_u32).map(Partition::get), Ok(7));
        assert_eq!(Offset::try_from(-1_i64), Err(OutOfRange::Offset(-1)));
        assert!(Offset::try_from(1_u64 << 63).is_err());
        let last = Offset::try_from(i64::MAX).unwrap();
        assert!(last.next().is_err());
        assert_eq!(last.as_i64(), i64::MAX);
        assert!(PartitionCount::try_from(0).is_err());
    }

    #[test]
    fn text_is_digits_only() {
        assert_eq!("12".parse::<Partition>().map(Partition::get), Ok(12));
        assert_eq!("12".parse::<Offset>().map(Offset::get), Ok(12));
        for wrong in ["", "+1", "-1", " 1", "1 ", "x", "99999999999999999999"] {
            assert!(wrong.parse::<Partition>().is_err(), "{wrong:?}");
            assert!(wrong.parse::<Offset>().is_err(), "{wrong:?}");
        }
    }
}
