//! Flows that were read one by one and wait to become a [`Chunk`].

use super::batches::{Chunk, GIVE_AGAIN, RejectedFlow};
use super::flows::{Line, RecordHashes, hash_of_text, hashes};
use super::{InputEnd, Location, RawFlow, RecordText, Skipped, Unusable};
use flow::decode::{self, Format};
use flow::{Batch, Field, HourLimit};

/// An owned [`RecordText`].
pub(super) struct OwnedRecordText {
    text: String,
    last_field: usize,
    last_is_whole: bool,
    is_content: bool,
    last_column: Option<Field>,
}

impl From<RecordText<'_>> for OwnedRecordText {
    fn from(text: RecordText<'_>) -> OwnedRecordText {
        OwnedRecordText {
            text: text.text.to_owned(),
            last_field: text.last_field,
            last_is_whole: text.last_is_whole,
            is_content: text.is_content,
            last_column: text.last_column,
        }
    }
}

/// Decodes flows, and checks their hours.
#[derive(Clone, Copy)]
pub(super) struct FlowDecoder(pub(super) Option<HourLimit>);

impl FlowDecoder {
    /// Returns `batch` if all its hours are within the limit.
    fn validate(self, batch: Batch) -> Result<Batch, String> {
        let checked = self.0.map_or(Ok(()), |limit| limit.validate(&batch));
        let checked = checked.map_err(|e| format!("{}: {e}{GIVE_AGAIN}", Field::Hour.name()));
        checked.map(|()| batch)
    }

    pub(super) fn decode(self, text: &[u8], format: Format) -> Result<Batch, String> {
        let batch = decode::decode(text, format).map_err(|e| e.to_string())?;
        self.validate(batch)
    }
}

/// Flows that were collected one by one and are not passed on yet.
#[derive(Default)]
pub(super) struct Pending {
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
    pub(super) end: InputEnd,
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
    Excluded(RecordHashes),
    /// It turned out not to be a record.
    NotARecord,
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
            Some(content) => PendingRecord::Excluded(RecordHashes {
                content,
                flow,
                is_in_batch: false,
                location,
                line,
            }),
            None => PendingRecord::NotARecord,
        };
    }
}

impl Pending {
    pub(super) fn append(&mut self, raw: RawFlow<'_>, text: Option<OwnedRecordText>) {
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
            (Some(_), Some(content)) => self.records.push(PendingRecord::Excluded(RecordHashes {
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
            last_column: text.last_column,
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
    pub(super) fn bytes(&self) -> usize {
        self.lines.len() + self.refused_bytes
    }

    pub(super) fn into_chunk(mut self, decoder: FlowDecoder) -> Option<Chunk> {
        let last = self.last?;
        let decode = |lines: &str| decoder.decode(lines.as_bytes(), Format::Ndjson);
        let batch = match decode(&self.lines) {
            Ok(batch) => Ok(batch),
            Err(_) => {
                let right = self.remove_invalid_flows(decoder);
                decode(&right)
            }
        };
        let batch = match batch {
            Ok(batch) => (batch.flows() > 0).then_some(batch),
            // Cannot happen, since each line was validated. If it did, refuse the lines instead of losing them.
            Err(error) => {
                self.refuse(last, &self.lines.clone(), error);
                None
            }
        };
        let mut flows = batch.as_ref().map(hashes).unwrap_or_default().into_iter();
        let records = std::mem::take(&mut self.records).into_iter();
        let records = records.filter_map(|record| match record {
            PendingRecord::NotARecord => None,
            PendingRecord::Excluded(record) => Some(record),
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

    /// Validates each line on its own, and returns the valid flows.
    fn remove_invalid_flows(&mut self, decoder: FlowDecoder) -> String {
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
            match read.and_then(|flow| decoder.validate(flow)) {
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
        // Lines that could not be parsed at all are first.
        self.refused.sort_by_key(|refused| refused.location);
        right
    }
}
