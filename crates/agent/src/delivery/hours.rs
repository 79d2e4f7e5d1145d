//! Drops flows of a file whose hours are too far ahead of the service's clock, and sends the rest of their
//! batch. Flows of a pipe wait in the spool instead, since the clock may be wrong.

use serde::Deserialize;

use super::closing::compress;
use super::queue::BatchMeta;
use super::worker::{OnRejected, flows_of};
use super::{Rejected, SendError, Shared};
use crate::inputs::GIVE_AGAIN;

/// The part of the service's error that is no longer true once the late flows are left out.
const NOTHING_COUNTED: &str = "; nothing of the batch counted";

#[derive(Deserialize)]
struct HourField {
    hour: u64,
}

impl Shared {
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
        let hour = |flow: &String| {
            serde_json::from_str(flow)
                .ok()
                .map(|HourField { hour }| hour)
        };
        let Ok(flows) = flows_of(meta, body) else {
            return Ok(false);
        };
        let Some(earliest) = flows.get(index).and_then(hour) else {
            return Ok(false);
        };
        let is_late = |(_, flow): &(usize, String)| hour(flow).is_none_or(|h| h >= earliest);
        let (late, rest): (Vec<_>, Vec<_>) = flows.into_iter().enumerate().partition(is_late);
        let rest: Vec<String> = rest.into_iter().map(|(_, flow)| flow).collect();
        let json = format!("[{}]", rest.join(",")).into_bytes();
        let body = match meta.compressed {
            true => {
                compress(&json).map_err(|e| SendError::Options(format!("cannot compress: {e}")))?
            }
            false => json,
        };
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
            true => queue.replace_first(meta, body),
            false => queue.pop()?,
        }
        Ok(true)
    }
}
