//! Cuts an input into batches. The same input always gives the same batches.
//!
//! A block of JSON is decoded as a whole, so this path is as fast as a POST. If the block has an error, and
//! for all other formats, flows are collected one by one as lines of NDJSON. If the decoder refuses these,
//! each line is checked on its own and the invalid ones are left out.

use std::io::Read;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::flows::{Line, RecordHashes, hash_of_text, hashes};
use super::window::{BLOCK_BYTES, ReadMode};
use super::{
    InputEnd, InputError, Location, RawBlock, RawFlow, Reader, RecordText, Sink, Skipped, Unusable,
};
use flow::decode::{self, Format};
use flow::{Batch, Field, HourLimit};

/// A section of an input, decoded.
#[derive(Debug)]
pub struct Chunk {
    /// Its flows; `None` if it has none.
    pub batch: Option<Batch>,
    /// The records of its flows, in order, including records that other options would turn into flows.
    pub records: Vec<RecordHashes>,
    /// The texts of the records, in formats that need them.
    pub text: Arc<str>,
    /// The input ends inside a line here, so the last record may be incomplete.
    pub ends_within_a_line: bool,
    /// As above, and nothing proves that the last record is complete.
    pub may_be_cut: bool,
    /// Flows of this hour and later ones are left out: they are too far ahead of the clock.
    pub late_from: Option<u32>,
    /// Text that is not a flow, in order.
    pub refused: Vec<RejectedFlow>,
    pub skipped: Skipped,
    /// The location of the last record.
    pub last: Location,
}

/// What to do about an hour that is too far ahead.
pub(crate) const GIVE_AGAIN: &str = "; if the clock is wrong, give the file again when it is right";

/// Text that is not a valid flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedFlow {
    pub location: Location,
    /// The original text, or as JSON.
    pub text: String,
    pub why: String,
}

impl<R: Read> Reader<R> {
    /// Passes batches of about a mebibyte of text to `each` until it breaks. An unchanged input gives the
    /// same batches every time.
    ///
    /// # Errors
    /// If the rest cannot be read. Full batches before the error were passed on; flows of an incomplete batch
    /// were not.
    pub fn read_batches(
        self,
        mut each: impl FnMut(Chunk) -> ControlFlow<()>,
    ) -> Result<(), InputError> {
        let mut batcher = Batcher {
            each: &mut each,
            stopped: false,
            hours: Hours(self.hour_limit),
            next: None,
            pending: Pending::default(),
        };
        batcher.pending.end = self.read_into(ReadMode::FullBlocks, &mut batcher)?;
        if !batcher.stopped {
            let _no_more_to_stop = batcher.flush();
        }
        Ok(())
    }
}

struct Batcher<'a> {
    each: &'a mut dyn FnMut(Chunk) -> ControlFlow<()>,
    stopped: bool,
    hours: Hours,
    /// The text of the record that the next flow is made of.
    next: Option<OwnedRecordText>,
    pending: Pending,
}

/// An owned [`RecordText`].
struct OwnedRecordText {
    text: String,
    last_field: usize,
    last_is_whole: bool,
    is_content: bool,
}

/// The limit on hours.
#[derive(Clone, Copy)]
struct Hours(Option<HourLimit>);

impl Hours {
    /// Returns `batch` if all its hours are within the limit.
    fn validate(self, batch: Batch) -> Result<Batch, String> {
        let checked = self.0.map_or(Ok(()), |limit| limit.validate(&batch));
        let checked = checked.map_err(|e| format!("{}: {e}{GIVE_AGAIN}", Field::Hour.name()));
        checked.map(|()| batch)
    }

    fn decode(self, text: &[u8], format: Format) -> Result<Batch, String> {
        let batch = decode::decode(text, format).map_err(|e| e.to_string())?;
        self.validate(batch)
    }
}

/// Flows that were collected one by one and are not passed on yet.
#[derive(Default)]
struct Pending {
    /// One flow per line.
    lines: String,
    /// For each flow: its location, and the end of its line in `lines`.
    flows: Vec<(Location, usize)>,
    records: Vec<PendingRecord>,
    /// The texts of the records.
    text: String,
    /// The last record is a flow whose last field may be incomplete.
    last_is_open: bool,
    late_from: Option<u32>,
    end: InputEnd,
    refused: Vec<RejectedFlow>,
    refused_bytes: usize,
    skipped: Skipped,
    last: Option<Location>,
}

/// A pending record.
enum PendingRecord {
    /// The next line of `lines`.
    Flow {
        /// The hash of the record's text, in formats where the text identifies the record.
        content: Option<u128>,
        line: Option<Line>,
        location: Location,
    },
    /// Its flow was left out of the batch.
    LeftOut(RecordHashes),
    /// It turned out not to be a record.
    Nothing,
}

