//! Batches made of an input, the same ones each time that it is read.
//!
//! A block of JSON goes to the decoder as it is, which is what makes this as fast as a POST. Where it
//! holds something wrong, and in the other formats, flows are collected one by one, as lines of NDJSON.
//! Should the decoder refuse those, each is looked at on its own, and the wrong ones are left out.

use std::io::Read;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::flows::{Line, Record, hash_of_text, hashes};
use super::window::{BLOCK_BYTES, Pace};
use super::{Block, End, Fault, InputError, Place, Reader, Sink, Skipped, Text, Unit};
use flow::decode::{self, Format};
use flow::{Batch, Field, HourLimit};

/// What a stretch of an input comes to.
#[derive(Debug)]
pub struct Part {
    /// Its flows; `None` where there are none.
    pub batch: Option<Batch>,
    /// What its flows are made of, in order, and what would be flows with other options.
    pub records: Vec<Record>,
    /// The texts of records, in formats that need them.
    pub text: Arc<str>,
    /// The input ends here, within a line: the last record may be the beginning of one.
    pub ends_within_a_line: bool,
    /// The same, and nothing shows that the last record is complete.
    pub may_be_cut: bool,
    /// Flows of this hour and later ones are left out: they are too far ahead of the clock.
    pub late_from: Option<u32>,
    /// What is not a flow, in order.
    pub refused: Vec<Refused>,
    pub skipped: Skipped,
    /// Where it ends.
    pub last: Place,
}

/// What to do about an hour that is too far ahead.
pub(crate) const GIVE_AGAIN: &str = "; if the clock is wrong, give the file again when it is right";

/// Something that is not a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub place: Place,
    /// As it was, or as JSON.
    pub text: String,
    pub why: String,
}

impl<R: Read> Reader<R> {
    /// Hands batches of about a mebibyte of text to `each`, until that breaks. An input that has not
    /// changed gives the same ones, however it is read.
    ///
    /// # Errors
    /// Where the rest cannot be read. What came before has been handed over, as far as it fills
    /// batches: of a shorter input, nothing.
    pub fn read_batches(
        self,
        mut each: impl FnMut(Part) -> ControlFlow<()>,
    ) -> Result<(), InputError> {
        let mut batcher = Batcher {
            each: &mut each,
            stopped: false,
            hours: Hours(self.hour_limit),
            next: None,
            pending: Pending::default(),
        };
        batcher.pending.end = self.read_into(Pace::Blocks, &mut batcher)?;
        if !batcher.stopped {
            let _no_more_to_stop = batcher.hand_over();
        }
        Ok(())
    }
}

struct Batcher<'a> {
    each: &'a mut dyn FnMut(Part) -> ControlFlow<()>,
    stopped: bool,
    hours: Hours,
    /// The text that the next flow is made of.
    next: Option<OwnText>,
    pending: Pending,
}

/// A [`Text`] that is kept.
struct OwnText {
    text: String,
    last_field: usize,
    last_is_whole: bool,
    is_content: bool,
}

/// Which hours are taken.
#[derive(Clone, Copy)]
struct Hours(Option<HourLimit>);

impl Hours {
    /// `batch`, if all of its hours are taken.
    fn check(self, batch: Batch) -> Result<Batch, String> {
        let checked = self.0.map_or(Ok(()), |limit| limit.validate(&batch));
        let checked = checked.map_err(|e| format!("{}: {e}{GIVE_AGAIN}", Field::Hour.name()));
        checked.map(|()| batch)
    }

    fn decode(self, text: &[u8], format: Format) -> Result<Batch, String> {
        let batch = decode::decode(text, format).map_err(|e| e.to_string())?;
        self.check(batch)
    }
}

/// What came one by one, and is not handed over yet.
#[derive(Default)]
struct Pending {
    /// A flow a line.
    lines: String,
    /// Of each flow: its place, and where its line ends.
    flows: Vec<(Place, usize)>,
    records: Vec<PendingRecord>,
    /// The texts of records.
    text: String,
    /// The last record is a flow whose last field may be the beginning of a longer one.
    last_is_open: bool,
    late_from: Option<u32>,
    end: End,
    refused: Vec<Refused>,
    refused_bytes: usize,
    skipped: Skipped,
    last: Option<Place>,
}

/// One that is pending.
enum PendingRecord {
    /// The next of the lines.
    Flow {
        /// The hash of the text that it is made of, where that tells it.
        content: Option<u128>,
        line: Option<Line>,
        place: Place,
    },
    /// It turned out not to be in the batch.
    LeftOut(Record),
    /// It turned out to be none.
    Nothing,
}

