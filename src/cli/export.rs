//! `flowtally export`.

use std::io::{self, BufWriter, Read, Write};
use std::sync::Arc;

use super::connect;
use crate::client::{Client, broke_off};
use crate::config::{Export, ExportFormat, Place};
use crate::domain::{Field, Hour};
use crate::http::{Answer, Encoding, RowFormat};
use crate::query::{Cancel, Engine, Query, QueryLimits};
use crate::store::Store;
use crate::terminal::Style;

pub(super) fn run(arguments: &Export) -> Result<(), String> {
    let (first, end) = (
        arguments.from.unwrap_or(0),
        arguments.to.unwrap_or(u32::MAX),
    );
    if first >= end {
        return Err(format!(
            "--from {first} is not before --to {end}, the hour after the last one"
        ));
    }
    let source = match &arguments.place {
        Place::Service(url) => Source::Service(connect::client(url, &arguments.credentials)?),
        Place::Stopped(dir) => {
            let store = Store::open_to_read(dir).map_err(|e| e.to_string())?;
            Source::Stopped(Engine::new(Arc::new(store), QueryLimits::NONE))
        }
    };
    let mut out = Output {
        out: BufWriter::new(super::output(match arguments.format {
            ExportFormat::Ndjson => Style::Json,
            ExportFormat::Csv => Style::Text,
        })),
        format: arguments.format,
        any: false,
        in_header: false,
    };
    let hours = source.hours()?;
    let wanted = hours
        .into_iter()
        .filter(|hour| (first..end).contains(&hour.get()));
    match source.write_all(wanted, &mut out) {
        Ok(()) => Ok(()),
        Err(Failed::Output(e)) => super::written(Err(e)),
        Err(Failed::Source(why)) => Err(format!("{why}; the rows are not complete")),
    }
}

enum Failed {
    Source(String),
    Output(io::Error),
}

enum Source {
    Service(Client),
    Stopped(Engine),
}

impl Source {
    fn hours(&self) -> Result<Vec<Hour>, String> {
        match self {
            Source::Service(client) => connect::hours(client)
                .map(|hours| hours.iter().filter_map(|of| Hour::new(of.hour)).collect()),
            Source::Stopped(engine) => {
                let all = engine.hours(None, false).map_err(|e| e.to_string())?;
                Ok(all.hours.into_iter().map(|(hour, _)| hour).collect())
            }
        }
    }

    fn write_all(
        &self,
        hours: impl Iterator<Item = Hour>,
        out: &mut Output<impl Write>,
    ) -> Result<(), Failed> {
        for hour in hours {
            self.write(hour, out)?;
        }
        if !out.any && out.format == ExportFormat::Csv {
            let header = Field::ALL.map(Field::name).join(",") + "\n";
            out.write(header.as_bytes())?;
        }
        out.out.flush().map_err(Failed::Output)
    }

    /// Writes the rows of `hour`.
    fn write(&self, hour: Hour, out: &mut Output<impl Write>) -> Result<(), Failed> {
        let failed = |e: &dyn std::fmt::Display| Failed::Source(format!("hour {hour}: {e}"));
        out.begin_hour();
        match self {
            Source::Service(client) => {
                let accept = match out.format {
                    ExportFormat::Ndjson => "application/x-ndjson",
                    ExportFormat::Csv => "text/csv",
                };
                let answer = client.get(&format!("/flows?hour={hour}"), accept);
                let mut body = answer.map_err(|e| failed(&e))?.into_body().into_reader();
                let mut part = vec![0; 128 << 10];
                loop {
                    match body.read(&mut part).map_err(|e| failed(&broke_off(&e)))? {
                        0 => return Ok(()),
                        n => out.write(&part[..n])?,
                    }
                }
            }
            Source::Stopped(engine) => {
                let format = match out.format {
                    ExportFormat::Ndjson => RowFormat::Ndjson,
                    ExportFormat::Csv => RowFormat::Csv,
                };
                let question = Query::all_of(hour.get()..hour.get() + 1);
                let rows = engine.ask(&question, Cancel::default());
                let rows = rows.map_err(|e| failed(&e))?;
                let answer = Answer::new(rows, format, Encoding::Identity);
                let mut answer = answer.map_err(Failed::Output)?;
                while let Some(chunk) = answer.next_chunk().map_err(|e| failed(&e))? {
                    out.write(&chunk)?;
                }
                Ok(())
            }
        }
    }
}

/// Rows of several hours, which have one header.
struct Output<W> {
    out: W,
    format: ExportFormat,
    /// An hour has been begun.
    any: bool,
    /// The header of an hour that is not the first is on its way.
    in_header: bool,
}

impl<W: Write> Output<W> {
    fn begin_hour(&mut self) {
        self.in_header = self.any && self.format == ExportFormat::Csv;
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
