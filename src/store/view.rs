//! Views: what a reader sees of the tallies and of the disk, as of one moment between two commits.
//!
//! A view copies the tallies and then makes an iterator. A batch that is flushed in between is in both, and the marker
//! that the iterator sees tells them apart. In the opposite order, it could be in neither.

use std::sync::Arc;

use rocksdb::{DB, DBRawIteratorWithThreadMode, ReadOptions};
use self_cell::self_cell;

use super::Inner;
use super::codec;
use super::error::StoreError;
use super::families::HiddenHours;
use super::position::Position;
use super::retention::Cutoffs;
use super::tallies::Tallies;
use super::tally::Tally;
use super::tiers::{KeyLayout, Layer, Segment, Summed, layers};
use super::view_budget::ViewGrant;
use flow::Hour;

/// What a reader copies from the tallies, and which keys it reads on disk.
pub(super) trait ViewSpec {
    type Copy;

    /// Memory of a copy.
    fn copy_bytes(&self, tally: &Tally, cutoff: Hour) -> usize;

    /// Copies from one tally what the reader needs of it, without hours before `cutoff`.
    fn copy(&self, tally: &Tally, cutoff: Hour) -> Self::Copy;

    /// Reads figures that are beside the tallies, under the same lock.
    fn read_counters(&mut self, _tallies: &Tallies) {}

    /// The keys to read on disk (end exclusive), without hours before `cutoff`.
    fn bounds(&self, cutoff: Hour) -> (Vec<u8>, Vec<u8>);

    /// Keys, ascending, at which these keys are cut into ranges that are read separately.
    fn cuts(&self) -> &[Vec<u8>] {
        &[]
    }

    /// The segments to read in `settled`, one list for each range between cuts, ascending by hour. `None`: the same keys as
    /// in `flows`.
    ///
    /// # Errors
    /// [`StoreError::TooCoarse`] if the hours need rows that are gone.
    fn settled_segments(
        &self,
        _cutoffs: &Cutoffs,
        _summed: &Summed,
        _hidden: &HiddenHours,
    ) -> Result<Option<Vec<Vec<Segment>>>, StoreError> {
        Ok(None)
    }

    /// Whether the reader seeks and reads few keys.
    fn seeks(&self) -> bool;

    /// Whether the keys are rows, so that the view needs the settled ones too.
    fn reads_rows(&self) -> bool {
        false
    }
}

/// The state of the store at one moment. It holds no lock.
pub(super) struct View<C> {
    /// The keys up to the first cut.
    pub(super) disk: OnDisk,
    /// The keys after each cut.
    pub(super) after_cuts: Vec<OnDisk>,
    /// The last journal position that the sums on disk contain.
    pub(super) marker: Position,
    /// Copies of the tallies that are after the marker.
    pub(super) copies: Vec<C>,
    /// Covers the copies.
    pub(super) grant: ViewGrant,
    /// Identifies the content of the whole store: it changes with every commit and differs between processes.
    pub(super) tag: u64,
}

impl<C> View<C> {
    pub(super) fn open(
        inner: &Arc<Inner>,
        of: &mut impl ViewSpec<Copy = C>,
    ) -> Result<View<C>, StoreError> {
        // While hours are dropped, an iterator may lack rows of an hour of which there is a copy.
        inner.visibility.between_changes(|change_seq| {
            let copied = copy_tallies(inner, of)?;
            let (lower, upper) = of.bounds(copied.cutoffs.all);
            let keys = KeyRanges {
                seeks: of.seeks(),
                fill_cache: of.seeks() || inner.is_small(&lower, &upper)?,
                bounds: cut(lower, upper, of.cuts()),
            };
            let segments = |hidden: &HiddenHours| {
                let summed = inner.summed()?;
                of.settled_segments(&copied.cutoffs, &summed, hidden)
            };
            let (mut on_disk, marker) = match of.reads_rows() {
                true => OnDisk::open_rows(inner, &keys, segments)?,
                false => OnDisk::open_keys(inner, &keys)?,
            };
            let after_cuts = on_disk.split_off(1);
            let disk = on_disk.pop().ok_or(StoreError::Closed)?;
            // The marker is always the last position of some tally. If it is before a tally's last position, the disk
            // has nothing of that tally; otherwise the disk has all of the copy.
            let last = copied.active.0;
            let both = copied.frozen.into_iter().chain([copied.active]);
            let copies = both.filter(|(last, _)| *last > marker);
            Ok(View {
                disk,
                after_cuts,
                marker,
                copies: copies.map(|(_, copy)| copy).collect(),
                grant: copied.grant,
                tag: inner.visibility.tag(last, change_seq),
            })
        })
    }
}

/// Copies of both tallies, each with its last position, as of one moment.
struct Copied<C> {
    active: (Position, C),
    frozen: Option<(Position, C)>,
    cutoffs: Cutoffs,
    grant: ViewGrant,
}

