//! Finds the end of a RocksDB log, and decides whether a power cut can have left the log in that state.
//!
//! The format: blocks of 32 KiB that contain fragments of crc32c (masked, over type and payload), length u16, type
//! u8, payload (RocksDB wiki, "Write Ahead Log File Format"). A record that does not fit into its block continues in
//! the next one.
//!
//! After a power cut, everything before the last sync is on disk. Of later writes, any subset of the sectors is on
//! disk; the others read as zeros, since logs are new files, and the file may be shorter. The sector in which the
//! sync ended has at least the bytes from before the sync.
//!
//! In the journal's log, each record is synced before the next is written. So only the last record can be torn, and
//! [`TornTail`] decides whether there is a record that would look like this with some of its sectors lost. Each sector
//! is either as written or all zeros from where the record starts in it, so the bytes that are not zero must fit. A
//! changed byte does not fit: all sectors of its record are present, and the checksum is wrong.
//!
//! No intact record has a sector of zeros: stored names contain no NUL, and the longest run of zeros is a few
//! numbers. Since the last sector may contain few bytes of the record, each record ends in a mark that is not zeros
//! ([`codec::SYNCED`]).

use std::io::{self, Read, Seek, SeekFrom};

use super::codec;

pub(super) const BLOCK_BYTES: usize = 32 << 10;
pub(super) const HEADER_BYTES: usize = 7;
/// The smallest unit that disks write atomically. Larger sectors are multiples of it.
const SECTOR_BYTES: usize = 512;
/// Number of MANIFEST records that RocksDB may write before it syncs them: one per thread that changes the set of
/// files.
const MANIFEST_RECORDS_MAX: usize = 4;

/// More than any record has: a group of batches that are together as large as the largest body, and their receipts.
const RECORD_BYTES_MAX: usize = flow::BODY_BYTES_MAX + (64 << 20);

/// Kind of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogKind {
    Journal,
    Manifest,
}

/// The end of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogEnd {
    /// The log ends with a complete record, or inside one, which RocksDB drops by itself.
    Good,
    /// The log ends with a torn record; the last complete record ends at `keep`.
    Torn {
        keep: usize,
        /// Records were not synced one by one (`--durability os`): later records, also in newer logs, may be on disk
        /// although this one is not.
        unsynced: bool,
    },
}

/// Corruption that no power cut can cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damage {
    pub(super) at: usize,
}

pub(super) type LogEndResult = Result<LogEnd, Damage>;

/// Type of a fragment: its position in its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FragmentType {
    Full,
    First,
    Middle,
    Last,
}

impl FragmentType {
    fn from_byte(kind: u8) -> Option<FragmentType> {
        match kind {
            1 | 9 | 10 | 130 => Some(FragmentType::Full), // data, and metadata records, which are never split
            2 => Some(FragmentType::First),
            3 => Some(FragmentType::Middle),
            4 => Some(FragmentType::Last),
            _ => None,
        }
    }

    fn is_first(self) -> bool {
        matches!(self, FragmentType::Full | FragmentType::First)
    }

    fn is_last(self) -> bool {
        matches!(self, FragmentType::Full | FragmentType::Last)
    }
}

/// Finds the end of `log`. Reads it block by block. If its end is invalid, reads what follows the last complete record
/// into memory: that is one record if a power cut is the cause.
pub(super) fn find_end(log: impl Read + Seek, of: LogKind) -> io::Result<LogEndResult> {
    find_end_within(log, of, RECORD_BYTES_MAX)
}

