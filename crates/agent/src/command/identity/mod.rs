//! Recognises files by their content, so that each flow counts once, even if a file is sent twice, renamed,
//! recompressed, or has grown since.
//!
//! A *run* is one execution of `send` or `import`. A file is a sequence of records. The *chain* is a running hash over
//! the records; it starts with the name from `--source`. Its value after a record identifies the file's content up to
//! that record. The chain's value after the last record of a batch is the idempotency key of the batch, and batches are
//! sent in order. So **if the service has a receipt for the value after a record, everything up to that record was
//! counted.**
//!
//! ```text
//! records       r1   r2   r3   r4   r5   r6 | r7   r8   r9   …     cut into batches by content
//! chain   c0 -> c1 -> c2 -> c3 -> c4 -> c5 -> c6 | -> c7 -> c8 -> c9 …
//!         |     |    |         |              |
//!         |     mark mark      mark           receipt under c6: "r1 to r6 were counted"
//!         source              ("the first 1, 2, 4 records of a batch of 6")
//! ```
//!
//! To find how far a file was counted, the chain is computed again and the receipts are looked up under its
//! values ([`Frontier`]). A record is hashed as the flow that it contains, so the file's name, times and
//! compression, line ends, white space and column order do not matter. In formats where `--apps` or `--count`
//! change the flow, the record's text is hashed instead.
//!
//! Notes beside the receipts hold what the lookup needs:
//!
//! - At the end of each batch: a second chain over the flows only. If the records are equal but the flows
//!   differ, the file was counted with other options.
//! - In each batch: *marks* after its first 1, 2, 4, 8, … records. A file that ends inside a batch may be an
//!   earlier, shorter copy of a file that was counted.
//! - For a batch without some of its flows, because their hours were too far ahead of the clock: which flows these
//!   are (see `late`).
//! - For each batch: a *sketch*, its four smallest record hashes, under the file's name. If a file of the same name has
//!   them at other positions, it is probably an edited copy.
//! - For the first and the last record of a batch, and those at its marks: the *stem*, which is the record without the
//!   field inside which its line may have been cut. If the next run reads the complete line, only the difference is
//!   sent.

mod frontier;
mod late;
mod lines;
mod stems;
#[cfg(test)]
mod tests;

pub use frontier::{AlreadyCounted, Frontier, FrontierError, ReceiptLookup};

use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

use super::source::rfc3339;
use crate::inputs::{Location, RecordHashes};
use flow::{IdempotencyKey, Note};

/// The identity of a file: files with equal content and source are the same file.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The value of `--source`, or empty.
    source: String,
    /// The file's name without directory and compression suffix; used only to detect edited copies.
    name: String,
}

impl Identity {
    pub(crate) fn new(source: Option<&str>, path: &Path) -> Identity {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let plain = [".gz", ".zst"]
            .iter()
            .find_map(|end| name.strip_suffix(end));
        Identity {
            source: source.unwrap_or_default().to_owned(),
            name: plain.unwrap_or(&name).to_owned(),
        }
    }

    /// The chain before the first record.
    fn initial_chain(&self) -> Chain {
        Chain {
            index: 0,
            content: xxh3_128(format!("flowtally import v1\0{}", self.source).as_bytes()),
            flows: 0,
        }
    }

    /// The key under which a record of a file with this name is noted.
    fn sketch_key(&self, content: u128) -> Option<IdempotencyKey> {
        let text = format!("sketch\0{}\0{}\0{content:032x}", self.source, self.name);
        key(xxh3_128(text.as_bytes()))
    }
}

/// The running hash over all records up to one point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chain {
    /// Number of records.
    index: u64,
    /// Hash over the contents of the records.
    content: u128,
    /// Hash over the flows of the records.
    flows: u128,
}

