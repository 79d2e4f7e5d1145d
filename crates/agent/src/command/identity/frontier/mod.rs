//! How far a file was counted, and what of it is new.

mod batches;
mod gaps;
mod grown;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::late::Gap;
use super::lines::LineText;
use super::{Chain, Identity, Noted};
use gaps::FilledGap;

use crate::delivery::IfLate;
use crate::inputs::{Part, Place, Record, Refused};
use flow::{Batch, IdempotencyKey, ReceiptInfo};

/// Keys that are asked about at once.
const KEYS_MAX: usize = 10_000;
/// So few are asked about at once without asking about the last one first.
const KEYS_FEW: usize = 200;

/// Where receipts are.
pub trait LookUp {
    /// What is kept under each key; `None` where that cannot be asked there.
    fn look_up(
        &mut self,
        keys: &[IdempotencyKey],
    ) -> Result<Option<Vec<Option<ReceiptInfo>>>, String>;
}

/// What came of a part.
#[derive(Debug, Default)]
pub struct Taken {
    /// Flows that are new, each batch to be counted after all that were handed out before it.
    pub batches: Vec<Batch>,
    /// Of each batch: where its flows are.
    pub places: Vec<Vec<Place>>,
    /// Of each batch: what to note where flows of it are left out.
    pub if_late: Vec<Option<IfLate>>,
    /// Up to where the file was counted before, or is in batches.
    pub upto: Option<Place>,
    /// Flows that cannot be counted, since a beginning of them was.
    pub refused: Vec<Refused>,
    /// The last line, which counts and may have been cut: where it is, and its flow.
    pub unfinished: Option<(Place, String)>,
    /// The file is likely a changed copy of one that was counted at this time.
    pub changed_since_s: Option<u64>,
}

/// What was counted before, and is not again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    pub flows: u64,
    /// When that was counted first: seconds since the epoch.
    pub since_s: Option<u64>,
}

impl Known {
    pub fn add(&mut self, other: Known) {
        self.flows += other.flows;
        self.since_s = earlier(self.since_s, other.since_s);
    }
}

fn earlier(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

/// Why nothing more of a file can be counted. Times are seconds since the epoch.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// The same records gave other flows before.
    OtherFlows {
        since_s: u64,
    },
    /// What is left may be the beginning of a file that was counted.
    Shorter {
        since_s: u64,
    },
    /// The file goes on otherwise than what is still known of it.
    Forgotten {
        since_s: u64,
    },
    Failed(String),
}

/// Follows a file part by part.
#[derive(Debug)]
pub struct Frontier<L> {
    /// `None` where all of it counts.
    identity: Option<Identity>,
    receipts: L,
    /// Everything from here on is new.
    pub is_new: bool,
    cannot_ask: bool,
    /// Up to what was read.
    read: Chain,
    /// Up to what was counted before, or handed out.
    counted: Chain,
    /// What was read after that.
    pending: VecDeque<Piece>,
    known: Known,
    /// The first batch of the file that is known.
    first: Option<First>,
    /// After the first 1, 2, 4, 8, … records of the file.
    early: Vec<Chain>,
    /// So many records of a file that begins in the same way were counted.
    upto: u64,
    /// Flows that were read on the way there, and not held on to.
    presumed: u64,
    mark: Option<Mark>,
    /// Of each mark that was found: the records of its batch.
    marks: HashMap<IdempotencyKey, u64>,
    compared: Compared,
    /// Whether flows of a file that begins like this one were left out; unknown before a batch is known.
    has_gaps: Option<bool>,
    /// What was left out of batches that are known, and is handed out again.
    again: Taken,
}

/// Its receipt is written anew whenever the file has grown: those behind it may be forgotten.
#[derive(Debug)]
struct First {
    end: Chain,
    since_s: u64,
    /// With the record behind it.
    next: Option<Chain>,
}

/// The last mark that was found.
#[derive(Clone, Copy, Debug)]
struct Mark {
    index: u64,
    /// A file that has so many records is not what the mark is of, unless it finds more.
    needed: u64,
    time_s: u64,
}

#[derive(Debug, Default)]
struct Compared {
    blocks: u32,
    keys: usize,
    found: usize,
    since_s: Option<u64>,
}

/// A part, or what of it is new.
#[derive(Debug)]
struct Piece {
    batch: Option<Batch>,
    records: Vec<Record>,
    /// Before the first of them.
    before: Chain,
    /// After each of them.
    chains: Vec<Chain>,
    /// Texts of records.
    text: Arc<str>,
    /// The last record has no end of a line.
    ends_within_a_line: bool,
    /// The last record may be the beginning of another.
    may_be_cut: bool,
    /// See [`Part::late_from`].
    late_from: Option<u32>,
}

