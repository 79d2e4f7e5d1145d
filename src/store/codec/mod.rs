//! Every byte that is stored, and nothing else: keys, values, the identity file; batches, which are the
//! journal's entries, in [`records`], receipts in [`receipt`].
//!
//! `docs/internals/stored-format.md` draws these formats; [`FORMAT`] changes when one of them does. Decoders take
//! any bytes: what is not ours is [`Corrupt`], never a panic and never a guess.

mod receipt;
mod records;

pub use receipt::{
    NOTE_PREFIX, Receipt, decode_batch_receipt, decode_noted_receipt, decode_receipt,
    encode_noted_receipt, encode_receipt, note_key,
};
pub use records::{
    BATCH_TOTALS_BYTES, Record, Records, batch_ledger, begin_batch, end_batch, push_record_head,
};

use std::borrow::Cow;

use bincode::config::{Configuration, Fixint, LittleEndian};

use crate::domain::{Counters, Hour, NAME_BYTES_MAX, Totals};

/// Version of everything in this file, stored in the identity file of a data directory.
pub const FORMAT: u32 = 5;

/// The oldest version that can be read; an open brings a directory up to [`FORMAT`].
pub const FORMAT_MIN: u32 = 2;

/// Name of the identity file; its presence makes a directory ours.
pub const IDENTITY_FILE: &str = "FLOWTALLY";

/// Column family of the journal: [`journal_key`] -> batch.
pub const JOURNAL: &str = "journal";
/// Column family of the sums: [`FlowKey`] -> [`encode_counters`], the ledger, and the marker.
pub const FLOWS: &str = "flows";

/// Column family of the receipts: idempotency key -> [`encode_receipt`], and of notes: [`note_key`] ->
/// [`encode_noted_receipt`].
pub const RECEIPTS: &str = "receipts";

/// Bytes of an encoded [`Counters`].
pub const COUNTERS_BYTES: usize = 16;
/// Bytes of encoded [`Totals`].
pub const TOTALS_BYTES: usize = 40;
/// Bytes of the hour in front of a flow key.
pub const HOUR_BYTES: usize = 4;
/// Longest flow key: every byte of every name a NUL, which takes two bytes, and three terminators.
pub const KEY_BYTES_MAX: usize = HOUR_BYTES + 3 * (2 * NAME_BYTES_MAX + 1);

/// Keys in `flows` that are not flows start with an hour that no flow can have, so that they sort
/// after all of them.
const META_PREFIX: [u8; HOUR_BYTES] = [0xFF; HOUR_BYTES];

/// Start of the ledger's keys in `flows`; the hour follows.
const LEDGER_PREFIX: [u8; HOUR_BYTES + 1] = [0xFF, 0xFF, 0xFF, 0xFF, b'l'];

/// Key of the marker in `flows`: its value is the last journal position that the sums contain.
pub const MARKER_KEY: [u8; HOUR_BYTES + 1] = [0xFF, 0xFF, 0xFF, 0xFF, b'm'];

const BINCODE: Configuration<LittleEndian, Fixint> = bincode::config::standard()
    .with_little_endian()
    .with_fixed_int_encoding();

/// Stored bytes that this version of the format cannot have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Corrupt(pub &'static str);

// ---------------------------------------------------------------------------------------- identity

/// Content of the identity file.
pub fn encode_identity() -> String {
    format!("flowtally data directory, format {FORMAT}\n")
}

/// The format version in an identity file's content, or `None` when we did not write it.
pub fn decode_identity(text: &str) -> Option<u32> {
    text.strip_prefix("flowtally data directory, format ")?
        .strip_suffix('\n')?
        .parse()
        .ok()
}

// -------------------------------------------------------------------------------------------- keys

/// Appends one name so that byte order of keys is order of names and no two tuples collide: NUL is
/// written `00 FF`, and `00` ends the name (FoundationDB's tuple layer; `FF` occurs in no UTF-8).
#[inline]
pub fn push_name(key: &mut Vec<u8>, name: &[u8]) {
    if name.contains(&0) {
        for &byte in name {
            key.push(byte);
            if byte == 0 {
                key.push(0xFF);
            }
        }
    } else {
        key.extend_from_slice(name);
    }
    key.push(0);
}

