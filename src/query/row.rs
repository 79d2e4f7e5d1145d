//! A row of a response.

use std::borrow::Cow;

use flow::codec::{self, Corrupt, FlowKey};
use flow::query::Columns;
use flow::{Counters, Hour};

/// A row of a response: its key columns, if they were selected, and its sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    pub src_app: Option<&'a str>,
    pub dest_app: Option<&'a str>,
    pub vpc_id: Option<&'a str>,
    pub counters: Counters,
    /// The sums of the hours that are compared.
    pub before: Option<Counters>,
    pub hour: Option<Hour>,
    /// It has the sums of all rows that are not in the response, and no key.
    pub is_other: bool,
}

impl<'a> Row<'a> {
    #[inline]
    pub(super) fn whole(key: &'a FlowKey<'_>, counters: Counters) -> Row<'a> {
        Row {
            src_app: Some(&key.src_app),
            dest_app: Some(&key.dest_app),
            vpc_id: Some(&key.vpc_id),
            counters,
            before: None,
            hour: Some(key.hour),
            is_other: false,
        }
    }

    /// The sums of all rows that are not in the response.
    pub(super) fn other(counters: Counters) -> Row<'static> {
        Row {
            src_app: None,
            dest_app: None,
            vpc_id: None,
            counters,
            before: None,
            hour: None,
            is_other: true,
        }
    }

    /// Appends its key: a stored row's key without the omitted columns.
    pub fn push_key(&self, key: &mut Vec<u8>) {
        if let Some(hour) = self.hour {
            codec::push_hour(key, hour);
        }
        for name in [self.src_app, self.dest_app, self.vpc_id]
            .into_iter()
            .flatten()
        {
            codec::push_name(key, name.as_bytes());
        }
    }
}

/// The decoded key of a group.
pub(super) struct GroupKey<'a> {
    hour: Option<Hour>,
    names: [Option<Cow<'a, str>>; 3],
}

impl GroupKey<'_> {
    pub(super) fn row(&self, counters: Counters) -> Row<'_> {
        let [src_app, dest_app, vpc_id] = self.names.each_ref().map(Option::as_deref);
        Row {
            src_app,
            dest_app,
            vpc_id,
            counters,
            before: None,
            hour: self.hour,
            is_other: false,
        }
    }
}

/// Decodes the key of a group by `columns`: a row's key without the omitted columns.
pub(super) fn decode(columns: Columns, key: &[u8]) -> Result<GroupKey<'_>, Corrupt> {
    let mut rest = key;
    let mut hour = None;
    if columns.has_at(0) {
        let (of_key, behind) = codec::split_hour(rest)?;
        (hour, rest) = (Some(of_key), behind);
    }
    let mut names = [None, None, None];
    for (at, name) in names.iter_mut().enumerate() {
        if columns.has_at(at + 1) {
            let (encoded, behind) = codec::split_name(rest)?;
            *name = Some(codec::decode_name(encoded)?);
            rest = behind;
        }
    }
    if !rest.is_empty() {
        return Err(Corrupt("a key has bytes after its names"));
    }
    Ok(GroupKey { hour, names })
}
