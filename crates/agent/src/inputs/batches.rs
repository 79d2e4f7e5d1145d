//! Cuts an input into batches. The same input always gives the same batches.
//!
//! A block of JSON is decoded as a whole, so this path is as fast as a POST. If the block has an error, and for all
//! other formats, flows are collected one by one as lines of NDJSON. If the decoder refuses these, each line is
//! validated on its own and the invalid ones are left out.

use std::io::Read;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::flows::RecordHashes;
use super::pending::{FlowDecoder, OwnedRecordText, Pending};
use super::window::{BLOCK_BYTES, ReadMode};
use super::{InputError, Location, RawBlock, RawFlow, Reader, RecordText, Sink, Skipped};
use flow::Batch;
use flow::decode::Format;

/// A section of an input, decoded.
#[derive(Debug)]
pub struct Chunk {
    /// Its flows; `None` if it has none.
    pub(crate) batch: Option<Batch>,
    /// The records of its flows, in order, including records that other options would turn into flows.
    pub(crate) records: Vec<RecordHashes>,
    /// The texts of the records, in formats that need them.
    pub(crate) text: Arc<str>,
    /// The input ends inside a line here, so the last record may be incomplete.
    pub(crate) ends_within_a_line: bool,
    /// The same, and nothing proves that the last record is complete.
    pub(crate) may_be_cut: bool,
    /// Flows of this hour and later ones are left out: they are too far ahead of the clock.
    pub(crate) late_from: Option<u32>,
    /// Text that is not a flow, in order.
    pub refused: Vec<RejectedFlow>,
    pub skipped: Skipped,
    /// The location of the last record.
    pub(crate) last: Location,
}

/// The remedy for an hour that is too far ahead.
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
    pub(crate) fn read_batches(
        self,
        mut each: impl FnMut(Chunk) -> ControlFlow<()>,
    ) -> Result<(), InputError> {
        let mut batcher = Batcher {
            each: &mut each,
            stopped: false,
            decoder: FlowDecoder(self.hour_limit),
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
    decoder: FlowDecoder,
    /// The text of the next flow's record.
    next: Option<OwnedRecordText>,
    pending: Pending,
}

impl Sink for Batcher<'_> {
    fn text(&mut self, text: RecordText<'_>) {
        self.next = Some(text.into());
    }

    /// A full batch is passed on only when another flow arrives, so the last batch is complete at the end of
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
        let Ok(batch) = self.decoder.decode(block.text, block.format) else {
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
        match std::mem::take(&mut self.pending).into_chunk(self.decoder) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use flow::decode;

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

    /// The flows are the same in every format; no block is cut inside a flow.
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
