//! Flows from a file or a pipe: a JSON array, NDJSON, CSV, or AWS VPC Flow Logs, each plain, as gzip
//! or as zstd.
//!
//! [`Reader::read`] hands flows over one at a time, as they come, each as JSON text that nobody has
//! checked yet. [`Reader::read_batches`] makes batches of them, in blocks of about a mebibyte that
//! are cut by content alone: the same file gives the same batches again. Whatever the format, the
//! service's decoder decides what is a flow.

mod apps;
mod batches;
mod compression;
mod csv;
mod flows;
mod json;
mod lines;
mod ndjson;
mod records;
mod vpc_flow_logs;
mod window;

pub use apps::Apps;
pub use batches::{Part, Refused};
pub use flows::{RecordHash, to_json, truncations};

use std::fmt;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::ingest::decode::Format;
use compression::Decompressed;
use window::{Pace, Tail, Window};

/// How inputs begin that are read as nonsense otherwise.
const UTF_16: [&[u8]; 2] = [b"\xFF\xFE", b"\xFE\xFF"];
/// What some editors put before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// How flows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputFormat {
    /// One array of flows.
    Json,
    /// A flow a line.
    Ndjson,
    /// A header with the six names, in any order, then a flow a line.
    Csv,
    /// A header with names of AWS's, in any order, then a record a line; without a header, records
    /// of version 2.
    VpcFlowLogs,
}

/// Where in an input something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Counted from 0.
    Flow(u64),
    /// Counted from 1.
    Line(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Flow(number) => write!(f, "flow {number}"),
            Place::Line(number) => write!(f, "line {number}"),
        }
    }
}

/// One flow of an input, not checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit<'a> {
    pub place: Place,
    /// Its JSON text; what there is of it, where there is a fault.
    pub text: &'a str,
    /// Why it is not a flow, where that shows already.
    pub fault: Option<Fault>,
}

/// Why something is not a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Why it cannot be read.
    Wrong(String),
    /// It can be, and says that nothing went over the line.
    NoTraffic(NoTraffic),
}

/// Why a record of a flow log stands for no traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTraffic {
    /// There was none.
    NoData,
    /// AWS recorded none, for lack of capacity or by an error of its own.
    SkipData,
    /// It was not let through.
    Reject,
}

/// How many records were skipped because they stand for no traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    pub no_data: u64,
    pub skip_data: u64,
    pub reject: u64,
}

impl Skipped {
    pub fn count(&mut self, why: NoTraffic) {
        match why {
            NoTraffic::NoData => self.no_data += 1,
            NoTraffic::SkipData => self.skip_data += 1,
            NoTraffic::Reject => self.reject += 1,
        }
    }

    pub fn add(&mut self, other: Skipped) {
        self.no_data += other.no_data;
        self.skip_data += other.skip_data;
        self.reject += other.reject;
    }

    pub fn total(&self) -> u64 {
        self.no_data + self.skip_data + self.reject
    }
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
    apps: Arc<Apps>,
}

/// Takes what is read.
trait Sink {
    /// One flow.
    fn flow(&mut self, unit: Unit<'_>) -> ControlFlow<()>;

    /// The text that the next flow is made of, where that is not the flow itself; or a header, which no
    /// flow follows.
    fn line(&mut self, _text: &str) {}

    /// Something that is none.
    fn refused(&mut self, refused: Refused) -> ControlFlow<()> {
        self.flow(Unit {
            place: refused.place,
            text: &refused.text,
            fault: Some(Fault::Wrong(refused.why)),
        })
    }

    /// Many flows at once: an array or lines, which may turn out not to be. Returns how many there
    /// were, or `None` for those that it wants one by one.
    fn block(&mut self, _block: Block<'_>) -> ControlFlow<(), Option<u64>> {
        ControlFlow::Continue(None)
    }
}

/// A stretch of an input, as the body of a request has it.
struct Block<'a> {
    text: &'a [u8],
    format: Format,
    /// Its first flow, or line.
    first: Place,
}

