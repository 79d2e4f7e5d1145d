//! Cuts the new part of a file into batches, and attaches the notes that are kept with their receipts.

use std::collections::BTreeSet;

use super::super::late::Gap;
use super::super::{Chain, Identity, IdentityNote};
use super::noted::{NotedLines, lines_within};
use super::{FirstBatch, Frontier, FrontierError, NewFlows, PendingChunk, ReceiptLookup, earlier};
use crate::inputs::{RecordHashes, first_to_json};
use flow::{BatchBuilder, IdempotencyKey, Notes};

/// Records per batch that are noted under the file's name.
const SKETCH: usize = 4;
/// Maximum notes of a batch about flows that are left out of it.
const GAP_NOTES_MAX: usize = 4;
/// New batches that are compared with the sketches under the file's name.
const COMPARED_MAX: u32 = 2;

impl<L: ReceiptLookup> Frontier<L> {
    /// Makes batches of all pending chunks.
    pub(super) fn make_batches(&mut self, new_flows: &mut NewFlows) -> Result<(), FrontierError> {
        self.detect_shorter_copy()?;
        while let Some(mut chunk) = self.pending.pop_front() {
            chunk.trim();
            // If the last record may be cut, it becomes a batch of its own. When the file has grown, the
            // records before it are still recognised.
            if chunk.ends_within_a_line && chunk.records.len() > 1 {
                let whole = chunk.split_off(chunk.records.len() - 1)?;
                self.make_line_batches(whole, new_flows)?;
            }
            if let (true, Some(batch), Some(record)) =
                (chunk.may_be_cut, &chunk.batch, chunk.records.last())
            {
                let flow = first_to_json(batch)?;
                new_flows.unfinished = Some((record.location, flow));
            }
            self.make_line_batches(chunk, new_flows)?;
        }
        Ok(())
    }

    /// If a part of the first record was counted before, that record becomes a batch of its own.
    fn make_line_batches(
        &mut self,
        mut chunk: PendingChunk,
        new_flows: &mut NewFlows,
    ) -> Result<(), FrontierError> {
        let mut noted = self.noted_lines(&chunk)?;
        if let Some(grown) = self.split_grown_line(&mut chunk, &noted, new_flows)? {
            self.make_batch(grown, noted, true, new_flows)?;
            noted = self.noted_lines(&chunk)?;
        }
        self.make_batch(chunk, noted, false, new_flows)
    }

    fn make_batch(
        &mut self,
        mut chunk: PendingChunk,
        noted: NotedLines,
        is_grown: bool,
        new_flows: &mut NewFlows,
    ) -> Result<(), FrontierError> {
        chunk.trim();
        let Some(end) = chunk.chains.last().filter(|_| chunk.has_flows()) else {
            return Ok(());
        };
        // If all flows are left out, an empty batch is sent, because later batches depend on its notes.
        let none = || BatchBuilder::with_capacity(0).finish();
        let mut batch = chunk.batch.clone().unwrap_or_else(none);
        let mut if_late = None;
        if let (Some(identity), Some(key)) = (self.identity.clone(), end.key()) {
            let sketch = sketch(&identity, &chunk.records);
            self.compare(&sketch, &chunk, new_flows)?;
            let mut notes = self.notes(&chunk, *end, sketch, noted)?;
            let gap = Gap::empty(*end, chunk.before);
            notes.others.extend(self.gap_notes(&gap, chunk.late_from));
            // The batch of a grown line has only the difference to what was counted, so it is not split again.
            if_late = (!is_grown).then(|| self.if_late(&gap, &notes));
            batch = batch.with_key(key).with_notes(notes);
        }
        self.counted = *end;
        self.has_made_batches = true;
        new_flows.if_late.push(if_late);
        new_flows.batches.push(batch);
        let in_batch = chunk.records.iter().filter(|record| record.is_in_batch);
        new_flows
            .locations
            .push(in_batch.map(|record| record.location).collect());
        Ok(())
    }