fn copy_tallies<V: ViewSpec>(
    inner: &Arc<Inner>,
    of: &mut V,
) -> Result<Copied<V::Copy>, StoreError> {
    let mut bytes = 0;
    loop {
        // Reserve without the lock, since this may block.
        let grant = ViewGrant::reserve(inner, bytes)?;
        let tallies = inner.tallies()?;
        let cutoffs = inner.retention.cutoffs();
        let cutoff = cutoffs.all;
        let needed: usize = (tallies.both().map(|tally| of.copy_bytes(tally, cutoff))).sum();
        if !grant.covers(needed, &inner.views) {
            // Reserve more than needed, since the tallies grow meanwhile.
            bytes = needed + needed / 8;
            continue;
        }
        of.read_counters(&tallies);
        let copy = |tally: &Tally| (tally.last(), of.copy(tally, cutoff));
        let (active, frozen) = (copy(tallies.active()), tallies.frozen().cloned());
        // The frozen tally does not change, so it is copied without the lock. It is copied because a slow client that
        // shared it would keep all of it in memory.
        drop(tallies);
        return Ok(Copied {
            active,
            frozen: frozen.as_deref().map(copy),
            cutoffs,
            grant,
        });
    }
}

type RawIterator<'a> = DBRawIteratorWithThreadMode<'a, DB>;

self_cell!(
    /// An iterator together with the database that it reads.
    pub(super) struct OwnedIterator {
        owner: Arc<Inner>,
        #[covariant]
        dependent: RawIterator,
    }
);

impl OwnedIterator {
    /// The current key and value; `None` after the last or on an error.
    #[inline]
    pub(super) fn item(&self) -> Option<(&[u8], &[u8])> {
        self.borrow_dependent().item()
    }

    /// The current key, like [`OwnedIterator::item`].
    #[inline]
    pub(super) fn key(&self) -> Option<&[u8]> {
        self.borrow_dependent().key()
    }

    pub(super) fn status(&self) -> Result<(), rocksdb::Error> {
        self.borrow_dependent().status()
    }

    #[inline]
    pub(super) fn advance(&mut self) {
        self.with_dependent_mut(|_, iterator| iterator.next());
    }

    pub(super) fn seek(&mut self, key: &[u8]) {
        self.with_dependent_mut(|_, iterator| iterator.seek(key));
    }

    fn at_first(mut self) -> OwnedIterator {
        self.with_dependent_mut(|_, iterator| iterator.seek_to_first());
        self
    }
}

/// Blocks of hours whose size on disk is at most this fraction of the block cache are cached when they are read, for
/// dashboards that repeat their queries. (On disk they are compressed to a quarter or less.) A scan of millions of rows
/// would evict everything else; the page cache serves it well enough.
const CACHED_PART_MAX: usize = 8;

/// What a view sees on disk of a range of keys.
pub(super) struct OnDisk {
    /// The keys in `flows`, positioned at the first.
    pub(super) flows: OwnedIterator,
    /// Hours whose rows in `flows` are settled already.
    pub(super) hidden: HiddenHours,
    /// The rows in `settled`; none if the reader needs no rows.
    pub(super) settled: Vec<SettledRows>,
}

/// What a view sees in `settled` of one layout.
pub(super) struct SettledRows {
    /// At its first key.
    pub(super) rows: OwnedIterator,
    pub(super) layout: KeyLayout,
    /// Hours, ascending and disjoint, whose rows are dropped already, or are read in another layout.
    pub(super) hidden: HiddenHours,
}

/// Ranges of keys to read.
struct KeyRanges {
    /// Ascending (ends exclusive).
    bounds: Vec<(Vec<u8>, Vec<u8>)>,
    /// See [`ViewSpec::seeks`].
    seeks: bool,
    /// They are few, or will be read again.
    fill_cache: bool,
}

/// The keys from `lower` to `upper` (exclusive) up to the first of `cuts`, and behind each of them; perhaps none.
fn cut(lower: Vec<u8>, upper: Vec<u8>, cuts: &[Vec<u8>]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let inside = cuts.iter().map(|cut| cut.clamp(&lower, &upper).clone());
    let starts: Vec<Vec<u8>> = [lower.clone()].into_iter().chain(inside).collect();
    let ends: Vec<Vec<u8>> = starts[1..].iter().cloned().chain([upper]).collect();
    starts.into_iter().zip(ends).collect()
}

