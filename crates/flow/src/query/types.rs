//! The types of a query.

use crate::{Counters, Field, HourRange, Partition};

/// A query: a selection of rows, the columns to group by, the order, and the maximum number of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub hours: HourRange,
    pub filter: Filter,
    /// The columns to group by: rows that agree in them are added up.
    pub columns: Columns,
    /// `None`: rows come in key order.
    pub sort: Option<Sort>,
    /// Maximum number of rows.
    pub limit: Option<usize>,
    /// The cursor that the previous page returned.
    pub cursor: Option<String>,
    /// Only these partitions, which must be on this node; `None` means all partitions on all nodes. If set, rows come
    /// in key order even if they were selected by sorting.
    pub partitions: Option<Vec<Partition>>,
    /// Leave out partitions that no node serves, instead of failing.
    pub partial: bool,
}

impl Query {
    /// All rows of `hours`.
    pub fn all_of(hours: HourRange) -> Query {
        Query {
            hours,
            filter: Filter::default(),
            columns: Columns::ALL,
            sort: None,
            limit: None,
            cursor: None,
            partitions: None,
            partial: false,
        }
    }
}

/// A set of the fields that identify a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Columns(u8);

impl Columns {
    pub const ALL: Columns = Columns(0b1111);
    pub const NONE: Columns = Columns(0);

    /// The fields in key order.
    pub const IN_KEY: [Field; 4] = [Field::Hour, Field::SrcApp, Field::DestApp, Field::VpcId];

    /// The set with `field` added; `None` if it is already in the set or cannot be.
    pub fn with(self, field: Field) -> Option<Columns> {
        let at = Columns::IN_KEY.iter().position(|of_key| *of_key == field)?;
        let more = Columns(self.0 | 1 << at);
        (more != self).then_some(more)
    }

    #[inline]
    pub fn has(self, field: Field) -> bool {
        match Columns::IN_KEY.iter().position(|of_key| *of_key == field) {
            Some(at) => self.has_at(at),
            None => false,
        }
    }

    /// Whether it has the field at index `at` of [`Columns::IN_KEY`].
    #[inline]
    pub fn has_at(self, at: usize) -> bool {
        self.0 & (1 << at) != 0
    }

    /// The fields of a row that is grouped by these columns, in the order of responses.
    pub fn fields(self) -> impl Iterator<Item = Field> {
        let is_sum = |field| matches!(field, Field::BytesTx | Field::BytesRx);
        let shown = move |field: &Field| is_sum(*field) || self.has(*field);
        Field::ALL.into_iter().filter(shown)
    }
}

/// The sort order of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sort {
    pub by: SortBy,
    /// Smallest first.
    pub ascending: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SortBy {
    BytesTx,
    BytesRx,
    /// Their sum.
    Bytes,
}

impl Sort {
    /// The row with the lower rank comes first.
    pub fn rank(self, counters: Counters) -> u128 {
        let value = match self.by {
            SortBy::BytesTx => u128::from(counters.tx),
            SortBy::BytesRx => u128::from(counters.rx),
            SortBy::Bytes => u128::from(counters.tx) + u128::from(counters.rx),
        };
        if self.ascending { value } else { !value }
    }
}

/// Selects rows. A row matches a list if it has one of its names; an empty list matches all rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Filter {
    pub src_apps: Vec<String>,
    pub dest_apps: Vec<String>,
    pub vpc_ids: Vec<String>,
    /// A substring of one of the names, ignoring the case of ASCII letters.
    pub search: Option<String>,
}