    fn notes(
        &mut self,
        chunk: &PendingChunk,
        end: Chain,
        sketch: Vec<IdempotencyKey>,
        noted: NotedLines,
    ) -> Result<Notes, FrontierError> {
        let count = chunk.chains.len() as u64;
        let mut notes = Notes {
            own: IdentityNote::End {
                flows: end.flows,
                since_s: None,
                upto: 0,
            }
            .note(),
            ..Notes::default()
        };
        let mut add = |key: Option<IdempotencyKey>, noted: IdentityNote| {
            notes.others.extend(key.zip(noted.note()));
        };
        if let Some(FirstBatch {
            end: first,
            since_s,
            next,
        }) = self.first
        {
            let noted = IdentityNote::End {
                flows: first.flows,
                since_s: Some(since_s),
                upto: end.index,
            };
            add(first.key(), noted);
            let early = self.early.iter();
            for chain in early.take_while(|chain| chain.index < first.index) {
                let (offset, count) = (chain.index, first.index);
                add(chain.key(), IdentityNote::Mark { offset, count });
            }
            add(next.and_then(|next| next.grown_key()), IdentityNote::Grown);
        }
        let offsets = (0..).map(|power| 1_u64 << power);
        for offset in offsets.take_while(|&offset| offset < count) {
            let key = chunk.chains[offset as usize - 1].key();
            let of_other = key.as_ref().and_then(|key| self.marks.get(key));
            let count = of_other.map_or(count, |&other| other.max(count));
            add(key, IdentityNote::Mark { offset, count });
        }
        for key in sketch {
            add(Some(key), IdentityNote::Sketch);
        }
        notes.others.extend(noted.first);
        notes.others.extend(lines_within(chunk)?);
        notes.others.truncate(Notes::COUNT_MAX - GAP_NOTES_MAX);
        // If another command counts this file at the same time, its batch begins with the same record, in any
        // format. In a batch of one record, this key is the batch's own key, under which a mark is not a receipt.
        let first = chunk.chains[0].key();
        let first = first.filter(|key| !self.marks.contains_key(key));
        notes.excluded_by = noted.unless.into_iter().chain(first).collect();
        Ok(notes)
    }

    /// Compares the first new batches with the sketches under the file's name.
    fn compare(
        &mut self,
        sketch: &[IdempotencyKey],
        chunk: &PendingChunk,
        new_flows: &mut NewFlows,
    ) -> Result<(), FrontierError> {
        if self.lookup_unsupported || self.compared.batches == COMPARED_MAX || sketch.len() < SKETCH
        {
            return Ok(());
        }
        let kept = self.look_up(sketch)?;
        let compared = &mut self.compared;
        compared.batches += 1;
        compared.keys += sketch.len();
        for kept in kept.unwrap_or_default().into_iter().flatten() {
            compared.found += 1;
            compared.since_s = earlier(compared.since_s, Some(kept.time_s));
        }
        if 2 * compared.found >= compared.keys {
            compared.batches = COMPARED_MAX;
            let since_s = compared.since_s;
            if !self.is_counted_meanwhile(chunk)? {
                new_flows.changed_since_s = since_s;
            }
        }
        Ok(())
    }

    /// Whether another command is sending the same file and has sent this batch, or one with the same first
    /// record.
    fn is_counted_meanwhile(&mut self, chunk: &PendingChunk) -> Result<bool, FrontierError> {
        let chains = chunk.chains.first().into_iter().chain(chunk.chains.last());
        let keys = chains
            .filter_map(Chain::key)
            .filter(|key| !self.marks.contains_key(key));
        let keys: Vec<_> = keys.collect();
        let kept = self.look_up(&keys)?;
        Ok(kept.into_iter().flatten().any(|kept| kept.is_some()))
    }
}

/// Keys for the sketch of a batch: its smallest record hashes, fewer if records repeat.
fn sketch(identity: &Identity, records: &[RecordHashes]) -> Vec<IdempotencyKey> {
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
