//! The batches of what is new of a file, and the notes that are kept with them.

use std::collections::BTreeSet;

use super::super::late::Gap;
use super::super::{Chain, Identity, Noted};
use super::grown::{NotedLines, lines_within};
use super::{First, Frontier, LookUp, Piece, Stop, Taken, earlier};
use crate::inputs::{Record, first_to_json};
use flow::{BatchBuilder, IdempotencyKey, Notes, codec};

/// Records of a batch that are noted under the file's name.
const SKETCH: usize = 4;
/// New batches that are compared with what is noted under the file's name.
const COMPARED: u32 = 2;

impl<L: LookUp> Frontier<L> {
    /// Makes batches of all that is pending.
    pub(super) fn hand_out(&mut self, taken: &mut Taken) -> Result<(), Stop> {
        self.check_last_line()?;
        while let Some(mut piece) = self.pending.pop_front() {
            piece.trim();
            // The last record is a batch of its own where it may be the beginning of one: then a file
            // that has grown is known up to the record before.
            if piece.ends_within_a_line && piece.records.len() > 1 {
                let whole = piece.split_off(piece.records.len() - 1)?;
                self.hand_out_lines(whole, taken)?;
            }
            if let (true, Some(batch), Some(record)) =
                (piece.may_be_cut, &piece.batch, piece.records.last())
            {
                let flow = first_to_json(batch).map_err(failed)?;
                taken.unfinished = Some((record.place, flow));
            }
            self.hand_out_lines(piece, taken)?;
        }
        Ok(())
    }

    /// The first record is a batch of its own where a part of it was counted.
    fn hand_out_lines(&mut self, mut piece: Piece, taken: &mut Taken) -> Result<(), Stop> {
        let mut noted = self.noted_lines(&piece)?;
        if let Some(grown) = self.take_grown_line(&mut piece, &noted, taken)? {
            self.hand_out_piece(grown, noted, true, taken)?;
            noted = self.noted_lines(&piece)?;
        }
        self.hand_out_piece(piece, noted, false, taken)
    }

    fn hand_out_piece(
        &mut self,
        mut piece: Piece,
        noted: NotedLines,
        is_grown: bool,
        taken: &mut Taken,
    ) -> Result<(), Stop> {
        piece.trim();
        let Some(end) = piece.chains.last().filter(|_| piece.has_flows()) else {
            return Ok(());
        };
        // An empty one where all are left out: what comes after them needs what is noted with it.
        let none = || BatchBuilder::with_capacity(0).finish();
        let mut batch = piece.batch.clone().unwrap_or_else(none);
        let mut if_late = None;
        if let (Some(identity), Some(key)) = (self.identity.clone(), end.key()) {
            let sketch = sketch(&identity, &piece.records);
            self.compare(&sketch, &piece, taken)?;
            let mut notes = self.notes(&piece, *end, sketch, noted);
            let gap = Gap::of_batch(*end, piece.before);
            notes.others.extend(self.left_out(&gap, piece.late_from));
            // What counts of a line that has grown is not all of it.
            if_late = (!is_grown).then(|| self.if_late(&gap, &notes));
            batch = batch.with_key(key).with_notes(notes);
        }
        self.counted = *end;
        taken.if_late.push(if_late);
        taken.batches.push(batch);
        let in_batch = piece.records.iter().filter(|record| record.is_in_batch);
        taken
            .places
            .push(in_batch.map(|record| record.place).collect());
        Ok(())
    }

    fn notes(
        &mut self,
        piece: &Piece,
        end: Chain,
        sketch: Vec<IdempotencyKey>,
        noted: NotedLines,
    ) -> Notes {
        let count = piece.chains.len() as u64;
        let mut notes = Notes {
            own: Noted::End {
                flows: end.flows,
                since_s: None,
                upto: 0,
            }
            .note(),
            ..Notes::default()
        };
        let mut add = |key: Option<IdempotencyKey>, noted: Noted| {
            notes.others.extend(key.zip(noted.note()));
        };
        if let Some(First {
            end: first,
            since_s,
            next,
        }) = self.first
        {
            let noted = Noted::End {
                flows: first.flows,
                since_s: Some(since_s),
                upto: end.index,
            };
            add(first.key(), noted);
            let early = self.early.iter();
            for chain in early.take_while(|chain| chain.index < first.index) {
                let (offset, count) = (chain.index, first.index);
                add(chain.key(), Noted::Mark { offset, count });
            }
            add(next.and_then(|next| next.grown_key()), Noted::Grown);
        }
        let offsets = (0..).map(|power| 1_u64 << power);
        for offset in offsets.take_while(|&offset| offset < count) {
            let key = piece.chains[offset as usize - 1].key();
            let of_other = key.as_ref().and_then(|key| self.marks.get(key));
            let count = of_other.map_or(count, |&other| other.max(count));
            add(key, Noted::Mark { offset, count });
        }
        for key in sketch {
            add(Some(key), Noted::Sketch);
        }
        notes.others.extend(noted.first);
        notes.others.extend(lines_within(piece));
        // Another command that counts this file at the same time begins with the same line, or flow.
        // For a batch of one record this is its own key: a mark under that is no receipt.
        let first = piece.chains[0].key();
        let first = first.filter(|key| !self.marks.contains_key(key));
        notes.excluded_by = noted.unless.or(first);
        notes
    }

    /// Compares the first new batches with what is noted under the file's name.
    fn compare(
        &mut self,
        sketch: &[IdempotencyKey],
        piece: &Piece,
        taken: &mut Taken,
    ) -> Result<(), Stop> {
        if self.cannot_ask || self.compared.blocks == COMPARED || sketch.len() < SKETCH {
            return Ok(());
        }
        let kept = self.receipts.look_up(sketch).map_err(Stop::Failed)?;
        let compared = &mut self.compared;
        compared.blocks += 1;
        compared.keys += sketch.len();
        for kept in kept.unwrap_or_default().into_iter().flatten() {
            compared.found += 1;
            compared.since_s = earlier(compared.since_s, Some(kept.time_s));
        }
        if 2 * compared.found >= compared.keys {
            compared.blocks = COMPARED;
            let since_s = compared.since_s;
            if !self.is_counted_meanwhile(piece)? {
                taken.changed_since_s = since_s;
            }
        }
        Ok(())
    }

    /// Whether another command sends the same file, and has this batch, or one that begins as it does.
    fn is_counted_meanwhile(&mut self, piece: &Piece) -> Result<bool, Stop> {
        let chains = piece.chains.first().into_iter().chain(piece.chains.last());
        let keys = chains
            .filter_map(Chain::key)
            .filter(|key| !self.marks.contains_key(key));
        let keys: Vec<_> = keys.collect();
        let kept = self.receipts.look_up(&keys).map_err(Stop::Failed)?;
        Ok(kept.into_iter().flatten().any(|kept| kept.is_some()))
    }
}

fn failed(error: codec::Corrupt) -> Stop {
    Stop::Failed(error.to_string())
}

/// The records of a batch that are noted under the file's name: fewer where many are the same.
fn sketch(identity: &Identity, records: &[Record]) -> Vec<IdempotencyKey> {
    let mut smallest = BTreeSet::new();
    for record in records {
        let is_smaller = smallest.last().is_none_or(|&last| record.content < last);
        if smallest.len() < SKETCH || is_smaller {
            smallest.insert(record.content);
            if smallest.len() > SKETCH {
                smallest.pop_last();
            }
        }
    }
    let keys = smallest.into_iter();
    keys.filter_map(|content| identity.sketch_key(content))
        .collect()
}
