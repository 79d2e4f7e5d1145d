//! The names of the files of batches: number, key and number of flows.

use crate::delivery::queue::BatchMeta;

pub(super) fn stem(number: u64, meta: &BatchMeta) -> String {
    format!("{number:016}-{}-{}", meta.key, meta.flows)
}

pub(super) fn name(number: u64, meta: &BatchMeta) -> String {
    let end = if meta.compressed { "json.zst" } else { "json" };
    format!("{}.{end}", stem(number, meta))
}

/// Parses a name that was made by [`name`].
pub(super) fn parse_name(name: &str) -> Option<(u64, BatchMeta)> {
    let (stem, compressed) = match name.strip_suffix(".json.zst") {
        Some(stem) => (stem, true),
        None => (name.strip_suffix(".json")?, false),
    };
    let mut parts = stem.split('-');
    let (number, key, flows) = (parts.next()?, parts.next()?, parts.next()?);
    let meta = BatchMeta {
        key: key.to_owned(),
        notes: String::new(),
        if_late: None,
        is_keyed: false,
        flows: flows.parse().ok()?,
        compressed,
    };
    (parts.next().is_none() && !key.is_empty()).then_some((number.parse().ok()?, meta))
}
