//! Drops flows of a file whose hours are too far ahead of the service's clock, and sends the rest of their batch. Flows
//! of a pipe wait in the spool instead, since the clock may be wrong, unless their hours are in another unit, such as
//! seconds: no clock is that far off.

use std::path::Path;

use serde::Deserialize;

use super::closing::compress;
use super::queue::BatchMeta;
use super::reason::reason;
use super::status::RejectReason;
use super::worker::{OnRejected, flows_of};
use super::{DeadLetters, Rejected, SendError, SenderState};
use crate::inputs::GIVE_AGAIN;
use flow::HourUnit;

/// The part of the service's error that is no longer true once the late flows are left out.
const NOTHING_COUNTED: &str = "; nothing of the batch counted";

/// The part of the service's error that names another unit.
const LOOKS_LIKE: &str = "; it looks like ";

#[derive(Deserialize)]
struct HourField {
    hour: u64,
}

fn hour(flow: &str) -> Option<u64> {
    serde_json::from_str(flow)
        .ok()
        .map(|HourField { hour }| hour)
}

/// The flows of a batch as a body.
fn body_of(flows: &[String], is_compressed: bool) -> Result<Vec<u8>, SendError> {
    let json = format!("[{}]", flows.join(",")).into_bytes();
    match is_compressed {
        true => compress(&json).map_err(|e| SendError::Options(format!("cannot compress: {e}"))),
        false => Ok(json),
    }
}

/// A batch in two parts.
pub(super) struct Split {
    /// The flows whose hours are in another unit.
    wrong: Vec<String>,
    pub(super) rest: Vec<String>,
}

/// Splits a batch after the service has refused the flow with this number for this reason. `None` if no hour is in
/// another unit.
pub(super) fn in_another_unit(
    meta: &BatchMeta,
    body: &[u8],
    index: Option<usize>,
    why: &str,
) -> Option<Split> {
    let now = HourUnit::clock_hour();
    let is_wrong = |(number, flow): &(usize, String)| {
        // The service's clock recognises the flow that it names, and this machine's clock the others.
        let is_named = Some(*number) == index && why.contains(LOOKS_LIKE);
        is_named || hour(flow).is_some_and(|hour| !HourUnit::hint(hour.into(), now).is_empty())
    };
    let flows = flows_of(meta, body).ok()?.into_iter().enumerate();
    let (wrong, rest): (Vec<_>, Vec<_>) = flows.partition(is_wrong);
    let flows = |of: Vec<(usize, String)>| of.into_iter().map(|(_, flow)| flow).collect();
    (!wrong.is_empty()).then(|| Split {
        wrong: flows(wrong),
        rest: flows(rest),
    })
}

impl SenderState {
    /// Removes from the first batch the flow with this number and all flows with equal or later hours. The notes of
    /// the batch record the removed flows, so that the next command tries them again. Returns whether such a flow
    /// exists.
    pub(super) fn drop_late_flows(
        &self,
        meta: &BatchMeta,
        body: &[u8],
        index: usize,
        why: &str,
        on_rejected: &mut OnRejected,
    ) -> Result<bool, SendError> {
        let Ok(flows) = flows_of(meta, body) else {
            return Ok(false);
        };
        let Some(earliest) = flows.get(index).and_then(|flow| hour(flow)) else {
            return Ok(false);
        };
        let is_late = |(_, flow): &(usize, String)| hour(flow).is_none_or(|h| h >= earliest);
        let (late, rest): (Vec<_>, Vec<_>) = flows.into_iter().enumerate().partition(is_late);
        let rest: Vec<String> = rest.into_iter().map(|(_, flow)| flow).collect();
        let body = body_of(&rest, meta.compressed)?;
        let mut meta = BatchMeta {
            flows: rest.len(),
            ..meta.clone()
        };
        if let Some(if_late) = &meta.if_late {
            meta.notes = format!("{}{earliest}", if_late.notes);
        }
        let has_rest = meta.flows > 0 || !meta.if_late.as_ref().is_some_and(|l| l.is_again);
        let rejected = Rejected::FromKeyedBatch {
            key: meta.key.clone(),
            flows: late,
            why: why.replace(NOTHING_COUNTED, GIVE_AGAIN),
        };
        on_rejected(rejected).map_err(SendError::NotKept)?;
        let queue = &mut self.state().queue;
        match has_rest {
            true => queue.replace_first(meta, body).map(drop)?,
            false => queue.pop()?,
        }
        Ok(true)
    }

    /// Moves flows from the first batch of a spool to the refused ones, and keeps the rest of the batch. Returns false
    /// if the disk has no room for that.
    pub(super) fn reject_flows(
        &self,
        meta: &BatchMeta,
        split: Split,
        why: &str,
        on_rejected: &mut OnRejected,
    ) -> Result<bool, SendError> {
        let Split { wrong, rest } = split;
        let why = why.replace(NOTHING_COUNTED, "");
        let batch_of = |flows: &[String]| -> Result<(BatchMeta, Vec<u8>), SendError> {
            let body = body_of(flows, meta.compressed)?;
            let flows = flows.len();
            let meta = meta.clone();
            Ok((BatchMeta { flows, ..meta }, body))
        };
        let (aside, rest) = (batch_of(&wrong)?, batch_of(&rest)?);
        let rejected = match &self.options.refused {
            DeadLetters::SetAside(command) => {
                let (meta, body) = &aside;
                let again = Some((command.as_str(), RejectReason::Flow));
                let mut state = self.state();
                let text = |path: &Path| reason(path, meta, &why, again);
                let Some(path) = state.queue.add_refused(meta, body, text)? else {
                    return Ok(false);
                };
                Rejected::File {
                    path,
                    flows: meta.flows,
                    why,
                }
            }
            DeadLetters::PassOn | DeadLetters::NotKept => Rejected::Flows {
                flows: wrong,
                why,
                smaller_batch: None,
            },
        };
        // They are stored elsewhere before they leave the queue.
        on_rejected(rejected).map_err(SendError::NotKept)?;
        let replaced = self.state().queue.replace_first(rest.0, rest.1)?;
        Ok(replaced.is_none())
    }
}