impl Chain {
    fn extended_by(self, record: &RecordHashes) -> Chain {
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

/// Never `None`: the key is short visible ASCII.
fn key(hash: u128) -> Option<IdempotencyKey> {
    let key = format!("{}{hash:032x}", IdempotencyKey::IMPORT_PREFIX);
    IdempotencyKey::new(key.as_bytes())
}

/// A note that is kept with a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IdentityNote {
    /// Everything up to here was counted.
    End {
        /// [`Chain::flows`]
        flows: u128,
        /// When it was counted, if earlier than the receipt: seconds since the epoch.
        since_s: Option<u64>,
        /// The number of records that were counted later, when the file had grown.
        upto: u64,
    },
    /// The first `offset` records of a batch of `count` records end here.
    Mark { offset: u64, count: u64 },
    /// A record of a file with the same name.
    Sketch,
    /// The first record after the first batch of a file that has grown.
    Grown,
}

/// The most records in a batch: a batch has about a mebibyte of text, and each record has at least one byte.
const COUNT_MAX: u64 = 1 << 20;

impl IdentityNote {
    fn note(self) -> Option<Note> {
        Note::new(&match self {
            IdentityNote::End {
                flows,
                since_s,
                upto,
            } => format!("e{flows:032x}.{}.{upto}", since_s.unwrap_or(0)),
            IdentityNote::Mark { offset, count } => format!("m{offset}.{count}"),
            IdentityNote::Sketch => "s".into(),
            IdentityNote::Grown => "g".into(),
        })
    }

    /// `None` for other kinds of notes.
    fn parse(note: &str) -> Option<IdentityNote> {
        let (kind, rest) = note.split_at_checked(1)?;
        let mut parts = rest.split('.');
        let number = |of: &str| of.parse::<u64>().ok();
        match kind {
            "e" => {
                let flows = u128::from_str_radix(parts.next()?, 16).ok()?;
                let since_s = number(parts.next()?)?;
                Some(IdentityNote::End {
                    flows,
                    since_s: (since_s > 0).then_some(since_s),
                    upto: number(parts.next()?)?,
                })
            }
            "m" => {
                let (offset, count) = (number(parts.next()?)?, number(parts.next()?)?);
                (0 < offset && offset < count && count <= COUNT_MAX)
                    .then_some(IdentityNote::Mark { offset, count })
            }
            "s" => Some(IdentityNote::Sketch),
            "g" => Some(IdentityNote::Grown),
            _ => None,
        }
    }
}

impl FrontierError {
    /// The message for the user.
    pub fn explain(self) -> String {
        match self {
            FrontierError::OtherFlows { since_s } => format!(
                "it was counted on {}, but gave different flows then, with another --apps, --count or --format, or in \
                 another version of flowtally; give the same options as then, or --again to count it a second time",
                rfc3339(since_s)
            ),
            FrontierError::Shorter { since_s } => format!(
                "the rest of it may be the beginning of a file that was counted on {}; if these are different \
                 flows, give --source NAME, the name of their origin, or --again",
                rfc3339(since_s)
            ),
            FrontierError::Forgotten { since_s } => format!(
                "it starts like a file that was first counted on {}, and the receipts of what was counted after \
                 that have expired (--import-window, --import-disk-max); if these are different flows, give \
                 --source NAME, the name of their origin, or --again",
                rfc3339(since_s)
            ),
            FrontierError::Failed(why) => why,
        }
    }
}

/// The warning about a file that is probably an edited copy.
pub fn changed_copy(path: &Path, since_s: u64) -> String {
    format!(
        "{}: a file of this name with many of the same flows was counted on {}; this file is different, so \
         those flows count twice; to count corrected lines, send only those lines",
        path.display(),
        rfc3339(since_s)
    )
}

/// The warning about a last line that counts although it may be cut.
pub fn unfinished_line(path: &Path, location: Location, flow: &str) -> String {
    format!(
        "warning: {}: {location} has no line end; it counts as {flow}. If the file is still being written, give \
         --growing, which leaves such a line for the next run",
        path.display()
    )
}

/// The warning when the service cannot look up receipts.
pub(crate) const LOOKUP_UNSUPPORTED: &str = "the service cannot look up what was counted, since it has several nodes or is \
    an earlier version: a file that is sent again counts once, but the last part of a file that has grown \
    counts again; send complete files";
