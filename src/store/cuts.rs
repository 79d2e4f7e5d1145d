//! Cuts a range of keys into parts of similar size on disk, which several threads read at a time.

use super::Inner;
use super::codec::HOUR_BYTES;
use super::error::StoreError;

/// A part has at least this many bytes on disk, about 100,000 rows: reading it takes ten times as long as finding the
/// cut.
const PART_BYTES_MIN: u64 = if cfg!(test) { 1 << 10 } else { 1 << 20 };
/// Longest cut, so that many rows with a long common prefix do not take too long.
const CUT_BYTES_MAX: usize = 64;
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
        let parts = (parts as u64).min(all / PART_BYTES_MIN);
        let mut cuts: Vec<Vec<u8>> = Vec::new();
        for part in 1..parts {
            let cut = self.cut_at(lower, upper, part * all / parts, all / parts / TOLERANCE)?;
            if cuts.last().is_none_or(|last| *last < cut) {
                cuts.push(cut);
            }
        }
        Ok(cuts)
    }

    /// The key after about `bytes` of the keys from `lower` to `upper`: a binary search for one byte after the other,
    /// until the key is exact to `tolerance` bytes.
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
        let shared = lower.iter().zip(upper).take_while(|(a, b)| a == b);
        let mut cut: Vec<u8> = shared.map(|(byte, _)| *byte).collect();
        let mut before = 0;
        while cut.len() < CUT_BYTES_MAX && (before + tolerance < bytes || cut.len() < HOUR_BYTES) {
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
        Ok(cut)
    }
}
