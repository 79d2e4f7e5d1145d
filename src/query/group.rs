//! Groups rows: adds up those that agree in some columns.
//!
//! Rows come in key order: hour, src_app, dest_app, vpc_id. Rows that agree in the first columns are adjacent, so the
//! sums of such a group are complete as soon as the next group starts. Only if a query omits a column and selects a
//! later one, many groups are open at a time: they are kept in a table until the columns before change.

use std::hash::BuildHasher;
use std::ops::{ControlFlow, Range};

use hashbrown::HashTable;

use super::bounds::MemoryReservation;
use super::{FilteredScan, QueryError};
use crate::store::StoredRow;
use flow::codec;
use flow::query::{Columns, Query};
use flow::{Counters, Hour};

/// Aggregation state: a table is filled with adjacent rows, then read, then filled with the next ones.
#[derive(Debug)]
pub(super) struct Groups {
    columns: Columns,
    /// Number of leading key columns that are equal in all groups of the table.
    leading: usize,
    /// The values of these columns: the hour, and names.
    prefix: Vec<u8>,
    table: Table,
    /// Index of the next group to read.
    next: usize,
    /// The row that did not fit into the table and starts the next one: hour, suffix, sums.
    pending: Option<(Hour, Vec<u8>, Counters)>,
    key: Vec<u8>,
    /// Whether there are no more rows.
    ended: bool,
}

/// Number of leading key columns by which the rows of each group are adjacent.
pub(super) fn leading(query: &Query) -> usize {
    let is_one_hour = query.hours.only().is_some();
    let together = |at: &usize| query.columns.has_at(*at) || (*at == 0 && is_one_hour);
    let leading = (0..4).take_while(together).count();
    // Within a step, each hour starts over with the first name, so equal names are not adjacent.
    let of_names = if query.step > 1 && !is_one_hour { 0 } else { 3 };
    leading.min(1 + of_names)
}

/// Whether many groups can be open at a time, because a query omits a column and selects a later one, or adds up hours.
pub(super) fn needs_table(query: &Query) -> bool {
    (leading(query)..4).any(|at| query.columns.has_at(at))
}

impl Groups {
    pub(super) fn new(query: &Query, memory: MemoryReservation) -> Groups {
        Groups {
            columns: query.columns,
            leading: leading(query),
            prefix: Vec::new(),
            table: Table::new(memory),
            next: 0,
            pending: None,
            key: Vec::new(),
            ended: false,
        }
    }

    /// Adds up all rows of `matching` in one table, whatever the columns, so that it can be merged with others. The groups
    /// can be read after [`Groups::sort`].
    pub(super) fn collect(
        query: &Query,
        matching: &mut FilteredScan,
        memory: MemoryReservation,
    ) -> Result<Groups, QueryError> {
        let mut groups = Groups {
            leading: 0,
            ..Groups::new(query, memory)
        };
        groups.ended = matching.for_each_row(|row| groups.add(row))?;
        Ok(groups)
    }

    /// Adds the groups of `other`. Both were collected by the same columns.
    pub(super) fn merge_with(&mut self, other: &Groups) -> Result<(), QueryError> {
        let table = &other.table;
        table.groups.iter().try_for_each(|group| {
            let key = &table.keys[group.key.clone()];
            self.table.add(key, group.counters)
        })
    }

    /// Sorts collected groups by key.
    pub(super) fn sort(&mut self) {
        self.table.sort();
    }

    /// Adds up the rows of `matching`, and passes groups in key order to `each` until it breaks or they end: the key of a
    /// group, which is a row's key without the omitted columns, and its sums. Returns whether they have ended.
    #[inline]
    pub(super) fn for_each_group(
        &mut self,
        matching: &mut FilteredScan,
        mut each: impl FnMut(&[u8], Counters) -> Result<ControlFlow<()>, QueryError>,
    ) -> Result<bool, QueryError> {
        loop {
            while let Some((key, counters)) = self.next_group() {
                if each(key, counters)?.is_break() {
                    return Ok(false);
                }
            }
            if self.ended {
                return Ok(true);
            }
            self.start_next()?;
            self.ended = matching.for_each_row(|row| self.add(row))?;
            self.table.sort();
            self.next = 0;
        }
    }

    /// Adds a row. Breaks at the first row of the next table; the groups of this one are complete then.
    #[inline]
    fn add(&mut self, row: &StoredRow<'_>) -> Result<ControlFlow<()>, QueryError> {
        if self.table.is_empty() {
            self.set_prefix(row.hour, row.suffix)?;
        } else if !self.belongs(row) {
            self.pending = Some((row.hour, row.suffix.to_vec(), row.counters));
            return Ok(ControlFlow::Break(()));
        }
        self.add_suffix(row.hour, row.suffix, row.counters)?;
        Ok(ControlFlow::Continue(()))
    }

    /// The next group of the table; `None` after the last.
    fn next_group(&mut self) -> Option<(&[u8], Counters)> {
        let (trailing, counters) = self.table.get(self.next)?;
        self.next += 1;
        self.key.clear();
        let hour = if self.columns.has_at(0) {
            0
        } else {
            codec::HOUR_BYTES
        };
        self.key
            .extend_from_slice(self.prefix.get(hour..).unwrap_or_default());
        self.key.extend_from_slice(trailing);
        Some((&self.key, counters))
    }

