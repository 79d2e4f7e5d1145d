//! The rows that a scan returns: a range of hours and, optionally, the names to seek in each hour.

use super::codec;
use flow::{Hour, HourRange};

/// The rows of a range of hours, or only those with certain names. A scan seeks from one name to the next and reads
/// nothing in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    hours: HourRange,
    /// Encoded name prefixes, ascending: a row matches if the part of its key after the hour starts with one of them
    /// and the name ends there. Empty: all rows match.
    names: Vec<Vec<u8>>,
    /// Rows before this key are excluded.
    first: Vec<u8>,
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
        }
    }

    /// All rows of `hour`.
    pub fn hour(hour: Hour) -> Selection {
        Selection::hours(hour.into())
    }

    /// Restricts the selection to rows with one of `src_apps` and, unless `dest_apps` is empty, one of `dest_apps`.
    /// If `src_apps` is empty, there is no restriction.
    pub fn between(mut self, src_apps: &[String], dest_apps: &[String]) -> Selection {
        self.names.clear();
        for src in src_apps {
            let mut name = Vec::new();
            codec::push_name(&mut name, src.as_bytes());
            if dest_apps.is_empty() {
                self.names.push(name);
                continue;
            }
            for dest in dest_apps {
                let mut names = name.clone();
                codec::push_name(&mut names, dest.as_bytes());
                self.names.push(names);
            }
        }
        self.names.sort_unstable();
        self.names.dedup();
        self
    }

    /// Excludes rows whose key is less than `first`: the start of a key, or all of it.
    pub fn starting_at(mut self, first: Vec<u8>) -> Selection {
        self.first = first;
        self
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
            .partition_point(|names| names.as_slice() <= suffix);
        let in_range = |at: usize| codec::starts_with_names(suffix, &self.names[at]);
        self.names.is_empty() || behind.checked_sub(1).is_some_and(in_range)
    }

    /// Locates `suffix` relative to the names from index `at` on.
    pub(super) fn locate(&self, mut at: usize, suffix: &[u8]) -> KeyPosition {
        while let Some(names) = self.names.get(at) {
            if suffix < names.as_slice() {
                return KeyPosition::Before(at);
            }
            if codec::starts_with_names(suffix, names) {
                return KeyPosition::Within(at);
            }
            at += 1;
        }
        KeyPosition::After
    }

    /// The first key of `hour` with the names at `at`.
    pub(super) fn seek_key(&self, hour: Hour, at: usize) -> Vec<u8> {
        let mut key = codec::encode_hour(hour).to_vec();
        key.extend_from_slice(self.names.get(at).map_or(&[], |names| names));
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
            let selection = hours().between(std::slice::from_ref(wanted), &[]);
            for app in &apps {
                let suffix = suffix(app);
                assert_eq!(selection.matches(hour(4), &suffix), app == wanted);
                let inside = matches!(selection.locate(0, &suffix), KeyPosition::Within(0));
                assert_eq!(inside, app == wanted, "{app:?} by {wanted:?}");
            }
        }
        let both = hours().between(&apps[..3], &["d".into(), "e".into()]);
        assert_eq!(both.names.len(), 6);
        let taken: Vec<bool> = apps
            .iter()
            .map(|a| both.matches(hour(4), &suffix(a)))
            .collect();
        assert_eq!(taken, [true, true, true, false]);
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
