//! Rows as one stream of Arrow on standard output.

use std::io::BufWriter;

use arrow_ipc::writer::StreamWriter;
use arrow_schema::ArrowError;

use super::Failed;
use super::groups::Group;
use super::source::RowsFrom;
use crate::query::flow_schema;
use agent::terminal::Style;

/// Writes the rows of `groups` to standard output, which is not a terminal. After an error, the stream has no end.
pub(super) fn write(source: &RowsFrom, groups: Vec<Group>) -> Result<(), Failed> {
    // To a file or a pipe, any style passes bytes on unchanged.
    let out = BufWriter::new(agent::command::stdout(Style::Text));
    let mut stream = StreamWriter::try_new(out, &flow_schema()).map_err(failed)?;
    for group in groups {
        source.batches(group, |batch| stream.write(batch).map_err(failed))?;
    }
    stream.finish().map_err(failed)
}

fn failed(error: ArrowError) -> Failed {
    match error {
        ArrowError::IoError(_, error) => Failed::Output(error),
        error => Failed::Source(error.to_string()),
    }
}