/// [`find_end`] of a log whose records have at most `record_bytes_max`.
fn find_end_within(
    mut log: impl Read + Seek,
    of: LogKind,
    record_bytes_max: usize,
) -> io::Result<LogEndResult> {
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    // The offset of the block in the log.
    let mut block_at = 0;
    let (mut keep, mut at, mut is_inside) = (0, 0, false);
    let mut unsynced = false;
    read_block(&mut log, &mut block)?;
    loop {
        if next_begin(at) >= BLOCK_BYTES {
            read_block(&mut log, &mut block)?;
            block_at += BLOCK_BYTES;
            at = 0;
        }
        let (begin, read) = fragment(&block, at);
        match read {
            Parsed::Fragment(part, _) if part.is_first() == is_inside => {
                let at = block_at + begin;
                return Ok(Err(Damage { at }));
            }
            Parsed::Fragment(part, end) => {
                if part.is_last() {
                    keep = block_at + end;
                    unsynced |= of == LogKind::Journal && ends_unsynced(&block[..end]);
                }
                is_inside = !part.is_last();
                at = end;
            }
            Parsed::End => return Ok(Ok(LogEnd::Good)),
            Parsed::Short | Parsed::Bad => {
                let begin = block_at + begin;
                let tail_at = keep - keep % BLOCK_BYTES;
                let mut tail = Vec::new();
                log.seek(SeekFrom::Start(tail_at as u64))?;
                if of == LogKind::Journal && unsynced {
                    // Other records may follow, and only the sectors of this fragment matter.
                    let bytes = block_end(begin) - tail_at;
                    log.by_ref().take(bytes as u64).read_to_end(&mut tail)?;
                } else {
                    let bytes_max = record_bytes_max + BLOCK_BYTES;
                    log.by_ref()
                        .take(bytes_max as u64 + 1)
                        .read_to_end(&mut tail)?;
                    if tail.len() > bytes_max {
                        return Ok(Err(Damage { at: begin }));
                    }
                }
                let is_torn = is_torn(
                    &tail,
                    keep - tail_at,
                    begin - tail_at,
                    is_inside,
                    of,
                    unsynced,
                );
                return Ok(match read {
                    _ if !is_torn => Err(Damage { at: begin }),
                    Parsed::Short => Ok(LogEnd::Good),
                    _ => Ok(LogEnd::Torn { keep, unsynced }),
                });
            }
        }
    }
}

/// Fills `block` with the next block of the log, which is shorter at the log's end.
fn read_block(log: &mut impl Read, block: &mut Vec<u8>) -> io::Result<()> {
    block.clear();
    log.take(BLOCK_BYTES as u64).read_to_end(block)?;
    Ok(())
}

/// Whether the log can be torn. Its last whole record ends at `keep`, and the fragment at `begin` is invalid.
fn is_torn(
    log: &[u8],
    keep: usize,
    begin: usize,
    is_inside: bool,
    of: LogKind,
    unsynced: bool,
) -> bool {
    let remains = TornTail::new(log, keep);
    match of {
        LogKind::Journal if !unsynced => remains.fits_one_record(begin, !is_inside),
        LogKind::Journal => remains.lacks_sector_of(begin),
        LogKind::Manifest => {
            remains.lacks_sector_of(begin)
                && records_in(log, begin + 1..log.len()) < MANIFEST_RECORDS_MAX
        }
    }
}

/// Whether the record that ends here was written without a sync.
fn ends_unsynced(log: &[u8]) -> bool {
    log.ends_with(codec::UNSYNCED)
}

#[derive(Clone, Copy)]
enum Parsed {
    /// A valid fragment, and its end.
    Fragment(FragmentType, usize),
    /// The log ends before the fragment or inside its header.
    End,
    /// The log ends inside the fragment, by the length in its header.
    Short,
    Bad,
}

/// Start of the fragment after `at`: in the next block if no header fits into this one.
fn next_begin(at: usize) -> usize {
    let left = BLOCK_BYTES - at % BLOCK_BYTES;
    if left < HEADER_BYTES { at + left } else { at }
}

/// The first byte after the block that `at` is in.
fn block_end(at: usize) -> usize {
    at - at % BLOCK_BYTES + BLOCK_BYTES
}

fn fragment(log: &[u8], at: usize) -> (usize, Parsed) {
    let begin = next_begin(at);
    let read = || {
        let (header, rest) = log.get(begin..)?.split_first_chunk::<HEADER_BYTES>()?;
        let [c0, c1, c2, c3, l0, l1, kind] = *header;
        let length = usize::from(u16::from_le_bytes([l0, l1]));
        let end = begin + HEADER_BYTES + length;
        let Some(part) = FragmentType::from_byte(kind).filter(|_| end <= block_end(begin)) else {
            return Some(Parsed::Bad);
        };
        let Some(payload) = rest.get(..length) else {
            return Some(Parsed::Short);
        };
        let is_good = masked_crc(kind, payload) == [c0, c1, c2, c3];
        Some(if is_good {
            Parsed::Fragment(part, end)
        } else {
            Parsed::Bad
        })
    };
    (begin, read().unwrap_or(Parsed::End))
}

