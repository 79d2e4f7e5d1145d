//! CSV: a header with the six names, then one flow per record; a record may span lines.
//!
//! Files may be concatenated, so a header may occur again, with its columns in a different order. Before a
//! record is refused, it is checked for a header. This includes a header after a flow on the same line, if
//! the previous file did not end with a line break. So no flow is read by the columns of another file.

use std::io::Read;
use std::ops::ControlFlow;

use super::pause::Stopped;
use super::records::{CsvRecord, CsvRecords, Fields, UNCLOSED};
use super::window::Window;
use super::{
    BYTE_ORDER_MARK, InputError, Location, MAY_BE_CUT, RawFlow, RecordText, RejectedFlow, Sink,
    Unusable, push_json_string,
};
use flow::Field;
use flow::decode::lookalikes;

/// The error for an input without a usable header.
const HEADER: &str = "one line with src_app, dest_app, vpc_id, bytes_tx, bytes_rx and hour must come \
                      first, in any order (a VPC flow log without its header needs \
                      --format vpc-flow-logs)";
/// Characters of an unknown name that an error shows.
const SHOWN_CHARS_MAX: usize = 100;
/// A line with at least this many of the six names contains a header.
const NAMES_OF_A_HEADER: usize = 3;
/// No valid header is longer.
const HEADER_BYTES_MAX: usize = 200;

type Columns = Vec<Field>;

/// Reads the header on line `line`, and the rest.
pub(super) fn read(
    window: Window<impl Read>,
    line: u64,
    sink: &mut dyn Sink,
) -> Result<(), InputError> {
    let has_line_end = window.text().contains(&b'\n');
    let first_line = window.text().split(|&byte| byte == b'\n').next();
    let first_line = String::from_utf8_lossy(first_line.unwrap_or_default()).into_owned();
    let mut records = CsvRecords::new(window, line);
    let header = first_columns(&mut records);
    let is_cut = !has_line_end && may_be_cut(&first_line);
    let columns = header.map_err(|error| match lookalikes::recognize_csv(&first_line) {
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
                Stopped::prepend_header(&mut error, &header.join(","));
                return Err(error.into());
            }
        };
        let (step, is_stray) = match next {
            Ok(record) if reader.has_stray_quote(&record) => {
                let text = record.text.split(|&byte| byte == b'\n').next();
                let text = String::from_utf8_lossy(text.unwrap_or_default());
                let refused = RejectedFlow {
                    location: Location::Line(record.line),
                    text: text.trim_end().to_owned(),
                    why: UNCLOSED.into(),
                };
                (reader.recover_header(refused)?, true)
            }
            Ok(record) => (reader.read_record(&record)?, false),
            Err(refused) => (reader.recover_header(refused)?, false),
        };
        if is_stray {
            records.rewind_to_second_line();
        }
        if step.is_break() {
            break;
        }
    }
    Ok(())
}

/// The columns of the first line. Files with only a header and no line break may come before it on its line.
fn first_columns(records: &mut CsvRecords<impl Read>) -> Result<Columns, InputError> {
    let (text, why) = match records.next()? {
        None => (Vec::new(), header_error(&CsvRecord::default())),
        Some(Err(refused)) => {
            let why = format!("{}: {}", refused.location, refused.why);
            (refused.text.into_bytes(), why)
        }
        Some(Ok(record)) if record.text.contains(&b'\n') => {
            let why = format!("{}: {UNCLOSED}", Location::Line(record.line));
            (Vec::new(), why)
        }
        Some(Ok(record)) => match columns(&record) {
            Ok(columns) => return Ok(columns),
            Err(_) => (record.text.to_vec(), header_error(&record)),
        },
    };
    match header_in(&text) {
        Some(Ok((begin, columns))) if without_headers(&text[..begin]).is_empty() => Ok(columns),
        _ => Err(InputError::Malformed(why)),
    }
}

fn header_error(header: &CsvRecord<'_>) -> String {
    let why = columns(header).err().unwrap_or_default();
    format!("read as CSV, its header has {why}; {HEADER}")
}

struct CsvReader<'a> {
    columns: Columns,
    /// The last flow, as JSON.
    text: String,
    sink: &'a mut dyn Sink,
}

