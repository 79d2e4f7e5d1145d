//! Counts the rest of a line that was cut when the file was counted before, and is longer now.

use xxhash_rust::xxh3::xxh3_64;

use super::super::Chain;
use super::super::lines::{self, LineNote};
use super::{Frontier, FrontierError, NewFlows, PendingChunk, ReceiptLookup};
use crate::command::source;
use crate::inputs::{RejectedFlow, first_to_json};
use flow::codec::FlowKey;
use flow::{Batch, BatchBuilder, Counters, IdempotencyKey, Note, codec};

/// Notes about the first line of a batch.
#[derive(Debug, Default)]
pub(super) struct NotedLines {
    /// Lines that were counted after the same records, and when.
    lines: Vec<(LineNote, u64)>,
    /// The note to write for this line.
    pub(super) first: Option<(IdempotencyKey, Note)>,
    /// The batch must be refused if a line has been noted under this key meanwhile.
    pub(super) unless: Option<IdempotencyKey>,
}

impl<L: ReceiptLookup> Frontier<L> {
    /// Looks up which lines were counted at the start of this chunk.
    pub(super) fn noted_lines(
        &mut self,
        chunk: &PendingChunk,
    ) -> Result<NotedLines, FrontierError> {
        let mut noted = NotedLines::default();
        let counts = chunk.records.first().is_some_and(|first| first.is_in_batch);
        let Some(line) = chunk.line(0).filter(|_| counts && self.uses_line_notes()) else {
            return Ok(noted);
        };
        let slots = lines::slot_keys(&chunk.before, line);
        let kept = self.look_up(&slots)?;
        let kept = kept.unwrap_or_default();
        noted.unless = slots
            .iter()
            .zip(&kept)
            .find(|(_, kept)| kept.is_none())
            .map(|(key, _)| key.clone());
        let parse = |kept: &flow::ReceiptInfo| {
            let line = kept.note.as_deref().and_then(LineNote::parse)?;
            Some((line, kept.time_s))
        };
        noted.lines = kept.iter().flatten().filter_map(parse).collect();
        // If all slots are taken, replace the first.
        let slot = noted.unless.clone().or_else(|| slots.into_iter().next());
        // Another command may have counted this line since the receipts were looked up.
        let key = chunk.chains.first().and_then(Chain::key);
        let key = key.filter(|key| !self.marks.contains_key(key));
        if noted.lines.iter().any(|(note, _)| note.is_of(line.last)) {
            noted.unless = key.or(noted.unless);
        }
        let is_alone = chunk.records.len() == 1;
        let has_ended = !(is_alone && chunk.ends_within_a_line);
        let (flow, counters) = match &chunk.batch {
            Some(batch) => first_flow(batch)?,
            None => Default::default(),
        };
        let note = LineNote::new(has_ended, line, flow, counters).note();
        noted.first = slot.zip(note);
        Ok(noted)
    }

    fn uses_line_notes(&self) -> bool {
        self.identity.is_some() && !self.lookup_unsupported
    }

