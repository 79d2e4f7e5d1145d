//! The records of CSV (RFC 4180), which can be on several lines, each with the line that it begins on.
//!
//! A quote that is left open would make one field of all that follows up to the next quote. So this is
//! stricter than most readers: behind a closing quote comes a comma or the end of the line, or the field
//! was not meant to be quoted, and its line is refused.

use std::io::{self, Read};

use memchr::{memchr, memchr3};

use super::window::Window;
use super::{InputError, Place, Refused, newlines};

/// Why a line is refused.
pub(super) const UNCLOSED: &str = "the quote is not closed";
const LOOSE: &str = "text after a closing quote; within a quoted field, a quote is written twice";

/// The records of a CSV file. Content alone decides what they are, not how it comes.
pub(super) struct Records<R> {
    window: Window<R>,
    /// The line on which the window begins.
    line: u64,
    /// The last record, and how long its text is.
    fields: Fields,
    taken: usize,
}

/// The fields of a record, one after the other, and where each of them ends.
#[derive(Default)]
pub(super) struct Fields {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Where the last of them begins in the text.
    last: usize,
}

#[derive(Default)]
pub(super) struct Record<'a> {
    pub(super) line: u64,
    /// As it is in the file.
    pub(super) text: &'a [u8],
    /// Where the last field begins in the text.
    pub(super) last_field: usize,
    bytes: &'a [u8],
    ends: &'a [usize],
}

impl<'a> Record<'a> {
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

/// Why there is no record.
#[derive(Clone, Copy, Debug, PartialEq)]
enum NoRecord {
    /// Its end is not in the text.
    Unfinished,
    /// The same, within quotes.
    Unclosed,
    /// Something comes after a quote that would close the field, here.
    Loose(usize),
}

impl Fields {
    /// Reads the record at the beginning of `text`; returns how long it is, without the end of its line.
    /// Nothing comes behind the text of a `last` one.
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

    /// Reads a field from behind its opening quote; returns where what follows it is.
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

    /// Appends a part of a field that is at `at`; returns where it ends.
    fn push(&mut self, part: &[u8], at: usize) -> usize {
        self.bytes.extend_from_slice(part);
        at + part.len()
    }

    fn record<'a>(&'a self, text: &'a [u8], line: u64) -> Record<'a> {
        Record {
            line,
            text,
            last_field: self.last,
            bytes: &self.bytes,
            ends: &self.ends,
        }
    }

    /// The one record that `text` is.
    pub(super) fn read_line<'a>(&'a mut self, text: &'a [u8], line: u64) -> Option<Record<'a>> {
        let length = self.parse(text, true).ok()?;
        (length == text.len()).then(|| self.record(text, line))
    }
}

impl<R: Read> Records<R> {
    /// Begins on `line`.
    pub(super) fn new(window: Window<R>, line: u64) -> Records<R> {
        Records {
            window,
            line,
            fields: Fields::default(),
            taken: 0,
        }
    }

    /// The next record; or a line that is none, after which reading goes on.
    pub(super) fn next(&mut self) -> io::Result<Option<Result<Record<'_>, Refused>>> {
        self.consume(self.taken);
        self.taken = 0;
        if !self.skip_line_ends()? {
            return Ok(None);
        }
        let length = loop {
            let text = self.window.text();
            match self.fields.parse(text, self.window.has_ended()) {
                Ok(length) => break length,
                Err(NoRecord::Loose(at)) if !text[..at].contains(&b'\n') => {
                    return self.refuse(LOOSE).map(|refused| Some(Err(refused)));
                }
                Err(why) if self.is_final(why) => {
                    return self.refuse(UNCLOSED).map(|refused| Some(Err(refused)));
                }
                Err(_) => self.window.fill()?,
            }
        };
        self.taken = length;
        let text = &self.window.text()[..length];
        Ok(Some(Ok(self.fields.record(text, self.line))))
    }

    /// Goes back behind the first line of the record that was read last, which was none.
    pub(super) fn take_first_line_only(&mut self) {
        let text = &self.window.text()[..self.taken];
        self.taken = memchr(b'\n', text).unwrap_or(self.taken);
    }