impl CsvReader<'_> {
    fn read_record(&mut self, record: &CsvRecord<'_>) -> Result<ControlFlow<()>, InputError> {
        if is_numeric(&self.columns, record) {
            return match record.text.contains(&b'\n') && self.holds_a_row(record) {
                true => Ok(self.refuse_lines(record)),
                false => Ok(self.emit(record)),
            };
        }
        if let Some(header) = header_in(record.text) {
            return self.switch_header(record.text, record.line, header);
        }
        if has_words_for_numbers(&self.columns, record) {
            return Err(InputError::Malformed(format!(
                "line {}: this looks like the header of another file, since it has words instead of \
                 numbers; the lines below it are not read by the previous columns; {HEADER}",
                record.line
            )));
        }
        Ok(match record.text.contains(&b'\n') {
            true => self.refuse_lines(record),
            false => self.emit(record),
        })
    }

    /// A line that is not a valid record may still contain a header.
    fn recover_header(&mut self, refused: RejectedFlow) -> Result<ControlFlow<()>, InputError> {
        match (header_in(refused.text.as_bytes()), refused.location) {
            (Some(header), Location::Line(line)) => {
                self.switch_header(refused.text.as_bytes(), line, header)
            }
            _ => Ok(self.sink.refused(refused)),
        }
    }

    /// Switches to the columns of a header. The text before the header on its line is a record with the
    /// previous columns.
    fn switch_header(
        &mut self,
        text: &[u8],
        line: u64,
        header: Result<(usize, Columns), String>,
    ) -> Result<ControlFlow<()>, InputError> {
        let (start, columns) = header.map_err(|why| {
            InputError::Malformed(format!(
                "line {line}: there is a second header in it, as in files that were \
                 concatenated; it {why}; {HEADER}"
            ))
        })?;
        let before = without_headers(&text[..start]);
        let mut step = ControlFlow::Continue(());
        if !before.is_empty() {
            step = match Fields::default().read_line(before, line) {
                Some(record) => self.emit(&record),
                None => self.sink.refused(RejectedFlow {
                    location: Location::Line(line),
                    text: String::from_utf8_lossy(before).into_owned(),
                    why: UNCLOSED.into(),
                }),
            };
        }
        self.columns = columns;
        Ok(step)
    }

    fn emit(&mut self, record: &CsvRecord<'_>) -> ControlFlow<()> {
        self.text.clear();
        let unusable = write_json(&mut self.text, &self.columns, record).err();
        if unusable.is_some() {
            let lossy = record.fields().map(String::from_utf8_lossy);
            self.text = lossy.collect::<Vec<_>>().join(",");
        } else if let Ok(text) = std::str::from_utf8(record.text) {
            self.sink.text(RecordText {
                text,
                last_field: record.last_field,
                last_is_whole: text.ends_with('"'),
                is_content: false,
                last_column: self.columns.last().copied(),
            });
        }
        self.sink.flow(RawFlow {
            location: Location::Line(record.line),
            text: &self.text,
            unusable: unusable.map(Unusable::Invalid),
        })
    }

    /// Refuses each line of a record that spans several.
    fn refuse_lines(&mut self, record: &CsvRecord<'_>) -> ControlFlow<()> {
        let (has, columns) = (record.len(), self.columns.len());
        for (line, text) in (record.line..).zip(record.text.split(|&byte| byte == b'\n')) {
            self.sink.refused(RejectedFlow {
                location: Location::Line(line),
                text: String::from_utf8_lossy(text.trim_ascii_end()).into_owned(),
                why: format!(
                    "part of a record that starts on line {} with a quote and spans several lines; it \
                     has {has} columns, but the header has {columns}, or lines of it look like records",
                    record.line
                ),
            })?;
        }
        ControlFlow::Continue(())
    }

    /// Whether a quoted field contains a header.
    fn has_stray_quote(&self, record: &CsvRecord<'_>) -> bool {
        let mut lines = record.text.split(|&byte| byte == b'\n');
        record.text.contains(&b'\n') && lines.any(|line| header_in(line).is_some())
    }

    /// Whether a quoted field contains a record: a line that would be a record without the quotes and has a number
    /// inside them. If a quote is missing in one line and a later line has one too many, each numeric column is inside
    /// the quotes on the first or on the last of these lines.
    fn holds_a_row(&self, record: &CsvRecord<'_>) -> bool {
        let is_row = |values: &[LineValue]| {
            let numbers = || {
                let columns = values.iter().zip(&self.columns);
                columns.filter(|(_, field)| is_number(**field))
            };
            values.len() == self.columns.len()
                && numbers().all(|(value, _)| is_digits(value.text.trim_ascii()))
                && numbers().any(|(value, _)| value.is_quoted)
        };
        lines_without_quotes(record.text).any(|values| is_row(&values))
    }
}

/// The text between two commas of a line, without its quotes.
#[derive(Default)]
struct LineValue {
    text: Vec<u8>,
    /// Some of it is inside quotes.
    is_quoted: bool,
}

