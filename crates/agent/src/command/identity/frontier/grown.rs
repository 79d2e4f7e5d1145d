//! The line at which a file was cut, when the file has grown.

use xxhash_rust::xxh3::xxh3_64;

use super::super::Chain;
use super::super::lines::{self, LineNote};
use super::{Frontier, LookUp, Piece, Stop, Taken};
use crate::command::source;
use crate::inputs::{Refused, first_to_json};
use flow::codec::FlowKey;
use flow::{Batch, BatchBuilder, Counters, IdempotencyKey, Note, codec};

/// What is known of the first line of a batch.
#[derive(Debug, Default)]
pub(super) struct NotedLines {
    /// Lines that were counted behind the same records, and when.
    lines: Vec<(LineNote, u64)>,
    /// What is to be noted of this one.
    pub(super) first: Option<(IdempotencyKey, Note)>,
    /// Nobody may have noted a line here when the batch is counted.
    pub(super) unless: Option<IdempotencyKey>,
}

impl<L: LookUp> Frontier<L> {
    /// Looks up what was counted where this piece begins.
    pub(super) fn noted_lines(&mut self, piece: &Piece) -> Result<NotedLines, Stop> {
        let mut noted = NotedLines::default();
        let counts = piece.records.first().is_some_and(|first| first.is_in_batch);
        let Some(line) = piece.line(0).filter(|_| counts && self.knows_lines()) else {
            return Ok(noted);
        };
        let slots = lines::slots(&piece.before, line);
        let kept = self.receipts.look_up(&slots).map_err(Stop::Failed)?;
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
        // Where there are very many, the first is replaced.
        let slot = noted.unless.clone().or_else(|| slots.into_iter().next());
        // Another command may have counted this line since it was looked up how far the file was counted.
        let key = piece.chains.first().and_then(Chain::key);
        let key = key.filter(|key| !self.marks.contains_key(key));
        if noted.lines.iter().any(|(note, _)| note.is_of(line.last)) {
            noted.unless = key.or(noted.unless);
        }
        let is_alone = piece.records.len() == 1;
        let has_ended = !(is_alone && piece.ends_within_a_line);
        let (flow, counters) = match &piece.batch {
            Some(batch) => first_flow(batch)?,
            None => Default::default(),
        };
        let note = LineNote::new(has_ended, line, flow, counters).note();
        noted.first = slot.zip(note);
        Ok(noted)
    }

    fn knows_lines(&self) -> bool {
        self.identity.is_some() && !self.cannot_ask
    }

    /// Takes the first record away if a part of it was counted when the file ended within its line. What
    /// counts of it is the difference; where there is none, nothing does, and the line is refused.
    pub(super) fn take_grown_line(
        &mut self,
        piece: &mut Piece,
        noted: &NotedLines,
        taken: &mut Taken,
    ) -> Result<Option<Piece>, Stop> {
        let Some(line) = piece.line(0) else {
            return Ok(None);
        };
        let Some(first) = piece.records.first().filter(|record| record.is_in_batch) else {
            return Ok(None);
        };
        let place = first.place;
        let notes: Vec<_> = noted.lines.iter().map(|(note, _)| note.clone()).collect();
        let Some(counted) = lines::grown(&notes, line.last) else {
            return Ok(None);
        };
        let mut grown = piece.split_off(1)?;
        grown.ends_within_a_line = piece.records.is_empty() && piece.ends_within_a_line;
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
            Some((0, 0)) => batch.part(0..0).map_err(failed)?,
            Some((tx, rx)) => with_counters(&batch, Counters { tx, rx })?,
            None => {
                let time_s = noted.lines.iter().find(|(note, _)| *note == counted);
                let time = source::time(time_s.map_or(0, |(_, time_s)| *time_s));
                let Counters { tx, rx } = counted.counters;
                taken.refused.push(Refused {
                    place,
                    text: first_to_json(&batch).map_err(failed)?,
                    why: format!(
                        "the file ended inside the last field of this line when it was counted on {time}; what \
                         was there counted as another flow, of bytes_tx {tx} and bytes_rx {rx}, and stays; what \
                         the line says now does not count"
                    ),
                });
                batch.part(0..0).map_err(failed)?
            }
        });
        Ok(Some(grown))
    }

    /// A file that ends within a line may be an earlier copy of one that was counted, and has grown since.
    pub(super) fn check_last_line(&mut self) -> Result<(), Stop> {
        let piece = self.pending.back();
        let Some(piece) = piece.filter(|p| p.ends_within_a_line && self.knows_lines()) else {
            return Ok(());
        };
        let last = piece.records.len().saturating_sub(1);
        let Some(line) = piece.line(last) else {
            return Ok(());
        };
        let before = piece.before(last);
        let mut keys = lines::slots(&before, line);
        keys.extend(lines::within(&before, line));
        let last = line.last.to_owned();
        let kept = self.receipts.look_up(&keys).map_err(Stop::Failed)?;
        for kept in kept.into_iter().flatten().flatten() {
            let noted = kept.note.as_deref().and_then(LineNote::parse);
            if noted.is_some_and(|noted| noted.may_begin_with(&last)) {
                return Err(Stop::Shorter {
                    since_s: kept.time_s,
                });
            }
        }
        Ok(())
    }
}

/// Notes of lines behind which no mark tells an earlier copy, which was cut inside them, from another file.
pub(super) fn lines_within(piece: &Piece) -> Vec<(IdempotencyKey, Note)> {
    let count = piece.records.len();
    let powers = (1..)
        .map(|power| 1_usize << power)
        .take_while(|&n| n < count);
    let note = |record: usize| {
        let line = piece.line(record)?;
        let note = LineNote::new(true, line, 0, Counters::default()).note()?;
        lines::within(&piece.before(record), line).zip(Some(note))
    };
    let last = (count > 1).then_some(count);
    powers.chain(last).filter_map(|n| note(n - 1)).collect()
}

/// The first flow of a batch: a hash of its hour and names, and its counters.
fn first_flow(batch: &Batch) -> Result<(u64, Counters), Stop> {
    let first = codec::Records::new(batch.bytes()).map_err(failed)?.next();
    match first.transpose().map_err(failed)? {
        Some(record) => Ok((xxh3_64(record.key), record.counters)),
        None => Ok(Default::default()),
    }
}

/// The first flow of a batch, with other counters.
fn with_counters(batch: &Batch, counters: Counters) -> Result<Batch, Stop> {
    let mut builder = BatchBuilder::with_capacity(batch.bytes().len());
    if let Some(record) = codec::Records::new(batch.bytes()).map_err(failed)?.next() {
        let key = FlowKey::decode(record.map_err(failed)?.key).map_err(failed)?;
        let names = [&key.src_app, &key.dest_app, &key.vpc_id];
        builder.push(key.hour, names.map(|name| name.as_bytes()), counters);
    }
    Ok(builder.finish())
}

fn failed(error: codec::Corrupt) -> Stop {
    Stop::Failed(error.to_string())
}
