//! A header with the six names, then a flow a record, which can be on several lines.

use std::io::{self, Read};

use csv::{ByteRecord, ErrorKind, ReaderBuilder};

use super::window::{BLOCK_BYTES, Window};
use super::{Fault, InputError, Place, Sink, Unit, newlines, push_json_string};
use crate::domain::Field;

/// What CSV needs.
const HEADER: &str = "one line with src_app, dest_app, vpc_id, bytes_tx, bytes_rx and hour has to come \
                      first, in any order (a VPC flow log without its header needs \
                      --format vpc-flow-logs)";

/// Reads a header that is on `line`, and what follows.
pub(super) fn read(
    window: Window<impl Read>,
    line: u64,
    sink: &mut dyn Sink,
) -> Result<(), InputError> {
    let mut records = Records::new(window, line);
    let columns = columns(records.header()?)?;
    let mut record = ByteRecord::new();
    let mut text = String::new();
    while let Some(line) = records.next(&mut record)? {
        text.clear();
        let fault = write_json(&mut text, &columns, &record).err();
        if fault.is_some() {
            let lossy = record.iter().map(String::from_utf8_lossy);
            text = lossy.collect::<Vec<_>>().join(",");
        }
        let unit = Unit {
            place: Place::Line(line),
            text: &text,
            fault: fault.map(Fault::Wrong),
        };
        if sink.flow(unit).is_break() {
            break;
        }
    }
    Ok(())
}

/// The records of a CSV file, each with its line.
pub(super) struct Records<R> {
    csv: csv::Reader<Bounded<R>>,
    /// Before the header.
    lines_before: u64,
}

impl<R: Read> Records<R> {
    /// Begins with a header that is on `line`.
    pub(super) fn new(input: R, line: u64) -> Records<R> {
        let input = Bounded {
            input,
            left: BLOCK_BYTES,
            chunk: Vec::new(),
            end: 0,
        };
        Records {
            csv: ReaderBuilder::new().flexible(true).from_reader(input),
            lines_before: line - 1,
        }
    }

    pub(super) fn header(&mut self) -> Result<&ByteRecord, InputError> {
        self.csv.byte_headers().map_err(malformed)
    }

    /// Reads the next record, and returns the line that it begins on.
    pub(super) fn next(&mut self, record: &mut ByteRecord) -> Result<Option<u64>, InputError> {
        // Of two bytes that end a line, the crate leaves the second to the next record.
        let line_feed_is_due = u64::from(self.last_byte() == Some(b'\r'));
        let begin = self.lines_before + self.csv.position().line() + line_feed_is_due;
        self.csv.get_mut().left = BLOCK_BYTES;
        match self.csv.read_byte_record(record) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) if self.csv.get_ref().left == 0 => {
                let what = format!("line {begin}: {}", malformed(error));
                return Err(InputError::Malformed(what));
            }
            Err(error) => return Err(malformed(error)),
        }
        // Not the position of the record: that is before the blank lines in front of it.
        let end = self.lines_before + self.csv.position().line();
        let is_counted = u64::from(self.last_byte() == Some(b'\n'));
        Ok(Some(end - newlines(record.as_slice()) - is_counted))
    }

    /// The last byte that was taken, which is in the last chunk.
    fn last_byte(&self) -> Option<u8> {
        let Bounded { chunk, end, .. } = self.csv.get_ref();
        let ahead = usize::try_from(end - self.csv.position().byte()).ok()?;
        chunk.get(chunk.len().checked_sub(ahead + 1)?).copied()
    }
}

fn malformed(error: csv::Error) -> InputError {
    match error.into_kind() {
        ErrorKind::Io(error) => InputError::Io(error),
        kind => InputError::Malformed(format!("{kind:?}")),
    }
}

fn columns(header: &ByteRecord) -> Result<Vec<Field>, InputError> {
    let column = |name| {
        Field::from_name(name).ok_or_else(|| {
            let name = String::from_utf8_lossy(name);
            InputError::Malformed(format!(
                "read as CSV, its header has {name:?}, which no flow has; {HEADER}"
            ))
        })
    };
    let columns: Vec<Field> = header.iter().map(column).collect::<Result<_, _>>()?;
    let missing = Field::ALL
        .into_iter()
        .find(|field| !columns.contains(field));
    match missing {
        None => Ok(columns),
        Some(missing) => Err(InputError::Malformed(format!(
            "read as CSV, its header has no {}; {HEADER}",
            missing.name()
        ))),
    }
}

/// Lets through so many bytes until it is allowed more.
struct Bounded<R> {
    input: R,
    left: usize,
    /// What was read last, and where in the input it ends.
    chunk: Vec<u8>,
    end: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            let what = format!("a record of more than {BLOCK_BYTES} bytes; is a quote left open?");
            return Err(io::Error::other(what));
        }
        let most = buffer.len().min(self.left);
        let read = self.input.read(&mut buffer[..most])?;
        if read > 0 {
            self.chunk.clear();
            self.chunk.extend_from_slice(&buffer[..read]);
        }
        self.left -= read;
        self.end += read as u64;
        Ok(read)
    }
}

/// Appends the flow of `record` as JSON; where it says why there is none, it may have appended some.
fn write_json(text: &mut String, columns: &[Field], record: &ByteRecord) -> Result<(), String> {
    if record.len() != columns.len() {
        return Err(format!(
            "{} columns, where the header has {}",
            record.len(),
            columns.len()
        ));
    }
    for (field, value) in columns.iter().zip(record) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_has_the_line_that_it_begins_on() {
        for (text, expected) in [
            ("a\n1\n2\n3", &[2, 3, 4][..]),
            ("a\r\n1\r\n2\r\n3", &[2, 3, 4]),
            ("a\n\n1\n\n\n2", &[3, 6]),
            ("a\r\n\r\n1\r\n\r\n\r\n2\r\n", &[3, 6]),
            ("a\n\"1\n1\"\n2\n\"3\r\n3\"", &[2, 4, 5]),
            ("a\n", &[]),
        ] {
            let text = text.replace(['1', '2', '3'], &"x".repeat(5000));
            let mut records = Records::new(text.as_bytes(), 1);
            let mut record = ByteRecord::new();
            let mut lines = Vec::new();
            records.header().unwrap();
            while let Some(line) = records.next(&mut record).unwrap() {
                lines.push(line);
            }
            assert_eq!(lines, expected);
        }
    }
}
