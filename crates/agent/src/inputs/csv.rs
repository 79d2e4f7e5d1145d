//! A header with the six names, then a flow a record, which can be on several lines.
//!
//! A header may come again, with its columns in another order: files are put one after the other. So
//! what is not a flow is looked at for a header before it is refused, also where the file before did not
//! end with a line break and the header is behind a flow. Nothing is read by the columns of another file.

use std::io::Read;
use std::ops::ControlFlow;

use super::pause::Stopped;
use super::records::{Fields, Record, Records, UNCLOSED};
use super::window::Window;
use super::{
    BYTE_ORDER_MARK, Fault, InputError, MAY_BE_CUT, Place, Refused, Sink, Text, Unit,
    push_json_string,
};
use flow::Field;
use flow::decode::lookalikes;

/// What CSV needs.
const HEADER: &str = "one line with src_app, dest_app, vpc_id, bytes_tx, bytes_rx and hour has to come \
                      first, in any order (a VPC flow log without its header needs \
                      --format vpc-flow-logs)";
/// Of a name that is not known.
const SHOWN_CHARS_MAX: usize = 100;
/// A line with so many of the six names in it is a header, or holds one.
const NAMES_OF_A_HEADER: usize = 3;
/// No header that can be used is longer.
const HEADER_BYTES_MAX: usize = 200;

type Columns = Vec<Field>;

/// Reads a header that is on `line`, and what follows.
pub(super) fn read(
    window: Window<impl Read>,
    line: u64,
    sink: &mut dyn Sink,
) -> Result<(), InputError> {
    let has_line_end = window.text().contains(&b'\n');
    let first_line = window.text().split(|&byte| byte == b'\n').next();
    let first_line = String::from_utf8_lossy(first_line.unwrap_or_default()).into_owned();
    let mut records = Records::new(window, line);
    let header = records.next_of_good().and_then(|header| {
        columns(&header).map_err(|why| {
            InputError::Malformed(format!("read as CSV, its header has {why}; {HEADER}"))
        })
    });
    let is_cut = !has_line_end && may_be_cut(&first_line);
    let columns = header.map_err(|error| match lookalikes::of_csv(&first_line) {
        _ if is_cut => InputError::Malformed(format!("read as CSV, {MAY_BE_CUT}; {HEADER}")),
        Some(lookalike) => InputError::Malformed(lookalike.to_string()),
        None => error,
    })?;
    let mut reader = CsvReader {
        columns,
        text: String::new(),
        sink,
    };
    loop {
        let next = match records.next() {
            Ok(Some(next)) => next,
            Ok(None) => break,
            Err(mut error) => {
                let header: Vec<_> = reader.columns.iter().map(|field| field.name()).collect();
                Stopped::put_header(&mut error, &header.join(","));
                return Err(error.into());
            }
        };
        let (step, is_stray) = match next {
            Ok(record) if reader.has_stray_quote(&record) => {
                let text = record.text.split(|&byte| byte == b'\n').next();
                let text = String::from_utf8_lossy(text.unwrap_or_default());
                let refused = Refused {
                    place: Place::Line(record.line),
                    text: text.trim_end().to_owned(),
                    why: UNCLOSED.into(),
                };
                (reader.take_refused(refused)?, true)
            }
            Ok(record) => (reader.take(&record)?, false),
            Err(refused) => (reader.take_refused(refused)?, false),
        };
        if is_stray {
            records.take_first_line_only();
        }
        if step.is_break() {
            break;
        }
    }
    Ok(())
}

struct CsvReader<'a> {
    columns: Columns,
    /// The last flow, as JSON.
    text: String,
    sink: &'a mut dyn Sink,
}