/// The values on each line of a record, as if it had no quotes.
fn lines_without_quotes(text: &[u8]) -> impl Iterator<Item = Vec<LineValue>> {
    #[derive(Clone, Copy, PartialEq)]
    enum At {
        FieldStart,
        Unquoted,
        Quoted,
        /// After a quote inside quotes, which closes the field unless another one follows.
        AfterQuote,
    }
    let mut at = At::FieldStart;
    text.split(|&byte| byte == b'\n').map(move |line| {
        let mut values = vec![LineValue::default()];
        for &byte in line {
            at = match (at, byte) {
                (At::Quoted, b'"') => At::AfterQuote,
                (At::FieldStart | At::AfterQuote, b'"') | (At::Quoted, _) => At::Quoted,
                (_, b',') => At::FieldStart,
                _ => At::Unquoted,
            };
            match (byte, values.last_mut()) {
                (b'"', _) => {}
                (b',', _) => values.push(LineValue::default()),
                (_, Some(value)) => {
                    value.text.push(byte);
                    value.is_quoted |= at == At::Quoted;
                }
                (_, None) => {}
            }
        }
        values
    })
}

/// Whether a line is the beginning of a header; the last name may be incomplete.
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

/// Whether `record` has the right number of columns, and digits in the numeric ones.
fn is_numeric(columns: &[Field], record: &CsvRecord<'_>) -> bool {
    let mut fields = columns.iter().zip(record.fields());
    record.len() == columns.len()
        && fields.all(|(&field, value)| !is_number(field) || is_digits(value))
}

/// Whether every numeric column has a word, as in a header with other names.
fn has_words_for_numbers(columns: &[Field], record: &CsvRecord<'_>) -> bool {
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

/// Finds a header in a line. Returns its offset in bytes and its columns, or the error in the header; `None` if the
/// line has no header.
fn header_in(line: &[u8]) -> Option<Result<(usize, Columns), String>> {
    let line = line.trim_ascii_end();
    let lower = line.to_ascii_lowercase();
    let locations = |field: Field| memchr::memmem::find_iter(&lower, field.name());
    let has = |field: &Field| locations(*field).next().is_some();
    if Field::ALL.iter().filter(|field| has(field)).count() < NAMES_OF_A_HEADER {
        return None;
    }
    let earliest = line.len().saturating_sub(HEADER_BYTES_MAX);
    let mut starts: Vec<usize> = Field::ALL.iter().flat_map(|&f| locations(f)).collect();
    starts.retain(|&start| start >= earliest);
    starts.sort_unstable();
    let mut why = format!("has more than {HEADER_BYTES_MAX} bytes");
    for name in starts.into_iter().rev() {
        // A quote before it may belong to the header, or close the last value of the record.
        let quote = name.checked_sub(1).filter(|&at| line[at] == b'"');
        for start in std::iter::once(name).chain(quote) {
            match Fields::default().read_line(&line[start..], 0) {
                None => why = "has a quote that is not closed".into(),
                Some(header) => match columns(&header) {
                    Ok(columns) => return Some(Ok((start, columns))),
                    Err(what) => why = format!("has {what}"),
                },
            }
        }
    }
    Some(Err(why))
}

fn columns(header: &CsvRecord<'_>) -> Result<Columns, String> {
    let column = |name| {
        Field::from_name(name).ok_or_else(|| {
            let name = String::from_utf8_lossy(name);
            let start: String = name.chars().take(SHOWN_CHARS_MAX).collect();
            let meant = start.trim().to_ascii_lowercase().replace([' ', '-'], "_");
            match Field::from_name(meant.as_bytes()) {
                Some(field) => format!("{start:?}, which must be written {}", field.name()),
                None => format!("{start:?}, which is not a field of a flow"),
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

/// Strips headers from the end: those of files without rows and without a line break.
fn without_headers(text: &[u8]) -> &[u8] {
    let mut text = without_marks(text);
    loop {
        // A header is not longer.
        let tail = text.len().saturating_sub(HEADER_BYTES_MAX);
        let Some(Ok((begin, _))) = header_in(&text[tail..]) else {
            return text;
        };
        text = without_marks(&text[..tail + begin]);
    }
}

/// Strips byte order marks at both ends.
fn without_marks(mut text: &[u8]) -> &[u8] {
    while let Some(rest) = text.strip_prefix(BYTE_ORDER_MARK) {
        text = rest;
    }
    while let Some(rest) = text.strip_suffix(BYTE_ORDER_MARK) {
        text = rest;
    }
    text
}

/// Appends the flow of `record` as JSON. On error, `text` may have a partial flow.
fn write_json(text: &mut String, columns: &[Field], record: &CsvRecord<'_>) -> Result<(), String> {
    if record.len() > 1 && record.fields().all(<[u8]>::is_empty) {
        return Err("an empty row, as spreadsheets leave below the others".into());
    }
    if record.len() != columns.len() {
        return Err(format!(
            "{} columns, but the header has {}",
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
            // JSON forbids leading zeros, but spreadsheets write them.
            let digits = value.trim_start_matches('0');
            text.push_str(if digits.is_empty() { "0" } else { digits });
        } else {
            // If a number is required, the decoder reports the error.
            push_json_string(text, value);
        }
    }
    text.push('}');
    Ok(())
}
