//! What a flow is, in the terms of the people who use the service. No I/O but a look at the clock, and no
//! knowledge of how anything is stored or sent.

mod hour_unit;
mod look_alike;
mod notes;
mod partition;

pub use hour_unit::HourUnit;

use std::fmt;

pub use notes::{Note, Notes};
pub use partition::{Offset, OutOfRange, Partition, PartitionCount};

/// Longest `src_app`, `dest_app` or `vpc_id`, in bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 1024;

/// The hour a flow belongs to: `0 ..= Hour::MAX`. Whether it counts from midnight or from the
/// epoch is the sender's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hour(u32);

impl Hour {
    /// The largest hour. `u32::MAX` itself is left free: it prefixes the keys that are not flows.
    pub const MAX: u32 = u32::MAX - 1;

    /// `None` when `hour` is larger than [`Hour::MAX`].
    pub fn new(hour: u64) -> Option<Hour> {
        match u32::try_from(hour) {
            Ok(hour) if hour <= Hour::MAX => Some(Hour(hour)),
            _ => None,
        }
    }

    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Hour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Bytes sent and received, of one flow or summed over many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes from `src_app` to `dest_app`.
    pub tx: u64,
    /// Bytes from `dest_app` to `src_app`.
    pub rx: u64,
}

impl Counters {
    /// Adds `other`; each sum stops at `u64::MAX` and never wraps. Returns whether one was stopped.
    ///
    /// Stopping at the top keeps addition associative and commutative (both ways of bracketing
    /// give `min(sum, MAX)`), so the order in which flows are merged never shows.
    #[inline]
    pub fn add(&mut self, other: Counters) -> bool {
        let (tx, tx_over) = self.tx.overflowing_add(other.tx);
        let (rx, rx_over) = self.rx.overflowing_add(other.rx);
        self.tx = if tx_over { u64::MAX } else { tx };
        self.rx = if rx_over { u64::MAX } else { rx };
        tx_over | rx_over
    }
}

/// What the flows of an hour add up to: an entry of the ledger, which is kept beside the rows and
/// has to agree with them. It stops at no top that could be reached: 2^64 flows of 2^64-1 bytes fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub flows: u64,
    /// Sum of `bytes_tx`.
    pub tx: u128,
    /// Sum of `bytes_rx`.
    pub rx: u128,
}

impl Totals {
    /// Adds `other`.
    #[inline]
    pub fn add(&mut self, other: Totals) {
        self.flows = self.flows.saturating_add(other.flows);
        self.tx = self.tx.saturating_add(other.tx);
        self.rx = self.rx.saturating_add(other.rx);
    }

    /// Takes away what was added before.
    pub fn sub(&mut self, other: Totals) {
        self.flows = self.flows.saturating_sub(other.flows);
        self.tx = self.tx.saturating_sub(other.tx);
        self.rx = self.rx.saturating_sub(other.rx);
    }

    /// Adds one flow.
    #[inline]
    pub fn count(&mut self, flow: Counters) {
        // 2^64 of them do not pass the top.
        self.flows += 1;
        self.tx += u128::from(flow.tx);
        self.rx += u128::from(flow.rx);
    }
}

/// Names a batch, so that it counts once however often it is sent: 1 to 255 visible ASCII characters
/// (the `Idempotency-Key` header of the IETF's httpapi draft).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(Box<str>);

impl IdempotencyKey {
    /// Longest key, in characters.
    pub const CHARS_MAX: usize = 255;

    /// Keys of what is imported from files begin with this. They are kept for longer than others are.
    pub const IMPORT_PREFIX: &str = "import_";

    /// `None` when `key` is empty, too long, or has a character that is not visible ASCII.
    pub fn new(key: &[u8]) -> Option<IdempotencyKey> {
        let text = std::str::from_utf8(key).ok()?;
        IdempotencyKey::is_valid(key).then(|| IdempotencyKey(text.into()))
    }

    /// Whether [`IdempotencyKey::new`] takes `key`.
    pub fn is_valid(key: &[u8]) -> bool {
        let fits = (1..=IdempotencyKey::CHARS_MAX).contains(&key.len());
        fits && key.iter().all(u8::is_ascii_graphic)
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The six fields of a flow, named as the API names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    SrcApp,
    DestApp,
    VpcId,
    BytesTx,
    BytesRx,
    Hour,
}

impl Field {
    /// In the order in which answers show them.
    pub const ALL: [Field; 6] = [
        Field::SrcApp,
        Field::DestApp,
        Field::VpcId,
        Field::BytesTx,
        Field::BytesRx,
        Field::Hour,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Field::SrcApp => "src_app",
            Field::DestApp => "dest_app",
            Field::VpcId => "vpc_id",
            Field::BytesTx => "bytes_tx",
            Field::BytesRx => "bytes_rx",
            Field::Hour => "hour",
        }
    }

    /// The field called `name`, exactly as spelled.
    pub fn from_name(name: &[u8]) -> Option<Field> {
        Field::ALL.into_iter().find(|f| f.name().as_bytes() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_stop_at_the_top_and_say_so() {
        let mut c = Counters {
            tx: u64::MAX - 1,
            rx: 5,
        };
        assert!(!c.add(Counters { tx: 1, rx: 1 }));
        assert_eq!(
            c,
            Counters {
                tx: u64::MAX,
                rx: 6
            }
        );
        assert!(c.add(Counters { tx: 1, rx: 1 }));
        assert_eq!(
            c,
            Counters {
                tx: u64::MAX,
                rx: 7
            }
        );
    }

    #[test]
    fn hours_stop_one_short_of_u32() {
        assert_eq!(Hour::new(4_294_967_294).map(Hour::get), Some(4_294_967_294));
        assert_eq!(Hour::new(4_294_967_295), None);
        assert_eq!(Hour::new(u64::MAX), None);
    }
}
