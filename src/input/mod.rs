//! Flows from a file or a pipe, one at a time: a JSON array, NDJSON or CSV.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::ops::ControlFlow;

use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::domain::Field;

/// Longest line of NDJSON; a flow has three names of 1 KiB at most.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// About as much for a record of CSV, which can be on several lines.
const RECORD_BYTES_MAX: usize = 1 << 20;
/// What CSV needs.
const HEADER: &str = "one line with src_app, dest_app, vpc_id, bytes_tx, bytes_rx and hour has to come \
                      first, in any order";

/// How inputs begin that are read as nonsense otherwise.
const NOT_TEXT: [(&[u8], &str); 4] = [
    (
        b"\x1F\x8B",
        "this is gzip; pipe it in: zcat FILE | flowtally send",
    ),
    (
        b"\x28\xB5\x2F\xFD",
        "this is zstd; pipe it in: zstdcat FILE | flowtally send",
    ),
    (
        b"\xFF\xFE",
        "this is UTF-16; pipe it in: iconv -f UTF-16 -t UTF-8 FILE | flowtally send",
    ),
    (
        b"\xFE\xFF",
        "this is UTF-16; pipe it in: iconv -f UTF-16 -t UTF-8 FILE | flowtally send",
    ),
];

/// How flows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputFormat {
    /// One array of flows.
    Json,
    /// A flow a line.
    Ndjson,
    /// A header with the six names, in any order, then a flow a line.
    Csv,
}

/// One flow of an input, not checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit<'a> {
    /// Where it is, as in `line 7`.
    pub place: String,
    /// Its JSON text; what there is of it, where there is a fault.
    pub text: &'a str,
    /// Why it is not a flow, where that shows already.
    pub fault: Option<String>,
}

/// Why the rest of an input cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Malformed(String),
}

/// Reads flows from `R`.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    format: Option<InputFormat>,
    /// Line ends that were skipped at the beginning.
    lines: u64,
}

impl<R: BufRead> Reader<R> {
    /// Without a `format`, the first character tells: `[` is JSON, `{` NDJSON, anything else CSV.
    pub fn new(input: R, format: Option<InputFormat>) -> Reader<R> {
        Reader {
            input,
            format,
            lines: 0,
        }
    }

    /// Hands every flow to `each`, until it breaks.
    pub fn read(
        mut self,
        mut each: impl FnMut(Unit<'_>) -> ControlFlow<()>,
    ) -> Result<(), InputError> {
        let sniffed = self.sniff()?;
        let format = self.format.unwrap_or(sniffed);
        match format {
            InputFormat::Json => read_json(self.input, &mut each),
            InputFormat::Ndjson => read_lines(self.input, self.lines, &mut each),
            InputFormat::Csv => read_csv(self.input, self.lines, &mut each),
        }
    }

    fn sniff(&mut self) -> Result<InputFormat, InputError> {
        loop {
            let some = self.input.fill_buf()?;
            let Some(first) = some.first() else {
                return Ok(InputFormat::Ndjson); // nothing
            };
            if let Some((_, what)) = NOT_TEXT.iter().find(|(start, _)| some.starts_with(start)) {
                return Err(InputError::Malformed((*what).to_owned()));
            }
            match first {
                b' ' | b'\t' | b'\r' => self.input.consume(1),
                b'\n' => {
                    self.lines += 1;
                    self.input.consume(1);
                }
                // A byte order mark, which some editors put there.
                0xEF if some.starts_with(b"\xEF\xBB\xBF") => self.input.consume(3),
                b'[' => return Ok(InputFormat::Json),
                b'{' => return Ok(InputFormat::Ndjson),
                _ => return Ok(InputFormat::Csv),
            }
        }
    }
}

type Each<'a> = &'a mut dyn FnMut(Unit<'_>) -> ControlFlow<()>;

fn read_json(input: impl Read, each: Each<'_>) -> Result<(), InputError> {
    struct Elements<'a> {
        each: Each<'a>,
        stopped: bool,
    }
    impl<'de> Visitor<'de> for &mut Elements<'_> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array of flows")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
            let mut number = 0;
            while let Some(element) = elements.next_element::<Box<RawValue>>()? {
                let unit = Unit {
                    place: format!("flow {number}"),
                    text: element.get(),
                    fault: None,
                };
                if (self.each)(unit).is_break() {
                    self.stopped = true;
                    return Err(serde::de::Error::custom("stopped"));
                }
                number += 1;
            }
            Ok(())
        }
    }
    impl<'de> DeserializeSeed<'de> for &mut Elements<'_> {
        type Value = ();
        fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
            input.deserialize_seq(self)
        }
    }
    let mut elements = Elements {
        each,
        stopped: false,
    };
    let mut json = serde_json::Deserializer::from_reader(input);
    match elements.deserialize(&mut json).and_then(|()| json.end()) {
        Ok(()) => Ok(()),
        Err(_) if elements.stopped => Ok(()),
        Err(error) if error.is_io() => Err(InputError::Io(error.into())),
        Err(error) => Err(InputError::Malformed(error.to_string())),
    }
}

