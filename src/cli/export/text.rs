//! Rows as text on standard output.

use std::io::{BufWriter, Write};

use super::Failed;
use super::groups::Group;
use super::source::RowsFrom;
use crate::query::RowFormat;
use agent::terminal::Style;
use flow::Field;

/// Writes the rows of `groups` to standard output, as NDJSON or CSV.
pub(super) fn write(
    source: &RowsFrom,
    groups: Vec<Group>,
    format: RowFormat,
) -> Result<(), Failed> {
    let is_csv = matches!(format, RowFormat::Csv);
    let style = if is_csv { Style::Text } else { Style::Json };
    let mut out = Joined {
        out: BufWriter::new(agent::command::stdout(style)),
        has_header: is_csv,
        any: false,
        in_header: false,
    };
    for group in groups {
        out.begin_group();
        source.text(group, format, |part| out.write(part))?;
    }
    if !out.any && is_csv {
        let header = Field::ALL.map(Field::name).join(",") + "\n";
        out.write(header.as_bytes())?;
    }
    out.out.flush().map_err(Failed::Output)
}

/// Joins the rows of several responses under one header.
struct Joined<W> {
    out: W,
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
        self.out.write_all(part).map_err(Failed::Output)
    }
}