impl<R: Read> Reader<R> {
    /// Without a `format`, the beginning tells: `[` is JSON, `{` NDJSON, a flow log's header a flow
    /// log, anything else CSV.
    pub fn new(input: R, format: Option<InputFormat>) -> Reader<R> {
        Reader {
            input,
            format,
            apps: Arc::default(),
        }
    }

    /// Has addresses in flow logs replaced by the names of these applications.
    pub fn with_apps(self, apps: Arc<Apps>) -> Reader<R> {
        Reader { apps, ..self }
    }

    /// Hands every flow to `each` as soon as it comes, until that breaks.
    ///
    /// # Errors
    /// Where the rest cannot be read. What came before has been handed over.
    pub fn read(self, each: impl FnMut(Unit<'_>) -> ControlFlow<()>) -> Result<(), InputError> {
        struct OneByOne<F>(F);
        impl<F: FnMut(Unit<'_>) -> ControlFlow<()>> Sink for OneByOne<F> {
            fn flow(&mut self, unit: Unit<'_>) -> ControlFlow<()> {
                self.0(unit)
            }
        }
        self.read_into(Pace::AsItComes, &mut OneByOne(each))
            .map(drop)
    }

    /// Returns whether the input ends within a line, so that more of it may come some day.
    fn read_into(self, pace: Pace, sink: &mut dyn Sink) -> Result<bool, InputError> {
        let (input, last_byte) = Tail::new(Decompressed::new(self.input)?);
        let mut window = Window::new(input, pace);
        let (sniffed, line) = sniff(&mut window)?;
        let format = self.format.unwrap_or(sniffed);
        match format {
            InputFormat::Json => json::read(window, line, sink)?,
            InputFormat::Ndjson => ndjson::read(window, line, sink)?,
            InputFormat::Csv => csv::read(window, line, sink)?,
            InputFormat::VpcFlowLogs => vpc_flow_logs::read(window, line, &self.apps, sink)?,
        }
        let is_ended = matches!(last_byte.get(), None | Some(b'\n' | b'\r'));
        Ok(!is_ended && format != InputFormat::Json)
    }
}

/// Consumes what stands before the first flow or the header; returns what that looks like, and the
/// line it is on.
fn sniff(window: &mut Window<impl Read>) -> Result<(InputFormat, u64), InputError> {
    let mut line = 1;
    loop {
        window.fill()?;
        let some = window.text();
        let blank = some.len() - some.trim_ascii_start().len();
        line += newlines(&some[..blank]);
        // All at once: the window moves what is left whenever it is filled.
        window.consume(blank);
        let some = window.text();
        let more = !window.has_ended() && !window.is_full();
        match some.first() {
            None if more => {}
            None => return Ok((InputFormat::Ndjson, line)), // nothing
            Some(b'[') => return Ok((InputFormat::Json, line)),
            Some(b'{') => return Ok((InputFormat::Ndjson, line)),
            _ if some.len() < BYTE_ORDER_MARK.len() && more => {}
            _ if UTF_16.iter().any(|mark| some.starts_with(mark)) => {
                let what = "this is UTF-16; make it UTF-8 first: iconv -f UTF-16 -t UTF-8 FILE";
                return Err(InputError::Malformed(what.into()));
            }
            _ if some.starts_with(BYTE_ORDER_MARK) => window.consume(BYTE_ORDER_MARK.len()),
            _ => match some.iter().position(|&byte| byte == b'\n') {
                None if more => {}
                end => {
                    let header = String::from_utf8_lossy(&some[..end.unwrap_or(some.len())]);
                    let format = match vpc_flow_logs::begins_with(&header) {
                        true => InputFormat::VpcFlowLogs,
                        false => InputFormat::Csv,
                    };
                    return Ok((format, line));
                }
            },
        }
    }
}

/// Appends `value` as a JSON string.
fn push_json_string(text: &mut String, value: &str) {
    if value.bytes().any(|b| b < b' ' || matches!(b, b'"' | b'\\')) {
        text.push_str(&serde_json::Value::from(value).to_string());
    } else {
        text.push('"');
        text.push_str(value);
        text.push('"');
    }
}

/// How many lines end in `text`.
fn newlines(text: &[u8]) -> u64 {
    // In chunks that a byte can count, so that it is done sixteen bytes at a time.
    let count = |chunk: &[u8]| chunk.iter().map(|&b| u8::from(b == b'\n')).sum::<u8>();
    text.chunks(255).map(|chunk| u64::from(count(chunk))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    type Outcome = (Vec<(String, String, bool)>, Option<String>);

    fn read_as(text: &[u8], format: Option<InputFormat>) -> Outcome {
        let mut units = Vec::new();
        let result = Reader::new(text, format).read(|unit| {
            let place = unit.place.to_string();
            units.push((place, unit.text.to_owned(), unit.fault.is_some()));
            ControlFlow::Continue(())
        });
        (units, result.err().map(|e| e.to_string()))
    }

    fn read(text: &[u8]) -> Outcome {
        read_as(text, None)
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
            (b"[1,]", 1, "trailing comma"),
            (b"[1 2]", 0, "expected `,` or `]`"),
            (b"[\n1,\n{a}]", 1, "flow 1, on line 3: key must be a string"),
            (b"[{\"a\":1}", 0, "EOF"),
            (b"[", 0, "EOF"),
            (b"src_app,dest_app\n", 0, "no vpc_id"),
            (b"src_app,colour\n", 0, "\"colour\""),
            (
                b"hour,src_app,dest_app,vpc_id,bytes_tx,bytes_rx,hour\n1\n",
                0,
                "has hour twice",
            ),
            (b"BZh91AY&SY\xa7\x01,\"", 0, "not text"),
            (b"PK\x03\x04\n", 0, "not text"),
            (b"bytes", 0, "in any order"),
            (b"\xFF\xFEs\0", 0, "UTF-16"),
        ] {
            let (read, error) = read(text);
            assert_eq!(read.len(), units, "{text:?}");
            let error = error.unwrap();
            assert!(error.contains(word), "{error}");
        }
        let error = read_as(b"{}", Some(InputFormat::Json)).1.unwrap();
        assert!(error.contains("begins with ["), "{error}");
        assert!(read(b"{\"a\":\"\xff\"}\n").0[0].2);
        let long = [b"[\"", &b"x".repeat(3 << 20)[..], b"\"]"].concat();
        assert!(read(&long).1.unwrap().contains("flow 0 has more than"));
    }

    /// It is named, and what comes after it is read.
    #[test]
    fn a_line_that_is_too_long_costs_no_other() {
        let log = "srcaddr dstaddr bytes start";
        let csv = "src_app,dest_app,vpc_id,bytes_tx,bytes_rx,hour";
        for (header, line) in [
            ("{}", "{\"a\":1}"),
            (log, "::1 ::2 5 946684800"),
            (csv, "x,b,c,1,2,3"),
        ] {
            let long = "y".repeat(3 << 20);
            let text = format!("{header}\n{line}\n{long}\r\n{line}\n{long}\n{long}");
            let (units, error) = read(text.as_bytes());
            assert_eq!(error, None);
            let refused: Vec<_> = units.iter().filter(|unit| unit.2).collect();
            let places: Vec<_> = refused.iter().map(|unit| unit.0.as_str()).collect();
            assert_eq!(places, ["line 3", "line 5", "line 6"], "{header}");
            assert!(refused.iter().all(|unit| unit.1 == long[..1000]));
            let good = units.iter().filter(|unit| !unit.2);
            let good: Vec<_> = good.map(|unit| unit.0.as_str()).collect();
            assert!(good.ends_with(&["line 2", "line 4"]), "{good:?}");
        }
        // Half a line is no header.
        let error = read("x".repeat(3 << 20).as_bytes()).1.unwrap();
        assert!(error.starts_with("line 1: more than"), "{error}");
    }

    /// A megabyte of them was moved for each before.
    #[test]
    fn blanks_before_the_first_flow_cost_little() {
        let text = [&b" \r\n".repeat(3 << 20)[..], b"{\"a\":1}"].concat();
        let start = std::time::Instant::now();
        let place = format!("line {}", (3 << 20) + 1);
        assert_eq!(read(&text), (vec![good(&place, "{\"a\":1}")], None));
        assert!(start.elapsed().as_secs() < 10);
        assert_eq!(read(&text[..text.len() - 7]), (Vec::new(), None));
    }

    #[test]
    fn a_flow_log_is_told_by_its_header() {
        for header in [
            "version account-id srcaddr dstaddr bytes start",
            "start bytes dstaddr srcaddr",
            "\u{FEFF}\n account-id a-field-to-come pkt-srcaddr pkt-dstaddr bytes start\r",
        ] {
            let (units, error) = read(header.as_bytes());
            assert_eq!((units.len(), error), (0, None), "{header}");
        }
        // Said as such, though a field is missing.
        let error = read(b"srcaddr dstaddr bytes\n1.1.1.1 2.2.2.2 5\n")
            .1
            .unwrap();
        assert!(
            error.contains("VPC flow logs, its header has no start"),
            "{error}"
        );
        for text in ["2 123456789010 eni-1 10.0.0.1", "src_app,srcaddr,hour"] {
            let error = read(text.as_bytes()).1.unwrap();
            assert!(error.contains("read as CSV"), "{error}");
            assert!(error.contains("--format vpc-flow-logs"), "{error}");
        }
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

    #[test]
    fn compressed_inputs() {
        let text = "{\"a\":1}\n".repeat(1000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(text.as_bytes()).unwrap();
        let gzip = gzip.finish().unwrap();
        let mut zstd = zstd::Encoder::new(Vec::new(), 1).unwrap();
        zstd.include_checksum(true).unwrap();
        zstd.write_all(text.as_bytes()).unwrap();
        let zstd = zstd.finish().unwrap();
        for (name, bytes) in [("gzip", gzip), ("zstd", zstd)] {
            // Files of either kind may be put one after the other.
            let (units, error) = read(&[&bytes[..], &bytes].concat());
            assert_eq!((units.len(), error), (2000, None));
            let error = read(&bytes[..bytes.len() - 3]).1.unwrap();
            let expected = format!("the {name} data breaks off");
            assert!(error.starts_with(&expected), "{error}");
            let mut changed = bytes.clone();
            changed[bytes.len() / 2] ^= 0x55;
            let error = read(&changed).1.unwrap();
            assert!(error.starts_with(&format!("the {name} data ")), "{error}");
        }
        assert!(read(b"\x1F\x8B").1.unwrap().contains("breaks off"));
    }

    /// Tapes and disks leave zeros behind a file; anything else there is not ours.
    #[test]
    fn what_follows_a_gzip_stream() {
        let text = "{\"a\":1}\n".repeat(1000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(text.as_bytes()).unwrap();
        let gzip = gzip.finish().unwrap();
        for (zeros, members) in [(1, 1), (10_240, 1), (512, 2)] {
            let padded = [&gzip[..], &vec![0; zeros]].concat().repeat(members);
            let (units, error) = read(&padded);
            assert_eq!((units.len(), error), (1000 * members, None));
        }
        for garbage in [&b"x"[..], b"\0\0\0x", b"<html>", b"PK\x03\x04"] {
            let error = read(&[&gzip[..], garbage].concat()).1.unwrap();
            assert!(
                error.contains("garbage after the end of the gzip stream"),
                "{error}"
            );
        }
        let error = read(&[&gzip[..], &gzip[..5]].concat()).1.unwrap();
        assert!(error.contains("breaks off"), "{error}");
    }
}