impl Sink for Batcher<'_> {
    fn text(&mut self, text: RecordText<'_>) {
        self.next = Some(OwnedRecordText {
            text: text.text.to_owned(),
            last_field: text.last_field,
            last_is_whole: text.last_is_whole,
            is_content: text.is_content,
        });
    }

    /// A full batch is passed on only when another flow comes, so the last batch is complete at the end of
    /// the input.
    fn flow(&mut self, raw: RawFlow<'_>) -> ControlFlow<()> {
        if self.pending.bytes() >= BLOCK_BYTES {
            self.flush()?;
        }
        self.pending.append(raw, self.next.take());
        ControlFlow::Continue(())
    }

    fn block(&mut self, block: RawBlock<'_>) -> ControlFlow<(), Option<u64>> {
        self.flush()?;
        let Ok(batch) = self.hours.decode(block.text, block.format) else {
            return ControlFlow::Continue(None);
        };
        let flows = batch.flows() as u64;
        if flows > 0 {
            let is_lines = block.format == Format::Ndjson;
            let locations = locations(&block, flows);
            let last = locations.last().copied().unwrap_or(block.first);
            self.emit(Chunk {
                records: RecordHashes::of_flows(&batch, locations),
                text: Arc::default(),
                ends_within_a_line: is_lines && !block.text.ends_with(b"\n"),
                may_be_cut: false,
                late_from: None,
                batch: Some(batch),
                refused: Vec::new(),
                skipped: Skipped::default(),
                last,
            })?;
        }
        ControlFlow::Continue(Some(flows))
    }
}

/// The locations of the flows of a block.
fn locations(block: &RawBlock<'_>, flows: u64) -> Vec<Location> {
    match block.first {
        Location::Flow(first) => (first..first + flows).map(Location::Flow).collect(),
        Location::Line(first) => {
            let lines = (first..).zip(block.text.split(|&byte| byte == b'\n'));
            let lines = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
            lines.map(|(line, _)| Location::Line(line)).collect()
        }
    }
}

impl Batcher<'_> {
    fn flush(&mut self) -> ControlFlow<()> {
        match std::mem::take(&mut self.pending).into_chunk(self.hours) {
            Some(chunk) => self.emit(chunk),
            None => ControlFlow::Continue(()),
        }
    }

    fn emit(&mut self, chunk: Chunk) -> ControlFlow<()> {
        let flow = (self.each)(chunk);
        self.stopped = flow.is_break();
        flow
    }
}

impl PendingRecord {
    /// Excludes its flow from the batch.
    fn exclude(&mut self, flow: Option<u128>) {
        let PendingRecord::Flow {
            content,
            line,
            location,
        } = *self
        else {
            return;
        };
        *self = match content.or(flow) {
            Some(content) => PendingRecord::LeftOut(RecordHashes {
                content,
                flow,
                is_in_batch: false,
                location,
                line,
            }),
            None => PendingRecord::Nothing,
        };
    }
}

impl Pending {
    fn append(&mut self, raw: RawFlow<'_>, text: Option<OwnedRecordText>) {
        self.last = Some(raw.location);
        let content = text.as_ref().filter(|text| text.is_content);
        let content = content.map(|text| hash_of_text(&text.text));
        self.last_is_open =
            raw.unusable.is_none() && text.as_ref().is_some_and(|t| !t.last_is_whole);
        match (&raw.unusable, content) {
            (None, _) => {
                let line = text.map(|text| self.push_text(&text));
                self.records.push(PendingRecord::Flow {
                    content,
                    line,
                    location: raw.location,
                });
            }
            (Some(_), Some(content)) => self.records.push(PendingRecord::LeftOut(RecordHashes {
                content,
                flow: None,
                is_in_batch: false,
                location: raw.location,
                line: None,
            })),
            (Some(_), None) => {}
        }
        match raw.unusable {
            None => {
                // An array element may contain line ends between tokens.
                let lines = raw.text.split('\n');
                lines.for_each(|line| {
                    self.lines.push_str(line);
                    self.lines.push(' ');
                });
                self.lines.pop();
                self.flows.push((raw.location, self.lines.len()));
                self.lines.push('\n');
            }
            Some(Unusable::Invalid(why)) => self.refuse(raw.location, raw.text, why),
            Some(Unusable::Skipped(why)) => self.skipped.count(why),
        }
    }

    fn push_text(&mut self, text: &OwnedRecordText) -> Line {
        // A chunk has a few mebibytes at most.
        let at = |offset: usize| (self.text.len() + offset) as u32;
        let line = Line {
            start: at(0),
            last_field: at(text.last_field),
            end: at(text.text.len()),
        };
        self.text.push_str(&text.text);
        line
    }

    fn refuse(&mut self, location: Location, text: &str, why: String) {
        self.refused_bytes += text.len() + why.len();
        self.refused.push(RejectedFlow {
            location,
            text: text.to_owned(),
            why,
        });
    }