impl Piece {
    /// The text of a record, in formats in which its line may be cut.
    fn line(&self, record: usize) -> Option<LineText<'_>> {
        let line = self.records.get(record)?.line?;
        let text =
            |range: std::ops::Range<u32>| self.text.get(range.start as usize..range.end as usize);
        Some(LineText {
            stem: text(line.start..line.last_field)?,
            last: text(line.last_field..line.end)?,
        })
    }

    /// Before a record.
    fn before(&self, record: usize) -> Chain {
        match record.checked_sub(1) {
            Some(last) => self.chains[last],
            None => self.before,
        }
    }

    /// Takes away what stands before its first flow and behind its last one: batches that others make of
    /// the same file begin there, too, and what is behind a flow may be mended.
    fn trim(&mut self) {
        let is_flow = |record: &Record| record.flow.is_some();
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

    /// Some may be left out, and count the next time.
    fn has_flows(&self) -> bool {
        let is_late = |record: &Record| record.flow.is_some() && !record.is_in_batch;
        self.batch.is_some() || self.records.iter().any(is_late)
    }

    /// Takes the first so many records away, and returns them.
    fn split_off(&mut self, records: usize) -> Result<Piece, Stop> {
        let rest = self.records.split_off(records);
        let chains = self.chains.split_off(records);
        let flows = self.records.iter().filter(|r| r.is_in_batch).count();
        let all = self.flows();
        let part = |range| match &self.batch {
            Some(batch) if !std::ops::Range::is_empty(&range) => batch.part(range).map(Some),
            _ => Ok(None),
        };
        let failed = |e: flow::codec::Corrupt| Stop::Failed(e.to_string());
        let (head, tail) = (
            part(0..flows).map_err(failed)?,
            part(flows..all).map_err(failed)?,
        );
        let after = chains_end(&self.chains, self.before);
        Ok(Piece {
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

impl<L: LookUp> Frontier<L> {
    pub fn new(identity: Option<Identity>, receipts: L) -> Frontier<L> {
        let begin = identity.as_ref().map_or(
            Chain {
                index: 0,
                content: 0,
                flows: 0,
            },
            Identity::begin,
        );
        Frontier {
            is_new: identity.is_none(),
            identity,
            receipts,
            cannot_ask: false,
            read: begin,
            counted: begin,
            pending: VecDeque::new(),
            known: Known::default(),
            first: None,
            early: Vec::new(),
            upto: 0,
            presumed: 0,
            mark: None,
            marks: HashMap::new(),
            compared: Compared::default(),
            has_gaps: None,
            again: Taken::default(),
        }
    }

    /// What was found so far that is not counted again.
    pub fn known(&self) -> Known {
        self.known
    }

    /// Whether it was not possible to ask what was counted.
    pub fn cannot_ask(&self) -> bool {
        self.cannot_ask
    }

    /// Takes the next part of the file.
    pub fn take(&mut self, part: Part) -> Result<Taken, Stop> {
        let before = self.read;
        let chains = part.records.iter().map(|record| {
            self.read = self.read.with(record);
            if self.read.index.is_power_of_two() {
                self.early.push(self.read);
            }
            self.read
        });
        let piece = Piece {
            chains: chains.collect(),
            before,
            batch: part.batch,
            text: part.text,
            // Where it is not the last record that has no end, that is none.
            ends_within_a_line: part.ends_within_a_line
                && part.records.last().is_some_and(|r| r.place == part.last),
            may_be_cut: part.may_be_cut,
            late_from: part.late_from,
            records: part.records,
        };
        self.pending.push_back(piece);
        if !self.is_new {
            self.search()?;
        }
        let mut taken = std::mem::take(&mut self.again);
        if self.is_new {
            self.hand_out(&mut taken)?;
        }
        if self.pending.is_empty() && self.presumed == 0 {
            taken.upto = Some(part.last);
        }
        Ok(taken)
    }

    /// The file has ended.
    ///
    /// # Errors
    /// Where it cannot be told whether what is left was counted.
    pub fn finish(&mut self) -> Result<(), Stop> {
        let since_s = self.known.since_s.unwrap_or(0);
        match self.mark {
            _ if self.presumed > 0 => Err(Stop::Shorter { since_s }),
            Some(mark) if self.has_new_flows() => Err(Stop::Shorter {
                since_s: mark.time_s,
            }),
            _ => Ok(()),
        }
    }

    fn has_new_flows(&self) -> bool {
        self.pending.iter().any(Piece::has_flows)
    }

    /// Looks whether the last of the pending pieces was counted, and decides what that makes of all.
    fn search(&mut self) -> Result<(), Stop> {
        let Some(piece) = self.pending.back() else {
            return Ok(());
        };
        let chains = piece.chains.clone();
        let Some(ends) = self.find(&chains)? else {
            self.cannot_ask = true;
            self.is_new = true;
            return Ok(());
        };
        if let Some(first) = &mut self.first {
            let is_next = |chain: &&Chain| chain.index == first.end.index + 1;
            first.next = first.next.or(chains.iter().find(is_next).copied());
        }
        if let Some(&end) = ends.last() {
            let gaps = self.gaps(&ends)?;
            self.skip_to(end, gaps)?;
        }
        if !self.has_new_flows() {
            // Nothing that could count.
            self.pending.clear();
            self.counted = self.read;
        } else if self.read.index < self.upto && (self.presumed > 0 || self.is_forgotten()?) {
            self.presumed += self.pending.iter().map(|p| p.flows() as u64).sum::<u64>();
            self.pending.clear();
        } else if self.presumed > 0 {
            self.check_last_line()?;
            let since_s = self.known.since_s.unwrap_or(0);
            return Err(Stop::Forgotten { since_s });
        } else if self.mark.is_none_or(|mark| mark.needed <= self.read.index) {
            self.is_new = true;
        }
        Ok(())
    }

    /// Whether the file goes on, behind the first batch that is known, as one that was counted further.
    fn is_forgotten(&mut self) -> Result<bool, Stop> {
        let is_last = |first: &&First| first.end.flows == self.counted.flows;
        let first = self.first.as_ref().filter(is_last);
        let key = first.and_then(|first| first.next?.grown_key());
        let Some(key) = key else { return Ok(false) };
        let kept = self.receipts.look_up(&[key]).map_err(Stop::Failed)?;
        Ok(kept.is_some_and(|kept| kept.iter().any(Option::is_some)))
    }

    /// Those of these that everything up to was counted, in order, and notes marks behind them; `None` where
    /// that cannot be asked. Where there are no gaps, the last one may be all that is looked for.
    fn find(&mut self, chains: &[Chain]) -> Result<Option<Vec<Chain>>, Stop> {
        // Mostly, all of a part was counted, or nothing of it.
        let is_whole = self.first.is_some() && self.has_gaps != Some(true);
        let alone = usize::from(chains.len() > KEYS_FEW && is_whole);
        let (others, last) = chains.split_at(chains.len() - alone);
        let mut found: Vec<Chain> = Vec::new();
        for chains in last.chunks(1).chain(others.chunks(KEYS_MAX)) {
            let keys: Vec<IdempotencyKey> = chains.iter().filter_map(Chain::key).collect();
            let Some(kept) = self.receipts.look_up(&keys).map_err(Stop::Failed)? else {
                return Ok(None);
            };
            for ((chain, key), kept) in chains.iter().zip(keys).zip(kept) {
                let Some(kept) = kept else { continue };
                match kept.note.as_deref().and_then(Noted::parse) {
                    Some(Noted::Mark { offset, count }) => {
                        self.note_mark(chain, key, kept.time_s, offset, count);
                    }
                    Some(Noted::End {
                        flows,
                        since_s,
                        upto,
                    }) if found.last().is_none_or(|end| end.index < chain.index) => {
                        let since_s = since_s.unwrap_or(kept.time_s);
                        if flows != chain.flows {
                            return Err(Stop::OtherFlows { since_s });
                        }
                        self.known.since_s = earlier(self.known.since_s, Some(since_s));
                        self.upto = self.upto.max(upto);
                        let end = *chain;
                        self.first.get_or_insert(First {
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

    /// Everything up to `end` was counted, but for the `gaps`.
    fn skip_to(&mut self, end: Chain, gaps: Vec<Gap>) -> Result<(), Stop> {
        let mut gaps: Vec<_> = gaps.into_iter().map(FilledGap::from).collect();
        self.known.flows += std::mem::take(&mut self.presumed);
        while let Some(mut piece) = self.pending.pop_front() {
            let done = piece.chains.iter().take_while(|c| c.index <= end.index);
            let done = done.count();
            if done < piece.chains.len() {
                self.pass(&piece.split_off(done)?, &mut gaps)?;
                self.pending.push_front(piece);
                break;
            }
            self.pass(&piece, &mut gaps)?;
        }
        self.hand_out_gaps(gaps);
        self.counted = end;
        self.mark = self.mark.filter(|mark| mark.index > end.index);
        Ok(())
    }
}