pub(super) fn masked_crc(kind: u8, payload: &[u8]) -> [u8; 4] {
    mask(crc32c::crc32c_append(crc32c::crc32c(&[kind]), payload))
}

fn mask(crc: u32) -> [u8; 4] {
    crc.rotate_right(15).wrapping_add(0xA282_EAD8).to_le_bytes()
}

/// The part of a log after its last whole record, with the sectors that may be lost.
struct TornTail<'a> {
    log: &'a [u8],
    from: usize,
    /// For each sector, from the one that contains `from`: the byte from which it may be lost, or its end if it is on
    /// disk.
    lost_from: Vec<usize>,
    /// End of the last byte that is not zero.
    end: usize,
}

impl<'a> TornTail<'a> {
    fn new(log: &'a [u8], from: usize) -> TornTail<'a> {
        let is_zeros = |range: std::ops::Range<usize>| log[range].iter().all(|byte| *byte == 0);
        let sectors = (from - from % SECTOR_BYTES..log.len()).step_by(SECTOR_BYTES);
        let lost_from = sectors.map(|sector| {
            let end = (sector + SECTOR_BYTES).min(log.len());
            let begin = sector.max(from);
            // RocksDB may write a header and its payload in two calls, and the page may be written to disk in
            // between; but not in the first block of a record.
            let header_end = (sector + HEADER_BYTES).min(end);
            if is_zeros(begin..end) {
                begin
            } else if sector > from && sector % BLOCK_BYTES == 0 && is_zeros(header_end..end) {
                header_end
            } else {
                end
            }
        });
        let zeros = log[from..].iter().rev().take_while(|byte| **byte == 0);
        TornTail {
            lost_from: lost_from.collect(),
            end: log.len() - zeros.count(),
            log,
            from,
        }
    }

    /// The byte at `at` as it was written; `None` if it may be lost.
    fn byte(&self, at: usize) -> Option<u8> {
        let byte = *self.log.get(at)?;
        (at < self.lost_from[at / SECTOR_BYTES - self.from / SECTOR_BYTES]).then_some(byte)
    }

    /// The bytes of a range, if none may be lost.
    fn bytes(&self, range: std::ops::Range<usize>) -> Option<&'a [u8]> {
        let bytes = self.log.get(range.clone())?;
        let mut sectors = range.clone().step_by(SECTOR_BYTES).chain(range.last());
        sectors
            .all(|at| {
                let sector_end = at - at % SECTOR_BYTES + SECTOR_BYTES;
                let lost_from = self.lost_from[at / SECTOR_BYTES - self.from / SECTOR_BYTES];
                lost_from >= sector_end.min(self.log.len())
            })
            .then_some(bytes)
    }

    /// Whether the invalid fragment at `begin` lacks a sector or its end.
    fn lacks_sector_of(&self, begin: usize) -> bool {
        let Some(length) = self.length(begin) else {
            return true;
        };
        let end = begin + HEADER_BYTES + length;
        if end > self.log.len() {
            return !self.is_length_changed(begin);
        }
        end <= block_end(begin) && self.bytes(begin..end).is_none()
    }

    /// The length in the header at `begin`, if it is known.
    fn length(&self, begin: usize) -> Option<usize> {
        let length = [self.byte(begin + 4)?, self.byte(begin + 5)?];
        self.byte(begin + 6)?;
        Some(usize::from(u16::from_le_bytes(length)))
    }

    /// Whether everything from the fragment at `at` on can belong to one record; `is_first` if that fragment is its
    /// first.
    fn fits_one_record(&self, mut at: usize, mut is_first: bool) -> bool {
        while at < self.log.len() {
            // If the length is lost, records that follow could be taken for its payload.
            if self.length(at).is_none() && records_in(self.log, at + 1..block_end(at)) > 0 {
                return false;
            }
            if self.can_end_with(at, is_first) {
                return true;
            }
            if !self.can_continue_after(at, is_first) {
                return false;
            }
            (at, is_first) = (block_end(at), false);
        }
        true
    }

