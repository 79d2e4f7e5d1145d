//! What a file is: told by what is in it, so that each of its flows counts once.
//!
//! A file is a sequence of records. A hash runs over them, from one to the next, and begins with the
//! name of the source; so its value after a record stands for everything up to there. A batch that ends
//! after a record has that value as its idempotency key. Batches are sent in order: **a receipt under the
//! value after a record means that everything up to that record was counted.** A record is hashed as the
//! flow that it is, so neither the file's name, times or compression, nor line ends, white space or the
//! order of columns matter; in formats where names and options make the flow, its text is hashed.
//!
//! [`Frontier`] looks up, record by record, how far a file was counted, and hands out what is new. What it
//! looks at is kept in notes beside the receipts:
//!
//! - With the end of a batch, a second hash, over flows only: the same records that gave other flows were
//!   counted with other options.
//! - With each batch, marks after its first 1, 2, 4, 8, … records. A file that ends within them may be
//!   the beginning of one that was counted.
//! - With a batch of which flows were left out, since their hours were too far ahead of the clock: which
//!   ones (see [`late`]).
//! - With each batch, its four smallest hashes, under the file's name. A file of that name that has
//!   them elsewhere is likely a changed copy.

mod frontier;
mod late;
mod lines;
#[cfg(test)]
mod tests;

pub use frontier::{Frontier, Known, LookUp, Stop};

use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

use super::source::time;
use crate::inputs::{Place, Record};
use flow::{IdempotencyKey, Note};

/// Which files are one: those with the same content and source.
#[derive(Clone, Debug)]
pub struct Identity {
    /// What `--source` says; nothing where it is not given.
    source: String,
    /// The file's name without its directory and the endings of compression; tells nothing but whether
    /// a file is likely a changed copy.
    name: String,
}

impl Identity {
    pub fn new(source: Option<&str>, path: &Path) -> Identity {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let plain = [".gz", ".zst"]
            .iter()
            .find_map(|end| name.strip_suffix(end));
        Identity {
            source: source.unwrap_or_default().to_owned(),
            name: plain.unwrap_or(&name).to_owned(),
        }
    }

    /// Before the first record.
    fn begin(&self) -> Chain {
        Chain {
            index: 0,
            content: xxh3_128(format!("flowtally import v1\0{}", self.source).as_bytes()),
            flows: 0,
        }
    }

    /// Under which a record of a file of this name is noted.
    fn sketch_key(&self, content: u128) -> Option<IdempotencyKey> {
        let text = format!("sketch\0{}\0{}\0{content:032x}", self.source, self.name);
        key(xxh3_128(text.as_bytes()))
    }
}

/// Everything up to a place between two records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chain {
    /// How many records that is.
    index: u64,
    /// Over their contents.
    content: u128,
    /// Over the flows that they gave.
    flows: u128,
}

impl Chain {
    fn with(self, record: &Record) -> Chain {
        Chain {
            index: self.index + 1,
            content: link(self.content, record.content),
            flows: record
                .flow
                .map_or(self.flows, |flow| link(self.flows, flow)),
        }
    }

    fn key(&self) -> Option<IdempotencyKey> {
        key(self.content)
    }

    fn grown_key(&self) -> Option<IdempotencyKey> {
        key(xxh3_128(format!("grown\0{:032x}", self.content).as_bytes()))
    }
}

fn link(before: u128, next: u128) -> u128 {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&before.to_le_bytes());
    bytes[16..].copy_from_slice(&next.to_le_bytes());
    xxh3_128(&bytes)
}

/// `None` never: it is visible ASCII, and short.
fn key(hash: u128) -> Option<IdempotencyKey> {
    let key = format!("{}{hash:032x}", IdempotencyKey::IMPORT_PREFIX);
    IdempotencyKey::new(key.as_bytes())
}

/// What is noted with a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noted {
    /// Everything up to here was counted.
    End {
        /// [`Chain::flows`]
        flows: u128,
        /// When, if that was before the receipt's own time: seconds since the epoch.
        since_s: Option<u64>,
        /// How many records of the file were counted later on, where it grew.
        upto: u64,
    },
    /// A batch of `count` records has its first `offset` up to here.
    Mark { offset: u64, count: u64 },
    /// A record of a file with the same name.
    Sketch,
    /// The first record behind the first batch of a file that grew.
    Grown,
}

/// A batch has a mebibyte of text, or the records of one that was as large in another format.
const COUNT_MAX: u64 = 1 << 20;

impl Noted {
    fn note(self) -> Option<Note> {
        Note::new(&match self {
            Noted::End {
                flows,
                since_s,
                upto,
            } => format!("e{flows:032x}.{}.{upto}", since_s.unwrap_or(0)),
            Noted::Mark { offset, count } => format!("m{offset}.{count}"),
            Noted::Sketch => "s".into(),
            Noted::Grown => "g".into(),
        })
    }

    /// `None` for a note that is none of ours.
    fn parse(note: &str) -> Option<Noted> {
        let (kind, rest) = note.split_at_checked(1)?;
        let mut parts = rest.split('.');
        let number = |of: &str| of.parse::<u64>().ok();
        match kind {
            "e" => {
                let flows = u128::from_str_radix(parts.next()?, 16).ok()?;
                let since_s = number(parts.next()?)?;
                Some(Noted::End {
                    flows,
                    since_s: (since_s > 0).then_some(since_s),
                    upto: number(parts.next()?)?,
                })
            }
            "m" => {
                let (offset, count) = (number(parts.next()?)?, number(parts.next()?)?);
                (0 < offset && offset < count && count <= COUNT_MAX)
                    .then_some(Noted::Mark { offset, count })
            }
            "s" => Some(Noted::Sketch),
            "g" => Some(Noted::Grown),
            _ => None,
        }
    }
}

impl Stop {
    /// For people.
    pub fn explain(self) -> String {
        match self {
            Stop::OtherFlows { since_s } => format!(
                "it was counted on {} and gave other flows then, with another --apps, --count or --format, or by \
                 another version of flowtally; give what was given then, or --again to count it once more",
                time(since_s)
            ),
            Stop::Shorter { since_s } => format!(
                "the rest of it may be the beginning of a file that was counted on {}; if its flows are \
                 others, give --source NAME, which says where they come from, or --again",
                time(since_s)
            ),
            Stop::Forgotten { since_s } => format!(
                "it begins as a file does that was first counted on {}, and what came after that is not \
                 remembered any more (--import-window, --import-disk-max); if its flows are others, give \
                 --source NAME, which says where they come from, or --again",
                time(since_s)
            ),
            Stop::Failed(why) => why,
        }
    }
}

/// What to say of a file that is likely a changed copy.
pub fn changed_copy(path: &Path, since_s: u64) -> String {
    format!(
        "{}: a file of this name that has many of its flows was counted on {}; this one is not the same, so \
         those flows count twice; to count lines that were mended, send them alone",
        path.display(),
        time(since_s)
    )
}

/// What to say of a last line that counts and may have been cut.
pub fn unfinished_line(path: &Path, place: Place, flow: &str) -> String {
    format!(
        "warning: {}: {place} has no line end; it counts as {flow}. If the file is still being written, give \
         --growing, which leaves such a line for the next time",
        path.display()
    )
}

/// What to say where a service cannot be asked.
pub const CANNOT_ASK: &str = "the service cannot say what was counted, since it has many nodes or is of \
    an earlier version: a file that is sent again counts once, but of one that has grown, the last part \
    counts again; send files that are complete";
