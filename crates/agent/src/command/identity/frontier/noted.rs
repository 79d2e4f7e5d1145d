//! Notes about the records of a batch that an earlier or later copy of the file may have in part.

use super::super::lines::{self, LineNote};
use super::super::stems::{FlowFields, Stem};
use super::grown::first_flow;
use super::{Frontier, FrontierError, PendingChunk, ReceiptLookup};
use crate::inputs::Line;
use flow::{Counters, Field, IdempotencyKey, Note, codec};

/// Notes about the first line of a batch.
#[derive(Debug, Default)]
pub(super) struct NotedLines {
    /// For each field inside which it may have been cut: lines that were counted after the same records, and when.
    pub(super) lines: Vec<(Stem, Vec<(LineNote, u64)>)>,
    /// The notes to write for this line.
    pub(super) first: Vec<(IdempotencyKey, Note)>,
    /// The batch must be refused if a line has been noted under one of these keys meanwhile.
    pub(super) unless: Vec<IdempotencyKey>,
}

impl PendingChunk {
    fn text(&self, begin: u32, end: u32) -> &str {
        let text = self.text.get(begin as usize..end as usize);
        text.unwrap_or_default()
    }

    /// The stem of a record whose text identifies it.
    fn stem_of_text(&self, line: Line) -> Stem {
        let before = self.text(line.start, line.last_field);
        Stem::of_text(before, self.text(line.last_field, line.end))
    }

    /// The fields of a record's flow, which is in the batch.
    fn fields(&self, record: usize) -> Result<Option<FlowFields>, FrontierError> {
        let Some(batch) = &self.batch else {
            return Ok(None);
        };
        let before = &self.records[..record];
        let number = before.iter().filter(|record| record.is_in_batch).count();
        let flow = codec::Records::new(batch.bytes())?.nth(number);
        Ok(flow
            .transpose()?
            .as_ref()
            .map(FlowFields::new)
            .transpose()?)
    }

    /// The stem of a record that may be cut inside its last field.
    fn cut_stem(&self, record: usize) -> Result<Option<Stem>, FrontierError> {
        let Some(line) = self.records[record].line else {
            return Ok(None);
        };
        let Some(column) = line.last_column else {
            return Ok(Some(self.stem_of_text(line)));
        };
        let text = self.text(line.last_field, line.end);
        let fields = self.fields(record)?;
        Ok(fields.map(|fields| fields.stem(column, Some(text))))
    }

    /// The stems of the first record; the one for a cut in its own line is first.
    fn first_stems(&self) -> Result<Vec<Stem>, FrontierError> {
        let own = self.cut_stem(0)?;
        let line = self.records[0].line;
        if line.is_some_and(|line| line.last_column.is_none()) {
            return Ok(own.into_iter().collect());
        }
        let Some(fields) = self.fields(0)? else {
            return Ok(Vec::new());
        };
        let own_column = line.and_then(|line| line.last_column);
        let others = Field::ALL.into_iter().filter(|&f| Some(f) != own_column);
        let others = others.map(|field| fields.stem(field, None));
        Ok(own.into_iter().chain(others).collect())
    }
}

impl<L: ReceiptLookup> Frontier<L> {
    /// Looks up which lines were counted at the start of this chunk.
    pub(super) fn noted_lines(
        &mut self,
        chunk: &PendingChunk,
    ) -> Result<NotedLines, FrontierError> {
        let mut noted = NotedLines::default();
        let Some(first) = chunk.records.first().filter(|first| first.is_in_batch) else {
            return Ok(noted);
        };
        if !self.uses_line_notes() {
            return Ok(noted);
        }
        let stems = chunk.first_stems()?;
        let slots = |stem: &Stem| lines::slot_keys(&chunk.before, stem);
        let slots: Vec<Vec<IdempotencyKey>> = stems.iter().map(slots).collect();
        // Only the first batch can begin with a line that was cut. Batches of lines are looked up in any case, for
        // commands that read the growing file at the same time.
        let is_looked_up = !self.has_made_batches || first.line.is_some();
        let kept = match is_looked_up {
            true => self.look_up(&slots.concat())?,
            false => None,
        };
        let kept = kept.unwrap_or_else(|| vec![None; slots.concat().len()]);
        let mut kept = kept.into_iter();
        let is_cut = chunk.records.len() == 1 && chunk.ends_within_a_line;
        let (flow, counters) = match &chunk.batch {
            Some(batch) => first_flow(batch)?,
            None => Default::default(),
        };
        for (stem, slots) in stems.into_iter().zip(slots) {
            let kept: Vec<_> = kept.by_ref().take(slots.len()).collect();
            let free = slots.iter().zip(&kept).find(|(_, kept)| kept.is_none());
            let free = free.map(|(key, _)| key.clone());
            let parse = |kept: &flow::ReceiptInfo| {
                let line = kept.note.as_deref().and_then(LineNote::parse)?;
                Some((line, kept.time_s))
            };
            let lines = kept.iter().flatten().filter_map(parse).collect();
            // If all slots are taken, replace the first.
            let slot = free.clone().or_else(|| slots.into_iter().next());
            // A line that is cut inside one field is not noted as complete in the others.
            if noted.lines.is_empty() || !is_cut {
                let note = LineNote::new(!is_cut, &stem.field, flow, counters).note();
                noted.first.extend(slot.zip(note));
            }
            noted.unless.extend(free.filter(|_| is_looked_up));
            noted.lines.push((stem, lines));
        }
        Ok(noted)
    }

