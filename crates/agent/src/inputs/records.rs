//! CSV records (RFC 4180), which may span lines, each with the number of its first line.
//!
//! An unclosed quote would make one field of everything up to the next quote. So this parser is stricter than
//! most: if a closing quote is followed by anything but a comma or a line end, the line is refused.

use std::io::{self, Read};

use memchr::{memchr, memchr3};

use super::window::Window;
use super::{InputError, Location, RejectedFlow, newlines};

/// A line that is refused, and the reason.
pub(super) const UNCLOSED: &str = "the quote is not closed";
const LOOSE: &str = "text after a closing quote; within a quoted field, a quote is written twice";

/// Reads the records of a CSV file. The result depends only on the content, not on the sizes of reads.
pub(super) struct CsvRecords<R> {
    window: Window<R>,
    /// The line of the first byte of the window.
    line: u64,
    /// The last record, and the length of its text.
    fields: Fields,
    record_bytes: usize,
}

/// The fields of a record: their concatenated values, and the end of each.
#[derive(Default)]
pub(super) struct Fields {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// The offset of the last field in the text.
    last: usize,
}

#[derive(Default)]
pub(super) struct CsvRecord<'a> {
    pub(super) line: u64,
    /// The original text.
    pub(super) text: &'a [u8],
    /// The offset of the last field in the text.
    pub(super) last_field: usize,
    bytes: &'a [u8],
    ends: &'a [usize],
}

impl<'a> CsvRecord<'a> {
    pub(super) fn fields(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let bytes = self.bytes;
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(self.ends)
            .map(move |(start, &end)| &bytes[start..end])
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }
}

/// The reason why parsing gave no record.
#[derive(Clone, Copy, Debug, PartialEq)]
enum NoRecord {
    /// The end of the record is not in the text.
    Unfinished,
    /// The same, inside quotes.
    Unclosed,
    /// A closing quote is followed by something else at this position.
    Loose(usize),
}

impl Fields {
    /// Parses the record at the start of `text` and returns its length without the line end. With `is_last`,
    /// no text follows.
    fn parse(&mut self, text: &[u8], is_last: bool) -> Result<usize, NoRecord> {
        self.bytes.clear();
        self.ends.clear();
        let mut at = 0;
        loop {
            self.last = at;
            at = match text.get(at) {
                Some(b'"') => self.parse_quoted(text, at + 1, is_last)?,
                _ => match memchr3(b',', b'\n', b'\r', &text[at..]) {
                    Some(length) => self.push(&text[at..at + length], at),
                    None if is_last => self.push(&text[at..], at),
                    None => return Err(NoRecord::Unfinished),
                },
            };
            self.ends.push(self.bytes.len());
            if text.get(at) != Some(&b',') {
                return Ok(at);
            }
            at += 1;
        }
    }

    /// Parses a field after its opening quote, and returns the position after the closing one.
    fn parse_quoted(&mut self, text: &[u8], at: usize, is_last: bool) -> Result<usize, NoRecord> {
        let mut at = at;
        loop {
            let length = memchr(b'"', &text[at..]).ok_or(NoRecord::Unclosed)?;
            at = self.push(&text[at..at + length], at) + 1;
            match text.get(at) {
                Some(b'"') => at = self.push(b"\"", at),
                Some(b',' | b'\n' | b'\r') => return Ok(at),
                None if is_last => return Ok(at),
                None => return Err(NoRecord::Unfinished),
                Some(_) => return Err(NoRecord::Loose(at)),
            }
        }
    }

    /// Appends a part of a field at position `at`, and returns its end.
    fn push(&mut self, part: &[u8], at: usize) -> usize {
        self.bytes.extend_from_slice(part);
        at + part.len()
    }

    fn record<'a>(&'a self, text: &'a [u8], line: u64) -> CsvRecord<'a> {
        CsvRecord {
            line,
            text,
            last_field: self.last,
            bytes: &self.bytes,
            ends: &self.ends,
        }
    }

    /// Parses `text` as a single record.
    pub(super) fn read_line<'a>(&'a mut self, text: &'a [u8], line: u64) -> Option<CsvRecord<'a>> {
        let length = self.parse(text, true).ok()?;
        (length == text.len()).then(|| self.record(text, line))
    }
}

