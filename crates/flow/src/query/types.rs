//! What can be asked.

use std::ops::Range;

use crate::{Counters, Field, Partition};

/// A question to the store: which rows, added up by what, in which order, and how many of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// From the first hour up to but without the last, which may be one more than the last hour there
    /// is.
    pub hours: Range<u32>,
    pub filter: Filter,
    /// Rows that agree in these are added up to one.
    pub columns: Columns,
    /// Without it, rows come in key order.
    pub sort: Option<Sort>,
    /// Most rows of the answer.
    pub limit: Option<usize>,
    /// Where the previous page ended: the cursor that came with it.
    pub cursor: Option<String>,
    /// Only these partitions of the sums, which have to be on this node; `None` is for all partitions, on all
    /// nodes. With it, rows come in key order, even if they were chosen by sorting.
    pub partitions: Option<Vec<Partition>>,
    /// Leave out partitions that no node answers for, instead of failing.
    pub partial: bool,
}

impl Query {
    /// All rows of `hours`.
    pub fn all_of(hours: Range<u32>) -> Query {
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

    /// The question to send to another node. Its answer contains all rows that may be in the answer of the whole,
    /// and one more, which shows whether a page follows.
    pub fn for_peer(&self) -> Query {
        let mut part = self.clone();
        // The answer then names what is missing.
        part.partial = true;
        // A group may have flows in several partitions; a row has all of them in one.
        let chooses = self.sort.is_none() || self.columns == Columns::ALL;
        part.limit = self.limit.filter(|_| chooses).map(|limit| limit + 1);
        if part.limit.is_none() {
            (part.sort, part.cursor) = (None, None);
        }
        part
    }
}

/// A set of the fields that identify a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Columns(u8);

impl Columns {
    pub const ALL: Columns = Columns(0b1111);
    pub const NONE: Columns = Columns(0);

    /// The fields in the order in which a key has them.
    pub const IN_KEY: [Field; 4] = [Field::Hour, Field::SrcApp, Field::DestApp, Field::VpcId];

    /// The set with `field` in it; `None` when it is there already, or cannot be.
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

    /// Whether it has the field at `at` of [`Columns::IN_KEY`].
    #[inline]
    pub fn has_at(self, at: usize) -> bool {
        self.0 & (1 << at) != 0
    }

    /// The fields of a row that is added up by these columns, in the order in which answers show them.
    pub fn fields(self) -> impl Iterator<Item = Field> {
        let is_sum = |field| matches!(field, Field::BytesTx | Field::BytesRx);
        let shown = move |field: &Field| is_sum(*field) || self.has(*field);
        Field::ALL.into_iter().filter(shown)
    }
}

/// By what rows are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sort {
    pub by: SortBy,
    /// The smallest first.
    pub ascending: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SortBy {
    BytesTx,
    BytesRx,
    /// Both together.
    Bytes,
}

impl Sort {
    /// Of two rows, the one with the lower rank comes first.
    pub fn rank(self, counters: Counters) -> u128 {
        let value = match self.by {
            SortBy::BytesTx => u128::from(counters.tx),
            SortBy::BytesRx => u128::from(counters.rx),
            SortBy::Bytes => u128::from(counters.tx) + u128::from(counters.rx),
        };
        if self.ascending { value } else { !value }
    }
}

/// Which rows count. Of each list, one of the names has to be the row's; an empty list takes all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Filter {
    pub src_apps: Vec<String>,
    pub dest_apps: Vec<String>,
    pub vpc_ids: Vec<String>,
    /// Part of one of the names; of ASCII letters, either case.
    pub search: Option<String>,
}