    /// Splits off the first record if a part of it was counted when the file ended inside its line. Only the
    /// difference counts. If there is no valid difference, nothing counts and the line is refused.
    pub(super) fn split_grown_line(
        &mut self,
        chunk: &mut PendingChunk,
        noted: &NotedLines,
        new_flows: &mut NewFlows,
    ) -> Result<Option<PendingChunk>, FrontierError> {
        let Some(line) = chunk.line(0) else {
            return Ok(None);
        };
        let Some(first) = chunk.records.first().filter(|record| record.is_in_batch) else {
            return Ok(None);
        };
        let location = first.location;
        let notes: Vec<_> = noted.lines.iter().map(|(note, _)| note.clone()).collect();
        let Some(counted) = lines::grown(&notes, line.last) else {
            return Ok(None);
        };
        let mut grown = chunk.split_off(1)?;
        grown.ends_within_a_line = chunk.records.is_empty() && chunk.ends_within_a_line;
        let Some(batch) = grown.batch.take() else {
            return Ok(None);
        };
        let (flow, now) = first_flow(&batch)?;
        let more = now
            .tx
            .checked_sub(counted.counters.tx)
            .zip(now.rx.checked_sub(counted.counters.rx));
        let more = more.filter(|_| flow == counted.flow);
        grown.batch = Some(match more {
            Some((0, 0)) => batch.part(0..0)?,
            Some((tx, rx)) => with_counters(&batch, Counters { tx, rx })?,
            None => {
                let time_s = noted.lines.iter().find(|(note, _)| *note == counted);
                let time = source::rfc3339(time_s.map_or(0, |(_, time_s)| *time_s));
                let Counters { tx, rx } = counted.counters;
                new_flows.refused.push(RejectedFlow {
                    location,
                    text: first_to_json(&batch)?,
                    why: format!(
                        "the file ended inside the last field of this line when it was counted on {time}; the \
                         text counted as another flow, with bytes_tx {tx} and bytes_rx {rx}, which is kept; the \
                         current text of the line does not count"
                    ),
                });
                batch.part(0..0)?
            }
        });
        Ok(Some(grown))
    }

    /// Detects a file that ends inside a line and may be an earlier copy of a file that was counted and has
    /// grown since.
    pub(super) fn detect_shorter_copy(&mut self) -> Result<(), FrontierError> {
        let chunk = self.pending.back();
        let Some(chunk) = chunk.filter(|p| p.ends_within_a_line && self.uses_line_notes()) else {
            return Ok(());
        };
        let last = chunk.records.len().saturating_sub(1);
        let Some(line) = chunk.line(last) else {
            return Ok(());
        };
        let before = chunk.before(last);
        let mut keys = lines::slot_keys(&before, line);
        keys.extend(lines::within_key(&before, line));
        let last = line.last.to_owned();
        let kept = self.look_up(&keys)?;
        for kept in kept.into_iter().flatten().flatten() {
            let noted = kept.note.as_deref().and_then(LineNote::parse);
            if noted.is_some_and(|noted| noted.may_begin_with(&last)) {
                return Err(FrontierError::Shorter {
                    since_s: kept.time_s,
                });
            }
        }
        Ok(())
    }
}

/// Notes of lines that no mark follows. Without them, an earlier copy that was cut inside such a line would
/// look like a different file.
pub(super) fn lines_within(chunk: &PendingChunk) -> Vec<(IdempotencyKey, Note)> {
    let count = chunk.records.len();
    let powers = (1..)
        .map(|power| 1_usize << power)
        .take_while(|&n| n < count);
    let note = |record: usize| {
        let line = chunk.line(record)?;
        let note = LineNote::new(true, line, 0, Counters::default()).note()?;
        lines::within_key(&chunk.before(record), line).zip(Some(note))
    };
    let last = (count > 1).then_some(count);
    powers.chain(last).filter_map(|n| note(n - 1)).collect()
}

/// The first flow of a batch: a hash of its hour and names, and its counters.
fn first_flow(batch: &Batch) -> Result<(u64, Counters), FrontierError> {
    let first = codec::Records::new(batch.bytes())?.next();
    match first.transpose()? {
        Some(record) => Ok((xxh3_64(record.key), record.counters)),
        None => Ok(Default::default()),
    }
}

/// The first flow of a batch with different counters.
fn with_counters(batch: &Batch, counters: Counters) -> Result<Batch, FrontierError> {
    let mut builder = BatchBuilder::with_capacity(batch.bytes().len());
    if let Some(record) = codec::Records::new(batch.bytes())?.next() {
        let key = FlowKey::decode(record?.key)?;
        let names = [&key.src_app, &key.dest_app, &key.vpc_id];
        builder.push(key.hour, names.map(|name| name.as_bytes()), counters);
    }
    Ok(builder.finish())
}
