//! The selected row, and the part of the rows that is on the screen.

use std::ops::Range;

use super::query::Row;

/// Most rows that are requested for scrolling. More are a matter for `flowtally query`.
pub(super) const ROWS_MAX: usize = 1_000;

#[derive(Debug, Default)]
pub(super) struct Selection {
    /// `None` until the user selects a row.
    selected: Option<Selected>,
    /// Index of the first row on the screen.
    first: usize,
    /// Rows that fit on the screen.
    height: usize,
    /// Rows to request.
    wanted: usize,
}

#[derive(Debug)]
struct Selected {
    index: usize,
    names: Vec<String>,
}

impl Selection {
    /// Adapts to a screen for so many rows, and returns the number of rows to request: as many as fit, and once a row is
    /// selected, twice as many each time that less than a page is left below it.
    pub(super) fn fit(&mut self, height: usize) -> usize {
        if height != self.height {
            (self.height, self.wanted) = (height, height);
        }
        self.show_selected();
        let next = self.index().map_or(0, |index| index + height);
        self.wanted = self.wanted.max(1);
        while self.wanted <= next && self.wanted < ROWS_MAX {
            self.wanted = (self.wanted * 2).min(ROWS_MAX);
        }
        self.wanted
    }

    /// The index of the selected row.
    pub(super) fn index(&self) -> Option<usize> {
        self.selected.as_ref().map(|selected| selected.index)
    }

    /// The names of the selected row.
    pub(super) fn names(&self) -> Option<&[String]> {
        self.selected
            .as_ref()
            .map(|selected| selected.names.as_slice())
    }

    /// The rows on the screen, out of `count`, if so many lines are left for them.
    pub(super) fn visible(&self, count: usize, height: usize) -> Range<usize> {
        let first = self.first.min(count.saturating_sub(height));
        let last_page = self.index().map_or(0, |i| (i + 1).saturating_sub(height));
        let first = first.max(last_page).min(count);
        first..count.min(first + height)
    }

    /// Selects the row that is `by` rows further, or the first or the last one. If none is selected, it counts from the
    /// line above the first row.
    pub(super) fn move_by(&mut self, by: isize, rows: &[Row]) {
        let index = match self.index() {
            Some(index) => index.saturating_add_signed(by),
            None => usize::try_from(by.saturating_sub(1)).unwrap_or(0),
        };
        self.select(index, rows);
    }

    /// The number of rows that a page has.
    pub(super) fn page(&self) -> isize {
        isize::try_from(self.height).unwrap_or(isize::MAX).max(1)
    }

    /// Selects the row at `index`, or the last one.
    pub(super) fn select(&mut self, index: usize, rows: &[Row]) {
        let index = index.min(rows.len().saturating_sub(1));
        self.selected = rows.get(index).map(|row| Selected {
            index,
            names: row.names().map(str::to_owned).collect(),
        });
        self.show_selected();
    }

    /// Selects the row with these names when it comes, and nothing without names.
    pub(super) fn expect(&mut self, names: Option<Vec<String>>) {
        *self = Selection {
            selected: names.map(|names| Selected { index: 0, names }),
            height: self.height,
            wanted: self.height,
            first: 0,
        };
    }

    /// Takes new rows: the selected one is where its names are now, or else what has come to its place is selected.
    pub(super) fn follow(&mut self, rows: &[Row]) {
        let Some(selected) = &self.selected else {
            return;
        };
        let is_it = |row: &Row| row.names().eq(selected.names.iter().map(String::as_str));
        let index = rows.iter().position(is_it).unwrap_or(selected.index);
        self.select(index, rows);
    }

    /// Scrolls as little as necessary.
    fn show_selected(&mut self) {
        let Some(index) = self.index() else {
            self.first = 0;
            return;
        };
        let last_page = (index + 1).saturating_sub(self.height);
        self.first = self.first.clamp(last_page, index.max(last_page));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows(names: &[&str]) -> Vec<Row> {
        let row = |name: &&str| json!({"src_app": name, "bytes_tx": 1, "bytes_rx": 1, "hour": 1});
        serde_json::from_value(names.iter().map(row).collect()).unwrap()
    }

    fn shown(selection: &Selection, rows: &[Row]) -> (Vec<String>, Option<String>) {
        let name = |row: &Row| row.names().next().unwrap().to_owned();
        let visible = selection.visible(rows.len(), selection.height);
        let visible = rows[visible].iter().map(name);
        let names = selection.names().map(|names| names[0].clone());
        (visible.collect(), names)
    }

    #[test]
    fn it_scrolls_as_little_as_necessary() {
        let rows = rows(&["a", "b", "c", "d", "e"]);
        let mut selection = Selection::default();
        assert_eq!(selection.fit(2), 2);
        for (by, visible, name) in [
            (1, ["a", "b"], "a"),
            (1, ["a", "b"], "b"),
            (1, ["b", "c"], "c"),
            (-1, ["b", "c"], "b"),
            (-1, ["a", "b"], "a"),
            (-1, ["a", "b"], "a"),
            (2, ["b", "c"], "c"),
            (99, ["d", "e"], "e"),
        ] {
            selection.move_by(by, &rows);
            selection.fit(2);
            let expected = (visible.map(str::to_owned).to_vec(), Some(name.to_owned()));
            assert_eq!(shown(&selection, &rows), expected);
        }
        // More room, then less than there is selected.
        selection.fit(9);
        assert_eq!(selection.visible(5, 9), 0..5);
        selection.fit(1);
        assert_eq!(shown(&selection, &rows).0, ["e"]);
        // A message takes some of the lines.
        selection.fit(3);
        assert_eq!(selection.visible(5, 2), 3..5);
        selection.fit(0);
        assert!(selection.visible(5, 0).is_empty());
        selection.move_by(1, &[]);
        assert!(selection.index().is_none() && selection.visible(0, 3).is_empty());
    }

    #[test]
    fn more_rows_are_wanted_at_the_end_of_those_that_are_there() {
        let names: Vec<String> = (0..2_000).map(|n| n.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let rows = rows(&names);
        let mut selection = Selection::default();
        let mut wanted = selection.fit(10);
        for (index, expected) in [(0, 20), (9, 20), (10, 40), (29, 40), (30, 80), (3, 80)] {
            selection.select(index, &rows[..wanted]);
            wanted = selection.fit(10);
            assert_eq!(wanted, expected, "{index}");
        }
        selection.select(1_999, &rows);
        assert_eq!(selection.fit(10), ROWS_MAX);
        selection.expect(None);
        assert_eq!(selection.fit(10), 10);
        assert_eq!(selection.fit(12), 12);
    }

    #[test]
    fn the_selected_row_is_followed() {
        let before = rows(&["a", "b", "c"]);
        let mut selection = Selection::default();
        selection.fit(3);
        selection.follow(&before);
        assert_eq!(selection.index(), None, "nothing is selected yet");
        selection.select(1, &before);
        selection.follow(&rows(&["b", "c", "a"]));
        assert_eq!(selection.index(), Some(0));
        selection.follow(&rows(&["c", "a"]));
        assert_eq!(selection.names(), Some(&["c".to_owned()][..]));
        selection.follow(&[]);
        assert_eq!(selection.index(), None);
        selection.expect(Some(vec!["b".into()]));
        selection.follow(&before);
        assert_eq!(selection.index(), Some(1));
    }
}