/// Appends the key of (`hour`, `src_app`, `dest_app`, `vpc_id`).
pub fn push_key(key: &mut Vec<u8>, hour: Hour, src_app: &[u8], dest_app: &[u8], vpc_id: &[u8]) {
    key.extend_from_slice(&hour.get().to_be_bytes());
    push_name(key, src_app);
    push_name(key, dest_app);
    push_name(key, vpc_id);
}

/// Like [`push_key`], for names without a NUL.
#[inline]
pub fn push_plain_key(key: &mut Vec<u8>, hour: Hour, names: [&[u8]; 3]) {
    key.extend_from_slice(&hour.get().to_be_bytes());
    for name in names {
        debug_assert!(!name.contains(&0));
        key.extend_from_slice(name);
        key.push(0);
    }
}

/// The keys of an hour are those from the first (inclusive) to the second (exclusive).
pub fn hour_bounds(hour: Hour) -> ([u8; HOUR_BYTES], [u8; HOUR_BYTES]) {
    // `Hour::MAX` is one short of `u32::MAX`, so the end bound exists: the meta prefix at most.
    (hour.get().to_be_bytes(), (hour.get() + 1).to_be_bytes())
}

/// What is before the first NUL and behind it. Names are short: a loop beats a search that sets up.
#[inline]
fn split_at_nul(text: &str) -> Option<(&str, &str)> {
    let end = text.bytes().position(|byte| byte == 0)?;
    Some((&text[..end], &text[end + 1..]))
}

/// Splits off the name that `rest` begins with: still escaped, with its terminator, as [`push_name`]
/// wrote it. What is left is the second.
#[inline]
pub fn split_name(rest: &[u8]) -> Result<(&[u8], &[u8]), Corrupt> {
    let mut end = 0;
    loop {
        match rest.get(end) {
            None => return Err(Corrupt("a key's name has no end")),
            Some(0) if rest.get(end + 1) == Some(&0xFF) => end += 2,
            Some(0) => return Ok(rest.split_at(end + 1)),
            Some(_) => end += 1,
        }
    }
}

/// Splits what follows the hour in a flow key into its names, as [`split_name`] does.
#[inline]
pub fn split_names(mut rest: &[u8]) -> Result<[&[u8]; 3], Corrupt> {
    let mut names: [&[u8]; 3] = [&[]; 3];
    for name in &mut names {
        (*name, rest) = split_name(rest)?;
    }
    if !rest.is_empty() {
        return Err(Corrupt("a key has bytes after its names"));
    }
    Ok(names)
}

/// The name that [`split_name`] split off.
pub fn decode_name(name: &[u8]) -> Result<Cow<'_, str>, Corrupt> {
    const NOT_UTF8: Corrupt = Corrupt("a name is not UTF-8");
    let Some((0, name)) = name.split_last() else {
        return Err(Corrupt("a key's name has no end"));
    };
    if !name.contains(&0) {
        return std::str::from_utf8(name)
            .map(Cow::Borrowed)
            .map_err(|_| NOT_UTF8);
    }
    let mut plain = Vec::with_capacity(name.len());
    let mut bytes = name.iter();
    while let Some(&byte) = bytes.next() {
        plain.push(byte);
        if byte == 0 {
            bytes.next(); // the FF that `split_name` saw
        }
    }
    String::from_utf8(plain)
        .map(Cow::Owned)
        .map_err(|_| NOT_UTF8)
}

/// A decoded flow key. Names borrow from the key unless they hold a NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowKey<'a> {
    pub hour: Hour,
    pub src_app: Cow<'a, str>,
    pub dest_app: Cow<'a, str>,
    pub vpc_id: Cow<'a, str>,
}

