//! Finds how far a file was counted, and extracts the flows that are new.

mod batches;
mod gaps;
mod grown;
mod noted;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::late::Gap;
use super::{Chain, Identity, IdentityNote};
use gaps::FilledGap;

use crate::delivery::IfLate;
use crate::inputs::{Chunk, Location, RecordHashes, RejectedFlow};
use flow::codec::Corrupt;
use flow::{Batch, IdempotencyKey, ReceiptInfo};

/// Maximum number of keys in one lookup.
const KEYS_MAX: usize = 10_000;
/// Up to this number of keys, look up all of them together instead of the last one first.
const KEYS_FEW: usize = 200;

/// Looks up receipts.
pub trait ReceiptLookup {
    /// The receipt or note under each key; `None` if the service does not support lookups.
    fn look_up(
        &mut self,
        keys: &[IdempotencyKey],
    ) -> Result<Option<Vec<Option<ReceiptInfo>>>, String>;
}

/// The result of one chunk.
#[derive(Debug, Default)]
pub struct NewFlows {
    /// New flows. Each batch must be counted after all batches before it.
    pub batches: Vec<Batch>,
    /// The locations of the flows of each batch.
    pub(crate) locations: Vec<Vec<Location>>,
    /// For each batch: the note to store if flows of it are left out.
    pub(crate) if_late: Vec<Option<IfLate>>,
    /// The end of the records that were counted before or are in `batches`.
    pub upto: Option<Location>,
    /// Flows that cannot be counted, because a prefix of their line was counted as something else.
    pub refused: Vec<RejectedFlow>,
    /// A last line that counts but may be cut: its location and its flow.
    pub unfinished: Option<(Location, String)>,
    /// The file is probably an edited copy of a file that was counted at this time.
    pub changed_since_s: Option<u64>,
}

/// Flows that were counted before and are skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AlreadyCounted {
    pub flows: u64,
    /// When they were first counted: seconds since the epoch.
    pub since_s: Option<u64>,
}

impl AlreadyCounted {
    pub fn add(&mut self, other: AlreadyCounted) {
        self.flows += other.flows;
        self.since_s = earlier(self.since_s, other.since_s);
    }
}

