//! The encoding of batches: flow keys, counters, totals, and the records that contain them ([`records`]). The journal
//! stores batches, Kafka transports them, and rows are stored under the same keys.
//!
//! Decoders accept any bytes and return [`Corrupt`] for those that no encoder writes; they never panic or guess.

mod records;

use std::borrow::Cow;

use bincode::config::{Configuration, Fixint, LittleEndian};

use crate::{Counters, Hour, NAME_BYTES_MAX, Totals};
pub use records::{
    BATCH_HEADER_BYTES, BATCH_TOTALS_BYTES, RECORD_HEAD_BYTES_MAX, Record, Records, batch_ledger,
    begin_batch, end_batch, push_record_head,
};

/// Bytes of an encoded [`Counters`].
pub const COUNTERS_BYTES: usize = 16;

/// Bytes of encoded [`Totals`].
pub const TOTALS_BYTES: usize = 40;

/// Bytes of the hour at the start of a flow key.
pub const HOUR_BYTES: usize = 4;

/// Maximum size of a flow key: all bytes of all names are NULs, which take two bytes each, and there are three
/// terminators.
pub const KEY_BYTES_MAX: usize = HOUR_BYTES + 3 * (2 * NAME_BYTES_MAX + 1);

const BINCODE: Configuration<LittleEndian, Fixint> = bincode::config::standard()
    .with_little_endian()
    .with_fixed_int_encoding();

/// Stored bytes that no encoder of a supported format writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Corrupt(pub &'static str);

/// Appends a name so that the byte order of keys is the order of names and different tuples have different keys: NUL
/// is written as `00 FF`, and `00` ends the name (FoundationDB's tuple encoding; `FF` does not occur in UTF-8).
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

/// The start of the keys of `hour`.
#[inline]
pub fn encode_hour(hour: Hour) -> [u8; HOUR_BYTES] {
    hour.get().to_be_bytes()
}

/// Appends the hour at the start of a key.
#[inline]
pub fn push_hour(key: &mut Vec<u8>, hour: Hour) {
    key.extend_from_slice(&encode_hour(hour));
}

/// Appends the key of (`hour`, `src_app`, `dest_app`, `vpc_id`).
pub fn push_key(key: &mut Vec<u8>, hour: Hour, src_app: &[u8], dest_app: &[u8], vpc_id: &[u8]) {
    push_hour(key, hour);
    push_name(key, src_app);
    push_name(key, dest_app);
    push_name(key, vpc_id);
}

/// Like [`push_key`], for names without a NUL.
#[inline]
pub fn push_plain_key(key: &mut Vec<u8>, hour: Hour, names: [&[u8]; 3]) {
    push_hour(key, hour);
    for name in names {
        debug_assert!(!name.contains(&0));
        key.extend_from_slice(name);
        key.push(0);
    }
}

/// Splits `text` at the first NUL. Names are short, so a loop is faster than a search with setup.
#[inline]
fn split_at_nul(text: &str) -> Option<(&str, &str)> {
    let end = text.bytes().position(|byte| byte == 0)?;
    Some((&text[..end], &text[end + 1..]))
}

/// Splits off the first name of `rest`, still escaped and with its terminator, as [`push_name`] wrote it. The second
/// part is the remainder.
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

/// Decodes a name that [`split_name`] split off.
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
        let (hour, names) = split_hour(key)?;
        FlowKey::decode_names(hour, names)
    }

    /// Reads what follows the hour in a key that [`push_key`] wrote.
    #[inline]
    pub fn decode_names(hour: Hour, names: &'a [u8]) -> Result<FlowKey<'a>, Corrupt> {
        // If no name contains a NUL, there is no FF, so all of it is UTF-8.
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

/// Splits `key` into its hour and its suffix, which has the names.
#[inline]
pub fn split_hour(key: &[u8]) -> Result<(Hour, &[u8]), Corrupt> {
    let (hour, names) = key
        .split_first_chunk::<HOUR_BYTES>()
        .ok_or(Corrupt("a key is too short"))?;
    let hour = Hour::new(u64::from(u32::from_be_bytes(*hour)))
        .ok_or(Corrupt("a key's hour is out of range"))?;
    Ok((hour, names))
}

/// The part of `key` after its hour.
#[inline]
pub fn suffix(key: &[u8]) -> Result<&[u8], Corrupt> {
    key.get(HOUR_BYTES..).ok_or(Corrupt("a key is too short"))
}

/// Whether `suffix` starts with these encoded names: `00 FF` is a NUL inside a name, not the end of one.
#[inline]
pub fn starts_with_names(suffix: &[u8], names: &[u8]) -> bool {
    suffix.starts_with(names) && (names.is_empty() || suffix.get(names.len()) != Some(&0xFF))
}

/// Validates that [`push_key`] can have written `key`, and returns its hour.
pub fn validate_key(key: &[u8]) -> Result<Hour, Corrupt> {
    let (hour, names) = split_hour(key)?;
    // Most keys are three plain ASCII names, which need not be decoded.
    let nuls = names.iter().filter(|&&byte| byte == 0).count();
    if !(nuls == 3 && names.ends_with(&[0]) && names.is_ascii()) {
        FlowKey::decode_names(hour, names)?;
    }
    Ok(hour)
}

/// Both counters, fixed width, little-endian.
#[inline]
pub fn encode_counters(counters: Counters) -> [u8; COUNTERS_BYTES] {
    let mut value = [0; COUNTERS_BYTES];
    // Two fixed-width integers always fit into sixteen bytes. The error cannot occur, and a merge callback must not
    // panic, so it is ignored.
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

/// Checks an invariant for arbitrary bytes: no decoder panics, and encoding what a decoder accepts returns the same
/// bytes. For tests and fuzzing.
#[cfg(any(test, fuzzing))]
pub fn assert_codec_round_trips(bytes: &[u8]) {
    if let Ok(counters) = decode_counters(bytes) {
        assert_eq!(encode_counters(counters), bytes);
    }
    if let Ok(totals) = decode_totals(bytes) {
        assert_eq!(encode_totals(totals), bytes);
    }
    let hour = FlowKey::decode(bytes).map(|key| key.hour);
    assert_eq!(validate_key(bytes), hour);
    if let Ok(key) = FlowKey::decode(bytes) {
        let mut again = Vec::new();
        let (src, dest) = (key.src_app.as_bytes(), key.dest_app.as_bytes());
        push_key(&mut again, key.hour, src, dest, key.vpc_id.as_bytes());
        assert_eq!(again, bytes);
    }
    let _any_result = batch_ledger(bytes).map(|entries| entries.count());
    if let Ok(records) = Records::new(bytes) {
        let errors = records.filter(Result::is_err).count();
        assert!(errors <= 1, "records follow an error");
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
            assert_codec_round_trips(&key);
        }

        #[test]
        fn key_order_is_tuple_order_and_keys_do_not_collide(
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
        fn decoders_accept_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            assert_codec_round_trips(&bytes);
        }
    }

    #[test]
    fn the_stored_bytes_are_pinned() {
        // The format on disk. A change here needs a new version and a way to read the old one.
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
        let mut batch = Vec::new();
        begin_batch(&mut batch);
        push_record_head(&mut batch, key.len(), counters);
        batch.extend_from_slice(&key);
        end_batch(&mut batch, 1, [(Hour::new(258).unwrap(), totals)]);
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
    }
}
