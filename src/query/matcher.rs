//! Filters the rows of a scan.

use flow::codec;
use flow::query::Filter;

/// The conditions of a [`Filter`] that the scan has not applied by seeking.
#[derive(Debug)]
pub(super) struct Matcher {
    /// Names as encoded in keys, ascending; `None` accepts all.
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
        // If the filter has a src_app, the scan seeks the dest_app too.
        let sought = !filter.src_apps.is_empty();
        let dest_apps = encoded(&filter.dest_apps).filter(|_| !sought);
        let search = filter.search.as_ref().filter(|text| !text.is_empty());
        let search = search.map(|text| {
            // Encoded like a name, so that NULs are escaped alike, but without the terminator. No encoded text spans
            // two names.
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

    /// Whether every row matches.
    pub(super) fn matches_all(&self) -> bool {
        self.dest_apps.is_none() && self.vpc_ids.is_none() && self.search.is_none()
    }

    /// Whether the row with this key suffix matches.
    #[inline]
    pub(super) fn matches(&mut self, suffix: &[u8]) -> Result<bool, codec::Corrupt> {
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
