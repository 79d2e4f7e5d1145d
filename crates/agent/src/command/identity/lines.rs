//! Lines that were cut inside their last field and were complete in a later version of the file.
//!
//! A file that is still being written may end inside the last field of a line, and that text may still parse
//! as a flow. Nothing distinguishes it from a complete line without a line end, so it is counted. When the
//! file has grown, the line has a different text. Two lines are the same line if the same records precede
//! them, their text up to the last field is the same, and the last field of one is a prefix of the other's.
//! So the last line of a file and the first line of each batch are noted: the key of the note is made of the
//! records before the line and the text up to its last field, and the value has the bytes that were counted.
//! Different files with the same beginning may each have such a line, so there are several keys per line.

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::{Chain, key};
use flow::{Counters, IdempotencyKey, Note};

/// Notes per line: lines with the same text before their last field, after the same records.
const SLOTS: u32 = 8;
/// Longer last fields are stored as a hash.
const LAST_CHARS_MAX: usize = 42;

/// The text of a record, split before its last field.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LineText<'a> {
    /// Everything before the last field.
    pub(crate) stem: &'a str,
    pub(crate) last: &'a str,
}

/// Keys of the notes about a line after `before` that begins a batch or ends a file.
pub(crate) fn slot_keys(before: &Chain, line: LineText<'_>) -> Vec<IdempotencyKey> {
    let stem = xxh3_128(line.stem.as_bytes());
    let slot = |slot| format!("line\0{:032x}\0{stem:032x}\0{slot}", before.content);
    let keys = (0..SLOTS).filter_map(|n| key(xxh3_128(slot(n).as_bytes())));
    keys.collect()
}

/// Key of the note about a line after `before` in the middle of a batch.
pub(crate) fn within_key(before: &Chain, line: LineText<'_>) -> Option<IdempotencyKey> {
    let stem = xxh3_128(line.stem.as_bytes());
    let text = format!("within\0{:032x}\0{stem:032x}", before.content);
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
    pub(crate) fn new(
        has_ended: bool,
        line: LineText<'_>,
        flow: u64,
        counters: Counters,
    ) -> LineNote {
        let is_plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b',' | b'~');
        let last = match line.last.bytes().all(is_plain) && line.last.len() <= LAST_CHARS_MAX {
            true => Last::Text(line.last.into()),
            false => Last::Hash {
                bytes: line.last.len(),
                hash: xxh3_64(line.last.as_bytes()),
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

    /// Whether the noted line has this last field.
    pub(crate) fn is_of(&self, last: &str) -> bool {
        match &self.last {
            Last::Text(text) => text == last,
            Last::Hash { bytes, hash } => *bytes == last.len() && *hash == xxh3_64(last.as_bytes()),
        }
    }

    fn last_bytes(&self) -> usize {
        match &self.last {
            Last::Text(text) => text.len(),
            Last::Hash { bytes, .. } => *bytes,
        }
    }

    /// Whether the noted last field is a proper prefix of `last`.
    fn is_prefix_of(&self, last: &str) -> bool {
        let start = last.get(..self.last_bytes());
        self.last_bytes() < last.len()
            && start.is_some_and(|start| match &self.last {
                Last::Text(text) => text == start,
                Last::Hash { hash, .. } => *hash == xxh3_64(start.as_bytes()),
            })
    }

    /// Whether `last` is (or, if only the hash is known, may be) a proper prefix of the noted last field.
    pub(crate) fn may_begin_with(&self, last: &str) -> bool {
        match &self.last {
            Last::Text(text) => text.len() > last.len() && text.starts_with(last),
            Last::Hash { bytes, .. } => *bytes > last.len(),
        }
    }

    /// Whether the line of `other` is (or may be) a longer version of this line.
    fn may_have_become(&self, other: &LineNote) -> bool {
        match &self.last {
            Last::Text(text) => other.may_begin_with(text),
            Last::Hash { .. } => false,
        }
    }
}

/// Finds the one of the `noted` lines that has grown into the line with this `last` field.
pub(crate) fn grown(noted: &[LineNote], last: &str) -> Option<LineNote> {
    let starts = noted.iter().filter(|note| note.is_prefix_of(last));
    let longest = starts.max_by_key(|note| note.last_bytes())?;
    // It may have grown into a line of another file already.
    let is_settled = longest.has_ended || noted.iter().any(|note| longest.may_have_become(note));
    (!is_settled).then(|| longest.clone())
}
