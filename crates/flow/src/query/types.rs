//! The types of a query.

use crate::{Counters, Field, HourRange, Partition};

/// A query: a selection of rows, the columns to group by, the order, and the maximum number of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub hours: HourRange,
    pub filter: Filter,
    /// The columns to group by: rows that agree in them are added up.
    pub columns: Columns,
    /// Hours are added up in steps of this many, which begin at its multiples; a row's hour is the first of its step. More
    /// than 1 only if `columns` has the hour.
    pub step: u32,
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
    /// Add a last row with the sums of all rows that are not among the first. Only with a sort order and a limit, and
    /// without a cursor.
    pub other: bool,
    /// Each row also has its sums of these hours, for comparison. Only if rows are grouped without the hour.
    pub compare: Option<HourRange>,
}

impl Query {
    /// All rows of `hours`.
    pub fn all_of(hours: HourRange) -> Query {
        Query {
            hours,
            filter: Filter::default(),
            columns: Columns::ALL,
            step: 1,
            sort: None,
            limit: None,
            cursor: None,
            partitions: None,
            partial: false,
            other: false,
            compare: None,
        }
    }

    /// Whether rows are added up.
    pub fn is_grouped(&self) -> bool {
        self.columns != Columns::ALL || self.step > 1
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
    /// Their sum minus that of the hours that are compared; the largest growth first.
    Change,
}

impl Sort {
    /// The row with the lower rank comes first. `before` are the sums of the hours that are compared.
    pub fn rank(self, counters: Counters, before: Counters) -> u128 {
        let both = |counters: Counters| u128::from(counters.tx) + u128::from(counters.rx);
        let value = match self.by {
            SortBy::BytesTx => u128::from(counters.tx),
            SortBy::BytesRx => u128::from(counters.rx),
            SortBy::Bytes => both(counters),
            // Never negative.
            SortBy::Change => (1 << 65) + both(counters) - both(before),
        };
        if self.ascending { value } else { !value }
    }
}

/// Selects rows: those that match all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Filter {
    pub src_app: NameFilter,
    pub dest_app: NameFilter,
    pub vpc_id: NameFilter,
    /// One of the two applications is selected, and neither is excluded.
    pub peer: NameFilter,
    /// A substring of one of the names, ignoring the case of ASCII letters.
    pub search: Option<String>,
}

/// Selects names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NameFilter {
    /// A name is selected if it is one of these, or begins with one of `prefixes`; any name if there are none of both.
    pub names: Vec<String>,
    pub prefixes: Vec<String>,
    /// It is not selected if it is one of these.
    pub excluded: Vec<String>,
}

impl NameFilter {
    /// Whether every name matches.
    pub fn is_any(&self) -> bool {
        self.names.is_empty() && self.prefixes.is_empty() && self.excluded.is_empty()
    }

    /// Its lists, each with the operator between a parameter's name and its value.
    pub fn lists(&self) -> [(&'static str, &Vec<String>); 3] {
        let NameFilter {
            names,
            prefixes,
            excluded,
        } = self;
        [("", names), ("^", prefixes), ("!", excluded)]
    }

    /// Like [`NameFilter::lists`].
    pub fn lists_mut(&mut self) -> [(&'static str, &mut Vec<String>); 3] {
        let NameFilter {
            names,
            prefixes,
            excluded,
        } = self;
        [("", names), ("^", prefixes), ("!", excluded)]
    }
}

impl Filter {
    /// The filters of names, each with the name of its parameter.
    pub fn names(&self) -> [(&'static str, &NameFilter); 4] {
        [
            ("src_app", &self.src_app),
            ("dest_app", &self.dest_app),
            ("vpc_id", &self.vpc_id),
            ("peer", &self.peer),
        ]
    }

    /// Like [`Filter::names`].
    pub fn names_mut(&mut self) -> [(&'static str, &mut NameFilter); 4] {
        [
            ("src_app", &mut self.src_app),
            ("dest_app", &mut self.dest_app),
            ("vpc_id", &mut self.vpc_id),
            ("peer", &mut self.peer),
        ]
    }

    /// The list of a parameter such as `src_app` or `src_app!`, which is `src_app!=NAME` in a query.
    fn list_of(&mut self, parameter: &str) -> Option<&mut Vec<String>> {
        let of_names = self.names_mut().into_iter();
        of_names
            .filter_map(|(name, filter)| Some((parameter.strip_prefix(name)?, filter)))
            .flat_map(|(suffix, filter)| {
                // The OpenAPI document has words: some generators leave out signs, and the names would be the same.
                let operator = match suffix {
                    "_prefix" => "^",
                    "_not" => "!",
                    operator => operator,
                };
                let lists = filter.lists_mut().into_iter();
                lists.filter(move |(of_list, _)| *of_list == operator)
            })
            .map(|(_, list)| list)
            .next()
    }

    /// Adds a value to the list of a parameter. Returns false if there is no such list.
    pub fn push(&mut self, parameter: &str, value: String) -> bool {
        match self.list_of(parameter) {
            Some(list) => {
                list.push(value);
                true
            }
            None => false,
        }
    }
}