    /// Whether the fragment at `at` can be the record's last.
    fn can_end_with(&self, at: usize, is_first: bool) -> bool {
        let is_last = |part: FragmentType| part.is_last() && part.is_first() == is_first;
        if self.end > block_end(at) || !self.kind(at).is_none_or(|kind| kind.is_some_and(is_last)) {
            return false;
        }
        let lengths = [self.byte(at + 4), self.byte(at + 5)];
        if let [Some(l0), Some(l1)] = lengths {
            let length = usize::from(u16::from_le_bytes([l0, l1]));
            let end = at + HEADER_BYTES + length;
            return end <= block_end(at) && self.end <= end && self.has_checksum(at, length);
        }
        // At most one byte of the length is known.
        let shortest = self.end.saturating_sub(at + HEADER_BYTES);
        let fits = |length: usize| {
            let bytes = (length as u16).to_le_bytes();
            bytes
                .iter()
                .zip(lengths)
                .all(|(is, known)| known.is_none_or(|known| known == *is))
        };
        (shortest..=block_end(at) - at - HEADER_BYTES).any(fits)
    }

    /// Whether the record can continue in the next block.
    fn can_continue_after(&self, at: usize, is_first: bool) -> bool {
        let continues = |part: FragmentType| !part.is_last() && part.is_first() == is_first;
        let length = block_end(at) - at - HEADER_BYTES;
        let bytes = (length as u16).to_le_bytes();
        self.kind(at).is_none_or(|kind| kind.is_some_and(continues))
            && (0..2).all(|n| self.byte(at + 4 + n).is_none_or(|byte| byte == bytes[n]))
            && self.has_checksum(at, length)
    }

    /// The fragment type at `at`; the outer `None` if the byte may be lost, the inner one if it is invalid.
    fn kind(&self, at: usize) -> Option<Option<FragmentType>> {
        self.byte(at + 6).map(FragmentType::from_byte)
    }

    /// Whether the known bytes of checksum and payload agree for a payload of this length.
    fn has_checksum(&self, at: usize, length: usize) -> bool {
        let begin = at + HEADER_BYTES;
        if begin + length > self.log.len() {
            return !self.is_length_changed(at);
        }
        let (Some(kind), Some(payload)) = (self.byte(at + 6), self.bytes(begin..begin + length))
        else {
            return true;
        };
        let crc = masked_crc(kind, payload);
        (0..4).all(|n| self.byte(at + n).is_none_or(|byte| byte == crc[n]))
    }

    /// Whether the fragment at `at`, which reaches past the end of the file, would be valid if it were shorter: then
    /// its length is corrupt, and other records follow.
    fn is_length_changed(&self, at: usize) -> bool {
        let header: [Option<u8>; HEADER_BYTES] = std::array::from_fn(|n| self.byte(at + n));
        let [Some(c0), Some(c1), Some(c2), Some(c3), _, _, Some(kind)] = header else {
            return false;
        };
        let mut crc = crc32c::crc32c(&[kind]);
        let payload = &self.log[at + HEADER_BYTES..block_end(at).min(self.log.len())];
        payload.iter().any(|byte| {
            crc = crc32c::crc32c_append(crc, &[*byte]);
            mask(crc) == [c0, c1, c2, c3]
        })
    }
}

/// Number of consecutive whole records up to the end of the log, starting with the first that begins in `starts`.
/// (Payload that looks like a record is not followed by others.)
fn records_in(log: &[u8], mut starts: std::ops::Range<usize>) -> usize {
    let records_from = |first: usize| {
        let (mut at, mut records, mut is_inside) = (first, 0, false);
        loop {
            match fragment(log, at).1 {
                Parsed::Fragment(part, end) if part.is_first() != is_inside => {
                    records += usize::from(part.is_last());
                    is_inside = !part.is_last();
                    at = end;
                }
                Parsed::End | Parsed::Short => return records,
                _ if log[at..].iter().all(|byte| *byte == 0) => return records,
                _ => return 0,
            }
        }
    };
    let records = starts.find_map(|at| match fragment(log, at) {
        (begin, Parsed::Fragment(part, _)) if begin == at && part.is_first() => {
            Some(records_from(at)).filter(|records| *records > 0)
        }
        _ => None,
    });
    records.unwrap_or(0)
}

#[cfg(test)]
mod tests;