impl CsvReader<'_> {
    fn take(&mut self, record: &Record<'_>) -> Result<ControlFlow<()>, InputError> {
        if is_numeric(&self.columns, record) {
            return match record.text.contains(&b'\n') && self.holds_a_row(record) {
                true => Ok(self.refuse_lines(record)),
                false => Ok(self.emit(record)),
            };
        }
        if let Some(header) = header_in(record.text) {
            return self.take_header(record.text, record.line, header);
        }
        if has_words_for_numbers(&self.columns, record) {
            return Err(InputError::Malformed(format!(
                "line {}: this looks like the header of another file, since it has words where numbers are \
                 due; nothing below it is read by the columns of before; {HEADER}",
                record.line
            )));
        }
        Ok(match record.text.contains(&b'\n') {
            true => self.refuse_lines(record),
            false => self.emit(record),
        })
    }

    /// A line that is no record may hold a header all the same.
    fn take_refused(&mut self, refused: Refused) -> Result<ControlFlow<()>, InputError> {
        match (header_in(refused.text.as_bytes()), refused.place) {
            (Some(header), Place::Line(line)) => {
                self.take_header(refused.text.as_bytes(), line, header)
            }
            _ => Ok(self.sink.refused(refused)),
        }
    }

    /// From a header on, its columns count; what stands before it on its line is a record by the columns
    /// of before.
    fn take_header(
        &mut self,
        text: &[u8],
        line: u64,
        header: Result<(usize, Columns), String>,
    ) -> Result<ControlFlow<()>, InputError> {
        let (begin, columns) = header.map_err(|why| {
            InputError::Malformed(format!(
                "line {line}: there is a second header in it, as where files are put one after the \
                 other; it {why}; {HEADER}"
            ))
        })?;
        let before = without_marks(&text[..begin]);
        let mut step = ControlFlow::Continue(());
        if !before.is_empty() {
            step = match Fields::default().read_line(before, line) {
                Some(record) => self.emit(&record),
                None => self.sink.refused(Refused {
                    place: Place::Line(line),
                    text: String::from_utf8_lossy(before).into_owned(),
                    why: UNCLOSED.into(),
                }),
            };
        }
        self.columns = columns;
        Ok(step)
    }

    fn emit(&mut self, record: &Record<'_>) -> ControlFlow<()> {
        self.text.clear();
        let fault = write_json(&mut self.text, &self.columns, record).err();
        if fault.is_some() {
            let lossy = record.fields().map(String::from_utf8_lossy);
            self.text = lossy.collect::<Vec<_>>().join(",");
        } else if let Ok(text) = std::str::from_utf8(record.text) {
            self.sink.text(Text {
                text,
                last_field: record.last_field,
                last_is_whole: text.ends_with('"'),
                is_content: false,
            });
        }
        self.sink.flow(Unit {
            place: Place::Line(record.line),
            text: &self.text,
            fault: fault.map(Fault::Wrong),
        })
    }

    /// Refuses each line of a record that is on several.
    fn refuse_lines(&mut self, record: &Record<'_>) -> ControlFlow<()> {
        let (has, columns) = (record.len(), self.columns.len());
        for (line, text) in (record.line..).zip(record.text.split(|&byte| byte == b'\n')) {
            self.sink.refused(Refused {
                place: Place::Line(line),
                text: String::from_utf8_lossy(text.trim_ascii_end()).into_owned(),
                why: format!(
                    "part of a record that begins on line {} with a quote and goes over several lines; it \
                     has {has} columns, where the header has {columns}, or lines of it look like records",
                    record.line
                ),
            })?;
        }
        ControlFlow::Continue(())
    }

    /// Whether a field in quotes has swallowed a header.
    fn has_stray_quote(&self, record: &Record<'_>) -> bool {
        let mut lines = record.text.split(|&byte| byte == b'\n');
        record.text.contains(&b'\n') && lines.any(|line| header_in(line).is_some())
    }

    /// Whether a field in quotes has swallowed a record: one of the lines, but for the last, would be
    /// one if there were no quotes.
    fn holds_a_row(&self, record: &Record<'_>) -> bool {
        let is_digits = |value: &[u8]| {
            let value = value.trim_ascii();
            !value.is_empty() && value.iter().all(u8::is_ascii_digit)
        };
        let is_row = |line: &[u8]| {
            let line: Vec<u8> = line.iter().copied().filter(|&byte| byte != b'"').collect();
            let values = line.split(|&byte| byte == b',');
            values.clone().count() == self.columns.len()
                && values
                    .zip(&self.columns)
                    .all(|(value, &field)| !is_number(field) || is_digits(value))
        };
        let mut lines = record.text.split(|&byte| byte == b'\n').rev().skip(1);
        lines.any(is_row)
    }
}

/// Whether a line is the beginning of a header, in which the last name may be the beginning of one.
fn may_be_cut(line: &str) -> bool {
    let names: Vec<&str> = line
        .split(',')
        .map(|name| name.trim().trim_matches('"'))
        .collect();
    let Some((last, whole)) = names.split_last() else {
        return false;
    };
    let is_whole = |name: &&str| Field::from_name(name.as_bytes()).is_some();
    names.len() <= Field::ALL.len()
        && whole.iter().all(is_whole)
        && Field::ALL
            .iter()
            .any(|field| field.name().starts_with(last))
}

