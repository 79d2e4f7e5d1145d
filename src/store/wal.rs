//! A look at RocksDB's write-ahead log, and at its MANIFEST, before RocksDB opens them.
//!
//! After a power cut the end of the log can be a write that never was acknowledged, of which the disk
//! has some sectors and zeros for the rest. RocksDB takes that for damage (and a log that just ends,
//! for what it is), so it is cut off here. Everything else that does not read well is damage: a record
//! that was acknowledged may be lost, and no sum is given out that could lack it.
//!
//! The MANIFEST, which lists the files of the database, is a log of the same format. RocksDB takes a
//! record whose length reaches past the end for the end, opens what was before it, and deletes the files
//! that it does not know: a changed byte there is found here.
//!
//! The telling: in a write that did not get to the disk, at least one whole sector is zeros, since
//! logs are new files. No record of ours has so many zeros in a row, so one in which bytes have been
//! changed does not look like that.
//!
//! Format: blocks of 32 KiB; in them fragments of crc32c (masked, of type and payload), length u16,
//! type u8, payload (RocksDB wiki, "Write Ahead Log File Format").

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::error::StoreError;

const BLOCK_BYTES: usize = 32 << 10;
const HEADER_BYTES: usize = 7;
/// What disks write at once, at least.
const SECTOR_BYTES: usize = 512;

/// A fragment's place in its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Whole,
    First,
    Middle,
    Last,
}

/// How a log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// With a whole record, or a truncated one, which RocksDB drops by itself.
    Good,
    /// With a record that did not get to the disk; whole records end here.
    Torn { keep: usize },
}

/// A log that is damaged other than at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Damage {
    at: usize,
}

/// What a power cut has left of a write that was not acknowledged.
#[derive(Debug)]
pub(super) struct Torn {
    path: PathBuf,
    keep: u64,
    bytes: u64,
}

impl Torn {
    fn cut(&self) -> io::Result<()> {
        let file = File::options().write(true).open(&self.path)?;
        file.set_len(self.keep)?;
        file.sync_all()
    }
}

impl std::fmt::Display for Torn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: the last {} bytes are of a write that a power cut broke off",
            self.path.display(),
            self.bytes
        )
    }
}

/// Cuts off what a power cut has left at the end of the log of the database in `rocks`, and says so.
///
/// # Errors
/// As [`check`], and where the log cannot be written.
pub fn cut_torn(rocks: &Path) -> Result<Option<String>, StoreError> {
    let Some(torn) = check(rocks)? else {
        return Ok(None);
    };
    torn.cut().map_err(|source| StoreError::Io {
        doing: "cutting off the end of the journal's log",
        source,
    })?;
    Ok(Some(format!(
        "{torn}; nothing of it was acknowledged, and it is cut off"
    )))
}

fn failed(source: io::Error) -> StoreError {
    StoreError::Io {
        doing: "reading the journal's log or the MANIFEST",
        source,
    }
}

fn damaged(path: &Path, Damage { at }: Damage) -> StoreError {
    StoreError::Corrupt {
        what: format!("{} at byte {at}", path.display()),
    }
}

/// Reads the MANIFEST of the database in `rocks`, and its newest log; older ones were complete before
/// that was begun.
///
/// # Errors
/// One that is damaged other than by a write broken off at its end.
pub(super) fn check(rocks: &Path) -> Result<Option<Torn>, StoreError> {
    check_manifest(rocks)?;
    let mut newest: Option<(u64, PathBuf)> = None;
    for entry in fs::read_dir(rocks).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let number = path
            .extension()
            .filter(|e| *e == "log")
            .and_then(|_| path.file_stem());
        let number = number.and_then(|stem| stem.to_str()?.parse().ok());
        if let Some(number) = number
            && newest.as_ref().is_none_or(|(than, _)| number > *than)
        {
            newest = Some((number, path));
        }
    }
    let Some((_, path)) = newest else {
        return Ok(None);
    };
    let log = fs::read(&path).map_err(failed)?;
    match end_of(&log) {
        Ok(End::Good) => Ok(None),
        Ok(End::Torn { keep }) => Ok(Some(Torn {
            path,
            keep: keep as u64,
            bytes: (log.len() - keep) as u64,
        })),
        Err(damage) => Err(damaged(&path, damage)),
    }
}

fn check_manifest(rocks: &Path) -> Result<(), StoreError> {
    let Ok(current) = fs::read_to_string(rocks.join("CURRENT")) else {
        return Ok(()); // RocksDB says so
    };
    let path = rocks.join(current.trim_end());
    let manifest = match fs::read(&path) {
        Ok(manifest) => manifest,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()), // the same
        Err(error) => return Err(failed(error)),
    };
    match end_of(&manifest) {
        Ok(_) => Ok(()),
        Err(damage) => Err(damaged(&path, damage)),
    }
}

