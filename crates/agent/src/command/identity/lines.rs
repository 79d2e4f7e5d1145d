//! Lines that were cut inside their last field and were complete in a later version of the file.
//!
//! A file that is still being written may end inside the last field of a line, and that text may still parse as a flow.
//! Nothing distinguishes it from a complete line without a line end, so it is counted. When the file has grown, the
//! line has a different text. Two lines are the same line if the same records precede them, they differ in one field
//! only (the [`Stem`] is the rest), and that field of one is a prefix of the other's. So the last line of a file and
//! the first record of each batch are noted: the key of the note is made of the records before the line and of the
//! stem, and the value has the bytes that were counted. The complete line may be in a file with other columns, or in
//! JSON, so it is noted once for each of its fields. Different files with the same beginning may each have such a line,
//! so there are several keys per stem.

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::stems::{Stem, is_cut_of};
use super::{Chain, key};
use flow::{Counters, IdempotencyKey, Note};

/// Notes per stem.
const SLOTS: u32 = 8;
/// Longer last fields are stored as a hash.
const LAST_CHARS_MAX: usize = 42;

/// Keys of the notes about a line after `before` that begins a batch or ends a file.
pub(crate) fn slot_keys(before: &Chain, stem: &Stem) -> Vec<IdempotencyKey> {
    let slot = |slot| format!("line\0{:032x}\0{:032x}\0{slot}", before.content, stem.rest);
    let keys = (0..SLOTS).filter_map(|n| key(xxh3_128(slot(n).as_bytes())));
    keys.collect()
}

/// Key of the note about a line after `before` in the middle of a batch.
pub(crate) fn within_key(before: &Chain, rest: u128) -> Option<IdempotencyKey> {
    let text = format!("within\0{:032x}\0{rest:032x}", before.content);
    key(xxh3_128(text.as_bytes()))
}

/// The note about a line that was counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LineNote {
    /// The line was terminated: a longer line is a different line.
    pub(crate) has_ended: bool,
    /// Hash of the flow's hour and names.
    pub(crate) flow: u64,
    /// The bytes that were counted for the line.
    pub(crate) counters: Counters,
    last: Last,
}

/// The last field of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Last {
    Text(String),
    Hash { bytes: usize, hash: u64 },
}

impl LineNote {
    pub(crate) fn new(has_ended: bool, field: &str, flow: u64, counters: Counters) -> LineNote {
        let is_plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b',' | b'~');
        let last = match field.bytes().all(is_plain) && field.len() <= LAST_CHARS_MAX {
            true => Last::Text(field.into()),
            false => Last::Hash {
                bytes: field.len(),
                hash: xxh3_64(field.as_bytes()),
            },
        };
        LineNote {
            has_ended,
            flow,
            counters,
            last,
        }
    }

    pub(crate) fn note(&self) -> Option<Note> {
        let last = match &self.last {
            Last::Text(text) => text.clone(),
            Last::Hash { bytes, hash } => format!("~{bytes}~{hash:x}"),
        };
        let (ended, Counters { tx, rx }) = (u8::from(self.has_ended), self.counters);
        Note::new(&format!("l{ended}.{:x}.{tx:x}.{rx:x}.{last}", self.flow))
    }

    /// `None` for other kinds of notes.
    pub(crate) fn parse(note: &str) -> Option<LineNote> {
        let mut parts = note.strip_prefix('l')?.splitn(5, '.');
        let has_ended = match parts.next()? {
            "0" => false,
            "1" => true,
            _ => return None,
        };
        let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
        let (flow, tx, rx) = (number()?, number()?, number()?);
        let last = parts.next()?;
        let last = match last.strip_prefix('~') {
            None => Last::Text(last.into()),
            Some(rest) => {
                let (bytes, hash) = rest.split_once('~')?;
                Last::Hash {
                    bytes: bytes.parse().ok()?,
                    hash: u64::from_str_radix(hash, 16).ok()?,
                }
            }
        };
        Some(LineNote {
            has_ended,
            flow,
            counters: Counters { tx, rx },
            last,
        })
    }

    fn last_bytes(&self) -> usize {
        match &self.last {
            Last::Text(text) => text.len(),
            Last::Hash { bytes, .. } => *bytes,
        }
    }

    /// Whether the noted field is a proper prefix of the stem's.
    fn is_begin_of(&self, stem: &Stem) -> bool {
        match &self.last {
            Last::Text(text) => is_cut_of(text, &stem.field, stem.is_number),
            Last::Hash { bytes, hash } => {
                let begin = stem.field.get(..*bytes);
                *bytes < stem.field.len()
                    && begin.is_some_and(|begin| *hash == xxh3_64(begin.as_bytes()))
            }
        }
    }

    /// Whether `field` is (or, if only the hash is known, may be) a proper prefix of the noted field.
    pub(crate) fn may_begin_with(&self, field: &str, is_number: bool) -> bool {
        match &self.last {
            Last::Text(text) => is_cut_of(field, text, is_number),
            Last::Hash { bytes, .. } => *bytes > field.len(),
        }
    }

    /// Whether the line of `other` is (or may be) a longer version of this line.
    fn may_have_become(&self, other: &LineNote, is_number: bool) -> bool {
        match &self.last {
            Last::Text(text) => other.may_begin_with(text, is_number),
            Last::Hash { .. } => false,
        }
    }
}

/// Finds the one of the `noted` lines that has grown into the line with this stem.
pub(crate) fn grown(noted: &[(LineNote, u64)], stem: &Stem) -> Option<(LineNote, u64)> {
    let begins = noted.iter().filter(|(note, _)| note.is_begin_of(stem));
    let longest = begins.max_by_key(|(note, _)| note.last_bytes())?;
    // It may have grown into a line of another file already.
    let has_become = |(note, _): &(LineNote, u64)| longest.0.may_have_become(note, stem.is_number);
    let is_settled = longest.0.has_ended || noted.iter().any(has_become);
    (!is_settled).then(|| longest.clone())
}
