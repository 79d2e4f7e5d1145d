//! Batches that the caller has cut and given a key: the batches of files, which are cut by content.

use super::closing::compress;
use super::queue::BatchMeta;
use super::{SendError, Sender};

/// A complete batch with its key.
#[derive(Clone, Debug)]
pub(crate) struct KeyedBatch {
    /// The idempotency key.
    pub(crate) key: String,
    /// The value of the header `Receipt-Notes`; may be empty.
    pub(crate) notes: String,
    /// Set if flows whose hours are too far ahead can be removed from the batch.
    pub(crate) if_late: Option<IfLate>,
    pub(crate) flows: usize,
    /// A JSON array of flows.
    pub(crate) json: Vec<u8>,
}

/// Changes to a batch when flows whose hours are too far ahead are removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IfLate {
    /// The new notes. The earliest hour that was removed is appended.
    pub(crate) notes: String,
    /// All flows of the batch were removed from a batch before. If all are removed again, nothing is sent.
    pub(crate) is_again: bool,
}

impl Sender {
    /// A unique key.
    pub(crate) fn random_key() -> String {
        uuid::Uuid::now_v7().simple().to_string()
    }

    /// Appends a batch to the queue. Blocks while the queue is full.
    ///
    /// # Errors
    /// [`SendError::Conflict`] if an earlier batch was refused because of its notes. Neither that batch nor
    /// any later one was counted.
    pub(crate) fn push_keyed(&self, batch: KeyedBatch) -> Result<(), SendError> {
        let shared = &*self.shared;
        let body = if shared.options.compress {
            compress(&batch.json)
                .map_err(|e| SendError::Options(format!("cannot compress: {e}")))?
        } else {
            batch.json
        };
        let meta = BatchMeta {
            key: batch.key,
            notes: batch.notes,
            if_late: batch.if_late,
            flows: batch.flows,
            is_keyed: true,
            compressed: shared.options.compress,
        };
        let mut state = shared.state();
        loop {
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            if state.queue.is_full() {
                state = shared.wait(state, std::time::Duration::from_secs(1));
                continue;
            }
            match state.queue.push(meta.clone(), body.clone())? {
                None => break,
                Some(full) => state = shared.wait_for_room(state, full),
            }
        }
        shared.changed.notify_all();
        Ok(())
    }
}
