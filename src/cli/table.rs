//! Tables of text.

use std::io::{self, Write};

use super::text::{fit, fit_right, width};

/// Columns of a name in a table; other formats have it in full.
pub(super) const NAME_COLUMNS_MAX: usize = 60;

/// The header and the rows after it that decide how wide the columns are. Later rows are written as they come, so the
/// memory of a table does not grow with its rows.
const MEASURED_LINES_MAX: usize = 1_000;

/// Writes rows below their header. A cell of a later row that does not fit into its column is written in full.
#[derive(Debug)]
pub(super) struct TableWriter<W> {
    out: W,
    /// The first columns, which are names, are aligned to the left, the others, which are numbers, to the right.
    names: usize,
    /// Lines that are not written yet.
    measured: Vec<Vec<String>>,
    /// `None` until there are enough lines, or all.
    widths: Option<Vec<usize>>,
}

impl<W: Write> TableWriter<W> {
    pub(super) fn new(out: W, header: Vec<String>, names: usize) -> TableWriter<W> {
        TableWriter {
            out,
            names,
            measured: vec![header],
            widths: None,
        }
    }

    pub(super) fn write(&mut self, row: Vec<String>) -> io::Result<()> {
        if let Some(widths) = &self.widths {
            return write_line(&mut self.out, &row, widths, self.names);
        }
        self.measured.push(row);
        match self.measured.len() < MEASURED_LINES_MAX {
            true => Ok(()),
            false => self.write_measured(),
        }
    }

    /// Writes what is left.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.write_measured()?;
        self.out.flush()
    }

    fn write_measured(&mut self) -> io::Result<()> {
        let lines = std::mem::take(&mut self.measured);
        let columns = 0..lines.first().map_or(0, Vec::len);
        let widest = |n: usize| lines.iter().map(|line| width(&line[n])).max();
        let widths = columns.map(|n| widest(n).unwrap_or(0)).collect();
        let widths = self.widths.get_or_insert(widths);
        for line in &lines {
            write_line(&mut self.out, line, widths, self.names)?;
        }
        Ok(())
    }
}

fn write_line(
    out: &mut impl Write,
    line: &[String],
    widths: &[usize],
    names: usize,
) -> io::Result<()> {
    let cells = line.iter().zip(widths).enumerate();
    let cells = cells.map(|(n, (cell, of_column))| {
        let columns = width(cell).max(*of_column);
        match n < names {
            true => fit(cell, columns),
            false => fit_right(cell, columns),
        }
    });
    let line = cells.collect::<Vec<_>>().join("  ");
    writeln!(out, "{}", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, sum: u64) -> Vec<String> {
        vec![name.to_owned(), sum.to_string()]
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut out = Vec::new();
        let header = ["src_app", "tx"].map(str::to_owned).to_vec();
        let mut table = TableWriter::new(&mut out, header, 1);
        table.write(row("web", 7)).unwrap();
        table.write(row("a-long-name", 12_345)).unwrap();
        table.finish().unwrap();
        let expected = "src_app         tx\nweb              7\na-long-name  12345\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_table_of_many_rows_is_written_as_they_come() {
        let mut out = Vec::new();
        let mut table = TableWriter::new(&mut out, row("name", 0), 1);
        for n in 0..MEASURED_LINES_MAX as u64 {
            table.write(row("abc", n)).unwrap();
            assert!(table.measured.len() < MEASURED_LINES_MAX);
        }
        assert!(table.measured.is_empty());
        table.write(row("wider than before", u64::MAX)).unwrap();
        table.write(row("z", 5)).unwrap();
        table.finish().unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), MEASURED_LINES_MAX + 3);
        let starts = ["name    0", "abc     0", "abc     1"];
        assert_eq!(lines[..3], starts);
        let ends = ["wider than before  18446744073709551615", "z       5"];
        assert_eq!(lines[lines.len() - 2..], ends);
    }
}