    /// Approximate memory use.
    fn bytes(&self) -> usize {
        self.lines.len() + self.refused_bytes
    }

    fn into_chunk(mut self, hours: Hours) -> Option<Chunk> {
        let last = self.last?;
        let decode = |lines: &str| hours.decode(lines.as_bytes(), Format::Ndjson);
        let batch = match decode(&self.lines) {
            Ok(batch) => Ok(batch),
            Err(_) => {
                let right = self.remove_invalid_flows(hours);
                decode(&right)
            }
        };
        let batch = match batch {
            Ok(batch) => (batch.flows() > 0).then_some(batch),
            // Cannot happen, since each line was checked. If it did, refuse the lines instead of losing them.
            Err(error) => {
                self.refuse(last, &self.lines.clone(), error);
                None
            }
        };
        let mut flows = batch.as_ref().map(hashes).unwrap_or_default().into_iter();
        let records = std::mem::take(&mut self.records).into_iter();
        let records = records.filter_map(|record| match record {
            PendingRecord::Nothing => None,
            PendingRecord::LeftOut(record) => Some(record),
            PendingRecord::Flow {
                content,
                line,
                location,
            } => {
                let flow = flows.next();
                Some(RecordHashes {
                    content: content.or(flow).unwrap_or_default(),
                    flow,
                    is_in_batch: true,
                    location,
                    line,
                })
            }
        });
        Some(Chunk {
            batch,
            records: records.collect(),
            text: self.text.into(),
            ends_within_a_line: self.end.is_within_a_line,
            may_be_cut: self.end.is_within_a_line && !self.end.is_compressed && self.last_is_open,
            late_from: self.late_from,
            refused: self.refused,
            skipped: self.skipped,
            last,
        })
    }

