//! Counts the rest of a line that was cut when the file was counted before, and is longer now.

use xxhash_rust::xxh3::xxh3_64;

use super::super::lines;
use super::noted::NotedLines;
use super::{Frontier, FrontierError, NewFlows, PendingChunk, ReceiptLookup};
use crate::command::source;
use crate::inputs::{RejectedFlow, first_to_json};
use flow::codec::FlowKey;
use flow::{Batch, BatchBuilder, Counters, codec};

impl<L: ReceiptLookup> Frontier<L> {
    /// Splits off the first record if a part of it was counted when the file ended inside its line. Only the
    /// difference counts. If there is no valid difference, nothing counts and the line is refused.
    pub(super) fn split_grown_line(
        &mut self,
        chunk: &mut PendingChunk,
        noted: &NotedLines,
        new_flows: &mut NewFlows,
    ) -> Result<Option<PendingChunk>, FrontierError> {
        let Some(first) = chunk.records.first().filter(|record| record.is_in_batch) else {
            return Ok(None);
        };
        let location = first.location;
        let mut lines = noted.lines.iter();
        let grown = lines.find_map(|(stem, lines)| lines::grown(lines, stem));
        let Some((counted, time_s)) = grown else {
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
                let time = source::rfc3339(time_s);
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
}

/// The first flow of a batch: a hash of its hour and names, and its counters.
pub(super) fn first_flow(batch: &Batch) -> Result<(u64, Counters), FrontierError> {
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