fn end_of(log: &[u8]) -> Result<End, Damage> {
    let mut keep = 0;
    let mut at = 0;
    loop {
        let (begin, read) = fragment(log, at);
        match read {
            Read::Fragment(part, end) => {
                if matches!(part, Part::Whole | Part::Last) {
                    keep = end;
                }
                at = end;
            }
            Read::End => return Ok(End::Good),
            Read::Short => {
                return if is_whole(log, begin) || follows(log, begin) {
                    Err(Damage { at: begin })
                } else {
                    Ok(End::Good)
                };
            }
            Read::Bad => {
                return if is_torn(log, begin) {
                    Ok(End::Torn { keep })
                } else {
                    Err(Damage { at: begin })
                };
            }
        }
    }
}

enum Read {
    /// A good one, and where it ends.
    Fragment(Part, usize),
    /// The log ends before it, or inside its header.
    End,
    /// The log ends inside it, by what its header says.
    Short,
    Bad,
}

/// The fragment at `at`, or at the next block where no other fits into this one, and where it begins.
fn fragment(log: &[u8], at: usize) -> (usize, Read) {
    let left = BLOCK_BYTES - at % BLOCK_BYTES;
    let begin = if left < HEADER_BYTES { at + left } else { at };
    let block_end = begin - begin % BLOCK_BYTES + BLOCK_BYTES;
    let read = || {
        let (header, rest) = log.get(begin..)?.split_first_chunk::<HEADER_BYTES>()?;
        let [c0, c1, c2, c3, l0, l1, kind] = *header;
        let length = usize::from(u16::from_le_bytes([l0, l1]));
        let end = begin + HEADER_BYTES + length;
        let part = match kind {
            1 | 9 | 10 | 130 => Part::Whole, // data; and notes to the reader, each in one fragment
            2 => Part::First,
            3 => Part::Middle,
            4 => Part::Last,
            _ => return Some(Read::Bad),
        };
        if end > block_end {
            return Some(Read::Bad);
        }
        let Some(payload) = rest.get(..length) else {
            return Some(Read::Short);
        };
        Some(
            match masked_crc(kind, payload) == u32::from_le_bytes([c0, c1, c2, c3]) {
                true => Read::Fragment(part, end),
                false => Read::Bad,
            },
        )
    };
    (begin, read().unwrap_or(Read::End))
}

/// Whether the fragment at `begin` would be a good one if it ended with the log: then its length was
/// changed.
fn is_whole(log: &[u8], begin: usize) -> bool {
    log[begin..]
        .split_first_chunk::<HEADER_BYTES>()
        .is_some_and(|([c0, c1, c2, c3, _, _, kind], payload)| {
            masked_crc(*kind, payload) == u32::from_le_bytes([*c0, *c1, *c2, *c3])
        })
}

fn masked_crc(kind: u8, payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&[kind]), payload);
    crc.rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// Whether what begins at `begin`, which is not a fragment, is the rest of a write that was broken off.
fn is_torn(log: &[u8], begin: usize) -> bool {
    let zeros = |range: &[u8]| range.iter().all(|byte| *byte == 0);
    let first_sector = begin.next_multiple_of(SECTOR_BYTES);
    let sectors = log
        .get(first_sector..)
        .unwrap_or_default()
        .chunks_exact(SECTOR_BYTES);
    if !zeros(&log[begin..]) && !sectors.into_iter().any(zeros) {
        return false;
    }
    !follows(log, begin)
}

