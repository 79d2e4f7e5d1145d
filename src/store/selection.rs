//! The rows that a scan returns: a range of hours and, optionally, the names to seek in each hour.

use super::codec;
use super::tiers::{KeyLayout, Tier};
use flow::{Hour, HourRange};

/// The rows of a range of hours, or only those with certain names. A scan seeks from one name to the next and reads
/// nothing in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    hours: HourRange,
    /// Ascending and disjoint. Empty: all rows match.
    names: Vec<Names>,
    /// Rows before this key are excluded.
    first: Vec<u8>,
    /// The largest spans whose rows may stand for those of their hours.
    largest_span: Option<Tier>,
}

/// The first names of the part of a key after its hour, as encoded there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Names {
    start: Vec<u8>,
    /// Longer names that begin with the last one match, too.
    is_prefix: bool,
}

impl Names {
    #[inline]
    fn matches(&self, suffix: &[u8]) -> bool {
        match self.is_prefix {
            true => suffix.starts_with(&self.start),
            false => codec::starts_with_names(suffix, &self.start),
        }
    }
}

/// The position of a key relative to the names of a selection.
pub(super) enum KeyPosition {
    /// It starts with the names at this index.
    Within(usize),
    /// It sorts before the names at this index.
    Before(usize),
    /// It sorts after all names of the hour.
    After,
}

impl Selection {
    /// All rows of `hours`.
    pub fn hours(hours: HourRange) -> Selection {
        Selection {
            hours,
            names: Vec::new(),
            first: Vec::new(),
            largest_span: None,
        }
    }

    /// All rows of `hour`.
    pub fn hour(hour: Hour) -> Selection {
        Selection::hours(hour.into())
    }

    /// Restricts the selection to rows with one of `src_apps` and, unless `dest_apps` is empty, one of `dest_apps`, and to
    /// those with a src_app that begins with one of `prefixes`. If there are neither src_apps nor prefixes, there is no
    /// restriction.
    pub fn between(
        mut self,
        src_apps: &[String],
        prefixes: &[String],
        dest_apps: &[String],
    ) -> Selection {
        let mut names = Vec::new();
        let mut add = |start, is_prefix| names.push(Names { start, is_prefix });
        for src in src_apps {
            let mut name = Vec::new();
            codec::push_name(&mut name, src.as_bytes());
            if dest_apps.is_empty() {
                add(name, false);
                continue;
            }
            for dest in dest_apps {
                let mut names = name.clone();
                codec::push_name(&mut names, dest.as_bytes());
                add(names, false);
            }
        }
        for prefix in prefixes {
            let mut start = Vec::new();
            codec::push_name(&mut start, prefix.as_bytes());
            start.pop();
            add(start, true);
        }
        names.sort_unstable_by(|a, b| (&a.start, b.is_prefix).cmp(&(&b.start, a.is_prefix)));
        names.dedup_by(|names, before| {
            before.is_prefix && names.start.starts_with(&before.start) || names == before
        });
        self.names = names;
        self
    }

    /// Allows rows of summed spans of up to `tier` in place of those of their hours: a span is identified by its first hour.
    /// Rows of the same names may then come in several hours, and each key several times.
    pub fn with_spans(mut self, tier: Tier) -> Selection {
        self.largest_span = Some(tier);
        self
    }

    pub(super) fn without_spans(mut self) -> Selection {
        self.largest_span = None;
        self
    }

    pub(super) fn largest_span(&self) -> Option<Tier> {
        self.largest_span
    }

    /// Excludes rows whose key is less than `first`: the start of a key, or all of it.
    pub fn starting_at(mut self, first: Vec<u8>) -> Selection {
        self.first = first;
        self
    }

    /// The hour of the first row, or one before it.
    pub(super) fn first_hour(&self) -> Hour {
        codec::split_hour(&self.first).map_or(Hour::FIRST, |(hour, _)| hour)
    }

    pub(super) fn hour_range(&self) -> HourRange {
        self.hours
    }

    pub(super) fn is_one_hour(&self) -> bool {
        self.hours.len() <= 1
    }

    pub(super) fn has_names(&self) -> bool {
        !self.names.is_empty()
    }

    /// The range of keys to read (end exclusive), without hours before `cutoff`.
    pub(super) fn key_bounds(&self, cutoff: Hour) -> (Vec<u8>, Vec<u8>) {
        let (lower, upper) = codec::range_bounds(self.hours.since(cutoff));
        let (lower, upper) = (lower.to_vec().max(self.first.clone()), upper.to_vec());
        (lower.min(upper.clone()), upper)
    }

    /// Whether all rows of `hour` match.
    pub(super) fn matches_all_of(&self, hour: Hour) -> bool {
        self.names.is_empty() && self.first.as_slice() <= codec::encode_hour(hour).as_slice()
    }