impl<R: Read> CsvRecords<R> {
    /// The first record is on line `line`.
    pub(super) fn new(window: Window<R>, line: u64) -> CsvRecords<R> {
        CsvRecords {
            window,
            line,
            fields: Fields::default(),
            record_bytes: 0,
        }
    }

    /// The next record, or the next line that is not a record. Reading can continue in both cases.
    pub(super) fn next(&mut self) -> io::Result<Option<Result<CsvRecord<'_>, RejectedFlow>>> {
        self.consume(self.record_bytes);
        self.record_bytes = 0;
        if !self.skip_line_ends()? {
            return Ok(None);
        }
        let length = loop {
            let text = self.window.text();
            // It was the incomplete last line of a growing file, which the next run reads.
            if text.is_empty() && self.window.has_ended() {
                return Ok(None);
            }
            match self.fields.parse(text, self.window.has_ended()) {
                Ok(length) => break length,
                Err(NoRecord::Loose(at)) if !text[..at].contains(&b'\n') => {
                    return self.refuse(LOOSE).map(|refused| refused.map(Err));
                }
                Err(why) if self.is_final(why) => {
                    return self.refuse(UNCLOSED).map(|refused| refused.map(Err));
                }
                Err(_) => self.window.fill()?,
            }
        };
        self.record_bytes = length;
        let text = &self.window.text()[..length];
        Ok(Some(Ok(self.fields.record(text, self.line))))
    }

    /// Rewinds to the second line of the record that was read last, which was invalid.
    pub(super) fn rewind_to_second_line(&mut self) {
        let text = &self.window.text()[..self.record_bytes];
        self.record_bytes = memchr(b'\n', text).unwrap_or(self.record_bytes);
    }

    /// Like [`CsvRecords::next`], for input in which every record is valid and on one line. At the end, returns an
    /// empty record.
    pub(super) fn next_of_good(&mut self) -> Result<CsvRecord<'_>, InputError> {
        let wrong =
            |location: Location, why: &str| InputError::Malformed(format!("{location}: {why}"));
        match self.next()? {
            None => Ok(CsvRecord::default()),
            Some(Err(refused)) => Err(wrong(refused.location, &refused.why)),
            Some(Ok(record)) if record.text.contains(&b'\n') => {
                Err(wrong(Location::Line(record.line), UNCLOSED))
            }
            Some(Ok(record)) => Ok(record),
        }
    }

    /// Whether no further input can make it a record.
    fn is_final(&self, why: NoRecord) -> bool {
        matches!(why, NoRecord::Loose(_)) || self.window.has_ended() || self.window.is_full()
    }

    fn consume(&mut self, bytes: usize) {
        self.line += newlines(&self.window.text()[..bytes]);
        self.window.consume(bytes);
    }

    /// Skips line ends. Returns whether any input follows.
    fn skip_line_ends(&mut self) -> io::Result<bool> {
        loop {
            let text = self.window.text();
            let is_end = |byte: &&u8| matches!(byte, b'\r' | b'\n');
            let ends = text.iter().take_while(is_end).count();
            let is_more = ends < text.len();
            self.consume(ends);
            if is_more || self.window.has_ended() {
                return Ok(is_more);
            }
            self.window.fill()?;
        }
    }

    /// Skips the line, since no record starts on it. The next line may be a record: it is unknown where an
    /// unclosed quote should have been closed. `None` if the line is the incomplete last one of a growing file.
    fn refuse(&mut self, why: &str) -> io::Result<Option<RejectedFlow>> {
        let end = loop {
            let text = self.window.text();
            match memchr(b'\n', text) {
                Some(end) => break end,
                None if self.window.has_ended() && text.is_empty() => return Ok(None),
                None if self.window.has_ended() => break text.len(),
                None if self.window.is_full() => return self.window.skip_line(self.line).map(Some),
                None => self.window.fill()?,
            }
        };
        let text = &self.window.text()[..end];
        let refused = RejectedFlow {
            location: Location::Line(self.line),
            text: String::from_utf8_lossy(text.trim_ascii_end()).into_owned(),
            why: why.into(),
        };
        self.window.consume(end);
        Ok(Some(refused))
    }
}