/// Whether a record begins after the fragment at `begin`, which is not a good one: parts of the same
/// record may have got to the disk, but nothing that was begun after it.
fn follows(log: &[u8], begin: usize) -> bool {
    // In the same block it can be anywhere, since the length is not to be trusted.
    let block_end = (begin + 1).next_multiple_of(BLOCK_BYTES).min(log.len());
    let begins = |at: &usize| {
        let (_, read) = fragment(log, *at);
        matches!(read, Read::Fragment(Part::Whole | Part::First, _))
    };
    if (begin + 1..block_end).any(|at| begins(&at)) {
        return true;
    }
    let blocks = (begin.next_multiple_of(BLOCK_BYTES)..log.len()).step_by(BLOCK_BYTES);
    blocks.into_iter().any(|block| {
        let mut at = block;
        while let (_, Read::Fragment(part, end)) = fragment(log, at) {
            if matches!(part, Part::Whole | Part::First) {
                return true;
            }
            at = end;
            if at >= block + BLOCK_BYTES {
                break;
            }
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of records of these lengths, and where each ends. No payload has zeros.
    fn log(lengths: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let (mut log, mut ends) = (Vec::new(), Vec::new());
        for (record, &length) in lengths.iter().enumerate() {
            let payload: Vec<u8> = (0..length)
                .map(|i| (i % 251) as u8 ^ record as u8 | 1)
                .collect();
            let mut rest = payload.as_slice();
            let mut is_first = true;
            loop {
                let left = BLOCK_BYTES - log.len() % BLOCK_BYTES;
                if left < HEADER_BYTES {
                    log.extend(vec![0; left]);
                    continue;
                }
                let (part, after) = rest.split_at(rest.len().min(left - HEADER_BYTES));
                let kind: u8 = match (is_first, after.is_empty()) {
                    (true, true) => 1,
                    (true, false) => 2,
                    (false, false) => 3,
                    (false, true) => 4,
                };
                log.extend_from_slice(&masked_crc(kind, part).to_le_bytes());
                log.extend_from_slice(&(part.len() as u16).to_le_bytes());
                log.push(kind);
                log.extend_from_slice(part);
                (rest, is_first) = (after, false);
                if after.is_empty() {
                    break;
                }
            }
            ends.push(log.len());
        }
        (log, ends)
    }

    const LENGTHS: [usize; 4] = [100, 40_000, 32_740, 70_000];

    #[test]
    fn whole_and_truncated_logs_are_good() {
        assert_eq!(end_of(&[]), Ok(End::Good));
        let (log, _) = log(&LENGTHS);
        for length in (0..log.len()).step_by(61).chain([log.len()]) {
            assert_eq!(end_of(&log[..length]), Ok(End::Good), "{length}");
        }
    }

    #[test]
    fn sectors_that_did_not_get_to_the_disk_are_cut_off() {
        let (log, ends) = log(&LENGTHS);
        let keep = ends[2];
        let torn = Ok(End::Torn { keep });
        let first = keep.next_multiple_of(SECTOR_BYTES);
        // From a sector on, nothing.
        for from in (first..log.len() - SECTOR_BYTES).step_by(SECTOR_BYTES) {
            let mut log = log.clone();
            log[from..].fill(0);
            assert_eq!(end_of(&log), torn, "{from}");
        }
        // One in the middle.
        for from in (first..log.len() - SECTOR_BYTES).step_by(SECTOR_BYTES) {
            let mut log = log.clone();
            log[from..from + SECTOR_BYTES].fill(0);
            assert_eq!(end_of(&log), torn, "{from}");
        }
        // A file that was made longer, and not written.
        let mut long = log.clone();
        long.resize(log.len() + 10_000, 0);
        assert_eq!(end_of(&long), Ok(End::Torn { keep: log.len() }));
    }

    #[test]
    fn what_is_changed_is_damage() {
        let (log, _) = log(&LENGTHS);
        let last = log.len() - log.len() % BLOCK_BYTES;
        for at in (0..log.len()).step_by(17).chain(last..last + HEADER_BYTES) {
            for bit in 0..8 {
                let mut changed = log.clone();
                changed[at] ^= 1 << bit;
                let end = end_of(&changed);
                // What fills up a block is nothing's.
                let padding = at % BLOCK_BYTES > BLOCK_BYTES - HEADER_BYTES;
                assert!(end.is_err() || padding, "{at}: {end:?}");
            }
        }
        // The last of short ones.
        let (short, short_ends) = self::log(&[300; 3]);
        for at in short_ends[1]..short.len() {
            for bit in 0..8 {
                let mut changed = short.clone();
                changed[at] ^= 1 << bit;
                assert!(end_of(&changed).is_err(), "{at}, {bit}");
            }
        }
        // A sector that is lost in the middle of a record that others follow.
        let mut lost = log.clone();
        lost[1024..1024 + SECTOR_BYTES].fill(0);
        assert!(end_of(&lost).is_err());
        // The same, and lengths that reach beyond the end, in a log of one block.
        let (short, ends) = self::log(&[700; 12]);
        for end in &ends[..10] {
            let mut changed = short.clone();
            changed[end + 5] = 0x50;
            assert!(end_of(&changed).is_err(), "{end}");
        }
        for sector in 0..(ends[10] - 700) / SECTOR_BYTES {
            let mut lost = short.clone();
            lost[sector * SECTOR_BYTES..][..SECTOR_BYTES].fill(0);
            assert!(end_of(&lost).is_err(), "{sector}");
        }
    }
}
