//! Tables of text.

use std::io::{self, Write};

use super::text::{fit, fit_right, width};

/// Columns of a name in a table; other formats have it in full.
pub(super) const NAME_COLUMNS_MAX: usize = 60;

/// Writes rows below their header. The first `names` columns are aligned to the left, the others, which are numbers, to
/// the right.
pub(super) fn write(
    out: &mut impl Write,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
    names: usize,
) -> io::Result<()> {
    let lines: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    let columns = 0..lines[0].len();
    let widths: Vec<usize> = columns
        .map(|n| lines.iter().map(|line| width(&line[n])).max().unwrap_or(0))
        .collect();
    for line in &lines {
        let cells = line.iter().zip(&widths).enumerate();
        let cells = cells.map(|(n, (cell, width))| match n < names {
            true => fit(cell, *width),
            false => fit_right(cell, *width),
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}