fn read_lines(mut input: impl BufRead, skipped: u64, each: Each<'_>) -> Result<(), InputError> {
    let mut line = Vec::new();
    for number in skipped + 1.. {
        line.clear();
        if Read::by_ref(&mut input)
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)?
            == 0
        {
            break;
        }
        if line.len() as u64 == LINE_BYTES_MAX {
            let what = format!("line {number} has more than {LINE_BYTES_MAX} bytes");
            return Err(InputError::Malformed(what));
        }
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let place = format!("line {number}");
        let unit = match std::str::from_utf8(line) {
            Ok(text) => each(Unit {
                place,
                text,
                fault: None,
            }),
            Err(error) => each(Unit {
                place,
                text: &String::from_utf8_lossy(line),
                fault: Some(format!("not UTF-8 at byte {}", error.valid_up_to())),
            }),
        };
        if unit.is_break() {
            break;
        }
    }
    Ok(())
}

fn read_csv(input: impl Read, skipped: u64, each: Each<'_>) -> Result<(), InputError> {
    let malformed = |error: csv::Error| match error.into_kind() {
        csv::ErrorKind::Io(error) => InputError::Io(error),
        kind => InputError::Malformed(format!("{kind:?}")),
    };
    let input = Bounded {
        input,
        left: RECORD_BYTES_MAX,
    };
    let mut csv = csv::ReaderBuilder::new().flexible(true).from_reader(input);
    let header = csv.byte_headers().map_err(malformed)?.clone();
    let columns: Vec<Field> = header
        .iter()
        .map(|name| {
            let field = Field::ALL
                .into_iter()
                .find(|field| field.name().as_bytes() == name);
            field.ok_or_else(|| {
                let name = String::from_utf8_lossy(name);
                InputError::Malformed(format!(
                    "read as CSV, its header has {name:?}, which no flow has; {HEADER}"
                ))
            })
        })
        .collect::<Result<_, _>>()?;
    if let Some(missing) = Field::ALL
        .into_iter()
        .find(|field| !columns.contains(field))
    {
        let what = format!(
            "read as CSV, its header has no {}; {HEADER}",
            missing.name()
        );
        return Err(InputError::Malformed(what));
    }
    let mut record = csv::ByteRecord::new();
    loop {
        csv.get_mut().left = RECORD_BYTES_MAX;
        let begin = skipped + csv.position().line();
        match csv.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) if csv.get_ref().left == 0 => {
                let what = format!("line {begin}: {}", malformed(error));
                return Err(InputError::Malformed(what));
            }
            Err(error) => return Err(malformed(error)),
        }
        let line = skipped + record.position().map_or(0, csv::Position::line);
        let (text, fault) = match json_of(&columns, &record) {
            Ok(text) => (text, None),
            Err(why) => {
                let lossy = record.iter().map(String::from_utf8_lossy);
                (lossy.collect::<Vec<_>>().join(","), Some(why))
            }
        };
        let unit = Unit {
            place: format!("line {line}"),
            text: &text,
            fault,
        };
        if each(unit).is_break() {
            break;
        }
    }
    Ok(())
}

/// Lets through so many bytes until it is allowed more.
struct Bounded<R> {
    input: R,
    left: usize,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            let what =
                format!("a record of more than {RECORD_BYTES_MAX} bytes; is a quote left open?");
            return Err(io::Error::other(what));
        }
        let most = buffer.len().min(self.left);
        let read = self.input.read(&mut buffer[..most])?;
        self.left -= read;
        Ok(read)
    }
}

