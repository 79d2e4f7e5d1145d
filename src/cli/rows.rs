//! Rows as they come from a service or a store, in the format that the user asked for.

use std::io::{self, Write};

use serde::Deserialize;

use super::table::{NAME_COLUMNS_MAX, TableWriter};
use super::text::{cut, visible};
use crate::config::ExportFormat;
use agent::units::hour_name;
use flow::Field;

/// Takes rows in parts that are cut anywhere: CSV for CSV, and NDJSON for all other formats.
#[derive(Debug)]
pub(super) enum RowSink<W: Write> {
    /// As they come.
    Same(W),
    Array {
        out: W,
        lines: Lines,
        has_rows: bool,
    },
    Table {
        table: TableWriter<W>,
        lines: Lines,
    },
}

/// A row of NDJSON.
#[derive(Debug, Deserialize)]
struct Row {
    src_app: String,
    dest_app: String,
    vpc_id: String,
    bytes_tx: u64,
    bytes_rx: u64,
    hour: u64,
}

/// Columns of a row that are names; the others are numbers.
const NAMES: usize = 3;

impl<W: Write> RowSink<W> {
    pub(super) fn new(format: ExportFormat, out: W) -> RowSink<W> {
        let lines = Lines::default();
        match format {
            ExportFormat::Json => RowSink::Array {
                out,
                lines,
                has_rows: false,
            },
            ExportFormat::Table => {
                let header = Field::ALL.map(|field| field.name().to_owned()).to_vec();
                let table = TableWriter::new(out, header, NAMES);
                RowSink::Table { table, lines }
            }
            _ => RowSink::Same(out),
        }
    }

    pub(super) fn write(&mut self, part: &[u8]) -> io::Result<()> {
        match self {
            RowSink::Same(out) => out.write_all(part),
            RowSink::Array {
                out,
                lines,
                has_rows,
            } => lines.split(part, |row| {
                let before: &[u8] = if *has_rows { b",\n" } else { b"[" };
                *has_rows = true;
                out.write_all(before)?;
                out.write_all(row)
            }),
            RowSink::Table { table, lines } => lines.split(part, |row| table.write(cells(row)?)),
        }
    }

    /// All rows are written.
    pub(super) fn finish(self) -> io::Result<()> {
        match self {
            RowSink::Same(mut out) => out.flush(),
            RowSink::Array {
                mut out, has_rows, ..
            } => {
                let end: &[u8] = if has_rows { b"]\n" } else { b"[]\n" };
                out.write_all(end)?;
                out.flush()
            }
            RowSink::Table { table, .. } => table.finish(),
        }
    }
}

/// The columns of a row, in the order of [`Field::ALL`].
fn cells(row: &[u8]) -> io::Result<Vec<String>> {
    let row: Row = serde_json::from_slice(row).map_err(io::Error::other)?;
    let names = [&row.src_app, &row.dest_app, &row.vpc_id];
    let mut cells = names
        .map(|name| cut(&visible(name), NAME_COLUMNS_MAX))
        .to_vec();
    cells.extend([row.bytes_tx, row.bytes_rx].map(|sum| sum.to_string()));
    cells.push(hour_name(row.hour));
    Ok(cells)
}

/// Cuts parts into lines. It keeps at most one line, which is a row.
#[derive(Debug, Default)]
pub(super) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn split(
        &mut self,
        mut part: &[u8],
        mut each: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        while let Some(end) = memchr::memchr(b'\n', part) {
            self.rest.extend_from_slice(&part[..end]);
            part = &part[end + 1..];
            each(&self.rest)?;
            self.rest.clear();
        }
        self.rest.extend_from_slice(part);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: &str = concat!(
        r#"{"src_app":"web","dest_app":"a\nb","vpc_id":"","bytes_tx":1,"bytes_rx":18446744073709551615,"hour":3}"#,
        "\n",
        r#"{"src_app":"é","dest_app":"db","vpc_id":"v","bytes_tx":22,"bytes_rx":0,"hour":498879}"#,
        "\n"
    );

    /// What is written if the rows come in two parts.
    fn written(format: ExportFormat, rows: &[u8], cut: usize) -> String {
        let mut out = Vec::new();
        let mut sink = RowSink::new(format, &mut out);
        sink.write(&rows[..cut]).unwrap();
        sink.write(&rows[cut..]).unwrap();
        sink.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn rows_are_written_however_they_are_cut() {
        let (first, second) = ROWS.trim_end().split_once('\n').unwrap();
        let array = format!("[{first},\n{second}]\n");
        let table = "\
src_app  dest_app  vpc_id  bytes_tx              bytes_rx                           hour
web      a\\nb      \"\"             1  18446744073709551615                              3
é        db        v             22                     0  498879 = 2026-11-29 15:00 UTC
";
        for cut in 0..=ROWS.len() {
            assert_eq!(written(ExportFormat::Ndjson, ROWS.as_bytes(), cut), ROWS);
            assert_eq!(written(ExportFormat::Json, ROWS.as_bytes(), cut), array);
            assert_eq!(written(ExportFormat::Table, ROWS.as_bytes(), cut), table);
        }
    }

    #[test]
    fn no_rows_are_an_empty_array_and_a_header() {
        assert_eq!(written(ExportFormat::Json, b"", 0), "[]\n");
        let header = "src_app  dest_app  vpc_id  bytes_tx  bytes_rx  hour\n";
        assert_eq!(written(ExportFormat::Table, b"", 0), header);
        assert_eq!(written(ExportFormat::Ndjson, b"", 0), "");
    }

    #[test]
    fn a_row_that_is_none_is_an_error() {
        let mut sink = RowSink::new(ExportFormat::Table, Vec::new());
        assert!(sink.write(b"nonsense\n").is_err());
    }
}
