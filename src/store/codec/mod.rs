//! Owns all stored bytes: keys, values, the identity file, and receipts ([`receipt`]). Batches, which are the
//! journal's entries, and flow keys are in [`flow::codec`].
//!
//! `docs/internals/stored-format.md` draws these formats; [`FORMAT`] changes when one of them does. Decoders accept
//! any bytes and return [`Corrupt`] for those that no encoder writes; they never panic or guess.

mod receipt;
mod settlement;
mod span;

use crate::store::Position;
pub use flow::codec::{
    COUNTERS_BYTES, Corrupt, FlowKey, HOUR_BYTES, TOTALS_BYTES, decode_counters, decode_totals,
    encode_counters, encode_hour, encode_totals, push_hour, push_name, split_hour,
    starts_with_names, suffix, validate_key,
};
use flow::{Hour, HourRange};
pub use receipt::{
    NOTE_PREFIX, Receipt, decode_batch_receipt, decode_noted_receipt, decode_receipt,
    encode_noted_receipt, encode_receipt, note_key,
};
pub use settlement::{
    DROP_KEY, SETTLEMENT_KEY, decode_number, decode_numbered_hours, encode_number,
    encode_numbered_hours,
};
pub use span::{
    FINEST_ROWS_KEY, SPAN_PREFIX_BYTES, decode_finest_rows, decode_span_record_key,
    encode_finest_rows, is_record_of_spans, span_bounds, span_prefix, span_record_bounds,
    span_record_key, span_rows_end, split_span,
};

/// Version of everything in this file, stored in the identity file of a data directory.
pub const FORMAT: u32 = 7;

/// The first version with the family [`SETTLED`].
pub const FORMAT_WITH_SETTLED: u32 = 6;

/// The oldest version that can be read; an open upgrades a directory to [`FORMAT`].
pub const FORMAT_MIN: u32 = 2;

/// Name of the identity file, which marks a data directory.
pub const IDENTITY_FILE: &str = "FLOWTALLY";

/// Column family of the journal: [`journal_key`] -> batch.
pub const JOURNAL: &str = "journal";
/// Column family of the sums: [`FlowKey`] -> [`encode_counters`], the ledger, and the marker.
pub const FLOWS: &str = "flows";

/// Column family of the rows of settled hours: [`FlowKey`] -> [`encode_counters`].
pub const SETTLED: &str = "settled";

/// Column family of the receipts: idempotency key -> [`encode_receipt`], and of notes: [`note_key`] ->
/// [`encode_noted_receipt`].
pub const RECEIPTS: &str = "receipts";

/// Keys in `flows` and `settled` that are not flow keys start with an hour that no flow has, so they sort after all
/// flows.
pub const META_PREFIX: [u8; HOUR_BYTES] = [0xFF; HOUR_BYTES];

/// Start of the ledger's keys in `flows`; the hour follows.
const LEDGER_PREFIX: [u8; HOUR_BYTES + 1] = [0xFF, 0xFF, 0xFF, 0xFF, b'l'];

/// Key of the marker in `flows`: its value is the last journal position that the sums contain.
pub const MARKER_KEY: [u8; HOUR_BYTES + 1] = [0xFF, 0xFF, 0xFF, 0xFF, b'm'];

// ---------------------------------------------------------------------------------------- identity

/// Content of the identity file.
pub fn encode_identity() -> String {
    format!("flowtally data directory, format {FORMAT}\n")
}

/// The format version in the content of an identity file; `None` if we did not write it.
pub fn decode_identity(text: &str) -> Option<u32> {
    text.strip_prefix("flowtally data directory, format ")?
        .strip_suffix('\n')?
        .parse()
        .ok()
}

/// The bounds of an hour's keys (end exclusive).
pub fn hour_bounds(hour: Hour) -> ([u8; HOUR_BYTES], [u8; HOUR_BYTES]) {
    range_bounds(hour.into())
}

/// The bounds of the keys of a range of hours (end exclusive).
pub fn range_bounds(hours: HourRange) -> ([u8; HOUR_BYTES], [u8; HOUR_BYTES]) {
    // The end of the last hour is the meta prefix.
    (hours.start().to_be_bytes(), hours.end().to_be_bytes())
}

