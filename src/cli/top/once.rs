//! `--once`: the rows, as text for people or for scripts.

use std::io::{self, BufWriter, IsTerminal, Write};

use super::question::{Question, Row, Window, fields};
use super::text::{cut, fit, fit_right, visible, width};
use crate::config::{SortBy, Top, TopFormat};
use agent::client::Client;
use agent::terminal::printable_json;

/// Columns of a name in the table; the other formats have it in full.
const NAME_COLUMNS_MAX: usize = 60;

pub(super) fn run(question: &Question, client: &Client, arguments: &Top) -> Result<(), String> {
    let mut window = Window::default();
    let mut ask = || question.ask(client, &mut window).map_err(|e| e.to_string());
    let mut answer = ask()?;
    if question.sort == SortBy::Rate {
        std::thread::sleep(arguments.interval);
        let before = answer;
        answer = ask()?;
        answer.compare(&before);
    }
    answer.rows.truncate(question.limit);
    let out = io::stdout().lock();
    // Formats for programs have exact values.
    let shown = out.is_terminal();
    let mut out = BufWriter::new(out);
    let written = match arguments.format {
        TopFormat::Table => table(&mut out, question, &answer.rows),
        TopFormat::Csv => csv(&mut out, question, &answer.rows, shown),
        TopFormat::Json => {
            let rows: Vec<_> = answer.rows.iter().map(json).collect();
            writeln!(out, "[{}]", rows.join(",\n"))
        }
        TopFormat::Ndjson => answer
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
fn header(question: &Question) -> Vec<String> {
    let rate = (question.sort == SortBy::Rate).then_some("bytes_per_s");
    let sums = ["bytes_tx", "bytes_rx"].into_iter().chain(rate);
    let names = fields(question.group_by).iter().copied();
    names
        .chain(sums)
        .chain(["hour"])
        .map(str::to_owned)
        .collect()
}

/// A row's columns, with `name` applied to the names.
fn cells(question: &Question, row: &Row, name: impl Fn(&str) -> String) -> Vec<String> {
    let mut cells: Vec<String> = row.names().map(name).collect();
    cells.extend([row.bytes_tx.to_string(), row.bytes_rx.to_string()]);
    if question.sort == SortBy::Rate {
        cells.push(row.bytes_per_s.map(|n| n.to_string()).unwrap_or_default());
    }
    cells.push(row.hour.to_string());
    cells
}

/// Names are aligned to the left, numbers to the right.
fn table(out: &mut impl Write, question: &Question, rows: &[Row]) -> io::Result<()> {
    let shown = |name: &str| cut(&visible(name), NAME_COLUMNS_MAX);
    let rows = rows.iter().map(|row| cells(question, row, shown));
    let lines: Vec<Vec<String>> = std::iter::once(header(question)).chain(rows).collect();
    let names = fields(question.group_by).len();
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
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  "))?;
    }
    Ok(())
}

fn csv(out: &mut impl Write, question: &Question, rows: &[Row], shown: bool) -> io::Result<()> {
    let mut out = csv::Writer::from_writer(out);
    out.write_record(header(question))?;
    for row in rows {
        out.write_record(cells(question, row, |name| match shown {
            true => visible(name),
            false => name.to_owned(),
        }))?;
    }
    out.flush()
}

/// The row as JSON, with control characters escaped.
fn json(row: &Row) -> String {
    // Strings and integers always serialise.
    let text = serde_json::to_string(row).unwrap_or_default();
    printable_json(&text).into_owned()
}