impl<'a> FlowKey<'a> {
    /// Reads a key that [`push_key`] wrote.
    pub fn decode(key: &'a [u8]) -> Result<FlowKey<'a>, Corrupt> {
        let (hour, names) = key_hour(key)?;
        FlowKey::decode_names(hour, names)
    }

    /// Reads what follows the hour in a key that [`push_key`] wrote.
    #[inline]
    pub fn decode_names(hour: Hour, names: &'a [u8]) -> Result<FlowKey<'a>, Corrupt> {
        // Without a NUL in a name there is no FF, and the whole is UTF-8 as it stands.
        if let Ok(text) = std::str::from_utf8(names)
            && let Some((src_app, rest)) = split_at_nul(text)
            && let Some((dest_app, rest)) = split_at_nul(rest)
            && let Some((vpc_id, "")) = split_at_nul(rest)
        {
            return Ok(FlowKey {
                hour,
                src_app: Cow::Borrowed(src_app),
                dest_app: Cow::Borrowed(dest_app),
                vpc_id: Cow::Borrowed(vpc_id),
            });
        }
        let [src_app, dest_app, vpc_id] = split_names(names)?;
        Ok(FlowKey {
            hour,
            src_app: decode_name(src_app)?,
            dest_app: decode_name(dest_app)?,
            vpc_id: decode_name(vpc_id)?,
        })
    }
}

/// The hour that `key` begins with, and its names.
#[inline]
fn key_hour(key: &[u8]) -> Result<(Hour, &[u8]), Corrupt> {
    let (hour, names) = key
        .split_first_chunk::<HOUR_BYTES>()
        .ok_or(Corrupt("a key is too short"))?;
    let hour = Hour::new(u64::from(u32::from_be_bytes(*hour)))
        .ok_or(Corrupt("a key's hour is out of range"))?;
    Ok((hour, names))
}

/// The hour of `key`, if [`push_key`] can have written it.
pub fn check_key(key: &[u8]) -> Result<Hour, Corrupt> {
    let (hour, names) = key_hour(key)?;
    // Nearly all are three plain names of ASCII, and nobody asks for them here.
    let nuls = names.iter().filter(|&&byte| byte == 0).count();
    if !(nuls == 3 && names.ends_with(&[0]) && names.is_ascii()) {
        FlowKey::decode_names(hour, names)?;
    }
    Ok(hour)
}

/// Whether `key` in `flows` is not a flow's.
pub fn is_meta_key(key: &[u8]) -> bool {
    key.starts_with(&META_PREFIX)
}

// ------------------------------------------------------------------------------------------ values

/// Both counters, fixed width, little-endian.
#[inline]
pub fn encode_counters(counters: Counters) -> [u8; COUNTERS_BYTES] {
    let mut value = [0; COUNTERS_BYTES];
    // Two fixed-width integers always fit sixteen bytes; the error arm cannot be reached, and a
    // merge callback must not panic, so it is left without effect.
    let _fits = bincode::encode_into_slice((counters.tx, counters.rx), &mut value, BINCODE);
    value
}

/// Reads what [`encode_counters`] wrote.
#[inline]
pub fn decode_counters(value: &[u8]) -> Result<Counters, Corrupt> {
    if value.len() != COUNTERS_BYTES {
        return Err(Corrupt("a value is not sixteen bytes"));
    }
    let ((tx, rx), _) = bincode::decode_from_slice(value, BINCODE)
        .map_err(|_| Corrupt("a value is not two integers"))?;
    Ok(Counters { tx, rx })
}

/// An hour's totals, fixed width, little-endian.
pub fn encode_totals(totals: Totals) -> [u8; TOTALS_BYTES] {
    let mut value = [0; TOTALS_BYTES];
    // As in [`encode_counters`].
    let _fits =
        bincode::encode_into_slice((totals.flows, totals.tx, totals.rx), &mut value, BINCODE);
    value
}

/// Reads what [`encode_totals`] wrote.
pub fn decode_totals(value: &[u8]) -> Result<Totals, Corrupt> {
    if value.len() != TOTALS_BYTES {
        return Err(Corrupt("an hour's totals are not forty bytes"));
    }
    let ((flows, tx, rx), _) = bincode::decode_from_slice(value, BINCODE)
        .map_err(|_| Corrupt("an hour's totals are not three integers"))?;
    Ok(Totals { flows, tx, rx })
}

/// Key of an hour's entry in the ledger. Sorts by hour, after all flows.
pub fn ledger_key(hour: u32) -> [u8; LEDGER_KEY_BYTES] {
    let mut key = [0; LEDGER_KEY_BYTES];
    key[..LEDGER_PREFIX.len()].copy_from_slice(&LEDGER_PREFIX);
    key[LEDGER_PREFIX.len()..].copy_from_slice(&hour.to_be_bytes());
    key
}

/// Bytes of a [`ledger_key`].
pub const LEDGER_KEY_BYTES: usize = LEDGER_PREFIX.len() + HOUR_BYTES;

/// Reads what [`ledger_key`] wrote.
pub fn decode_ledger_key(key: &[u8]) -> Result<Hour, Corrupt> {
    key.strip_prefix(&LEDGER_PREFIX)
        .and_then(|hour| hour.try_into().ok())
        .and_then(|hour| Hour::new(u64::from(u32::from_be_bytes(hour))))
        .ok_or(Corrupt("a key of the ledger is not one"))
}

/// Bounds of the ledger's keys: from, and up to but without.
pub fn ledger_bounds() -> (&'static [u8], &'static [u8]) {
    (&LEDGER_PREFIX, &MARKER_KEY)
}

/// Key of the journal entry at `position`.
pub fn journal_key(position: u64) -> [u8; 8] {
    position.to_be_bytes()
}

/// Reads what [`journal_key`] wrote.
pub fn decode_journal_key(key: &[u8]) -> Result<u64, Corrupt> {
    let key = key
        .try_into()
        .map_err(|_| Corrupt("a journal key is not eight bytes"))?;
    Ok(u64::from_be_bytes(key))
}

/// Ends each record of the log (as what RocksDB calls log data, which it skips): everything before the
/// record was synced when it was written. So the end of a record is never zeros; see [`super::torn`].
pub const SYNCED: &[u8] = b"synced";

/// The same where commits wait for no sync: earlier records may be lost in a power cut though later ones
/// are there.
pub const UNSYNCED: &[u8] = b"unsynced";

/// Value of the marker.
pub fn encode_marker(position: u64) -> [u8; 8] {
    position.to_le_bytes()
}

/// Reads what [`encode_marker`] wrote.
pub fn decode_marker(value: &[u8]) -> Result<u64, Corrupt> {
    let value = value
        .try_into()
        .map_err(|_| Corrupt("the marker is not eight bytes"))?;
    Ok(u64::from_le_bytes(value))
}

/// What has to hold of any bytes: no decoder panics, and what one takes, its encoder gives back. For
/// tests and fuzzing.
#[cfg(any(test, fuzzing))]
pub fn check(bytes: &[u8]) {
    if let Ok(counters) = decode_counters(bytes) {
        assert_eq!(encode_counters(counters), bytes);
    }
    if let Ok(totals) = decode_totals(bytes) {
        assert_eq!(encode_totals(totals), bytes);
    }
    if let Ok(position) = decode_marker(bytes) {
        assert_eq!(encode_marker(position), bytes);
    }
    if let Ok(position) = decode_journal_key(bytes) {
        assert_eq!(journal_key(position), bytes);
    }
    if let Ok((receipt, note)) = decode_noted_receipt(bytes) {
        let again = match note {
            Some(note) => encode_noted_receipt(receipt, note),
            None => encode_receipt(receipt),
        };
        assert_eq!(again, bytes);
    }
    if let Ok(hour) = decode_ledger_key(bytes) {
        assert_eq!(ledger_key(hour.get()), bytes);
    }
    let hour = FlowKey::decode(bytes).map(|key| key.hour);
    assert_eq!(check_key(bytes), hour);
    if let Ok(key) = FlowKey::decode(bytes) {
        let mut again = Vec::new();
        let (src, dest) = (key.src_app.as_bytes(), key.dest_app.as_bytes());
        push_key(&mut again, key.hour, src, dest, key.vpc_id.as_bytes());
        assert_eq!(again, bytes);
    }
    let _any_answer = batch_ledger(bytes).map(|entries| entries.count());
    if let Ok(records) = Records::new(bytes) {
        let errors = records.filter(Result::is_err).count();
        assert!(errors <= 1, "it goes on after an error");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn name() -> impl Strategy<Value = String> {
        // Few characters, so that equal prefixes, NULs next to terminators and the largest code
        // points meet often.
        prop_oneof![
            prop::collection::vec(
                prop::sample::select(vec!['\0', 'a', 'b', '\u{1}', '"', 'ÿ', '\u{10FFFF}', '🦀']),
                0..6
            )
            .prop_map(String::from_iter),
            ".{0,20}",
        ]
    }

    pub(super) fn key(hour: u32, names: &(String, String, String)) -> Vec<u8> {
        let mut key = Vec::new();
        push_key(
            &mut key,
            Hour::new(hour.into()).unwrap(),
            names.0.as_bytes(),
            names.1.as_bytes(),
            names.2.as_bytes(),
        );
        key
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn keys_round_trip(hour in 0..=Hour::MAX, names in (name(), name(), name())) {
            let key = key(hour, &names);
            let decoded = FlowKey::decode(&key).unwrap();
            prop_assert_eq!(decoded.hour.get(), hour);
            prop_assert_eq!(&decoded.src_app, &names.0);
            prop_assert_eq!(&decoded.dest_app, &names.1);
            prop_assert_eq!(&decoded.vpc_id, &names.2);
            prop_assert!(!is_meta_key(&key));
            check(&key);
        }

        #[test]
        fn key_order_is_tuple_order_and_nothing_collides(
            a in (0..3u32, (name(), name(), name())),
            b in (0..3u32, (name(), name(), name())),
        ) {
            let order = key(a.0, &a.1).cmp(&key(b.0, &b.1));
            prop_assert_eq!(order, a.cmp(&b));
        }

        #[test]
        fn counters_round_trip(tx: u64, rx: u64) {
            let counters = Counters { tx, rx };
            prop_assert_eq!(decode_counters(&encode_counters(counters)), Ok(counters));
        }

        #[test]
        fn decoders_take_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            check(&bytes);
        }
    }

    #[test]
    fn the_stored_bytes_are_these() {
        // The format on disk. A change here needs a new `FORMAT` and a way to read the old one.
        let mut key = Vec::new();
        push_key(&mut key, Hour::new(258).unwrap(), b"a\0b", b"", b"vpc-0");
        assert_eq!(key, b"\x00\x00\x01\x02a\x00\xFFb\x00\x00vpc-0\x00");
        let counters = Counters { tx: 1, rx: 0x0203 };
        assert_eq!(
            encode_counters(counters),
            *b"\x01\0\0\0\0\0\0\0\x03\x02\0\0\0\0\0\0"
        );
        let totals = Totals {
            flows: 1,
            tx: 1,
            rx: 0x0203,
        };
        assert_eq!(
            encode_totals(totals),
            *b"\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x03\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
        );
        assert_eq!(ledger_key(258), *b"\xFF\xFF\xFF\xFFl\x00\x00\x01\x02");
        let mut batch = Vec::new();
        begin_batch(&mut batch);
        push_record_head(&mut batch, key.len(), counters);
        batch.extend_from_slice(&key);
        end_batch(&mut batch, 1, [(258, totals)]);
        assert_eq!(
            batch,
            [
                &b"\x02\x01\0\0\0\x16\0\0\0"[..],
                b"\x10\x00\x21\x01\x03\x02",
                key.as_slice(),
                b"\x00\x00\x01\x02",
                &encode_totals(totals),
            ]
            .concat()
        );
        let receipt = Receipt {
            fingerprint: 0x0102,
            time_s: 3,
            expired: 4,
            position: 0,
        };
        let stored = encode_receipt(receipt);
        assert_eq!(
            stored,
            *b"\x02\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0"
        );
        assert_eq!(decode_receipt(&stored), Ok(receipt));
        let none_expired = Receipt {
            expired: 0,
            ..receipt
        };
        assert_eq!(encode_receipt(none_expired), stored[..24]);
        assert_eq!(decode_receipt(&stored[..24]), Ok(none_expired));
        assert!(decode_receipt(&stored[..30]).is_err());
        let elsewhere = Receipt {
            position: 5,
            ..none_expired
        };
        let stored = [&stored[..24], &[0; 8], b"\x05\0\0\0\0\0\0\0"].concat();
        assert_eq!(encode_receipt(elsewhere), stored);
        assert_eq!(decode_receipt(&stored), Ok(elsewhere));
        let stored = [&stored[..24], &[0; 16], b"note"].concat();
        assert_eq!(encode_noted_receipt(none_expired, "note"), stored);
        assert_eq!(
            decode_noted_receipt(&stored),
            Ok((none_expired, Some("note")))
        );
        assert!(decode_receipt(&stored[..40]).is_err());
        assert_eq!(note_key(b"import_a"), b"\0import_a");
        assert_eq!(decode_batch_receipt(&stored), Ok(Some(none_expired)));
        let of_format_4 = [&[0; 16], &stored[16..]].concat();
        assert_eq!(decode_batch_receipt(&of_format_4), Ok(None));
        assert!(decode_receipt(&[&stored[..], b"\xFF"].concat()).is_err());
        assert_eq!(journal_key(1), *b"\0\0\0\0\0\0\0\x01");
        assert_eq!(encode_marker(1), *b"\x01\0\0\0\0\0\0\0");
        assert_eq!(encode_identity(), "flowtally data directory, format 5\n");
        assert_eq!(decode_identity(&encode_identity()), Some(5));
        assert_eq!(decode_identity("something else"), None);
    }
}
