//! A header with the six names, then a flow a record, which can be on several lines.

use std::io::Read;
use std::ops::ControlFlow;

use super::records::{Record, Records};
use super::window::Window;
use super::{Fault, InputError, Place, Sink, Unit, push_json_string};
use crate::domain::Field;

/// What CSV needs.
const HEADER: &str = "one line with src_app, dest_app, vpc_id, bytes_tx, bytes_rx and hour has to come \
                      first, in any order (a VPC flow log without its header needs \
                      --format vpc-flow-logs)";

/// Of a name that is not known.
const SHOWN_CHARS_MAX: usize = 100;

/// Reads a header that is on `line`, and what follows.
pub(super) fn read(
    window: Window<impl Read>,
    line: u64,
    sink: &mut dyn Sink,
) -> Result<(), InputError> {
    let first_line = window.text().split(|&byte| byte == b'\n').next();
    if !is_text(first_line.unwrap_or_default()) {
        let what = "this is not text in UTF-8; of compressed files, gzip and zstd can be read";
        return Err(InputError::Malformed(what.into()));
    }
    let mut records = Records::new(window, line);
    let columns = columns(&records.next_of_good()?)?;
    let mut text = String::new();
    while let Some(next) = records.next()? {
        let record = match next {
            Ok(record) => record,
            Err(refused) => match sink.refused(refused) {
                ControlFlow::Continue(()) => continue,
                ControlFlow::Break(()) => break,
            },
        };
        text.clear();
        let fault = write_json(&mut text, &columns, &record).err();
        if fault.is_some() {
            let lossy = record.fields().map(String::from_utf8_lossy);
            text = lossy.collect::<Vec<_>>().join(",");
        }
        let unit = Unit {
            place: Place::Line(record.line),
            text: &text,
            fault: fault.map(Fault::Wrong),
        };
        if sink.flow(unit).is_break() {
            break;
        }
    }
    Ok(())
}

fn is_text(line: &[u8]) -> bool {
    let is_none =
        |c: char| c == char::REPLACEMENT_CHARACTER || c.is_control() && !c.is_whitespace();
    !String::from_utf8_lossy(line).contains(is_none)
}

fn columns(header: &Record<'_>) -> Result<Vec<Field>, InputError> {
    let wrong =
        |what: &str| InputError::Malformed(format!("read as CSV, its header has {what}; {HEADER}"));
    let column = |name| {
        Field::from_name(name).ok_or_else(|| {
            let name = String::from_utf8_lossy(name);
            let begin: String = name.chars().take(SHOWN_CHARS_MAX).collect();
            wrong(&format!("{begin:?}, which no flow has"))
        })
    };
    let columns: Vec<Field> = header.fields().map(column).collect::<Result<_, _>>()?;
    for field in Field::ALL {
        match columns.iter().filter(|&&column| column == field).count() {
            0 => return Err(wrong(&format!("no {}", field.name()))),
            1 => {}
            _ => return Err(wrong(&format!("{} twice", field.name()))),
        }
    }
    Ok(columns)
}

/// Appends the flow of `record` as JSON; where it says why there is none, it may have appended some.
fn write_json(text: &mut String, columns: &[Field], record: &Record<'_>) -> Result<(), String> {
    if record.len() != columns.len() {
        return Err(format!(
            "{} columns, where the header has {}",
            record.len(),
            columns.len()
        ));
    }
    for (field, value) in columns.iter().zip(record.fields()) {
        let name = field.name();
        let value = std::str::from_utf8(value).map_err(|_| format!("{name}: not UTF-8"))?;
        text.push(if text.is_empty() { '{' } else { ',' });
        text.push('"');
        text.push_str(name);
        text.push_str("\":");
        let is_number = matches!(field, Field::BytesTx | Field::BytesRx | Field::Hour);
        if is_number && !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
            // JSON has no leading zeros, and spreadsheets do.
            let digits = value.trim_start_matches('0');
            text.push_str(if digits.is_empty() { "0" } else { digits });
        } else {
            // Where it should have been a number, the decoder says so.
            push_json_string(text, value);
        }
    }
    text.push('}');
    Ok(())
}