    /// Whether the row of `hour` with this key suffix matches.
    pub(super) fn matches(&self, hour: Hour, suffix: &[u8]) -> bool {
        if let Ok(first) = codec::split_hour(&self.first)
            && (hour, suffix) < first
        {
            return false;
        }
        // The ranges do not overlap, so only the last one that starts at or before `suffix` can contain it.
        let behind = self
            .names
            .partition_point(|names| names.start.as_slice() <= suffix);
        let in_range = |at: usize| self.names[at].matches(suffix);
        self.names.is_empty() || behind.checked_sub(1).is_some_and(in_range)
    }

    /// Locates `suffix` relative to the names from index `at` on.
    pub(super) fn locate(&self, mut at: usize, suffix: &[u8]) -> KeyPosition {
        while let Some(names) = self.names.get(at) {
            if suffix < names.start.as_slice() {
                return KeyPosition::Before(at);
            }
            if names.matches(suffix) {
                return KeyPosition::Within(at);
            }
            at += 1;
        }
        KeyPosition::After
    }

    /// The first key of `hour` with the names at `at`.
    pub(super) fn seek_key(&self, layout: KeyLayout, hour: Hour, at: usize) -> Vec<u8> {
        let mut key = layout.prefix(hour);
        key.extend_from_slice(self.names.get(at).map_or(&[], |names| &names.start));
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hour(hour: u64) -> Hour {
        Hour::new(hour).unwrap()
    }

    fn hours() -> Selection {
        Selection::hours((3..9).into())
    }

    /// An encoded prefix ends with NUL, so it is also the start of a longer name with a NUL.
    #[test]
    fn a_name_with_a_nul_is_another_name() {
        let apps = ["a", "a\0", "a\0b", "b"].map(str::to_owned);
        let suffix = |src: &str| {
            let mut suffix = Vec::new();
            for name in [src, "d", "v"] {
                codec::push_name(&mut suffix, name.as_bytes());
            }
            suffix
        };
        for wanted in &apps {
            let selection = hours().between(std::slice::from_ref(wanted), &[], &[]);
            for app in &apps {
                let suffix = suffix(app);
                assert_eq!(selection.matches(hour(4), &suffix), app == wanted);
                let inside = matches!(selection.locate(0, &suffix), KeyPosition::Within(0));
                assert_eq!(inside, app == wanted, "{app:?} by {wanted:?}");
            }
        }
        let both = hours().between(&apps[..3], &[], &["d".into(), "e".into()]);
        assert_eq!(both.names.len(), 6);
        let taken: Vec<bool> = apps
            .iter()
            .map(|a| both.matches(hour(4), &suffix(a)))
            .collect();
        assert_eq!(taken, [true, true, true, false]);
    }

    #[test]
    fn prefixes_and_names_do_not_overlap() {
        let owned = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        let selection = hours().between(
            &owned(&["a", "web", "web-1", "z"]),
            &owned(&["web", "we", "b\0"]),
            &owned(&["d"]),
        );
        assert_eq!(selection.names.len(), 4);
        for (src, dest, is_in) in [
            ("a", "d", true),
            ("a", "e", false),
            ("aa", "d", false),
            ("b", "d", false),
            ("b\0", "e", true),
            ("b\0c", "e", true),
            ("w", "d", false),
            ("we", "e", true),
            ("web-77", "e", true),
            ("wf", "d", false),
            ("z", "d", true),
        ] {
            let mut suffix = Vec::new();
            for name in [src, dest, "v"] {
                codec::push_name(&mut suffix, name.as_bytes());
            }
            assert_eq!(selection.matches(hour(4), &suffix), is_in, "{src:?} {dest}");
            let within =
                (0..4).any(|at| matches!(selection.locate(at, &suffix), KeyPosition::Within(_)));
            assert_eq!(within, is_in, "{src:?} {dest}");
        }
    }

    #[test]
    fn rows_before_the_first_are_left_out() {
        let start_of = |of| codec::encode_hour(hour(of)).to_vec();
        let first = [start_of(5).as_slice(), b"b"].concat();
        let selection = hours().starting_at(first.clone());
        assert_eq!(selection.key_bounds(Hour::FIRST), (first, start_of(9)));
        assert_eq!(selection.key_bounds(hour(6)).0, start_of(6));
        let taken = [(4, b"z"), (5, b"a"), (5, b"b"), (6, b"a")];
        let taken = taken.map(|(of, suffix)| selection.matches(hour(of), suffix));
        assert_eq!(taken, [false, false, true, true]);
        assert!(!selection.matches_all_of(hour(5)) && selection.matches_all_of(hour(6)));
    }
}
