//! `flowtally query`: the questions of `GET /flows`, from a terminal.

use std::io::{self, BufRead, BufReader, Read, Write};

use serde::Deserialize;

use super::table::{NAME_COLUMNS_MAX, TableWriter};
use super::text::{cut, visible};
use crate::config::{QueryArgs, QueryFormat};
use agent::client::describe_read_error;
use agent::command::connect;
use agent::terminal::Style;
use agent::units::{self, HourBound};
use flow::Field;
use flow::query::{Query, text};

/// Rows of a table without `--limit`.
const TABLE_ROWS: u32 = 20;

pub(super) fn run(arguments: &QueryArgs) -> Result<(), String> {
    let query = parameters(arguments)?;
    let parsed = text::parse_flows(&query).map_err(|e| e.to_string())?;
    let client = connect::client(&arguments.service.url, &arguments.credentials)?;
    let accept = match arguments.format {
        QueryFormat::Json => "application/json",
        QueryFormat::Csv => "text/csv",
        QueryFormat::Table | QueryFormat::Ndjson => "application/x-ndjson",
        QueryFormat::Arrow => {
            agent::command::refuse_terminal("--format arrow")?;
            "application/vnd.apache.arrow.stream"
        }
    };
    let response = client.get(&format!("/flows?{query}"), accept);
    let mut body = response
        .map_err(|e| e.to_string())?
        .into_body()
        .into_reader();
    let written = match arguments.format {
        QueryFormat::Table => return print_table(&parsed, BufReader::new(body)),
        // To a pipe or a file, any style passes bytes on unchanged.
        QueryFormat::Csv | QueryFormat::Arrow => copy(&mut body, Style::Text),
        QueryFormat::Json | QueryFormat::Ndjson => copy(&mut body, Style::Json),
    };
    written.map_err(|e| format!("{e}; the rows are not complete"))
}

/// The query string.
fn parameters(arguments: &QueryArgs) -> Result<String, String> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    let first = |bound: HourBound| bound.first().to_string();
    // Whole steps, so that the first and the last row are not less than the others.
    let step = arguments.step.unwrap_or(1);
    if let Some(hour) = arguments.hour {
        query.append_pair("hour", &first(hour));
    }
    if let Some(from) = arguments.from {
        query.append_pair("from", &(from.first() - from.first() % step).to_string());
    }
    if let Some(to) = arguments.to {
        query.append_pair(
            "to",
            &to.end()
                .checked_next_multiple_of(step)
                .unwrap_or(u32::MAX)
                .to_string(),
        );
    }
    for filter in &arguments.filters {
        let Some((name, value)) = filter.split_once('=') else {
            return Err(format!(
                "{filter:?} is not a filter; those are NAME=VALUE, NAME!=VALUE and NAME^=BEGINNING, with src_app, dest_app, \
                 vpc_id or peer as NAME, and search=TEXT"
            ));
        };
        query.append_pair(name, value);
    }
    let is_table = arguments.format == QueryFormat::Table;
    let groups = arguments.group_by.as_deref();
    if let Some(columns) = groups {
        query.append_pair("group_by", columns);
    }
    let has_hour = groups.is_some_and(|columns| columns.split(',').any(|column| column == "hour"));
    let sort = match (&arguments.sort, &arguments.compare) {
        (Some(sort), _) => Some(sort.as_str()),
        (None, Some(_)) if is_table => Some("change"),
        (None, None) if is_table && !has_hour => Some("bytes"),
        _ => None,
    };
    if let Some(sort) = sort {
        query.append_pair("sort", sort);
    }
    // A series is not cut off.
    let rows_by_default = (is_table && !has_hour).then_some(TABLE_ROWS);
    if let Some(limit) = arguments.limit.or(rows_by_default) {
        query.append_pair("limit", &limit.to_string());
    }
    if let Some(step) = arguments.step {
        query.append_pair("step", &step.to_string());
    }
    if arguments.other {
        query.append_pair("other", "true");
    }
    if let Some(compare) = &arguments.compare {
        let hour = match compare.as_str() {
            "previous" => compare.clone(),
            _ => first(units::hour_bound(compare).map_err(|e| format!("--compare: {e}"))?),
        };
        query.append_pair("compare", &hour);
    }
    Ok(query.finish())
}

