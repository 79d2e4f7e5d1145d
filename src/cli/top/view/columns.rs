//! The columns of the table of rows: chooses those that fit, and formats their cells.

use super::super::super::text::{bar, bytes, fit_right, rate};
use super::super::query::Row;
use crate::config::SortBy;

/// A name gets at least this many columns before another column is shown beside it.
const NAME_COLUMNS: usize = 10;
/// Minimum width of a name beside the column by which the rows are sorted.
const NAME_COLUMNS_MIN: usize = 3;
/// Maximum width of a name.
pub(super) const NAME_COLUMNS_MAX: usize = 40;
/// Minimum width of a bar. It also gets the width that the names do not need.
const BAR_COLUMNS: usize = 8;

/// The columns that can be shown beside the names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    Sum(SortBy),
    Share,
    Bar,
}

impl Column {
    /// In screen order.
    const ALL: [Column; 6] = [
        Column::Sum(SortBy::Bytes),
        Column::Sum(SortBy::Tx),
        Column::Sum(SortBy::Rx),
        Column::Sum(SortBy::Rate),
        Column::Share,
        Column::Bar,
    ];
    /// Columns by importance: the last one is hidden first. The column that the rows are sorted by comes before all of
    /// them.
    const BY_IMPORTANCE: [Column; 6] = [
        Column::Sum(SortBy::Bytes),
        Column::Sum(SortBy::Rate),
        Column::Share,
        Column::Sum(SortBy::Tx),
        Column::Sum(SortBy::Rx),
        Column::Bar,
    ];

    fn columns(self) -> usize {
        match self {
            Column::Sum(SortBy::Rate) => 9,
            Column::Sum(_) => 7,
            Column::Share => 6,
            Column::Bar => BAR_COLUMNS,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Column::Sum(sum) => sort_name(sum),
            Column::Share => "share",
            Column::Bar => "",
        }
    }

    /// The columns that fit beside this many names, each with its width, and the width of a name.
    pub(super) fn choose(
        sort: SortBy,
        names: usize,
        columns: usize,
    ) -> (Vec<(Column, usize)>, usize) {
        let mut chosen = Vec::new();
        let mut taken = 0;
        for column in [Column::Sum(sort)].into_iter().chain(Column::BY_IMPORTANCE) {
            let name = match chosen.is_empty() {
                true => NAME_COLUMNS_MIN,
                false => NAME_COLUMNS,
            };
            let with_it = taken + column.columns() + 1;
            if !chosen.contains(&column) && with_it + names * (name + 1) <= columns {
                taken = with_it;
                chosen.push(column);
            }
        }
        let room = columns.saturating_sub(taken) + 1;
        let name_columns = (room / names.max(1)).saturating_sub(1);
        let name_columns = name_columns.min(NAME_COLUMNS_MAX);
        let left = room.saturating_sub(names * (name_columns + 1));
        let shown = Column::ALL
            .into_iter()
            .filter(|column| chosen.contains(column))
            .map(|column| match (column, name_columns) {
                (Column::Bar, NAME_COLUMNS_MAX) => (column, column.columns() + left),
                _ => (column, column.columns()),
            });
        (shown.collect(), name_columns)
    }

    pub(super) fn cell(self, row: &Row, all: f64, most: f64, columns: usize) -> String {
        let text = match self {
            Column::Sum(SortBy::Bytes) => bytes(row.bytes()),
            Column::Sum(SortBy::Tx) => bytes(row.bytes_tx),
            Column::Sum(SortBy::Rx) => bytes(row.bytes_rx),
            Column::Sum(SortBy::Rate) => rate(row.bytes_per_s),
            Column::Share => format!("{:.1} %", row.bytes() as f64 / all * 100.0),
            Column::Bar => return bar(row.bytes() as f64 / most, columns),
        };
        fit_right(&text, columns)
    }
}

pub(super) fn sort_name(sort: SortBy) -> &'static str {
    match sort {
        SortBy::Bytes => "bytes",
        SortBy::Tx => "tx",
        SortBy::Rx => "rx",
        SortBy::Rate => "rate",
    }
}
