//! Copies of unflushed rows.

use std::sync::Arc;

use crate::store::arena;
use crate::store::codec::{self, Corrupt};
use crate::store::run::SortedRun;
use flow::Hour;

/// A copy of a tally's entries of one hour, or a part of it.
pub(super) struct HourCopy {
    pub(super) hour: Hour,
    entries: SharedEntries,
    /// The suffixes of its rows (end exclusive; `None` is the end); `None` for all entries.
    suffixes: Option<(Vec<u8>, Option<Vec<u8>>)>,
    pub(super) rows: usize,
    /// Memory of the entries; 0 if another part of the copy counts it.
    entry_bytes: usize,
}

/// Parts of a copy share its entries.
#[derive(Clone, Debug)]
pub(super) struct SharedEntries(Arc<Vec<u8>>);

impl AsRef<[u8]> for SharedEntries {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Memory of an hour's copy without its entries: there may be as many hours as entries.
pub(super) const HOUR_COPY_BYTES: usize = 2 * size_of::<HourCopy>() + 40;

impl HourCopy {
    pub(super) fn new(hour: Hour, entries: Vec<u8>, rows: usize) -> HourCopy {
        HourCopy {
            hour,
            entry_bytes: entries.len(),
            entries: SharedEntries(Arc::new(entries)),
            suffixes: None,
            rows,
        }
    }

    /// Its memory, including the sort order of its rows.
    pub(super) fn bytes(&self) -> usize {
        HOUR_COPY_BYTES + self.entry_bytes + SortedRun::<SharedEntries>::order_bytes(self.rows)
    }

    pub(super) fn into_run(self) -> SortedRun<SharedEntries> {
        match &self.suffixes {
            None => SortedRun::sort(self.entries, self.rows),
            Some((start, end)) => SortedRun::sort_those(self.entries, self.rows, |suffix| {
                start.as_slice() <= suffix && end.as_ref().is_none_or(|end| suffix < end.as_slice())
            }),
        }
    }

    /// Its parts before, between and behind `cuts`, ascending suffixes; those without rows are left out. Each has its
    /// index.
    pub(super) fn cut(self, cuts: &[&[u8]]) -> Vec<(usize, HourCopy)> {
        let mut rows = vec![0; cuts.len() + 1];
        for suffix in arena::suffixes(&self.entries.0) {
            rows[cuts.partition_point(|cut| *cut <= suffix)] += 1;
        }
        let mut entry_bytes = self.entry_bytes;
        let with_rows = rows.into_iter().enumerate().filter(|(_, rows)| *rows > 0);
        let parts = with_rows.map(|(index, rows)| {
            let start = index.checked_sub(1).map_or(&[][..], |before| cuts[before]);
            let end = cuts.get(index).map(|end| end.to_vec());
            let part = HourCopy {
                hour: self.hour,
                entries: self.entries.clone(),
                suffixes: Some((start.to_vec(), end)),
                rows,
                entry_bytes: std::mem::take(&mut entry_bytes),
            };
            (index, part)
        });
        parts.collect()
    }
}

/// Distributes copies to the parts before, between and behind `cuts`.
pub(super) fn cut_copies(
    copies: impl Iterator<Item = HourCopy>,
    cuts: &[Vec<u8>],
) -> Result<Vec<Vec<HourCopy>>, Corrupt> {
    let cuts: Vec<(Hour, &[u8])> =
        (cuts.iter().map(|cut| codec::split_hour(cut))).collect::<Result<_, _>>()?;
    let mut of_parts: Vec<Vec<HourCopy>> = (0..=cuts.len()).map(|_| Vec::new()).collect();
    for copied in copies {
        let hour = copied.hour;
        let first = cuts.partition_point(|(of, suffix)| (*of, *suffix) <= (hour, &[]));
        let end = cuts.partition_point(|(of, _)| *of <= hour);
        let inside: Vec<&[u8]> = cuts[first..end].iter().map(|(_, suffix)| *suffix).collect();
        if inside.is_empty() {
            of_parts[first].push(copied);
            continue;
        }
        for (index, part) in copied.cut(&inside) {
            of_parts[first + index].push(part);
        }
    }
    Ok(of_parts)
}
