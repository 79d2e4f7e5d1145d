//! Stored batches: a header, one record per flow, and the batch's own ledger.

use super::{
    Corrupt, HOUR_BYTES, KEY_BYTES_MAX, TOTALS_BYTES, decode_totals, encode_hour, encode_totals,
    split_hour,
};
use crate::{Counters, Hour, Totals};

/// First byte of a stored batch.
const BATCH_VERSION: u8 = 2;
/// Version byte, number of flows, bytes of the records.
pub const BATCH_HEADER_BYTES: usize = 9;
/// Bytes of an entry of a batch's own ledger: hour and totals.
pub const BATCH_TOTALS_BYTES: usize = HOUR_BYTES + TOTALS_BYTES;
/// Bytes of a record before its counters: key length and widths.
const RECORD_HEADER_BYTES: usize = 3;
/// Maximum number of bytes of a record before its key.
pub const RECORD_HEAD_BYTES_MAX: usize = RECORD_HEADER_BYTES + 16;

/// Starts a batch with a header, which [`end_batch`] fills in.
pub fn begin_batch(batch: &mut Vec<u8>) {
    batch.extend_from_slice(&[0; BATCH_HEADER_BYTES]);
    batch[0] = BATCH_VERSION;
}

/// Ends a batch of `flows` records: fills in the header and appends the ledger, the totals by hour.
pub fn end_batch(
    batch: &mut Vec<u8>,
    flows: u32,
    ledger: impl IntoIterator<Item = (Hour, Totals)>,
) {
    let records = (batch.len() - BATCH_HEADER_BYTES) as u32; // at most `BODY_BYTES_MAX`
    batch[1..5].copy_from_slice(&flows.to_le_bytes());
    batch[5..BATCH_HEADER_BYTES].copy_from_slice(&records.to_le_bytes());
    for (hour, totals) in ledger {
        batch.extend_from_slice(&encode_hour(hour));
        batch.extend_from_slice(&encode_totals(totals));
    }
}

/// The parts of a stored batch: number of flows, records, ledger.
fn split_batch(batch: &[u8]) -> Result<(u32, &[u8], &[u8]), Corrupt> {
    let (header, rest) = batch
        .split_first_chunk::<BATCH_HEADER_BYTES>()
        .ok_or(Corrupt("a batch is too short"))?;
    let [version, f0, f1, f2, f3, bytes @ ..] = *header;
    if version != BATCH_VERSION {
        return Err(Corrupt("a batch is of an unknown version"));
    }
    let (records, ledger) = rest
        .split_at_checked(u32::from_le_bytes(bytes) as usize)
        .ok_or(Corrupt("a batch ends inside its records"))?;
    Ok((u32::from_le_bytes([f0, f1, f2, f3]), records, ledger))
}

/// The ledger of a stored batch: totals by hour, each hour once.
pub fn batch_ledger(
    batch: &[u8],
) -> Result<impl ExactSizeIterator<Item = Result<(Hour, Totals), Corrupt>>, Corrupt> {
    let (_, _, ledger) = split_batch(batch)?;
    Ok(ledger.chunks(BATCH_TOTALS_BYTES).map(|entry| {
        let (hour, totals) = split_hour(entry)?;
        Ok((hour, decode_totals(totals)?))
    }))
}

/// Bytes of `n` without leading zeros: 0 ..= 8.
#[inline]
fn width(n: u64) -> usize {
    8 - n.leading_zeros() as usize / 8
}

/// Appends a record up to its key: key length, widths, counters. The caller appends the key of `key_bytes` bytes.
/// Counters have variable width, since the journal is written twice (log and memtable) and most counters are small.
#[inline]
pub fn push_record_head(batch: &mut Vec<u8>, key_bytes: usize, counters: Counters) {
    debug_assert!(key_bytes <= KEY_BYTES_MAX);
    let (tx_width, rx_width) = (width(counters.tx), width(counters.rx));
    let mut head = [0; RECORD_HEAD_BYTES_MAX];
    head[..2].copy_from_slice(&(key_bytes as u16).to_le_bytes());
    head[2] = (tx_width | rx_width << 4) as u8;
    head[3..11].copy_from_slice(&counters.tx.to_le_bytes());
    let rx_at = RECORD_HEADER_BYTES + tx_width;
    head[rx_at..rx_at + 8].copy_from_slice(&counters.rx.to_le_bytes());
    batch.extend_from_slice(&head[..rx_at + rx_width]);
}

/// One flow of a stored batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The whole flow key.
    pub key: &'a [u8],
    pub counters: Counters,
    /// The whole record as stored.
    pub stored: &'a [u8],
}

