//! The batches of what is new of a file, and the notes that are kept with them.

use std::collections::BTreeSet;

use super::super::{Chain, Identity, Noted, key, link};
use super::{First, Frontier, LookUp, Piece, Stop, Taken, earlier};
use crate::cli::source;
use crate::domain::{IdempotencyKey, Notes};
use crate::input::{Place, RecordHash, Refused, truncations};
use crate::store::{Kept, codec};

/// Records of a batch that are noted under the file's name.
const SKETCH: usize = 4;
/// New batches that are compared with what is noted under the file's name.
const COMPARED: u32 = 2;

impl<L: LookUp> Frontier<L> {
    /// Makes batches of all that is pending.
    pub(super) fn hand_out(&mut self, taken: &mut Taken) -> Result<(), Stop> {
        while let Some(mut piece) = self.pending.pop_front() {
            self.leave_out_what_was_cut_off(&mut piece, taken)?;
            // The last record is a batch of its own where it may be the beginning of one: then a file
            // that has grown is known up to the record before.
            if piece.ends_within_a_line && piece.records.len() > 1 {
                let whole = piece.split_off(piece.records.len() - 1)?;
                self.hand_out_piece(whole, taken)?;
            }
            self.hand_out_piece(piece, taken)?;
        }
        Ok(())
    }

    fn hand_out_piece(&mut self, mut piece: Piece, taken: &mut Taken) -> Result<(), Stop> {
        // It begins with a flow: so do all batches that others make of the same file from here on.
        let before = piece.records.iter().take_while(|r| r.flow.is_none());
        let before = before.count();
        piece.records.drain(..before);
        piece.chains.drain(..before);
        let Some((batch, end)) = piece.batch.as_ref().zip(piece.chains.last()) else {
            return Ok(());
        };
        let mut batch = batch.clone();
        if let (Some(identity), Some(key)) = (self.identity.clone(), end.key()) {
            let sketch = sketch(&identity, &piece.records);
            self.compare(&sketch, taken)?;
            batch = batch
                .with_key(key)
                .with_notes(self.notes(&piece, *end, sketch));
        }
        self.counted = *end;
        taken.batches.push(batch);
        Ok(())
    }

    fn notes(&mut self, piece: &Piece, end: Chain, sketch: Vec<IdempotencyKey>) -> Notes {
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
        // Whoever else counts this file at the same time begins with the same flow. For a batch of one record this
        // is its own key: a mark under that is no receipt, and refuses the batch only if it is asked about.
        let first = piece.chains[0].key();
        notes.unless = first.filter(|key| !self.marks.contains_key(key));
        notes
    }

    /// Compares the first new batches with what is noted under the file's name.
    fn compare(&mut self, sketch: &[IdempotencyKey], taken: &mut Taken) -> Result<(), Stop> {
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
            taken.changed_since_s = compared.since_s;
        }
        Ok(())
    }

    /// A file that ended within a line may have been counted with what was there of its last record. What
    /// has become of that record cannot be counted beside it.
    fn leave_out_what_was_cut_off(
        &mut self,
        piece: &mut Piece,
        taken: &mut Taken,
    ) -> Result<(), Stop> {
        let is_first = !std::mem::replace(&mut self.has_handed_out, true) && !self.cannot_ask;
        let (Some(first), Some(batch)) = (piece.records.first(), &piece.batch) else {
            return Ok(());
        };
        // Of a flow that is made of a text, it is not known what less of that would give.
        if !is_first || self.identity.is_none() || first.flow != Some(first.content) {
            return Ok(());
        }
        let (text, shorter) = truncations(batch);
        let keys: Vec<_> = shorter
            .into_iter()
            .filter_map(|flow| key(link(self.counted.content, flow)))
            .collect();
        let kept = self.receipts.look_up(&keys).map_err(Stop::Failed)?;
        let is_end = |kept: &Kept| {
            let noted = kept.note.as_deref().and_then(Noted::parse);
            matches!(noted, Some(Noted::End { .. }))
        };
        let counted = kept.into_iter().flatten().flatten().find(is_end);
        let Some(counted) = counted else {
            return Ok(());
        };
        let place = Place::Flow(self.counted.index);
        let failed = |e: codec::Corrupt| Stop::Failed(e.to_string());
        let rest = batch.part(1..batch.flows()).map_err(failed)?;
        piece.batch = (rest.flows() > 0).then_some(rest);
        piece.records[0].flow = None;
        taken.refused.push(Refused {
            place,
            text,
            why: format!(
                "the file ended within this flow when it was counted on {}; what was there of the flow \
                 counts, and the flow does not",
                source::time(counted.time_s)
            ),
        });
        Ok(())
    }
}

/// The records of a batch that are noted under the file's name: fewer where many are the same.
fn sketch(identity: &Identity, records: &[RecordHash]) -> Vec<IdempotencyKey> {
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