fn is_number(field: Field) -> bool {
    matches!(field, Field::BytesTx | Field::BytesRx | Field::Hour)
}

/// Whether `record` has the right number of columns, and digits where numbers are due.
fn is_numeric(columns: &[Field], record: &Record<'_>) -> bool {
    let mut fields = columns.iter().zip(record.fields());
    record.len() == columns.len()
        && fields.all(|(&field, value)| !is_number(field) || is_digits(value))
}

/// Whether each column of a number has a word of letters, as in a header with other names.
fn has_words_for_numbers(columns: &[Field], record: &Record<'_>) -> bool {
    let is_word = |value: &[u8]| {
        value.iter().any(u8::is_ascii_alphabetic) && !value.iter().any(u8::is_ascii_digit)
    };
    let mut fields = columns.iter().zip(record.fields());
    record.len() == columns.len()
        && fields.all(|(&field, value)| !is_number(field) || is_word(value))
}

fn is_digits(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(u8::is_ascii_digit)
}

/// Where on a line a header begins, and its columns; or what is wrong with it. `None` where there is
/// none.
fn header_in(line: &[u8]) -> Option<Result<(usize, Columns), String>> {
    let line = line.trim_ascii_end();
    let lower = line.to_ascii_lowercase();
    let places = |field: Field| memchr::memmem::find_iter(&lower, field.name());
    let has = |field: &Field| places(*field).next().is_some();
    if Field::ALL.iter().filter(|field| has(field)).count() < NAMES_OF_A_HEADER {
        return None;
    }
    let earliest = line.len().saturating_sub(HEADER_BYTES_MAX);
    let mut begins: Vec<usize> = Field::ALL.iter().flat_map(|&f| places(f)).collect();
    begins.retain(|&begin| begin >= earliest);
    begins.sort_unstable();
    let mut why = format!("has more than {HEADER_BYTES_MAX} bytes");
    for name in begins.into_iter().rev() {
        // With a quote before it, that can be the header's, or close the last value of the record.
        let quote = name.checked_sub(1).filter(|&at| line[at] == b'"');
        for begin in std::iter::once(name).chain(quote) {
            match Fields::default().read_line(&line[begin..], 0) {
                None => why = "has a quote that is not closed".into(),
                Some(header) => match columns(&header) {
                    Ok(columns) => return Some(Ok((begin, columns))),
                    Err(what) => why = format!("has {what}"),
                },
            }
        }
    }
    Some(Err(why))
}

fn columns(header: &Record<'_>) -> Result<Columns, String> {
    let column = |name| {
        Field::from_name(name).ok_or_else(|| {
            let name = String::from_utf8_lossy(name);
            let begin: String = name.chars().take(SHOWN_CHARS_MAX).collect();
            let meant = begin.trim().to_ascii_lowercase().replace([' ', '-'], "_");
            match Field::from_name(meant.as_bytes()) {
                Some(field) => format!("{begin:?}, which has to be written {}", field.name()),
                None => format!("{begin:?}, which no flow has"),
            }
        })
    };
    let columns: Columns = header.fields().map(column).collect::<Result<_, _>>()?;
    for field in Field::ALL {
        match columns.iter().filter(|&&column| column == field).count() {
            0 => return Err(format!("no {}", field.name())),
            1 => {}
            _ => return Err(format!("{} twice", field.name())),
        }
    }
    Ok(columns)
}

/// Without the byte order marks around it.
fn without_marks(mut text: &[u8]) -> &[u8] {
    while let Some(rest) = text.strip_prefix(BYTE_ORDER_MARK) {
        text = rest;
    }
    while let Some(rest) = text.strip_suffix(BYTE_ORDER_MARK) {
        text = rest;
    }
    text
}

/// Appends the flow of `record` as JSON; where it says why there is none, it may have appended some.
fn write_json(text: &mut String, columns: &[Field], record: &Record<'_>) -> Result<(), String> {
    if record.len() > 1 && record.fields().all(<[u8]>::is_empty) {
        return Err("an empty row, as spreadsheets leave them below others".into());
    }
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
        if is_number(*field) && is_digits(value.as_bytes()) {
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
