//! Cuts a range of keys into parts of similar size on disk, which several threads read at a time.

use super::Inner;
use super::codec::HOUR_BYTES;
use super::error::{StoreError, with_context};
use super::families::iterate;
use super::tiers::{Segment, Tier};

/// A part has at least this many bytes on disk, about 500,000 rows: reading it takes ten times as long as finding the
/// cut.
const PART_BYTES_MIN: u64 = if cfg!(test) { 1 << 10 } else { 4 << 20 };
/// Maximum number of parts: more would take longer to open, one after the other, than they save.
const PARTS_MAX: usize = 8;
/// Maximum number of bytes that are searched for a cut.
const SEARCHES_MAX: usize = 16;
/// A part may differ from its share by this fraction of it.
const TOLERANCE: u64 = 16;

impl Inner {
    /// At most `parts` - 1 keys, ascending, that cut the keys from `lower` to `upper` (exclusive). Unflushed rows are
    /// not considered.
    pub(super) fn cuts(
        &self,
        lower: &[u8],
        upper: &[u8],
        parts: usize,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let all = self.bytes_on_disk(lower, upper)?;
        let parts = (parts.min(PARTS_MAX) as u64).min(all / PART_BYTES_MIN);
        let mut cuts: Vec<Vec<u8>> = Vec::new();
        for part in 1..parts {
            let (bytes, tolerance) = (part * all / parts, all / parts / TOLERANCE);
            let cut = self.cut_at(lower, upper, bytes, tolerance)?;
            // Files may have been deleted meanwhile, and then no key has so many bytes before it.
            let is_inside = lower < cut.as_slice() && cut.as_slice() < upper;
            if is_inside && cuts.last().is_none_or(|last| *last < cut) {
                cuts.push(cut);
            }
        }
        Ok(cuts)
    }

    /// At most `parts` - 1 keys, ascending, that cut the rows of `segments` at multiples of thirty days, which no span has on
    /// both sides, whatever is summed.
    pub(super) fn cuts_between_spans(
        &self,
        segments: &[Segment],
        parts: usize,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let Some(settled) = self.settled() else {
            return Ok(Vec::new());
        };
        let thirty_days = Tier::ThirtyDays.hours();
        // The bytes of each thirty days that have rows, ascending.
        let mut blocks: Vec<(u32, u64)> = Vec::new();
        for segment in segments {
            let (lower, upper) = segment.layout.bounds(segment.hours);
            let mut rows = iterate(&self.db, settled, &lower, &upper);
            while let Some(key) = rows.key() {
                let (hour, _) = segment.layout.split(key)?;
                let number = hour.get() / thirty_days;
                let of_block = Tier::ThirtyDays.span(number).hours();
                let start = segment.hours.start().max(of_block.start());
                let end = segment.hours.end().min(of_block.end());
                let (lower, behind) = segment.layout.bounds((start..end).into());
                let bytes = self.bytes_in(settled, &lower, &behind);
                match blocks.last_mut() {
                    Some((last, sum)) if *last == number => *sum += bytes,
                    _ => blocks.push((number, bytes)),
                }
                rows.seek(behind);
            }
            rows.status().map_err(with_context("looking for a cut"))?;
        }
        let all: u64 = blocks.iter().map(|(_, bytes)| bytes).sum();
        let parts = (parts.min(PARTS_MAX) as u64).min(all / PART_BYTES_MIN);
        let (mut cuts, mut before) = (Vec::new(), 0);
        for (number, bytes) in blocks {
            // The next cut is due at the start of the block in whose middle it would be, or before.
            let share = (cuts.len() as u64 + 1) * all / parts.max(1);
            if before > 0 && before + bytes / 2 >= share && cuts.len() as u64 + 1 < parts {
                cuts.push((number * thirty_days).to_be_bytes().to_vec());
            }
            before += bytes;
        }
        Ok(cuts)
    }

    /// The bytes that all keys from `lower` to `upper` (exclusive) begin with.
    fn shared_prefix(&self, lower: &[u8], upper: &[u8]) -> Result<Vec<u8>, StoreError> {
        let mut ends: Vec<Vec<u8>> = Vec::new();
        for family in [Some(self.flows()?), self.settled()].into_iter().flatten() {
            let mut keys = iterate(&self.db, family, lower, upper);
            ends.extend(keys.key().map(<[u8]>::to_vec));
            keys.seek_to_last();
            ends.extend(keys.key().map(<[u8]>::to_vec));
            keys.status().map_err(with_context("looking for a cut"))?;
        }
        let (Some(first), Some(last)) = (ends.iter().min(), ends.iter().max()) else {
            return Ok(Vec::new());
        };
        let shared = first.iter().zip(last).take_while(|(a, b)| a == b);
        Ok(shared.map(|(byte, _)| *byte).collect())
    }

    /// The key after about `bytes` of the keys from `lower` to `upper`: a binary search for one byte after the other, until
    /// the key is exact to `tolerance` bytes. Bytes that all keys in question share are skipped.
    fn cut_at(
        &self,
        lower: &[u8],
        upper: &[u8],
        bytes: u64,
        tolerance: u64,
    ) -> Result<Vec<u8>, StoreError> {
        let bytes_before = |cut: &[u8]| match lower < cut {
            true => self.bytes_on_disk(lower, cut),
            false => Ok(0),
        };
        let mut cut = Vec::new();
        let mut before = 0;
        for _ in 0..SEARCHES_MAX {
            if before + tolerance >= bytes && cut.len() >= HOUR_BYTES {
                break;
            }
            let end = prefix_end(&cut).unwrap_or_else(|| upper.to_vec());
            let (from, to) = (cut.as_slice().max(lower), end.as_slice().min(upper));
            let shared = self.shared_prefix(from, to)?;
            if shared.len() > cut.len() && shared.starts_with(&cut) {
                cut = shared;
            }
            let at = cut.len();
            cut.push(0);
            let (mut least, mut end) = (0, 256);
            while end - least > 1 {
                let middle = least + (end - least) / 2;
                cut[at] = middle as u8;
                let bytes_to_middle = bytes_before(&cut)?;
                if bytes_to_middle <= bytes {
                    (least, before) = (middle, bytes_to_middle);
                } else {
                    end = middle;
                }
            }
            cut[at] = least as u8;
        }
        // The first key of an hour, if the search ended before.
        cut.resize(cut.len().max(HOUR_BYTES), 0);
        Ok(cut)
    }
}

/// The first key behind all that begin with `prefix`; `None` if there is none.
fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut behind = prefix[..=last].to_vec();
    behind[last] += 1;
    Some(behind)
}