fn json_of(columns: &[Field], record: &csv::ByteRecord) -> Result<String, String> {
    if record.len() != columns.len() {
        return Err(format!(
            "{} columns, where the header has {}",
            record.len(),
            columns.len()
        ));
    }
    let mut members = Vec::with_capacity(columns.len());
    for (field, value) in columns.iter().zip(record) {
        let name = field.name();
        let value = std::str::from_utf8(value).map_err(|_| format!("{name}: not UTF-8"))?;
        let is_number = matches!(field, Field::BytesTx | Field::BytesRx | Field::Hour);
        let value = if is_number && !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
            // JSON has no leading zeros, and spreadsheets do.
            let digits = value.trim_start_matches('0');
            if digits.is_empty() { "0" } else { digits }.to_owned()
        } else {
            // Where it should have been a number, the decoder says so.
            serde_json::Value::from(value).to_string()
        };
        members.push(format!("\"{name}\":{value}"));
    }
    Ok(format!("{{{}}}", members.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> (Vec<(String, String, bool)>, Option<String>) {
        let mut units = Vec::new();
        let result = Reader::new(text, None).read(|unit| {
            units.push((unit.place, unit.text.to_owned(), unit.fault.is_some()));
            ControlFlow::Continue(())
        });
        (units, result.err().map(|e| e.to_string()))
    }

    fn good(place: &str, text: &str) -> (String, String, bool) {
        (place.into(), text.into(), false)
    }

    #[test]
    fn the_three_formats() {
        let one = r#"{"a":1}"#;
        for (text, places) in [
            (format!(" [{one},\n {one}]\n"), ["flow 0", "flow 1"]),
            (format!("{one}\r\n\n{one}"), ["line 1", "line 3"]),
            (format!("\u{FEFF}\n\n{one}\n{one}"), ["line 3", "line 4"]),
        ] {
            let (units, error) = read(text.as_bytes());
            assert_eq!(error, None);
            assert_eq!(units, places.map(|place| good(place, one)));
        }
        let (units, error) = read(
            b"hour,src_app,dest_app,vpc_id,bytes_rx,bytes_tx\n01,\"a,b\",\"c\"\"d\",,2,x\n1,2\n",
        );
        assert_eq!(error, None);
        let flow = r#"{"hour":1,"src_app":"a,b","dest_app":"c\"d","vpc_id":"","bytes_rx":2,"bytes_tx":"x"}"#;
        assert_eq!(
            units,
            [good("line 2", flow), ("line 3".into(), "1,2".into(), true)]
        );
        assert_eq!(read(b""), (Vec::new(), None));
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        for (text, units, word) in [
            (&b"[{\"a\":1},{\"a\""[..], 1, "EOF"),
            (b"[1] 2", 1, "trailing"),
            (b"src_app,dest_app\n", 0, "no vpc_id"),
            (b"src_app,colour\n", 0, "\"colour\""),
            (b"\x1F\x8B\x08\0", 0, "zcat"),
            (b"bytes", 0, "in any order"),
            (b"\xFF\xFEs\0", 0, "UTF-16"),
        ] {
            let (read, error) = read(text);
            assert_eq!(read.len(), units);
            let error = error.unwrap();
            assert!(error.contains(word), "{error}");
        }
        assert!(read(b"{\"a\":\"\xff\"}\n").0[0].2);
        assert!(read(&b"x".repeat(3 << 20)).1.is_some() || read(&b"{".repeat(3 << 20)).1.is_some());
        assert!(read(&b"{".repeat(3 << 20)).1.unwrap().contains("line 1"));
        let names = "src_app,dest_app,vpc_id,bytes_tx,bytes_rx,hour\n";
        let open_quote = format!("{names}\"a,b,c,1,2,3\n{}", "x,b,c,1,2,3\n".repeat(1 << 18));
        let error = read(open_quote.as_bytes()).1.unwrap();
        assert!(
            error.starts_with("line 2") && error.contains("quote"),
            "{error}"
        );
    }

    #[test]
    fn it_stops_when_told_to() {
        for text in [&b"[1,2,3]"[..], b"{}\n{}\n{}\n"] {
            let mut seen = 0;
            let result = Reader::new(text, None).read(|_| {
                seen += 1;
                ControlFlow::Break(())
            });
            assert!(result.is_ok());
            assert_eq!(seen, 1);
        }
    }
}
