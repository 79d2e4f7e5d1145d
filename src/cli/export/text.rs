//! Rows as text on standard output.

use std::io::{BufWriter, Write};

use super::Failed;
use super::groups::Group;
use super::source::RowsFrom;
use crate::cli::rows::RowSink;
use crate::config::ExportFormat;
use crate::query::RowFormat;
use agent::terminal::Style;
use flow::Field;

/// Writes the rows of `groups` to standard output, in a text format.
pub(super) fn write(
    source: &RowsFrom,
    groups: Vec<Group>,
    format: ExportFormat,
) -> Result<(), Failed> {
    let is_csv = format == ExportFormat::Csv;
    let style = match format {
        ExportFormat::Csv | ExportFormat::Table => Style::Text,
        _ => Style::Json,
    };
    let rows = if is_csv {
        RowFormat::Csv
    } else {
        RowFormat::Ndjson
    };
    let mut out = Joined {
        out: RowSink::new(format, BufWriter::new(agent::command::stdout(style))),
        has_header: is_csv,
        any: false,
        in_header: false,
    };
    for group in groups {
        out.begin_group();
        source.text(group, rows, |part| out.write(part))?;
    }
    if !out.any && is_csv {
        let header = Field::ALL.map(Field::name).join(",") + "\n";
        out.write(header.as_bytes())?;
    }
    out.out.finish().map_err(Failed::Output)
}

/// Joins the rows of several responses under one header.
struct Joined<W: Write> {
    out: RowSink<W>,
    /// Each response begins with a header.
    has_header: bool,
    /// The first response has started.
    any: bool,
    /// The header of a later response is being skipped.
    in_header: bool,
}

impl<W: Write> Joined<W> {
    fn begin_group(&mut self) {
        self.in_header = self.any && self.has_header;
        self.any = true;
    }

    fn write(&mut self, mut part: &[u8]) -> Result<(), Failed> {
        if self.in_header {
            let end = part.iter().position(|byte| *byte == b'\n');
            self.in_header = end.is_none();
            part = end.map_or(&[][..], |end| &part[end + 1..]);
        }
        self.out.write(part).map_err(Failed::Output)
    }
}
