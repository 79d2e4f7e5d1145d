//! The records of CSV, which can be on several lines, each with the line that it begins on.

use std::io::{self, Read};

use csv_core::{ReadRecordResult, Reader};

use super::window::Window;
use super::{InputError, Place, Refused, newlines};

/// The records of a CSV file. Content alone decides what they are, not how it comes.
pub(super) struct Records<R> {
    window: Window<R>,
    parser: Reader,
    /// The line on which the window begins.
    line: u64,
    /// The last record: its fields, one after the other, and where each of them ends.
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

#[derive(Default)]
pub(super) struct Record<'a> {
    pub(super) line: u64,
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

impl<R: Read> Records<R> {
    /// Begins on `line`.
    pub(super) fn new(window: Window<R>, line: u64) -> Records<R> {
        Records {
            window,
            parser: Reader::new(),
            line,
            bytes: vec![0; 1024],
            ends: vec![0; 16],
        }
    }

    /// The next record; or a line that is none, after which reading goes on.
    pub(super) fn next(&mut self) -> io::Result<Option<Result<Record<'_>, Refused>>> {
        if !self.skip_line_ends()? {
            return Ok(None);
        }
        let (mut read, mut length, mut fields) = (0, 0, 0);
        loop {
            let text = self.window.text();
            let rest = match &text[read..] {
                // The input ends here. So does the record, if a line can end here.
                [] => b"\n",
                rest => rest,
            };
            let (bytes, ends) = (&mut self.bytes[length..], &mut self.ends[fields..]);
            let (result, taken, written, ended) = self.parser.read_record(rest, bytes, ends);
            read += taken;
            length += written;
            fields += ended;
            match result {
                ReadRecordResult::Record => break,
                ReadRecordResult::OutputFull => self.bytes.resize(2 * self.bytes.len(), 0),
                ReadRecordResult::OutputEndsFull => self.ends.resize(2 * self.ends.len(), 0),
                _ if read > text.len() || self.window.is_full() => {
                    return self.refuse().map(|refused| Some(Err(refused)));
                }
                _ => self.window.fill()?,
            }
        }
        let text = self.window.text();
        let read = read.min(text.len());
        let line = self.line;
        self.line += newlines(&text[..read]);
        self.window.consume(read);
        Ok(Some(Ok(Record {
            line,
            bytes: &self.bytes[..length],
            ends: &self.ends[..fields],
        })))
    }

    /// The same where all have to be records; an empty one at the end.
    pub(super) fn next_of_good(&mut self) -> Result<Record<'_>, InputError> {
        match self.next()? {
            None => Ok(Record::default()),
            Some(record) => record.map_err(|refused| {
                InputError::Malformed(format!("{}: {}", refused.place, refused.why))
            }),
        }
    }

    /// Whether anything comes after them.
    fn skip_line_ends(&mut self) -> io::Result<bool> {
        loop {
            let text = self.window.text();
            let is_end = |byte: &&u8| matches!(byte, b'\r' | b'\n');
            let ends = text.iter().take_while(is_end).count();
            let is_more = ends < text.len();
            self.line += newlines(&text[..ends]);
            self.window.consume(ends);
            if is_more || self.window.has_ended() {
                return Ok(is_more);
            }
            self.window.fill()?;
        }
    }

    /// Reads past the line, since no record begins on it. The next one may be a record: of a quote that
    /// is left open, it is not known where it should have been closed.
    fn refuse(&mut self) -> io::Result<Refused> {
        self.parser.reset();
        let text = self.window.text();
        let end = match text.iter().position(|&byte| byte == b'\n') {
            None if self.window.is_full() => return self.window.pass_line(self.line),
            end => end.unwrap_or(text.len()),
        };
        let refused = Refused {
            place: Place::Line(self.line),
            text: String::from_utf8_lossy(text[..end].trim_ascii_end()).into_owned(),
            why: "the quote is not closed".into(),
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