    /// The same where all have to be records, each on a line; an empty one at the end.
    pub(super) fn next_of_good(&mut self) -> Result<Record<'_>, InputError> {
        let wrong = |place: Place, why: &str| InputError::Malformed(format!("{place}: {why}"));
        match self.next()? {
            None => Ok(Record::default()),
            Some(Err(refused)) => Err(wrong(refused.place, &refused.why)),
            Some(Ok(record)) if record.text.contains(&b'\n') => {
                Err(wrong(Place::Line(record.line), UNCLOSED))
            }
            Some(Ok(record)) => Ok(record),
        }
    }

    /// Whether reading on would not make a record of it.
    fn is_final(&self, why: NoRecord) -> bool {
        matches!(why, NoRecord::Loose(_)) || self.window.has_ended() || self.window.is_full()
    }

    fn consume(&mut self, bytes: usize) {
        self.line += newlines(&self.window.text()[..bytes]);
        self.window.consume(bytes);
    }

    /// Whether anything comes after them.
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

    /// Reads past the line, since no record begins on it. The next one may be a record: of a quote that
    /// is left open, it is not known where it should have been closed.
    fn refuse(&mut self, why: &str) -> io::Result<Refused> {
        let end = loop {
            let text = self.window.text();
            match memchr(b'\n', text) {
                Some(end) => break end,
                None if self.window.has_ended() => break text.len(),
                None if self.window.is_full() => return self.window.pass_line(self.line),
                None => self.window.fill()?,
            }
        };
        let text = &self.window.text()[..end];
        let refused = Refused {
            place: Place::Line(self.line),
            text: String::from_utf8_lossy(text.trim_ascii_end()).into_owned(),
            why: why.into(),
        };
        self.window.consume(end);
        Ok(refused)
    }
}
#[cfg(test)]
mod tests {
    use super::super::window::{BLOCK_BYTES, Pace};
    use super::*;

    /// A line for each record, or for each line that is none.
    fn read(text: &[u8], pace: Pace) -> Vec<(u64, String)> {
        let mut records = Records::new(Window::new(text, pace), 1);
        let mut all = Vec::new();
        while let Some(next) = records.next().unwrap() {
            all.push(match next {
                Ok(record) => {
                    let fields: Vec<_> = record.fields().map(String::from_utf8_lossy).collect();
                    (record.line, fields.join("|"))
                }
                Err(Refused { place, text, why }) => match place {
                    Place::Line(line) => (line, format!("{text}: {why}")),
                    Place::Flow(_) => panic!("{place}"),
                },
            });
        }
        all
    }

    fn lines(text: &str) -> Vec<u64> {
        let read = read(text.as_bytes(), Pace::Blocks);
        read.into_iter().map(|(line, _)| line).collect()
    }

    #[test]
    fn every_record_has_the_line_that_it_begins_on() {
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
    fn a_quote_that_is_not_closed_costs_its_line() {
        let open = "3|a|\"b: the quote is not closed".replace('|', ",");
        for (text, expected) in [
            ("h\n3,a,\"b\n4,a\n5,a\n", &["h", &open, "4|a", "5|a"][..]),
            ("h\n3,a,\"b\r\n4,a", &["h", &open, "4|a"]),
            ("h\n3,a,\"b", &["h", &open]),
            ("h\n3,a,\"b\"", &["h", "3|a|b"]),
            ("h\n3,a,\"b\"\"\"\n\"\"", &["h", "3|a|b\"", ""]),
        ] {
            let lines: Vec<_> = (1..).zip(expected.iter().map(|&e| e.to_owned())).collect();
            assert_eq!(read(text.as_bytes(), Pace::Blocks), lines, "{text}");
            assert_eq!(read(text.as_bytes(), Pace::AsItComes), lines, "{text}");
        }
        // Also where so much follows that the end is not in sight.
        let text = format!("h\n3,a,\"b\n{}", "4,a\n".repeat(BLOCK_BYTES));
        let read = read(text.as_bytes(), Pace::Blocks);
        assert_eq!(read.len(), BLOCK_BYTES + 2);
        assert_eq!(read[1..3], [(2, open), (3, "4|a".into())]);
    }

    /// The limit is the same however the input comes.
    #[test]
    fn a_record_is_as_long_as_what_may_be_in_memory() {
        for (length, is_record) in [(BLOCK_BYTES - 1, true), (BLOCK_BYTES, false)] {
            let text = format!("h\n{}\nx\n", "1".repeat(length));
            for pace in [Pace::Blocks, Pace::AsItComes] {
                let read = read(text.as_bytes(), pace);
                assert_eq!((read[1].0, read[1].1.len() == length), (2, is_record));
                assert_eq!(read[2..], [(3, "x".into())]);
            }
        }
        let fields = ",".repeat(BLOCK_BYTES - 1);
        let expected = fields.replace(',', "|");
        assert_eq!(read(fields.as_bytes(), Pace::Blocks), [(1, expected)]);
    }
}
