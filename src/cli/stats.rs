//! `flowtally stats`.

use std::io;
use std::path::Path;

use serde::Serialize;

use crate::config::{AnswerFormat, DataLocation, Stats};
use crate::store::Store;
use agent::command::connect;
use agent::durable::is_lost_and_found;
use agent::units::hour_name;
use flow::HourRange;

/// Totals of the stored flows.
#[derive(Debug, Default, Serialize)]
struct Stored {
    hours: usize,
    /// `None` if there is no hour.
    first_hour: Option<u64>,
    last_hour: Option<u64>,
    flows: u64,
    bytes_tx: u128,
    bytes_rx: u128,
    /// Size of the data directory; unknown for a running service.
    disk_bytes: Option<u64>,
}

impl Stored {
    /// `hours` are in ascending order.
    fn add(&mut self, hour: u64, flows: u64, bytes_tx: u128, bytes_rx: u128) {
        self.hours += 1;
        self.first_hour.get_or_insert(hour);
        self.last_hour = Some(hour);
        self.flows += flows;
        self.bytes_tx += bytes_tx;
        self.bytes_rx += bytes_rx;
    }
}

pub(super) fn run(arguments: &Stats) -> Result<(), String> {
    let mut stored = Stored::default();
    match &arguments.location {
        DataLocation::Service(url) => {
            let client = connect::client(url, &arguments.credentials)?;
            for of in connect::hours(&client, HourRange::ALL)? {
                let of = of?;
                stored.add(of.hour, of.flows, of.bytes_tx, of.bytes_rx);
            }
        }
        DataLocation::Stopped(dir) => {
            let store = Store::open_read_only(dir).map_err(|e| e.to_string())?;
            for entry in store.ledger(HourRange::ALL).map_err(|e| e.to_string())? {
                let (hour, of) = entry.map_err(|e| e.to_string())?;
                stored.add(hour.get().into(), of.flows, of.tx, of.rx);
            }
            let bytes = bytes_of(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
            stored.disk_bytes = Some(bytes);
        }
    }
    let text = match arguments.answer_format() {
        // Strings and integers always serialise.
        AnswerFormat::Json => serde_json::to_string(&stored).unwrap_or_default() + "\n",
        AnswerFormat::Csv => csv(&stored),
        AnswerFormat::Table => table(&stored),
    };
    agent::command::write_stdout(text.as_bytes())
}

/// Numbers need no quotes.
fn csv(stored: &Stored) -> String {
    let number = |number: Option<u64>| number.map(|n| n.to_string()).unwrap_or_default();
    let columns = [
        ("hours", stored.hours.to_string()),
        ("first_hour", number(stored.first_hour)),
        ("last_hour", number(stored.last_hour)),
        ("flows", stored.flows.to_string()),
        ("bytes_tx", stored.bytes_tx.to_string()),
        ("bytes_rx", stored.bytes_rx.to_string()),
        ("disk_bytes", number(stored.disk_bytes)),
    ];
    let names = columns.each_ref().map(|(name, _)| *name).join(",");
    let values = columns.map(|(_, value)| value).join(",");
    format!("{names}\n{values}\n")
}

fn table(stored: &Stored) -> String {
    let hours = match (stored.first_hour, stored.last_hour) {
        (Some(first), Some(last)) => format!(
            "{}, from {} to {}",
            stored.hours,
            hour_name(first),
            hour_name(last)
        ),
        _ => "none".into(),
    };
    let mut lines = vec![
        ("hours", hours),
        ("flows", stored.flows.to_string()),
        ("bytes_tx", stored.bytes_tx.to_string()),
        ("bytes_rx", stored.bytes_rx.to_string()),
    ];
    if let Some(bytes) = stored.disk_bytes {
        lines.push(("disk bytes", bytes.to_string()));
    }
    let line = |(name, value): (&str, String)| format!("{name:<12}{value}\n");
    lines.into_iter().map(line).collect()
}

/// The size of all files below `dir`. Skips a file system's `lost+found`, which may not be readable.
fn bytes_of(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for found in std::fs::read_dir(dir)? {
        let found = found?;
        if is_lost_and_found(&found) {
            continue;
        }
        let data = found.metadata()?;
        bytes += match data.is_dir() {
            true => bytes_of(&found.path())?,
            false => data.len(),
        };
    }
    Ok(bytes)
}
