//! Finds the flows that were left out of batches that were counted, and makes batches of them.

use super::super::Chain;
use super::super::late::{self, Gap};
use super::{Frontier, FrontierError, KEYS_MAX, PendingChunk, ReceiptLookup};
use crate::delivery::IfLate;
use crate::inputs::Location;
use flow::codec::{self, FlowKey};
use flow::{Batch, BatchBuilder, IdempotencyKey, Note, Notes};

/// A gap, and the flows of it that were read.
pub(super) struct FilledGap {
    gap: Gap,
    flows: BatchBuilder,
    locations: Vec<Location>,
    /// See [`Chunk::late_from`](crate::inputs::Chunk::late_from).
    late_from: Option<u32>,
}

impl From<Gap> for FilledGap {
    fn from(gap: Gap) -> FilledGap {
        FilledGap {
            gap,
            flows: BatchBuilder::with_capacity(0),
            locations: Vec::new(),
            late_from: None,
        }
    }
}

impl<L: ReceiptLookup> Frontier<L> {
    /// Finds the gaps of the batches that end at `ends`, without those that were counted since.
    pub(super) fn find_gaps(&mut self, ends: &[Chain]) -> Result<Vec<Gap>, FrontierError> {
        if self.has_gaps.is_none() {
            let note = self.early.first().and_then(late::gaps_note);
            let found = self.notes_of(note.map(|(key, _)| key).as_slice())?;
            self.has_gaps = Some(found.iter().any(Option::is_some));
        }
        if self.has_gaps == Some(false) {
            return Ok(Vec::new());
        }
        let mut gaps = Vec::new();
        let mut open: Vec<_> = ends.iter().map(|&end| Gap::empty(end, end)).collect();
        while !open.is_empty() {
            let keys: Vec<_> = open.iter().filter_map(Gap::note_key).collect();
            let notes = self.notes_of(&keys)?;
            let left_out = open.into_iter().zip(notes);
            let left_out = left_out.filter_map(|(gap, note)| gap.with_note(&note.flatten()?));
            let left_out: Vec<_> = left_out.collect();
            let keys: Vec<_> = left_out.iter().filter_map(Gap::batch_key).collect();
            let sent = self.notes_of(&keys)?;
            let (sent, unsent): (Vec<_>, Vec<_>) = left_out
                .into_iter()
                .zip(sent)
                .partition(|(_, sent)| sent.is_some());
            gaps.extend(unsent.into_iter().map(|(gap, _)| gap));
            // A gap that was sent since has a receipt, which may have a note of a further gap.
            open = sent.into_iter().map(|(gap, _)| gap.next()).collect();
        }
        Ok(gaps)
    }

    /// For each key: `None` without a receipt, otherwise its note, if it has one.
    fn notes_of(
        &mut self,
        keys: &[IdempotencyKey],
    ) -> Result<Vec<Option<Option<Box<str>>>>, FrontierError> {
        let mut notes = Vec::with_capacity(keys.len());
        for keys in keys.chunks(KEYS_MAX) {
            let kept = self.look_up(keys)?;
            let kept = kept.unwrap_or_else(|| vec![None; keys.len()]);
            notes.extend(kept.into_iter().map(|kept| kept.map(|kept| kept.note)));
        }
        Ok(notes)
    }

    /// Skips a chunk that was counted, and collects the flows that are in gaps.
    pub(super) fn skip_chunk(
        &mut self,
        chunk: &PendingChunk,
        gaps: &mut [FilledGap],
    ) -> Result<(), FrontierError> {
        let start = chunk.before.index;
        let end = start + chunk.chains.len() as u64;
        let overlaps = |gap: &&mut FilledGap| {
            gap.gap.end.index > start && gap.gap.end.index.saturating_sub(gap.gap.count) < end
        };
        let mut gaps: Vec<_> = gaps.iter_mut().filter(overlaps).collect();
        for gap in &mut gaps {
            gap.late_from = chunk.late_from.into_iter().chain(gap.late_from).min();
        }
        let mut known = chunk.flows() as u64;
        if let (Some(batch), false) = (&chunk.batch, gaps.is_empty()) {
            let records = chunk.records.iter().zip(&chunk.chains);
            let records = records.filter(|(record, _)| record.is_in_batch);
            let flows = codec::Records::new(batch.bytes())?;
            for ((record, chain), flow) in records.zip(flows) {
                let Some(gap) = gaps.iter_mut().find(|gap| gap.gap.contains(chain.index)) else {
                    continue;
                };
                let flow = flow?;
                let key = FlowKey::decode(flow.key)?;
                if key.hour.get() >= gap.gap.hour {
                    let names = [&key.src_app, &key.dest_app, &key.vpc_id];
                    let names = names.map(|name| name.as_bytes());
                    gap.flows.push(key.hour, names, flow.counters);
                    gap.locations.push(record.location);
                    known -= 1;
                }
            }
        }
        self.known.flows += known;
        Ok(())
    }

    /// Makes batches of the flows that are in the gaps.
    pub(super) fn make_gap_batches(&mut self, gaps: Vec<FilledGap>) {
        for filled in gaps {
            let Some(key) = filled.gap.batch_key().filter(|_| filled.flows.flows() > 0) else {
                continue;
            };
            let gap = filled.gap.next();
            let notes = Notes {
                own: Note::new("h"),
                others: self.gap_notes(&gap, filled.late_from),
                excluded_by: Vec::new(),
            };
            self.refilled.if_late.push(Some(self.if_late(&gap, &notes)));
            let batch: Batch = filled.flows.finish();
            self.refilled
                .batches
                .push(batch.with_key(key).with_notes(notes));
            self.refilled.locations.push(filled.locations);
        }
    }

    /// The notes for flows that the reader left out, of `hour` and later ones.
    pub(super) fn gap_notes(&self, gap: &Gap, hour: Option<u32>) -> Vec<(IdempotencyKey, Note)> {
        let Some(hour) = hour else { return Vec::new() };
        let note = Note::new(&format!("{}{hour}", gap.note_stem()));
        let of_file = self.early.first().and_then(late::gaps_note);
        of_file
            .into_iter()
            .chain(gap.note_key().zip(note))
            .collect()
    }

    /// The notes for the case that the service refuses flows as too far ahead.
    pub(super) fn if_late(&self, gap: &Gap, notes: &Notes) -> IfLate {
        let mut notes = notes.clone();
        notes
            .others
            .extend(self.early.first().and_then(late::gaps_note));
        let stem = Note::new(&gap.note_stem());
        // This must be the last note, because the hour is appended to it.
        notes.others.extend(gap.note_key().zip(stem));
        IfLate {
            notes: notes.to_string(),
            is_again: gap.times > 0,
        }
    }
}