#[cfg(test)]
mod tests {
    use super::super::window::{BLOCK_BYTES, ReadMode};
    use super::*;

    /// One line of result for each record and for each line that is not a record.
    fn read(text: &[u8], mode: ReadMode) -> Vec<(u64, String)> {
        let mut records = CsvRecords::new(Window::new(text, mode), 1);
        let mut all = Vec::new();
        while let Some(next) = records.next().unwrap() {
            all.push(match next {
                Ok(record) => {
                    let fields: Vec<_> = record.fields().map(String::from_utf8_lossy).collect();
                    (record.line, fields.join("|"))
                }
                Err(RejectedFlow {
                    location,
                    text,
                    why,
                }) => match location {
                    Location::Line(line) => (line, format!("{text}: {why}")),
                    Location::Flow(_) => panic!("{location}"),
                },
            });
        }
        all
    }

    fn lines(text: &str) -> Vec<u64> {
        let read = read(text.as_bytes(), ReadMode::FullBlocks);
        read.into_iter().map(|(line, _)| line).collect()
    }

    #[test]
    fn records_have_the_line_that_they_start_on() {
        for (text, expected) in [
            ("a\n1\n2\n3", &[1, 2, 3, 4][..]),
            ("a\r\n1\r\n2\r\n3", &[1, 2, 3, 4]),
            ("a\n\n1\n\n\n2", &[1, 3, 6]),
            ("a\r\n\r\n1\r\n\r\n\r\n2\r\n", &[1, 3, 6]),
            ("a\n\"1\n1\"\n2\n\"3\r\n3\"", &[1, 2, 4, 5]),
            ("\na\n", &[2]),
            ("", &[]),
        ] {
            let text = text.replace(['1', '2', '3'], &"x".repeat(50_000));
            assert_eq!(lines(&text), expected);
        }
    }

    #[test]
    fn an_unclosed_quote_affects_only_its_line() {
        let open = "3|a|\"b: the quote is not closed".replace('|', ",");
        for (text, expected) in [
            ("h\n3,a,\"b\n4,a\n5,a\n", &["h", &open, "4|a", "5|a"][..]),
            ("h\n3,a,\"b\r\n4,a", &["h", &open, "4|a"]),
            ("h\n3,a,\"b", &["h", &open]),
            ("h\n3,a,\"b\"", &["h", "3|a|b"]),
            ("h\n3,a,\"b\"\"\"\n\"\"", &["h", "3|a|b\"", ""]),
        ] {
            let lines: Vec<_> = (1..).zip(expected.iter().map(|&e| e.to_owned())).collect();
            assert_eq!(read(text.as_bytes(), ReadMode::FullBlocks), lines, "{text}");
            assert_eq!(
                read(text.as_bytes(), ReadMode::AsAvailable),
                lines,
                "{text}"
            );
        }
        // This also holds if so much text follows that the end of the record is not in the window.
        let text = format!("h\n3,a,\"b\n{}", "4,a\n".repeat(BLOCK_BYTES));
        let read = read(text.as_bytes(), ReadMode::FullBlocks);
        assert_eq!(read.len(), BLOCK_BYTES + 2);
        assert_eq!(read[1..3], [(2, open), (3, "4|a".into())]);
    }

    /// The limit does not depend on the sizes of reads.
    #[test]
    fn a_record_is_limited_to_the_window() {
        for (length, is_record) in [(BLOCK_BYTES - 1, true), (BLOCK_BYTES, false)] {
            let text = format!("h\n{}\nx\n", "1".repeat(length));
            for mode in [ReadMode::FullBlocks, ReadMode::AsAvailable] {
                let read = read(text.as_bytes(), mode);
                assert_eq!((read[1].0, read[1].1.len() == length), (2, is_record));
                assert_eq!(read[2..], [(3, "x".into())]);
            }
        }
        let fields = ",".repeat(BLOCK_BYTES - 1);
        let expected = fields.replace(',', "|");
        assert_eq!(
            read(fields.as_bytes(), ReadMode::FullBlocks),
            [(1, expected)]
        );
    }
}
