//! What can be asked.

use std::ops::Range;

use crate::domain::{Counters, Field, Partition};
use crate::store::codec;

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
    /// Where the previous page ended: its [`Rows::next_page`](super::Rows::next_page).
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
    pub(super) fn has_at(self, at: usize) -> bool {
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
    pub(super) fn rank(self, counters: Counters) -> u128 {
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

/// What is left of a [`Filter`] for rows that a scan has found by their first names.
#[derive(Debug)]
pub(super) struct Matcher {
    /// Names as keys have them, ascending; `None` takes all.
    dest_apps: Option<Vec<Vec<u8>>>,
    vpc_ids: Option<Vec<Vec<u8>>>,
    search: Option<memchr::memmem::Finder<'static>>,
    lower_case: Vec<u8>,
}

impl Matcher {
    pub(super) fn new(filter: &Filter) -> Matcher {
        let encoded = |names: &[String]| {
            let mut encoded: Vec<Vec<u8>> = names.iter().map(|name| encode(name)).collect();
            encoded.sort_unstable();
            (!encoded.is_empty()).then_some(encoded)
        };
        // With a src_app, the scan seeks the dest_app too.
        let sought = !filter.src_apps.is_empty();
        let dest_apps = encoded(&filter.dest_apps).filter(|_| !sought);
        let search = filter.search.as_ref().filter(|text| !text.is_empty());
        let search = search.map(|text| {
            // Without a name's end; where keys write a NUL, so does this, and no text reaches from
            // one name into the next.
            let mut text = encode(&text.to_ascii_lowercase());
            text.pop();
            memchr::memmem::Finder::new(&text).into_owned()
        });
        Matcher {
            dest_apps,
            vpc_ids: encoded(&filter.vpc_ids),
            search,
            lower_case: Vec::new(),
        }
    }

    /// Whether every row passes.
    pub(super) fn takes_all(&self) -> bool {
        self.dest_apps.is_none() && self.vpc_ids.is_none() && self.search.is_none()
    }

    /// Whether the row with this rest of a key passes.
    #[inline]
    pub(super) fn takes(&mut self, suffix: &[u8]) -> Result<bool, codec::Corrupt> {
        if self.dest_apps.is_some() || self.vpc_ids.is_some() {
            let [_, dest_app, vpc_id] = codec::split_names(suffix)?;
            let one_of = |names: &Option<Vec<Vec<u8>>>, name: &[u8]| match names {
                None => true,
                Some(names) => names.binary_search_by(|n| n.as_slice().cmp(name)).is_ok(),
            };
            if !one_of(&self.dest_apps, dest_app) || !one_of(&self.vpc_ids, vpc_id) {
                return Ok(false);
            }
        }
        let Some(search) = &self.search else {
            return Ok(true);
        };
        self.lower_case.clear();
        self.lower_case.extend_from_slice(suffix);
        self.lower_case.make_ascii_lowercase();
        Ok(search.find(&self.lower_case).is_some())
    }
}

/// `name` as a key has it, with its end.
fn encode(name: &str) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(name.len() + 1);
    codec::push_name(&mut encoded, name.as_bytes());
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_stays_within_a_name() {
        let suffix = ["Web-\0x", "db", "vpc-É"].map(encode).concat();
        for (text, found) in [
            ("web", true),
            ("-\0X", true),
            ("\0", true),
            ("db", true),
            ("xd", false),
            ("x\0", false),
            ("b\0v", false),
            ("vpc-É", true),
            ("vpc-é", false),
            ("", true),
        ] {
            let search = Some(text.to_owned());
            let mut matcher = Matcher::new(&Filter {
                search,
                ..Filter::default()
            });
            assert_eq!(matcher.takes(&suffix), Ok(found), "{text:?}");
        }
    }
}