    /// Checks each line on its own, and returns the valid flows.
    fn remove_invalid_flows(&mut self, hours: Hours) -> String {
        let lines = std::mem::take(&mut self.lines);
        let mut records = std::mem::take(&mut self.records);
        let is_flow = |record: &&mut PendingRecord| matches!(record, PendingRecord::Flow { .. });
        let mut of_flows = records.iter_mut().filter(is_flow);
        let mut right = String::with_capacity(lines.len());
        let mut start = 0;
        for (location, end) in std::mem::take(&mut self.flows) {
            let line = &lines[start..end];
            start = end + 1;
            let record = of_flows.next();
            let read = decode::read_flow(line);
            // Whether the hour is accepted depends on the clock, but the identity of the file must not.
            let flow = read.as_ref().ok().and_then(|b| hashes(b).first().copied());
            let hour = read.as_ref().ok().and_then(|b| b.hours().next());
            match read.and_then(|flow| hours.validate(flow)) {
                Ok(_) => {
                    right.push_str(line);
                    right.push('\n');
                }
                Err(why) => {
                    let late = hour.map(|hour| hour.get());
                    self.late_from = late.into_iter().chain(self.late_from).min();
                    if let Some(record) = record {
                        record.exclude(flow);
                    }
                    self.refuse(location, line, why);
                }
            }
        }
        self.records = records;
        // Lines that could not be parsed at all come first.
        self.refused.sort_by_key(|refused| refused.location);
        right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Summary of an input: flows in total, sizes of batches, refused locations, the last location.
    #[derive(Debug, Default, PartialEq)]
    struct Sum {
        bytes: Vec<Vec<u8>>,
        flows: Vec<usize>,
        refused: Vec<String>,
        last: Option<Location>,
    }

    fn read(text: &[u8]) -> (Sum, Option<String>) {
        let mut sum = Sum::default();
        let result = Reader::new(text, None).read_batches(|chunk| {
            if let Some(batch) = chunk.batch {
                sum.flows.push(batch.flows());
                sum.bytes.push(batch.bytes().to_vec());
            }
            let refused = chunk.refused.iter();
            sum.refused
                .extend(refused.map(|r| format!("{}: {}", r.location, r.why)));
            sum.last = Some(chunk.last);
            ControlFlow::Continue(())
        });
        (sum, result.err().map(|e| e.to_string()))
    }

    fn flow(number: usize) -> String {
        format!(
            r#"{{"src_app":"s{}","dest_app":"d","vpc_id":"","bytes_tx":{number},"bytes_rx":0,"hour":1}}"#,
            number % 100
        )
    }

    /// The flows are the same in every format; no block is cut at a wrong place.
    #[test]
    fn all_formats_give_all_flows() {
        const COUNT: usize = 30_000;
        let flows: Vec<String> = (0..COUNT).map(flow).collect();
        let expected = decode::decode(flows.join("\n").as_bytes(), Format::Ndjson).unwrap();
        let csv = flows.iter().map(|flow| {
            let flow: serde_json::Value = serde_json::from_str(flow).unwrap();
            format!("{},d,,{},0,1\n", flow["src_app"], flow["bytes_tx"])
        });
        let header = "src_app,dest_app,vpc_id,bytes_tx,bytes_rx,hour\n".to_owned();
        let pretty = flows.join(" ,\n").replace(",\"", ",\n  \"");
        // Commas after braces where no flow ends: in a name, and in an unknown field.
        let nested = flows.join(",").replace("}", r#","x":[{"y":{}},{},"},{"]}"#);
        for (name, text, last) in [
            ("ndjson", flows.join("\n"), Location::Line(COUNT as u64)),
            (
                "blank lines",
                flows.join("\r\n\n") + "\n \n",
                Location::Line(2 * COUNT as u64 - 1),
            ),
            (
                "json",
                format!("[{}]", flows.join(",")),
                Location::Flow(COUNT as u64 - 1),
            ),
            (
                "pretty",
                format!("\n[ {pretty} ]\n"),
                Location::Flow(COUNT as u64 - 1),
            ),
            (
                "nested",
                format!("[{nested}]"),
                Location::Flow(COUNT as u64 - 1),
            ),
            (
                "csv",
                header + &csv.collect::<String>(),
                Location::Line(COUNT as u64 + 1),
            ),
        ] {
            let (sum, error) = read(text.as_bytes());
            assert_eq!(error, None, "{name}");
            assert_eq!(sum.refused, [""; 0], "{name}");
            assert_eq!(sum.flows.iter().sum::<usize>(), COUNT, "{name}");
            assert_eq!(sum.last, Some(last), "{name}");
            assert!(sum.flows.len() > 1, "{name}");
            assert_eq!(
                records(&sum.bytes, &sum.flows),
                records(&[expected.bytes().to_vec()], &[COUNT]),
                "{name}"
            );
            assert_eq!(read(text.as_bytes()).0, sum, "{name}");
        }
    }

    /// The records of all batches, without the records before the first and after the last flow.
    fn records(batches: &[Vec<u8>], flows: &[usize]) -> Vec<u8> {
        let mut all = Vec::new();
        for (batch, flows) in batches.iter().zip(flows) {
            assert_eq!(batch[1..5], (*flows as u32).to_le_bytes());
            let bytes = u32::from_le_bytes(batch[5..9].try_into().unwrap()) as usize;
            all.extend_from_slice(&batch[9..9 + bytes]);
        }
        all
    }

    #[test]
    fn invalid_flows_are_refused_with_their_location() {
        let flows: Vec<String> = (0..30_000).map(flow).collect();
        let with_faults = |between: &str| {
            let mut flows = flows.clone();
            flows[7] = flows[7].replace("\"hour\":1", "\"hour\":-1");
            flows[20_000] = flows[20_000].replace("\"d\"", "null");
            flows.join(between)
        };
        for (text, first, second) in [
            (
                with_faults("\n"),
                "line 8: hour: ",
                "line 20001: dest_app: ",
            ),
            (
                format!("[{}]", with_faults(",")),
                "flow 7: hour: ",
                "flow 20000: dest_app: ",
            ),
        ] {
            let (sum, error) = read(text.as_bytes());
            assert_eq!(error, None);
            assert_eq!(sum.flows.iter().sum::<usize>(), 29_998);
            assert_eq!(sum.refused.len(), 2);
            assert!(sum.refused[0].starts_with(first), "{}", sum.refused[0]);
            assert!(sum.refused[1].starts_with(second), "{}", sum.refused[1]);
        }
        // Two flows on one line, or one flow on two lines, are invalid, even if the joined text would be
        // valid.
        let one = flow(1);
        let (half, other) = one.split_at(20);
        let (sum, _) = read(format!("{one},{one}\n{half}\n{other}\n{one}\n\u{1}\n").as_bytes());
        assert_eq!(
            (sum.flows, sum.refused.len()),
            (vec![1], 4),
            "{:?}",
            sum.refused
        );
        let (sum, _) = read(b"{\"a\":\"\xff\"}\n{}\n");
        assert!(
            sum.refused[0].starts_with("line 1: not UTF-8"),
            "{:?}",
            sum.refused
        );
        assert!(
            sum.refused[1].starts_with("line 2: src_app"),
            "{:?}",
            sum.refused
        );
    }

    #[test]
    fn a_truncated_input_gives_its_complete_batches() {
        let array = format!("[{}", vec![flow(1); 30_000].join(","));
        let (sum, error) = read(array.as_bytes());
        assert!(error.unwrap().contains("flow 29999, on line 1: EOF"));
        assert!((1..30_000).contains(&sum.flows.iter().sum::<usize>()));
        let (sum, error) = read(&array.as_bytes()[..1000]);
        assert!(error.unwrap().contains("EOF") && sum.flows.is_empty());
    }
}
