//! `flowtally export`.

mod arrow_stream;
mod groups;
mod parquet_files;
mod source;
mod text;

use std::io;

use crate::config::{Export, ExportFormat};
use flow::HourRange;
use source::RowsFrom;

pub(super) fn run(arguments: &Export) -> Result<(), String> {
    let (first, end) = (
        arguments.from.unwrap_or(HourRange::ALL.start()),
        arguments.to.unwrap_or(HourRange::ALL.end()),
    );
    if first >= end {
        return Err(format!(
            "--from {first} is not before --to {end}, the hour after the last one"
        ));
    }
    let hours = (first..end).into();
    if let (ExportFormat::Parquet, Some(dir)) = (arguments.format, &arguments.to_dir) {
        parquet_files::validate(arguments)?;
        return parquet_files::write(&RowsFrom::open(arguments)?, hours, dir);
    }
    if arguments.to_dir.is_some() {
        return Err(
            "--to-dir is for --format parquet; all others are written to standard output".into(),
        );
    }
    let written = match arguments.format {
        ExportFormat::Ndjson | ExportFormat::Csv | ExportFormat::Json | ExportFormat::Table => {
            let source = RowsFrom::open(arguments)?;
            text::write(&source, source.groups(hours)?, arguments.format)
        }
        ExportFormat::Arrow => {
            agent::command::refuse_terminal("--format arrow")?;
            let source = RowsFrom::open(arguments)?;
            arrow_stream::write(&source, source.groups(hours)?)
        }
        // The command line requires it.
        ExportFormat::Parquet => return Err("--format parquet needs --to-dir DIR".into()),
    };
    match written {
        Ok(()) => Ok(()),
        Err(Failed::Output(e)) => agent::command::stdout_result(Err(e)),
        Err(Failed::Source(why)) => Err(format!("{why}; the rows are not complete")),
    }
}

/// Why rows were not written.
enum Failed {
    Source(String),
    Output(io::Error),
}
