//! `flowtally export`.

use std::io::{self, BufWriter, Read, Write};
use std::ops::ControlFlow;

use tokio_util::sync::CancellationToken;

use super::rows::RowSink;
use crate::config::{DataLocation, Export, ExportFormat};
use crate::query::{EncodedRows, Engine, QueryLimits, RowFormat};
use crate::store::Store;
use agent::client::{Client, describe_read_error};
use agent::command::connect;
use agent::terminal::Style;
use flow::query::{HourTotals, HoursQuery, Query};
use flow::{Encoding, Field, HourRange};

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
    let source = match &arguments.location {
        DataLocation::Service(url) => {
            RowsFrom::Service(connect::client(url, &arguments.credentials)?)
        }
        DataLocation::Stopped(dir) => {
            let store = Store::open_read_only(dir).map_err(|e| e.to_string())?;
            RowsFrom::Stopped(store, Engine::new(QueryLimits::NONE))
        }
    };
    let mut out = Output {
        out: RowSink::new(arguments.format, BufWriter::new(stdout(arguments.format))),
        format: arguments.format,
        any: false,
        in_header: false,
    };
    let groups = source.groups((first..end).into())?;
    let written = source.write_all(groups, &mut out);
    match written.and_then(|()| out.finish()) {
        Ok(()) => Ok(()),
        Err(Failed::Output(e)) => agent::command::stdout_result(Err(e)),
        Err(Failed::Source(why)) => Err(format!("{why}; the rows are not complete")),
    }
}

fn stdout(format: ExportFormat) -> Box<dyn Write> {
    agent::command::stdout(match format {
        ExportFormat::Ndjson | ExportFormat::Json => Style::Json,
        ExportFormat::Csv | ExportFormat::Table => Style::Text,
    })
}

enum Failed {
    Source(String),
    Output(io::Error),
}

enum RowsFrom {
    Service(Client),
    Stopped(Store, Engine),
}

/// Maximum number of flows, and so of rows, of hours that are read together, unless it is a single hour. A response in
/// progress keeps files from being deleted, so each should be short.
const GROUP_FLOWS_MAX: u64 = 1_000_000;

/// Hours that are read together, in rows of `step` hours each.
#[derive(Clone, Copy, Debug)]
struct Group {
    hours: HourRange,
    step: u32,
}

/// Groups hours, which are in ascending order.
struct Groups {
    groups: Vec<Group>,
    flows: u64,
    /// No group is longer, whatever the hours consist of.
    of: HourRange,
}

impl Groups {
    fn add(&mut self, of: HourTotals) {
        let step = of.finest_step;
        let last = self.groups.last();
        if last.is_some_and(|last| of.hour.get() < last.hours.end()) {
            // It is in a longer span that begins before it.
            self.flows = self.flows.saturating_add(of.totals.flows);
            return;
        }
        // If only sums of days are left, whole days are read.
        let first = of.hour.get() - of.hour.get() % step;
        let end = first.saturating_add(step).min(self.of.end());
        self.flows = self.flows.saturating_add(of.totals.flows);
        match self.groups.last_mut() {
            Some(last) if last.step == step && self.flows <= GROUP_FLOWS_MAX => {
                last.hours = (last.hours.start()..end).into();
            }
            _ => {
                let hours = (first.max(self.of.start())..end).into();
                self.groups.push(Group { hours, step });
                self.flows = of.totals.flows;
            }
        }
    }
}

impl RowsFrom {
    /// The hours that hold flows, in groups, so that millions of hours do not need a request each.
    fn groups(&self, hours: HourRange) -> Result<Vec<Group>, String> {
        let mut groups = Groups {
            groups: Vec::new(),
            flows: 0,
            of: hours,
        };
        match self {
            RowsFrom::Service(client) => {
                for of in connect::hours(client, hours)? {
                    if let Some(of) = of?.totals() {
                        groups.add(of);
                    }
                }
            }
            RowsFrom::Stopped(store, engine) => {
                let query = HoursQuery {
                    hours,
                    ..HoursQuery::ALL
                };
                let hours = engine.hours(store, &query, CancellationToken::default());
                let mut add = |of| {
                    groups.add(of);
                    ControlFlow::Continue(())
                };
                hours
                    .and_then(|mut hours| hours.read(&mut add))
                    .map_err(|e| e.to_string())?;
            }
        }
        Ok(groups.groups)
    }

    fn write_all(&self, groups: Vec<Group>, out: &mut Output<impl Write>) -> Result<(), Failed> {
        groups
            .into_iter()
            .try_for_each(|group| self.write(group, out))
    }

    /// Writes the rows of a group. Those of steps have the first hour of each.
    fn write(&self, group: Group, out: &mut Output<impl Write>) -> Result<(), Failed> {
        let Group { hours, step } = group;
        let (from, to) = (hours.start(), hours.end());
        let failed = |e: &dyn std::fmt::Display| {
            Failed::Source(match hours.len() {
                1 => format!("hour {from}: {e}"),
                _ => format!("hours {from} to {}: {e}", to - 1),
            })
        };
        out.begin_group();
        match self {
            RowsFrom::Service(client) => {
                let accept = match out.format {
                    ExportFormat::Csv => "text/csv",
                    _ => "application/x-ndjson",
                };
                let mut target = format!("/flows?from={from}&to={to}");
                if step > 1 {
                    target += &format!("&group_by=src_app,dest_app,vpc_id,hour&step={step}");
                }
                let response = client.get(&target, accept);
                let mut body = response.map_err(|e| failed(&e))?.into_body().into_reader();
                let mut part = vec![0; 128 << 10];
                loop {
                    match body
                        .read(&mut part)
                        .map_err(|e| failed(&describe_read_error(&e)))?
                    {
                        0 => return Ok(()),
                        n => out.write(&part[..n])?,
                    }
                }
            }
            RowsFrom::Stopped(store, engine) => {
                let format = match out.format {
                    ExportFormat::Csv => RowFormat::Csv,
                    _ => RowFormat::Ndjson,
                };
                let query = Query {
                    step,
                    ..Query::all_of(hours)
                };
                let rows = engine.ask(store, &query, CancellationToken::default());
                let rows = rows.map_err(|e| failed(&e))?;
                let encoded = EncodedRows::new(rows, format, Encoding::Identity);
                let mut encoded = encoded.map_err(Failed::Output)?;
                while let Some(chunk) = encoded.next_chunk().map_err(|e| failed(&e))? {
                    out.write(&chunk)?;
                }
                Ok(())
            }
        }
    }
}

/// Joins the rows of several responses under one header.
struct Output<W: Write> {
    out: RowSink<W>,
    format: ExportFormat,
    /// The first response has started.
    any: bool,
    /// The header of a later response is being skipped.
    in_header: bool,
}

impl<W: Write> Output<W> {
    fn begin_group(&mut self) {
        self.in_header = self.any && self.format == ExportFormat::Csv;
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

    /// All rows are written.
    fn finish(mut self) -> Result<(), Failed> {
        if !self.any && self.format == ExportFormat::Csv {
            let header = Field::ALL.map(Field::name).join(",") + "\n";
            self.write(header.as_bytes())?;
        }
        self.out.finish().map_err(Failed::Output)
    }
}