impl Sink for Batcher<'_> {
    fn text(&mut self, text: Text<'_>) {
        self.next = Some(OwnText {
            text: text.text.to_owned(),
            last_field: text.last_field,
            last_is_whole: text.last_is_whole,
            is_content: text.is_content,
        });
    }

    /// What is full is handed over when one more comes: the last one is there at the end of the input.
    fn flow(&mut self, unit: Unit<'_>) -> ControlFlow<()> {
        if self.pending.bytes() >= BLOCK_BYTES {
            self.hand_over()?;
        }
        self.pending.take(unit, self.next.take());
        ControlFlow::Continue(())
    }

    fn block(&mut self, block: Block<'_>) -> ControlFlow<(), Option<u64>> {
        self.hand_over()?;
        let Ok(batch) = self.hours.decode(block.text, block.format) else {
            return ControlFlow::Continue(None);
        };
        let flows = batch.flows() as u64;
        if flows > 0 {
            let is_lines = block.format == Format::Ndjson;
            let places = places(&block, flows);
            let last = places.last().copied().unwrap_or(block.first);
            self.emit(Part {
                records: Record::of_flows(&batch, places),
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

/// Where the flows of a block are.
fn places(block: &Block<'_>, flows: u64) -> Vec<Place> {
    match block.first {
        Place::Flow(first) => (first..first + flows).map(Place::Flow).collect(),
        Place::Line(first) => {
            let lines = (first..).zip(block.text.split(|&byte| byte == b'\n'));
            let lines = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
            lines.map(|(line, _)| Place::Line(line)).collect()
        }
    }
}

impl Batcher<'_> {
    fn hand_over(&mut self) -> ControlFlow<()> {
        match std::mem::take(&mut self.pending).into_part(self.hours) {
            Some(part) => self.emit(part),
            None => ControlFlow::Continue(()),
        }
    }

    fn emit(&mut self, part: Part) -> ControlFlow<()> {
        let flow = (self.each)(part);
        self.stopped = flow.is_break();
        flow
    }
}

impl PendingRecord {
    /// It is not in the batch, and would be this flow if it were.
    fn leave_out(&mut self, flow: Option<u128>) {
        let PendingRecord::Flow {
            content,
            line,
            place,
        } = *self
        else {
            return;
        };
        *self = match content.or(flow) {
            Some(content) => PendingRecord::LeftOut(Record {
                content,
                flow,
                is_in_batch: false,
                place,
                line,
            }),
            None => PendingRecord::Nothing,
        };
    }
}

impl Pending {
    fn take(&mut self, unit: Unit<'_>, text: Option<OwnText>) {
        self.last = Some(unit.place);
        let content = text.as_ref().filter(|text| text.is_content);
        let content = content.map(|text| hash_of_text(&text.text));
        self.last_is_open = unit.fault.is_none() && text.as_ref().is_some_and(|t| !t.last_is_whole);
        match (&unit.fault, content) {
            (None, _) => {
                let line = text.map(|text| self.push_text(&text));
                self.records.push(PendingRecord::Flow {
                    content,
                    line,
                    place: unit.place,
                });
            }
            (Some(_), Some(content)) => self.records.push(PendingRecord::LeftOut(Record {
                content,
                flow: None,
                is_in_batch: false,
                place: unit.place,
                line: None,
            })),
            (Some(_), None) => {}
        }
        match unit.fault {
            None => {
                // In an element of an array a line may end, between two tokens.
                let lines = unit.text.split('\n');
                lines.for_each(|line| {
                    self.lines.push_str(line);
                    self.lines.push(' ');
                });
                self.lines.pop();
                self.flows.push((unit.place, self.lines.len()));
                self.lines.push('\n');
            }
            Some(Fault::Wrong(why)) => self.refuse(unit.place, unit.text, why),
            Some(Fault::NoTraffic(why)) => self.skipped.count(why),
        }
    }

    fn push_text(&mut self, text: &OwnText) -> Line {
        // A part has a few mebibytes.
        let at = |offset: usize| (self.text.len() + offset) as u32;
        let line = Line {
            start: at(0),
            last_field: at(text.last_field),
            end: at(text.text.len()),
        };
        self.text.push_str(&text.text);
        line
    }

    fn refuse(&mut self, place: Place, text: &str, why: String) {
        self.refused_bytes += text.len() + why.len();
        self.refused.push(Refused {
            place,
            text: text.to_owned(),
            why,
        });
    }

    /// What it takes in memory, about.
    fn bytes(&self) -> usize {
        self.lines.len() + self.refused_bytes
    }

    fn into_part(mut self, hours: Hours) -> Option<Part> {
        let last = self.last?;
        let decode = |lines: &str| hours.decode(lines.as_bytes(), Format::Ndjson);
        let batch = match decode(&self.lines) {
            Ok(batch) => Ok(batch),
            Err(_) => {
                let right = self.leave_out_the_wrong(hours);
                decode(&right)
            }
        };
        let batch = match batch {
            Ok(batch) => (batch.flows() > 0).then_some(batch),
            // Not possible: each line was looked at. If it were, they would not be lost.
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
                place,
            } => {
                let flow = flows.next();
                Some(Record {
                    content: content.or(flow).unwrap_or_default(),
                    flow,
                    is_in_batch: true,
                    place,
                    line,
                })
            }
        });
        Some(Part {
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

    /// Looks at each line on its own. Returns those that are flows.
    fn leave_out_the_wrong(&mut self, hours: Hours) -> String {
        let lines = std::mem::take(&mut self.lines);
        let mut records = std::mem::take(&mut self.records);
        let is_flow = |record: &&mut PendingRecord| matches!(record, PendingRecord::Flow { .. });
        let mut of_flows = records.iter_mut().filter(is_flow);
        let mut right = String::with_capacity(lines.len());
        let mut start = 0;
        for (place, end) in std::mem::take(&mut self.flows) {
            let line = &lines[start..end];
            start = end + 1;
            let record = of_flows.next();
            let read = decode::read_flow(line);
            // Whether its hour is taken depends on the clock, and what the file is does not.
            let flow = read.as_ref().ok().and_then(|b| hashes(b).first().copied());
            let hour = read.as_ref().ok().and_then(|b| b.hours().next());
            match read.and_then(|flow| hours.check(flow)) {
                Ok(_) => {
                    right.push_str(line);
                    right.push('\n');
                }
                Err(why) => {
                    let late = hour.map(|hour| hour.get());
                    self.late_from = late.into_iter().chain(self.late_from).min();
                    if let Some(record) = record {
                        record.leave_out(flow);
                    }
                    self.refuse(place, line, why);
                }
            }
        }
        self.records = records;
        // Those that could not be read at all were there first.
        self.refused.sort_by_key(|refused| refused.place);
        right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an input comes to: flows in all, sizes of batches, refused places, the last place.
    #[derive(Debug, Default, PartialEq)]
    struct Sum {
        bytes: Vec<Vec<u8>>,
        flows: Vec<usize>,
        refused: Vec<String>,
        last: Option<Place>,
    }

    fn read(text: &[u8]) -> (Sum, Option<String>) {
        let mut sum = Sum::default();
        let result = Reader::new(text, None).read_batches(|part| {
            if let Some(batch) = part.batch {
                sum.flows.push(batch.flows());
                sum.bytes.push(batch.bytes().to_vec());
            }
            let refused = part.refused.iter();
            sum.refused
                .extend(refused.map(|r| format!("{}: {}", r.place, r.why)));
            sum.last = Some(part.last);
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

    /// The same flows, however they are written; a block is never cut in a wrong place.
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
        // Commas behind braces where no flow ends: in a name, in a field that is not ours.
        let nested = flows.join(",").replace("}", r#","x":[{"y":{}},{},"},{"]}"#);
        for (name, text, last) in [
            ("ndjson", flows.join("\n"), Place::Line(COUNT as u64)),
            (
                "blank lines",
                flows.join("\r\n\n") + "\n \n",
                Place::Line(2 * COUNT as u64 - 1),
            ),
            (
                "json",
                format!("[{}]", flows.join(",")),
                Place::Flow(COUNT as u64 - 1),
            ),
            (
                "pretty",
                format!("\n[ {pretty} ]\n"),
                Place::Flow(COUNT as u64 - 1),
            ),
            (
                "nested",
                format!("[{nested}]"),
                Place::Flow(COUNT as u64 - 1),
            ),
            (
                "csv",
                header + &csv.collect::<String>(),
                Place::Line(COUNT as u64 + 1),
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

    /// The records of batches, without what stands before and after them.
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
    fn what_is_wrong_is_left_out_and_named() {
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
        // Two flows on a line, or one on two, are none, whatever they look like when joined.
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
    fn of_an_input_that_breaks_off_whole_batches_are_taken() {
        let array = format!("[{}", vec![flow(1); 30_000].join(","));
        let (sum, error) = read(array.as_bytes());
        assert!(error.unwrap().contains("flow 29999, on line 1: EOF"));
        assert!((1..30_000).contains(&sum.flows.iter().sum::<usize>()));
        let (sum, error) = read(&array.as_bytes()[..1000]);
        assert!(error.unwrap().contains("EOF") && sum.flows.is_empty());
    }
}