/// Key of an hour's entry in the ledger. Sorts by hour, after all flows.
pub fn ledger_key(hour: Hour) -> [u8; LEDGER_KEY_BYTES] {
    ledger_range_bounds(hour.into()).0
}

/// Bytes of a [`ledger_key`].
pub const LEDGER_KEY_BYTES: usize = LEDGER_PREFIX.len() + HOUR_BYTES;

/// Reads what [`ledger_key`] wrote.
pub fn decode_ledger_key(key: &[u8]) -> Result<Hour, Corrupt> {
    let hour = key.strip_prefix(&LEDGER_PREFIX).map(split_hour);
    match hour {
        Some(Ok((hour, []))) => Ok(hour),
        _ => Err(Corrupt("a key of the ledger is not one")),
    }
}

/// The bounds of the ledger's keys for a range of hours (end exclusive).
pub fn ledger_range_bounds(hours: HourRange) -> ([u8; LEDGER_KEY_BYTES], [u8; LEDGER_KEY_BYTES]) {
    let key = |hour: [u8; HOUR_BYTES]| {
        let mut key = [0; LEDGER_KEY_BYTES];
        key[..LEDGER_PREFIX.len()].copy_from_slice(&LEDGER_PREFIX);
        key[LEDGER_PREFIX.len()..].copy_from_slice(&hour);
        key
    };
    let (first, end) = range_bounds(hours);
    (key(first), key(end))
}

/// The bounds of all the ledger's keys (end exclusive).
pub fn ledger_bounds() -> (&'static [u8], &'static [u8]) {
    (&LEDGER_PREFIX, &MARKER_KEY)
}

/// Key of the journal entry at `position`.
pub fn journal_key(position: Position) -> [u8; 8] {
    position.get().to_be_bytes()
}

/// Reads what [`journal_key`] wrote.
pub fn decode_journal_key(key: &[u8]) -> Result<Position, Corrupt> {
    let key = key
        .try_into()
        .map_err(|_| Corrupt("a journal key is not eight bytes"))?;
    Ok(Position::new(u64::from_be_bytes(key)))
}

/// Mark at the end of each log record (log data in RocksDB's terms, which it skips): everything before the record was
/// synced when it was written. The mark is not zeros, so the end of a record never is; see [`super::torn`].
pub const SYNCED: &[u8] = b"synced";

/// The mark if commits do not wait for a sync: earlier records may be lost in a power cut while later ones are not.
pub const UNSYNCED: &[u8] = b"unsynced";

/// Value of the marker.
pub fn encode_marker(position: Position) -> [u8; 8] {
    position.get().to_le_bytes()
}

/// Reads what [`encode_marker`] wrote.
pub fn decode_marker(value: &[u8]) -> Result<Position, Corrupt> {
    let value = value
        .try_into()
        .map_err(|_| Corrupt("the marker is not eight bytes"))?;
    Ok(Position::new(u64::from_le_bytes(value)))
}