impl OnDisk {
    /// Returns the ranges, and the marker in `flows`.
    fn open_keys(
        inner: &Arc<Inner>,
        keys: &KeyRanges,
    ) -> Result<(Vec<OnDisk>, Position), StoreError> {
        loop {
            let marker = inner.marker()?;
            let flows = open_iterators(inner, codec::FLOWS, keys)?;
            // An iterator sees a snapshot from its creation. The marker only increases, so if it is the same before
            // and after, it is the same in all snapshots. Otherwise a flush happened in between, which is rare: retry.
            if inner.marker()? == marker {
                let on_disk = flows.into_iter().map(|flows| OnDisk {
                    flows: flows.at_first(),
                    hidden: HiddenHours::default(),
                    settled: Vec::new(),
                });
                return Ok((on_disk.collect(), marker));
            }
        }
    }

    /// [`OnDisk::open_keys`] with the settled rows.
    fn open_rows(
        inner: &Arc<Inner>,
        keys: &KeyRanges,
        segments: impl Fn(&HiddenHours) -> Result<Option<Vec<Vec<Segment>>>, StoreError>,
    ) -> Result<(Vec<OnDisk>, Position), StoreError> {
        let (db, families) = (&inner.db, &inner.families);
        if inner.settled().is_none() {
            return OnDisk::open_keys(inner, keys);
        }
        loop {
            // The same method as for the marker, for the number of the last settlement in each family.
            let in_flows = families.in_flows(db)?;
            let (mut on_disk, marker) = OnDisk::open_keys(inner, keys)?;
            if families.in_flows(db)? != in_flows {
                continue;
            }
            let in_settled = families.in_settled(db)?;
            let Some(hidden) = families.hidden(in_flows, in_settled) else {
                continue;
            };
            let settled: Vec<Vec<SettledRows>> = match segments(&hidden.in_settled)? {
                None => {
                    let iterators = open_iterators(inner, codec::SETTLED, keys)?;
                    let one = |rows: OwnedIterator| {
                        vec![SettledRows {
                            rows: rows.at_first(),
                            layout: KeyLayout::HOURS,
                            hidden: hidden.in_settled.clone(),
                        }]
                    };
                    iterators.into_iter().map(one).collect()
                }
                Some(parts) => {
                    let open = |segments: &Vec<_>| {
                        let layers = layers(segments, &hidden.in_settled);
                        open_layers(inner, keys, layers)
                    };
                    parts.iter().map(open).collect::<Result<_, _>>()?
                }
            };
            if families.in_settled(db)? != in_settled {
                continue;
            }
            // Between the iterators, a tally that was copied may have been flushed and its hours settled.
            if in_settled != in_flows && inner.marker()? != marker {
                continue;
            }
            for (on_disk, settled) in on_disk.iter_mut().zip(settled) {
                on_disk.hidden = hidden.in_flows.clone();
                on_disk.settled = settled;
            }
            return Ok((on_disk, marker));
        }
    }
}

fn open_layers(
    inner: &Arc<Inner>,
    keys: &KeyRanges,
    layers: Vec<Layer>,
) -> Result<Vec<SettledRows>, StoreError> {
    let bounds: Vec<_> = (layers.iter())
        .map(|layer| layer.layout.bounds(layer.hours))
        .collect();
    let settled = inner.settled().ok_or(StoreError::Closed)?;
    let bytes: u64 = (bounds.iter())
        .map(|(lower, upper)| inner.bytes_in(settled, lower, upper))
        .sum();
    let keys = KeyRanges {
        seeks: keys.seeks,
        fill_cache: keys.seeks || inner.fits_cache(bytes),
        bounds,
    };
    let iterators = open_iterators(inner, codec::SETTLED, &keys)?;
    let rows = iterators.into_iter().zip(layers);
    Ok(rows
        .map(|(rows, layer)| SettledRows {
            rows: rows.at_first(),
            layout: layer.layout,
            hidden: layer.skipped.into(),
        })
        .collect())
}

impl Inner {
    /// Whether reading these keys should fill the cache.
    fn is_small(&self, lower: &[u8], upper: &[u8]) -> Result<bool, StoreError> {
        Ok(self.fits_cache(self.bytes_on_disk(lower, upper)?))
    }

    fn fits_cache(&self, bytes: u64) -> bool {
        bytes <= (self.options.block_cache_bytes / CACHED_PART_MAX) as u64
    }
}

/// One iterator for each range.
fn open_iterators(
    inner: &Arc<Inner>,
    family: &str,
    keys: &KeyRanges,
) -> Result<Vec<OwnedIterator>, StoreError> {
    let open = |(lower, upper): &(Vec<u8>, Vec<u8>)| {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(lower.as_slice());
        options.set_iterate_upper_bound(upper.as_slice());
        options.fill_cache(keys.fill_cache);
        OwnedIterator::try_new(inner.clone(), |inner| {
            let family = inner.db.cf_handle(family).ok_or(StoreError::Closed)?;
            Ok(inner.db.raw_iterator_cf_opt(family, options))
        })
    };
    keys.bounds.iter().map(open).collect()
}
