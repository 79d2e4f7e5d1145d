//! Filters the rows of a scan.

use flow::codec;
use flow::query::{Filter, NameFilter};

/// The conditions of a [`Filter`] that the scan has not applied by seeking.
#[derive(Debug)]
pub(super) struct Matcher {
    src_app: NameMatcher,
    dest_app: NameMatcher,
    vpc_id: NameMatcher,
    peer: NameMatcher,
    /// Whether some of these do not match all names.
    has_names: bool,
    search: Option<memchr::memmem::Finder<'static>>,
    lower_case: Vec<u8>,
}

/// A [`NameFilter`] for names as they are encoded in keys.
#[derive(Debug)]
struct NameMatcher {
    /// Ascending.
    names: Vec<Vec<u8>>,
    prefixes: Vec<Vec<u8>>,
    /// Ascending.
    excluded: Vec<Vec<u8>>,
}

impl NameMatcher {
    fn new(filter: &NameFilter) -> NameMatcher {
        let encoded = |names: &[String]| {
            let mut encoded: Vec<Vec<u8>> = names.iter().map(|name| encode(name)).collect();
            encoded.sort_unstable();
            encoded
        };
        let mut prefixes = encoded(&filter.prefixes);
        // Without the terminator.
        for prefix in &mut prefixes {
            prefix.pop();
        }
        NameMatcher {
            names: encoded(&filter.names),
            prefixes,
            excluded: encoded(&filter.excluded),
        }
    }

    #[inline]
    fn selects(&self, name: &[u8]) -> bool {
        let is_any = self.names.is_empty() && self.prefixes.is_empty();
        is_any
            || contains(&self.names, name)
            || self.prefixes.iter().any(|prefix| name.starts_with(prefix))
    }

    #[inline]
    fn excludes(&self, name: &[u8]) -> bool {
        contains(&self.excluded, name)
    }

    #[inline]
    fn matches(&self, name: &[u8]) -> bool {
        self.selects(name) && !self.excludes(name)
    }
}

#[inline]
fn contains(names: &[Vec<u8>], name: &[u8]) -> bool {
    names.binary_search_by(|n| n.as_slice().cmp(name)).is_ok()
}

impl Matcher {
    pub(super) fn new(filter: &Filter) -> Matcher {
        let search = filter.search.as_ref().filter(|text| !text.is_empty());
        let search = search.map(|text| {
            // Encoded like a name, so that NULs are escaped alike, but without the terminator. No encoded text spans
            // two names.
            let mut text = encode(&text.to_ascii_lowercase());
            text.pop();
            memchr::memmem::Finder::new(&text).into_owned()
        });
        // The scan seeks the others.
        let src_app = NameFilter {
            excluded: filter.src_app.excluded.clone(),
            ..NameFilter::default()
        };
        let of_names = [&src_app, &filter.dest_app, &filter.vpc_id, &filter.peer];
        let has_names = of_names.iter().any(|of| !of.is_any());
        let [src_app, dest_app, vpc_id, peer] = of_names.map(NameMatcher::new);
        Matcher {
            src_app,
            dest_app,
            vpc_id,
            peer,
            has_names,
            search,
            lower_case: Vec::new(),
        }
    }

    /// Whether every row matches.
    pub(super) fn matches_all(&self) -> bool {
        !self.has_names && self.search.is_none()
    }

    /// Whether the row with this key suffix matches.
    #[inline]
    pub(super) fn matches(&mut self, suffix: &[u8]) -> Result<bool, codec::Corrupt> {
        if self.has_names {
            let [src_app, dest_app, vpc_id] = codec::split_names(suffix)?;
            let is_in = self.src_app.matches(src_app)
                && self.dest_app.matches(dest_app)
                && self.vpc_id.matches(vpc_id)
                && (self.peer.selects(src_app) || self.peer.selects(dest_app))
                && !self.peer.excludes(src_app)
                && !self.peer.excludes(dest_app);
            if !is_in {
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

/// `name` as encoded in keys, with its terminator.
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
            assert_eq!(matcher.matches(&suffix), Ok(found), "{text:?}");
        }
    }
}