/// Reads the records of a stored batch, in order. Stops after the first error.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
    left: u32,
}

impl<'a> Records<'a> {
    pub fn new(batch: &'a [u8]) -> Result<Records<'a>, Corrupt> {
        let (left, rest, _) = split_batch(batch)?;
        Ok(Records { rest, left })
    }

    #[inline]
    fn read(&mut self) -> Result<Record<'a>, Corrupt> {
        const CUT: Corrupt = Corrupt("a batch ends inside a record");
        let [len_lo, len_hi, widths] =
            *self.rest.first_chunk::<RECORD_HEADER_BYTES>().ok_or(CUT)?;
        let key_bytes = usize::from(u16::from_le_bytes([len_lo, len_hi]));
        let (tx_width, rx_width) = (usize::from(widths & 15), usize::from(widths >> 4));
        if tx_width > 8 || rx_width > 8 {
            return Err(Corrupt("a record's counter is too wide"));
        }
        let rx_at = RECORD_HEADER_BYTES + tx_width;
        let key_at = rx_at + rx_width;
        let end = key_at + key_bytes;
        let key = self.rest.get(key_at..end).ok_or(CUT)?;
        if key_bytes < HOUR_BYTES {
            return Err(Corrupt("a record's key is too short"));
        }
        let counters = Counters {
            tx: read_uint(self.rest, RECORD_HEADER_BYTES, tx_width),
            rx: read_uint(self.rest, rx_at, rx_width),
        };
        let (stored, rest) = self.rest.split_at(end);
        self.rest = rest;
        self.left -= 1;
        Ok(Record {
            key,
            counters,
            stored,
        })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Corrupt>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            if self.rest.is_empty() {
                return None;
            }
            self.rest = &[];
            return Some(Err(Corrupt("a batch has bytes after its records")));
        }
        let record = self.read();
        if record.is_err() {
            (self.rest, self.left) = (&[], 0);
        }
        Some(record)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left as usize + 1))
    }
}

/// The little-endian integer of `width` bytes at `at`, which the caller has checked to be in range.
#[inline]
fn read_uint(bytes: &[u8], at: usize, width: usize) -> u64 {
    if let Some(word) = bytes[at..].first_chunk::<8>() {
        // One load and a mask; the higher bytes belong to what follows the integer.
        let mask = u64::MAX.checked_shr(64 - 8 * width as u32).unwrap_or(0);
        u64::from_le_bytes(*word) & mask
    } else {
        let mut word = [0; 8];
        word[..width].copy_from_slice(&bytes[at..at + width]);
        u64::from_le_bytes(word)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{key, name};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn records_round_trip(
            flows in prop::collection::vec(
                (0..=Hour::MAX, (name(), name(), name()), any::<u64>(), 0..=64u32, any::<u64>(), 0..=64u32),
                0..20,
            )
        ) {
            let mut batch = Vec::new();
            begin_batch(&mut batch);
            let mut expected = Vec::new();
            for (hour, names, tx, tx_shift, rx, rx_shift) in flows {
                let counters = Counters {
                    tx: tx.checked_shr(tx_shift).unwrap_or(0),
                    rx: rx.checked_shr(rx_shift).unwrap_or(0),
                };
                let key = key(hour, &names);
                push_record_head(&mut batch, key.len(), counters);
                batch.extend_from_slice(&key);
                expected.push((key, counters));
            }
            let ledger = [
                (Hour::new(7).unwrap(), Totals { flows: 1, tx: 2, rx: 3 }),
                (Hour::new(9).unwrap(), Totals::default()),
            ];
            end_batch(&mut batch, expected.len() as u32, ledger);
            let batch_ledger = |batch| batch_ledger(batch)?.collect::<Result<Vec<_>, _>>();
            prop_assert_eq!(batch_ledger(&batch).unwrap(), ledger);
            let got: Vec<_> = Records::new(&batch)
                .unwrap()
                .map(|r| r.map(|r| (r.key.to_vec(), r.counters)).unwrap())
                .collect();
            prop_assert_eq!(got, expected);
            // A cut anywhere gives an error and never a panic.
            for cut in 0..batch.len() {
                let records = Records::new(&batch[..cut]).and_then(|r| r.collect::<Result<Vec<_>, _>>());
                let ledger_read = batch_ledger(&batch[..cut]);
                let whole = ledger_read.is_ok_and(|l| l == ledger);
                prop_assert!(records.is_err() || !whole);
            }
        }
    }
}