    /// Whether it holds many groups.
    pub(super) fn needs_table(&self) -> bool {
        (self.leading..4).any(|at| self.columns.has_at(at))
    }

    /// Clears the table and starts the next one with the pending row.
    fn start_next(&mut self) -> Result<(), QueryError> {
        self.table.clear();
        if let Some((hour, suffix, counters)) = self.pending.take() {
            self.set_prefix(hour, &suffix)?;
            self.add_suffix(hour, &suffix, counters)?;
        }
        Ok(())
    }

    #[inline]
    fn belongs(&self, row: &StoredRow<'_>) -> bool {
        match codec::split_hour(&self.prefix) {
            Ok((hour, names)) => hour == row.hour && codec::starts_with_names(row.suffix, names),
            Err(_) => true, // no leading columns
        }
    }

    fn set_prefix(&mut self, hour: Hour, suffix: &[u8]) -> Result<(), QueryError> {
        self.prefix.clear();
        if let Some(names) = self.leading.checked_sub(1) {
            codec::push_hour(&mut self.prefix, hour);
            let mut rest = suffix;
            for _ in 0..names {
                let (name, behind) = codec::split_name(rest)?;
                self.prefix.extend_from_slice(name);
                rest = behind;
            }
        }
        Ok(())
    }

    /// Adds a row whose leading columns are known to be equal.
    #[inline]
    fn add_suffix(
        &mut self,
        hour: Hour,
        suffix: &[u8],
        counters: Counters,
    ) -> Result<(), QueryError> {
        let leading_bytes = self.prefix.len().saturating_sub(codec::HOUR_BYTES);
        let mut rest = &suffix[leading_bytes..];
        self.key.clear();
        if self.leading == 0 && self.columns.has_at(0) {
            codec::push_hour(&mut self.key, hour);
        }
        for at in self.leading.max(1)..4 {
            // Skip the remaining names if none of them is selected.
            if !(at..4).any(|at| self.columns.has_at(at)) {
                break;
            }
            let (name, behind) = codec::split_name(rest)?;
            if self.columns.has_at(at) {
                self.key.extend_from_slice(name);
            }
            rest = behind;
        }
        self.table.add(&self.key, counters)
    }
}

/// Sums by key.
#[derive(Debug)]
struct Table {
    groups: Vec<Group>,
    keys: Vec<u8>,
    /// Indexes of `groups`, by their keys.
    index: HashTable<u32>,
    hasher: foldhash::fast::RandomState,
    /// The group of the last row: the next row often belongs to it too.
    last: usize,
    memory: MemoryReservation,
}

#[derive(Debug)]
struct Group {
    key: Range<usize>,
    counters: Counters,
}

/// Memory of an index in a [`HashTable`], which is at least 7/16 full.
const INDEX_BYTES: usize = 2 * (size_of::<u32>() + 1);

impl Table {
    fn new(memory: MemoryReservation) -> Table {
        Table {
            groups: Vec::new(),
            keys: Vec::new(),
            index: HashTable::new(),
            hasher: foldhash::fast::RandomState::default(),
            last: 0,
            memory,
        }
    }

    fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    fn get(&self, at: usize) -> Option<(&[u8], Counters)> {
        let group = self.groups.get(at)?;
        Some((&self.keys[group.key.clone()], group.counters))
    }

    #[inline]
    fn add(&mut self, key: &[u8], counters: Counters) -> Result<(), QueryError> {
        if let Some(group) = self.groups.get_mut(self.last)
            && self.keys[group.key.clone()] == *key
        {
            group.counters.add(counters);
            return Ok(());
        }
        let hash = self.hasher.hash_one(key);
        let (groups, keys) = (&self.groups, &self.keys);
        let key_of = |at: &u32| &keys[groups[*at as usize].key.clone()];
        if let Some(at) = self.index.find(hash, |at| key_of(at) == key) {
            self.last = *at as usize;
            self.groups[self.last].counters.add(counters);
            return Ok(());
        }
        let at = u32::try_from(groups.len()).map_err(|_| QueryError::TooLarge {
            bytes_max: u32::MAX as usize,
        })?;
        let hash_of = |at: &u32| self.hasher.hash_one(key_of(at));
        self.index.insert_unique(hash, at, hash_of);
        self.last = at as usize;
        let start = self.keys.len();
        self.keys.extend_from_slice(key);
        self.groups.push(Group {
            key: start..self.keys.len(),
            counters,
        });
        let bytes = self.keys.capacity()
            + self.groups.capacity() * size_of::<Group>()
            + self.groups.len() * INDEX_BYTES;
        self.memory.grow_to(bytes)
    }

    /// Sorts by key. Nothing can be added afterwards.
    fn sort(&mut self) {
        let keys = &self.keys;
        let key = |group: &Group| &keys[group.key.clone()];
        self.groups.sort_unstable_by(|a, b| key(a).cmp(key(b)));
    }

    fn clear(&mut self) {
        self.groups.clear();
        self.keys.clear();
        self.index.clear();
        self.last = 0;
    }
}
