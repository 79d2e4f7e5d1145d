//! Page cursors: the end of a page, as text that the client sends back.
//!
//! ```text
//! base64url of: version 01 | XXH3 of the query u64 LE | rank u128 LE | key of the last row
//! ```

use std::hash::{Hash, Hasher};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::QueryError;
use super::rank::SortKey;
use super::row;
use flow::codec;
use flow::query::Query;

const VERSION: u8 = 1;

/// Fingerprint of everything that determines the rows and their order. A cursor is valid only for queries with the same
/// one.
fn fingerprint(query: &Query) -> u64 {
    let mut hasher = xxhash_rust::xxh3::Xxh3Default::new();
    (&query.hours, &query.filter, query.columns, query.sort).hash(&mut hasher);
    if query.step > 1 {
        query.step.hash(&mut hasher);
    }
    if query.compare.is_some() {
        query.compare.hash(&mut hasher);
    }
    hasher.finish()
}

pub(super) fn encode(query: &Query, last: &SortKey) -> String {
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&fingerprint(query).to_le_bytes());
    bytes.extend_from_slice(&last.rank.to_le_bytes());
    bytes.extend_from_slice(&last.key);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The sort key of the last row of the previous page, if `query` has a cursor.
///
/// # Errors
/// If the cursor was not returned for this query.
pub(super) fn sort_key(query: &Query) -> Result<Option<SortKey>, QueryError> {
    let decoded = |cursor: &String| decode(query, cursor).ok_or(QueryError::BadCursor);
    query.cursor.as_ref().map(decoded).transpose()
}

/// `None` if [`encode`] cannot have returned it for `query`.
fn decode(query: &Query, cursor: &str) -> Option<SortKey> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
    let (&version, rest) = bytes.split_first()?;
    let (of, rest) = rest.split_first_chunk()?;
    let (rank, key) = rest.split_first_chunk()?;
    let fits = version == VERSION && u64::from_le_bytes(*of) == fingerprint(query);
    let sort_key = SortKey {
        rank: u128::from_le_bytes(*rank),
        key: key.into(),
    };
    let ranked = query.sort.is_some() || sort_key.rank == 0;
    (fits && ranked && row::decode(query.columns, key).is_ok()).then_some(sort_key)
}

/// The key at which a scan can start to find the groups after `key`: its `leading` columns, encoded as in a row's
/// key.
pub(super) fn first_key(query: &Query, leading: usize, key: &[u8]) -> Vec<u8> {
    let Some(names) = leading.checked_sub(1) else {
        return Vec::new();
    };
    let (hour, mut rest) = match codec::split_hour(key) {
        Ok((hour, rest)) if query.columns.has_at(0) => (Some(hour), rest),
        // All rows are of one hour.
        _ => (query.hours.only(), key),
    };
    let mut first = Vec::new();
    if let Some(hour) = hour {
        codec::push_hour(&mut first, hour);
    }
    for _ in 0..names {
        let Ok((name, behind)) = codec::split_name(rest) else {
            break;
        };
        first.extend_from_slice(name);
        rest = behind;
    }
    first
}
