//! Lines that were cut inside their last field, and what has become of them.
//!
//! A file that is still being written may end inside the last field of a line, and what is there may be a
//! flow. Nothing in it tells it from a line that is complete and has no line end, so it counts. When the
//! file has grown, the line is another one. What tells that the two are the same line: the same records
//! come before them, they have the same text up to the last field, and the last field of one is the
//! beginning of the other's. So what was counted for the last line of a file, and for the first line of each
//! batch, is noted under the records before it and the text up to its last field. Files that begin alike may
//! have several such lines, so there are a few keys for them.

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::{Chain, key};
use flow::{Counters, IdempotencyKey, Note};

/// Notes of lines with the same text before their last field, behind the same records.
const SLOTS: u32 = 8;
/// Longer last fields are noted by their hash.
const LAST_CHARS_MAX: usize = 42;

/// The text of a record.
#[derive(Clone, Copy, Debug)]
pub struct LineText<'a> {
    /// Up to its last field.
    pub stem: &'a str,
    pub last: &'a str,
}

/// Under which keys a line behind `before` is noted, as a batch begins or a file ends with it.
pub fn slots(before: &Chain, line: LineText<'_>) -> Vec<IdempotencyKey> {
    let stem = xxh3_128(line.stem.as_bytes());
    let slot = |slot| format!("line\0{:032x}\0{stem:032x}\0{slot}", before.content);
    let keys = (0..SLOTS).filter_map(|n| key(xxh3_128(slot(n).as_bytes())));
    keys.collect()
}

/// Under which key a line behind `before` is noted, as it is within a batch.
pub fn within(before: &Chain, line: LineText<'_>) -> Option<IdempotencyKey> {
    let stem = xxh3_128(line.stem.as_bytes());
    let text = format!("within\0{:032x}\0{stem:032x}", before.content);
    key(xxh3_128(text.as_bytes()))
}

/// What is noted of a line that was counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineNote {
    /// The line had an end: a longer line is another one.
    pub has_ended: bool,
    /// Hash of the flow's hour and names.
    pub flow: u64,
    /// All that was counted for the line.
    pub counters: Counters,
    last: Last,
}

/// The last field of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Last {
    Text(String),
    Hash { bytes: usize, hash: u64 },
}

impl LineNote {
    pub fn new(has_ended: bool, line: LineText<'_>, flow: u64, counters: Counters) -> LineNote {
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

    pub fn note(&self) -> Option<Note> {
        let last = match &self.last {
            Last::Text(text) => text.clone(),
            Last::Hash { bytes, hash } => format!("~{bytes}~{hash:x}"),
        };
        let (ended, Counters { tx, rx }) = (u8::from(self.has_ended), self.counters);
        Note::new(&format!("l{ended}.{:x}.{tx:x}.{rx:x}.{last}", self.flow))
    }

    /// `None` for a note of another kind.
    pub fn parse(note: &str) -> Option<LineNote> {
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

    /// Whether it has this last field.
    pub fn is_of(&self, last: &str) -> bool {
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

    /// Whether its last field is the beginning of `last`, which is longer.
    fn is_begin_of(&self, last: &str) -> bool {
        let begin = last.get(..self.last_bytes());
        self.last_bytes() < last.len()
            && begin.is_some_and(|begin| match &self.last {
                Last::Text(text) => text == begin,
                Last::Hash { hash, .. } => *hash == xxh3_64(begin.as_bytes()),
            })
    }

    /// Whether `last` is, or may be, the beginning of its last field, which is longer.
    pub fn may_begin_with(&self, last: &str) -> bool {
        match &self.last {
            Last::Text(text) => text.len() > last.len() && text.starts_with(last),
            Last::Hash { bytes, .. } => *bytes > last.len(),
        }
    }

    /// Whether the line that `other` is of is this one, or may be, when it was longer.
    fn may_have_become(&self, other: &LineNote) -> bool {
        match &self.last {
            Last::Text(text) => other.may_begin_with(text),
            Last::Hash { .. } => false,
        }
    }
}

/// Which of the `noted` lines has grown and is now the one that ends with `last`.
pub fn grown(noted: &[LineNote], last: &str) -> Option<LineNote> {
    let begins = noted.iter().filter(|note| note.is_begin_of(last));
    let longest = begins.max_by_key(|note| note.last_bytes())?;
    // It may have become the line of another file.
    let is_settled = longest.has_ended || noted.iter().any(|note| longest.may_have_become(note));
    (!is_settled).then(|| longest.clone())
}
