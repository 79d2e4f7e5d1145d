//! Keys of the sums of spans of hours, in `settled`.
//!
//! ```text
//! row of a span       FF FF FF FF | tier u8 | number u32 BE | key suffix  ->  counters
//! record of a span    FF FF FF FF | 't' | tier u8 | number u32 BE         ->  nothing: the span has rows
//! finest rows         FF FF FF FF | 'f'                                   ->  hour u32 BE | hour u32 BE
//! ```

use super::{Corrupt, HOUR_BYTES, META_PREFIX};
use crate::store::tiers::{FinestRows, Span, Tier};
use flow::Hour;

/// Bytes of a span row's key before its suffix.
pub const SPAN_PREFIX_BYTES: usize = HOUR_BYTES + 1 + 4;

/// Start of the records' keys.
const RECORD_PREFIX: [u8; HOUR_BYTES + 1] = [0xFF, 0xFF, 0xFF, 0xFF, b't'];

const RECORD_BYTES: usize = RECORD_PREFIX.len() + 1 + 4;

/// No tier's letter is one of another key in `settled`.
fn letter(tier: Tier) -> u8 {
    match tier {
        Tier::Day => b'D',
        Tier::ThirtyDays => b'M',
    }
}

/// The start of the keys of a span's rows.
pub fn span_prefix(span: Span) -> [u8; SPAN_PREFIX_BYTES] {
    let mut prefix = [0; SPAN_PREFIX_BYTES];
    prefix[..HOUR_BYTES].copy_from_slice(&META_PREFIX);
    prefix[HOUR_BYTES] = letter(span.tier);
    prefix[HOUR_BYTES + 1..].copy_from_slice(&span.number.to_be_bytes());
    prefix
}

/// The number and the suffix of the key of a span's row.
#[inline]
pub fn split_span(key: &[u8]) -> Result<(u32, &[u8]), Corrupt> {
    let corrupt = Corrupt("the key of a span's row is too short");
    let (prefix, suffix) = key
        .split_first_chunk::<SPAN_PREFIX_BYTES>()
        .ok_or(corrupt)?;
    let [.., a, b, c, d] = *prefix;
    Ok((u32::from_be_bytes([a, b, c, d]), suffix))
}

/// The bounds of the keys of the rows of consecutive spans (end exclusive).
pub fn span_bounds(
    tier: Tier,
    numbers: std::ops::Range<u32>,
) -> ([u8; SPAN_PREFIX_BYTES], [u8; SPAN_PREFIX_BYTES]) {
    // No span has the number `u32::MAX`.
    let prefix = |number| span_prefix(Span { tier, number });
    (prefix(numbers.start), prefix(numbers.end))
}

/// Key of the record of a span.
pub fn span_record_key(span: Span) -> [u8; RECORD_BYTES] {
    let mut key = [0; RECORD_BYTES];
    key[..RECORD_PREFIX.len()].copy_from_slice(&RECORD_PREFIX);
    key[RECORD_PREFIX.len()] = letter(span.tier);
    key[RECORD_PREFIX.len() + 1..].copy_from_slice(&span.number.to_be_bytes());
    key
}

/// The bounds of all records' keys (end exclusive).
pub fn span_record_bounds() -> (&'static [u8], &'static [u8]) {
    const END: [u8; HOUR_BYTES + 1] = [0xFF, 0xFF, 0xFF, 0xFF, b't' + 1];
    (&RECORD_PREFIX, &END)
}

/// Reads what [`span_record_key`] wrote.
pub fn decode_span_record_key(key: &[u8]) -> Result<Span, Corrupt> {
    let corrupt = Corrupt("the key of a span's record cannot be decoded");
    let rest = key.strip_prefix(&RECORD_PREFIX).ok_or(corrupt)?;
    let (&of_tier, number) = rest.split_first().ok_or(corrupt)?;
    let tier = Tier::ALL.into_iter().find(|tier| letter(*tier) == of_tier);
    let number: [u8; 4] = number.try_into().map_err(|_| corrupt)?;
    let span = Span {
        tier: tier.ok_or(corrupt)?,
        number: u32::from_be_bytes(number),
    };
    (span.number <= span.tier.last_number())
        .then_some(span)
        .ok_or(corrupt)
}

/// Key of the hours from which on the rows of hours, and those of days, are kept.
pub const FINEST_ROWS_KEY: [u8; HOUR_BYTES + 1] = [0xFF, 0xFF, 0xFF, 0xFF, b'f'];

pub fn encode_finest_rows(finest: FinestRows) -> [u8; 8] {
    let mut value = [0; 8];
    value[..4].copy_from_slice(&finest.hours_from.get().to_be_bytes());
    value[4..].copy_from_slice(&finest.days_from.get().to_be_bytes());
    value
}

/// Reads what [`encode_finest_rows`] wrote.
pub fn decode_finest_rows(value: &[u8]) -> Result<FinestRows, Corrupt> {
    let corrupt = Corrupt("the record of the finest rows cannot be decoded");
    let hour = |bytes: [u8; 4]| Hour::new(u32::from_be_bytes(bytes).into()).ok_or(corrupt);
    let [a, b, c, d, e, f, g, h] = *value.first_chunk().ok_or(corrupt)?;
    let finest = FinestRows {
        hours_from: hour([a, b, c, d])?,
        days_from: hour([e, f, g, h])?,
    };
    let is_valid = value.len() == 8 && finest.days_from <= finest.hours_from;
    is_valid.then_some(finest).ok_or(corrupt)
}

/// The key behind all rows of spans of a tier, if `key` is one of these.
pub fn span_rows_end(key: &[u8]) -> Option<[u8; SPAN_PREFIX_BYTES]> {
    let behind = |tier: Tier| {
        let (first, behind) = span_bounds(tier, 0..tier.last_number() + 1);
        (first.as_slice() <= key && key < behind.as_slice()).then_some(behind)
    };
    Tier::ALL.into_iter().find_map(behind)
}

/// Whether `key` is a span's record, or that of the finest rows.
pub fn is_record_of_spans(key: &[u8]) -> bool {
    key == FINEST_ROWS_KEY || decode_span_record_key(key).is_ok()
}
