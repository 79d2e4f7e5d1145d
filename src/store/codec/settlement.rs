//! The records of steps that change two column families.
//!
//! RocksDB ingests files into one family atomically, but not into two. Such steps are numbered: the first ingest stores
//! the number with the hours, the second one only the number. If the numbers differ, the second ingest is missing.

use super::{Corrupt, HOUR_BYTES};
use flow::{Hour, HourRange};

/// Key of the last settlement. In `settled`, its value is [`encode_numbered_hours`]; then, in `flows`,
/// [`encode_number`].
pub const SETTLEMENT_KEY: [u8; HOUR_BYTES + 1] = [0xFF, 0xFF, 0xFF, 0xFF, b's'];

/// Key of the last drop of hours. In `flows`, its value is [`encode_numbered_hours`]; then, in `settled`,
/// [`encode_number`].
pub const DROP_KEY: [u8; HOUR_BYTES + 1] = [0xFF, 0xFF, 0xFF, 0xFF, b'd'];

const NUMBER_BYTES: usize = 8;

/// The number of a step.
pub fn encode_number(number: u64) -> [u8; NUMBER_BYTES] {
    number.to_le_bytes()
}

/// Reads what [`encode_number`] wrote.
pub fn decode_number(value: &[u8]) -> Result<u64, Corrupt> {
    let value = value
        .try_into()
        .map_err(|_| Corrupt("the number of a step is not eight bytes"))?;
    Ok(u64::from_le_bytes(value))
}

/// The number of a step, and its ranges of hours.
pub fn encode_numbered_hours(number: u64, hours: &[HourRange]) -> Vec<u8> {
    let mut value = encode_number(number).to_vec();
    for range in hours {
        value.extend_from_slice(&range.start().to_le_bytes());
        value.extend_from_slice(&range.end().to_le_bytes());
    }
    value
}

/// Reads what [`encode_numbered_hours`] wrote.
pub fn decode_numbered_hours(value: &[u8]) -> Result<(u64, Vec<HourRange>), Corrupt> {
    let corrupt = Corrupt("the hours of a step cannot be decoded");
    let (number, ranges) = value.split_at_checked(NUMBER_BYTES).ok_or(corrupt)?;
    let mut hours = Vec::with_capacity(ranges.len() / (2 * HOUR_BYTES));
    let (ranges, rest) = ranges.as_chunks::<{ 2 * HOUR_BYTES }>();
    if !rest.is_empty() {
        return Err(corrupt);
    }
    for &[a, b, c, d, e, f, g, h] in ranges {
        let (start, end) = (
            u32::from_le_bytes([a, b, c, d]),
            u32::from_le_bytes([e, f, g, h]),
        );
        if start >= end || Hour::new(u64::from(end) - 1).is_none() {
            return Err(corrupt);
        }
        hours.push((start..end).into());
    }
    Ok((decode_number(number)?, hours))
}