/// Checks an invariant for arbitrary bytes: no decoder panics, and encoding what a decoder accepts returns the same
/// bytes. For tests and fuzzing.
#[cfg(any(test, fuzzing))]
pub fn assert_store_codec_round_trips(bytes: &[u8]) {
    if let Ok(position) = decode_marker(bytes) {
        assert_eq!(encode_marker(position), bytes);
    }
    if let Ok(position) = decode_journal_key(bytes) {
        assert_eq!(journal_key(position), bytes);
    }
    if let Ok(number) = decode_number(bytes) {
        assert_eq!(encode_number(number), bytes);
    }
    if let Ok((number, hours)) = decode_numbered_hours(bytes) {
        assert_eq!(encode_numbered_hours(number, &hours), bytes);
    }
    if let Ok((receipt, note)) = decode_noted_receipt(bytes) {
        let again = match note {
            Some(note) => encode_noted_receipt(receipt, note),
            None => encode_receipt(receipt),
        };
        assert_eq!(again, bytes);
    }
    if let Ok(hour) = decode_ledger_key(bytes) {
        assert_eq!(ledger_key(hour), bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tiers::{FinestRows, Tier};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn decoders_accept_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            assert_store_codec_round_trips(&bytes);
        }
    }

    #[test]
    fn no_flow_has_a_meta_key() {
        let mut key = Vec::new();
        flow::codec::push_key(&mut key, Hour::LAST, b"", b"", b"");
        assert!(!key.starts_with(&META_PREFIX));
        assert!(
            MARKER_KEY.starts_with(&META_PREFIX)
                && ledger_key(Hour::FIRST).starts_with(&META_PREFIX)
        );
    }

    #[test]
    fn the_stored_bytes_are_pinned() {
        // The format on disk. A change here needs a new `FORMAT` and a way to read the old one.
        assert_eq!(
            ledger_key(Hour::new(258).unwrap()),
            *b"\xFF\xFF\xFF\xFFl\x00\x00\x01\x02"
        );
        let receipt = Receipt {
            fingerprint: 0x0102,
            time_s: 3,
            too_old: 4,
            position: Position::ZERO,
        };
        let stored = encode_receipt(receipt);
        assert_eq!(
            stored,
            *b"\x02\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0"
        );
        assert_eq!(decode_receipt(&stored), Ok(receipt));
        let none_too_old = Receipt {
            too_old: 0,
            ..receipt
        };
        assert_eq!(encode_receipt(none_too_old), stored[..24]);
        assert_eq!(decode_receipt(&stored[..24]), Ok(none_too_old));
        assert!(decode_receipt(&stored[..30]).is_err());
        let elsewhere = Receipt {
            position: Position::new(5),
            ..none_too_old
        };
        let stored = [&stored[..24], &[0; 8], b"\x05\0\0\0\0\0\0\0"].concat();
        assert_eq!(encode_receipt(elsewhere), stored);
        assert_eq!(decode_receipt(&stored), Ok(elsewhere));
        let stored = [&stored[..24], &[0; 16], b"note"].concat();
        assert_eq!(encode_noted_receipt(none_too_old, "note"), stored);
        assert_eq!(
            decode_noted_receipt(&stored),
            Ok((none_too_old, Some("note")))
        );
        assert!(decode_receipt(&stored[..40]).is_err());
        assert_eq!(note_key(b"import_a"), b"\0import_a");
        assert_eq!(decode_batch_receipt(&stored), Ok(Some(none_too_old)));
        let of_format_4 = [&[0; 16], &stored[16..]].concat();
        assert_eq!(decode_batch_receipt(&of_format_4), Ok(None));
        assert!(decode_receipt(&[&stored[..], b"\xFF"].concat()).is_err());
        assert_eq!(journal_key(Position::new(1)), *b"\0\0\0\0\0\0\0\x01");
        assert_eq!(encode_marker(Position::new(1)), *b"\x01\0\0\0\0\0\0\0");
        let day = Tier::Day.span_of(Hour::new(24 * 258).unwrap());
        assert_eq!(span_prefix(day), *b"\xFF\xFF\xFF\xFFD\x00\x00\x01\x02");
        let block = Tier::ThirtyDays.span_of(Hour::new(720 * 3).unwrap());
        assert_eq!(
            span_record_key(block),
            *b"\xFF\xFF\xFF\xFFtM\x00\x00\x00\x03"
        );
        let finest = FinestRows {
            hours_from: Hour::new(720 * 3).unwrap(),
            days_from: Hour::new(720).unwrap(),
        };
        let stored = encode_finest_rows(finest);
        assert_eq!(stored, *b"\x00\x00\x08\x70\x00\x00\x02\xD0");
        assert_eq!(decode_finest_rows(&stored), Ok(finest));
        assert!(decode_finest_rows(&stored[..7]).is_err());
        assert_eq!(FINEST_ROWS_KEY, *b"\xFF\xFF\xFF\xFFf");
        assert_eq!(encode_identity(), "flowtally data directory, format 7\n");
        assert_eq!(decode_identity(&encode_identity()), Some(7));
        assert_eq!(decode_identity("something else"), None);
    }
}