/// Copies a response to standard output.
fn copy(body: &mut impl Read, style: Style) -> Result<(), String> {
    let mut out = io::BufWriter::new(agent::command::stdout(style));
    let mut part = vec![0; 128 << 10];
    loop {
        let written = match body
            .read(&mut part)
            .map_err(|e| describe_read_error(&e).to_string())?
        {
            0 => return agent::command::stdout_result(out.flush()),
            n => out.write_all(&part[..n]),
        };
        if written.is_err() {
            return agent::command::stdout_result(written);
        }
    }
}

/// A row of NDJSON.
#[derive(Deserialize)]
struct AnswerRow {
    src_app: Option<String>,
    dest_app: Option<String>,
    vpc_id: Option<String>,
    hour: Option<u64>,
    bytes_tx: u64,
    bytes_rx: u64,
    bytes_tx_before: Option<u64>,
    bytes_rx_before: Option<u64>,
    #[serde(default)]
    other: bool,
}

/// Prints rows as they come. Without `--limit`, a series by hour has any number of them.
fn print_table(query: &Query, body: impl BufRead) -> Result<(), String> {
    let columns = query.columns;
    let keys = [Field::SrcApp, Field::DestApp, Field::VpcId, Field::Hour];
    let keys: Vec<Field> = keys
        .into_iter()
        .filter(|field| columns.has(*field))
        .collect();
    let is_compared = query.compare.is_some();
    let mut header: Vec<String> = keys.iter().map(|field| field.name().to_owned()).collect();
    header.extend(["bytes_tx", "bytes_rx"].map(str::to_owned));
    if is_compared {
        header.extend(["bytes_tx_before", "bytes_rx_before", "change"].map(str::to_owned));
    }
    let out = io::BufWriter::new(io::stdout().lock());
    let mut table = TableWriter::new(out, header, keys.len());
    for line in body.lines() {
        match read_row(line) {
            Ok(row) => {
                let written = table.write(cells(&row, &keys, is_compared));
                if written.is_err() {
                    return agent::command::stdout_result(written);
                }
            }
            Err(why) => {
                let _best_effort = table.finish();
                return Err(format!("{why}; the rows are not complete"));
            }
        }
    }
    agent::command::stdout_result(table.finish())
}

fn read_row(line: io::Result<String>) -> Result<AnswerRow, String> {
    let line = line.map_err(|e| describe_read_error(&e).to_string())?;
    serde_json::from_str(&line)
        .map_err(|e| format!("the service sent a row that cannot be read: {e}"))
}

fn cells(row: &AnswerRow, keys: &[Field], is_compared: bool) -> Vec<String> {
    let name = |name: &Option<String>| match name {
        Some(name) => cut(&visible(name), NAME_COLUMNS_MAX),
        None => String::new(),
    };
    let key = |field: &Field| match field {
        Field::SrcApp => name(&row.src_app),
        Field::DestApp => name(&row.dest_app),
        Field::VpcId => name(&row.vpc_id),
        _ => row.hour.map_or_else(String::new, units::hour_name),
    };
    let mut cells: Vec<String> = keys.iter().map(key).collect();
    if row.other
        && let Some(first) = cells.first_mut()
    {
        *first = "(all others)".to_owned();
    }
    cells.extend([row.bytes_tx, row.bytes_rx].map(|sum| sum.to_string()));
    if is_compared {
        let (tx, rx) = (
            row.bytes_tx_before.unwrap_or(0),
            row.bytes_rx_before.unwrap_or(0),
        );
        let change =
            i128::from(row.bytes_tx) + i128::from(row.bytes_rx) - i128::from(tx) - i128::from(rx);
        cells.extend([tx.to_string(), rx.to_string(), format!("{change:+}")]);
    }
    cells
}
