//! `--once`: the rows, as text for people or for scripts.

use std::io::{self, BufWriter, IsTerminal, Write};

use super::query::{Row, TopQuery, Window, fields};
use crate::cli::table::{NAME_COLUMNS_MAX, TableWriter};
use crate::cli::text::{cut, visible};
use crate::config::{SortBy, Top, TopFormat};
use agent::client::Client;
use agent::terminal::printable_json;
use agent::units::hour_name;

pub(super) fn run(query: &TopQuery, client: &Client, arguments: &Top) -> Result<(), String> {
    let mut window = Window::default();
    let mut ask = || query.ask(client, &mut window).map_err(|e| e.to_string());
    let mut snapshot = ask()?;
    if query.sort == SortBy::Rate {
        std::thread::sleep(arguments.interval);
        let before = snapshot;
        snapshot = ask()?;
        snapshot.compare(&before);
    }
    snapshot.rows.truncate(query.limit);
    let out = io::stdout().lock();
    // Formats for programs have exact values.
    let shown = out.is_terminal();
    let mut out = BufWriter::new(out);
    let written = match arguments.format {
        TopFormat::Table => table(&mut out, query, &snapshot.rows),
        TopFormat::Csv => csv(&mut out, query, &snapshot.rows, shown),
        TopFormat::Json => {
            let rows: Vec<_> = snapshot.rows.iter().map(json).collect();
            writeln!(out, "[{}]", rows.join(",\n"))
        }
        TopFormat::Ndjson => snapshot
            .rows
            .iter()
            .try_for_each(|row| writeln!(out, "{}", json(row))),
    };
    match written.and_then(|()| out.flush()) {
        // The reader has closed the pipe.
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write the rows: {e}"))
        }
        _ => Ok(()),
    }
}

/// The names of the columns.
fn header(query: &TopQuery) -> Vec<String> {
    let rate = (query.sort == SortBy::Rate).then_some("bytes_per_s");
    let sums = ["bytes_tx", "bytes_rx"].into_iter().chain(rate);
    let names = fields(query.group_by).iter().copied();
    names
        .chain(sums)
        .chain(["hour"])
        .map(str::to_owned)
        .collect()
}

/// A row's columns, with `name` applied to the names, and `hour` to the hour.
fn cells(
    query: &TopQuery,
    row: &Row,
    name: impl Fn(&str) -> String,
    hour: impl Fn(u64) -> String,
) -> Vec<String> {
    let mut cells: Vec<String> = row.names().map(name).collect();
    cells.extend([row.bytes_tx.to_string(), row.bytes_rx.to_string()]);
    if query.sort == SortBy::Rate {
        cells.push(row.bytes_per_s.map(|n| n.to_string()).unwrap_or_default());
    }
    cells.push(hour(row.hour));
    cells
}

fn table(out: &mut impl Write, query: &TopQuery, rows: &[Row]) -> io::Result<()> {
    let shown = |name: &str| cut(&visible(name), NAME_COLUMNS_MAX);
    let mut table = TableWriter::new(out, header(query), fields(query.group_by).len());
    for row in rows {
        table.write(cells(query, row, shown, hour_name))?;
    }
    table.finish()
}

fn csv(out: &mut impl Write, query: &TopQuery, rows: &[Row], shown: bool) -> io::Result<()> {
    let mut out = csv::Writer::from_writer(out);
    out.write_record(header(query))?;
    for row in rows {
        let name = |name: &str| match shown {
            true => visible(name),
            false => name.to_owned(),
        };
        out.write_record(cells(query, row, name, |hour| hour.to_string()))?;
    }
    out.flush()
}

/// The row as JSON, with control characters escaped.
fn json(row: &Row) -> String {
    // Strings and integers always serialise.
    let text = serde_json::to_string(row).unwrap_or_default();
    printable_json(&text).into_owned()
}