fn earlier(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

/// The reason why nothing more of a file can be counted. Times are seconds since the epoch.
#[derive(Debug, PartialEq, Eq)]
pub enum FrontierError {
    /// The same records gave different flows before.
    OtherFlows {
        since_s: u64,
    },
    /// The rest may be the beginning of a file that was counted.
    Shorter {
        since_s: u64,
    },
    /// The receipts of the file's later part have expired, so its flows cannot be recognised.
    Forgotten {
        since_s: u64,
    },
    Failed(String),
}

impl From<Corrupt> for FrontierError {
    fn from(error: Corrupt) -> FrontierError {
        FrontierError::Failed(error.to_string())
    }
}

/// Follows a file chunk by chunk.
#[derive(Debug)]
pub struct Frontier<L> {
    /// `None` if all flows of the file count.
    identity: Option<Identity>,
    receipts: L,
    /// All following records are new.
    pub(crate) is_new: bool,
    lookup_unsupported: bool,
    /// The end of the records that were read.
    read: Chain,
    /// The end of the records that were counted before or passed on as batches.
    counted: Chain,
    /// Records that were read and are not passed on yet.
    pending: VecDeque<PendingChunk>,
    known: AlreadyCounted,
    /// The file's first batch that has a receipt.
    first: Option<FirstBatch>,
    /// The chain after the first 1, 2, 4, 8, … records of the file.
    early: Vec<Chain>,
    /// The number of records that were counted of a file with the same beginning.
    upto: u64,
    /// Flows that were dropped from memory because they are presumed to be counted.
    presumed: u64,
    mark: Option<Mark>,
    /// For each mark that was found: the number of records of its batch.
    marks: HashMap<IdempotencyKey, u64>,
    compared: SketchMatch,
    /// Whether batches were made, so that the records after them are not looked up.
    has_made_batches: bool,
    /// Whether flows were left out of a file with the same first record. `None` until a receipt of it is found.
    has_gaps: Option<bool>,
    /// Batches of flows that were left out of earlier batches.
    refilled: NewFlows,
}

/// The first batch. Its receipt is renewed whenever the file has grown, so it may outlive the receipts of
/// later batches.
#[derive(Debug)]
struct FirstBatch {
    end: Chain,
    since_s: u64,
    /// The chain after the next record.
    next: Option<Chain>,
}

/// The last mark that was found.
#[derive(Clone, Copy, Debug)]
struct Mark {
    index: u64,
    /// A file that reaches this number of records without another mark is not the marked file.
    needed: u64,
    time_s: u64,
}

#[derive(Debug, Default)]
struct SketchMatch {
    batches: u32,
    keys: usize,
    found: usize,
    since_s: Option<u64>,
}

/// The part of a chunk that is not passed on yet.
#[derive(Debug)]
struct PendingChunk {
    batch: Option<Batch>,
    records: Vec<RecordHashes>,
    /// The chain before the first record.
    before: Chain,
    /// The chain after each record.
    chains: Vec<Chain>,
    /// The texts of the records.
    text: Arc<str>,
    /// The last record has no line end.
    ends_within_a_line: bool,
    /// The last record may be cut.
    may_be_cut: bool,
    /// See [`Chunk::late_from`].
    late_from: Option<u32>,
}

impl PendingChunk {
    /// The chain before a record.
    fn before(&self, record: usize) -> Chain {
        match record.checked_sub(1) {
            Some(last) => self.chains[last],
            None => self.before,
        }
    }

    /// Removes the records before the first flow and after the last one, which are not flows. Then other
    /// commands cut the same batches from this file, and records after the last flow can be corrected later.
    fn trim(&mut self) {
        let is_flow = |record: &RecordHashes| record.flow.is_some();
        let end = self
            .records
            .iter()
            .rposition(is_flow)
            .map_or(0, |at| at + 1);
        let begin = self.records.iter().position(is_flow).unwrap_or(0);
        self.before = self.before(begin.min(end));
        self.records.truncate(end);
        self.chains.truncate(end);
        self.records.drain(..begin);
        self.chains.drain(..begin);
    }

    fn flows(&self) -> usize {
        self.batch.as_ref().map_or(0, Batch::flows)
    }

    /// Whether it has flows to send, or flows that were left out and may count now.
    fn has_flows(&self) -> bool {
        let is_late = |record: &RecordHashes| record.flow.is_some() && !record.is_in_batch;
        self.batch.is_some() || self.records.iter().any(is_late)
    }

    /// Splits off the first `records` records and returns them.
    fn split_off(&mut self, records: usize) -> Result<PendingChunk, FrontierError> {
        let rest = self.records.split_off(records);
        let chains = self.chains.split_off(records);
        let flows = self.records.iter().filter(|r| r.is_in_batch).count();
        let all = self.flows();
        let part = |range| match &self.batch {
            Some(batch) if !std::ops::Range::is_empty(&range) => batch.part(range).map(Some),
            _ => Ok(None),
        };
        let (head, tail) = (part(0..flows)?, part(flows..all)?);
        let after = chains_end(&self.chains, self.before);
        Ok(PendingChunk {
            before: std::mem::replace(&mut self.before, after),
            text: self.text.clone(),
            may_be_cut: false,
            late_from: self.late_from,
            records: std::mem::replace(&mut self.records, rest),
            chains: std::mem::replace(&mut self.chains, chains),
            batch: std::mem::replace(&mut self.batch, tail).and(head),
            ends_within_a_line: false,
        })
    }
}

fn chains_end(chains: &[Chain], before: Chain) -> Chain {
    chains.last().copied().unwrap_or(before)
}

impl<L: ReceiptLookup> Frontier<L> {
    pub fn new(identity: Option<Identity>, receipts: L) -> Frontier<L> {
        let begin = identity.as_ref().map_or(
            Chain {
                index: 0,
                content: 0,
                flows: 0,
            },
            Identity::initial_chain,
        );
        Frontier {
            is_new: identity.is_none(),
            identity,
            receipts,
            lookup_unsupported: false,
            read: begin,
            counted: begin,
            pending: VecDeque::new(),
            known: AlreadyCounted::default(),
            first: None,
            early: Vec::new(),
            upto: 0,
            presumed: 0,
            mark: None,
            marks: HashMap::new(),
            compared: SketchMatch::default(),
            has_made_batches: false,
            has_gaps: None,
            refilled: NewFlows::default(),
        }
    }

    /// The flows found so far that were counted before.
    pub fn known(&self) -> AlreadyCounted {
        self.known
    }

    /// Whether the service does not support lookups.
    pub(crate) fn lookup_unsupported(&self) -> bool {
        self.lookup_unsupported
    }

    /// Processes the next chunk of the file.
    pub fn push(&mut self, chunk: Chunk) -> Result<NewFlows, FrontierError> {
        let before = self.read;
        let chains = chunk.records.iter().map(|record| {
            self.read = self.read.extended_by(record);
            if self.read.index.is_power_of_two() {
                self.early.push(self.read);
            }
            self.read
        });
        let pending = PendingChunk {
            chains: chains.collect(),
            before,
            batch: chunk.batch,
            text: chunk.text,
            // If the unterminated line is not the last record, it is not a record.
            ends_within_a_line: chunk.ends_within_a_line
                && chunk
                    .records
                    .last()
                    .is_some_and(|r| r.location == chunk.last),
            may_be_cut: chunk.may_be_cut,
            late_from: chunk.late_from,
            records: chunk.records,
        };
        self.pending.push_back(pending);
        if !self.is_new {
            self.search()?;
        }
        let mut new_flows = std::mem::take(&mut self.refilled);
        if self.is_new {
            self.make_batches(&mut new_flows)?;
        }
        if self.pending.is_empty() && self.presumed == 0 {
            new_flows.upto = Some(chunk.last);
        }
        Ok(new_flows)
    }

    /// Must be called at the end of the file.
    ///
    /// # Errors
    /// If it is unknown whether the rest was counted.
    pub fn finish(&mut self) -> Result<(), FrontierError> {
        let since_s = self.known.since_s.unwrap_or(0);
        match self.mark {
            _ if self.presumed > 0 => Err(FrontierError::Shorter { since_s }),
            Some(mark) if self.has_new_flows() => Err(FrontierError::Shorter {
                since_s: mark.time_s,
            }),
            _ => Ok(()),
        }
    }

    fn has_new_flows(&self) -> bool {
        self.pending.iter().any(PendingChunk::has_flows)
    }

    /// Looks up how many of the pending records were counted, and decides what to do with the rest.
    fn search(&mut self) -> Result<(), FrontierError> {
        let Some(chunk) = self.pending.back() else {
            return Ok(());
        };
        let chains = chunk.chains.clone();
        let Some(ends) = self.find(&chains)? else {
            self.lookup_unsupported = true;
            self.is_new = true;
            return Ok(());
        };
        if let Some(first) = &mut self.first {
            let is_next = |chain: &&Chain| chain.index == first.end.index + 1;
            first.next = first.next.or(chains.iter().find(is_next).copied());
        }
        if let Some(&end) = ends.last() {
            let gaps = self.find_gaps(&ends)?;
            self.skip_to(end, gaps)?;
        }
        if !self.has_new_flows() {
            // No flow is left that could count.
            self.pending.clear();
            self.counted = self.read;
        } else if self.read.index < self.upto && (self.presumed > 0 || self.is_forgotten()?) {
            self.presumed += self.pending.iter().map(|p| p.flows() as u64).sum::<u64>();
            self.pending.clear();
        } else if self.presumed > 0 {
            self.detect_shorter_copy()?;
            let since_s = self.known.since_s.unwrap_or(0);
            return Err(FrontierError::Forgotten { since_s });
        } else if self.mark.is_none_or(|mark| mark.needed <= self.read.index) {
            self.is_new = true;
        }
        Ok(())
    }

    /// See [`ReceiptLookup::look_up`].
    fn look_up(
        &mut self,
        keys: &[IdempotencyKey],
    ) -> Result<Option<Vec<Option<ReceiptInfo>>>, FrontierError> {
        self.receipts.look_up(keys).map_err(FrontierError::Failed)
    }

    /// Whether the record after the first known batch shows that the file is one that was counted further.
    fn is_forgotten(&mut self) -> Result<bool, FrontierError> {
        let is_last = |first: &&FirstBatch| first.end.flows == self.counted.flows;
        let first = self.first.as_ref().filter(is_last);
        let key = first.and_then(|first| first.next?.grown_key());
        let Some(key) = key else { return Ok(false) };
        let kept = self.look_up(&[key])?;
        Ok(kept.is_some_and(|kept| kept.iter().any(Option::is_some)))
    }

    /// Finds those of these points that have a receipt, in order, and collects the marks after them. `None`:
    /// the service does not support lookups. Without gaps, the last point may be the only one that is looked up.
    fn find(&mut self, chains: &[Chain]) -> Result<Option<Vec<Chain>>, FrontierError> {
        // In most cases, either all of a chunk or nothing of it was counted.
        let is_whole = self.first.is_some() && self.has_gaps != Some(true);
        let alone = usize::from(chains.len() > KEYS_FEW && is_whole);
        let (others, last) = chains.split_at(chains.len() - alone);
        let mut found: Vec<Chain> = Vec::new();
        for chains in last.chunks(1).chain(others.chunks(KEYS_MAX)) {
            let keys: Vec<IdempotencyKey> = chains.iter().filter_map(Chain::key).collect();
            let Some(kept) = self.look_up(&keys)? else {
                return Ok(None);
            };
            for ((chain, key), kept) in chains.iter().zip(keys).zip(kept) {
                let Some(kept) = kept else { continue };
                match kept.note.as_deref().and_then(IdentityNote::parse) {
                    Some(IdentityNote::Mark { offset, count }) => {
                        self.note_mark(chain, key, kept.time_s, offset, count);
                    }
                    Some(IdentityNote::End {
                        flows,
                        since_s,
                        upto,
                    }) if found.last().is_none_or(|end| end.index < chain.index) => {
                        let since_s = since_s.unwrap_or(kept.time_s);
                        if flows != chain.flows {
                            return Err(FrontierError::OtherFlows { since_s });
                        }
                        self.known.since_s = earlier(self.known.since_s, Some(since_s));
                        self.upto = self.upto.max(upto);
                        let end = *chain;
                        self.first.get_or_insert(FirstBatch {
                            end,
                            since_s,
                            next: None,
                        });
                        found.push(end);
                    }
                    _ => {}
                }
            }
            if !found.is_empty() && found.last() == last.last() {
                break;
            }
        }
        Ok(Some(found))
    }

    fn note_mark(
        &mut self,
        chain: &Chain,
        key: IdempotencyKey,
        time_s: u64,
        offset: u64,
        count: u64,
    ) {
        self.marks.insert(key, count);
        if self.mark.is_none_or(|mark| mark.index <= chain.index) {
            self.mark = Some(Mark {
                index: chain.index,
                needed: chain.index - offset.min(chain.index) + count.min(2 * offset),
                time_s,
            });
        }
    }

    /// Skips the records up to `end`, which were counted, except the `gaps`.
    fn skip_to(&mut self, end: Chain, gaps: Vec<Gap>) -> Result<(), FrontierError> {
        let mut gaps: Vec<_> = gaps.into_iter().map(FilledGap::from).collect();
        self.known.flows += std::mem::take(&mut self.presumed);
        while let Some(mut chunk) = self.pending.pop_front() {
            let done = chunk.chains.iter().take_while(|c| c.index <= end.index);
            let done = done.count();
            if done < chunk.chains.len() {
                self.skip_chunk(&chunk.split_off(done)?, &mut gaps)?;
                self.pending.push_front(chunk);
                break;
            }
            self.skip_chunk(&chunk, &mut gaps)?;
        }
        self.make_gap_batches(gaps);
        self.counted = end;
        self.mark = self.mark.filter(|mark| mark.index > end.index);
        Ok(())
    }
}
