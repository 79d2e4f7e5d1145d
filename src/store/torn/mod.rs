//! Where a log of RocksDB ends, and whether a power cut can have left it so.
//!
//! The format: blocks of 32 KiB; in them fragments of crc32c (masked, of type and payload), length u16,
//! type u8, payload (RocksDB wiki, "Write Ahead Log File Format"). A record that does not fit into its
//! block goes on in the next.
//!
//! After a power cut, everything before the last sync is there. Of what was written after it, the disk has
//! any of the sectors; the others read as zeros, since logs are new files, and the file may be shorter. The
//! sector that the sync ended in has the bytes from before the sync in any case.
//!
//! In the journal's log each record is synced before the next is written. So one record can be in this
//! state, the last, and [`Remains`] asks: is there a record that, with some of its sectors lost, looks like
//! this? Each sector is either as it was written or all zeros, from where the record begins in it; so what is
//! not zeros has to fit. A changed byte does not: all sectors of its record are there, and the checksum is
//! wrong.
//!
//! No record has a sector of zeros by nature: names have no NUL in them as they are stored, and the longest
//! run of zeros is some numbers. The last sector may have few bytes of the record, so each record ends in a
//! mark that is not zeros ([`codec::SYNCED`]).

use super::codec;

pub(super) const BLOCK_BYTES: usize = 32 << 10;
pub(super) const HEADER_BYTES: usize = 7;
/// What disks write at once, at least. Larger sectors are several of these.
const SECTOR_BYTES: usize = 512;
/// Records of the MANIFEST that RocksDB may write before it syncs them: one for each thread that changes
/// which files there are.
const MANIFEST_RECORDS_MAX: usize = 4;

/// What a log is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogKind {
    Journal,
    Manifest,
}

/// How a log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogEnd {
    /// With a whole record, or one that the file ends in, which RocksDB drops by itself.
    Good,
    /// With a record that did not get to the disk; whole records end at `keep`.
    Torn {
        keep: usize,
        /// Records were not synced one by one (`--durability os`): what comes later, also in newer logs,
        /// may be there although this is not.
        unsynced: bool,
    },
}

/// A log that no power cut leaves so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damage {
    pub(super) at: usize,
}

/// A fragment's place in its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FragmentType {
    Full,
    First,
    Middle,
    Last,
}

impl FragmentType {
    fn of(kind: u8) -> Option<FragmentType> {
        match kind {
            1 | 9 | 10 | 130 => Some(FragmentType::Full), // data; and notes to the reader, each in one fragment
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

pub(super) fn find_end(log: &[u8], of: LogKind) -> Result<LogEnd, Damage> {
    let (mut keep, mut at, mut is_inside) = (0, 0, false);
    let mut unsynced = false;
    loop {
        let (begin, read) = fragment(log, at);
        match read {
            Parsed::Fragment(part, _) if part.is_first() == is_inside => {
                return Err(Damage { at: begin });
            }
            Parsed::Fragment(part, end) => {
                if part.is_last() {
                    keep = end;
                    unsynced |= of == LogKind::Journal && ends_unsynced(&log[..end]);
                }
                is_inside = !part.is_last();
                at = end;
            }
            Parsed::End => return Ok(LogEnd::Good),
            Parsed::Short | Parsed::Bad => {
                let remains = TornTail::new(log, keep);
                let is_torn = match of {
                    LogKind::Journal if !unsynced => remains.fits_one_record(begin, !is_inside),
                    LogKind::Journal => remains.lacks_sector_of(begin),
                    LogKind::Manifest => {
                        remains.lacks_sector_of(begin)
                            && records_in(log, begin + 1..log.len()) < MANIFEST_RECORDS_MAX
                    }
                };
                return match read {
                    _ if !is_torn => Err(Damage { at: begin }),
                    Parsed::Short => Ok(LogEnd::Good),
                    _ => Ok(LogEnd::Torn { keep, unsynced }),
                };
            }
        }
    }
}

/// Whether the record that ends here says that nobody waited for its sync.
fn ends_unsynced(log: &[u8]) -> bool {
    log.ends_with(codec::UNSYNCED)
}

enum Parsed {
    /// A good one, and where it ends.
    Fragment(FragmentType, usize),
    /// The log ends before it, or inside its header.
    End,
    /// The log ends inside it, by what its header says.
    Short,
    Bad,
}

/// Where the fragment after `at` begins: in the next block where no header fits into this one.
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
        let Some(part) = FragmentType::of(kind).filter(|_| end <= block_end(begin)) else {
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

/// What is in a log from its last whole record on, with the sectors that may be lost.
struct TornTail<'a> {
    log: &'a [u8],
    from: usize,
    /// Of each sector from that of `from` on: the byte from which on it may be lost; its end, where it is
    /// there.
    lost_from: Vec<usize>,
    /// Behind the last byte that is not zero.
    end: usize,
}

impl<'a> TornTail<'a> {
    fn new(log: &'a [u8], from: usize) -> TornTail<'a> {
        let is_zeros = |range: std::ops::Range<usize>| log[range].iter().all(|byte| *byte == 0);
        let sectors = (from - from % SECTOR_BYTES..log.len()).step_by(SECTOR_BYTES);
        let lost_from = sectors.map(|sector| {
            let end = (sector + SECTOR_BYTES).min(log.len());
            let begin = sector.max(from);
            // RocksDB may write a header and what follows it in two calls, and the page go to the disk in
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

    /// The byte at `at` as it was written; `None` where that is not known.
    fn byte(&self, at: usize) -> Option<u8> {
        let byte = *self.log.get(at)?;
        (at < self.lost_from[at / SECTOR_BYTES - self.from / SECTOR_BYTES]).then_some(byte)
    }

    /// The same of a range, where all of it is known.
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

    /// Whether the fragment at `begin`, which is not a good one, lacks a sector, or the end.
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

    /// What the header at `begin` says, if it is known.
    fn length(&self, begin: usize) -> Option<usize> {
        let length = [self.byte(begin + 4)?, self.byte(begin + 5)?];
        self.byte(begin + 6)?;
        Some(usize::from(u16::from_le_bytes(length)))
    }

    /// Whether all from the fragment at `at` on, the first of its record or a later one, can be of one
    /// record.
    fn fits_one_record(&self, mut at: usize, mut is_first: bool) -> bool {
        while at < self.log.len() {
            // Where its length is lost, what follows could be taken for a part of it.
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
        // Of what the header says, only a byte is known, or none.
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

    /// Whether the record can go on in the next block.
    fn can_continue_after(&self, at: usize, is_first: bool) -> bool {
        let goes_on = |part: FragmentType| !part.is_last() && part.is_first() == is_first;
        let length = block_end(at) - at - HEADER_BYTES;
        let bytes = (length as u16).to_le_bytes();
        self.kind(at).is_none_or(|kind| kind.is_some_and(goes_on))
            && (0..2).all(|n| self.byte(at + 4 + n).is_none_or(|byte| byte == bytes[n]))
            && self.has_checksum(at, length)
    }

    /// What the type byte of the fragment at `at` says; `None` where it is not known.
    fn kind(&self, at: usize) -> Option<Option<FragmentType>> {
        self.byte(at + 6).map(FragmentType::of)
    }

    /// Whether the checksum can be right with a payload of this length: for what is known of both.
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

    /// Whether the fragment at `at`, which reaches past the end of the file, would be good if it were
    /// shorter: then its length has been changed, and others follow it.
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

/// How many whole records there are in a row, up to where the log ends, of which the first begins in this range.
/// (Something inside of a record that looks like one is not followed by others.)
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