    fn uses_line_notes(&self) -> bool {
        self.identity.is_some() && !self.lookup_unsupported
    }

    /// Detects a file that ends inside a line and may be an earlier copy of a file that was counted and has
    /// grown since.
    pub(super) fn detect_shorter_copy(&mut self) -> Result<(), FrontierError> {
        let chunk = self.pending.back();
        let Some(chunk) = chunk.filter(|p| p.ends_within_a_line && self.uses_line_notes()) else {
            return Ok(());
        };
        let last = chunk.records.len().saturating_sub(1);
        let Some(record) = chunk.records.get(last).filter(|record| record.is_in_batch) else {
            return Ok(());
        };
        let Some((line, stem)) = record.line.zip(chunk.cut_stem(last)?) else {
            return Ok(());
        };
        let before = chunk.before(last);
        let mut keys = lines::slot_keys(&before, &stem);
        let column = line.last_column;
        let fields = chunk.fields(last)?.zip(column);
        keys.extend(match &fields {
            Some((fields, column)) => fields.within_key(&before, *column),
            None => lines::within_key(&before, stem.rest),
        });
        let kept = self.look_up(&keys)?;
        for kept in kept.into_iter().flatten().flatten() {
            let note = kept.note.as_deref().unwrap_or_default();
            let noted = LineNote::parse(note);
            let is_line = noted.is_some_and(|n| n.may_begin_with(&stem.field, stem.is_number));
            let is_flow = fields
                .as_ref()
                .is_some_and(|(fields, c)| fields.may_be_cut_of(note, *c));
            if is_line || is_flow {
                return Err(FrontierError::Shorter {
                    since_s: kept.time_s,
                });
            }
        }
        Ok(())
    }
}

/// Notes of records that no mark follows. Without them, an earlier copy that was cut inside such a line would
/// look like a different file.
pub(super) fn lines_within(
    chunk: &PendingChunk,
) -> Result<Vec<(IdempotencyKey, Note)>, FrontierError> {
    let count = chunk.records.len();
    let (mut names, mut others) = (Vec::new(), Vec::new());
    let Some(batch) = &chunk.batch else {
        return Ok(names);
    };
    let mut flows = codec::Records::new(batch.bytes())?;
    for (record, number) in chunk.records.iter().zip(1..) {
        let flow = match record.is_in_batch {
            true => flows.next().transpose()?,
            false => None,
        };
        let is_noted = number > 1 && (usize::is_power_of_two(number) || number == count);
        let Some(flow) = flow.filter(|_| is_noted) else {
            continue;
        };
        let before = chunk.before(number - 1);
        let column = record.line.and_then(|line| line.last_column);
        if let (Some(line), None) = (record.line, column) {
            let stem = chunk.stem_of_text(line);
            let note = LineNote::new(true, &stem.field, 0, Counters::default()).note();
            names.extend(lines::within_key(&before, stem.rest).zip(note));
            continue;
        }
        let fields = FlowFields::new(&flow)?;
        let note = |cut_in| {
            let key = fields.within_key(&before, cut_in);
            key.zip(fields.within_note(cut_in))
        };
        names.extend(note(Field::BytesTx));
        others.extend(column.filter(|column| column.is_name()).and_then(note));
    }
    names.extend(others);
    Ok(names)
}
