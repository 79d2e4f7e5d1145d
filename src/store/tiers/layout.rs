//! Keys of rows of hours and of spans, by the same methods.

use super::Tier;
use crate::store::codec::{self, Corrupt, HOUR_BYTES, SPAN_PREFIX_BYTES};
use flow::{Hour, HourRange};

/// How keys of rows are laid out. A span is identified by its first hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct KeyLayout {
    /// `None`: rows of hours.
    tier: Option<Tier>,
}

impl KeyLayout {
    pub(in crate::store) const HOURS: KeyLayout = KeyLayout { tier: None };

    pub(in crate::store) fn of(tier: Tier) -> KeyLayout {
        KeyLayout { tier: Some(tier) }
    }

    /// The hour or span and the suffix of a key.
    #[inline]
    pub(in crate::store) fn split(self, key: &[u8]) -> Result<(Hour, &[u8]), Corrupt> {
        match self.tier {
            None => codec::split_hour(key),
            Some(tier) => {
                let (span, suffix) = codec::split_span(key)?;
                Ok((tier.span(span).first_hour(), suffix))
            }
        }
    }

    /// The suffix of a key.
    #[inline]
    pub(in crate::store) fn suffix(self, key: &[u8]) -> Result<&[u8], Corrupt> {
        match self.tier {
            None => codec::suffix(key),
            Some(_) => Ok(codec::split_span(key)?.1),
        }
    }

    /// The start of the keys of the hour, or of the span that begins with it.
    pub(in crate::store) fn prefix(self, hour: Hour) -> Vec<u8> {
        match self.tier {
            None => codec::encode_hour(hour).to_vec(),
            Some(tier) => codec::span_prefix(tier.span_of(hour)).to_vec(),
        }
    }

    /// The first hour of the next hour or span; `None` after the last.
    pub(in crate::store) fn next(self, hour: Hour) -> Option<Hour> {
        match self.tier {
            None => hour.next(),
            Some(tier) => Hour::new(u64::from(hour.get()) + u64::from(tier.hours())),
        }
    }

    /// The bounds of the keys of these hours, which are whole spans (end exclusive).
    pub(in crate::store) fn bounds(self, hours: HourRange) -> (Vec<u8>, Vec<u8>) {
        match self.tier {
            None => {
                let (lower, upper) = codec::range_bounds(hours);
                (lower.to_vec(), upper.to_vec())
            }
            Some(tier) => {
                let numbers = hours.start() / tier.hours()..hours.end().div_ceil(tier.hours());
                let (lower, upper) = codec::span_bounds(tier, numbers);
                (lower.to_vec(), upper.to_vec())
            }
        }
    }

    /// The hours or spans of a range, one by one.
    pub(in crate::store) fn units(self, hours: HourRange) -> impl Iterator<Item = HourRange> {
        let step = self.tier.map_or(1, Tier::hours);
        let starts = (hours.start()..hours.end()).step_by(step as usize);
        starts.map(move |start| match self.tier {
            None => (start..start + 1).into(),
            Some(tier) => tier.span(start / step).hours(),
        })
    }

    /// Bytes of a key before its suffix.
    pub(in crate::store) fn prefix_bytes(self) -> usize {
        match self.tier {
            None => HOUR_BYTES,
            Some(_) => SPAN_PREFIX_BYTES,
        }
    }
}
